"""One face is followed through every picture, its gaps found and filled, and the mouth cut out where it is."""

from pathlib import Path

import numpy as np
import pytest

from pyro_avse.data.lips.face import (
    Boxes,
    cut_mouth,
    interpolate,
    read_boxes,
    smooth_track,
    track_face,
)
from pyro_avse.typing import InputError

TIMES = np.arange(30) / 5


def at(x: float, y: float = 50.0, size: float = 100.0) -> np.ndarray:
    return np.array([[x, y, size, size, 0.0]])


def looks(*found: np.ndarray | None) -> list[Boxes]:
    return [np.empty((0, 5)) if boxes is None else boxes for boxes in found]


def test_the_face_in_view_is_followed_past_others() -> None:
    """A larger false find, now and then, and a second face that is there throughout do not catch the track."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(30):
        boxes = [at(100 + 4 * k + rng.normal())[0], at(400, size=80)[0]]
        if k % 7 == 3:
            boxes.append(at(300, 200, 180)[0])
        found.append(np.array(boxes)[rng.permutation(len(boxes))])
    track, gaps = track_face(found, TIMES, 6.0)
    assert gaps == []
    assert track[:, 0] == pytest.approx(100 + 4 * np.arange(30), abs=4)


def test_gaps_are_found_and_filled() -> None:
    """From the first look without the face to the next with it; before the first and after the last it stands still."""
    found = looks(
        None, None, *[at(100 + 10 * k) for k in range(2, 10)], None, None, at(220), *[None] * 2
    )
    times = TIMES[: len(found)]
    track, gaps = track_face(found, times, 3.0)
    assert gaps == [(0.0, pytest.approx(0.4)), (2.0, pytest.approx(2.4)), (pytest.approx(2.6), 3.0)]
    seen = np.isfinite(track[:, 0])
    assert seen.tolist() == [len(boxes) > 0 for boxes in found]
    full = interpolate(times[seen], track[seen], times)
    assert full[:, 0].tolist() == pytest.approx(
        [120, 120, 120, 130, 140, 150, 160, 170, 180, 190, 200, 210, 220, 220, 220]
    )


def test_no_face_at_all_is_one_gap() -> None:
    track, gaps = track_face(looks(*[None] * 5), TIMES[:5], 1.0)
    assert np.isnan(track).all()
    assert gaps == [(0.0, 1.0)]


def test_after_a_second_the_largest_face_begins_anew() -> None:
    """A cut to another place is followed after a pause of more than a second, not before."""
    track, gaps = track_face(looks(*[at(100)] * 10, *[at(600)] * 20), TIMES, 6.0)
    assert gaps == [(pytest.approx(2.0), pytest.approx(3.0))]
    assert (track[15:, 0] == 600).all()
    track, _ = track_face(looks(*[at(100)] * 10, *[at(600)] * 3, *[at(100)] * 17), TIMES, 6.0)
    assert np.isnan(track[10:13, 0]).all()


def test_a_still_head_has_one_box_and_a_moving_one_a_smooth_path() -> None:
    """Jitter of 2 % gives the median; a walk is followed to 2 pixels, and no slower than it goes."""
    rng = np.random.default_rng(1)
    jitter = at(100) + rng.normal(0, 2, (30, 5)) * [1, 1, 1, 1, 0.01]
    pictures = np.arange(150) / 25
    assert (smooth_track(jitter, TIMES, pictures) == np.median(jitter, axis=0)).all()
    walk = jitter + np.outer(20 * TIMES, [1, 0, 0, 0, 0])
    path = smooth_track(walk, TIMES, pictures)
    inner = slice(20, 120)
    assert np.abs(path[inner, 0] - (100 + 20 * pictures[inner])).max() < 2.5
    assert (
        np.abs(np.diff(path[:, 0])).max() < 2.0
    )  # the walk's own 0.8 a picture; jitter alone would jump by 4
    walk[12:15] = np.nan
    assert (
        np.abs(smooth_track(walk, TIMES, pictures)[inner, 0] - (100 + 20 * pictures[inner])).max()
        < 4
    )


def test_the_mouth_is_cut_out() -> None:
    """Half the face's width, centred at 79 % of its height; beyond the picture the border is repeated."""
    rows, columns = np.mgrid[0:288, 0:360]
    picture = (columns // 2 + rows // 3).astype(np.uint8)
    mouth = cut_mouth(
        picture, np.array([90.0, 80.0, 134.0, 134.0, 0.0])
    )  # 67 x 67 pixels: no resizing
    left, top = 90 + 134 // 2 - 67 / 2, 80 + 0.79 * 134 - 67 / 2
    assert np.array_equal(mouth, picture[int(top) :, int(left) :][:67, :67])
    edge = cut_mouth(picture, np.array([-200.0, 200.0, 134.0, 134.0, 0.0]))
    assert edge.shape == (67, 67)
    assert (edge == edge[:, :1]).all()  # wholly left of the picture
    assert (edge[-1] == picture[-1, 0]).all()
    flat = cut_mouth(np.full((288, 360), 77, np.uint8), np.array([10.0, 10.0, 250.0, 250.0, 0.0]))
    assert (flat == 77).all()


def test_boxes_of_the_user(tmp_path: Path) -> None:
    """By frame or by seconds, linear between rows; one row serves all."""
    times = np.arange(11) / 25
    path = tmp_path / "boxes.csv"
    path.write_text("frame, x, y, w, h\n0, 10, 20, 100, 120\n10, 20, 20, 110, 120\n")
    boxes = interpolate(*read_boxes(path, times), times)
    assert boxes[:, 0] == pytest.approx(10 + np.arange(11))
    assert boxes[:, 2] == pytest.approx(100 + np.arange(11))
    path.write_text("\ufeffseconds,x,y,w,h,note\n0.2,10,20,100,120,here\n", encoding="utf-8")
    assert (interpolate(*read_boxes(path, times), times) == [10, 20, 100, 120, 0]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("seconds,x,y,w,h\n", "has no rows"),
        ("time,x,y,w,h\n0,1,2,30,40\n", "give that header"),
        ("seconds,x,y,w\n0,1,2,30\n", "give that header"),
        ("seconds,x,y,w,h\n0,1,2,wide,40\n", "line 2: seconds, x, y, w, h must be numbers"),
        ("seconds,x,y,w,h\n0,1,2\n", "line 2: .* must be numbers"),
        ("seconds,x,y,w,h\n0,1,2,30,0\n", "line 2: w and h are 30 and 0"),
        ("seconds,x,y,w,h\n0,nan,2,30,40\n", "line 2"),
        ("frame,x,y,w,h\n0,1,2,30,40\n11,1,2,30,40\n", "line 3: frame 11 of 11"),
        ("frame,x,y,w,h\n0.5,1,2,30,40\n", "line 2: frame 0.5 of 11"),
        ("seconds,x,y,w,h\n1,1,2,30,40\n0,1,2,30,40\n", "line 3: seconds 0 comes after"),
    ],
)
def test_boxes_that_cannot_be_used_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"boxes.csv.*{message}") as refusal:
        read_boxes(path, np.arange(11) / 25)
    assert "\n" not in str(refusal.value)


def test_boxes_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00" * 10)
    for name in ("absent.csv", "bytes.csv", ""):
        with pytest.raises(InputError, match="cannot be read"):
            read_boxes(tmp_path / name, np.arange(3) / 25)
