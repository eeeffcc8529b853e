"""Weight files: what is saved comes back, files of other kinds are refused, and no write leaves half a file."""

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pyro_avse import files
from pyro_avse.files import make_folder, write_atomically
from pyro_avse.models import MODELS
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights import checkpoint
from pyro_avse.weights.checkpoint import load_prior, save_prior, weight_files
from pyro_avse.weights.tensors import load_tensors, save_tensors


@pytest.fixture
def tiny(tiny_prior: Callable[..., nn.Module]) -> Callable[[str], nn.Module]:
    """tiny(name): with nine frequencies."""
    return lambda name: tiny_prior(name, num_freqs=9)


@pytest.fixture
def saved(tmp_path: Path, tiny: Callable[[str], nn.Module]) -> Path:
    """A MIN-VAE's weight file."""
    save_prior(tmp_path / "w.safetensors", tiny("min_vae_v2"), STFT(n_fft=16, hop=8))
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip(
    name: str, half: bool, tmp_path: Path, tiny: Callable[[str], nn.Module]
) -> None:
    """A prior comes back with its class, options, STFT and weights: exact in float32, to 11 bits in half."""
    prior, stft = tiny(name), STFT(n_fft=16, hop=5)
    prior.mixing_weight.copy_(torch.softmax(torch.randn_like(prior.mixing_weight), 0))
    save_prior(tmp_path / "w.safetensors", prior, stft, half=half)
    loaded, its_stft = load_prior(tmp_path / "w.safetensors")
    assert type(loaded) is type(prior)
    assert loaded.options == prior.options
    assert its_stft == stft
    expected, found = prior.state_dict(), loaded.state_dict()
    tolerance = {"rtol": 2**-11, "atol": 1e-7} if half else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, expected, **tolerance)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters())
    assert not loaded.training


def test_half_precision_halves_the_file(tmp_path: Path, tiny: Callable[[str], nn.Module]) -> None:
    """float16 on disk, float32 in memory."""
    for half in (False, True):
        save_prior(tmp_path / f"{half}.safetensors", tiny("v_vae"), STFT(), half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (True, False)]
    assert sizes[0] < 0.52 * sizes[1]
    assert {t.dtype for t in load_file(tmp_path / "True.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize("name", ["av_rvae", "dkf"])
def test_quarter_precision(name: str, tmp_path: Path, tiny_prior: Callable[..., nn.Module]) -> None:
    """Matrices come back to within half of a row's scale; what hears |s|^2, and all else, to 11 bits."""
    prior, path = tiny_prior(name), tmp_path / "w.safetensors"
    save_prior(path, prior, STFT(), quarter=True)
    found = load_prior(path)[0].state_dict()
    for key, tensor in prior.state_dict().items():
        off = (found[key] - tensor).abs()
        if tensor.dim() == 2 and not key.endswith("encoder.hidden.weight"):
            assert (off <= tensor.abs().amax(1, keepdim=True) / 254 * 1.001).all(), key
            assert off.max() > 0 or not tensor.any(), key
        else:
            torch.testing.assert_close(found[key], tensor, rtol=2**-11, atol=1e-7)


def test_matrices_as_int8_quarter_the_file(
    tmp_path: Path, tiny: Callable[[str], nn.Module]
) -> None:
    """But for their scales."""
    prior, path = tiny("v_vae"), tmp_path / "w.safetensors"
    save_prior(path, prior, STFT(), quarter=True)
    whole = sum(4 * tensor.numel() for tensor in prior.state_dict().values())
    assert path.stat().st_size < 0.27 * whole
    assert load_file(path)["visual_encoder.features.weight"].dtype == torch.int8


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"move.hidden.weight:scale": torch.ones(3)}, r"scale is \(3,\), its matrix is \(8, 11\)"),
        ({"bias:scale": torch.ones(3)}, r"bias:scale is \(3,\), its matrix is \(\)"),
        (
            {"move.hidden.weight": torch.ones(8, 11)},
            "move.hidden.weight has a scale and is no int8",
        ),
        ({"move.hidden.weight:scale": torch.full((8,), torch.inf)}, "holds NaN or infinity"),
        ({"move.hidden.weight:scale": None}, "move.hidden.weight is int8, this model's is float32"),
    ],
)
def test_scales_that_lie(
    spoil: dict[str, torch.Tensor | None],
    said: str,
    tmp_path: Path,
    tiny: Callable[[str], nn.Module],
) -> None:
    """One line, by the name of the matrix."""
    path, prior = tmp_path / "w.safetensors", tiny("srnn")
    torch.nn.init.ones_(prior.get_submodule("move.hidden").weight)
    save_prior(path, prior, STFT(n_fft=16, hop=8), quarter=True)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path) | spoil
    save_file({name: t for name, t in tensors.items() if t is not None}, path, metadata=header)
    with pytest.raises(InputError, match=said) as refusal:
        load_prior(path)
    assert "\n" not in str(refusal.value)


def test_the_header_says_what_the_weights_are(saved: Path) -> None:
    """One key with JSON: the model, its options and the STFT, readable without loading a tensor."""
    with safe_open(saved, framework="pt") as file:
        assert list(file.metadata()) == ["pyro_avse"]
    _, header = load_tensors(saved)
    assert header["model"] == "min_vae_v2"
    assert header["options"] == {"num_freqs": 9, "latent_dim": 3, "hidden": 8, "features": 8}
    assert header["stft"] == {"n_fft": 16, "hop": 8}


def test_the_same_weights_are_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """Saving what was loaded gives the same file."""
    prior, stft = load_prior(saved)
    save_prior(tmp_path / "again.safetensors", prior, stft)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_its_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("these are no weights, but they are long enough to be read as a length\n" * 9)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def missing(path: Path) -> None:
    path.unlink()


def without_our_header(path: Path) -> None:
    save_file(load_file(path), path)


def with_a_header_that_is_no_json(path: Path) -> None:
    save_file(load_file(path), path, metadata={"pyro_avse": "{"})


def with_a_header_that_is_no_object(path: Path) -> None:
    save_file(load_file(path), path, metadata={"pyro_avse": "[1]"})


def of_an_unknown_model(path: Path) -> None:
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"model": "future_vae"})


def of_another_models_tensors(path: Path) -> None:
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"model": "v_vae"})


def of_unknown_options(path: Path) -> None:
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"options": {"depth": 3}})


def without_options(path: Path) -> None:
    tensors, header = load_tensors(path)
    del header["options"]
    save_tensors(path, tensors, header)


def of_an_impossible_stft(path: Path) -> None:
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"stft": {"n_fft": 16, "hop": 16}})


def with_a_misshapen_tensor(path: Path) -> None:
    tensors, header = load_tensors(path)
    save_tensors(path, tensors | {"decoder.hidden.bias": torch.zeros(7)}, header)


def without_a_tensor(path: Path) -> None:
    tensors, header = load_tensors(path)
    del tensors["decoder.hidden.bias"]
    save_tensors(path, tensors, header)


REFUSED: dict[Callable[[Path], None], str] = {
    truncated: "not a whole safetensors file",
    cut_in_its_header: "not a whole safetensors file",
    empty: "not a whole safetensors file",
    text: "not a whole safetensors file",
    folder: "no such weight file",
    missing: "no such weight file",
    without_our_header: "without pyro_avse's header",
    with_a_header_that_is_no_json: "no JSON object",
    with_a_header_that_is_no_object: "no JSON object",
    of_an_unknown_model: "holds a model 'future_vae': known are a_vae",
    of_another_models_tensors: "'audio_encoder.hidden.bias': weights of another model",
    of_unknown_options: "fits no min_vae_v2 of this version",
    without_options: "fits no min_vae_v2 of this version",
    of_an_impossible_stft: "fits no min_vae_v2 of this version",
    with_a_misshapen_tensor: "decoder.hidden.bias is (7,), this model's is (8,)",
    without_a_tensor: "lacks 'decoder.hidden.bias'",
}


def test_names_joined_by_plus_are_a_mixture(
    tiny_prior: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """Every tensor is its file's, in the order of the names; files are the parts'; a wrong part is a line."""
    names = ["a_vae", "v_vae", "av_vae"]
    files = [str(tmp_path / f"{name}.safetensors") for name in names]
    for name, file in zip(names, files, strict=True):
        save_prior(Path(file), tiny_prior(name), STFT())
    prior, stft = load_prior("+".join(files))
    assert stft == STFT()
    assert prior.components_see == (False, False, True)
    assert prior.noise_guide is None
    for part, file in zip(prior.parts, files, strict=True):
        for key, tensor in load_tensors(Path(file))[0].items():
            assert torch.equal(part.state_dict()[key], tensor)
    assert weight_files("+".join(files)) == [Path(file) for file in files]
    save_prior(tmp_path / "all.safetensors", prior, stft)
    again, _ = load_prior(tmp_path / "all.safetensors")
    assert again.options == prior.options
    assert all(torch.equal(t, prior.state_dict()[k]) for k, t in again.state_dict().items())
    save_prior(tmp_path / "dense.safetensors", tiny_prior("a_vae"), STFT(hop=256))
    with pytest.raises(InputError, match="unlike STFTs"):
        load_prior(f"{files[0]}+{tmp_path}/dense.safetensors")
    with pytest.raises(InputError, match=r"unknown model 'a_vea'.*a_vae"):
        load_prior(f"a_vea+{files[1]}")


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_another_file_is_refused(spoil: Callable[[Path], None], saved: Path) -> None:
    """What is not a whole weight file of ours is refused in one line that names it and says why."""
    spoil(saved)
    with pytest.raises(InputError) as refusal:
        load_prior(saved)
    message = str(refusal.value)
    assert message.startswith(str(saved))
    assert REFUSED[spoil] in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["min_vae_v9", "x" * 300, "min_vae_v2.pt"])
def test_an_unknown_name_is_refused(name: str) -> None:
    """A name that is no bundled one and no file is refused."""
    with pytest.raises(InputError, match="unknown model"):
        load_prior(name)


class Planted:
    """What a malicious pickle does: it calls a function of its choice when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write", [lambda o, f: pickle.dump(o, f), torch.save], ids=["pickle", "torch"]
)
def test_loading_runs_no_code(write: Callable[..., None], tmp_path: Path) -> None:
    """A pickle named .safetensors is refused unread; loaded as one, it would have run its code."""
    ran = tmp_path / "ran"
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        write(Planted(ran), file)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_prior(path)
    assert not ran.exists()
    assert "pickle" not in Path(checkpoint.__file__).read_text()


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk is full or the rename fails, the old file is whole, nothing lies beside it, and we say so."""
    path = tmp_path / "w"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, call, full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["w"]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C amid a write: the old file is whole and nothing lies beside it."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "w"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["w"]


def test_write_replaces_the_old_file(tmp_path: Path) -> None:
    """A write that succeeds leaves the new file alone."""
    path = tmp_path / "w"
    for content in (b"old", b"new"):
        write_atomically(path, content)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["w"]


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    """A missing folder, a file in its place, a name too long; and folders that cannot be made."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "w", tmp_path / "file" / "w", tmp_path / ("w" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            write_atomically(path, b"new")
    for path in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc"), Path("/proc/out")):
        with pytest.raises(InputError, match="choose another folder"):
            make_folder(path)
    assert os.listdir(tmp_path) == ["file"]
