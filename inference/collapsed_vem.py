"""Variational EM with alpha summed out of the E-step: r(s_n) r(z_n, alpha_n). Appendix B, less factorised

(32) takes z and alpha for independent. Here they are one factor, and only s is split off:

    r(z, alpha)   proportional to pi_k p(z|k) exp(sum_f -log sigma_k - (|m|^2 + nu) / sigma_k)
    r(z)          its sum over k, a mixture: what the chains sample (`CollapsedMeanFieldTarget`)
    rho_dk        the softmax over k at draw z_d: r(alpha_n = k | z_d), exactly; its mean over draws is r(alpha_n)
    r(s)          (35) with 1 / gamma = mean_d sum_k rho_dk / sigma_k(z_d)
    W, H, pi      (42), (43), (44), as in VEM

With one component it is VEM, line by line. When to use it: where VEM's r(alpha) locks in to the component that a chain
started near, since (36)'s geometric mixture of priors does not let z leave it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pyro_avse.inference.each_component import EachComponent
from pyro_avse.inference.em import Observation, encode, frame_weight, move_chains
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.mean_field import CollapsedMeanFieldTarget, VEMState
from pyro_avse.inference.vem import VEM
from pyro_avse.typing import switches


@dataclass(frozen=True)
class CollapsedVEM(VEM):
    """Settings; each means what it does in `VEM`, and so does `objective`."""

    name: ClassVar[str] = "collapsed_vem"

    def e_step(self, observation: Observation, state: VEMState, rng: torch.Generator) -> VEMState:
        """r(z, alpha), and gamma of r(s)."""
        prior, v = observation.prior, observation.v
        second_moment, r = state.second_moment, state.responsibilities
        # VE-(z, alpha)
        proposal = guide_proposal(state.kernel, lambda: encode(observation, second_moment), r)
        pi = frame_weight(observation, state.mixing_weight)
        target = CollapsedMeanFieldTarget(
            prior, v, second_moment, pi, proposal=proposal, mask=observation.mask
        )
        counts = {"warmup": self.warmup, "draws": self.draws}
        if switches(prior):
            return self._of_components(state, EachComponent(target), counts, rng)
        state, chains = move_chains(self, state, target, **counts, rng=rng)
        z = chains.draws.flatten(0, 1)
        log_variance = prior.log_variance(z, v)
        rho = torch.softmax(target.component_log_joint(z, log_variance), dim=0)
        # VE-s: (34)
        precision = rho[..., None] * torch.exp(-log_variance)
        if len(log_variance) > 1:  # 0 where a component is idle, whatever it decodes
            precision = torch.where(rho[..., None] > 0, precision, 0)
        gamma = precision.sum(0).mean(0).reciprocal()
        state = replace(state, responsibilities=rho.mean(1), gamma=gamma)
        return replace(state, target=target, chains=chains)

    def _of_components(
        self,
        state: VEMState,
        target: EachComponent,
        counts: dict[str, int],
        rng: torch.Generator,
    ) -> VEMState:
        """The same where alpha_1:N is a Markov chain: chains of every component, weighed by forward-backward."""
        state, chains = move_chains(self, state, target, **counts, rng=rng)
        sigma, w = target.weigh(chains)
        gamma = (w[..., None] / sigma).sum((0, 1)).reciprocal()
        state = replace(state, responsibilities=w.sum(1), gamma=gamma)
        return replace(state, target=target, chains=chains)
