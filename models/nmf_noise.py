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
from pyro_avse.typing import Power

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
    power: Power, rank: int, *, rng: torch.Generator
) -> tuple[Float[Tensor, "*utterance rank freq"], Float[Tensor, "*utterance frame rank"]]:
    """W and H uniform on [0, 1], as the papers start them, W's spectra scaled to sum to 1."""
    *utterances, frames, freqs = power.shape
    like = {"dtype": power.dtype, "device": power.device, "generator": rng}
    W = torch.rand(*utterances, rank, freqs, **like)  # type: ignore[arg-type]
    H = torch.rand(*utterances, frames, rank, **like)  # type: ignore[arg-type]
    return W / W.sum(-1, keepdim=True), H
