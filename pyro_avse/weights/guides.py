"""Guides for noisy speech on disk. A guide belongs to one prior: its file says which, by name and checksum.

The bundled guide of the bundled prior NAME is bundled/NAME.guide.safetensors, of the causal kind
bundled/NAME.live.safetensors, and one that separates speakers bundled/NAME.separate.safetensors.
"""

import os
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_avse.models.guide import NoisyGuide
from pyro_avse.models.separating_guide import SeparatingGuide
from pyro_avse.stft import STFT
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.cards import FOLDER
from pyro_avse.weights.tensors import (
    Shapes,
    build,
    load_state,
    load_tensors,
    save_tensors,
    stored,
)

G = TypeVar("G", NoisyGuide, SeparatingGuide)


def fingerprint(prior: Any) -> int:
    """A checksum of a prior's weights, the same whether they were stored as float16 or not once loaded."""
    code = 0
    for name, tensor in sorted(prior.state_dict().items()):
        code = zlib.crc32(name.encode(), code)
        code = zlib.crc32(tensor.detach().cpu().float().contiguous().numpy().tobytes(), code)
    return code


def save_guide(
    path: Path,
    guide: NoisyGuide | SeparatingGuide,
    stft: STFT,
    *,
    half: bool = False,
    quarter: bool = False,
) -> None:
    """Save a guide with all that `load_guide`, or `load_separating_guide`, needs; `half` and `quarter` as in
    `save_prior`.
    """
    header = {
        "separates": isinstance(guide, SeparatingGuide),
        "guide": guide.options,
        "prior": type(guide.prior).__name__,
        "fingerprint": fingerprint(guide.prior),
        "stft": asdict(stft),
    }
    save_tensors(path, stored(guide.state_dict(), half=half, quarter=quarter), header)


def own_guide(model: str | Path, *, causal: bool = False, separates: bool = False) -> Path | None:
    """The file of the guide that came with a bundled prior, or lies beside a weight file; None: there is none."""
    kind = "separate" if separates else "live" if causal else "guide"
    bundled = FOLDER / f"{model}.{kind}.safetensors"
    if os.sep not in str(model) and bundled.exists():
        return bundled
    beside = Path(model).with_name(f"{kind}.safetensors")
    return beside if Path(model).suffix == ".safetensors" and beside.exists() else None


def read_guide(path: str | Path) -> tuple[dict[str, Tensor], JSON]:
    """Tensors and header of a guide's file. Raises InputError for another file."""
    tensors, header = load_tensors(Path(path), lambda header, _: _check_kind(Path(path), header))
    return {name: t.float() for name, t in tensors.items()}, header


def load_guide(
    path: str | Path, prior: Any, stft: STFT, *, causal: bool | None = None
) -> NoisyGuide:
    """The guide of a file, for this prior; frozen.

    Raises:
        InputError: no guide of ours; of another prior, STFT or, where `causal` is given, kind.
    """
    guide = _loaded(Path(path), prior, stft, NoisyGuide)
    if causal is not None and guide.causal != causal:
        kind = "sees the past alone" if guide.causal else "sees all of a recording"
        raise InputError(
            f"{path}: this guide {kind}: train one with causal = {str(causal).lower()} under [options]"
        )
    return guide


def load_separating_guide(
    model: str | Path, guide: str | Path | None, prior: Any, stft: STFT
) -> SeparatingGuide | None:
    """The guide by which a model's prior separates speakers, frozen: "own", a file, or None, which is none.

    Raises InputError for a model that came without one, and as `load_guide`.
    """
    if guide is None:
        return None
    path = own_guide(model, separates=True) if guide == "own" else Path(guide)
    if path is None:
        raise InputError(
            f"{model} came without a guide that separates speakers: train one (pyro-avse train "
            "default/separate_a_vae) and give it as --guide, or give --guide none, which seldom tells who is who"
        )
    return _loaded(path, prior, stft, SeparatingGuide)


def _loaded(path: Path, prior: Any, stft: STFT, kind: type[G]) -> G:
    """A file's guide, frozen."""
    found: list[G] = []

    def check(header: JSON, shapes: Shapes) -> None:
        found.append(_built(path, header, shapes, prior, stft, kind))

    tensors, _ = load_tensors(path, check)
    (guide,) = found
    with torch.no_grad():
        load_state(guide, tensors, path)
    return guide.to(prior.mixing_weight.device).eval().requires_grad_(False)


def _built(path: Path, header: JSON, shapes: Shapes, prior: Any, stft: STFT, kind: type[G]) -> G:
    """The guide that a header describes, its numbers not yet the file's."""
    _check_kind(path, header)
    if bool(header.get("separates")) != (kind is SeparatingGuide):
        does, wanted = (
            ("hears one speaker", "several")
            if kind is SeparatingGuide
            else ("separates speakers", "one")
        )
        raise InputError(f"{path}: this guide {does}: give one of {wanted}")
    if header.get("stft") != asdict(stft):
        raise InputError(
            f"{path}: a guide at STFT {header.get('stft')!s:.80}, the model has {asdict(stft)}: take the "
            "model's own guide"
        )
    if header.get("fingerprint") != fingerprint(prior):
        raise InputError(
            f"{path}: a guide of another {header.get('prior')!s:.80} than this {type(prior).__name__}: a guide belongs "
            "to the weights it was trained with, so train one for these (pyro-avse train), or go without"
        )
    options = header["guide"]
    if not isinstance(options, dict):
        raise InputError(f"{path}: its header fits no guide of this version ({options!r:.80})")
    return build(lambda: kind(prior, **options), options, shapes, path, "guide")


def _check_kind(path: Path, header: JSON) -> None:
    if "guide" not in header:
        raise InputError(
            f"{path}: holds {header.get('model', 'no model')!s:.80}, no guide: give what pyro-avse train "
            "default/guide_... wrote"
        )
