"""Lips come out upright, in range and on the sound's frames, or are refused in one line."""

from pathlib import Path

import numpy as np
import pytest

from pyro_avse.data.lips.lips import Lips, lips_on_grid
from pyro_avse.data.lips.open import load_lips
from pyro_avse.typing import InputError

DATA = Path(__file__).parents[2] / "shared" / "data"


def pictures(n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 67, 67), dtype=np.uint8)


def numbered(n: int, fps: float) -> Lips:
    """Frame k is k everywhere."""
    return Lips(np.repeat(np.arange(n, dtype=np.uint8), 67 * 67).reshape(n, 67, 67), fps)


def test_npz_and_npy_give_back_what_was_saved(tmp_path: Path) -> None:
    frames = pictures()
    np.savez(tmp_path / "a.npz", lips=frames, fps=25.0)
    np.save(tmp_path / "a.npy", frames)
    for lips in (load_lips(tmp_path / "a.npz"), load_lips(tmp_path / "a.npy", fps=25)):
        assert np.array_equal(lips.frames, frames)
        assert lips.frames.dtype == np.uint8
        assert lips.fps == 25.0
    assert load_lips(tmp_path / "a.npz", fps=29.97).fps == 29.97


def test_column_major_pictures_come_out_upright(tmp_path: Path) -> None:
    picture = np.zeros((67, 67))
    picture[60, 10:50] = 1.0  # a horizontal line near the bottom: transposed, it would be vertical
    column = [picture[row, col] for col in range(67) for row in range(67)]
    np.save(tmp_path / "v.npy", np.stack([column, np.zeros(4489)], axis=1))
    lips = load_lips(tmp_path / "v.npy")
    assert lips.fps == 30.0
    assert lips.frames.dtype == np.float32
    assert np.array_equal(lips.frames, np.stack([picture, np.zeros((67, 67))]))
    assert load_lips(tmp_path / "v.npy", fps=25).fps == 25


def test_other_integers_become_uint8(tmp_path: Path) -> None:
    frames = pictures()
    np.save(tmp_path / "a.npy", frames.astype(np.int64))
    lips = load_lips(tmp_path / "a.npy", fps=25)
    assert lips.frames.dtype == np.uint8
    assert np.array_equal(lips.frames, frames)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((3, 66, 67)), r"shape \(3, 66, 67\)"),
        (np.zeros((67, 67)), r"shape \(67, 67\)"),
        (np.zeros((5, 4489)), r"shape \(5, 4489\)"),
        (np.zeros((4488, 5)), r"shape \(4488, 5\)"),
        (np.zeros((0, 67, 67)), "no frames"),
        (np.zeros((4489, 0)), "no frames"),
        (np.full((1, 67, 67), 1.5), "from 1.5 to 1.5"),
        (np.full((1, 67, 67), -0.1), "from -0.1"),
        (np.full((1, 67, 67), np.nan), "nan"),
        (np.full((1, 67, 67), 256), "from 256 to 256"),
        (np.full((1, 67, 67), -1, dtype=np.int8), "from -1"),
        (np.zeros((1, 67, 67), dtype=bool), "bool"),
        (np.zeros((1, 67, 67), dtype=complex), "complex"),
    ],
)
def test_frames_that_are_not_lips_are_refused(
    tmp_path: Path, frames: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "a.npy", frames)
    with pytest.raises(InputError, match=message) as refusal:
        load_lips(tmp_path / "a.npy")  # says so before it asks for the rate
    assert "\n" not in str(refusal.value)
    assert "a.npy" in str(refusal.value)


@pytest.mark.parametrize("fps", [0.0, -25.0, np.nan, np.inf])
def test_a_frame_rate_must_be_positive_and_finite(tmp_path: Path, fps: float) -> None:
    np.savez(tmp_path / "a.npz", lips=pictures(), fps=fps)
    with pytest.raises(InputError, match="one positive number"):
        load_lips(tmp_path / "a.npz")
    with pytest.raises(InputError, match="one positive number"):
        load_lips(tmp_path / "a.npz", fps=fps)


def test_missing_keys_and_rates_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mouth=pictures(), fps=25)
    np.savez(tmp_path / "b.npz", lips=pictures())
    np.savez(tmp_path / "c.npz", lips=pictures(), fps="fast")
    np.save(tmp_path / "d.npy", pictures())
    for name, message in [
        ("a.npz", r"keys \['fps'.*name the frames 'lips'"),
        ("b.npz", "give --fps"),
        ("c.npz", "fps is fast"),
        ("d.npy", "give --fps"),
    ]:
        with pytest.raises(InputError, match=message):
            load_lips(tmp_path / name)
    assert load_lips(tmp_path / "b.npz", fps=25).fps == 25


def test_broken_files_are_refused_in_one_line(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", lips=pictures(20), fps=25.0)
    np.save(tmp_path / "a.npy", pictures())
    whole_npz, whole_npy = (tmp_path / "a.npz").read_bytes(), (tmp_path / "a.npy").read_bytes()
    np.save(tmp_path / "object.npy", np.array([{}, None]), allow_pickle=True)
    damaged = bytearray(whole_npz)
    damaged[2000:2200] = bytes(200)
    contents = {
        "empty.npz": b"",
        "text.npz": b"these are no lips\n" * 50,
        "cut.npz": whole_npz[:-500],
        "damaged.npz": bytes(damaged),
        "cut.npy": whole_npy[:-500],
        "header.npy": whole_npy[:20],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "object.npy", "missing.npz", ""]:
        with pytest.raises(InputError) as refusal:
            load_lips(tmp_path / name, fps=25)
        assert "\n" not in str(refusal.value)
        assert str(tmp_path / name) in str(refusal.value)


def test_the_picture_that_shows_is_held() -> None:
    lips = numbered(5, fps=25.0)  # 0.2 s; picture k from 0.04 k
    times = np.array([0.0, 0.0399, 0.04, 0.0799, 0.08, 0.1601, 0.25])
    held = lips_on_grid(lips, times, duration=0.2)
    assert held.dtype == np.uint8
    assert held[:, 3, 5].tolist() == [0, 0, 1, 1, 2, 4, 4]


@pytest.mark.parametrize("fps", [24000 / 1001, 25.0, 29.97, 30.0, 59.94])
def test_borders_of_pictures_survive_rounding(fps: float) -> None:
    n = 200
    held = lips_on_grid(numbered(n, fps), np.arange(n) / fps, n / fps)
    assert held[:, 0, 0].tolist() == list(range(n))


def test_a_quarter_second_is_forgiven_and_more_is_not() -> None:
    lips = numbered(30, fps=30.0)
    times = np.array([0.0, 1.2])
    assert lips_on_grid(lips, times, 1.25)[:, 0, 0].tolist() == [0, 29]
    assert lips_on_grid(lips, times[:1], 0.75)[:, 0, 0].tolist() == [0]
    message = r"lips has 30 frames at 30 fps \(1.00 s\), the sound lasts 1.26 s: give --fps or trim"
    with pytest.raises(InputError, match=message):
        lips_on_grid(lips, times, 1.26)
    with pytest.raises(InputError, match=r"lasts 0.74 s"):
        lips_on_grid(lips, times, 0.74)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_grid_lips_load() -> None:
    lips = load_lips(next(iter(sorted((DATA / "grid" / "valid").glob("*/*.npz")))))
    assert lips.frames.shape == (75, 67, 67)
    assert lips.fps == 25.0
