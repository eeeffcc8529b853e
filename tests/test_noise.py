"""Noise has the spectrum, level and SNR it claims; what has no level is refused."""

import numpy as np
import pytest
from scipy.signal import welch

from pyro_avse.data.noise import (
    add_noise_floor,
    babble,
    mix_at_snr,
    pink_noise,
    take_noise,
    white_noise,
)
from pyro_avse.typing import InputError


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def slope(waveform: np.ndarray) -> float:
    """The exponent of a power law fitted to Welch's spectrum (not the FFT that shaped it)."""
    freqs, power = welch(waveform, nperseg=4096)
    return np.polyfit(np.log(freqs[8:-8]), np.log(power[8:-8]), 1)[0]


def test_pink_power_falls_as_one_over_f_and_white_does_not() -> None:
    # 2^18 samples: the fitted exponent's standard deviation over seeds is 0.003 (60 seeds), so
    # 0.05 is over sixteen of them (false alarms under 1e-50). White noise, whose exponent is 0,
    # fails the first test, and pink noise the second.
    rng = np.random.default_rng(0)
    assert abs(slope(pink_noise(2**18, rng)) + 1) < 0.05
    assert abs(slope(white_noise(2**18, rng))) < 0.05


@pytest.mark.parametrize("num_samples", [2, 3, 997, 16000])
def test_drawn_noise_has_unit_rms_and_pink_no_dc(num_samples: int) -> None:
    rng = np.random.default_rng(1)
    for draw in (pink_noise, white_noise):
        noise = draw(num_samples, rng)
        assert noise.shape == (num_samples,)
        assert noise.dtype == np.float32
        assert rms(noise) == pytest.approx(1, abs=1e-6)
    assert abs(pink_noise(num_samples, rng).mean(dtype=np.float64)) < 1e-6


def test_draws_follow_the_callers_generator() -> None:
    same = [pink_noise(100, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 7.5])
def test_the_mixture_has_the_snr(snr_db: float) -> None:
    rng = np.random.default_rng(2)
    speech = 0.3 * white_noise(8000, rng)
    speech[4000:] = 0  # a pause counts: the SNR is broadband over the whole clip
    mixture, noise = mix_at_snr(speech, 5 * pink_noise(8000, rng), snr_db)
    assert mixture.dtype == noise.dtype == np.float32
    assert 20 * np.log10(rms(speech) / rms(noise)) == pytest.approx(snr_db, abs=1e-4)
    assert np.allclose(mixture - noise, speech, atol=1e-6)


def test_the_floor_lies_under_the_peak() -> None:
    rng = np.random.default_rng(3)
    waveform = np.zeros(16000, dtype=np.float32)
    waveform[100] = -0.5
    floor = add_noise_floor(waveform, 40.0, rng) - waveform
    assert 20 * np.log10(0.5 / rms(floor)) == pytest.approx(40, abs=1e-3)


def test_taken_noise_is_a_stretch_of_the_recording() -> None:
    recording = np.arange(50, dtype=np.float32)
    rng = np.random.default_rng(4)
    starts = set()
    for _ in range(200):
        segment, start = take_noise(recording, 47, rng)
        assert np.array_equal(segment, recording[start : start + 47])
        starts.add(start)
    assert starts == {0, 1, 2, 3}  # a missed start: 4 * (3/4)^200, under 1e-24
    segment[:] = -1
    assert recording[start] == start, "the segment is a view of the recording"
    looped, start = take_noise(recording, 120, rng)
    assert np.array_equal(looped, np.roll(np.tile(recording, 3), -start)[:120])


def test_babble_gives_every_speaker_the_same_level() -> None:
    rng = np.random.default_rng(5)
    t = np.arange(16000)
    low, high = np.sin(2 * np.pi * 400 / 16000 * t), np.sin(2 * np.pi * 2000 / 16000 * t)
    mixture = babble([100 * low, 0.01 * high[:8000]], 32000, rng)
    power = np.abs(np.fft.rfft(mixture)) ** 2
    low_bin, high_bin = 400 * 2, 2000 * 2
    assert power[low_bin] / power.sum() == pytest.approx(0.5, abs=1e-3)
    assert power[high_bin] / power.sum() == pytest.approx(0.5, abs=1e-3)
    assert rms(mixture) == pytest.approx(1, abs=1e-6)


def test_what_has_no_level_is_refused() -> None:
    rng = np.random.default_rng(6)
    sound, silence = np.ones(10), np.zeros(10)
    for call, message in [
        (lambda: mix_at_snr(silence, sound, 0.0), "speech is silent"),
        (lambda: mix_at_snr(sound, silence, 0.0), "noise is silent"),
        (lambda: mix_at_snr(sound, sound[:9], 0.0), "10 samples, noise 9"),
        (lambda: mix_at_snr(sound, sound, np.inf), "inf dB"),
        (lambda: mix_at_snr(sound * np.nan, sound, 0.0), "speech holds NaN"),
        (lambda: add_noise_floor(silence, 40.0, rng), "waveform is silent"),
        (lambda: add_noise_floor(sound, np.nan, rng), "nan dB"),
        (lambda: take_noise(sound[:0], 5, rng), "recording of 0"),
        (lambda: take_noise(sound, 0, rng), "take 0 samples"),
        (lambda: babble([], 5, rng), "0 clips"),
        (lambda: babble([sound, silence], 5, rng), "clip 1 is silent"),
        (lambda: pink_noise(1, rng), "1 samples"),
        (lambda: white_noise(0, rng), "0 samples"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
