"""Independence sampler: proposals from a guide that does not look at the chain. [Tierney 1994]

    z' ~ q(z),    log ratio = log p(z') - log p(z) + log q(z) - log q(z')

When to use it: with a guide q close to the posterior, such as an encoder's q(z|s) at a good estimate of s; the draws
are then nearly independent. q must be wider than the posterior: where it is narrower a chain gets stuck in p's tails.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.target import require
from pyro_avse.typing import Info, State, Target


@dataclass(frozen=True)
class Independence:
    """Proposals from `target.proposal`, a Normal that broadcasts to (chain, ..., frame).

    Raises InputError where the target has none.
    """

    def init(self, target: Target, z: Tensor) -> State:
        """The chain at z (chain, ..., frame, latent)."""
        require(target, "proposal", kernel="independence")
        return State(z, target.log_density(z))

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        """One proposal for every chain and frame, accepted each on its own."""
        q, z = require(target, "proposal", kernel="independence"), state.z
        noise = torch.randn(z.shape, generator=rng, dtype=z.dtype, device=z.device)
        proposal_z = q.mean + q.stddev * noise
        proposal = State(proposal_z, target.log_density(proposal_z))
        log_ratio = (
            proposal.log_density - state.log_density + q.log_prob(z) - q.log_prob(proposal_z)
        )
        return accept_or_reject(state, proposal, log_ratio, rng=rng)
