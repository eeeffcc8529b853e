"""Faces are found by their landmarks, turned, scaled, dimmed and half hidden; without the package, by the cascade."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pyro_avse.data.lips import finder as finding
from pyro_avse.data.lips.face import mouth_of
from pyro_avse.data.lips.finder import FaceFinder, place_face
from pyro_avse.data.lips.landmarks import UPRIGHT, cut_square, fit_upright
from pyro_avse.data.media.video import read_pictures

TRUE = np.array([100.0, 86.0, 140.0, 140.0, 0.0])
"""The cascade's box in the clip below, from the recipe that GRID's lips were cut by."""


@pytest.fixture
def picture(shared_data: Callable[[str], Path]) -> np.ndarray:
    _, grey = next(read_pictures(shared_data("grid/video/s26_pbbg5p.mpg")))
    return cv2.copyMakeBorder(grey(), 150, 150, 150, 150, cv2.BORDER_CONSTANT, value=(100,))


def test_a_similarity_is_found_again() -> None:
    points = 80 * np.exp(0.3j) * (UPRIGHT @ (1, 1j)) + 50 + 20j
    face = np.stack([points.real, points.imag], axis=1)
    assert fit_upright(face) == pytest.approx(80 * np.exp(0.3j))
    mouth = 80 * np.exp(0.3j) * (0.5 + 0.79j) + 50 + 20j
    box = place_face(face)
    assert mouth_of(box) == pytest.approx((mouth.real, mouth.imag))
    assert box[2:] == pytest.approx([80, 80, 0.3])


def test_a_square_is_cut_at_whole_pixels_and_turned() -> None:
    picture = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    cut = cut_square(picture, (25.0, 15.0), 10, 0.0, 10, cv2.BORDER_REPLICATE)
    assert np.array_equal(cut, picture[10:20, 20:30])
    lying = cut_square(picture, (25.0, 15.0), 10, np.pi / 2, 10, cv2.BORDER_REPLICATE)
    assert np.array_equal(lying, np.rot90(picture[10:20, 20:30]))


def turned(picture: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    centre = picture.shape[1] / 2, picture.shape[0] / 2
    by = cv2.getRotationMatrix2D(centre, -degrees, 1)
    return cv2.warpAffine(picture, by, picture.shape[::-1], borderValue=(100,)), by


@pytest.mark.parametrize("degrees", [0, 20, -35, 90, 180])
def test_turned_faces_are_found_upright(picture: np.ndarray, degrees: float) -> None:
    """The mouth to a tenth of the face's width, the lean to six degrees."""
    seen, by = turned(picture, degrees)
    (box,) = FaceFinder()(seen)
    where = by @ [*(np.array(mouth_of(TRUE)) + 150), 1]
    assert np.hypot(*(np.array(mouth_of(box)) - where)) < 14
    lean = np.angle(np.exp(1j * (box[4] - np.radians(degrees))))
    assert abs(lean) < np.radians(6)
    assert box[2] == pytest.approx(140, rel=0.1)


def scaled(picture: np.ndarray) -> np.ndarray:
    small = cv2.resize(picture, None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, 200, 200, 200, 200, cv2.BORDER_CONSTANT, value=(100,))


def hidden(picture: np.ndarray) -> np.ndarray:
    """A hand before the mouth."""
    picture = picture.copy()
    picture[330:370, 280:360] = 120
    return picture


@pytest.mark.parametrize(
    ("change", "scale", "shift"),
    [
        (lambda p: (p * 0.1).astype(np.uint8), 1.0, 0.0),
        (hidden, 1.0, 0.0),
        (scaled, 0.2, 200.0),
    ],
    ids=["dim", "hidden", "small"],
)
def test_other_faces_are_found(
    picture: np.ndarray,
    change: Callable[[np.ndarray], np.ndarray],
    scale: float,
    shift: float,
) -> None:
    (box,) = FaceFinder()(change(picture))
    where = (np.array(mouth_of(TRUE)) + 150) * scale + shift
    assert np.hypot(*(np.array(mouth_of(box)) - where)) < 0.15 * 140 * scale


def test_without_the_package_the_cascade_finds(
    picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "find_spec", lambda name: None)
    (box,) = FaceFinder()(picture)
    assert box == pytest.approx(np.add(TRUE, [150, 150, 0, 0, 0]), abs=8)


def test_no_face_is_none() -> None:
    rng = np.random.default_rng(0)
    for picture in (np.zeros((96, 128)), rng.integers(0, 256, (240, 320)), np.full((5, 900), 9)):
        assert FaceFinder()(picture.astype(np.uint8)).shape == (0, 5)
