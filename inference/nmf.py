"""Multiplicative updates of Itakura-Saito NMF: the M-step of the noise model. [Sadeghi2021] (42), (43)

They lower the cost  sum_fn V_fn / (W H)_fn + log (W H)_fn,  that is, raise (41), in which V is the expected noise
power. For each factor the cost is majorised by phi h_old^2 / h + psi h. Exponent 1/2 steps to the minimum of that
bound, exponent 1 (the paper's) to its other point of equal height: neither ever raises the cost, provided that W H is
computed anew between W and H. From a stale W H, exponent 1 oscillates.

Time runs down: W is (rank, freq), H (frame, rank), W H is H @ W.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.models.nmf_noise import nmf_noise_variance
from pyro_avse.typing import FrameMask, Power

Dictionary = Float[Tensor, "*utterance rank freq"]
Activations = Float[Tensor, "*utterance frame rank"]

FACTOR_FLOOR = 1e-12
"""Factors stay above this: at zero a multiplicative update could never raise them again."""


def is_nmf_cost(
    V: Power, W: Dictionary, H: Activations, mask: FrameMask | None = None
) -> Float[Tensor, "*utterance"]:
    """sum_fn V / (W H) + log (W H): the Itakura-Saito divergence of V from W H up to terms in V alone."""
    WH = nmf_noise_variance(W, H)
    return _keep(V / WH + WH.log(), mask).sum((-2, -1))


def is_nmf_update_H(V: Power, W: Dictionary, H: Activations, *, exponent: float) -> Activations:
    """H <- H * [W^T (V (W H)^-2) / W^T (W H)^-1]^exponent. [Sadeghi2021] (42)"""
    WH = nmf_noise_variance(W, H)
    up = (V / WH.square()) @ W.mT
    down = WH.reciprocal() @ W.mT
    return (H * (up / down).pow(exponent)).clamp_min(FACTOR_FLOOR)


def is_nmf_update_W(
    V: Power,
    W: Dictionary,
    H: Activations,
    *,
    exponent: float,
    mask: FrameMask | None = None,
) -> Dictionary:
    """W <- W * [(V (W H)^-2) H^T / (W H)^-1 H^T]^exponent, over the frames that `mask` keeps. [Sadeghi2021] (43)"""
    WH = nmf_noise_variance(W, H)
    up = H.mT @ _keep(V / WH.square(), mask)
    down = H.mT @ _keep(WH.reciprocal(), mask)
    return (W * (up / down).pow(exponent)).clamp_min(FACTOR_FLOOR)


def normalise(W: Dictionary, H: Activations) -> tuple[Dictionary, Activations]:
    """W's spectra scaled to sum to one, H to make up for it: W H stays as it is."""
    scale = W.sum(-1)
    return W / scale[..., None], H * scale[..., None, :]


def _keep(x: Power, mask: FrameMask | None) -> Power:
    return x if mask is None else torch.where(mask[..., None], x, 0)
