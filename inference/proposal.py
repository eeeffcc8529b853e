"""What importance sampling draws codes from: the guide, widened, and the prior; and what such draws weigh."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pyro.distributions import Independent, Normal
from torch import Tensor

from pyro_avse.distributions import align_components
from pyro_avse.inference.wiener import Weights
from pyro_avse.typing import MixingWeight, Responsibilities, Separation, SpeechPrior


@dataclass(frozen=True, kw_only=True)
class ImportanceSeparation(Separation):
    """A separation that says how far its weights can be trusted; `z` is the posterior mean, as one chain."""

    effective_sample_size: Float[Tensor, "*utterance frame"]
    """1 / sum of squared weights in the last E-step, from 1 to its number of draws."""
    log_weights: Float[Tensor, "draw *utterance frame"]
    """log sum_k w_rk there, from which k-hat is."""


def importance_weights(
    log_joint: Float[Tensor, "component draw *utterance frame"],
    log_proposal: Float[Tensor, "draw *utterance frame"],
) -> tuple[Weights, Float[Tensor, "*utterance frame"]]:
    """w_rk, which sum to one over draws and components, and log (1/R) sum_rk u_rk, the evidence's estimate."""
    log_u = log_joint - log_proposal
    total = torch.logsumexp(log_u, (0, 1))
    return torch.exp(log_u - total), total - math.log(len(log_proposal))


@dataclass(frozen=True)
class GaussianMixture:
    """sum_j exp(log_weights_j) N(z_n; mean_j, diag stddev_j^2) for every frame."""

    log_weights: Float[Tensor, "part *utterance frame"]
    mean: Float[Tensor, "part *utterance frame latent"]
    stddev: Float[Tensor, "part *utterance frame latent"]

    def sample(
        self, draws: int, *, rng: torch.Generator
    ) -> Float[Tensor, "draw *utterance frame latent"]:
        """Independent draws."""
        shape, like = (draws, *self.mean.shape[1:]), self.mean
        u = torch.rand(shape[:-1], generator=rng, dtype=like.dtype, device=like.device)
        part = (u >= self.log_weights.exp().cumsum(0)[:-1, None]).sum(0)
        index = part[None, ..., None].expand(1, *shape)
        mean, stddev = (p[:, None].expand(-1, *shape) for p in (self.mean, self.stddev))
        noise = torch.randn(shape, generator=rng, dtype=like.dtype, device=like.device)
        return mean.gather(0, index)[0] + stddev.gather(0, index)[0] * noise

    def log_prob(
        self, z: Float[Tensor, "draw *utterance frame latent"]
    ) -> Float[Tensor, "draw *utterance frame"]:
        """The mixture's log density."""
        parts = Independent(
            Normal(self.mean[:, None], self.stddev[:, None], validate_args=False), 1
        )
        return torch.logsumexp(self.log_weights[:, None] + parts.log_prob(z), 0)


def guide_mixture(
    guide: Independent,
    prior: SpeechPrior,
    features: Tensor | None,
    responsibilities: Responsibilities,
    mixing_weight: MixingWeight | Responsibilities,
    widening: float,
    defensive: float,
) -> GaussianMixture:
    """q(z_n): the encoders' `guide` (component, ..., frame), widened, and the prior; 2 K parts."""
    r, pi = responsibilities, mixing_weight
    shape = (*r.shape, prior.latent_dim)
    q, p = guide, align_components(prior.latent_prior(features), r.dim())
    pi = (pi if pi.dim() == r.dim() else pi[..., None]).expand_as(r)
    weights = torch.cat([(1 - defensive) * r, defensive * pi])
    return GaussianMixture(
        log_weights=weights.log(),
        mean=torch.cat([q.mean.expand(shape), p.mean.expand(shape)]),
        stddev=torch.cat([widening * q.stddev.expand(shape), p.stddev.expand(shape)]),
    )
