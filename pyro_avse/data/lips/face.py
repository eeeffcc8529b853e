"""Where the face is in every picture of a video, and the mouth in it.

A face is looked for five times a second by OpenCV's frontal Haar cascade; between and beside it the box is
interpolated. The track begins with the most usual of the largest boxes and keeps, of every picture's boxes, the one
that overlaps it most. A head that stays where it is has one box, the median over the clip: so were cut the lips that
the bundled models know. A moving head has the path of its box, smoothed over a second.

The mouth is a square of half the face's width, centred at 79 % of its height.
"""

import csv
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from scipy.ndimage import median_filter, uniform_filter1d

from pyro_avse.data.lips.lips import SIDE
from pyro_avse.typing import InputError

LOOKS = 5
"""Pictures a second in which a face is looked for."""
LONGEST_GAP = 1.0
"""Seconds without a face over which its box is interpolated."""
STILL = 0.05
"""A head whose smoothed box stays this near its median, in widths, is held still."""
_LARGEST_SIDE = 640
"""Of the picture that the cascade sees, in pixels."""
Boxes = Float64[np.ndarray, "_ 4"]
"""x, y of the upper left corner, width, height, in pixels; rows of NaN where there is no face."""


class FaceFinder:
    """OpenCV's frontal-face cascade."""

    def __init__(self) -> None:
        self.cascade = cv2.CascadeClassifier(
            str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml")
        )

    def __call__(self, picture: UInt8[np.ndarray, "row column"]) -> Boxes:
        """Every face in a picture, (face, 4), from forehead to chin."""
        scale = max(1.0, max(picture.shape) / _LARGEST_SIDE)
        if scale > 1:
            size = round(picture.shape[1] / scale), round(picture.shape[0] / scale)
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        found = self.cascade.detectMultiScale(picture, scaleFactor=1.1, minNeighbors=5)
        return np.asarray(found, np.float64).reshape(-1, 4) * scale


def track_face(
    found: list[Boxes], times: Float64[np.ndarray, "look"], end: float
) -> tuple[Boxes, list[tuple[float, float]]]:
    """One box for every look, with rows of NaN where the face is lost, and the stretches so lost in seconds.

    After a loss of more than a second the largest box begins anew. A stretch is from the first look without the face
    to the next with it, or to `end`.
    """
    track = np.full((len(found), 4), np.nan)
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
                    if max(overlaps) < 0.3:
                        continue
                    box = found[look][int(np.argmax(overlaps))]
                track[look], last, seen = box, box, times[look]
    gaps: list[tuple[float, float]] = []
    lost = None
    for time, row in zip([*times, end], [*track, np.zeros(4)], strict=True):
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
    middle = np.median(track[seen], axis=0)
    full = interpolate(times[seen], track[seen], times)
    steady = median_filter(full, size=(LOOKS, 1), mode="nearest")
    if np.abs(steady - middle).max() <= STILL * middle[2]:
        return np.tile(middle, (len(at), 1))
    return interpolate(times, uniform_filter1d(steady, LOOKS, axis=0, mode="nearest"), at)


def interpolate(
    times: Float64[np.ndarray, "known"], boxes: Boxes, at: Float64[np.ndarray, "asked"]
) -> Boxes:
    """Boxes between known ones, linearly; before the first and after the last they stand still."""
    return np.stack([np.interp(at, times, column) for column in boxes.T], axis=1)


def cut_mouth(
    picture: UInt8[np.ndarray, "row column"], face: Float64[np.ndarray, "4"]
) -> UInt8[np.ndarray, "67 67"]:
    """The mouth of a face, area-resized; beyond the picture's edge its border is repeated."""
    x, y, width, height = face
    size = max(1, int(width / 2))
    left, top = (
        int(np.floor(x + width / 2 - width / 4)),
        int(np.floor(y + 0.79 * height - width / 4)),
    )
    rows = np.clip(np.arange(top, top + size), 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(left, left + size), 0, picture.shape[1] - 1)
    square = np.ascontiguousarray(picture[rows][:, columns])
    return np.asarray(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


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
    return np.array(when), np.array(boxes)


def _overlap(a: Float64[np.ndarray, "4"], b: Float64[np.ndarray, "4"]) -> float:
    """Intersection over union."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(sides.clip(0)))
    return shared / float(np.prod(a[2:]) + np.prod(b[2:]) - shared)
