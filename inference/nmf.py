"""Multiplicative updates of Itakura-Saito NMF: the M-step of the noise model, and where it starts. (42), (43)

They lower the cost  sum_fn V_fn / (W H)_fn + log (W H)_fn,  that is, raise (41), in which V is the expected noise
power. For each factor the cost is majorised by phi h_old^2 / h + psi h. Exponent 1/2 steps to the minimum of that
bound, exponent 1 (the paper's) to its other point of equal height: neither ever raises the cost, provided that W H is
computed anew between W and H. From a stale W H, exponent 1 oscillates.

Under a prior on H (`NoiseModel`, lambda > 0) the bound gains lambda (h_n / h_n-1 + h_n-1 / h_n - 2) for each step, and
its minimum in one h_kn, its neighbours held, is

    h_kn^2 = (phi_kn h_old^2 + lambda (h_k,n-1 + h_k,n+1)) / (psi_kn + lambda (1 / h_k,n-1 + 1 / h_k,n+1))

Frames with odd numbers have neighbours with even ones, so that half of H moves at a time (`smooth_activations`).

Time runs down: W is (rank, freq), H (frame, rank), W H is H @ W.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from pyro_avse.models.nmf_noise import VARIANCE_FLOOR, NoiseModel, nmf_noise_variance
from pyro_avse.typing import FrameMask, Power

Dictionary = Float[Tensor, "*utterance rank freq"]
Activations = Float[Tensor, "*utterance frame rank"]

SWEEPS = 6
"""Over the even and the odd frames, in an update of H under a prior: each lowers the bound, more come nearer to its
minimum."""
FACTOR_FLOOR = 1e-12
"""Factors stay above this: at zero a multiplicative update could never raise them again."""


def is_nmf_cost(
    V: Power, W: Dictionary, H: Activations, mask: FrameMask | None = None
) -> Float[Tensor, "*utterance"]:
    """sum_fn V / (W H) + log (W H): the Itakura-Saito divergence of V from W H up to terms in V alone."""
    WH = nmf_noise_variance(W, H)
    return _keep(V / WH + WH.log(), mask).sum((-2, -1))


def is_nmf_update_H(
    V: Power,
    W: Dictionary,
    H: Activations,
    *,
    exponent: float,
    smoothness: float = 0.0,
    mask: FrameMask | None = None,
) -> Activations:
    """H <- H * [W^T (V (W H)^-2) / W^T (W H)^-1]^exponent. [Sadeghi2021] (42); smooth along the frames of `mask`."""
    WH = nmf_noise_variance(W, H)
    up = (V / WH.square()) @ W.mT
    down = WH.reciprocal() @ W.mT
    return update_activations(up, down, H, exponent, smoothness, mask)


def update_activations(
    up: Activations,
    down: Activations,
    H: Activations,
    exponent: float,
    smoothness: float,
    mask: FrameMask | None,
) -> Activations:
    """H <- H * [up / down]^exponent; under a prior, which has no exponent, its update."""
    if smoothness:
        return smooth_activations(up * H.square(), down, H, smoothness, mask)
    return (H * (up / down).pow(exponent)).clamp_min(FACTOR_FLOOR)


def smooth_activations(
    phi: Activations, psi: Activations, H: Activations, smoothness: float, mask: FrameMask | None
) -> Activations:
    """Lower sum_n phi_n / h_n + psi_n h_n + lambda (h_n / h_n-1 + h_n-1 / h_n), exactly in the even or the odd frames
    at a time. A step to or from padding costs nothing.
    """
    frames = H.shape[-2]
    link = torch.full_like(H[..., :1], smoothness)  # from the frame before
    link[..., 0, :] = 0
    if mask is not None:
        link[..., 1:, :] *= (mask[..., 1:] & mask[..., :-1])[..., None]
    link = pad(link, (0, 0, 0, 1))
    h = pad(H, (0, 0, 1, 1), value=1.0)
    halves = [(slice(k, frames, 2), slice(k + 1, frames + 1, 2)) for k in (0, 1) if k < frames]
    for _ in range(SWEEPS):
        for own, after in halves:
            last, coming = h[..., own, :], h[..., after.start + 1 : frames + 2 : 2, :]
            before_weight, after_weight = link[..., own, :], link[..., after, :]
            up = phi[..., own, :] + before_weight * last + after_weight * coming
            down = psi[..., own, :] + before_weight / last + after_weight / coming
            h[..., after, :] = (up / down).sqrt().clamp_min(FACTOR_FLOOR)
    return h[..., 1:-1, :].clone()


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


def initial_factors(
    power: Power,
    noise: NoiseModel,
    *,
    mask: FrameMask | None = None,
    rng: torch.Generator,
) -> tuple[Float[Tensor, "*utterance rank freq"], Float[Tensor, "*utterance frame rank"]]:
    """W and H at random, W's spectra summing to 1.

    W H is on average as loud as the mixture, `mixture_level`. (The papers draw both from [0, 1], which is that only for
    recordings of one level. From a start far too quiet the noise model never grows: the first E-step has by then
    explained the mixture as speech. From one far too loud, as this one is at frequencies where there is little noise,
    it takes weak speech.) Where its `start` is no mixture it is, at every frequency, on average as loud as the noise
    that is always there, `stationary_spectrum`; and where it is smooth H starts the same in every frame.
    """
    *utterances, frames, freqs = power.shape
    rank = noise.rank
    W = power.new_empty(*utterances, rank, freqs).uniform_(generator=rng)
    if noise.smoothness:
        H = power.new_full((*utterances, frames, rank), 0.5)
    else:
        H = power.new_empty(*utterances, frames, rank).uniform_(generator=rng)
    if noise.start != "mixture":  # a product of two numbers, each 1/2 on average
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
