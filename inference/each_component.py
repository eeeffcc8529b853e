"""E-steps where alpha_1:N is a Markov chain: chains of every component, weighed by forward-backward. [Sadeghi2021b]

Given alpha_1:N the frames are independent, and z_n has the posterior of component alpha_n's own model. So each
component has chains of its own, on log p(x_n, z_n | alpha_n = k), frame by frame, by any kernel; and what is left is a
hidden Markov model (`models/markov.py`), exact given each frame's evidence

    e_nk = log sum_c exp(E_nc / T),   E_nc = log p(x_n | alpha_n = k) by chain c: see `monte_carlo.py`

T is the prior's `temperature`. Draw r of chain c of component k then counts w_rk = r(alpha_n = k) W_nc / R with
component k, W_nc = softmax_c(E_nc / T) among the component's own, and nothing with the others.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_avse.inference.monte_carlo import chain_evidence, chains_disagree, finite_where_idle
from pyro_avse.inference.target import Collapsed
from pyro_avse.inference.wiener import Draws, Weights
from pyro_avse.typing import Chains, Codes


@dataclass(frozen=True)
class EachComponent:
    """log p(x_n, z_n | alpha_n = k), the first chains for k = 0, as many for k = 1, and so on.

    `whole` is the target of all of them together, whose prior is a `Switching`.
    """

    whole: Any
    event_dim: int = 1

    @cached_property
    def parts(self) -> list[Collapsed]:
        """The target of each component, alone."""
        prior, pi = self.whole.prior, self.whole.mixing_weight
        shown = zip(prior.parts, prior.shown(self.whole.lips), strict=True)
        alone = {"mixing_weight": pi.new_ones(1)}
        return [replace(self.whole, prior=part, lips=v, **alone) for part, v in shown]

    def log_density(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """For codes (chain, ..., frame, latent), as many chains of every component."""
        own = zip(self.parts, z.chunk(len(self.parts)), strict=True)
        return torch.cat([part.log_density(codes) for part, codes in own])

    def value_and_grad(self, z: Codes) -> tuple[Float[Tensor, "*batch frame"], Codes]:
        """The same, and its gradient."""
        own = zip(self.parts, z.chunk(len(self.parts)), strict=True)
        values, gradients = zip(*(part.value_and_grad(codes) for part, codes in own), strict=True)
        return torch.cat(values), torch.cat(gradients)

    def weigh(self, chains: Chains) -> tuple[Draws, Weights]:
        """sigma_k(z_r) of component k's own draws, and w_rk, D18, (component, draw, ..., frame)."""
        K, draws = len(self.parts), chains.draws.shape[1]
        evidence = chain_evidence(chains.log_density, chains.draws).unflatten(0, (K, -1))
        evidence = evidence / self.whole.prior.temperature
        _, r = self.whole.over_components(torch.logsumexp(evidence, 1)[:, None])
        w = r * torch.softmax(evidence, 1)
        own = zip(self.parts, chains.draws.flatten(0, 1).chunk(K), strict=True)
        log_variance = torch.cat([p.prior.log_variance(z, p.lips) for p, z in own])
        w = (w / draws).repeat_interleave(draws, 1)
        return finite_where_idle(log_variance.exp(), w), w

    def disagree(self, chains: Chains) -> Bool[Tensor, "*utterance frame"] | None:
        """Where the chains of a component lie in different modes; None where each has one."""
        own = chains.log_density.chunk(len(self.parts)), chains.draws.chunk(len(self.parts))
        found = [
            chains_disagree(replace(chains, log_density=p, draws=z))
            for p, z in zip(*own, strict=True)
        ]
        apart = [part for part in found if part is not None]
        return torch.stack(apart).any(0) if apart else None
