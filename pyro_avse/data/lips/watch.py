"""Lips from a video: decode, find the face, follow it, cut out the mouth at the video's own rate.

The video is decoded twice, once for its times and faces and once for the mouths, so that only mouths are held in
memory. `watch` does it for one file; `watch_cached` keeps the result for corpora, in
$PYRO_AVSE_CACHE/lips, or ~/.cache/pyro_avse/lips, under a name that changes with the video's path, size and date.
"""

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64

from pyro_avse.data.lips.face import (
    LONGEST_GAP,
    LOOKS,
    Boxes,
    FaceFinder,
    cut_mouth,
    interpolate,
    read_boxes,
    smooth_track,
    track_face,
)
from pyro_avse.data.lips.lips import SIDE, Lips, read_lips
from pyro_avse.data.media.video import Timing, read_pictures, time_pictures
from pyro_avse.files import beside, check_place, remove_litter, write_atomically
from pyro_avse.typing import InputError

VERSION = 1
"""Of the recipe: lips of two versions differ for the same video."""
_COLUMNS, _ROWS = 10, 6


@dataclass(frozen=True)
class Watched:
    """The lips of a video, and how they were found."""

    lips: Lips
    faces: Float64[np.ndarray, "frame 4"]
    """x, y, width, height of the face in every frame, in pixels of the upright picture."""
    gaps: list[tuple[float, float]]
    """From when to when, in seconds, no face was found: its box was interpolated, or the lips are masked there."""
    notes: list[str]
    """What the user should know, a line each: gaps, and a frame rate that varies."""


def watch(
    path: str | os.PathLike[str],
    boxes: str | os.PathLike[str] | None = None,
    *,
    whole: bool = True,
    until: float = np.inf,
) -> Watched:
    """Find the lips in a video.

    Args:
        boxes: a CSV of the face's boxes (`face.read_boxes`), used instead of looking for it.
        whole: the face is to be seen from the beginning of the sound to the end of the pictures. Else what is without a
            face for more than a second, or before the first picture, is masked.
        until: seconds of sound; pictures at a varying rate are held no longer.

    Raises:
        InputError: a video that cannot be read or is damaged; where it is to be whole, no face, or none for more than
            a second (it says when), or pictures that begin over 0.25 s after the sound; boxes that cannot be used.
    """
    path = Path(path)
    finder = FaceFinder()
    seen: list[float] = []
    at: list[float] = []
    found: list[Boxes] = []
    for time, grey in read_pictures(path):
        if boxes is None and (not at or time > at[-1] + 1 / LOOKS - 1e-3):
            at.append(time)
            found.append(finder(grey()))
        seen.append(time)
    times = np.array(seen)
    timing = time_pictures(path, times, until)
    if whole and timing.mask is not None:
        raise InputError(
            f"{path}: its pictures show from {times[0]:.2f} to {times[-1]:.2f} s of its sound: trim the sound"
        )
    notes = [] if timing.note is None else [f"{path}: {timing.note}"]
    shown = np.ones(len(times), bool)
    gaps: list[tuple[float, float]] = []
    if boxes is not None:
        faces = interpolate(*read_boxes(Path(boxes), times), times)
    else:
        looks = np.array(at)
        end = float(times[-1]) + 1 / timing.fps
        track, gaps = track_face(found, looks, end)
        lost = ", ".join(f"{start:.1f}-{stop:.1f} s" for start, stop in gaps)
        long = [(a, b) for a, b in gaps if b - a > LONGEST_GAP or np.isnan(track).all()]
        if long and whole:
            raise InputError(
                f"{path}: no face at {lost} of {end:.1f} s: light it and look at the camera, trim, or give its "
                "boxes (pyro-avse lips --boxes FILE.csv)"
            )
        for start, stop in long:
            shown &= ~((start - 1e-6 <= times) & (times < stop - 1e-6))
        if not shown.any():
            return _nothing(path, timing, gaps, end - min(0.0, times[0]))
        notes += _describe(path, gaps, long, max(0.0, -times[0]))
        faces = smooth_track(track, looks, times)
    mouths = np.empty((len(times), SIDE, SIDE), np.uint8)
    for k, (_, grey) in enumerate(read_pictures(path)):
        if not shown[k]:
            mouths[k] = 0
            continue
        picture = grey()
        x, y = faces[k, :2] + faces[k, 2:] * (0.5, 0.79)
        if not (0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]):
            raise InputError(
                f"{boxes}: the mouth at {times[k]:.2f} s is at ({x:.0f}, {y:.0f}), outside the picture of "
                f"{picture.shape[1]} x {picture.shape[0]} pixels: mend the boxes"
            )
        mouths[k] = cut_mouth(picture, faces[k])
    mask = shown[timing.shown] if timing.mask is None else shown[timing.shown] & timing.mask
    lips = Lips(mouths[timing.shown], timing.fps, None if mask.all() else mask)
    return Watched(lips, faces[timing.shown], gaps, notes)


def _nothing(path: Path, timing: Timing, gaps: list[tuple[float, float]], end: float) -> Watched:
    """What is seen of a video without any face."""
    lips = Lips(np.zeros((1, SIDE, SIDE), np.uint8), timing.fps, np.zeros(1, bool))
    return Watched(lips, np.full((1, 4), np.nan), gaps, [f"{path}: no face in all its {end:.1f} s"])


def _describe(
    path: Path, gaps: list[tuple[float, float]], long: list[tuple[float, float]], delay: float
) -> list[str]:
    """Gaps that were interpolated, and those that are masked, in the recording's seconds; sound starts at `delay`."""
    lines = [
        ("its place was interpolated", [gap for gap in gaps if gap not in long]),
        ("without lips there", long),
    ]
    return [
        f"{path}: no face at {', '.join(f'{delay + a:.1f}-{delay + b:.1f} s' for a, b in some)}: {what}"
        for what, some in lines
        if some
    ]


def watch_cached(path: Path) -> Lips:
    """The same lips, kept between calls; a cache that cannot be written to costs only time."""
    status = path.stat() if path.is_file() else None
    known = (str(path.resolve()), status and (status.st_size, status.st_mtime_ns), VERSION)
    folder = Path(os.environ.get("PYRO_AVSE_CACHE", "~/.cache/pyro_avse")).expanduser() / "lips"
    kept = folder / f"{hashlib.sha256(repr(known).encode()).hexdigest()[:32]}.npz"
    with contextlib.suppress(InputError):  # none, or a damaged one
        return read_lips(kept)
    lips = watch(path).lips

    def write(part: Path) -> None:
        part.write_bytes(pack(lips))
        part.replace(kept)

    with contextlib.suppress(OSError, InputError):
        folder.mkdir(parents=True, exist_ok=True)
        remove_litter(folder)
        beside(kept, write)
    return lips


def pack(lips: Lips) -> bytes:
    """An .npz of lips, as `load_lips` reads it."""
    packed = io.BytesIO()
    np.savez_compressed(packed, lips=lips.frames, fps=np.float64(lips.fps))
    return packed.getvalue()


def save_preview(path: Path, watched: Watched) -> None:
    """Write a picture of up to 60 mouths, evenly spread, with their seconds; a frame around those without a face.

    Raises InputError as `check_preview`.
    """
    check_preview(path)
    lips = watched.lips
    chosen = np.unique(np.linspace(0, len(lips.frames) - 1, _COLUMNS * _ROWS).round().astype(int))
    tiles = []
    for k in chosen:
        tile = cv2.resize(lips.frames[k], (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_CUBIC)
        tile = cv2.copyMakeBorder(tile, 2, 18, 2, 2, cv2.BORDER_CONSTANT, value=(0,))
        seconds = k / lips.fps
        if any(start <= seconds < stop for start, stop in watched.gaps):
            tile[:2] = tile[-2:] = tile[:, :2] = tile[:, -2:] = 255
        where = (4, tile.shape[0] - 5)
        cv2.putText(tile, f"{seconds:.2f} s", where, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255,))
        tiles.append(tile)
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % _COLUMNS)
    rows = [np.hstack(tiles[k : k + _COLUMNS]) for k in range(0, len(tiles), _COLUMNS)]
    write_atomically(path, cv2.imencode(path.suffix, np.vstack(rows))[1].tobytes())


def check_preview(path: Path) -> None:
    """Refuse a place that cannot be written to, and a name that ends in neither .png nor .jpg."""
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise InputError(f"{path} names no picture: end it in .png")
    check_place(path)
