"""Pictures that are no moving lips: frozen, black, or of one grey.

A picture that stands still for a second says nothing of speech, and misleads a model that has only seen lips move.
Every second of GRID's clips has two neighbouring pictures that are 1.1 grey levels apart. Those of a frozen video
differ by nothing but what its encoder mends now and then.
"""

import numpy as np
from jaxtyping import Bool, Float, Shaped

from pyro_avse.data.lips.lips import Lips

MOVES = 0.15
"""Grey levels between neighbouring pictures, on average, above which something moves."""
FLAT = 2.0
"""Grey levels: the standard deviation within a picture up to which there is nothing on it."""
LONGEST = 1.0
"""Seconds for which lips may rest."""
MENDED = 0.25
"""Seconds of change between two frozen stretches that are an encoder's doing."""
FEWEST = 0.5
"""Seconds of moving lips below which all are left out."""
_TOGETHER = 1024
"""Pictures that are compared at once."""


def leave_out_still(lips: Lips) -> tuple[Lips | None, str | None]:
    """Lips without those pictures that stand still or are flat, and what to say of it; None where none is left."""
    still = find_still(lips.frames, lips.fps)
    shown = np.ones(len(still), bool) if lips.mask is None else lips.mask
    if not (still & shown).any():
        return lips, None
    left = shown & ~still
    if left.sum() < FEWEST * lips.fps:
        if len(lips.frames) == 1:
            return None, "one picture alone is no lips: left out"
        flat = _deviations(lips.frames).max() <= FLAT
        reason = "show nothing, each is of one grey" if flat else "never move"
        return None, f"the lips {reason}: left out"
    stretches = say_stretches(still & shown, lips.fps)
    return Lips(lips.frames, lips.fps, left), f"the lips stand still at {stretches}: left out there"


def find_still(
    frames: Shaped[np.ndarray, "frame row column"], fps: float
) -> Bool[np.ndarray, "frame"]:
    """Which pictures are flat, or of a stretch of more than a second in which nothing moves."""
    rests = np.concatenate([[True], _differences(frames) <= MOVES])  # as the one before
    if len(frames) > 1:
        rests[0] = rests[1]
    still = np.zeros(len(frames), bool)
    for start, stop in runs(rests):
        first = max(0, start - 1)  # the picture that stays
        if stop - first > LONGEST * fps or len(frames) == 1:
            still[first:stop] = True
    for start, stop in runs(~still):
        if start > 0 and stop < len(still) and stop - start < MENDED * fps:
            still[start:stop] = True
    return still | (_deviations(frames) <= FLAT)


def runs(where: Bool[np.ndarray, "frame"]) -> list[tuple[int, int]]:
    """First index of each stretch of True, and the one after its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], where.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def say_stretches(where: Bool[np.ndarray, "frame"], fps: float, most: int = 4) -> str:
    """Stretches in seconds, in words: "0.0-1.2 s, 3.0-4.0 s"."""
    found = runs(where)
    said = ", ".join(f"{start / fps:.1f}-{stop / fps:.1f} s" for start, stop in found[:most])
    return said + (f" and {len(found) - most} times more" if len(found) > most else "")


def _differences(frames: Shaped[np.ndarray, "frame row column"]) -> Float[np.ndarray, "_"]:
    """Mean absolute difference of neighbours, in grey levels."""
    unit = 255.0 if frames.dtype.kind == "f" else 1.0
    parts = [np.zeros(0)]
    for start in range(0, len(frames) - 1, _TOGETHER):
        some = frames[start : start + _TOGETHER + 1].astype(np.float32)
        parts.append(unit * np.abs(np.diff(some, axis=0)).mean(axis=(1, 2)))
    return np.concatenate(parts)


def _deviations(frames: Shaped[np.ndarray, "frame row column"]) -> Float[np.ndarray, "frame"]:
    """Standard deviation within each picture, in grey levels."""
    unit = 255.0 if frames.dtype.kind == "f" else 1.0
    parts = [
        unit * frames[k : k + _TOGETHER].astype(np.float32).std(axis=(1, 2))
        for k in range(0, len(frames), _TOGETHER)
    ]
    return np.concatenate(parts)
