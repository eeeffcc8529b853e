"""Bad lips: as many as asked, in runs, bad exactly where the truth says so."""

import numpy as np
import pytest
from jaxtyping import Shaped

from pyro_avse.data.lips.corrupt import PATCH, bad_runs, corrupt_lips, runs_of
from pyro_avse.data.lips.lips import Lips, lips_on_grid
from pyro_avse.typing import InputError

KINDS = ["patch", "frozen", "black"]


@pytest.fixture
def lips() -> Lips:
    """Six seconds at 25 fps, no picture like another, none of a single grey."""
    frames = np.random.default_rng(1).integers(1, 255, (150, 67, 67), dtype=np.uint8)
    return Lips(frames, 25.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pictures_change_where_the_truth_says(kind, dtype, lips: Lips) -> None:
    """A third is bad, in runs; every other picture, the dtype and what was given stay as they were."""
    scale = 1 if dtype == np.uint8 else np.float32(1 / 255)
    given = Lips((lips.frames * scale).astype(dtype), lips.fps)
    before = given.frames.copy()
    bad, truth = corrupt_lips(given, kind, np.random.default_rng(0))
    changed = (bad.frames != before).any(axis=(1, 2))
    assert np.array_equal(changed, truth)
    assert truth.sum() == 50
    assert not truth[0]
    assert (bad.frames.dtype, bad.frames.shape, bad.fps) == (dtype, before.shape, 25.0)
    assert np.array_equal(given.frames, before)
    assert bad.frames.min() >= 0
    assert bad.frames.max() <= 255 * scale


def test_what_each_kind_shows(lips: Lips) -> None:
    """Black is 0; frozen is the picture before the run; a patch is one grey square over the middle, that moves."""
    shown = {kind: corrupt_lips(lips, kind, np.random.default_rng(3)) for kind in KINDS}
    truth = shown["black"][1]
    assert all(np.array_equal(truth, other) for _, other in shown.values())
    assert not shown["black"][0].frames[truth].any()
    for start, end in runs_of(truth):
        assert (shown["frozen"][0].frames[start:end] == lips.frames[start - 1]).all()
        run = shown["patch"][0].frames[start:end]
        levels, places = set(run[:, 33, 33].tolist()), []
        assert len(levels) == 1
        for picture, original in zip(run, lips.frames[start:end], strict=True):
            flat = windows(picture).std(axis=(-1, -2)) == 0
            (place,) = np.argwhere(flat)
            outside = np.ones((67, 67), dtype=bool)
            outside[place[0] : place[0] + PATCH, place[1] : place[1] + PATCH] = False
            assert np.array_equal(picture[outside], original[outside])
            places.append(place)
        steps = np.abs(np.diff(places, axis=0))
        assert (steps <= 4).all()  # 3 pixels, rounded
        assert len(steps) == 0 or steps.any()


def windows(picture: Shaped[np.ndarray, "67 67"]) -> Shaped[np.ndarray, "28 28 side side"]:
    return np.lib.stride_tricks.sliding_window_view(picture, (PATCH, PATCH))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("fraction", [0, 0.01, 1 / 3, 0.5])
def test_runs_fill_the_share(count: int, fraction: float) -> None:
    """However few pictures: as many bad ones as the share says, the first good, no run of length 0."""
    for seed in range(20):
        truth = bad_runs(count, fraction, 5.0, np.random.default_rng(seed))
        assert (len(truth), truth.sum()) == (count, round(fraction * count))
        assert not truth[0]
        lengths = np.diff(runs_of(truth), axis=1)
        assert (lengths > 0).all()
        assert lengths.sum() == truth.sum()


def test_runs_have_the_length_asked_for() -> None:
    """A second at 25 fps is 25 pictures a run on average; lengths differ, and places from seed to seed."""
    truths = [bad_runs(3000, 1 / 3, 25.0, np.random.default_rng(seed)) for seed in range(2)]
    lengths = np.diff(runs_of(truths[0]), axis=1)
    assert lengths.mean() == 25
    assert len(np.unique(lengths)) > 10
    assert not np.array_equal(*truths)
    again = bad_runs(3000, 1 / 3, 25.0, np.random.default_rng(0))
    assert np.array_equal(again, truths[0])


def test_every_place_is_as_likely() -> None:
    """A run of 10 among 30 starts at each of 1..20 equally often in 2000 draws: P(max |z| > 4.5 of 20) < 2e-4.

    The broken twin prefers the middle.
    """
    rng = np.random.default_rng(0)

    def max_z(starts: list[int]) -> float:
        share = np.bincount(starts, minlength=21)[1:21] / 2000
        return float(np.abs((share - 0.05) / np.sqrt(0.05 * 0.95 / 2000)).max())

    assert max_z([runs_of(bad_runs(30, 1 / 3, 10.0, rng))[0, 0] for _ in range(2000)]) < 4.5
    assert max_z([1 + int(19 * rng.beta(2, 2)) for _ in range(2000)]) > 4.5


def test_truth_on_the_frames_of_the_sound(lips: Lips) -> None:
    """The truth goes onto the STFT's grid as the pictures do: a frame is bad where it shows a bad picture."""
    bad, truth = corrupt_lips(lips, "black", np.random.default_rng(0))
    times = np.arange(180) * 533 / 16000
    held = lips_on_grid(Lips(truth, lips.fps), times, 6.0)
    assert np.array_equal(held, ~lips_on_grid(bad, times, 6.0).any(axis=(1, 2)))


def test_bad_requests_are_refused(lips: Lips) -> None:
    """Another kind, no share, runs of no length, and more bad pictures than there are."""
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="'blurred': take one of patch, frozen, black"):
        corrupt_lips(lips, "blurred", rng)  # type: ignore[arg-type]
    for fraction in (-0.1, 1.0, np.nan):
        with pytest.raises(InputError, match="from 0 to less than 1"):
            corrupt_lips(lips, "black", rng, fraction=fraction)
    for seconds in (0.0, np.inf, np.nan):
        with pytest.raises(InputError, match="give a positive length"):
            corrupt_lips(lips, "black", rng, run_seconds=seconds)
    with pytest.raises(InputError, match="2 bad of 2 pictures leave no good one"):
        corrupt_lips(Lips(lips.frames[:2], 25.0), "black", rng, fraction=0.9)
