"""Noise of unknown kind: non-negative matrix factorisation of its variance. [Sadeghi2021] (28); slides S16

    b_n ~ N_c(0, diag (W H)_n),   (W H)_fn = sum_k w_fk h_kn >= 0

W holds `rank` spectra, H how loud each is in every frame. Nothing is trained: both are fitted to the noisy recording
itself. Time runs down here, so W is (rank, freq), H (frame, rank) and the product is H @ W.
"""

import math
from dataclasses import dataclass
from typing import Literal

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.distributions import ComplexNormal
from pyro_avse.typing import FrameMask, Power

VARIANCE_FLOOR = 1e-12
"""No noise variance is below this (|STFT|^2, peak 1): 16-bit rounding alone is 5e-8."""


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


@dataclass(frozen=True)
class NoiseModel:
    """What is assumed of the noise, and of speech's level, before the recording is seen.

    Attributes:
        rank: spectra in W.
        gain: what g_n of (S17) is: one number a "frame", or 1 ("none").
        stationary: W H starts as the noise that is always there, `stationary_spectrum`; else as loud as the mixture.
    """

    rank: int = 10
    gain: Literal["frame", "none"] = "frame"
    stationary: bool = False


def initial_factors(
    power: Power,
    noise: NoiseModel,
    *,
    mask: FrameMask | None = None,
    rng: torch.Generator,
) -> tuple[Float[Tensor, "*utterance rank freq"], Float[Tensor, "*utterance frame rank"]]:
    """W and H at random, W's spectra summing to 1, W H on average as loud as the mixture, `mixture_level`.

    The papers draw both from [0, 1], which is that only for recordings of one level. From a start far too quiet the
    noise model never grows: the first E-step has by then explained the mixture as speech. From one far too loud, as
    this one is at frequencies where there is little noise, it takes weak speech. With `stationary` W H is, at every
    frequency, on average as loud as the noise that is always there, `stationary_spectrum`.
    """
    *utterances, frames, freqs = power.shape
    rank = noise.rank
    W = power.new_empty(*utterances, rank, freqs).uniform_(generator=rng)
    H = power.new_empty(*utterances, frames, rank).uniform_(generator=rng)
    if noise.stationary:  # a product of two uniform numbers is 1/4 on average
        W = W * (stationary_spectrum(power, mask)[..., None, :] / (0.25 * rank))
        H = H * W.sum(-1)[..., None, :]
    else:
        H = H * (mixture_level(power, mask)[..., None, None] * freqs / (0.5 * rank))
    return W / W.sum(-1, keepdim=True), H


def mixture_level(power: Power, mask: FrameMask | None = None) -> Float[Tensor, "*utterance"]:
    """Mean power of a coefficient. Padding sets no level."""
    if mask is None:
        return power.mean((-2, -1))
    return torch.where(mask[..., None], power, 0).mean(-1).sum(-1) / mask.sum(-1)


def stationary_spectrum(
    power: Power, mask: FrameMask | None = None
) -> Float[Tensor, "*utterance freq"]:
    """The variance of noise that is always there, from the quiet frames of every frequency [Martin 2001].

    Of stationary Gaussian noise |x|^2 is exponential, and the quantile below which a share q of the frames lies is
    -log(1 - q) times its variance. q is 1/5: so often, speech is silent or elsewhere. Where those frames are digital
    silence, the mixture's mean less 30 dB: a factor that starts at zero never grows.
    """
    kept = torch.ones_like(power[..., :1]).bool() if mask is None else mask[..., None]
    frames = kept.sum(-2, keepdim=True)
    quietest_first = torch.where(kept, power, torch.inf).sort(dim=-2).values
    quantile = quietest_first.take_along_dim(frames // 5, dim=-2) / -math.log(1 - 1 / 5)
    mean = torch.where(kept, power, 0).sum(-2, keepdim=True) / frames
    return torch.maximum(quantile, 1e-3 * mean).clamp_min(VARIANCE_FLOOR)[..., 0, :]
