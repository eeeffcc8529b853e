"""Spectra, lips and speeds changed at random: seeded, and each change what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.lips.augment import augment_lips
from pyro_avse.stft import STFT
from pyro_avse.training.frames import load_clips
from pyro_avse.training.pairs import _clips_in_a_row, load_speech
from pyro_avse.training.recipe import GuideRecipe
from pyro_avse.training.tilt import tilt_spectra
from pyro_avse.training.train_guide import _load


def spot(row: int, column: int) -> Tensor:
    """A dark picture with one bright square of 9 x 9 pixels around (row, column)."""
    picture = torch.full((67, 67), 60, dtype=torch.uint8)
    picture[row - 4 : row + 5, column - 4 : column + 5] = 200
    return picture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_spectra_are_tilted_by_straight_lines_in_octaves(
    random_power: Callable[..., Tensor],
) -> None:
    """The response is a line over octaves, its slope within the bound and both ways; a frame keeps its power."""
    power, noise = random_power(300, 65), random_power(300, 65)
    tilted, heard = tilt_spectra(power, power + noise, 6.0, generator())
    torch.testing.assert_close(tilted.sum(-1), power.sum(-1))
    torch.testing.assert_close(heard / tilted, (power + noise) / power)
    decibels = 10 * torch.log10(tilted / power)
    slope = decibels[:, 64] - decibels[:, 32]  # one octave
    torch.testing.assert_close(decibels[:, 32] - decibels[:, 8], 2 * slope)
    torch.testing.assert_close(decibels[:, 8], decibels[:, 0])
    assert slope.abs().max() < 6
    assert slope.max() > 5.5
    assert slope.min() < -5.5
    silent = torch.zeros(2, 65)
    assert not tilt_spectra(silent, silent, 6.0, generator())[0].any()


def test_draws_depend_on_the_seed_and_differ_between_pictures(
    random_lips: Callable[..., Tensor],
) -> None:
    """One seed, one result; the pictures of a batch are changed differently, and stay grey levels in [0, 1]."""
    lips = random_lips(1).repeat(6, 1, 1)
    changed = augment_lips(lips, 1.0, generator())
    assert changed.shape == lips.shape
    assert changed.dtype == torch.get_default_dtype()
    assert torch.equal(changed, augment_lips(lips, 1.0, generator()))
    assert not torch.equal(changed, augment_lips(lips, 1.0, generator(1)))
    assert len({float(picture.sum()) for picture in changed}) == 6
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_at_strength_0_pictures_are_at_most_mirrored() -> None:
    """Mirrored, or as they were: about half of 200 each, outside 70 to 130 once in 30 000 runs of other seeds."""
    picture = spot(20, 15)
    changed = augment_lips(picture.repeat(200, 1, 1), 0.0, generator())
    plain = picture / 255
    same = (changed - plain).abs().amax((1, 2)) < 1e-5
    mirrored = (changed - plain.flip(-1)).abs().amax((1, 2)) < 1e-5
    assert (same ^ mirrored).all()
    assert 70 <= int(same.sum()) <= 130


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_mouth_moves_as_far_as_the_strength_says(strength: float) -> None:
    """A spot in the middle is shifted by up to 15 % of the half width (5 pixels) either way, times the strength."""
    changed = augment_lips(spot(33, 33).repeat(300, 1, 1), strength, generator())
    weight = (changed - changed.flatten(1).median(1).values[:, None, None]).clamp_min(0.15) - 0.15
    total = weight.sum((1, 2))
    place = torch.arange(67.0) - 33
    for axis in (1, 2):
        centre = (weight.sum(3 - axis) * place).sum(1) / total
        assert centre.abs().max() < strength * 6.5
        assert centre.abs().max() > strength * 4
        assert centre.mean().abs() < strength  # no side is favoured


def test_clips_at_other_speeds_sound_and_look_so(tmp_path: Path) -> None:
    """A tone becomes higher by the speed, the clip shorter, and the mouth opens as much earlier; clips differ."""
    second = np.arange(16000) / 16000
    lips = np.zeros((25, 67, 67), np.uint8)
    lips[15:] = 255  # opens at 0.6 s
    for name in "abcdef":
        folder = tmp_path / "train" / "s1"
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.flac", 0.5 * np.sin(2 * np.pi * 1000 * second), 16000)
        np.savez(folder / f"{name}.npz", lips=lips, fps=np.float32(25))
    clips = find_utterances(tmp_path, "train")
    stft = STFT()
    settings: dict[str, Any] = {"with_lips": True, "noise_floor_db": None, "seed": 0}
    speeds = []
    for spectrum, seen in load_clips(clips, stft, **settings, speeds=0.3):
        peak = spectrum[5:-5].abs().square().mean(0)
        near = int(peak.argmax()) + torch.arange(-2, 3)
        hertz = float((peak[near] * near).sum() / peak[near].sum()) * 16000 / stft.n_fft
        speed = hertz / 1000
        times = stft.frame_times(len(spectrum))
        assert times[-1] * speed == pytest.approx(1.0, abs=0.05)
        assert seen is not None
        opened = times[int((seen.float().mean((1, 2)) > 127).int().argmax())]
        assert opened * speed == pytest.approx(0.6, abs=0.06)
        speeds.append(speed)
    assert 0.74 < min(speeds) < 0.95
    assert 1.05 < max(speeds) < 1.35
    assert len({round(speed, 3) for speed in speeds}) == len(clips)


def test_guides_hear_clips_a_second_time(
    tiny_corpus: Path, tiny_prior: Any, small_guide: Any
) -> None:
    """As they were spoken, and then at other speeds; a pause comes last."""
    guide = small_guide(tiny_prior("a_vae", num_freqs=33).requires_grad_(False))
    clips, stft = find_utterances(tiny_corpus, "train"), STFT(n_fft=64, hop=32)
    once, twice = (load_speech(clips, guide, stft, speeds=most) for most in (0.0, 0.2))
    spoken = once.ends[-2]
    assert len(twice.ends) == 2 * len(clips) + 1
    assert twice.ends[: len(clips)] == once.ends[:-1]
    assert torch.equal(twice.spectrum[:spoken], once.spectrum[:spoken])
    again = np.diff([spoken, *twice.ends[len(clips) : -1]]) / np.diff([0, *once.ends[:-1]])
    assert (np.abs(np.log(again)) < 0.21).all()
    assert (np.abs(again - 1) > 0.001).all()


def test_one_corpus_is_drawn_as_often_as_another(
    tiny_corpus: Path, tiny_prior: Any, small_guide: Any
) -> None:
    """Of corpora with one clip and three; with a chance of 0 a clip never comes first."""
    prior = tiny_prior("a_vae", num_freqs=33).requires_grad_(False)
    guide, stft = small_guide(prior), STFT(n_fft=64, hop=32)
    clips = find_utterances(tiny_corpus, "train")
    recipe = GuideRecipe("none", speeds=0.2)
    speech = _load([clips[:1], clips[1:]], guide, stft, recipe, training=True)
    judged = _load([clips[:1], clips[1:]], guide, stft, recipe, training=False)
    assert len(judged.ends) == len(clips) + 1  # as they were spoken alone
    chances = speech.chances / speech.chances.sum()
    torch.testing.assert_close(chances, torch.tensor([3.0, 1, 1, 1]).repeat(2) / 12)
    third = load_speech(clips, guide, stft, chances=[0, 0, 1, 0])
    torch.manual_seed(0)
    for _ in range(20):
        row = _clips_in_a_row(third, 4)
        spoken = row[row < third.ends[-2]]  # what is no pause
        assert ((third.ends[1] <= spoken) & (spoken < third.ends[2])).all()
