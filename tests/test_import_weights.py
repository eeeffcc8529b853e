"""Weights of the papers' public codes: the same networks after import, other files refused by name."""

import math
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_avse.cli import main
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior
from pyro_avse.weights.import_weights import import_weights

F, HIDDEN, L, FEATURES = 9, 6, 3, 5


class TheirAVAE(nn.Module):
    """Layers named as in the dynamical VAEs' code; the equations are (1) and (3)."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp_x_z = nn.Sequential(OrderedDict(linear0=nn.Linear(F, HIDDEN)))
        self.inf_mean, self.inf_logvar = nn.Linear(HIDDEN, L), nn.Linear(HIDDEN, L)
        self.mlp_z_x = nn.Sequential(OrderedDict(linear0=nn.Linear(L, HIDDEN)))
        self.gen_logvar = nn.Linear(HIDDEN, F)

    def encode(self, power: Tensor, column_major: Tensor) -> list[tuple[Tensor, Tensor]]:
        h = torch.tanh(self.mlp_x_z(power))
        return [(self.inf_mean(h), self.inf_logvar(h).exp())]

    def decode(self, z: Tensor) -> Tensor:
        return self.gen_logvar(torch.tanh(self.mlp_z_x(z)))

    def prior(self) -> list[tuple[Tensor, Tensor]]:
        return [(torch.zeros(L), torch.ones(L))]


class TheirMINVAE(nn.Module):
    """Layers named as in MIN-VAE's code; the equations are (9), (10) and (13), pictures flattened by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_layerX = nn.Linear(F, HIDDEN)
        self.encoder_layerV0 = nn.Linear(67 * 67, FEATURES)
        self.encoder_layerV = nn.Linear(FEATURES, HIDDEN)
        for way in "av":
            setattr(self, f"latent_mean_layer_{way}", nn.Linear(HIDDEN, L))
            setattr(self, f"latent_logvar_layer_{way}", nn.Linear(HIDDEN, L))
        self.decoder_layerZ, self.output_layer = nn.Linear(L, HIDDEN), nn.Linear(HIDDEN, F)
        self.mupA, self.mupV = nn.Parameter(torch.randn(1, L)), nn.Parameter(torch.randn(1, L))
        self.sigpA, self.sigpV = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor([2.5]))

    def encode(self, power: Tensor, column_major: Tensor) -> list[tuple[Tensor, Tensor]]:
        a = torch.tanh(self.encoder_layerX(power))
        v = torch.tanh(self.encoder_layerV(self.encoder_layerV0(column_major).clamp(min=0)))
        return [
            (self.latent_mean_layer_a(a), self.latent_logvar_layer_a(a).exp()),
            (self.latent_mean_layer_v(v), self.latent_logvar_layer_v(v).exp()),
        ]

    def decode(self, z: Tensor) -> Tensor:
        return self.output_layer(torch.tanh(self.decoder_layerZ(z)))

    def prior(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.mupA[0], self.sigpA.expand(L)), (self.mupV[0], self.sigpV.expand(L))]


THEIRS = {"a_vae": TheirAVAE, "min_vae_v2": TheirMINVAE}
every_layout = pytest.mark.parametrize("model", THEIRS)


def columns(lips: Tensor) -> Tensor:
    """Pictures as their files have them: column after column, each from the top down."""
    return torch.from_numpy(np.stack([picture.flatten(order="F") for picture in lips.numpy()]))


def bare(state: dict[str, Tensor]) -> Any:
    return state


def wrapped(state: dict[str, Tensor]) -> Any:
    return {"epoch": 99, "model_state_dict": state, "loss_log": [1.0, 0.5]}


def parallel(state: dict[str, Tensor]) -> Any:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def wrapped_parallel(state: dict[str, Tensor]) -> Any:
    return {"model_state_dict": OrderedDict(parallel(state))}


@torch.no_grad()
@pytest.mark.parametrize("pack", [bare, wrapped, parallel, wrapped_parallel])
@every_layout
def test_the_networks_stay_the_same(model: str, pack: Callable[..., Any], tmp_path: Path) -> None:
    """Every encoder, the decoder and the priors after import are what the original computes, pictures by columns."""
    theirs = THEIRS[model]()
    torch.save(pack(theirs.state_dict()), tmp_path / "theirs.pt")
    made = import_weights(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", hop=7)
    ours, stft = load_prior(tmp_path / "ours.safetensors")
    assert type(made) is type(ours)
    assert stft == STFT(n_fft=16, hop=7)
    power, lips, z = torch.rand(4, F), torch.rand(4, 67, 67), torch.randn(2, 4, L)
    for prior in (made, ours):
        found = {"q": prior.encode(power, lips), "p": prior.latent_prior(lips)}
        expected = {"q": theirs.encode(power, columns(lips)), "p": theirs.prior()}
        for name, normal in found.items():
            assert len(normal.mean) == len(expected[name])
            for k, (mean, variance) in enumerate(expected[name]):
                torch.testing.assert_close(normal.mean[k].expand(4, L), mean.expand(4, L))
                torch.testing.assert_close(normal.variance[k].expand(4, L), variance.expand(4, L))
        torch.testing.assert_close(prior.log_variance(z, lips)[0], theirs.decode(z))


@torch.no_grad()
def test_a_pixel_keeps_its_place(tmp_path: Path) -> None:
    """A weight on column 5, row 2 of theirs sees row 2, column 5 of ours, and no other pixel."""
    theirs = TheirMINVAE()
    theirs.encoder_layerV0.weight.zero_()
    theirs.encoder_layerV0.weight[0, 5 * 67 + 2] = 1
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = import_weights(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", hop=8)
    seen = ours.visual_encoder.features.weight.reshape(FEATURES, 67, 67)
    assert seen.nonzero().tolist() == [[0, 2, 5]]


@every_layout
def test_half_and_double_precision_become_float32(model: str, tmp_path: Path) -> None:
    """Whatever floating point the file has."""
    for dtype in (torch.float16, torch.float64):
        torch.save(THEIRS[model]().to(dtype).state_dict(), tmp_path / "theirs.pt")
        prior = import_weights(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", hop=8)
        assert {p.dtype for p in prior.parameters()} == {torch.float32}


def test_weights_from_a_gpu_load_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose tensors say cuda:7, which torch.load alone refuses here."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        torch.save(TheirAVAE().state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(RuntimeError):
        torch.load(tmp_path / "theirs.pt", weights_only=True)
    prior = import_weights(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", hop=8)
    assert {p.device.type for p in prior.parameters()} == {"cpu"}


class Planted:
    """What a malicious pickle does: it calls a function of its choice when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """The MIN-VAE's state dict with other entries; dots are written __, None takes one away."""
    entries = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda state: {k: v for k, v in {**state, **entries}.items() if v is not None}


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown": (changed(decoder_layerV__weight=torch.ones(2, 2)), "unknown tensor 'decoder_layerV"),
    "missing": (changed(mupV=None), "lacks 'mupV'"),
    "others": (lambda state: {"conv.weight": torch.ones(3, 3)}, "'conv.weight' and the rest"),
    "half parallel": (
        lambda state: {**parallel(state), "mupA": state["mupA"]},
        "lacks 'decoder_layerZ.bias'",
    ),
    "shape": (changed(output_layer__bias=torch.ones(F + 1)), "output_layer.bias is (10,), beside"),
    "layer": (changed(decoder_layerZ__weight=torch.ones(8, L)), "decoder_layerZ.weight is (8, 3)"),
    "pixels": (changed(encoder_layerV0__weight=torch.ones(5, 88 * 88)), "must be (5, 4489)"),
    "no matrix": (changed(encoder_layerX__weight=torch.ones(54)), "encoder_layerX.weight is (54,)"),
    "empty": (changed(encoder_layerV0__weight=torch.ones(0, 4489)), "V0.weight is (0, 4489)"),
    "prior": (changed(mupA=torch.ones(L, 1)), "mupA is (3, 1), beside the other layers it must"),
    "diagonal": (changed(sigpV=torch.ones(1, L)), "sigpV is (3,), beside the other layers it must"),
    "zero": (changed(sigpA=torch.tensor(0.0)), "sigpA is 0: a variance must be positive"),
    "negative": (changed(sigpV=torch.tensor([-2.0])), "sigpV is -2: a variance"),
    "underflow": (changed(sigpV=torch.tensor(1e-60, dtype=torch.float64)), "sigpV is 0: a"),
    "nan": (changed(mupV=torch.full((1, L), math.nan)), "mupV holds NaN"),
    "overflow": (changed(mupV=torch.full((1, L), 1e60, dtype=torch.float64)), "mupV holds NaN or"),
    "integers": (changed(mupA=torch.ones(1, L, dtype=torch.int64)), "mupA is int64, strided"),
    "sparse": (changed(mupA=torch.ones(1, L).to_sparse()), "mupA is float32, sparse_coo"),
    "no tensor": (changed(epoch=3), "'epoch' is int, no tensor"),
    "no name": (lambda state: {3: torch.ones(3)}, "3 is Tensor"),
    "no dict": (lambda state: list(state.values()), "holds no state dict"),
    "nothing": (lambda state: {}, "holds no state dict"),
    "empty wrapping": (lambda state: {"model_state_dict": None}, "holds no state dict"),
    "whole module": (lambda state: nn.Linear(2, 2), "holds torch.nn.modules.linear.Linear, which"),
    "code": (lambda state: {**state, "x": Planted(Path("planted"))}, "which is not loaded"),
}


def refusal(path: Path, out: Path, hop: int = 8) -> str:
    """The one line of a refused import, after which there is no file."""
    with pytest.raises(InputError) as refused:
        import_weights(path, out, hop=hop)
    message = str(refused.value)
    assert "\n" not in message
    assert "weights_only=False" not in message  # torch's own advice
    assert not out.exists()
    return message


@pytest.mark.parametrize("case", REFUSED)
def test_another_file_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, shapes, kinds and numbers that are not the layout's: one line that names them; no code runs."""
    monkeypatch.chdir(tmp_path)
    spoil, reason = REFUSED[case]
    with warnings.catch_warnings(action="ignore"):  # of saving a sparse tensor
        torch.save(spoil(TheirMINVAE().state_dict()), "theirs.pt")
        message = refusal(Path("theirs.pt"), Path("ours.safetensors"))
    assert message.startswith("theirs.pt: ")
    assert reason in message
    assert os.listdir() == ["theirs.pt"]


@pytest.mark.parametrize(
    "spoil",
    [lambda b: b[:-200], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no weights\n" * 9],
    ids=["cut", "half", "empty", "text"],
)
def test_what_is_no_checkpoint_is_refused(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Bytes cut short, none, and a text."""
    path = tmp_path / "theirs.pt"
    torch.save(TheirMINVAE().state_dict(), path)
    path.write_bytes(spoil(path.read_bytes()))
    assert "not a whole file of tensors" in refusal(path, tmp_path / "ours.safetensors")


def test_impossible_arguments_are_refused(tmp_path: Path) -> None:
    """No such file, a folder, an output of another kind or in no folder, a hop beyond the window."""
    path, out = tmp_path / "theirs.pt", tmp_path / "ours.safetensors"
    torch.save(TheirAVAE().state_dict(), path)
    assert "no such file" in refusal(tmp_path / "other.pt", out)
    assert "no such file" in refusal(tmp_path, out)
    assert "no .safetensors" in refusal(path, tmp_path / "ours.pt")
    assert "cannot be written" in refusal(path, tmp_path / "none" / "ours.safetensors")
    for hop in (0, 16, 533):
        assert f"hop {hop}" in refusal(path, out, hop=hop)


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`import-weights FILE -o OUT --hop 8` writes what --model takes; a refusal is one line and exit code 2."""
    monkeypatch.chdir(tmp_path)
    torch.save(TheirMINVAE().state_dict(), "theirs.pt")
    codes = []
    for arguments in (["-o", "ours.safetensors", "--hop", "8"], ["-o", "ours.pt"]):
        monkeypatch.setattr(sys, "argv", ["pyro-avse", "import-weights", "theirs.pt", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        codes.append(end.value.code)
    out, err = capsys.readouterr()
    assert (codes, out) == ([0, 2], "")
    assert err.splitlines() == [
        "pyro-avse: wrote ours.safetensors: MINVAEv2, 9 frequencies, 3 codes",
        "pyro-avse: error: ours.pt is no .safetensors: weights are written as .safetensors",
    ]
    assert load_prior("ours.safetensors")[1] == STFT(n_fft=16, hop=8)
