"""Unadjusted Langevin: MALA that accepts everything. BIASED: it does not leave its target invariant.

    z' = z + eps^2/2 grad log p(z) + eps xi,    xi ~ N(0, I)

On a Gaussian target N(0, s2) the chain is an autoregression with factor 1 - eps^2 / (2 s2), whose stationary variance

    s2 / (1 - eps^2 / (4 s2))

is too large, by 17 % at eps = 0.1, s2 = 0.13^2; from eps = 2 sqrt(s2) on the chain explodes. When to use it: where the
bias does not matter, as in moving away from a bad start, before an exact kernel takes over.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_avse.inference.adaptation import of_every_code
from pyro_avse.inference.gradient import GradientState, gradient_state
from pyro_avse.inference.mala import langevin_proposal
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.settings import check_settings
from pyro_avse.typing import Info, StepSize, Target


@dataclass(frozen=True)
class ULA:
    """Langevin moves with step size eps = `step_size`, always taken: biased, by the variance above.

    Only a move to where the log density or its gradient is not finite is refused.
    """

    step_size: StepSize = 0.1

    def __post_init__(self) -> None:
        check_settings(self)

    def init(self, target: Target, z: Tensor) -> GradientState:
        """The chain at z (chain, ..., frame, latent), with its score."""
        return gradient_state(target, z)

    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        """One move of every chain and frame."""
        z = langevin_proposal(state, of_every_code(self.step_size, target), rng=rng)
        proposal = gradient_state(target, z)
        slopes = proposal.gradient.flatten(-target.event_dim).sum(-1)
        finite = (proposal.log_density + slopes).isfinite()
        always = torch.full_like(proposal.log_density, math.inf)
        return accept_or_reject(state, proposal, torch.where(finite, always, -math.inf), rng=rng)
