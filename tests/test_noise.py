"""Noise has the spectrum, level and SNR it claims; what has no level is refused."""

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import welch

from pyro_avse.data.corpora.utterance import Utterance
from pyro_avse.data.media.level import active_power
from pyro_avse.data.noise import (
    add_noise_floor,
    babble,
    choose_voices,
    draw_segment,
    make_noise,
    mix_at_snr,
    noise_gain,
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
    t = np.arange(16000)
    low, high = np.sin(2 * np.pi * 400 / 16000 * t), np.sin(2 * np.pi * 2000 / 16000 * t)
    mixture = babble([100 * low, 0.01 * high[:8000]], 32000, [7, 3])
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
        (lambda: babble([], 5, []), "0 clips"),
        (lambda: babble([sound, silence], 5, [0, 0]), "clip 1 is silent"),
        (lambda: babble([sound, sound[:0]], 5, [0, 0]), "clip 1 is silent"),
        (lambda: mix_at_snr(sound, sound, 0.0, level="peak"), "a level over 'peak'"),
        (lambda: pink_noise(1, rng), "1 samples"),
        (lambda: white_noise(0, rng), "0 samples"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def bursts(on: float, off: float, count: int, seed: int = 7) -> np.ndarray:
    """White noise of RMS 0.1 for `on` seconds, silence for `off`, so many times."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal((count, round(16000 * (on + off))))
    noise[:, round(16000 * on) :] = 0
    return noise.ravel()


def p56(waveform: np.ndarray) -> float:
    """Active level in dB as ITU-T P.56 counts it: sample by sample, thresholds 6 dB apart, interpolated."""
    decay, hangover = np.exp(-1 / (16000 * 0.03)), 3200
    thresholds = 2.0 ** -np.arange(20)[::-1]
    active, quiet = np.zeros(20), np.full(20, hangover)
    p = q = 0.0
    for x in np.abs(waveform):
        p = decay * p + (1 - decay) * x
        q = decay * q + (1 - decay) * p
        over = q >= thresholds
        quiet = np.where(over, 0, quiet + 1)
        active += over | (quiet < hangover)
    level = 10 * np.log10(np.sum(waveform**2) / np.maximum(active, 1))
    margin = level - 20 * np.log10(thresholds) - 15.9
    j = int(np.argmax(margin <= 0))
    share = margin[j - 1] / (margin[j - 1] - margin[j])
    return level[j - 1] + share * (level[j] - level[j - 1])


def test_the_active_level_is_that_of_p56() -> None:
    """Within the half dB that P.56's interpolation leaves; pauses weigh on the clip's level, not on this one."""
    for waveform in (bursts(1, 0, 2), bursts(0.5, 0.7, 2), bursts(0.3, 0.1, 4)):
        assert 10 * np.log10(active_power(waveform)) == pytest.approx(p56(waveform), abs=0.5)
    talk = bursts(1, 1, 3)
    longer = np.append(talk, np.zeros(64000))
    assert active_power(longer) == pytest.approx(active_power(talk), rel=1e-9)
    assert active_power(7 * talk) == pytest.approx(49 * active_power(talk), rel=1e-9)
    # Of 2 s, 1 s of sound and 0.2 s of hangover are active, and some of the envelope's decay.
    assert -1.6 < 10 * np.log10(active_power(talk) / 0.01) < -10 * np.log10(1.2) + 0.05
    click = np.zeros(16000)
    click[8000] = 1
    assert active_power(click) == pytest.approx(1 / 16000)


def test_an_snr_over_active_speech_is_louder_than_over_the_clip() -> None:
    speech = bursts(1, 3, 2).astype(np.float32)
    noise = white_noise(len(speech), np.random.default_rng(8))
    gain = noise_gain(speech, noise, 5.0, level="active")
    assert active_power(speech) / rms(gain * noise) ** 2 == pytest.approx(10**0.5, rel=1e-5)
    assert 20 * np.log10(gain / noise_gain(speech, noise, 5.0)) > 4


def test_a_segment_makes_the_same_noise_again() -> None:
    """From seed, files and starts alone; each kind, short recordings looped from where they end."""
    rng = np.random.default_rng(9)
    long, short = (rng.standard_normal(n).astype(np.float32) for n in (900, 40))
    for kind, recordings, looped in [
        ("white", {}, False),
        ("pink", {}, False),
        ("recording", {"long": long}, False),
        ("recording", {"short": short}, True),
        ("babble", {"long": long, "short": short}, True),
        ("babble", {"long": long, "again": long[::-1]}, False),
    ]:
        segment = draw_segment(kind, recordings, 100, seed=3)  # type: ignore[arg-type]
        noise = make_noise(segment, recordings, 100)
        assert segment.looped == looped
        assert noise.tobytes() == make_noise(segment, dict(recordings), 100).tobytes()
        other = draw_segment(kind, recordings, 100, seed=4)  # type: ignore[arg-type]
        assert not np.array_equal(noise, make_noise(other, recordings, 100))
        if kind == "recording":
            (name,), (start,) = segment.files, segment.starts
            endless = np.tile(recordings[name], 4)
            assert np.array_equal(noise, endless[start : start + 100])


def utterances(**clips: int) -> list[Utterance]:
    return [
        Utterance(f"u{i}", speaker, "test", Path(f"{speaker}/u{i}.flac"), None)
        for speaker, count in clips.items()
        for i in range(count)
    ]


def test_babble_is_spoken_by_as_many_others_as_there_are() -> None:
    corpus = utterances(s1=4, s2=2, s3=5, s4=1)
    for seed in range(20):
        chosen = choose_voices(corpus, "s1", 5, seed)
        assert len(set(chosen)) == 5
        assert "s1" not in {u.speaker for u in chosen}
        assert {u.speaker for u in chosen[:3]} == {"s2", "s3", "s4"}
        assert chosen == choose_voices(corpus, "s1", 5, seed)
    assert len({tuple(choose_voices(corpus, "s1", 2, seed)) for seed in range(20)}) > 5
    assert len(choose_voices(corpus, "s3", 99, 0)) == 7, "all there are"
    with pytest.raises(InputError, match="the corpus has 1: give a larger one"):
        choose_voices(utterances(s1=4, s2=1), "s1", 5, 0)
    with pytest.raises(InputError, match="babble needs the speakers' names"):
        choose_voices(corpus, None, 5, 0)
