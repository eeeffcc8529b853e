"""Preconditioned Crank-Nicolson: a random walk that keeps the prior. [Cotter et al. 2013]

For a target N(z; m, C) L(z), the Gaussian prior of (36) times a likelihood,

    z' = m + sqrt(1 - beta^2) (z - m) + beta xi,    xi ~ N(0, C)

leaves N(m, C) invariant by itself, so that only the likelihood enters the ratio: log L(z') - log L(z).

When to use it: where the prior rules, as in frames of silence or loud noise; the acceptance then does not fall with the
dimension. Where the likelihood is much sharper than the prior, random_walk and mala are as good. beta = 1 draws from
the prior anew.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_avse.inference.adaptation import of_every_code
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import require
from pyro_avse.typing import Info, InputError, State, StepSize, Target


@dataclass(frozen=True)
class PCN:
    """Crank-Nicolson proposals with beta = `step_size` in (0, 1]; an adapted one above 1 counts as 1.

    Needs `gaussian` and `log_likelihood` of the target, and raises InputError where there is no Gaussian.
    """

    step_size: StepSize = 0.1
    target_acceptance: ClassVar[float] = 0.234

    def __post_init__(self) -> None:
        check_settings(self)
        if not isinstance(self.step_size, Tensor) and self.step_size > 1:
            raise InputError(
                f"PCN: step_size is {self.step_size}: give a number above 0 and up to 1"
            )

    def init(self, target: Target, z: Tensor) -> State:
        """The chain at z (chain, ..., frame, latent)."""
        require(target, "gaussian", kernel="pcn")
        return State(z, target.log_density(z))

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        """One proposal for every chain and frame, accepted each on its own."""
        prior = require(target, "gaussian", kernel="pcn")
        log_likelihood = require(target, "log_likelihood", kernel="pcn")
        z, beta = state.z, of_every_code(self.step_size, target)
        if isinstance(beta, Tensor):
            beta = beta.clamp_max(1)
        xi = torch.randn(z.shape, generator=rng, dtype=z.dtype, device=z.device)
        kept = (1 - beta**2) ** 0.5 * (z - prior.mean)
        z_new = prior.mean + kept + beta * prior.stddev * xi

        log_L, log_L_new = state.log_density - prior.log_prob(z), log_likelihood(z_new)
        proposal = State(z_new, prior.log_prob(z_new) + log_L_new)
        return accept_or_reject(state, proposal, log_L_new - log_L, rng=rng)
