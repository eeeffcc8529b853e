"""One place of a face for every picture of a video, and the mouth in it.

Faces are looked for five times a second (`finder`); between and beside the looks a face's place is interpolated. A
track begins with the most usual of the largest faces and keeps, of every picture's, the one that overlaps it most; the
next track is made of what is left. A head that stays where it is has one place, the median over the clip. A moving head
has its path, smoothed over a second.

The mouth is a square of half the face's width, centred at 79 % of its height and held upright: so were cut the lips of
GRID that the bundled models know.
"""

import csv
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from scipy.ndimage import median_filter, uniform_filter1d

from pyro_avse.data.lips.landmarks import cut_square
from pyro_avse.data.lips.lips import SIDE
from pyro_avse.typing import InputError

LOOKS = 5
"""Pictures a second in which faces are looked for."""
LONGEST_GAP = 1.0
"""Seconds without a face over which its place is interpolated."""
STILL = 0.05
"""A head whose smoothed place stays this near its median, in widths, is held still."""
MOUTH = 0.79
"""Where the mouth's middle is, as a share of the face's height."""
MOST_FACES = 4
"""That are followed at once."""
SHARE = 0.25
"""Another face is seen in this share of the looks in which the first one is, or it is none."""
SAME = 0.3
"""Overlap from which two boxes are one face."""
Boxes = Float64[np.ndarray, "_ 5"]
"""x, y of the upper left corner, width, height in pixels, as if the face were upright, and by how many radians it leans
to the right about its mouth; rows of NaN where there is no face."""


def track_faces(
    found: list[Boxes], times: Float64[np.ndarray, "look"], end: float
) -> list[tuple[Boxes, list[tuple[float, float]]]]:
    """The faces in view from left to right, each as `track_face` has it; one without any box where there is none."""
    left, tracks = list(found), list[tuple[Boxes, list[tuple[float, float]], int]]()
    while len(tracks) < MOST_FACES:
        track, gaps = track_face(left, times, end)
        seen = np.isfinite(track[:, 0])
        if tracks and (not seen.any() or seen.sum() < SHARE * tracks[0][2]):
            break
        tracks.append((track, gaps, int(seen.sum())))
        left = [
            boxes if np.isnan(row[0]) else boxes[[_overlap(box, row) < SAME for box in boxes]]
            for boxes, row in zip(left, track, strict=True)
        ]
        if not seen.any():
            break
    middles = [np.nanmedian(t[:, 0] + t[:, 2] / 2) if n else 0.0 for t, _, n in tracks]
    return [tracks[k][:2] for k in np.argsort(middles, kind="stable")]


def track_face(
    found: list[Boxes], times: Float64[np.ndarray, "look"], end: float
) -> tuple[Boxes, list[tuple[float, float]]]:
    """One box for every look, with rows of NaN where the face is lost, and the stretches so lost in seconds.

    After a loss of more than a second the largest box begins anew. A stretch is from the first look without the face
    to the next with it, or to `end`.
    """
    track = np.full((len(found), 5), np.nan)
    sizes = np.array([boxes[:, 2].max() if len(boxes) else np.nan for boxes in found])
    if np.isfinite(sizes).any():
        first = int(np.nanargmin(np.abs(sizes - np.nanmedian(sizes))))
        for order in (range(first, len(found)), range(first, -1, -1)):
            last, seen = None, times[first]
            for look in order:
                if len(found[look]) == 0:
                    continue
                if last is None or abs(times[look] - seen) > LONGEST_GAP:
                    box = found[look][found[look][:, 2].argmax()]
                else:
                    overlaps = [_overlap(box, last) for box in found[look]]
                    if max(overlaps) < SAME:
                        continue
                    box = found[look][int(np.argmax(overlaps))]
                track[look], last, seen = box, box, times[look]
    gaps: list[tuple[float, float]] = []
    lost = None
    for time, row in zip([*times, end], [*track, np.zeros(5)], strict=True):
        if np.isnan(row[0]):
            lost = time if lost is None else lost
        elif lost is not None:
            gaps.append((float(lost), float(time)))
            lost = None
    return track, gaps


def smooth_track(
    track: Boxes, times: Float64[np.ndarray, "look"], at: Float64[np.ndarray, "picture"]
) -> Boxes:
    """The track at other times, its gaps interpolated: one box for a still head, a smooth path for a moving one."""
    seen = np.isfinite(track[:, 0])
    track = track.copy()
    track[seen, 4] = np.unwrap(track[seen, 4])
    middle = np.median(track[seen], axis=0)
    full = interpolate(times[seen], track[seen], times)
    steady = median_filter(full, size=(LOOKS, 1), mode="nearest")
    pixels = [1, 1, 1, 1, middle[2] / 2]  # that a change moves the box's border
    if (np.abs(steady - middle) * pixels).max() <= STILL * middle[2]:
        return np.tile(middle, (len(at), 1))
    return interpolate(times, uniform_filter1d(steady, LOOKS, axis=0, mode="nearest"), at)


def interpolate(
    times: Float64[np.ndarray, "known"], boxes: Boxes, at: Float64[np.ndarray, "asked"]
) -> Boxes:
    """Boxes between known ones, linearly; before the first and after the last they stand still."""
    return np.stack([np.interp(at, times, column) for column in boxes.T], axis=1)


def cut_mouth(
    picture: UInt8[np.ndarray, "row column"], face: Float64[np.ndarray, "5"]
) -> UInt8[np.ndarray, "67 67"]:
    """The mouth of a face, upright, area-resized from whole pixels; beyond the picture its border is repeated."""
    size = max(1, int(face[2] / 2))
    x, y = (np.floor(m - face[2] / 4) + size / 2 for m in mouth_of(face))
    return cut_square(picture, (x, y), size, face[4], SIDE, cv2.BORDER_REPLICATE)


def mouth_of(face: Float64[np.ndarray, "5"]) -> tuple[float, float]:
    """x and y of its middle."""
    return face[0] + face[2] / 2, face[1] + MOUTH * face[3]


def read_boxes(
    path: Path, times: Float64[np.ndarray, "picture"]
) -> tuple[Float64[np.ndarray, "row"], Boxes]:
    """The times and boxes of a CSV with the columns `frame` (from 0) or `seconds`, and x, y, w, h of the face.

    A single row serves the whole video. Raises InputError, with the line: columns missing, no number, no rows, a box
    without size, a frame that the video does not have, rows out of order.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read ({error}): give a CSV of seconds,x,y,w,h"
        ) from None
    key = "frame" if rows and "frame" in rows[0] else "seconds"
    if not rows or not {key, "x", "y", "w", "h"} <= rows[0].keys():
        raise InputError(
            f"{path} has no rows of frame or seconds, x, y, w, h: give that header and rows"
        )
    when, boxes = [], []
    for line, row in enumerate(rows, start=2):
        try:
            time, *box = (float(row[name]) for name in (key, "x", "y", "w", "h"))
        except (TypeError, ValueError):
            raise InputError(f"{path} line {line}: {key}, x, y, w, h must be numbers") from None
        if not np.isfinite([time, *box]).all() or min(box[2:]) < 2:
            raise InputError(
                f"{path} line {line}: w and h are {box[2]:g} and {box[3]:g}: give pixels"
            )
        if key == "frame" and (time % 1 or not 0 <= time < len(times)):
            raise InputError(f"{path} line {line}: frame {time:g} of {len(times)}: count from 0")
        when.append(float(times[int(time)]) if key == "frame" else time)
        boxes.append(box)
        if len(when) > 1 and when[-1] <= when[-2]:
            raise InputError(
                f"{path} line {line}: {key} {time:g} comes after a later one: sort the rows"
            )
    return np.array(when), np.pad(boxes, ((0, 0), (0, 1)))


def _overlap(a: Float64[np.ndarray, "5"], b: Float64[np.ndarray, "5"]) -> float:
    """Intersection over union, of the boxes held upright."""
    sides = np.minimum(a[:2] + a[2:4], b[:2] + b[2:4]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(sides.clip(0)))
    return shared / float(np.prod(a[2:4]) + np.prod(b[2:4]) - shared)
