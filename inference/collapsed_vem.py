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

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_avse.inference.adaptation import Adaptation
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.nmf import is_nmf_update_H, is_nmf_update_W, normalise
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import run_chains, starting_codes, stop_unless_finite, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedMeanFieldTarget
from pyro_avse.inference.vem import (
    initial_mixing_weight,
    update_mixing_weight,
    vem_objective,
)
from pyro_avse.inference.wiener import averaged_wiener_filter, wiener_posterior
from pyro_avse.models.nmf_noise import initial_factors, nmf_noise_variance
from pyro_avse.typing import FrameMask, Kernel, Separation, Spectrum, SpeechPrior


@dataclass(frozen=True)
class CollapsedVEM:
    """Settings; each means what it does in `VEM`."""

    kernel: Kernel = field(default_factory=RandomWalk)
    iterations: int = 100
    warmup: int = 30
    draws: int = 10
    chains: int = 1
    rank: int = 10
    adapt: Adaptation | None = None
    mixing_weight: tuple[float, ...] | None = None
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)

    @unchecked
    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        seed: int = 0,
    ) -> Separation:
        """Separate x (..., frame, freq); `objective` is (41) per iteration and utterance."""
        x = mixture
        power = x.real.square() + x.imag.square()
        rng = torch.Generator(device=x.device).manual_seed(seed)

        W, H = initial_factors(power, self.rank, mask=mask, rng=rng)
        pi = initial_mixing_weight(prior, power, self.mixing_weight)
        r = pi[..., None].expand(*pi.shape, power.shape[-2])
        m, nu = x, torch.zeros_like(power)
        z, kernel = starting_codes(prior, power, lips, self.chains), self.kernel
        v = prior.visual_features(lips)
        objective: list[Tensor] = []

        for iteration in range(self.iterations):
            # VE-(z, alpha)
            second_moment = m.real.square() + m.imag.square() + nu
            proposal = guide_proposal(kernel, prior, second_moment, lips, r)
            target = CollapsedMeanFieldTarget(prior, v, second_moment, pi, proposal=proposal)
            chains = run_chains(
                kernel,
                target,
                z,
                draws=self.draws,
                warmup=self.warmup,
                adapt=self.adapt,
                seed=rng,
                where=f"collapsed_vem, iteration {iteration + 1}",
            )
            z, kernel = chains.state.z, chains.kernel
            pooled = chains.draws.flatten(0, 1)
            log_variance = prior.log_variance(pooled, v)
            rho = torch.softmax(target.component_log_joint(pooled, log_variance), dim=0)
            r = rho.mean(1)
            # VE-s: (35)
            precision = rho[..., None] * torch.exp(-log_variance)
            if len(log_variance) > 1:  # 0 where a component is idle, whatever it decodes
                precision = torch.where(rho[..., None] > 0, precision, 0)
            precision = precision.sum(0).mean(0)
            gamma = precision.reciprocal()
            m, nu = wiener_posterior(x, gamma, nmf_noise_variance(W, H))
            # M: (42), (43), (44)
            b = x - m
            V = b.real.square() + b.imag.square() + nu
            H = is_nmf_update_H(V, W, H, exponent=self.exponent)
            W = is_nmf_update_W(V, W, H, exponent=self.exponent, mask=mask)
            W, H = normalise(W, H)
            if self.mixing_weight is None:
                pi = update_mixing_weight(r, mask)
            objective.append(vem_objective(V, W, H, r, pi, mask))
            stop_unless_finite(objective, chains, "collapsed_vem")

        return Separation(
            speech=averaged_wiener_filter(x, gamma, nmf_noise_variance(W, H)),
            responsibilities=r,
            mixing_weight=pi,
            dictionary=W,
            activations=H,
            objective=torch.stack(objective),
            z=z,
            target=target,
            chains=chains,
        )
