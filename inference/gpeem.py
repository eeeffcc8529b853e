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
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.em import Observation
from pyro_avse.inference.monte_carlo import Drawn, posterior, separation, weighted_draws
from pyro_avse.inference.peem import PEEM, PEEMState, climb
from pyro_avse.inference.run import unchecked
from pyro_avse.inference.target import CollapsedTarget, zero_where_idle
from pyro_avse.typing import InputError, Separation


@dataclass(frozen=True, kw_only=True)
class GPEEMState(PEEMState):
    """The joint mode: `z` and `gain` are read off `y`."""

    y: Float[Tensor, "1 *utterance frame latent_and_gain"]
    """z and log g, which Adam moves."""


@dataclass(frozen=True)
class GPEEM(PEEM):
    """Settings of point-estimate EM with a Gamma prior on the gain; `objective` is log p(x, z, g).

    Attributes:
        iterations, steps, learning_rate, noise, mixing_weight, exponent: as in `PEEM`; Adam moves log g_n too, and
            `noise.gain` is not looked at.
        gain_shape: a, at least 1: below, the density has no mode but the pole at g = 0.
        gain_rate: b > 0.

    Raises:
        InputError: another shape or rate.
    """

    name: ClassVar[str] = "gpeem"
    gain_shape: float = 1.0
    gain_rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise.gain != "none":  # its gains are moved with z, and have a prior of their own
            object.__setattr__(self, "noise", replace(self.noise, gain="none", response=0))
        if not (self.gain_shape >= 1 and self.gain_rate > 0):
            raise InputError(
                f"gain_shape is {self.gain_shape}, gain_rate {self.gain_rate}: give a shape of 1 or more, for the "
                "gain's density to have a mode above zero, and a rate above 0"
            )

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> GPEEMState:
        """At the encoder's code, as loud as in training."""
        state = super().init(observation, rng=rng)
        y = torch.cat([state.z, torch.zeros_like(state.z[..., :1])], -1)  # log g = 0
        return GPEEMState(**vars(state), y=y)

    def e_step(  # type: ignore[override]
        self, observation: Observation, state: GPEEMState
    ) -> tuple[GPEEMState, Drawn]:
        """The joint mode, and rho there."""
        y, target = state.y.clone(), self.joint(observation, state)
        adam = climb(target, y, self.steps, self.learning_rate, state.adam)
        z, g = y[..., :-1].clone(), y[0, ..., -1].exp()
        collapsed = replace(target.collapsed, gain=g)
        sigma, w = weighted_draws(collapsed, z)
        state = replace(state, y=y, z=z, gain=g, adam=adam, responsibilities=w.sum(1))
        return state, Drawn(collapsed, sigma, w)

    def log_joint(self, observation: Observation, state: GPEEMState) -> Tensor:  # type: ignore[override]
        """log p(x_n, z_n, g_n)."""
        return self.joint(observation, state).frames_log_density(state.y)[0]

    def joint(self, observation: Observation, state: GPEEMState) -> "GainTarget":
        """p(x, z, g) at the present W, H and pi, of y."""
        collapsed = replace(posterior(observation, state), gain=None)
        return GainTarget(collapsed, self.gain_shape, self.gain_rate)

    @unchecked
    def finish(  # type: ignore[override]
        self, observation: Observation, state: GPEEMState, *, rng: torch.Generator
    ) -> Separation:
        """S20 at the mode of a last E-step."""
        state, drawn = self.e_step(observation, state)
        return replace(separation(self, observation, state, drawn), gain=state.gain)


@dataclass(frozen=True)
class GainTarget:
    """log p(x_n, z_n, g_n) of codes and gains together: y_n = (z_n, log g_n), one number longer than a code.

    The density is that of (z, g), at g = exp(log g): no Jacobian.
    """

    collapsed: CollapsedTarget
    shape: float
    rate: float

    @property
    def event_dim(self) -> int:
        return self.collapsed.event_dim

    def log_density(
        self, y: Float[Tensor, "*batch frame latent_and_gain"]
    ) -> Float[Tensor, "*batch frame"]:
        """For y (chain, ..., frame, latent + 1)."""
        return self.collapsed.of_event(self.frames_log_density(y))

    def frames_log_density(
        self, y: Float[Tensor, "*batch frame latent_and_gain"]
    ) -> Float[Tensor, "*batch frame"]:
        """Every frame's part of it."""
        z, log_g = y[..., :-1], y[..., -1]
        a, b, g = self.shape, self.rate, log_g.exp()
        log_prior = (a - 1) * log_g - b * g + a * math.log(b) - math.lgamma(a)
        collapsed = self.collapsed
        log_variance = collapsed.prior.log_variance(z, collapsed.lips)
        log_variance = zero_where_idle(log_variance, collapsed.mixing_weight)
        joint = collapsed.component_log_prior(z)
        joint = joint + collapsed.component_log_likelihood(log_variance, g)
        return torch.logsumexp(joint, dim=0) + log_prior
