"""Bad lips: a share of the pictures occluded in runs, with the truth of where.

What a camera meets: a hand or a microphone in front of the mouth, a frozen stream, a covered lens. A model that trusts
the lips must notice; the truth says where it should have. To hold the truth onto the sound's frames, as
`lips_on_grid` holds the pictures: `lips_on_grid(Lips(truth, lips.fps), times, duration)`.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Shaped

from pyro_avse.data.lips.lips import SIDE, Lips
from pyro_avse.typing import InputError

Kind = Literal["patch", "frozen", "black"]
PATCH = 40
"""Side of the moving patch in pixels: wherever it is, it covers the middle of the picture."""


def corrupt_lips(
    lips: Lips,
    kind: Kind,
    rng: np.random.Generator,
    *,
    fraction: float = 1 / 3,
    run_seconds: float = 0.5,
) -> tuple[Lips, Bool[np.ndarray, "frame"]]:
    """Lips of which a share is bad, and which pictures are: the nearest whole number of them to `fraction`.

    Args:
        kind: "patch" (a square of one grey level moves across the mouth at 1 to 3 pixels a picture, back at the
            border), "frozen" (the last good picture stays) or "black".
        rng: of the runs, then of the patch: one seed gives every kind the same truth.
        fraction: of all pictures, from 0 to less than 1; the first picture stays good.
        run_seconds: mean length of a run of bad pictures; lengths differ, and between two runs lies a good picture.

    Raises:
        InputError: another kind; a fraction outside [0, 1); a length of runs that is not positive; too few pictures.
    """
    if kind not in get_args(Kind):
        raise InputError(f"lips cannot be made {kind!r}: take one of {', '.join(get_args(Kind))}")
    if not 0 <= fraction < 1:
        raise InputError(f"fraction of bad lips is {fraction}: give a share from 0 to less than 1")
    if not 0 < run_seconds < np.inf:
        raise InputError(f"runs of bad lips last {run_seconds} s: give a positive length")
    truth = bad_runs(len(lips.frames), fraction, run_seconds * lips.fps, rng)
    frames = lips.frames.copy()
    if kind == "black":
        frames[truth] = 0
    elif kind == "frozen":
        last_good = np.maximum.accumulate(np.where(truth, 0, np.arange(len(truth))))
        frames = lips.frames[last_good]
    else:
        white = 255 if frames.dtype == np.uint8 else 1
        for start, end in runs_of(truth):
            level = frames.dtype.type(white * rng.random())
            for frame, (row, column) in zip(
                range(start, end), _path(end - start, rng), strict=True
            ):
                frames[frame, row : row + PATCH, column : column + PATCH] = level
    return Lips(frames, lips.fps), truth


def bad_runs(
    count: int, fraction: float, mean_run: float, rng: np.random.Generator
) -> Bool[np.ndarray, "frame"]:
    """round(fraction * count) of `count` pictures, in runs of `mean_run` on average; the first picture is none of them.

    Raises InputError where that leaves no good picture.
    """
    bad = round(fraction * count)
    if bad == 0:
        return np.zeros(count, dtype=bool)
    good = count - bad
    if good < 1:
        raise InputError(f"{bad} bad of {count} pictures leave no good one: lower the fraction")
    runs = min(max(1, round(bad / mean_run)), bad, good)
    lengths = _parts(bad, runs, rng)
    gaps = _parts(
        good + 1, runs + 1, rng
    )  # at least 1 before each run; 1 less, perhaps none, after the last
    gaps[-1] -= 1
    pieces = np.append(np.stack([gaps[:-1], lengths], axis=1).ravel(), gaps[-1])
    return np.repeat(np.arange(len(pieces)) % 2 == 1, pieces)


def runs_of(truth: Bool[np.ndarray, "frame"]) -> Shaped[np.ndarray, "run 2"]:
    """First and one past the last picture of every run of bad ones."""
    steps = np.diff(truth.astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)


def _parts(total: int, parts: int, rng: np.random.Generator) -> Shaped[np.ndarray, "part"]:
    """A random division of `total` into positive whole numbers, all divisions equally likely."""
    cuts = np.sort(rng.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def _path(count: int, rng: np.random.Generator) -> Shaped[np.ndarray, "frame 2"]:
    """Row and column of the patch's corner along a run: a straight line, reflected at the border."""
    room = SIDE - PATCH
    start, heading = rng.uniform(0, room, 2), rng.uniform(0, 2 * np.pi)
    speed = rng.uniform(1, 3) * np.array([np.sin(heading), np.cos(heading)])
    straight = start + speed * np.arange(count)[:, None]
    return np.rint(room - np.abs(straight % (2 * room) - room)).astype(np.int64)
