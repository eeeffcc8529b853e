"""Metropolis-adjusted Langevin: a random walk that drifts uphill. [Roberts and Tweedie 1996]

    z' = z + eps^2/2 grad log p(z) + eps xi,    xi ~ N(0, I)

The drift makes the proposal q(z'|z) = N(z + eps^2/2 grad log p(z), eps^2 I) asymmetric, so its density is in the ratio:

    log ratio = log p(z') - log p(z) + log q(z|z') - log q(z'|z)

When to use it: in many dimensions, since eps need shrink only as L^(-1/6), not L^(-1/2) as random_walk's. It is HMC
with one leapfrog step, and hmc with more mixes faster for as many gradients. Where the gradient is far steeper than eps
allows, as at a poor start, every proposal overshoots and is rejected: take a smaller eps, or some random_walk first.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.adaptation import of_every_code
from pyro_avse.inference.gradient import GradientState, gradient_state, squared_norm
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.settings import check_settings
from pyro_avse.typing import Codes, Info, StepSize, Target


@dataclass(frozen=True)
class MALA:
    """Langevin proposals with step size eps = `step_size`, accepted or rejected.

    The ratio's logarithm is of the order of eps^3. Where it is NaN, by a density or a gradient, the chain stays.
    """

    step_size: StepSize = 0.1
    target_acceptance: ClassVar[float] = 0.574

    def __post_init__(self) -> None:
        check_settings(self)

    def init(self, target: Target, z: Tensor) -> GradientState:
        """The chain at z (chain, ..., frame, latent), with its score."""
        return gradient_state(target, z)

    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        """One proposal for every chain and frame, accepted each on its own."""
        z = langevin_proposal(state, of_every_code(self.step_size, target), rng=rng)
        proposal = gradient_state(target, z)
        log_ratio = langevin_log_ratio(target, state, proposal, self.step_size)
        return accept_or_reject(state, proposal, log_ratio, rng=rng)


def langevin_proposal(state: GradientState, step_size: StepSize, *, rng: torch.Generator) -> Codes:
    """z' ~ N(z + eps^2/2 grad log p(z), eps^2 I)."""
    z = state.z
    xi = torch.randn(z.shape, generator=rng, dtype=z.dtype, device=z.device)
    return z + 0.5 * step_size**2 * state.gradient + step_size * xi


def langevin_log_ratio(
    target: Target, state: GradientState, proposal: GradientState, step_size: StepSize
) -> Float[Tensor, "*batch frame"]:
    """log p(z') q(z|z') - log p(z) q(z'|z), q the Langevin proposal."""

    def log_q(to: GradientState, start: GradientState) -> Tensor:
        drift = to.z - start.z - 0.5 * of_every_code(step_size, target) ** 2 * start.gradient
        return -0.5 * squared_norm(drift, target) / step_size**2

    hastings = log_q(state, proposal) - log_q(proposal, state)
    return proposal.log_density - state.log_density + hastings
