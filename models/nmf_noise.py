"""Noise of unknown kind: non-negative matrix factorisation of its variance, and what is assumed of it.

[Sadeghi2021] (28); slides S16

    b_n ~ N_c(0, diag (W H)_n),   (W H)_fn = sum_k w_fk h_kn >= 0

W holds `rank` spectra, H how loud each is in every frame. Nothing is trained: both are fitted to the noisy recording
itself. Free as they are in the papers, they also fit what the speech prior cannot say of speech. So they have a prior
(`NoiseModel`): before the recording is seen, for each spectrum k and frame n,

    w_k ~ Dirichlet(1, ..., 1)                                       a spectrum, its scale left to H
    log h_kn = log h_k,n-1 + d_kn,   p(d) ~ exp(-2 lambda (cosh d - 1))                              `LogStep`
    log g ~ N(0, s_0^2),   log c_f = sum_j a_j cos(pi j mel(f)),   a_j ~ N(0, s_1^2)

Noise thus goes on as it was: a step of d nats costs lambda d^2 while it is small, and more than any Gaussian's where
it is large. The first h_k1 may be anything. Beside it stands what the recording does to speech: its variance is
g c_f sigma_f(z), g one gain for the recording and c_f the response of its microphone, each close to that of training.
That is narrow on purpose: it is what noise is *fitted* with. The program that noise is *drawn* from, to train guides
that are to know all kinds, is as wide as can be: models/drawn_noise.py. Time runs down here, so W is (rank, freq),
H (frame, rank) and the product is H @ W.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Dirichlet, Normal
from torch import Tensor

from pyro_avse.distributions import ComplexNormal, LogStep
from pyro_avse.typing import FrameMask, InputError, Power

VARIANCE_FLOOR = 1e-12
"""No noise variance is below this (|STFT|^2): 16-bit rounding of a peak of 1 alone is 5e-8."""
GAIN_SPREAD = 2.3
"""s_0: 10 dB, in nats of power."""
RESPONSE_SPREAD = 0.3
"""s_1, of each term of the microphone's response: 1.3 dB."""


@dataclass(frozen=True)
class NoiseModel:
    """What is assumed of the noise, and of speech's level, before the recording is seen: (28), (S17).

    Attributes:
        rank: spectra in W.
        smoothness: lambda; 0: activations are free from frame to frame.
        gain: what g of (S17) is: one number for the "recording", one a "frame" without a prior, or 1 ("none").
        response: terms a_j of the microphone's response; they need a gain of the recording.
        start: of W H: the noise that is always there, `stationary_spectrum`; as loud as the "mixture"; or the noise
            that a "guide" hears, which changes with time (without a guide: stationary).

    Raises:
        InputError: a count or a weight below its least, a response without a gain of the recording.
    """

    rank: int = 8
    smoothness: float = 10.0
    gain: Literal["recording", "frame", "none"] = "recording"
    response: int = 4
    start: Literal["stationary", "mixture", "guide"] = "stationary"

    def __post_init__(self) -> None:
        if not self.rank >= 1:
            raise InputError(f"NoiseModel: rank is {self.rank}: give 1 or more")
        if not 0 <= self.smoothness < math.inf:
            raise InputError(f"NoiseModel: smoothness is {self.smoothness}: give 0 or more")
        if self.gain not in ("recording", "frame", "none"):
            raise InputError(f"NoiseModel: gain is {self.gain!r}: take recording, frame or none")
        if self.start not in ("stationary", "mixture", "guide"):
            raise InputError(
                f"NoiseModel: start is {self.start!r}: take stationary, mixture or guide"
            )
        if not self.response >= 0:
            raise InputError(f"NoiseModel: response is {self.response}: give 0 or more")
        if self.response and self.gain != "recording":
            raise InputError(
                f"NoiseModel: response is {self.response} with a gain of {self.gain!r}: a microphone's response "
                'needs gain="recording", or give 0'
            )

    @classmethod
    def paper(cls, rank: int = 10) -> "NoiseModel":
        """The papers': bare NMF, a gain a frame, nothing with a prior."""
        return cls(rank, smoothness=0.0, gain="frame", response=0, start="mixture")


NOISE_MODELS = {"smooth": NoiseModel(), "paper": NoiseModel.paper()}
"""By name: ours, and the papers'."""


def noise_prior(noise: NoiseModel, num_frames: int, num_freqs: int, level: float = 1.0) -> Tensor:
    """The program above: W, H, g and c as sample sites, W H returned, (frame, freq).

    `level` is the median of the first activations, whose logarithm here has a spread of 3 nats in place of none.
    Raises InputError where the model leaves the activations free: there is nothing to draw them from.
    """
    if not noise.smoothness:
        raise InputError("NoiseModel: smoothness is 0: free activations cannot be drawn, give more")
    with pyro.plate("spectrum", noise.rank):
        W = pyro.sample("W", Dirichlet(torch.ones(num_freqs)))
        first = pyro.sample("log_h_1", Normal(math.log(level), 3.0))
        with pyro.plate("step", num_frames - 1):
            d = pyro.sample("d", LogStep(torch.tensor(noise.smoothness)))
    if noise.gain == "recording":
        pyro.sample("log_g", Normal(0.0, GAIN_SPREAD))
    if noise.response:
        spread = torch.full((noise.response,), RESPONSE_SPREAD)
        pyro.sample("a", Normal(0.0, spread).to_event(1))
    H = torch.cat([first[None], first + d.cumsum(0)]).exp()
    return nmf_noise_variance(W, H)


def log_prior(
    noise: NoiseModel,
    activations: Float[Tensor, "*utterance frame rank"],
    gain: Float[Tensor, "*utterance frame"] | None = None,
    response: Float[Tensor, "*utterance term"] | None = None,
    mask: FrameMask | None = None,
) -> Float[Tensor, "*utterance"]:
    """log p(W, H, g, c) up to a constant: what the M-step adds to its objective. Steps to padding are left out.

    Of the gain and the response where they are given.
    """
    total = activations.new_zeros(activations.shape[:-2])
    if noise.smoothness:
        r = activations[..., 1:, :] / activations[..., :-1, :]
        steps = (r + 1 / r - 2).sum(-1)
        if mask is not None:
            steps = torch.where(mask[..., 1:] & mask[..., :-1], steps, 0)
        total = total - noise.smoothness * steps.sum(-1)
    if noise.gain == "recording" and gain is not None:
        total = total - 0.5 * (gain[..., 0].log() / GAIN_SPREAD).square()
    if response is not None:
        total = total - 0.5 * (response / RESPONSE_SPREAD).square().sum(-1)
    return total


def response_basis(terms: int, num_freqs: int, like: Tensor) -> Float[Tensor, "term freq"]:
    """cos(pi j mel(f)), j = 0, ..., terms, with mel from 0 at 0 Hz to 1 at 8 kHz: row 0 is the gain's, all ones."""
    return _basis(terms, num_freqs, like.dtype, like.device)


@lru_cache
def _basis(terms: int, num_freqs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    hertz = torch.linspace(0, 8000, num_freqs, dtype=dtype, device=device)
    mel = torch.log1p(hertz / 700)
    j = torch.arange(terms + 1, dtype=dtype, device=device)
    return torch.cos(math.pi * j[:, None] * mel / mel[-1])


def nmf_noise_variance(
    dictionary: Float[Tensor, "*utterance rank freq"],
    activations: Float[Tensor, "*utterance frame rank"],
) -> Power:
    """(W H)_fn of (28) and S16, floored, in |STFT|^2."""
    W, H = dictionary, activations
    return (H @ W).clamp_min(VARIANCE_FLOOR)


def nmf_noise(
    dictionary: Float[Tensor, "rank freq"], activations: Float[Tensor, "frame rank"]
) -> Tensor:
    """The program b_n ~ N_c(0, diag (W H)_n) of (28): (frame, freq) complex."""
    variance = nmf_noise_variance(dictionary, activations)
    with pyro.plate("frame", len(variance)):
        return pyro.sample("b", ComplexNormal(0, variance.log()).to_event(1))
