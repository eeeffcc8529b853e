"""Draws of W and H, in place of the one that is likeliest. (28); [Bando et al. 2018]; [Févotte and Cemgil 2009]

Each spectrum k and frame n has, before the recording is heard,

    w_kf ~ Gamma(a, a m / m_f)                                 shape and rate
    beta_k ~ Gamma(c, c m / (b K)),   h_nk ~ Gamma(b, beta_k)

m_f is the noise that is always there (`stationary_spectrum`), m its mean over frequencies, so that (W H)_nf is about
m_f at first; a larger b holds noise steadier. Given speech's variance V_s what is heard is x ~ N_c(0, V_s + W H). Two
ways to move W and H leave their posterior as it is:

    `walk`      speech and noise integrated out: one entry of log H after the other takes a random-walk step of its own
                size, all frames at once, then of log W, all frequencies at once
    `explicit`  speech, noise and its K parts drawn: b | x by the Wiener filter, c_k | b with sum_k c_k = b, and then

                    h_nk | c  proportional to  h^(b - 1 - F) exp(-beta h - C / h),   C = sum_f |c_knf|^2 / w_kf

                a generalised inverse Gaussian. An inverse gamma, C / Gamma(F - b), proposes, and exp(-beta (h' - h))
                decides: nearly always yes, as F numbers say what h is and one prior hardly anything

beta has its exact conditional, Gamma(c + N b, c m / (b K) + sum_n h_nk). The second way needs no step size and moves
less: given the parts c a factor is known to 1 / sqrt(F), so it takes many sweeps for noise to find its place
(docs/POSTERIOR.md, "Bayesian noise").
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.metropolis import metropolis_accept
from pyro_avse.inference.nmf import FACTOR_FLOOR, Activations, Dictionary
from pyro_avse.inference.run import sum_of_frames
from pyro_avse.models.nmf_noise import (
    GAIN_SPREAD,
    RESPONSE_SPREAD,
    nmf_noise_variance,
    response_basis,
)
from pyro_avse.typing import FrameMask, Power, Spectrum

TARGET_ACCEPTANCE = 0.44
"""Of a random walk in one dimension."""
RATE_SHAPE = 0.5
"""c."""
Factor = Float[Tensor, "*utterance row rank"]
"""H, or W with its frequencies for rows."""


def log_likelihood(
    power: Power, variance: Power, kept: Float[Tensor, "*utterance 1 column"] | None = None
) -> Float[Tensor, "*utterance row"]:
    """log N_c(x; 0, V) of every row but for its constant, over the columns that `kept` keeps."""
    terms = variance.log() + power / variance
    return -(terms if kept is None else torch.where(kept, terms, 0)).sum(-1)


def walk(
    power: Power,
    speech: Power,
    own: Factor,
    other: Float[Tensor, "*utterance rank column"],
    step_size: Factor,
    shape: float,
    rate: Tensor,
    *,
    kept: Tensor | None = None,
    learning: float = 0.0,
    rng: torch.Generator,
) -> tuple[Factor, Factor]:
    """One step of log own_k for k = 1, 2, ... under V = speech + own @ other; and the step sizes.

    Rows have Gamma(shape, rate) priors, `rate` (..., row | 1, rank | 1). `learning` above 0: step sizes follow the
    acceptance.
    """
    own, step_size = own.clone(), step_size.clone()
    rate = rate.expand(own.shape)
    V = speech + own @ other
    now = log_likelihood(power, V, kept)
    for k in range(own.shape[-1]):
        h, eps = own[..., k], step_size[..., k]
        xi = torch.randn(h.shape, generator=rng, dtype=h.dtype, device=h.device)
        proposed = (h * (eps * xi).exp()).clamp_min(FACTOR_FLOOR)
        # never below speech: what rounding leaves of a difference may be
        V_new = torch.maximum(V + (proposed - h)[..., None] * other[..., None, k, :], speech)
        new = log_likelihood(power, V_new, kept)
        prior = shape * (proposed / h).log() - rate[..., k] * (proposed - h)
        log_ratio = new - now + prior
        accepted = metropolis_accept(log_ratio, rng=rng)
        own[..., k] = torch.where(accepted, proposed, h)
        V, now = torch.where(accepted[..., None], V_new, V), torch.where(accepted, new, now)
        if learning:
            error = log_ratio.clamp_max(0).exp() - TARGET_ACCEPTANCE
            step_size[..., k] = eps * (learning * error).exp()
    return own, step_size


def draw_parts(
    x: Spectrum, speech: Power, W: Dictionary, H: Activations, rng: torch.Generator
) -> Float[Tensor, "rank *utterance frame freq"]:
    """|c_k|^2 of the noise's parts, drawn with speech given x.

    c_k = e_k + v_k / V_b (b - sum_j e_j),   e_k ~ N_c(0, v_k)
    """

    def standard(shape: torch.Size) -> Spectrum:
        return torch.randn(shape, generator=rng, dtype=x.dtype, device=x.device)

    V_b = nmf_noise_variance(W, H)
    G = speech / (speech + V_b)
    b = (1 - G) * x + (G * V_b).sqrt() * standard(x.shape)
    v = torch.stack([H[..., :, k, None] * W[..., None, k, :] for k in range(W.shape[-2])])
    e = v.sqrt() * standard(v.shape)
    return (e + v / V_b * (b - e.sum(0))).abs().square()


def draw_factor(
    own: Factor,
    inverse_rate: Factor,
    count: Tensor | int,
    shape: float,
    rate: Tensor,
    *,
    rng: torch.Generator,
) -> Factor:
    """A factor given the noise's parts, density h^(shape - 1 - count) exp(-rate h - C / h): see above.

    `inverse_rate` is C, `count` how many parts it was summed over. Where those are fewer than the shape, the proposal
    is an inverse gamma of shape 1/2.
    """
    count = torch.as_tensor(count, dtype=own.dtype, device=own.device)
    concentration = (count - shape).clamp_min(0.5)
    gamma = torch._standard_gamma(concentration.expand(own.shape).contiguous(), rng)
    proposed = (inverse_rate / gamma).clamp_min(FACTOR_FLOOR)
    log_ratio = (shape - count + concentration) * (proposed / own).log() - rate * (proposed - own)
    return torch.where(metropolis_accept(log_ratio, rng=rng), proposed, own)


def draw_rate(
    H: Activations,
    shape: float,
    level: Float[Tensor, "*utterance"],
    mask: FrameMask | None,
    *,
    rng: torch.Generator,
) -> Float[Tensor, "*utterance 1 rank"]:
    """beta_k given H's frames; `level` is m."""
    kept = H if mask is None else torch.where(mask[..., None], H, 0)
    frames = H.shape[-2] if mask is None else mask.sum(-1)[..., None, None]
    total = kept.sum(-2, keepdim=True)
    known = RATE_SHAPE + torch.as_tensor(frames, dtype=H.dtype, device=H.device) * shape
    gamma = torch._standard_gamma(known.expand(total.shape).contiguous(), rng)
    return gamma / (RATE_SHAPE * level[..., None, None] / (shape * H.shape[-1]) + total)


def draw_mixing_weight(
    counted: Float[Tensor, "component *utterance frame"],
    informed: FrameMask | None,
    *,
    rng: torch.Generator,
) -> Float[Tensor, "component *utterance"]:
    """pi given alpha: Dirichlet(1 + counts), by the gaps between as many uniform numbers as there are frames.

    (Of N + K - 1 numbers in order the gaps from one to the next but n_k are a Dirichlet of the counts plus one.)
    `counted` is 1 where alpha_n = k, 0 elsewhere.
    """
    kept = counted if informed is None else torch.where(informed, counted, 0)
    n = kept.sum(-1).long()  # (component, ...)
    K, frames = len(n), counted.shape[-1]
    u = torch.rand(
        (*n.shape[1:], frames + K - 1), generator=rng, dtype=counted.dtype, device=n.device
    )
    beyond = torch.arange(frames + K - 1, device=n.device) >= (n.sum(0) + K - 1)[..., None]
    u = torch.where(beyond, torch.inf, u).sort(-1).values
    at = (n + 1).cumsum(0)[:-1].movedim(0, -1) - 1
    edges = u.gather(-1, at)
    ends = torch.zeros_like(u[..., :1]), torch.ones_like(u[..., :1])
    return torch.cat([ends[0], edges, ends[1]], -1).diff(dim=-1).movedim(-1, 0)


@dataclass(frozen=True)
class LevelTarget:
    """log p(x | u) + log p(u) of u = (log g, a_1, ...), all of a recording's frames together: models/nmf_noise.py."""

    power: Power
    speech_variance: Power
    """At g = c = 1."""
    noise_variance: Power
    mask: FrameMask | None
    event_dim: int = 1

    def log_density(
        self, u: Float[Tensor, "1 *utterance 1 term"]
    ) -> Float[Tensor, "1 *utterance 1"]:
        """For u with one frame, which stands for all."""
        basis = response_basis(u.shape[-1] - 1, self.power.shape[-1], self.power)
        V = self.speech_variance * (u @ basis).exp() + self.noise_variance
        frames = log_likelihood(self.power, V)
        spread = torch.full_like(u, RESPONSE_SPREAD)
        spread[..., 0] = GAIN_SPREAD
        prior = -0.5 * (u / spread).square().sum(-1)
        return prior + sum_of_frames(frames, self.mask)[..., None]
