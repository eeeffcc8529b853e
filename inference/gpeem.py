"""Point-estimate EM with a prior on the gain: code and gain of every frame at their joint mode. Slides S17, S19

As `peem`, but g_n, which S17 leaves free, is drawn from a Gamma density of shape a and rate b,

    g_n ~ Gamma(a, b),   log p(g) = (a - 1) log g - b g + a log b - log Gamma(a)

and the E-step climbs, in z_n and g_n together,

    log p(x_n, z_n, g_n) = log sum_k pi_k p(z_n | k) N_c(x_n; 0, g_n sigma_k(z_n) + (W H)_n) + log p(g_n)

Adam moves u = log g, so that g stays positive, but the mode is that of the density of g itself: no Jacobian log g is
added, and where Adam stops is where d/dg log p(x, z, g) = 0. The M-step then updates W, H and pi alone, which leaves
log p(g) as it is, so that it too climbs the objective.

When to use it: where `peem` makes noise into loud speech: a larger b makes gains dear, and speech quieter. The default
a = b = 1 is an exponential density with mean 1, the level of the training clips.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam

from pyro_avse.inference.mcem import m_step, monte_carlo_wiener, weighted_draws
from pyro_avse.inference.peem import climb
from pyro_avse.inference.run import stop_unless_finite, sum_of_frames, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget, zero_where_idle
from pyro_avse.inference.vem import initial_mixing_weight, update_mixing_weight
from pyro_avse.models.nmf_noise import initial_factors, nmf_noise_variance
from pyro_avse.typing import FrameMask, InputError, Separation, Spectrum, SpeechPrior


@dataclass(frozen=True)
class GPEEM:
    """Settings of point-estimate EM with a Gamma prior on the gain.

    Attributes:
        iterations, steps, learning_rate, rank, mixing_weight, exponent: as in `PEEM`; Adam moves log g_n too.
        gain_shape: a, at least 1: below, the density has no mode but the pole at g = 0.
        gain_rate: b > 0.

    Raises:
        InputError: another shape or rate.
    """

    iterations: int = 100
    steps: int = 10
    learning_rate: float = 0.05
    rank: int = 10
    mixing_weight: tuple[float, ...] | None = None
    gain_shape: float = 1.0
    gain_rate: float = 1.0
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)
        if not (self.gain_shape >= 1 and self.gain_rate > 0):
            raise InputError(
                f"gain_shape is {self.gain_shape}, gain_rate {self.gain_rate}: give a shape of 1 or more, for the "
                "gain's density to have a mode above zero, and a rate above 0"
            )

    @unchecked
    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        seed: int = 0,
    ) -> Separation:
        """Separate x (..., frame, freq); `objective` is log p(x, z, g) after each M-step; `z` is the mode."""
        x = mixture
        power = x.real.square() + x.imag.square()
        rng = torch.Generator(device=x.device).manual_seed(seed)

        W, H = initial_factors(power, self.rank, mask=mask, rng=rng)
        pi = initial_mixing_weight(prior, power, self.mixing_weight)
        start = prior.initial_codes(power, lips)[None]
        y = torch.cat([start, torch.zeros_like(start[..., :1])], -1)  # z and log g = 0
        z, log_g = y[..., :-1], y[0, ..., -1]  # views: they move with y
        v = prior.visual_features(lips)
        collapsed = CollapsedTarget(prior, v, power, nmf_noise_variance(W, H), pi)
        optimiser = Adam([y], lr=self.learning_rate, fused=True, maximize=True)
        objective: list[Tensor] = []

        for iteration in range(self.iterations + 1):
            # E-step: the joint mode, and rho
            before = z.clone()
            climb(GainTarget(collapsed, self.gain_shape, self.gain_rate), y, optimiser, self.steps)
            g = log_g.exp()
            target = replace(collapsed, gain=g)
            sigma, w = weighted_draws(target, z)
            r = w.sum(1)
            if iteration == self.iterations:
                break
            # M-step: S19, the gain as it is
            W, H, _ = m_step(power, sigma, w, W, H, g, self.exponent, False, mask)
            if self.mixing_weight is None:
                pi = update_mixing_weight(r, mask)
            collapsed = replace(
                collapsed, noise_variance=nmf_noise_variance(W, H), mixing_weight=pi
            )
            joint = GainTarget(collapsed, self.gain_shape, self.gain_rate).log_density(y)[0]
            objective.append(sum_of_frames(joint, mask))
            stop_unless_finite(objective, before, "gpeem", "take a smaller learning_rate")

        return Separation(
            speech=monte_carlo_wiener(x, sigma, w, W, H, g),
            responsibilities=r,
            mixing_weight=pi,
            dictionary=W,
            activations=H,
            objective=torch.stack(objective),
            z=z.clone(),
            target=target,
            gain=g,
        )


@dataclass(frozen=True)
class GainTarget:
    """log p(x_n, z_n, g_n) of codes and gains together: y_n = (z_n, log g_n), one number longer than a code.

    The density is that of (z, g), at g = exp(log g): no Jacobian.
    """

    collapsed: CollapsedTarget
    shape: float
    rate: float
    event_dim: int = 1

    def log_density(
        self, y: Float[Tensor, "*batch frame latent_and_gain"]
    ) -> Float[Tensor, "*batch frame"]:
        """For y (chain, ..., frame, latent + 1)."""
        z, log_g = y[..., :-1], y[..., -1]
        a, b, g = self.shape, self.rate, log_g.exp()
        log_prior = (a - 1) * log_g - b * g + a * math.log(b) - math.lgamma(a)
        collapsed = self.collapsed
        log_variance = collapsed.prior.log_variance(z, collapsed.lips)
        log_variance = zero_where_idle(log_variance, collapsed.mixing_weight)
        joint = collapsed.component_prior.log_prob(z)
        joint = joint + collapsed.component_log_likelihood(log_variance, g)
        return torch.logsumexp(joint, dim=0) + log_prior
