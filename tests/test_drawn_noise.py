"""The noise program that guides are trained on, and the forward run of the test-time program. (28), (31)"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pytest
import soundfile
import torch
from torch import Tensor, nn

from pyro_avse.models.drawn_noise import DrawnNoise, drawn_noise, with_voices
from pyro_avse.models.noise_floor import LOG_QUANTILE, follow_floor, steady_floor
from pyro_avse.models.noisy_speech import noisy_speech

FREQS = 65


def conditioned(frames: int = 40, **sites: Tensor) -> Tensor:
    """W H of recordings whose sample sites are held at these values."""
    program = pyro.condition(drawn_noise, data=sites)
    return program(frames, FREQS, utterances=3).variance


def test_a_recordings_variance_is_one_on_average_and_its_noise_has_that_variance() -> None:
    """b ~ N_c(0, W H): |b|^2 / W H is exponential. z over 4.5 has false alarms of 7e-6; without sources it fails."""
    drawn = drawn_noise(60, FREQS, utterances=20)
    assert torch.allclose(drawn.variance.mean((-2, -1)), torch.ones(20), atol=1e-5)

    def z_score(ratio: Tensor) -> float:
        return float((ratio.mean() - 1).abs() * ratio.numel() ** 0.5)

    ratio = drawn.noise.abs().square() / drawn.variance
    assert z_score(ratio) < 4.5
    assert abs(float((ratio > 1).float().mean()) - np.exp(-1)) < 0.01
    assert z_score(drawn.noise.abs().square() / drawn.variance.roll(1, 0)) > 4.5


def test_the_same_seed_draws_the_same_noise_and_another_seed_another() -> None:
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(drawn_noise(10, FREQS).noise)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_a_rumble_falls_above_its_cutoff_and_lines_lie_at_multiples_of_the_pitch() -> None:
    of_kind = {k: torch.full((3, 5), k) for k in (1, 2)}
    quiet = {"swing": torch.zeros(3, 5), "bursty": torch.zeros(3, 5), "rough": torch.zeros(3, 5)}
    quiet["steady"] = torch.zeros(3, 1)
    quiet["background"] = torch.full((3,), -400.0)
    smooth = {"a": torch.zeros(3, 5, 24), "tilt": torch.zeros(3, 5), "e": torch.zeros(3, 5, FREQS)}
    rumble = conditioned(kind=of_kind[1], cutoff=torch.full((3, 5), 0.5), **quiet, **smooth)
    octave = 10 * (rumble[..., 16] / rumble[..., 32]).log10()  # 2000 against 4000 Hz
    assert torch.allclose(octave, torch.tensor(18.0), atol=0.5)
    # a pitch of 1000 Hz: 40 * 50 ** u
    u = torch.full((3, 5), float(np.log(25) / np.log(50)))
    lines = conditioned(kind=of_kind[2], pitch=u, fall=torch.zeros(3, 5), **quiet, **smooth)
    on, between = lines[..., 8::8], lines[..., 12::8]
    assert (on[..., : between.shape[-1]] > 1e3 * between).all()


def test_steady_noise_is_broad_and_hardly_changes() -> None:
    """Whatever its sources would be: 3 dB from frame to frame, and at most 4 dB an octave from 500 to 4000 Hz."""
    flat = {"a": torch.zeros(3, 5, 24), "rough": torch.zeros(3, 5), "memory": torch.zeros(3, 5)}
    flat |= {"swing": torch.full((3, 5), 8.0), "bursty": torch.ones(3, 5)}
    drawn = {
        steady: conditioned(steady=torch.full((3, 1), steady), **flat) for steady in (0.0, 1.0)
    }

    def swings(variance: Tensor) -> float:
        return float((10 * variance.sum(-1).log10()).std(-1).max())

    assert swings(drawn[1.0]) < 3 < swings(drawn[0.0])
    slope = 10 * (drawn[1.0][..., 32] / drawn[1.0][..., 4]).log10()
    assert slope.abs().max() < 3 * 4.1


def test_activations_go_from_still_to_bursty() -> None:
    quiet = {"swing": torch.zeros(3, 5), "bursty": torch.zeros(3, 5)}
    still = conditioned(**quiet).sum(-1)
    assert torch.allclose(still, still[:, :1].expand_as(still), rtol=1e-3)
    begins = torch.zeros(3, 5, 40)
    begins[..., 10] = 1
    burst = conditioned(
        swing=torch.zeros(3, 5),
        bursty=torch.ones(3, 5),
        steady=torch.zeros(3, 1),
        begins=begins,
        size=torch.full((3, 5), 20.0),
        background=torch.full((3,), -400.0),
    ).sum(-1)
    assert torch.allclose(burst[:, 10] / burst[:, 0], torch.tensor(101.0), rtol=1e-2)
    assert (burst[:, 11:].diff() <= 0).all()
    assert torch.allclose(burst[:, :10], burst[:, :1].expand(-1, 10), rtol=1e-3)


def test_voices_are_heard_as_loud_as_drawn_and_silence_adds_nothing() -> None:
    voices = torch.randn(3, 40, FREQS, dtype=torch.complex64)
    voices[2] = 0
    level = {"babble_level": torch.tensor([0.0, 20.0, 20.0])}
    alone = drawn_noise(40, FREQS, utterances=3)
    babble: DrawnNoise = pyro.condition(with_voices, data=level)(alone, voices)
    assert torch.equal(babble.noise[2], alone.noise[2])
    assert torch.equal(babble.variance[2], alone.variance[2])
    for u, ratio in ((0, 1.0), (1, 100.0)):
        rest = alone.noise[u] / (1 + ratio) ** 0.5
        heard = (babble.noise[u] - rest).abs().square().mean()
        assert heard == pytest.approx(ratio / (1 + ratio), rel=1e-3)


def test_noisy_speech_runs_forwards(small_prior: Callable[..., nn.Module]) -> None:
    """x = s + b of a prior and W H: E|x|^2 is sigma(z) + W H, and without the noise it is not."""
    prior = small_prior("a_vae")
    frames = 4000
    W_H = torch.full((frames, 7), 2.0, dtype=torch.float64)
    trace = pyro.poutine.trace(noisy_speech).get_trace(prior, None, None, W_H)
    x, z = trace.nodes["x"]["value"], trace.nodes["z"]["value"]
    assert x.shape == (frames, 7)
    speech = prior.log_variance(z, None)[0].exp()
    ratio = (x.abs().square() / (speech + W_H)).mean(0)
    assert (ratio - 1).abs().max() * frames**0.5 < 4.5
    without = (x.abs().square() / speech).mean(0)
    assert (without - 1).abs().max() * frames**0.5 > 4.5


def test_both_floors_find_the_variance_of_steady_noise() -> None:
    """Of exponentials: the quantile of all frames at once, the causal one once it has arrived."""
    variance = torch.tensor([0.01, 1.0, 100.0])
    log_power = (variance * torch.empty(4000, 3).exponential_()).log()
    steady = steady_floor(log_power)
    assert torch.allclose(steady, variance.log()[None], atol=0.15)
    followed, last = follow_floor(log_power, variance.log() + LOG_QUANTILE)
    assert (followed[500:].mean(0) - variance.log()).abs().max() < 0.4
    halves = follow_floor(log_power[:1000], variance.log() + LOG_QUANTILE)
    rest, again = follow_floor(log_power[1000:], halves[1])
    assert torch.equal(torch.cat([halves[0], rest]), followed)
    assert torch.equal(again, last)


def test_padding_has_no_say_in_the_floor() -> None:
    log_power = torch.randn(2, 30, 5)
    mask = torch.arange(30) < torch.tensor([[30], [17]])
    floor = steady_floor(log_power, mask)
    for u, length in enumerate((30, 17)):
        assert torch.equal(floor[u], steady_floor(log_power[u, :length]))


def test_noise_can_be_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pyro-avse data draw-noise`: as many sounds as asked for, and with speech the mixtures at their SNR."""
    from pyro_avse.cli.data import draw_noise

    clean = np.sin(np.arange(16000) / 10).astype(np.float32)
    soundfile.write(tmp_path / "clean.wav", 0.5 * clean, 16000, subtype="FLOAT")
    voice = [tmp_path / "clean.wav"]
    draw_noise(tmp_path / "out", count=2, speech=voice[0], snr=10.0, voices=voice, seed=5)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "mixture_1.wav",
        "mixture_2.wav",
        "noise_1.wav",
        "noise_2.wav",
    ]
    assert "4 sounds" in capsys.readouterr().err
    noise, rate = soundfile.read(tmp_path / "out" / "noise_1.wav")
    mixture, _ = soundfile.read(tmp_path / "out" / "mixture_1.wav")
    assert rate == 16000
    assert len(noise) == len(clean)
    basis = np.stack([clean, noise], 1)
    weights, rest = np.linalg.lstsq(basis, mixture, rcond=None)[:2]
    assert rest[0] < 1e-9
    ratio = np.mean((weights[0] * clean) ** 2) / np.mean((weights[1] * noise) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.01)
