"""Independence sampler: proposals from a guide that does not look at the chain. [Tierney 1994]

    z' ~ q(z),    log ratio = log p(z') - log p(z) + log q(z) - log q(z')

When to use it: with a guide q close to the posterior, such as an encoder's q(z|s) at a good estimate of s; the draws
are then nearly independent. q must be wider than the posterior: where it is narrower a chain gets stuck in p's tails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.target import require
from pyro_avse.typing import Info, Kernel, Responsibilities, State, Target

WIDENING = 2.0
"""How much wider than the guide its proposal is."""


@dataclass(frozen=True)
class Independence:
    """Proposals from `target.proposal`, a Normal that broadcasts to (chain, ..., frame).

    Raises InputError where the target has none.
    """

    uses_guide: ClassVar[bool] = True

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


def guide_proposal(
    kernel: Kernel, guide: Callable[[], Independent], responsibilities: Responsibilities
) -> Independent | None:
    """The guide sum_k r_k q(z_n | s_n, k) as one Normal: batch (..., frame), event (latent,).

    It has the mixture's mean and `WIDENING` times its standard deviation. `guide` gives q, (component, ..., frame); it
    is not called, and the result None, for a kernel that does not ask.
    """
    if not getattr(kernel, "uses_guide", False):
        return None
    q, r = guide(), responsibilities[..., None]
    mean = (r * q.mean).sum(0)
    variance = (r * (q.variance + (q.mean - mean).square())).sum(0)
    return unchecked_normal(mean, WIDENING * variance.sqrt())
