"""Noise before it is heard: a program wide enough to draw from, for guides that are to know all kinds. (28)

`NoiseModel` (models/nmf_noise.py) is what is assumed when noise is *fitted*: narrow, so that speech is left alone. A
guide for noisy speech is trained on noise that is *drawn*, and must have heard the like of what it will meet. No
recording is in it, but the papers' form is: b_n ~ N_c(0, diag (W H)_n). For each of K sources of a recording

    level    l_k ~ N(0, 8^2) dB
    W        log w_kf = t_k octaves(f) + sum_j a_kj cos(pi j mel(f)) + e_kf,   a_kj ~ N(0, (4 / (1 + j/4))^2) dB
             t_k ~ U(-10, 3) dB an octave, e_kf ~ N(0, u_k^2), u_k ~ U(0, 3) dB     a smooth spectrum, rough in detail
             or, by `kind`, a rumble: -18 dB an octave from a cutoff of 30 to 400 Hz upwards
             or lines at multiples of a pitch of 40 to 2000 Hz, falling by 0 to 2 dB a line: hum, motors, squeaks
    H        log h_kn = s_k o_kn + bursts     o an autoregression with a memory of 1 to 300 frames, s_k ~ U(0, 8) dB
             bursts: in some sources, begun at a rate of 0.2 to 5 a second, 10 to 40 dB over the rest,
             gone by half in 15 to 700 ms

A quarter of the recordings are steady, as rain, a fan or a tape's hiss are: one broadband source, U(-4, 4) dB an
octave, its a_kj half as large, a fifth of the swing, no bursts. All of these together would be rare otherwise, and a
guide that never heard the like takes it for amplified pause.

Under all of them lies a background that never ends, 10 to 40 dB fainter, tilted by -6 to 0 dB an octave: between lines
and over a rumble a recording is never empty. Beside them there may be voices: sums of speech of other speakers, which
the caller gives (`with_voices`). The recording's SNR is drawn by the caller too; a source's level is relative to the
others'. Guides hear it as sound: enhancement/sounded.py.
"""

import math
from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import Bernoulli, Categorical, Normal, Uniform
from torch import Tensor

from pyro_avse.distributions import ComplexNormal, squared_magnitude
from pyro_avse.models.nmf_noise import nmf_noise_variance, response_basis
from pyro_avse.typing import Power, Spectrum

SOURCES, TERMS = 5, 24
DECIBEL = math.log(10) / 10
"""In nats of power."""
NYQUIST = 8000.0
"""Hz of the last frequency."""
KINDS = (0.6, 0.15, 0.25)
"""How often a source is broadband, a rumble, or lines."""
STEADY = 0.25
"""The share of recordings with one source that hardly changes."""


@dataclass(frozen=True)
class DrawnNoise:
    """What the program drew, of unit mean power over frames and frequencies."""

    noise: Spectrum
    """b, (utterance, frame, freq) complex."""
    variance: Power
    """W H, and what the voices have, smoothed over five frames."""


def drawn_noise(
    num_frames: int,
    num_freqs: int,
    *,
    utterances: int = 1,
    frames_per_second: float = 30.0,
    device: torch.device | str = "cpu",
) -> DrawnNoise:
    """The program above, for several recordings at once, without voices."""
    hertz = torch.linspace(0, NYQUIST, num_freqs, device=device)
    unit = torch.ones((), device=device)
    with pyro.plate("utterance", utterances, dim=-2):
        steady = pyro.sample("steady", Bernoulli(STEADY * unit).expand([utterances, 1])) > 0
        with pyro.plate("source", SOURCES, dim=-1):
            level = pyro.sample("level", Normal(0 * unit, 8.0))
            kind = pyro.sample("kind", Categorical(torch.tensor(KINDS, device=device)))
            log_w = _spectra(torch.where(steady, 0, kind), hertz, unit, steady)
            log_h = _activations(num_frames, frames_per_second, unit, steady)
    first = torch.arange(SOURCES, device=device) == 0
    level = torch.where(steady & ~first, -100, level)
    W = (DECIBEL * (level[..., None] + log_w)).exp()
    W = W / W.mean(-1, keepdim=True) * (DECIBEL * level[..., None]).exp()
    H = (DECIBEL * log_h).exp()
    H = H / H.mean(-1, keepdim=True)
    variance = nmf_noise_variance(W, H.mT)
    variance = variance / variance.mean((-2, -1), keepdim=True)
    variance = variance + _background(utterances, hertz, unit)
    variance = variance / variance.mean((-2, -1), keepdim=True)
    with pyro.plate("recording", utterances, dim=-2), pyro.plate("frame", num_frames, dim=-1):
        b = pyro.sample("b", ComplexNormal(0, variance.log()).to_event(1))  # (28)
    return DrawnNoise(b, variance)


def with_voices(drawn: DrawnNoise, voices: Spectrum) -> DrawnNoise:
    """The same with the summed speech of others (utterance, frame, freq), at any level, 0 where there is none; they are
    heard from 20 dB under the rest to 20 dB over it.
    """
    unit = drawn.variance.new_ones(())
    with pyro.plate("babble", len(voices)):
        over = pyro.sample("babble_level", Uniform(-20 * unit, 20 * unit))
    power = squared_magnitude(voices)
    loud = power.mean((-2, -1), keepdim=True)
    gain = (DECIBEL * over[:, None, None]).exp() / loud.clamp_min(1e-12)
    total = 1 + gain * loud
    return DrawnNoise(
        (drawn.noise + gain.sqrt() * voices) * total.rsqrt(),
        (drawn.variance + gain * _smooth(power)) / total,
    )


def _background(utterances: int, hertz: Tensor, unit: Tensor) -> Tensor:
    """Its spectrum, (utterance, 1, freq)."""
    with pyro.plate("under", utterances):
        level = pyro.sample("background", Uniform(-40 * unit, -10 * unit))
        tilt = pyro.sample("background_tilt", Uniform(-6 * unit, 0 * unit))
    spectrum = (DECIBEL * tilt[:, None] * torch.log2(hertz.clamp_min(60) / 500)).exp()
    level = (DECIBEL * level[:, None]).exp()
    return (level * spectrum / spectrum.mean(-1, keepdim=True))[:, None]


def _spectra(kind: Tensor, hertz: Tensor, unit: Tensor, steady: Tensor) -> Tensor:
    """log w_kf in dB, (utterance, source, freq), inside the plates of both."""
    octaves = torch.log2(hertz.clamp_min(60) / 500)
    basis = response_basis(TERMS, len(hertz), hertz)[1:]
    spread = 4 / (1 + torch.arange(TERMS, device=hertz.device) / 4)
    tilt = pyro.sample("tilt", Uniform(-10 * unit, 3 * unit))
    a = pyro.sample("a", Normal(torch.zeros_like(spread), spread).to_event(1))
    rough = pyro.sample("rough", Uniform(0 * unit, 3 * unit))
    e = pyro.sample("e", Normal(torch.zeros_like(hertz), unit).to_event(1))
    tilt = torch.where(steady, (tilt + 3.5) * 8 / 13, tilt)
    a = torch.where(steady[..., None], a / 2, a)
    smooth = tilt[..., None] * octaves + a @ basis + rough[..., None] * e

    cutoff = (
        math.log(30) + pyro.sample("cutoff", Uniform(0 * unit, unit)) * math.log(400 / 30)
    ).exp()
    over = torch.log2((hertz / cutoff[..., None]).clamp_min(1.0))
    rumble = -18 * over + 0.3 * smooth

    pitch = (math.log(40) + pyro.sample("pitch", Uniform(0 * unit, unit)) * math.log(50)).exp()
    fall = pyro.sample("fall", Uniform(0 * unit, 2 * unit))
    number = hertz / pitch[..., None]
    line = number.round().clamp_min(1)
    width = hertz[1] - hertz[0]
    away = (number - line) * pitch[..., None] / width  # bins from the nearest line
    lines = (-4.3 * away.square()).clamp_min(-60) - fall[..., None] * line + 0.3 * (a @ basis)
    return torch.where(
        (kind == 0)[..., None], smooth, torch.where((kind == 1)[..., None], rumble, lines)
    )


def _activations(num_frames: int, frames_per_second: float, unit: Tensor, steady: Tensor) -> Tensor:
    """log h_kn in dB, (utterance, source, frame), inside the plates of both."""
    memory = pyro.sample("memory", Uniform(0 * unit, math.log(300) * unit)).exp()
    swing = pyro.sample("swing", Uniform(0 * unit, 8 * unit)) * torch.where(steady, 0.2, 1.0)
    steps = pyro.sample("o", Normal(torch.zeros(num_frames, device=unit.device), unit).to_event(1))
    keep = torch.exp(-1 / memory)
    log_h, o = [], steps[..., 0]
    for n in range(num_frames):
        o = steps[..., 0] if n == 0 else keep * o + (1 - keep.square()).sqrt() * steps[..., n]
        log_h.append(swing * o)
    bursty = pyro.sample("bursty", Bernoulli(0.4 * unit)) * ~steady
    rate = 0.2 * pyro.sample("rate", Uniform(0 * unit, unit)).mul(math.log(25)).exp()
    size = pyro.sample("size", Uniform(10 * unit, 40 * unit))
    half = 0.015 * pyro.sample("half", Uniform(0 * unit, unit)).mul(math.log(0.7 / 0.015)).exp()
    share = (rate / frames_per_second).clamp_max(1)[..., None].expand(steps.shape)
    begins = pyro.sample("begins", Bernoulli(share).to_event(1))
    decay = 0.5 ** (1 / (half * frames_per_second))
    heard, burst = torch.zeros_like(rate), []
    for n in range(num_frames):
        heard = torch.maximum(decay * heard, begins[..., n])
        burst.append(heard)
    power = (DECIBEL * size[..., None]).exp() * torch.stack(burst, -1)
    return torch.stack(log_h, -1) + bursty[..., None] * torch.log1p(power) / DECIBEL


def _smooth(power: Power, reach: int = 2) -> Power:
    """The mean over `reach` frames on either side."""
    padded = torch.nn.functional.pad(power.mT, (reach, reach), mode="replicate")
    return (
        torch.nn.functional.avg_pool1d(padded.flatten(0, -2)[None], 2 * reach + 1, 1)[0]
        .reshape(power.mT.shape)
        .mT
    )
