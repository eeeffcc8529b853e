"""What comes off before inference: offset, clicks, rumble; the level; and low speech on its way back."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_avse import Enhancer, enhance
from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.media.audio import Audio, audio_from_array, load_audio
from pyro_avse.data.media.level import CREST, level_of_moments, moments, speech_level
from pyro_avse.data.noise import babble, mix_at_snr, take_noise
from pyro_avse.enhancement import front
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.inference import SCHEMES
from pyro_avse.metrics import _si_sdr as si_sdr
from pyro_avse.models.heard import HeardThrough
from pyro_avse.models.noise_floor import FAINTEST, log_heard
from pyro_avse.stft import STFT
from pyro_avse.weights.checkpoint import load_prior

RATE = 16000


def sound(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Noise of speech's band that comes and goes."""
    rng, time = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    hertz = np.fft.rfftfreq(len(time), 1 / RATE)
    spectrum *= (hertz > 150) & (hertz < 3000)
    return np.fft.irfft(spectrum, len(time)) * np.sin(2 * np.pi * 2 * time) ** 2


def decibels(power: float) -> float:
    return float(10 * np.log10(power))


def test_the_parts_sum_to_the_recording() -> None:
    """offset + clicks + low + level heard, exactly; without clicks, the offset is the mean."""
    x = sound() + 0.3 + 0.2 * np.sin(2 * np.pi * 30 * np.arange(2 * RATE) / RATE)
    parts = front.split(x, 0.7)
    np.testing.assert_allclose(parts.restore(parts.heard, parts.low), x - x.mean(), atol=1e-12)
    hum = np.sin(2 * np.pi * 30 * np.arange(2 * RATE) / RATE)
    assert abs(parts.low @ hum / (hum @ hum) - 0.2) < 0.01
    assert abs(parts.heard @ hum) < 0.01 * abs(parts.low @ hum)


@pytest.mark.parametrize("at", [0, 1, 700, 16000, 2 * RATE - 1])
@pytest.mark.parametrize("height", [3.0, -10.0])
def test_one_click_is_taken_off_wherever_it_is(at: int, height: float) -> None:
    """What stands in its place is near what was there, and no other sample changes."""
    x = sound()
    x /= np.abs(x).max()
    clicked = x.copy()
    clicked[at] += height
    mended = front.without_clicks(clicked, 1.0)
    changed = np.flatnonzero(mended != x)
    assert len(changed) <= 6
    assert np.abs(changed - at).max() <= 4
    assert np.abs(mended - x).max() < 0.5


def test_what_is_no_click_stays() -> None:
    """Noise, an onset, a square wave and speech-like sound come through sample by sample."""
    rng = np.random.default_rng(0)
    onset = np.concatenate([np.zeros(8000), rng.standard_normal(8000)])
    square = np.sign(np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE + 0.1))
    for x in (rng.standard_normal(RATE), sound(), onset, square):
        assert np.array_equal(front.without_clicks(x, 1.0), x)


def test_clean_speech_has_no_clicks(shared_data: Callable[[str], Path]) -> None:
    """Of 100 sentences and 100 commands one at most loses a sample."""
    changed = 0
    for corpus in ("grid", "commands"):
        for clip in find_utterances(shared_data(corpus), "train")[:100]:
            x = load_audio(clip.audio).waveform.astype(np.float64)
            changed += not np.array_equal(front.without_clicks(x, speech_level(x)), x)
    assert changed <= 1


def test_the_level_is_speechs_own() -> None:
    """One click, a rumble 20 dB above speech, an offset or more silence hardly move it; a scale moves it by itself."""
    x = sound(4.0)
    level, time = speech_level(x), np.arange(len(x)) / RATE
    rumble = 10 * np.sqrt(2 * np.mean(x**2)) * np.sin(2 * np.pi * 25 * time)
    clicked = x.copy()
    clicked[9000] = 10 * np.abs(x).max()
    half = np.concatenate([x, np.zeros_like(x)])
    for changed, most in ((x + rumble, 0.2), (clicked, 0.4), (x + 1.0, 0.2), (half, 0.6)):
        assert abs(decibels((speech_level(changed) / level) ** 2)) < most
    assert speech_level(7 * x) == pytest.approx(7 * level)
    assert level_of_moments(moments(x)) == level
    assert speech_level(np.zeros(RATE)) == 0
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time)
    assert speech_level(tone) == pytest.approx(CREST * 0.5 / 2**0.5, rel=0.05)


def test_the_prior_is_told_of_the_filter(small_prior: Callable[..., torch.nn.Module]) -> None:
    """`log_response` is what the filter does to sines; `HeardThrough` adds it to the log-variance, to nothing else."""
    response = front.log_response(513)
    for k in (2, 4, 8, 64):  # 31, 62.5, 125 and 1000 Hz
        x = np.sin(2 * np.pi * k * RATE / 1024 * np.arange(4 * RATE) / RATE)
        middle = slice(RATE, 3 * RATE)
        heard = front.split(x, 1.0).heard[middle]
        found = np.log(np.mean(heard**2) / np.mean(x[middle] ** 2))
        assert found == pytest.approx(response[k], abs=0.05)
    assert response.min() == front.DEEPEST

    prior = small_prior("min_vae_v2").double()
    through = HeardThrough(prior, torch.linspace(-3, 0, 7, dtype=torch.float64))
    z = torch.randn(2, 3, 2, dtype=torch.float64)
    added = through.log_variance(z, None) - prior.log_variance(z, None)
    torch.testing.assert_close(
        added, torch.linspace(-3, 0, 7, dtype=torch.float64).expand_as(added)
    )
    assert through.num_components == 2
    assert through.components_see == prior.components_see
    with pytest.raises(AttributeError):
        through.no_such_thing  # noqa: B018


def test_powers_divide_as_by_quadrature() -> None:
    """E[s / (s + n) | s + n] of two log-normal powers against a plain sum over s."""
    total, spread_s, spread_n = -3.0, 8.0, 12.0
    for s0, n0 in ((-10.0, -20.0), (-20.0, -10.0), (5.0, 5.0)):
        share, p, s, n = front.division(total, s0, spread_s, n0, spread_n)
        np.testing.assert_allclose(10 ** (s / 10) + 10 ** (n / 10), 10 ** (total / 10))
        np.testing.assert_allclose(10 ** ((s - total) / 10), share)
        p_share = float(p @ share)
        f = np.linspace(1e-6, 1 - 1e-6, 2_000_001)
        s, n = total + 10 * np.log10(f), total + 10 * np.log10(1 - f)
        p = np.exp(-0.5 * (((s - s0) / spread_s) ** 2 + ((n - n0) / spread_n) ** 2)) / (f * (1 - f))
        assert p_share == pytest.approx(float((p * f).sum() / p.sum()), abs=2e-3)


def test_low_speech_comes_back_as_noise_falls() -> None:
    """Its share rises without a jump from near 0 to near 1 as the noise above goes from 20 dB over speech to 60 under.

    The speech above is what a Wiener filter finds that knows speech and noise.
    """
    x, time, stft = sound(3.0), np.arange(3 * RATE) / RATE, STFT()
    x /= np.abs(x).max()
    low = 0.1 * np.std(x) * np.sin(2 * np.pi * 40 * time)  # 20 dB under speech
    noise = np.random.default_rng(1).standard_normal(len(x)) * np.std(x)
    speech_power, noise_power = (
        stft.analyse(torch.from_numpy(part.astype(np.float32))).abs().square()
        for part in (x, noise)
    )
    shares = []
    for snr in range(-20, 61, 4):
        parts = front.split(x + low + noise * 10 ** (-snr / 20), 1.0)
        G = speech_power / (speech_power + 10 ** (-snr / 10) * noise_power.mean(0))
        heard = stft.analyse(torch.from_numpy(parts.heard.astype(np.float32)))
        found = stft.synthesise(G * heard, len(x)).numpy().astype(np.float64)
        back = front.low_speech(parts, found, stft)
        shares.append(float(back @ parts.low / (parts.low @ parts.low)))
    steps = np.diff(shares)
    assert shares[0] < 0.3
    assert shares[-1] > 0.9
    assert (steps > -0.02).all()
    assert steps.max() < 0.25
    assert (front.low_speech(front.split(x, 1.0), 0 * x, stft) == 0).all()


@pytest.mark.parametrize("error", [1e-3, 0.03, 1.0, 100.0])
@pytest.mark.parametrize("p", [[0.7, 0.3], [0.3, 0.7], [0.1, 0.9]])
def test_the_log_error_is_nearly_as_small_as_can_be(error: float, p: list[float]) -> None:
    """Against all constant gains: within 0.03 nats, 0.13 dB. A small error asks for a decision."""
    gains, power = np.array([[0.02], [0.97]]), np.array([1.0])

    def loss(gain: np.ndarray) -> np.ndarray:
        own = (1 - gain[:, None]) ** 2 * gains[:, 0] + gain[:, None] ** 2 * (1 - gains[:, 0])
        return np.log(error + own) @ np.array(p)

    found = front.best_gain(gains, np.array(p), power, error)
    assert loss(found)[0] < loss(np.linspace(0, 1, 1001)).min() + 0.03
    if error < 0.01:
        assert abs(found[0] - gains[np.argmax(p), 0]) < 0.02


def test_breath_comes_back_beside_a_rumble_above_it() -> None:
    """15 Hz as loud as breath in clean recordings, 45 Hz as loud as a tram's: the first is speech's, not the second."""
    x, time = sound(3.0), np.arange(3 * RATE) / RATE
    x /= np.abs(x).max()
    breath = 0.2 * np.std(x) * np.sin(2 * np.pi * 15 * time)
    rumble = 0.6 * np.std(x) * np.sin(2 * np.pi * 45 * time)
    noise = np.random.default_rng(1).standard_normal(len(x)) * np.std(x)
    back = front.low_speech(front.split(x + breath + rumble + noise, 1.0), x, STFT())
    assert back @ breath / (breath @ breath) > 0.7
    assert abs(back @ rumble) / (rumble @ rumble) < 0.25


def test_level_offset_shift_and_a_click_do_not_matter(shared_data: Callable[[str], Path]) -> None:
    """The default on a noisy clip that is scaled, shifted, offset or clicked: mean SI-SDR within 0.5 dB, away from it.

    Three clips of three speakers in a kitchen, in babble and in white noise at 5 dB.
    """
    clips = find_utterances(shared_data("grid"), "valid")
    clips = [next(c for c in clips if c.speaker == s) for s in ("s1", "s4", "s26")]
    kitchen = load_audio(shared_data("noise/kitchen.flac")).waveform
    prior, stft = load_prior("a_vae")
    enhancer = Enhancer(prior, SCHEMES["ldem"](), stft=stft, device="cpu")
    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = {}
    for clip, kind in zip(clips, ("kitchen", "babble", "white"), strict=True):
        clean = load_audio(clip.audio).waveform
        voices = [load_audio(c.audio).waveform for c in clips]
        noise = {
            "kitchen": lambda n: take_noise(kitchen, n, rng)[0],
            "babble": lambda n, v=voices: babble(v, n, [0, 9000, 20000]),
            "white": lambda n: rng.standard_normal(n).astype(np.float32),
        }[kind](len(clean))
        mixture, _ = mix_at_snr(clean, noise, 5.0)
        mixture = (mixture / np.abs(mixture).max()).astype(np.float32)
        clicked = mixture.copy()
        clicked[20000] = 10
        cases = {
            "as it is": mixture,
            "shifted": mixture[217:],
            "quiet": mixture * np.float32(1e-3),
            "loud": mixture * np.float32(300),
            "offset 0.1": mixture + np.float32(0.1),
            "offset 1": mixture + np.float32(1),
            "click": clicked,
        }
        away = np.r_[0:19000, 21000 : len(clean)]
        for name, waveform in cases.items():
            speech = enhancer(waveform).speech
            reference = clean[217:] if name == "shifted" else clean
            if name == "shifted":
                speech, reference = np.pad(speech, (217, 0)), np.pad(reference, (217, 0))
            scores.setdefault(name, []).append(si_sdr(speech[away], reference[away]))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    for name, mean in means.items():
        assert mean == pytest.approx(means["as it is"], abs=0.5), (name, means)


def test_audio_keeps_what_came(tmp_path: Path) -> None:
    """Level and original are the recording's."""
    x = sound().astype(np.float32)
    audio = audio_from_array(x + 0.25, RATE)
    assert isinstance(audio, Audio)
    np.testing.assert_allclose(audio.original, x + 0.25)


def test_a_guide_hears_what_is_below_the_filter_from_above_it() -> None:
    """As a draw of the program has it: flat noise through `log_response`, to 0.1 dB; the rest as it is."""
    power = torch.full((2, 513), 3e3)
    power[:, :5] = 1e6  # a leak
    heard = log_heard(power) - math.log(3e3)
    response = torch.as_tensor(front.log_response(513))
    assert (heard[:, :5] - (response[:5] - response[5:10])).abs().max() < 0.02
    assert heard[:, 5:].abs().max() < 1e-5
    small = torch.rand(4, 9)
    assert torch.equal(log_heard(small), (small + FAINTEST).log())


def test_loud_steady_noise_is_not_speech() -> None:
    """The bundled guide is not told by the window's leak that loud white noise is speech that is 28 dB too loud."""
    clean = load_audio(CLIPS / "talker.flac").waveform.astype(np.float64)
    noise = np.random.default_rng(0).standard_normal(len(clean))
    noise *= clean.std() / noise.std() * 10**0.5
    found = enhance(clean + noise, sample_rate=16000, model="min_vae_v2").speech
    assert si_sdr(found, clean) > 0
