"""Weights on disk: safetensors, with the model's name and options as JSON in its header. Loading one can run no code.

A weight file holds what `load_prior` needs and no more: {"model", "options", "stft", ...} under the header's one key
"pyro_avse" (one, because the order of several is not reproducible), and the parameters.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pyro_avse.errors import closest
from pyro_avse.files import write_atomically
from pyro_avse.models import MODELS
from pyro_avse.stft import STFT
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.cards import FOLDER, Card, load_cards

HEADER = "pyro_avse"


def save_tensors(path: Path, tensors: dict[str, Tensor], header: JSON) -> None:
    """Write tensors and a JSON header, beside and then renamed: a reader sees the old file or the new one."""
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
        metadata={HEADER: json.dumps(header)},
    )
    write_atomically(path, data)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], JSON]:
    """The tensors, on the CPU, and the JSON header of a file of `save_tensors`.

    Raises:
        InputError: no such file; not safetensors, or cut short; or not one of ours.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such weight file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}): copy it again, or train anew"
        ) from None
    if HEADER not in metadata:
        raise InputError(f"{path}: safetensors, but without pyro_avse's header: not our weights")
    try:
        header = json.loads(metadata[HEADER])
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise InputError(f"{path}: its header is no JSON object: copy it again, or train anew")
    return tensors, header


def save_prior(path: Path, prior: nn.Module, stft: STFT, *, half: bool = False) -> None:
    """Save a speech prior with all that `load_prior` needs; `half` stores float16, at half the size."""
    names = {cls: name for name, cls in MODELS.items()}
    header = {
        "model": names[type(prior)],
        "options": prior.options,
        "stft": {"n_fft": stft.n_fft, "hop": stft.hop},
    }
    state = prior.state_dict()
    save_tensors(path, {k: v.half() for k, v in state.items()} if half else state, header)


def load_prior(name: str | Path) -> tuple[Any, STFT]:
    """A speech prior, float32 and frozen, and its STFT, from a bundled name ("a_vae") or a weight file.

    The prior is a `SpeechPrior` and an `nn.Module`, for which Python has no type: Any.

    Raises:
        InputError: unknown name; not a weight file of ours; an unknown model or tensors of another shape.
    """
    card = load_cards().get(str(name), {})
    prior, stft = _assemble(card) if "parts" in card else _load_file(find_weights(name))
    return prior.float().eval().requires_grad_(False), stft


def _assemble(card: Card) -> tuple[nn.Module, STFT]:
    """What a recipe without epochs gives: a model whose submodules are bundled models, as they are."""
    loaded = {part: load_prior(weights) for part, weights in card["parts"].items()}
    prior = MODELS[card["model"]](**{part: its.options for part, (its, _) in loaded.items()})
    for part, (its, _) in loaded.items():
        setattr(prior, part, its)
    (stft,) = {stft for _, stft in loaded.values()}
    return prior, stft


def _load_file(path: Path) -> tuple[nn.Module, STFT]:
    tensors, header = load_tensors(path)
    if header.get("model") not in MODELS:
        raise InputError(
            f"{path}: holds a model {header.get('model')!r}{closest(str(header.get('model')), MODELS)}"
        )
    try:
        prior, stft = MODELS[header["model"]](**header["options"]), STFT(**header["stft"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: its header fits no {header['model']} of this version ({error})"
        ) from None
    load_state(prior, tensors, path)
    return prior, stft


def load_state(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy tensors into a module's state, refusing missing, unknown and misshapen ones by name."""
    state = module.state_dict()
    for name in sorted(state.keys() ^ tensors.keys()):
        what = "lacks" if name in state else "has an unknown tensor"
        raise InputError(f"{path}: {what} {name!r}: weights of another model or version")
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            raise InputError(
                f"{path}: {name} is {tuple(tensor.shape)}, this model's is {tuple(state[name].shape)}"
            )
        state[name].copy_(tensor)


def bundled_weights() -> list[str]:
    """Names of the models that came with the package, those that are assembled from others among them."""
    return list(load_cards())


def bundled_parts(name: str | Path) -> dict[str, str]:
    """Of a bundled name that is assembled: {submodule: the bundled weights that it is}; of any other none."""
    return load_cards().get(str(name), {}).get("parts", {})


def weight_files(name: str | Path) -> list[Path]:
    """The files that `load_prior(name)` reads. Raises InputError as `find_weights`."""
    return [find_weights(part) for part in bundled_parts(name).values()] or [find_weights(name)]


def find_weights(name: str | Path) -> Path:
    """The file of a bundled name, or `name` itself where it is a path.

    Raises:
        InputError: neither; or the name of what is assembled, which has no file.
    """
    if parts := bundled_parts(name):
        raise InputError(
            f"{name} has no weight file, it is assembled: name {' or '.join(parts.values())}"
        )
    if str(name) in bundled_weights():
        return FOLDER / f"{name}.safetensors"
    path = Path(name)
    if path.suffix != ".safetensors" and not os.path.exists(path):
        if str(name) in MODELS:
            raise InputError(
                f"the model {name} exists, but no weights of it are bundled: train them (pyro-avse train "
                f"default/{name}) and give the .safetensors file, or take one of {', '.join(bundled_weights())}"
            )
        raise InputError(
            f"unknown model {str(name)!r}, which is no .safetensors file either{closest(str(name), bundled_weights())}"
        )
    return path
