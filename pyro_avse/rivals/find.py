"""Rivals by name: those of this library, anyone's function "module:function", and anyone's program."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pyro_avse.data.lips.lips import Lips
from pyro_avse.errors import closest
from pyro_avse.rivals.external import Program, call, import_function
from pyro_avse.typing import InputError
from pyro_avse.weights.tensors import load_tensors

RIVALS = {
    "log_mmse": "pyro_avse.rivals.classical:log_mmse",
    "spectral_subtraction": "pyro_avse.rivals.classical:spectral_subtraction",
    "supervised_nmf": "pyro_avse.rivals.classical:supervised_nmf",
    "gabbay": "pyro_avse.rivals.gabbay:gabbay",
    "dtln": "pyro_avse.rivals.peers:dtln",
    "deepfilternet3": "pyro_avse.rivals.peers:deepfilternet3",
    "rnnoise": "pyro_avse.rivals.peers:rnnoise",
    "noisereduce": "pyro_avse.rivals.peers:noisereduce",
}
"""Name -> the function that it is, of samples and their rate (and lips)."""


@dataclass(frozen=True)
class Rival:
    """Speech enhancement that is no prior and no scheme."""

    name: str
    function: Callable[..., Any]
    content: bytes
    """What its numbers depend on, as far as is known: its name, and the weights that it was given."""

    def __call__(
        self, samples: Float32[np.ndarray, "sample"], lips: Lips | None = None
    ) -> Float32[np.ndarray, "sample"]:
        """The speech of a recording at 16 kHz, in time with it. Raises InputError as `external.call`."""
        return call(self.name, self.function, samples, lips)


def find_rival(name: str) -> Rival | None:
    """The rival of that name, command or weight file; None where it is neither, and so a prior's.

    Raises InputError for a module or function that is not there, and a command without {noisy} or {out}.
    """
    if name in RIVALS:
        function = import_function(RIVALS[name])
        weights = getattr(function, "__kwdefaults__", None) or {}
        return Rival(name, function, name.encode() + _content(weights.get("weights")))
    path = Path(name)
    if "{" in name or (" " in name and not path.exists()):
        for place in ("{noisy}", "{out}"):
            if place not in name:
                raise InputError(
                    f"{name!r} lacks {place}: give a command as 'CMD {{noisy}} {{out}}'"
                )
        return Rival(name.split()[0], Program(name), name.encode())
    if re.fullmatch(r"[\w.]+:\w+", name):
        return Rival(name, import_function(name), name.encode())
    if path.suffix == ".safetensors" and path.is_file():
        kind = str(load_tensors(path)[1].get("rival"))
        if kind in RIVALS:
            function = partial(import_function(RIVALS[kind]), weights=path)
            return Rival(kind, function, _content(path))
    return None


def find_rivals(names: Sequence[str]) -> list[Rival]:
    """The rivals of these names or "LABEL=NAME", called so. Raises InputError as `find_rival`, and for no rival."""
    found = []
    for label, name in labelled(names, "--models").items():
        rival = find_rival(name)
        if rival is None:
            raise InputError(
                f"{name!r} is no rival (a prior is given by --model){closest(name, RIVALS)}"
            )
        found.append(replace(rival, name=label))
    return found


def labelled(names: Sequence[str], option: str) -> dict[str, str]:
    """{"vem": "vem", "slow": "vem"} of "vem" and "slow=vem".

    Raises InputError for no names, one label twice, and a command without a label.
    """
    pairs = [(name.split("=")[0], name.split("=", 1)[-1]) for name in names]
    labels = [label for label, _ in pairs]
    for label in labels:
        if "{" in label or " " in label:
            raise InputError(
                f"{option} {label!r}: give a command a name, NAME='CMD {{noisy}} {{out}}'"
            )
    if not labels:
        raise InputError(f"{option} is empty: give at least one name")
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"{option} names {label!r} twice: name one of them anew, NEW={label}")
    return dict(pairs)


def _content(weights: Path | None) -> bytes:
    return weights.read_bytes() if weights is not None and weights.is_file() else b""
