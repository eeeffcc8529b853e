"""Weight files by another hand: one line, no code, and no more memory than the file is worth."""

import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pyro_avse.models.guide import NoisyGuide
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior, save_prior
from pyro_avse.weights.guides import load_guide, save_guide
from pyro_avse.weights.import_weights import import_weights
from pyro_avse.weights.tensors import load_tensors, save_tensors

A_VAE = {"num_freqs": 9, "latent_dim": 3, "hidden": 8, "learned_prior": False}


@pytest.fixture
def saved(tmp_path: Path, tiny_prior: Callable[..., nn.Module]) -> Path:
    path = tmp_path / "w.safetensors"
    save_prior(path, tiny_prior("a_vae", num_freqs=9), STFT(n_fft=16, hop=8))
    return path


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than a gigabyte on top of what is mapped already: what asks for more ends in an error at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def with_header(path: Path, text: str) -> None:
    tensors, _ = load_tensors(path)
    save_file(tensors, path, metadata={"pyro_avse": text})


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "a list": ({"model": ["a_vae"]}, r"holds a model \['a_vae'\]: known are"),
    "no options": ({"options": None}, "no options"),
    "a huge layer": ({"options": A_VAE | {"hidden": 4_000_000}}, "hidden is 4e"),
    "a layer beyond all": ({"options": A_VAE | {"hidden": 10**30}}, "hidden is 1e"),
    "a negative layer": ({"options": A_VAE | {"hidden": -8}}, "fits no a_vae"),
    "no layer": ({"options": A_VAE | {"hidden": 0}}, "this model's is"),
    "a layer in words": ({"options": A_VAE | {"hidden": "8"}}, "fits no a_vae"),
    "parts of what has none": ({"options": A_VAE | {"hidden": {"a": 8}}}, "fits no a_vae"),
    "another window": ({"stft": {"n_fft": 32, "hop": 8}}, "17 frequencies, its tensors have 9"),
    "a hop of one": ({"stft": {"n_fft": 1024, "hop": 1}}, "16000 frames a second: take 64"),
    "half a hop": ({"stft": {"n_fft": 16, "hop": 7.5}}, "fits no a_vae"),
    "a window in words": ({"stft": {"n_fft": "16", "hop": 8}}, "fits no a_vae"),
    "no STFT": ({"stft": [16, 8]}, "fits no a_vae"),
    "half an STFT": ({"stft": {"n_fft": 16}}, "fits no a_vae"),
    "a name that fills the screen": ({"model": "x" * 100_000}, "holds a model 'xxx"),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_header_of_another_hand(kind: str, saved: Path, little_memory: None) -> None:
    """What a header says is compared with the file's shapes before anything is built."""
    change, said = HEADERS[kind]
    _, header = load_tensors(saved)
    with_header(saved, json.dumps(header | change))
    with pytest.raises(InputError, match=said) as refusal:
        load_prior(saved)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600 + len(str(saved))


def test_a_header_of_brackets(saved: Path) -> None:
    with_header(saved, "[" * 100_000 + "]" * 100_000)
    with pytest.raises(InputError, match="no JSON object"):
        load_prior(saved)


SPOILED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "NaN": ({"decoder.hidden.bias": torch.full((8,), torch.nan)}, "holds NaN or infinity"),
    "integers": ({"decoder.hidden.bias": torch.ones(8, dtype=torch.int64)}, "is int64, this model"),
    "complex": ({"decoder.hidden.bias": torch.ones(8, dtype=torch.complex64)}, "is complex64"),
    "shares": ({"mixing_weight": torch.tensor([-1.0])}, "expected shares of 1"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_numbers_that_are_no_weights(kind: str, saved: Path) -> None:
    tensors, header = load_tensors(saved)
    change, said = SPOILED[kind]
    save_tensors(saved, tensors | change, header)
    with pytest.raises(InputError, match=said):
        load_prior(saved)


def test_a_tensor_of_a_foreign_shape_is_not_read(saved: Path) -> None:
    """A file of 64 GB, all of it one tensor (and a hole on the disk), is refused by its size or its list of shapes."""
    _, header = load_tensors(saved)
    numbers = 2**34
    listed = {
        "__metadata__": {"pyro_avse": json.dumps(header)},
        "decoder.hidden.bias": {
            "dtype": "F32",
            "shape": [numbers],
            "data_offsets": [0, 4 * numbers],
        },
    }
    text = json.dumps(listed).encode()
    with saved.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * numbers)
    with pytest.raises(InputError, match=r"lacks 'audio_encoder|not a whole"):
        load_prior(saved)


@pytest.mark.parametrize(
    "change", [{"layers": 10**9}, {"hidden": 10**7}, {"hidden": "many"}, {"depth": 1}, []]
)
def test_a_guide_of_another_hand(
    change: Any, tmp_path: Path, tiny_prior: Callable[..., Any], little_memory: None
) -> None:
    prior, stft = tiny_prior("a_vae", num_freqs=9), STFT(n_fft=16, hop=8)
    path = tmp_path / "guide.safetensors"
    save_guide(path, NoisyGuide(prior, hidden=8), stft)
    assert load_guide(path, prior, stft).options["hidden"] == 8
    tensors, header = load_tensors(path)
    options = header["guide"] | change if isinstance(change, dict) else change
    save_tensors(path, tensors, header | {"guide": options})
    with pytest.raises(InputError, match="its header fits no guide of this version"):
        load_guide(path, prior, stft)


def state_dict() -> dict[str, torch.Tensor]:
    """As A-VAE's public code has it."""
    layers = {
        "mlp_x_z.linear0": (9, 8),
        "inf_mean": (8, 3),
        "inf_logvar": (8, 3),
        "mlp_z_x.linear0": (3, 8),
        "gen_logvar": (8, 9),
    }
    return {
        f"{name}.{kind}": value
        for name, (inputs, outputs) in layers.items()
        for kind, value in (
            ("weight", torch.randn(outputs, inputs)),
            ("bias", torch.randn(outputs)),
        )
    }


def test_a_state_dict_of_another_hand(tmp_path: Path, little_memory: None) -> None:
    """Numbers repeated by strides, tensors without any, and archives that unpack into far more."""
    path, out = tmp_path / "theirs.pt", tmp_path / "w.safetensors"
    torch.save(state_dict(), path)
    import_weights(path, out, hop=8)
    out.unlink()
    spoiled = {
        "of fewer numbers": torch.zeros(1).expand(10**6, 10**6),
        "expected dense": torch.zeros(8, 9, device="meta"),
    }
    for said, tensor in spoiled.items():
        torch.save(state_dict() | {"mlp_x_z.linear0.weight": tensor}, path)
        with pytest.raises(InputError, match=said):
            import_weights(path, out, hop=8)
    torch.save(state_dict() | {"gen_logvar.bias": torch.zeros(4_000_000)}, path)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed, "w", 8) as archive:
        for member in plain.infolist():
            archive.writestr(member.filename, plain.read(member))
    with pytest.raises(InputError, match="would unpack into 16 MB"):
        import_weights(packed, out, hop=8)
    torch.save(state_dict(), path)
    with pytest.raises(InputError, match="hop 0 with n_fft 16: take 1"):
        import_weights(path, out, hop=0)
    assert not out.exists()
