"""Variational EM, the paper's inference at test time. [Sadeghi2021] Appendix B, (31)-(45); slides S6, S22-S27

The posterior of x = s + b is approximated by r(s_n) r(z_n) r(alpha_n) (32). Each iteration updates, in turn,

    r(z)      draws from (36), by any kernel, the chains going on from where they stood
    r(alpha)  (40): softmax of log pi_k + E_{r(s) r(z)} log p(s, z | k)
    r(s)      (34), (35): Wiener filter with the speech variance averaged over the draws
    W, H, pi  (42), (43), (44): one multiplicative update of each

over K components, so that A-VAE, V-VAE (K = 1) and the mixtures (K = 2) are the same lines. It starts with r(s) a point
at x, as if the mixture were speech, and r(alpha) even. When to use it: it is the paper's algorithm, and cheap. Its
weakness is (32): given x, s and z are anything but independent, so the Wiener filter of (35) attenuates too much.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from pyro_avse.distributions import squared_magnitude
from pyro_avse.inference.adaptation import Adaptation
from pyro_avse.inference.em import (
    EM,
    Observation,
    encode,
    frame_weight,
    move_chains,
    next_weight,
    noise_and_weights,
    starting_codes,
)
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.mean_field import (
    MeanFieldTarget,
    VEMState,
    latent_responsibilities,
    mean_field_separation,
    vem_objective,
)
from pyro_avse.inference.nmf import is_nmf_update_H, is_nmf_update_W, normalise
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.wiener import (
    average_speech_variance,
    wiener_posterior,
)
from pyro_avse.models.nmf_noise import NoiseModel, log_prior, nmf_noise_variance
from pyro_avse.typing import (
    Kernel,
    Separation,
    switches,
)


@dataclass(frozen=True)
class VEM(EM):
    """Settings of the algorithm of Appendix B: (32), S6, S22. `objective` is (41), and log p(H).

    The defaults are the paper's and its authors' code's, but for `exponent`, where 1 is theirs and 1/2 ended better
    here.

    Attributes:
        kernel: what moves z.
        iterations: EM iterations at most.
        warmup: steps thrown away in each E-step.
        draws: steps kept in each E-step, for each chain.
        chains: chains for each frame, started as `starting_codes` says.
        noise: what is assumed of W and H; there is no gain here, and `noise.gain` is not looked at.
        adapt: how each frame's step size is found in the warm-ups; None: the kernel's own stays.
        mixing_weight: pi, held at this, one number a component; None: it starts even and is learned (44), but not of
            a prior whose alpha_1:N is a Markov chain: there it is of alpha_1, and stays even.
        exponent: of (42) and (43), in (0, 1].
        tolerance: stop once no utterance's objective, per coefficient and averaged over ten iterations, gains this
            much over the ten before; None runs all iterations.
    """

    name: ClassVar[str] = "vem"
    of_switching: ClassVar[bool] = True
    kernel: Kernel = field(default_factory=RandomWalk)
    iterations: int = 100
    warmup: int = 30
    draws: int = 10
    chains: int = 1
    noise: NoiseModel = field(default_factory=NoiseModel)
    adapt: Adaptation | None = None
    mixing_weight: tuple[float, ...] | None = None
    exponent: float = 0.5
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> VEMState:
        """r(s) a point at x; with a guide for noisy speech, what the codes and the noise that it believes make of x."""
        x, gamma = observation.x, observation.power
        start = noise_and_weights(observation, self.noise, self.mixing_weight, rng)
        z, m, nu = starting_codes(observation, self.chains), x, torch.zeros_like(gamma)
        if observation.guess is not None:
            r = observation.guess.responsibilities
            gamma = average_speech_variance(observation.prior.log_variance(z[:1], observation.v), r)
            W, H = start["dictionary"], start["activations"]
            m, nu = wiener_posterior(x, gamma, nmf_noise_variance(W, H))
        return VEMState(**start, z=z, kernel=self.kernel, m=m, nu=nu, gamma=gamma)

    @unchecked
    def step(self, observation: Observation, state: VEMState, *, rng: torch.Generator) -> VEMState:
        """(36), (40), (34), (35), then (42), (43), (44)."""
        state = self.e_step(observation, state, rng)
        # VE-s: (35)
        W, H = state.dictionary, state.activations
        m, nu = wiener_posterior(observation.x, state.gamma, nmf_noise_variance(W, H))
        # M: (42), (43), (44)
        b = observation.x - m
        V = squared_magnitude(b) + nu
        mask, smoothness = observation.mask, self.noise.smoothness
        H = is_nmf_update_H(V, W, H, exponent=self.exponent, smoothness=smoothness, mask=mask)
        W = is_nmf_update_W(V, W, H, exponent=self.exponent, mask=mask)
        W, H = normalise(W, H)
        r, chain = state.responsibilities, switches(observation.prior)
        pi = next_weight(self, observation, state)
        objective = vem_objective(V, W, H, r, pi, mask, chain=chain)
        objective = objective + log_prior(self.noise, H, mask=mask)
        state = replace(state, m=m, nu=nu, iteration=state.iteration + 1, objective=objective)
        return replace(state, dictionary=W, activations=H, mixing_weight=pi)

    def e_step(self, observation: Observation, state: VEMState, rng: torch.Generator) -> VEMState:
        """r(z), r(alpha), and gamma of r(s)."""
        prior, v, r = observation.prior, observation.v, state.responsibilities
        second_moment = state.second_moment
        # VE-z: (36)
        proposal = guide_proposal(state.kernel, lambda: encode(observation, second_moment), r)
        target = MeanFieldTarget(prior, v, second_moment, r, proposal=proposal)
        counts = {"warmup": self.warmup, "draws": self.draws}
        state, chains = move_chains(self, state, target, **counts, rng=rng)
        z = chains.draws.flatten(0, 1)
        log_variance = prior.log_variance(z, v)
        # VE-alpha: (40)
        pi = frame_weight(observation, state.mixing_weight)
        r = latent_responsibilities(prior, z, v, log_variance, second_moment, pi, observation.mask)
        # VE-s: (34)
        gamma = average_speech_variance(log_variance, r)
        return replace(state, responsibilities=r, gamma=gamma, target=target, chains=chains)

    @unchecked
    def finish(
        self, observation: Observation, state: VEMState, *, rng: torch.Generator
    ) -> Separation:
        """(45), by the draws of the last E-step."""
        return mean_field_separation(observation, state)
