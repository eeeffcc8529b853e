"""Elliptical slice sampling: exact, with nothing to tune. [Murray, Adams and MacKay 2010]

For a target N(z; m, C) L(z), the Gaussian prior of (36) times a likelihood, nu ~ N(0, C) spans an ellipse through z,

    z'(theta) = m + (z - m) cos theta + nu sin theta

and a level log y = log L(z) + log u, u ~ U(0, 1), a slice of it. theta is drawn from U(0, 2 pi), then from a bracket
that shrinks to 0, where z is, past every theta that falls below the level. The first that does not is the new state.

When to use it: to have no step size to choose; it takes long steps where the prior rules. All frames shrink in step, so
that a step costs `max_shrinks` likelihoods whatever happens, with no question to the device about who is done.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import require
from pyro_avse.typing import Info, State, Target


@dataclass(frozen=True)
class EllipticalSlice:
    """At most `max_shrinks` angles a step; a frame that none of them suits keeps its state, which is exact too.

    (A path of k rejected angles is as likely backwards as forwards, for every k.) Needs `gaussian` and
    `log_likelihood` of the target, and raises InputError where there is no Gaussian. NaN is below every level.
    """

    max_shrinks: int = 15

    def __post_init__(self) -> None:
        check_settings(self, max_shrinks=1)

    def init(self, target: Target, z: Tensor) -> State:
        """The chain at z (chain, ..., frame, latent)."""
        require(target, "gaussian", kernel="elliptical_slice")
        return State(z, target.log_density(z))

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        """One ellipse for every chain and frame."""
        prior = require(target, "gaussian", kernel="elliptical_slice")
        log_likelihood = require(target, "log_likelihood", kernel="elliptical_slice")

        def uniform() -> Tensor:
            like = state.log_density
            return torch.rand(like.shape, generator=rng, dtype=like.dtype, device=like.device)

        z, old = state.z, state.z - prior.mean
        noise = torch.randn(z.shape, generator=rng, dtype=z.dtype, device=z.device)
        nu = prior.stddev * noise
        log_L = state.log_density - prior.log_prob(state.z)
        level = log_L + torch.log(uniform())

        theta = 2 * math.pi * uniform()
        low, high = theta - 2 * math.pi, theta
        found = torch.zeros_like(level, dtype=torch.bool)
        for _ in range(self.max_shrinks):
            angle = theta.reshape(*theta.shape, *[1] * target.event_dim)
            proposal = prior.mean + old * torch.cos(angle) + nu * torch.sin(angle)
            log_L_new = log_likelihood(proposal)
            hit = ~found & (log_L_new > level)
            mask = hit.reshape(angle.shape)
            z, log_L = torch.where(mask, proposal, z), torch.where(hit, log_L_new, log_L)
            found = found | hit
            low, high = torch.where(theta < 0, theta, low), torch.where(theta < 0, high, theta)
            theta = low + (high - low) * uniform()
        log_density = torch.where(found, prior.log_prob(z) + log_L, state.log_density)
        return State(z, log_density), Info(found)
