"""Noise of unknown kind: non-negative matrix factorisation of its variance. [Sadeghi2021] (28); slides S16

    b_n ~ N_c(0, diag (W H)_n),   (W H)_fn = sum_k w_fk h_kn >= 0

W holds `rank` spectra, H how loud each is in every frame. Nothing is trained: both are fitted to the noisy recording
itself. Time runs down here, so W is (rank, freq), H (frame, rank) and the product is H @ W.
"""

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


def initial_factors(
    power: Power, rank: int, *, mask: FrameMask | None = None, rng: torch.Generator
) -> tuple[Float[Tensor, "*utterance rank freq"], Float[Tensor, "*utterance frame rank"]]:
    """W and H uniform at random, W's spectra summing to 1, W H on average as loud as the mixture.

    The papers draw both from [0, 1], which is that only for recordings of one level. From a start far too quiet the
    noise model never grows: the first E-step has by then explained the mixture as speech. Padding sets no level.
    """
    if mask is None:
        level = power.mean((-2, -1))
    else:
        level = torch.where(mask[..., None], power, 0).mean(-1).sum(-1) / mask.sum(-1)
    *utterances, frames, freqs = power.shape
    W = power.new_empty(*utterances, rank, freqs).uniform_(generator=rng)
    H = power.new_empty(*utterances, frames, rank).uniform_(generator=rng)
    W = W / W.sum(-1, keepdim=True)
    return W, H * (level[..., None, None] * freqs / (0.5 * rank))
