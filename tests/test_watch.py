"""The lips of a video: as the stored ones on real clips, and refused or reported where there is no face."""

import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.image import imread

from pyro_avse.data.lips import watch as watching
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.lips.watch import pack, save_preview, watch
from pyro_avse.data.media.video import read_pictures
from pyro_avse.typing import InputError
from tests.bright_faces import FindBright, faces

Make = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYRO_AVSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lips"


def test_lips_agree_with_the_stored_ones(shared_data: Callable[[str], Path]) -> None:
    """GRID's .npz were cut by the cascade's boxes: the same frame to a pixel of 67, below 12 grey levels apart."""
    for clip in sorted(shared_data("grid/video").glob("*.mpg")):
        speaker, name = clip.stem.split("_")
        stored = load_lips(next(shared_data("grid").glob(f"*/{speaker}/{name}.npz")))
        watched = watch(clip)
        assert watched.lips.fps == stored.fps == 25.0
        assert watched.lips.frames.shape == stored.frames.shape
        assert watched.gaps == []
        assert watched.notes == []
        difference = np.abs(watched.lips.frames.astype(int) - stored.frames).mean()
        assert difference < 12.0, f"{clip.name}: {difference:.2f}"
        shift, sure = cv2.phaseCorrelate(
            watched.lips.frames.mean(axis=0), stored.frames.mean(axis=0).astype(float)
        )
        assert np.abs(shift).max() < 1.0, f"{clip.name}: {shift} pixels"
        assert sure > 0.5


def test_a_moving_small_real_face_is_followed(
    tmp_path: Path, shared_data: Callable[[str], Path], make_video: Make
) -> None:
    """A GRID clip that walks 2 pixels a picture across a larger one gives nearly the same lips."""
    clip = shared_data("grid/video/s1_bginzn.mpg")
    still = [grey() for _, grey in read_pictures(clip)]
    wide = np.full((75, 400, 640), 90, np.uint8)
    for k, picture in enumerate(still):
        wide[k, 40:328, 2 * k : 2 * k + 360] = picture
    watched = watch(make_video(tmp_path / "walk.mkv", wide, codec="libx264"))
    path = watched.faces[:, 0] - 2 * np.arange(75)
    assert np.abs(path[10:65] - np.median(path)).max() < 6
    difference = np.abs(watched.lips.frames.astype(int) - watch(clip).lips.frames)[10:65]
    assert difference.mean() < 12


def test_a_gap_is_interpolated_and_said(
    tmp_path: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second without a face: the mouth's place goes on, and the notes and the preview show when."""
    monkeypatch.setattr(watching, "FaceFinder", FindBright)
    path = make_video(tmp_path / "a.mkv", faces(hidden=slice(31, 44)))
    watched = watch(path)
    assert watched.gaps == [(pytest.approx(1.4), pytest.approx(1.8))]
    assert watched.notes == [f"{path}: no face at 1.4-1.8 s: its place was interpolated"]
    assert watched.faces == pytest.approx(np.tile([34, 20, 60, 60, 0], (75, 1)), abs=1.1)
    assert watched.lips.frames[:25, 38, 33].std() > 10  # the mouth opens
    save_preview(tmp_path / "p.png", watched)
    seen = imread(tmp_path / "p.png")
    assert seen.shape[1] / seen.shape[0] == pytest.approx(1.5, abs=0.1)
    assert (seen == 1).mean() > 0.001  # white frames
    with pytest.raises(InputError, match=r"p.gif names no picture: end it in .png"):
        save_preview(tmp_path / "p.gif", watched)


@pytest.mark.parametrize(
    ("hidden", "when"),
    [
        (slice(0, 75), r"0\.0-3\.0 s of 3\.0 s"),
        (slice(20, 60), r"0\.8-2\.4 s of 3\.0 s"),
        (slice(40, 75), r"1\.6-3\.0 s of 3\.0 s"),
    ],
)
def test_no_face_is_refused_with_its_seconds(
    tmp_path: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch, hidden: slice, when: str
) -> None:
    """None at all, or none for more than a second, in the middle or at the end."""
    monkeypatch.setattr(watching, "FaceFinder", FindBright)
    path = make_video(tmp_path / "a.mkv", faces(hidden=hidden))
    with pytest.raises(InputError, match=f"a.mkv: no face at {when}: .*boxes") as refusal:
        watch(path)
    assert "\n" not in str(refusal.value)


def test_real_pictures_without_a_face(
    tmp_path: Path, shared_data: Callable[[str], Path], make_video: Make
) -> None:
    """The cascade itself: a clip whose second second is grey, and noise."""
    still = np.stack([grey() for _, grey in read_pictures(shared_data("grid/video/s1_bgaa7s.mpg"))])
    still[20:55] = 128
    with pytest.raises(InputError, match=r"no face at 0\.8-2\.2 s of 3\.0 s"):
        watch(make_video(tmp_path / "a.mkv", still))
    noise = np.random.default_rng(0).integers(0, 256, (30, 96, 128), dtype=np.uint8)
    with pytest.raises(InputError, match=r"no face at 0\.0-1\.2 s of 1\.2 s"):
        watch(make_video(tmp_path / "b.mkv", noise))


def test_boxes_serve_where_no_face_is_found(tmp_path: Path, make_video: Make) -> None:
    """The user's boxes are used as they are; a mouth outside the picture is refused."""
    path = make_video(tmp_path / "a.mkv", faces(10))
    (tmp_path / "boxes.csv").write_text("seconds,x,y,w,h\n0,34,20,60,60\n")
    watched = watch(path, tmp_path / "boxes.csv")
    assert (watched.faces == [34, 20, 60, 60, 0]).all()
    assert watched.lips.frames.shape == (10, 67, 67)
    (tmp_path / "boxes.csv").write_text("seconds,x,y,w,h\n0,34,20,60,60\n0.3,134,20,60,60\n")
    with pytest.raises(
        InputError, match=r"boxes.csv: the mouth at 0\.\d\d s is at .*, outside .*128 x 96"
    ):
        watch(path, tmp_path / "boxes.csv")


def test_a_variable_rate_is_said_and_the_lips_keep_time(tmp_path: Path, make_video: Make) -> None:
    """Pictures dropped by a telephone: the lips last as long as the video, each at its time."""
    kept = np.delete(np.arange(75), [20, 21, 22, 40, 41, 60])
    (tmp_path / "boxes.csv").write_text("frame,x,y,w,h\n0,34,20,60,60\n")
    path = make_video(tmp_path / "a.mkv", faces()[kept], times=kept / 25)
    watched = watch(path, tmp_path / "boxes.csv")
    whole = watch(make_video(tmp_path / "b.mkv", faces()), tmp_path / "boxes.csv")
    assert watched.lips.fps == pytest.approx(25)
    assert len(watched.lips.frames) == 75
    assert len(watched.notes) == 1
    assert "frame rate varies" in watched.notes[0]
    difference = np.abs(watched.lips.frames.astype(int) - whole.lips.frames).mean(axis=(1, 2))
    assert difference[kept].max() < 2.0


def test_lips_of_videos_are_kept(
    tmp_path: Path, make_video: Make, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watched once, unless the video changes or the kept file is damaged; another frame rate can be given."""
    counted = itertools.count()
    real = watching.watch

    def counting(path: Path) -> watching.Watched:
        next(counted)
        return real(path)

    monkeypatch.setattr(watching, "watch", counting)
    monkeypatch.setattr(watching, "FaceFinder", FindBright)
    path = make_video(tmp_path / "a.mkv", faces(10))
    first = load_lips(path)
    kept = list(cache.iterdir())
    assert [file.suffix for file in kept] == [".npz"]
    assert np.array_equal(load_lips(path).frames, first.frames)
    assert load_lips(path, fps=50).fps == 50
    assert repr(counted) == "count(1)"
    kept[0].write_bytes(b"damaged")
    assert np.array_equal(load_lips(path).frames, first.frames)
    assert repr(counted) == "count(2)"
    make_video(path, faces(12))
    assert len(load_lips(path).frames) == 12
    assert repr(counted) == "count(3)"
    monkeypatch.setenv("PYRO_AVSE_CACHE", "/proc/none")
    assert len(load_lips(path).frames) == 12


def test_packed_lips_load(tmp_path: Path) -> None:
    lips = watching.Lips(np.arange(2 * 67 * 67, dtype=np.uint8).reshape(2, 67, 67), 24000 / 1001)
    (tmp_path / "a.npz").write_bytes(pack(lips))
    loaded = load_lips(tmp_path / "a.npz")
    assert np.array_equal(loaded.frames, lips.frames)
    assert loaded.fps == lips.fps
