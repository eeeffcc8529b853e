"""Weights of the papers' public codes, made ours. [Sadeghi2021] (1)-(3), (9), (10), (13)

Two layouts of state dicts are known, each by the names of its layers:

    a_vae        mlp_x_z.linear0, inf_mean, inf_logvar; mlp_z_x.linear0, gen_logvar
    min_vae_v2   encoder_layerX, latent_{mean,logvar}_layer_a; encoder_layerV0, encoder_layerV,
                 latent_{mean,logvar}_layer_v; decoder_layerZ, output_layer; mupA, sigpA, mupV, sigpV

The networks are those of models/nets.py, so the numbers stay as they are, with two exceptions. Pictures are flattened
there column by column, here row by row: the columns of encoder_layerV0.weight change places. sigpA and sigpV are
variances, ours are their logarithms. The sizes are those of the tensors; the frame hop is not in the files: MIN-VAE's
code had 533 samples, the A-VAE that came with dynamical VAEs 256.

Files are read by torch's weights-only loader, which builds tensors and containers and calls nothing else of a file.
"""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_avse.files import refuse_inputs
from pyro_avse.models import MODELS
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import save_prior
from pyro_avse.weights.headers import checked_stft


def _linear(layers: dict[str, str]) -> dict[str, str]:
    """Names of the weights and biases of linear layers, from the layers' names."""
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in layers.items()
        for kind in ("weight", "bias")
    }


LAYOUTS: dict[str, dict[str, str]] = {
    "a_vae": _linear(
        {
            "mlp_x_z.linear0": "audio_encoder.hidden",
            "inf_mean": "audio_encoder.mean",
            "inf_logvar": "audio_encoder.log_variance",
            "mlp_z_x.linear0": "decoder.hidden",
            "gen_logvar": "decoder.log_variance",
        }
    ),
    "min_vae_v2": _linear(
        {
            "encoder_layerX": "audio_encoder.hidden",
            "latent_mean_layer_a": "audio_encoder.mean",
            "latent_logvar_layer_a": "audio_encoder.log_variance",
            "encoder_layerV0": "visual_encoder.features",
            "encoder_layerV": "visual_encoder.hidden",
            "latent_mean_layer_v": "visual_encoder.mean",
            "latent_logvar_layer_v": "visual_encoder.log_variance",
            "decoder_layerZ": "decoder.hidden",
            "output_layer": "decoder.log_variance",
        }
    )
    | {
        "mupA": "audio_prior.mean",
        "sigpA": "audio_prior.log_variance",
        "mupV": "visual_prior.mean",
        "sigpV": "visual_prior.log_variance",
    },
}
"""Their names and ours, by the model that they make."""

SIZES = {
    "num_freqs": ("audio_encoder.hidden.weight", 1),
    "hidden": ("audio_encoder.hidden.weight", 0),
    "latent_dim": ("audio_encoder.mean.weight", 0),
    "features": ("visual_encoder.features.weight", 0),
}
"""Which axis of which tensor tells an option of the model."""


def import_weights(path: str | Path, out: str | Path, *, hop: int = 533) -> nn.Module:
    """Write a state dict of the papers' public codes as a weight file of ours; returns the prior, float32.

    Args:
        path: file of torch.save: a state dict, bare or under "model_state_dict"; names may begin with "module.".
        out: .safetensors file to write.
        hop: of the STFT that the weights were trained on, in samples; its window has 2 (F - 1).

    Raises:
        InputError: no such file, or none that torch.save wrote of tensors alone; unknown or missing names; wrong
            shapes; NaN or infinity; a variance that is not positive; an impossible hop; `out` cannot be written.
    """
    path, out = Path(path), Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"{out} is no .safetensors: weights are written as .safetensors")
    refuse_inputs([out], {"the file that is read": path})
    theirs = _read(path)
    model = max(LAYOUTS, key=lambda model: len(LAYOUTS[model].keys() & theirs.keys()))
    names = LAYOUTS[model]
    if not names.keys() & theirs.keys():
        raise InputError(
            f"{path}: {next(iter(theirs))!r} and the rest are of no known model: give A-VAE's (mlp_x_z, ...) or "
            "MIN-VAE's (encoder_layerX, ...)"
        )
    for name in sorted(names.keys() ^ theirs.keys()):
        what = "lacks" if name in names else "has an unknown tensor"
        raise InputError(f"{path}: {what} {name!r}: not the {model} of the papers' codes")
    ours = {names[name]: _checked(tensor, name, path) for name, tensor in theirs.items()}
    options = {size: ours[name].shape[axis] for size, (name, axis) in SIZES.items() if name in ours}
    stft = checked_stft(2 * (options["num_freqs"] - 1), hop)
    with torch.device("meta"):  # shapes without numbers
        expected = MODELS[model](**options).state_dict()
    for name, our_name in names.items():
        if ours[our_name].shape != expected[our_name].shape:
            found, fits = (tuple(state[our_name].shape) for state in (ours, expected))
            raise InputError(
                f"{path}: {name} is {found}, beside the other layers it must be {fits}"
            )
    for name, our_name in names.items():
        ours[our_name] = _converted(ours[our_name], name, path)
    prior = MODELS[model](**options)
    prior.load_state_dict({"mixing_weight": prior.mixing_weight, **ours})
    save_prior(out, prior, stft)
    return prior


def _read(path: Path) -> dict[str, Tensor]:
    """The file's state dict, names without DataParallel's "module."."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    _check_size(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the loader stumbles on in broken bytes can be anything
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(
                f"{path}: holds {code[1]}, which is not loaded, for it may run code: save the state dict alone"
            ) from None
        raise InputError(
            f"{path}: not a whole file of tensors by torch.save: copy it again, or save the state dict alone"
        ) from None
    state: Any = content.get("model_state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds no state dict, bare or under 'model_state_dict'")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: {name!r} is {type(value).__name__}, no tensor: give a state dict, bare or under "
                "'model_state_dict'"
            )
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _check_size(path: Path) -> None:
    """Refuse an archive that would unpack into far more than its bytes: torch.save stores tensors as they are."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # the loader says what is wrong with it
    if unpacked > 2 * path.stat().st_size + 2**20:
        raise InputError(
            f"{path}: would unpack into {unpacked / 1e6:.0f} MB, which torch.save does not do: save the state dict "
            "again"
        )


def _checked(tensor: Tensor, name: str, path: Path) -> Tensor:
    """In float32 and of our number of axes: their prior's (1, L) and () are (L,) and (1,) here."""
    strange = tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested
    if not tensor.is_floating_point() or strange:
        kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}".replace("torch.", "")
        raise InputError(f"{path}: {name} is {kind}: expected dense floating-point numbers")
    if name.endswith(".weight") and (tensor.dim() != 2 or tensor.numel() == 0):
        raise InputError(
            f"{path}: {name} is {tuple(tensor.shape)}: expected a matrix, (outputs, inputs)"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{path}: {name} is {tuple(tensor.shape)}, of fewer numbers: save a contiguous tensor"
        )
    tensor = tensor.detach().float()
    if not tensor.isfinite().all():
        raise InputError(f"{path}: {name} holds NaN or infinity: export the weights again")
    if name.startswith(("mup", "sigp")):
        while tensor.dim() > 1 and len(tensor) == 1:
            tensor = tensor[0]
        tensor = torch.atleast_1d(tensor)
    return tensor


def _converted(tensor: Tensor, name: str, path: Path) -> Tensor:
    """What is not the same number here and there."""
    if (
        name == "encoder_layerV0.weight"
    ):  # pixel (row, column): theirs 67 column + row, ours 67 row + column
        return tensor.reshape(-1, 67, 67).mT.reshape(tensor.shape)
    if name.startswith("sigp"):
        if tensor <= 0:
            raise InputError(f"{path}: {name} is {tensor.item():g}: a variance must be positive")
        return tensor.log()
    return tensor
