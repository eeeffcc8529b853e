"""Lips from a video: decode, find the faces, follow them, cut out the mouths at the video's own rate.

The video is decoded twice, once for its times and faces and once for the mouths, so that only mouths are held in
memory. `watch` takes one face of a file, `watch_faces` all of them; `watch_cached` keeps the result for corpora, in
$PYRO_AVSE_CACHE/lips, or ~/.cache/pyro_avse/lips, under a name that changes with the video's path, size and date.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64

from pyro_avse.data.lips.face import (
    LONGEST_GAP,
    LOOKS,
    Boxes,
    cut_mouth,
    interpolate,
    mouth_of,
    read_boxes,
    smooth_track,
    track_faces,
)
from pyro_avse.data.lips.finder import FaceFinder
from pyro_avse.data.lips.lips import SIDE, Lips, read_lips
from pyro_avse.data.lips.speaker import LISTENED, choose_speaker
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.blocks import open_long, opening
from pyro_avse.data.media.container import read_seconds
from pyro_avse.data.media.video import Timing, read_pictures, time_pictures
from pyro_avse.files import beside, check_place, remove_litter, write_atomically
from pyro_avse.typing import InputError

VERSION = 2
"""Of the recipe: lips of two versions differ for the same video."""
Progress = Callable[[float, str], None]
_COLUMNS, _ROWS = 10, 6


@dataclass(frozen=True)
class Watched:
    """The lips of a video, and how they were found."""

    lips: Lips
    faces: Float64[np.ndarray, "frame 5"]
    """The face in every frame, in pixels of the upright picture, as a row of `face.Boxes`."""
    gaps: list[tuple[float, float]]
    """From when to when, in seconds, no face was found: its place was interpolated, or the lips are masked there."""
    notes: list[str]
    """What the user should know, a line each: gaps, a frame rate that varies, which of several faces was taken."""


@dataclass(frozen=True)
class _Face:
    """One face of a video."""

    places: Float64[np.ndarray, "picture 5"]
    shown: Bool[np.ndarray, "picture"]
    """False where it is not seen for long."""
    gaps: list[tuple[float, float]]
    notes: list[str]


def watch(
    path: str | os.PathLike[str],
    boxes: str | os.PathLike[str] | None = None,
    *,
    face: str = "auto",
    track: int = 0,
    whole: bool = True,
    until: float = np.inf,
    sound: Callable[[float], Float32[np.ndarray, "sample"]] | None = None,
    progress: Progress = lambda done, text: None,
) -> Watched:
    """Find the lips in a video.

    Args:
        boxes: a CSV of the face's boxes (`face.read_boxes`), used instead of looking for it.
        face: of several, "left", "right", or a number from 0, counted from the left; "auto" is the one whose mouth
            moves with the sound (`speaker.choose_speaker`).
        track: the sound by which time is counted and the face is chosen, from 0.
        whole: the face is to be seen from the beginning of the sound to the end of the pictures, and all of them to be
            decoded. Else what is without a face for more than a second, or before the first picture, is masked, and a
            few pictures that cannot be decoded are left out.
        until: seconds of sound; pictures at a varying rate are held no longer.
        sound: gives so many seconds of what the face is chosen by, 16 kHz; None: the file's own.
        progress: told the fraction done, and a text.

    Raises:
        InputError: a video that cannot be read or is damaged; no such face; where it is to be whole, no face, or none
            for more than a second (it says when), or pictures that begin over 0.25 s after the sound; boxes that cannot
            be used.
    """
    path = Path(path)
    times, timing, faces = _find(path, boxes, track, until, whole, progress)
    if whole and timing.mask is not None:
        raise InputError(
            f"{path}: its pictures show from {times[0]:.2f} to {times[-1]:.2f} s of its sound: trim the sound"
        )
    number = number_of(face, len(faces), path)
    if number is not None:
        faces = [faces[number]]
    if whole and all(not one.shown.all() for one in faces):
        _refuse_gaps(path, faces[0], times, timing)
    watched = _cut(path, times, timing, faces, track, progress, boxes)
    if len(watched) == 1:
        return watched[0]
    heard = _hear(path, track) if sound is None else sound(LISTENED)
    taken, why = choose_speaker([one.lips for one in watched], heard)
    if whole and not faces[taken].shown.all():
        _refuse_gaps(path, faces[taken], times, timing)
    x = float(np.nanmedian([mouth_of(place)[0] for place in watched[taken].faces]))
    note = (
        f"{path} shows {len(watched)} faces: {taken} from the left, at x = {x:.0f}, is taken: {why}"
    )
    return replace(watched[taken], notes=[*watched[taken].notes, f"{note} (--face for another)"])


def _hear(path: Path, track: int) -> Float32[np.ndarray, "sample"] | None:
    """The beginning of the channel with the voice; None for no sound, or a silent one."""
    try:
        blocks = open_long(path, seconds=LISTENED, overlap=1.0, track=track)
        audio = load_audio(path, track=track) if blocks is None else blocks
        return opening(audio, LISTENED)
    except InputError:
        return None


def watch_faces(
    path: str | os.PathLike[str],
    *,
    track: int = 0,
    until: float = np.inf,
    progress: Progress = lambda done, text: None,
) -> list[Watched]:
    """The lips of every face in a video, from left to right; one that is masked throughout where there is none.

    Faces are those that are seen for at least a quarter of the time that the first one is, four at most. Where one is
    not seen for over a second its lips are masked. Arguments as of `watch`; raises InputError for a video that cannot
    be read or is damaged.
    """
    path = Path(path)
    times, timing, faces = _find(path, None, track, until, False, progress)
    return _cut(path, times, timing, faces, track, progress)


def number_of(face: str, count: int, path: Path) -> int | None:
    """Of a face, from the left; None for "auto" among several. Raises InputError for one that there is not."""
    if face == "auto":
        return 0 if count == 1 else None
    number = {"left": 0, "right": count - 1}.get(face, int(face) if face.isdecimal() else count)
    if number >= count:
        known = "one face" if count == 1 else f"{count} faces"
        raise InputError(
            f"{path} shows {known}, none {face!r}: take auto, left, right or 0 to {count - 1}"
        )
    return number


def _find(
    path: Path,
    boxes: str | os.PathLike[str] | None,
    track: int,
    until: float,
    whole: bool,
    progress: Progress,
) -> tuple[Float64[np.ndarray, "picture"], Timing, list[_Face]]:
    """When the pictures show, and the faces in them from left to right, or the one of the user's boxes."""
    finder = FaceFinder()
    seen: list[float] = []
    at: list[float] = []
    found: list[Boxes] = []
    seconds = read_seconds(path)
    lost: list[float] | None = None if whole else []
    for time, grey in read_pictures(path, track, lost):
        if boxes is None and (not at or time > at[-1] + 1 / LOOKS - 1e-3):
            at.append(time)
            found.append(finder(grey()))
            progress(
                min(1.0, (time - at[0]) / seconds) / 2 if seconds else 0.0, "looking for faces"
            )
        seen.append(time)
    times, looks = np.array(seen), np.array(at)
    timing = time_pictures(path, times, until)
    notes = [] if timing.note is None else [f"{path}: {timing.note}"]
    if lost:
        notes.append(
            f"{path}: {len(lost)} picture(s) cannot be decoded, the first at {lost[0]:.2f} s: left out"
        )
    if boxes is not None:
        places = interpolate(*read_boxes(Path(boxes), times), times)
        return times, timing, [_Face(places, np.ones(len(times), bool), [], notes)]
    end = float(times[-1]) + 1 / timing.fps
    faces = []
    for boxes_seen, gaps in track_faces(found, looks, end):
        none = bool(np.isnan(boxes_seen).all())
        long = [(a, b) for a, b in gaps if b - a > LONGEST_GAP or none]
        shown = np.ones(len(times), bool)
        for start, stop in long:
            shown &= ~((start - 1e-6 <= times) & (times < stop - 1e-6))
        if none:
            places = np.full((len(times), 5), np.nan)
            said = [f"{path}: no face in all its {end - min(0.0, times[0]):.1f} s"]
        else:
            places = smooth_track(boxes_seen, looks, times)
            said = _describe(path, gaps, long, max(0.0, -times[0]))
        faces.append(_Face(places, shown, gaps, [*notes, *said]))
    return times, timing, faces


def _cut(
    path: Path,
    times: Float64[np.ndarray, "picture"],
    timing: Timing,
    faces: list[_Face],
    track: int,
    progress: Progress,
    boxes: str | os.PathLike[str] | None = None,
) -> list[Watched]:
    """The mouth of each face, at a constant rate."""
    if not any(face.shown.any() for face in faces):
        lips = Lips(np.zeros((1, SIDE, SIDE), np.uint8), timing.fps, np.zeros(1, bool))
        return [Watched(lips, np.full((1, 5), np.nan), faces[0].gaps, faces[0].notes)]
    mouths = [np.zeros((len(times), SIDE, SIDE), np.uint8) for _ in faces]
    for k, (_, grey) in enumerate(read_pictures(path, track, lost=[])):
        seen = [number for number, face in enumerate(faces) if face.shown[k]]
        if not seen:
            continue
        picture = grey()
        for number in seen:
            place = faces[number].places[k]
            x, y = mouth_of(place)
            if not (0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]):
                if boxes is None:
                    faces[number].shown[k] = False
                    continue
                raise InputError(
                    f"{boxes}: the mouth at {times[k]:.2f} s is at ({x:.0f}, {y:.0f}), outside the picture of "
                    f"{picture.shape[1]} x {picture.shape[0]} pixels: mend the boxes"
                )
            mouths[number][k] = cut_mouth(picture, place)
        progress(0.5 + 0.5 * k / len(times), "cutting lips")
    watched = []
    for face, cut in zip(faces, mouths, strict=True):
        mask = face.shown[timing.shown]
        mask = mask if timing.mask is None else mask & timing.mask
        shown = cut if timing.note is None else cut[timing.shown]  # an hour of them is 0.4 GB
        lips = Lips(shown, timing.fps, None if mask.all() else mask)
        watched.append(Watched(lips, face.places[timing.shown], face.gaps, face.notes))
    return watched


def _refuse_gaps(
    path: Path, face: _Face, times: Float64[np.ndarray, "picture"], timing: Timing
) -> None:
    lost = ", ".join(f"{start:.1f}-{stop:.1f} s" for start, stop in face.gaps)
    raise InputError(
        f"{path}: no face at {lost} of {times[-1] + 1 / timing.fps:.1f} s: light it and look at the camera, trim, or "
        "give its boxes (pyro-avse lips --boxes FILE.csv)"
    )


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
