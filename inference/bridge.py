"""The way from what is known to a posterior, as a target that any kernel of a frame can move on.

    log f(z_n) = (1 - beta) log q(z_n) + beta log p(x_n, z_n),   q(z_n) = sum_k r_k q(z_n | k), Gaussians

At beta = 0 it is q, at 1 the posterior, in between their geometric mean. Where it is used: `evidence` walks along it,
from a prior or a guide; `guided` stays at one beta, between a guide and a posterior that is too sure.
"""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.target import Quadratic, log_sum_of_components, single_component
from pyro_avse.typing import Codes, Guess, Target

Frames = Float[Tensor, "*utterance frame"]
Densities = Float[Tensor, "chain *utterance frame"]


@dataclass(frozen=True)
class Bridge:
    """log f of every frame; `Bridge.alone` of one Gaussian, `Bridge.guided` of a guide's mixture."""

    target: Target
    """log p(x_n, z_n) of every frame."""
    components: Independent
    """q(z_n | k), batch (component, 1, ..., frame): the 1 is for chains."""
    weight: Float[Tensor, "component *utterance frame"] | None
    """r_nk; None where there is one component."""
    beta: Frames | float
    event_dim: int = 1

    @classmethod
    def alone(cls, target: Target, q: Independent, beta: Frames | float) -> "Bridge":
        """From one Gaussian a frame, batch (..., frame)."""
        mean, scale = (t[None, None] for t in (q.mean, q.stddev))
        return cls(target, unchecked_normal(mean, scale), None, beta)

    @classmethod
    def guided(cls, target: Target, guess: Guess, beta: Frames | float) -> "Bridge":
        """From what a guide believes of the codes, its components summed out."""
        mean, scale = (t[:, None] for t in (guess.codes.mean, guess.codes.stddev))
        return cls(target, unchecked_normal(mean, scale), guess.responsibilities, beta)

    @property
    def gaussian(self) -> Independent | None:
        """q where it is one Gaussian, for kernels that want one."""
        return single_component(self.components)

    @cached_property
    def _q(self) -> Quadratic:
        return Quadratic.of(self.components, self.weight)

    def log_start(self, z: Codes) -> Densities:
        """log q."""
        return log_sum_of_components(self._q.log_prob(z))

    def rise(self, z: Codes) -> Densities:
        """log p(x, z) - log q(z)."""
        return self.target.log_density(z) - self.log_start(z)

    def log_likelihood(self, z: Codes) -> Densities:
        """log f - log q."""
        return self.beta * self.rise(z)

    def log_density(self, z: Codes) -> Densities:
        """log f, for codes (chain, ..., frame, latent)."""
        return (1 - self.beta) * self.log_start(z) + self.beta * self.target.log_density(z)

    def value_and_grad(self, z: Codes) -> tuple[Densities, Codes]:
        """log f and its gradient, by the target's own."""
        value, slope = value_and_grad(self.target, z)
        log_q = self._q.log_prob(z)
        log_sum = log_sum_of_components(log_q)
        score = ((log_q - log_sum).exp()[..., None] * self._q.score(z)).sum(0)
        beta = self.beta
        share = beta[..., None] if isinstance(beta, Tensor) else beta
        return (1 - beta) * log_sum + beta * value, (1 - share) * score + share * slope
