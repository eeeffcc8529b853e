"""Priors on disk: safetensors, with the model's name and options as JSON in its header. Loading one can run no code.

A weight file holds what `load_prior` needs and no more: {"model", "options", "stft", ...} under the header's one key
"pyro_avse" (one, because the order of several is not reproducible), and the parameters.
"""

import os
from pathlib import Path
from typing import Any

from torch import nn

from pyro_avse.errors import closest
from pyro_avse.models import MODELS
from pyro_avse.stft import STFT
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.cards import FOLDER, load_cards
from pyro_avse.weights.guides import load_guide, own_guide
from pyro_avse.weights.headers import read_stft
from pyro_avse.weights.tensors import (
    Shapes,
    build,
    load_state,
    load_tensors,
    save_tensors,
    stored,
)


def save_prior(
    path: Path, prior: nn.Module, stft: STFT, *, half: bool = False, quarter: bool = False
) -> None:
    """Save a speech prior with all that `load_prior` needs; `half` stores float16, at half the size, `quarter` matrices
    as int8 (`in_quarters`).
    """
    header = {
        "model": _kind(prior),
        "options": prior.options,
        "stft": {"n_fft": stft.n_fft, "hop": stft.hop},
    }
    save_tensors(path, stored(prior.state_dict(), half=half, quarter=quarter), header)


def load_prior(name: str | Path, *, guide: str | Path | None = "own") -> tuple[Any, STFT]:
    """A speech prior, float32 and frozen, and its STFT, from a bundled name ("a_vae"), a weight file, or several of
    them joined by + ("a_vae+v_vae+av_vae"): a mixture of them (`VAEMM`).

    The prior is a `SpeechPrior` and an `nn.Module`, for which Python has no type: Any. Its `noise_guide` is its guide
    for noisy speech, or None.

    Args:
        guide: "own": the one that came with a bundled prior, or lies beside a weight file as guide.safetensors, if
            there is one; None: none; or a guide's file.

    Raises:
        InputError: unknown name; not a weight file of ours; an unknown model or tensors of another shape; a guide of
            another prior.
    """
    parts = bundled_parts(name) or {f"component_{k}": part for k, part in enumerate(listed(name))}
    if parts:
        prior, stft = _assemble(str(name), parts)
    else:
        prior, stft = _load_file(find_weights(name))
    prior = prior.float().eval().requires_grad_(False)
    if guide == "own":
        guide = None if listed(name) else own_guide(name)
    found = None if guide is None else load_guide(guide, prior, stft)
    object.__setattr__(
        prior, "noise_guide", found
    )  # no submodule: it is no part of the prior's weights
    return prior, stft


def _assemble(name: str, parts: dict[str, str]) -> tuple[nn.Module, STFT]:
    """A mixture whose components are trained models, as they are; what it learned itself lies in a file of its own."""
    model = load_cards().get(name, {}).get("model", "vae_mm")
    loaded = {part: load_prior(weights, guide=None) for part, weights in parts.items()}
    components = {part: {"model": _kind(its), **its.options} for part, (its, _) in loaded.items()}
    prior = MODELS[model](components)
    for part, (its, _) in loaded.items():
        setattr(prior, part, its)
    stfts = {weights: loaded[part][1] for part, weights in parts.items()}
    if len(set(stfts.values())) > 1:
        raise InputError(f"a mixture of models of unlike STFTs, {stfts}: name models of one")
    if (own := FOLDER / f"{name}.safetensors").exists():
        load_state(prior, prior.state_dict() | load_tensors(own)[0], own)
    return prior, next(iter(stfts.values()))


def _kind(prior: nn.Module) -> str:
    """A prior's name in MODELS."""
    return next(name for name, cls in MODELS.items() if cls is type(prior))


def _load_file(path: Path) -> tuple[nn.Module, STFT]:
    found: list[tuple[nn.Module, STFT]] = []
    tensors, _ = load_tensors(
        path, lambda header, shapes: found.append(_built(path, header, shapes))
    )
    ((prior, stft),) = found
    load_state(prior, tensors, path)
    weight = tensors["mixing_weight"].float()
    if not (weight >= 0).all() or abs(float(weight.sum()) - 1) > 0.01:
        raise InputError(f"{path}: mixing_weight is {weight.tolist()}: expected shares of 1")
    return prior, stft


def _built(path: Path, header: JSON, shapes: Shapes) -> tuple[nn.Module, STFT]:
    """The prior that a header describes, its numbers not yet the file's, and its STFT."""
    name, options = header.get("model"), header.get("options")
    if not isinstance(name, str) or name not in MODELS:
        shown = repr(name)[:80]
        raise InputError(f"{path}: holds a model {shown}{closest(str(name)[:80], MODELS)}")
    if not isinstance(options, dict):
        raise InputError(f"{path}: its header fits no {name} of this version (no options)")
    prior = build(lambda: MODELS[name](**options), options, shapes, path, name)
    stft = read_stft(path, header.get("stft"), name)
    if prior.num_freqs != stft.n_fft // 2 + 1:
        raise InputError(
            f"{path}: its header says n_fft {stft.n_fft}, which has {stft.n_fft // 2 + 1} frequencies, its tensors "
            f"have {prior.num_freqs}: copy it again, or train anew"
        )
    return prior, stft


def bundled_weights() -> list[str]:
    """Names of the models that came with the package, those that are assembled from others among them."""
    return list(load_cards())


def bundled_parts(name: str | Path) -> dict[str, str]:
    """Of a bundled name that is assembled: {submodule: the bundled weights that it is}; of any other none."""
    return load_cards().get(str(name), {}).get("parts", {})


def listed(name: str | Path) -> list[str]:
    """Of names joined by + each; of a single name, or a file whose name holds a +, none."""
    names = str(name).split("+")
    return [] if len(names) < 2 or os.path.exists(name) else names


def weight_files(name: str | Path) -> list[Path]:
    """The files that `load_prior(name)` reads. Raises InputError as `find_weights`."""
    if parts := listed(name):
        return [find_weights(part) for part in parts]
    files = [find_weights(part) for part in bundled_parts(name).values()] or [find_weights(name)]
    if bundled_parts(name) and (own := FOLDER / f"{name}.safetensors").exists():
        files.append(own)
    return [*files, *filter(None, [own_guide(name)])]


def find_weights(name: str | Path) -> Path:
    """The file of a bundled name, or `name` itself where it is a path.

    Raises:
        InputError: neither; or the name of what is assembled, which has no file.
    """
    if parts := list(bundled_parts(name).values()) or listed(name):
        raise InputError(f"{name} has no weight file, it is assembled: name {' or '.join(parts)}")
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
