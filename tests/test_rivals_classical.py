"""Classical rivals: the noise that they hear is there, and what they take off is noise."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_avse.metrics import score
from pyro_avse.rivals import classical
from pyro_avse.rivals.classical import (
    WINDOWS,
    learn_dictionary,
    log_mmse,
    minimum_statistics,
    save_dictionary,
    spectral_subtraction,
    supervised_nmf,
)
from pyro_avse.training.recipe import RivalRecipe, parse_rival_recipe
from pyro_avse.training.stages import train
from pyro_avse.typing import InputError

Classical = Callable[[np.ndarray, int], np.ndarray]


def syllables(seconds: float = 4.0) -> np.ndarray:
    """Harmonics that come and go four times a second, silent for a quarter of the time."""
    time = np.arange(int(16000 * seconds)) / 16000
    opening = np.clip(np.sin(2 * np.pi * 4 * time) + 0.5, 0, None)
    return opening * sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12))


def power_of(samples: np.ndarray) -> np.ndarray:
    return WINDOWS.analyse(torch.from_numpy(samples)).abs().square().numpy()


def decibel_off(estimate: np.ndarray, noise: np.ndarray) -> float:
    """Of the mean over the last two seconds, from the noise's own mean power."""
    return float(10 * np.log10(estimate[-125:, 2:-2].mean() / noise[:, 2:-2].mean()))


def test_minimum_statistics_is_noise_with_and_without_speech() -> None:
    """Within 1.5 dB in white noise (1 dB of it is what [Martin 2001] allows itself), and 2.5 dB under speech. The
    minimum alone, its broken twin, is more than 2.5 dB too low."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(64000)
    alone = minimum_statistics(power_of(noise))
    assert abs(decibel_off(alone, power_of(noise))) < 1.5
    spoken = minimum_statistics(power_of(noise + 0.3 * syllables()))
    assert abs(decibel_off(spoken, power_of(noise))) < 2.5
    smoothed = power_of(noise).cumsum(0)
    smoothed = (smoothed[8:] - smoothed[:-8]) / 8
    assert decibel_off(np.minimum.accumulate(smoothed[-90:]), power_of(noise)) < -2.5


def test_minimum_statistics_follows_a_louder_noise() -> None:
    """By 20 dB, within its memory of 1.5 s, both ways."""
    noise = 0.01 * np.random.default_rng(0).standard_normal(128000)
    noise[32000:80000] *= 10
    found = 10 * np.log10(minimum_statistics(power_of(noise))[:, 2:-2].mean(1))
    before, louder, after = found[100], found[300], found[-1]
    assert abs(louder - before - 20) < 2
    assert abs(after - before) < 2


@pytest.mark.parametrize("rival", [log_mmse, spectral_subtraction])
def test_noise_is_taken_off_in_time_and_level(rival: Classical) -> None:
    """2.5 dB and more in white noise at 5 dB; at twice the level the same, twice as loud; silence stays silence."""
    clean = syllables()
    noise = np.random.default_rng(1).standard_normal(len(clean))
    noise *= math.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-5 / 20)
    noisy = (0.2 * (clean + noise)).astype(np.float32)
    found = rival(noisy, 16000)
    before, after = (score(x.astype(float), clean, only=("si_sdr",)).si_sdr for x in (noisy, found))
    assert after > before + 2.5
    assert np.allclose(rival(2 * noisy, 16000), 2 * found, atol=2e-3)
    assert np.abs(rival(np.zeros(8000, np.float32), 16000)).max() < 1e-4


def test_speech_alone_is_kept_by_log_mmse() -> None:
    """The estimate of clean speech with a faint floor is that speech, to 10 dB: its gain is late where one begins."""
    clean = syllables() + 1e-4 * np.random.default_rng(0).standard_normal(64000)
    assert score(log_mmse(clean.astype(np.float32), 16000), clean, only=("si_sdr",)).si_sdr > 10


def test_a_dictionary_learns_spectra_and_tells_speech_from_noise(tmp_path: Path) -> None:
    """Two spectra that make all frames are found again; by a dictionary of its speech NMF takes noise off, by one of
    other speech less."""
    rng = torch.Generator().manual_seed(0)
    spectra = torch.rand(2, 257, generator=rng) ** 4 + 1e-4
    spectra = spectra / spectra.sum(1, keepdim=True)
    power = torch.rand(300, 2, generator=rng) @ spectra
    W = learn_dictionary(power, 2, iterations=300, rng=rng)
    closeness = torch.cosine_similarity(W[:, None], spectra[None], dim=-1).max(1).values
    assert closeness.min() > 0.98

    clean = syllables()
    time = np.arange(len(clean)) / 16000
    noisy = (clean + 0.5 * np.sin(2 * np.pi * 3333 * time)).astype(np.float32)
    gains = []
    for place, learned in enumerate((clean, np.sin(2 * np.pi * 3333 * time))):
        W = learn_dictionary(
            torch.from_numpy(power_of(learned)).float() + 1e-6, 8, iterations=30, rng=rng
        )
        save_dictionary(tmp_path / f"{place}.safetensors", W)
        found = supervised_nmf(noisy, 16000, weights=tmp_path / f"{place}.safetensors")
        gains.append(score(found.astype(float), clean, only=("si_sdr",)).si_sdr)
    assert gains[0] > gains[1] + 3
    with pytest.raises(InputError, match="no runs/absent: train it, pyro-avse train default/super"):
        supervised_nmf(noisy, 16000, weights=Path("runs/absent"))


def test_a_dictionary_is_trained_by_its_recipe(tiny_corpus: Path, tmp_path: Path) -> None:
    """The same bytes from the same seed; a folder in use, options and noises are refused."""
    recipe = parse_rival_recipe(
        {"rival": "supervised_nmf", "options": {"rank": 3}, "training": {"epochs": 2}}, source="x"
    )
    assert isinstance(recipe, RivalRecipe)
    one, two = (train(recipe, tiny_corpus, tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert classical._dictionary(one).shape == (3, 257)
    assert torch.allclose(classical._dictionary(one).sum(1), torch.ones(3))
    wrong = {"rival": "supervised_nmf", "noises": ["rain"]}
    with pytest.raises(InputError, match="gabbay has names of recordings, others none"):
        parse_rival_recipe(wrong, source="x")
    bad = parse_rival_recipe({"rival": "supervised_nmf", "options": {"size": 3}}, source="x")
    with pytest.raises(InputError, match=r"\[options\] of supervised_nmf: .*'size'"):
        train(bad, tiny_corpus, tmp_path / "three")
