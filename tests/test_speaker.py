"""Of several faces the one that speaks is taken; all of them are tracked, from left to right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyro_avse.data.lips import watch as watching
from pyro_avse.data.lips.face import track_faces
from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.lips.speaker import agreement
from pyro_avse.data.lips.watch import watch, watch_faces
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.copying import copy_pictures
from pyro_avse.data.media.video import read_pictures
from pyro_avse.typing import InputError

Make = Callable[..., Path]
TIMES = np.arange(30) / 5


def at(x: float, y: float = 50.0, size: float = 100.0) -> np.ndarray:
    return np.array([x, y, size, size, 0.0])


def test_faces_are_tracked_from_left_to_right() -> None:
    """Two throughout, in any order, one of them hidden for a while; a third that flashes up is none."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(30):
        boxes = [at(400, size=120)] if 10 <= k < 18 else [at(400, size=120), at(100 + 2 * k)]
        boxes += [at(700)] if k in (4, 5, 21) else []
        found.append(np.array(boxes)[rng.permutation(len(boxes))])
    (left, gaps), (right, none) = track_faces(found, TIMES, 6.0)
    assert np.nanmax(left[:, 0]) < 200
    assert (right[:, 0] == 400).all()
    assert gaps == [(2.0, pytest.approx(3.6))]
    assert none == []
    ((track, gaps),) = track_faces([np.empty((0, 5))] * 3, TIMES[:3], 0.6)
    assert np.isnan(track).all()
    assert gaps == [(0.0, 0.6)]


class FindTwo:
    """A bright face in each half of the picture."""

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        return np.array([[10.0, 20, 60, 60, 0], [138.0, 20, 60, 60, 0]])


@pytest.fixture
def two(tmp_path: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dark face on the left, a bright one on the right, and no sound."""
    monkeypatch.setattr(watching, "FaceFinder", FindTwo)
    pictures = np.full((30, 96, 256), 60, np.uint8)
    pictures[:, :, 128:] = 200
    return make_video(tmp_path / "two.mkv", pictures)


def test_the_face_that_is_asked_for_is_taken(two: Path) -> None:
    assert [face.faces[0, 0] for face in watch_faces(two)] == [10, 138]
    for face, x in (("right", 138), ("1", 138), ("left", 10), ("0", 10)):
        watched = watch(two, face=face)
        assert (watched.faces[:, 0] == x).all()
        assert watched.lips.frames.mean() == pytest.approx(60 if x == 10 else 200, abs=3)
        assert watched.notes == []
    for face in ("2", "middle", "-1"):
        with pytest.raises(
            InputError, match=f"shows 2 faces, none '{face}': take auto, left, right"
        ):
            watch(two, face=face)


def test_what_is_taken_without_sound_is_said(two: Path) -> None:
    (note,) = watch(two).notes
    assert "two.mkv shows 2 faces: 0 from the left, at x = 40, is taken: there is no sound" in note


def test_the_lips_of_grid_go_with_their_own_sound(shared_data: Callable[[str], Path]) -> None:
    """Of other clips' lips, in nine of ten pairs; lips half a second late agree no better than others do."""
    clips = sorted(shared_data("grid/valid").glob("s1/*.npz"))[:6]
    lips = [load_lips(clip) for clip in clips]
    sounds = [load_audio(clip.with_suffix(".flac")).waveform for clip in clips]
    scores = np.array([[agreement(seen, heard) for seen in lips] for heard in sounds])
    own = np.diag(scores)
    assert (own[:, None] > scores)[~np.eye(len(clips), dtype=bool)].mean() > 0.9
    late = [Lips(np.roll(seen.frames, 12, axis=0), seen.fps) for seen in lips]
    assert np.mean([agreement(a, b) for a, b in zip(late, sounds, strict=True)]) < own.mean() - 0.2


@pytest.mark.parametrize("talks", [0, 1])
def test_of_two_real_faces_the_one_that_speaks(
    talks: int, tmp_path: Path, shared_data: Callable[[str], Path], make_video: Make
) -> None:
    clips = [shared_data(f"grid/video/{name}.mpg") for name in ("s1_bgaa7s", "s26_swbm3n")]
    both = [np.stack([grey() for _, grey in read_pictures(clip)]) for clip in clips]
    path = make_video(
        tmp_path / "a.mkv",
        np.concatenate(both, axis=2),
        sound=load_audio(clips[talks]).waveform,
        codec="libx264",
    )
    watched = watch(path)
    assert watched.faces[0, 0] // 360 == talks
    assert f"2 faces: {talks} from the left, at x = " in watched.notes[-1]
    assert "its lips go best with the sound" in watched.notes[-1]


def test_channels_that_cancel_still_say_who_speaks(
    tmp_path: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the sound that was decoded already is listened to, if it is given."""
    monkeypatch.setattr(watching, "FaceFinder", FindTwo)
    heard: list[np.ndarray | None] = []

    def choose(faces: list[Lips], sound: np.ndarray | None) -> tuple[int, str]:
        heard.append(sound)
        return 0, "why"

    monkeypatch.setattr(watching, "choose_speaker", choose)
    path = make_video(tmp_path / "two.mkv", np.full((30, 96, 256), 60, np.uint8))
    voice = 0.1 * np.random.default_rng(0).standard_normal(19200)
    copy_pictures(tmp_path / "o.mkv", path, np.stack([voice, -voice]), 16000)
    watch(tmp_path / "o.mkv")
    watch(tmp_path / "o.mkv", sound=lambda seconds: voice)
    mono, given = heard
    assert mono is not None
    assert np.corrcoef(mono[: len(voice)], voice)[0, 1] > 0.9
    assert given is voice
