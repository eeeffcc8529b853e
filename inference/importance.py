"""Monte Carlo EM by importance sampling: the guide proposes, the posterior weighs. Slides S17-S20; [Owen 2013] ch. 9

E-step: R codes of every frame, independent, from the encoders at the present estimate of speech,

    q(z_n) = (1 - d) sum_k r_nk N(z_n; mu_k, c^2 Sigma_k) + d sum_k pi_k p(z_n | k)

with mu_k, Sigma_k from q(z_n | s_n, k) at E|s_n|^2 / g_n, speech as loud as in training; first, at the mixture's power.
c > 1 makes q wider than the encoder, which takes speech for known; the share d from the prior keeps sum_k u_rk below
p(x_n | z_r) / d ("defensive"). Where there is a guide for noisy speech, it takes the encoders' place with

    N(z_n; m_n, c^2 Sigma_k),   c = sqrt(8 / L), 1 at most

m_n the posterior mean that the last E-step found, at first the guide's own: population Monte Carlo [Cappe et al. 2004].
The guide's Sigma_k is as large as its errors, and of a code of L = 32 numbers no draw so wide comes near the posterior:
steps have to shrink with sqrt(L), as those of a random walk [Roberts, Gelman, Gilks 1997]. Narrower draws around the
best so far come nearer from E-step to E-step. Draw r and component k of alpha_n weigh

    w_rk = u_rk / sum_rk u_rk,   u_rk = pi_k p(z_r | k) N_c(x_n; 0, g_n sigma_k(z_r) + (W H)_n) / q(z_r)

in the M-step, S18, and the filter, S20, of `mcem`, where mcem has rho_rk / R. Two numbers come for nothing:

    log (1/R) sum_rk u_rk               whose exponential is an unbiased estimate of p(x_n): the objective
    1 / sum_r (sum_k w_rk)^2            how many draws of the posterior the R are worth, from 1 to R

When to use it: for the evidence, to compare models or settings on a recording, and where codes have few dimensions: no
chain, no warm-up, no step size. In many dimensions, and most of all by an encoder that does not hear the sound (V-VAE),
one draw takes all the weight and the result is chance: look at `effective_sample_size` first.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from pyro_avse.distributions import unchecked_normal
from pyro_avse.inference.em import EM, Observation, encode, frame_weight, starting_codes
from pyro_avse.inference.monte_carlo import (
    Drawn,
    MCState,
    finite_where_idle,
    initial_theta,
    maximise,
    posterior,
    separation,
)
from pyro_avse.inference.proposal import (
    ImportanceSeparation,
    guide_mixture,
    importance_weights,
)
from pyro_avse.inference.run import sum_of_frames, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.wiener import monte_carlo_speech_power
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import InputError, Power


@dataclass(frozen=True, kw_only=True)
class ImportanceState(MCState):
    """theta, and what the last E-step found; `z` is the posterior mean, as one chain."""

    speech_power: Power
    """E|s|^2, which the encoders hear next; at first |x|^2."""


@dataclass(frozen=True)
class Importance(EM):
    """Settings of Monte Carlo EM by importance sampling.

    `objective` is the estimated log p(x) under the W, H, g and pi that each E-step met.

    Attributes:
        iterations: as of `MCEM`.
        noise, mixing_weight, exponent: as in `MCEM`.
        draws, final_draws: R in each E-step, and in the last, from which speech is estimated.
        widening: c, by which the proposal's standard deviations exceed the encoder's.
        narrowing: c sqrt(L) where there is a guide.
        defensive: d, the share of draws from the prior, in (0, 1].

    Raises:
        InputError: another share, or a widening or narrowing that is not positive.
    """

    name: ClassVar[str] = "importance"
    cure: ClassVar[str] = "take a smaller widening"
    iterations: int = 6
    draws: int = 50
    final_draws: int = 200
    noise: NoiseModel = field(default_factory=NoiseModel)
    mixing_weight: tuple[float, ...] | None = None
    widening: float = 1.5
    narrowing: float = math.sqrt(8)
    defensive: float = 0.1
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)
        if not (0 < self.defensive <= 1 and self.widening > 0 and self.narrowing > 0):
            raise InputError(
                f"defensive is {self.defensive}, widening {self.widening}, narrowing {self.narrowing}: give a share "
                "above 0 and up to 1, and factors above 0"
            )

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> ImportanceState:
        """The encoders are first asked about the mixture."""
        theta, z = initial_theta(self, observation, rng), starting_codes(observation, 1)
        return ImportanceState(**theta, z=z, speech_power=observation.power)

    @unchecked
    def step(
        self, observation: Observation, state: ImportanceState, *, rng: torch.Generator
    ) -> ImportanceState:
        """Draws of q with their weights, then one update each of H, W, g and pi."""
        return maximise(self, observation, *self.e_step(observation, state, self.draws, rng))

    def e_step(
        self,
        observation: Observation,
        state: ImportanceState,
        draws: int,
        rng: torch.Generator,
    ) -> tuple[ImportanceState, Drawn]:
        """Draws of q, and their weights."""
        prior, power, v = observation.prior, observation.power, observation.v
        W, H, g = state.dictionary, state.activations, state.gain
        guide, factor = encode(observation, state.speech_power / g[..., None]), self.widening
        if observation.guess is not None:
            around = state.z[0].expand(guide.mean.shape)
            guide = unchecked_normal(around, guide.stddev)
            factor = min(1.0, self.narrowing / math.sqrt(prior.latent_dim))
        pi = frame_weight(observation, state.mixing_weight)
        r = state.responsibilities
        q = guide_mixture(guide, prior, v, r, pi, factor, self.defensive)
        z = q.sample(draws, rng=rng)
        target = posterior(observation, state)
        log_variance = prior.log_variance(z, v)
        log_joint = target.component_log_joint(z, log_variance)
        w, log_evidence = importance_weights(log_joint, q.log_prob(z))
        sigma = finite_where_idle(log_variance.exp(), w)
        heard = monte_carlo_speech_power(power, state.heard(sigma), w, W, H, g)
        state = replace(
            state,
            z=(w.sum(0)[..., None] * z).sum(0)[None],
            responsibilities=w.sum(1),
            speech_power=heard,
            objective=sum_of_frames(log_evidence, observation.mask),
            partial=z,
        )
        return state, Drawn(target, sigma, w)

    @unchecked
    def finish(
        self, observation: Observation, state: ImportanceState, *, rng: torch.Generator
    ) -> ImportanceSeparation:
        """S20 by more draws."""
        state, drawn = self.e_step(observation, state, self.final_draws, rng)
        found = separation(self, observation, state, drawn)
        w = drawn.weights.sum(0)
        ess = w.square().sum(0).reciprocal()
        least = torch.finfo(w.dtype).tiny
        return ImportanceSeparation(
            **vars(found), effective_sample_size=ess, log_weights=w.clamp_min(least).log()
        )
