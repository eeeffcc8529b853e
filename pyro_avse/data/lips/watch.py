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
from pyro_avse.data.media.video import read_pictures, time_pictures
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
    """From when to when, in seconds, no face was found and its box was interpolated."""
    notes: list[str]
    """What the user should know, a line each: gaps, and a frame rate that varies."""


def watch(path: str | os.PathLike[str], boxes: str | os.PathLike[str] | None = None) -> Watched:
    """Find the lips in a video.

    Args:
        boxes: a CSV of the face's boxes (`face.read_boxes`), used instead of looking for it.

    Raises:
        InputError: a video that cannot be read or is damaged; no face, or none for more than a second (it says when);
            boxes that cannot be used.
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
    timing = time_pictures(path, times)
    notes = [] if timing.note is None else [f"{path}: {timing.note}"]
    gaps: list[tuple[float, float]] = []
    if boxes is not None:
        faces = interpolate(*read_boxes(Path(boxes), times), times)
    else:
        looks = np.array(at)
        end = float(times[-1]) + 1 / timing.fps
        track, gaps = track_face(found, looks, end)
        lost = ", ".join(f"{start:.1f}-{stop:.1f} s" for start, stop in gaps)
        if (
            max((stop - start for start, stop in gaps), default=0.0) > LONGEST_GAP
            or np.isnan(track).all()
        ):
            raise InputError(
                f"{path}: no face at {lost} of {end:.1f} s: light it and look at the camera, trim, or give its "
                "boxes (pyro-avse lips --boxes FILE.csv)"
            )
        if gaps:
            notes.append(f"{path}: no face at {lost}: its place was interpolated")
        faces = smooth_track(track, looks, times)
    mouths = np.empty((len(times), SIDE, SIDE), np.uint8)
    for k, (_, grey) in enumerate(read_pictures(path)):
        picture = grey()
        x, y = faces[k, :2] + faces[k, 2:] * (0.5, 0.79)
        if not (0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]):
            raise InputError(
                f"{boxes}: the mouth at {times[k]:.2f} s is at ({x:.0f}, {y:.0f}), outside the picture of "
                f"{picture.shape[1]} x {picture.shape[0]} pixels: mend the boxes"
            )
        mouths[k] = cut_mouth(picture, faces[k])
    return Watched(Lips(mouths[timing.shown], timing.fps), faces[timing.shown], gaps, notes)


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
