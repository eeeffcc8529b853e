"""Hamiltonian Monte Carlo: long moves along the contours of the density. [Neal 2011]

A momentum p ~ N(0, I) is drawn, and (z, p) follows Hamilton's equations of the energy

    E(z, p) = -log p(z) + |p|^2 / 2

by `steps` leapfrog steps of size eps, each  p += eps/2 grad;  z += eps p;  p += eps/2 grad.  Leapfrog preserves volume
and runs backwards by flipping p, so the end is accepted with probability min(1, exp(E_start - E_end)).

When to use it: for well-mixed draws. A step costs `steps` gradients, and brings more than as many steps of random_walk
or mala, best where eps * `steps` is two to three posterior standard deviations; at six, on a Gaussian, a trajectory
comes back to where it began. Acceptance and divergence are per frame and chain: a bad frame spoils no other.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.adaptation import of_every_code
from pyro_avse.inference.gradient import GradientState, gradient_state, squared_norm
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.settings import check_settings
from pyro_avse.typing import Codes, Info, StepSize, Target

DIVERGENT = 1000.0
"""An energy error above this, or NaN, tells of a step size too large for the curvature: a divergence."""


@dataclass(frozen=True)
class HMC:
    """Trajectories of `steps` leapfrog steps of size `step_size`, unit mass."""

    step_size: StepSize = 0.05
    steps: int = 5
    target_acceptance: ClassVar[float] = 0.8

    def __post_init__(self) -> None:
        check_settings(self, steps=1)

    def init(self, target: Target, z: Tensor) -> GradientState:
        """The chain at z (chain, ..., frame, latent), with its score."""
        return gradient_state(target, z)

    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        """One trajectory for every chain and frame, its end accepted each on its own."""
        z = state.z
        momentum = torch.randn(z.shape, generator=rng, dtype=z.dtype, device=z.device)
        step_size = of_every_code(self.step_size, target)
        end, end_momentum = leapfrog(target, state, momentum, step_size, self.steps)
        rise = energy(target, end, end_momentum) - energy(target, state, momentum)
        new, info = accept_or_reject(state, end, -rise, rng=rng)
        return new, replace(info, diverging=rise.isnan() | (rise > DIVERGENT))


def leapfrog(
    target: Target, state: GradientState, momentum: Codes, step_size: StepSize, steps: int
) -> tuple[GradientState, Codes]:
    """`steps` leapfrog steps of Hamilton's equations from (z, p)."""
    for _ in range(steps):
        momentum = momentum + 0.5 * step_size * state.gradient
        state = gradient_state(target, state.z + step_size * momentum)
        momentum = momentum + 0.5 * step_size * state.gradient
    return state, momentum


def energy(target: Target, state: GradientState, momentum: Codes) -> Float[Tensor, "*batch frame"]:
    """-log p(z) + |p|^2 / 2, which exact dynamics would conserve."""
    return 0.5 * squared_norm(momentum, target) - state.log_density
