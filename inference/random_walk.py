"""Random-walk Metropolis-Hastings: the paper's kernel. [Sadeghi2021] (37), (38)

    z' | z ~ N(z, epsilon I),   accepted with probability min(1, r(z') / r(z))

The proposal is symmetric, so no proposal density enters the ratio. Needs nothing of the target but its density. Its
acceptance falls with the dimension L and with how sharp the posterior is: epsilon = 0.01 takes about a quarter of the
proposals at L = 16.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_avse.inference.adaptation import of_every_code
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.settings import check_settings
from pyro_avse.typing import Codes, Info, State, StepSize, Target


@dataclass(frozen=True)
class RandomWalk:
    """Gaussian random walk with standard deviation `step_size`, the square root of (37)'s epsilon."""

    step_size: StepSize = 0.1
    target_acceptance: ClassVar[float] = 0.234

    def __post_init__(self) -> None:
        check_settings(self)

    def init(self, target: Target, z: Tensor) -> State:
        """The chain at z (chain, ..., frame, latent)."""
        return State(z, target.log_density(z))

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        """One proposal for every chain and frame, accepted each on its own: (37), (38)."""
        z = random_walk_proposal(state.z, of_every_code(self.step_size, target), rng=rng)
        proposal = State(z, target.log_density(z))
        return accept_or_reject(state, proposal, proposal.log_density - state.log_density, rng=rng)


def random_walk_proposal(z: Codes, step_size: StepSize, *, rng: torch.Generator) -> Codes:
    """z' ~ N(z, step_size^2 I). [Sadeghi2021] (37)"""
    return z + step_size * torch.randn(z.shape, generator=rng, dtype=z.dtype, device=z.device)
