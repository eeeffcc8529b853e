"""The M-step of Monte Carlo EM, under the prior of the noise and of speech's level. Slides S18, S19

    Q = sum_rk w_rk log p(x | z_r, k) + log p(W, H, g, c),   V_rk = g c sigma_k(z_r) + W H

is raised in H, W, g and c in turn, V computed anew between them. Where a factor has no prior the update is S19's, to a
power in (0, 1]: with 1/2 it steps to the minimum of a majoriser of -Q, beyond it goes on to where the majoriser is no
higher than before at 1; so Q never falls. Under a prior the update is the minimum of the same majoriser with the
prior's term added: in H as in `nmf`, and in log g and log c_f = sum_j a_j cos(pi j mel(f)) of

    sum_f up_f exp(-d_f) + down_f exp(d_f) + 1/2 sum_j (a_j + delta_j)^2 / s_j^2,   d_f = sum_j delta_j cos(pi j mel(f))

    up_f = sum_n |x|^2 sum_rk w g c sigma V^-2,   down_f = sum_n sum_rk w g c sigma V^-1

which is convex in delta: Newton's steps, halved until they lower it (`mcem_update_level`).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.nmf import (
    FACTOR_FLOOR,
    Activations,
    Dictionary,
    normalise,
    update_activations,
)
from pyro_avse.inference.run import sum_of_frames
from pyro_avse.inference.wiener import Draws, Gain, Weights, average
from pyro_avse.models.nmf_noise import (
    GAIN_SPREAD,
    RESPONSE_SPREAD,
    NoiseModel,
    nmf_noise_variance,
    response_basis,
)
from pyro_avse.typing import FrameMask, Power

GAIN_FLOOR = 1e-6
"""A gain stays above this, -60 dB: at zero a multiplicative update could never raise it again."""
NEWTON, HALVINGS = 2, 4
"""Steps of `mcem_update_level`, and how often each may be halved."""
Response = Float[Tensor, "*utterance term"]
"""a_1, a_2, ... of log c_f."""


def m_step(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    response: Response | None,
    noise: NoiseModel,
    exponent: float,
    mask: FrameMask | None,
) -> tuple[Dictionary, Activations, Gain, Response | None]:
    """One update each of H, W and, if they are learned, g and a; W's rows then sum to one. Slides S19

    `sigma` is c_f sigma_k(z_r), with c of `response`, a_1, a_2, ..., as it is before; None: c is 1.
    """
    H = mcem_update_H(
        power, sigma, weights, W, H, gain, exponent=exponent, smoothness=noise.smoothness, mask=mask
    )
    W = mcem_update_W(power, sigma, weights, W, H, gain, exponent=exponent, mask=mask)
    W, H = normalise(W, H)
    if noise.gain == "frame":
        gain = mcem_update_gain(power, sigma, weights, W, H, gain, exponent=exponent)
    if noise.gain == "recording":
        gain, response = mcem_update_level(power, sigma, weights, W, H, gain, response, mask=mask)
    return W, H, gain, response


def mcem_update_H(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    *,
    exponent: float = 0.5,
    smoothness: float = 0.0,
    mask: FrameMask | None = None,
) -> Activations:
    """H <- H * [W^T (|x|^2 sum_rk w V^-2) / W^T (sum_rk w V^-1)]^exponent. S19; smooth along the frames of `mask`"""
    up, down = _ratio_terms(power, sigma, weights, W, H, gain)
    return update_activations(up @ W.mT, down @ W.mT, H, exponent, smoothness, mask)


def mcem_update_W(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    *,
    exponent: float = 0.5,
    mask: FrameMask | None = None,
) -> Dictionary:
    """W <- W * [(|x|^2 sum_rk w V^-2) H^T / (sum_rk w V^-1) H^T]^exponent, over the frames that `mask` keeps. S19"""
    up, down = _ratio_terms(power, sigma, weights, W, H, gain)
    if mask is not None:
        up, down = (torch.where(mask[..., None], t, 0) for t in (up, down))
    return (W * ((H.mT @ up) / (H.mT @ down)).pow(exponent)).clamp_min(FACTOR_FLOOR)


def mcem_update_gain(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    *,
    exponent: float = 0.5,
    others: Draws | None = None,
) -> Gain:
    """g_n <- g_n * [sum_f |x|^2 sum_rk w sigma V^-2 / sum_f sum_rk w sigma V^-1]^exponent. Slides S19

    `others`: what else V has, the other speakers' variance.
    """
    V = _mixture_variance(sigma, W, H, gain)
    inverse = (V if others is None else V + others).reciprocal()
    share = sigma * inverse
    down = average(share, weights).sum(-1)
    up = (power * average(share.mul_(inverse), weights)).sum(-1)
    return (gain * (up / down).pow(exponent)).clamp_min(GAIN_FLOOR)


def mcem_update_level(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    response: Response | None,
    *,
    mask: FrameMask | None = None,
    others: Draws | None = None,
) -> tuple[Gain, Response | None]:
    """One gain for the recording, and the terms of its microphone's response, under their priors: see above.

    With a flat prior and no response g moves by sqrt(sum_f up / sum_f down), S19's step for all frames together.
    `others`: what else V has, the other speakers' variance.
    """
    speech = gain[..., None] * sigma
    V = speech + nmf_noise_variance(W, H)
    inverse = (V if others is None else V + others).reciprocal_()
    share = speech.mul_(inverse)
    down, up = average(share, weights), power * average(share * inverse, weights)
    down, up = (
        sum_of_frames(t.mT, None if mask is None else mask[..., None, :]) for t in (down, up)
    )
    a = gain[..., :1].log()
    if response is not None:
        a = torch.cat([a, response], -1)
    basis = response_basis(a.shape[-1] - 1, power.shape[-1], power)
    spread = torch.full_like(a[..., :1, :] if a.dim() > 1 else a, RESPONSE_SPREAD)
    spread[..., 0] = GAIN_SPREAD
    precision = spread.square().reciprocal()

    def bound(delta: Tensor) -> Tensor:
        d = delta @ basis
        return (up * torch.exp(-d) + down * d.exp()).sum(-1) + 0.5 * (
            precision * (a + delta).square()
        ).sum(-1)

    delta = torch.zeros_like(a)
    halved = 0.5 ** torch.arange(HALVINGS, dtype=a.dtype, device=a.device)
    halved = torch.cat([halved, halved.new_zeros(1)])  # in the end no step at all
    for _ in range(NEWTON):
        e = (delta @ basis).exp()
        slope = (down * e - up / e) @ basis.mT + precision * (a + delta)
        bend = (basis * (down * e + up / e)[..., None, :]) @ basis.mT
        bend = bend + torch.diag_embed(precision.expand_as(a))
        step = torch.linalg.solve_ex(bend, slope[..., None])[0][..., 0]
        tried = delta - halved.reshape(-1, *[1] * a.dim()) * step
        best = bound(tried).argmin(0)
        delta = tried.gather(0, best[None, ..., None].expand(1, *a.shape))[0]
    a = a + delta
    gain = a[..., :1].exp().clamp_min(GAIN_FLOOR).expand_as(gain)
    return gain, None if response is None else a[..., 1:]


def monte_carlo_q(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    mask: FrameMask | None = None,
) -> Float[Tensor, "*utterance"]:
    """sum_n sum_rk w_rk sum_f -log V - |x|^2 / V: Q of S18 but for terms without W, H and g."""
    V = _mixture_variance(sigma, W, H, gain)
    frames = -(weights * (V.log() + power / V).sum(-1)).sum((0, 1))
    return sum_of_frames(frames, mask)


def _mixture_variance(sigma: Draws, W: Dictionary, H: Activations, gain: Gain) -> Draws:
    """V_rk = g_n sigma_k(z_r) + (W H)_n."""
    return gain[..., None] * sigma + nmf_noise_variance(W, H)


def _ratio_terms(
    power: Power, sigma: Draws, weights: Weights, W: Dictionary, H: Activations, gain: Gain
) -> tuple[Power, Power]:
    """|x|^2 sum_rk w V^-2 and sum_rk w V^-1: minus and plus the parts of -dQ/d(W H)."""
    inverse = _mixture_variance(sigma, W, H, gain).reciprocal_()
    down = average(inverse, weights)
    return power * average(inverse.square_(), weights), down
