"""Monte Carlo EM on the collapsed posterior: s and alpha integrated out. [Sadeghi2020]; slides S17-S20, S7

The observed mixture has, given the code z_n, the component k, and a gain g_n,

    x_n | z_n, k ~ N_c(0, diag V_rk),   V_k = g_n sigma_k(z_n) + (W H)_n                              (S17)

E-step: draws z_r from p(z | x) (`CollapsedTarget`), and for each the exact posterior of alpha_n given it,

    rho_rk proportional to pi_k p(z_r | k) N_c(x_n; 0, V_rk),   sum_k rho_rk = 1

so that expectations over (z, alpha) are averages with weights w_rk = rho_rk / R, or W_c rho_rk / R for draws of
chain c that count by their evidence (`chain_weights` in inference/monte_carlo.py). M-step: raise

    Q = sum_rk w_rk log p(x, z_r, k) + log p(W, H, g)                                                  (S18)

in W, H and g by one update each (S19, inference/m_step.py), V computed anew between them; pi is the mean of rho. At
the same draws Q never falls. In the papers g_n is each frame's own and nothing has a prior; what is assumed here stands
in models/nmf_noise.py, and `noise=NOISE_MODELS["paper"]` is theirs. Speech is the posterior mean

    s_n = x_n sum_rk w_rk g_n sigma_k(z_r) / V_rk                                                       (S20)

over a longer last run of the chains. When to use it: the soundest of the EM schemes, since it factorises nothing; an
iteration takes about half as much again as VEM's. The gain lets speech be quieter or louder than in training.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from pyro_avse.inference.adaptation import Adaptation, RobbinsMonro
from pyro_avse.inference.blocks import Blocks
from pyro_avse.inference.each_component import EachComponent
from pyro_avse.inference.em import EM, Observation, move_chains, starting_codes
from pyro_avse.inference.m_step import monte_carlo_q
from pyro_avse.inference.monte_carlo import (
    Drawn,
    MCEMState,
    guided_posterior,
    initial_theta,
    maximise,
    separation,
    weighted_chains,
)
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.wiener import monte_carlo_speech_power
from pyro_avse.models.nmf_noise import NoiseModel, log_prior
from pyro_avse.typing import InputError, Kernel, Separation, Target, couples_frames, switches


@dataclass(frozen=True)
class MCEM(EM):
    """Settings of Monte Carlo EM: S7, S18. `objective` is Q: log p(x | z) averaged by the weights, and the prior.

    Attributes:
        kernel: what moves z; where frames are coupled, in place of `random_walk`, `blocks`, adapted.
        iterations: EM iterations; with more, the noise model takes speech ("Time to quality" in docs/RESULTS.md).
        warmup, draws: steps thrown away and kept in each E-step, for each chain.
        first_warmup: of the first E-step, in which chains come from afar; None: as in the others. With few steps an
            iteration it decides: what the chains cannot explain yet, the noise model takes for good.
        final_warmup, final_draws: of the last E-step, from which speech is estimated.
        chains: chains for each frame, started as `starting_codes` says; under a `Switching` prior, as many for every
            component as they make when shared out, one at least, and the prior's own `temperature` weighs them.
        temperature: T, above 0, of the chains' weights; infinity: their draws count alike.
        noise: what is assumed of W, H and g.
        adapt, mixing_weight: as in `VEM`.
        exponent: of those updates S19 whose factor has no prior, in (0, 1].
    """

    name: ClassVar[str] = "mcem"
    of_paths: ClassVar[bool] = True
    of_switching: ClassVar[bool] = True
    kernel: Kernel = field(default_factory=RandomWalk)
    iterations: int = 12
    warmup: int = 30
    draws: int = 10
    first_warmup: int | None = None
    final_warmup: int = 75
    final_draws: int = 25
    chains: int = 1
    temperature: float = math.inf
    noise: NoiseModel = field(default_factory=NoiseModel)
    adapt: Adaptation | None = None
    mixing_weight: tuple[float, ...] | None = None
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}: give a number above 0")

    def given(self, observation: Observation) -> "MCEM":
        """This; where frames are coupled with adapted `blocks` in place of `random_walk`, which would stand still."""
        coupled = couples_frames(observation.prior) and not switches(observation.prior)
        if coupled and isinstance(self.kernel, RandomWalk):
            return replace(self, kernel=Blocks(), adapt=self.adapt or RobbinsMonro())
        return self

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> MCEMState:
        """Speech as loud as in training, and chains where the encoders say."""
        return MCEMState(
            **initial_theta(self, observation, rng),
            z=starting_codes(observation, self.chains),
            kernel=self.kernel,
            speech_power=observation.power,
        )

    @unchecked
    def step(
        self, observation: Observation, state: MCEMState, *, rng: torch.Generator
    ) -> MCEMState:
        """Draws of p(z | x) with their weights, then one update each of H, W, g and pi."""
        first = self.warmup if self.first_warmup is None else self.first_warmup
        warmup = self.warmup if state.iteration else first
        state, drawn = self.e_step(observation, state, warmup, self.draws, rng)
        return self.m_step(observation, state, drawn)

    def e_step(
        self,
        observation: Observation,
        state: MCEMState,
        warmup: int,
        draws: int,
        rng: torch.Generator,
    ) -> tuple[MCEMState, Drawn]:
        """Draws of p(z | x), and what they count."""
        target = guided_posterior(observation, state)
        sampled = self.sampled(observation, target)
        state, chains = move_chains(self, state, sampled, warmup=warmup, draws=draws, rng=rng)
        if isinstance(sampled, EachComponent):
            sigma, w = sampled.weigh(chains)
        else:
            sigma, w = weighted_chains(target, chains, self.temperature)
        return replace(state, responsibilities=w.sum(1)), Drawn(sampled, sigma, w, chains)

    def sampled(self, observation: Observation, target: CollapsedTarget) -> Target:
        """What the chains are to sample: the posterior of z, or of each component's where alpha_1:N is a chain."""
        return EachComponent(target) if switches(target.prior) else target

    def m_step(self, observation: Observation, state: MCEMState, drawn: Drawn) -> MCEMState:
        """S19; pi is the mean of rho."""
        power, mask, w = observation.power, observation.mask, drawn.weights
        if getattr(drawn.target, "proposal", None) is not None:
            W, H, g = state.dictionary, state.activations, state.gain
            heard = monte_carlo_speech_power(power, state.heard(drawn.sigma), w, W, H, g)
            state = replace(state, speech_power=heard)
        state = maximise(self, observation, state, drawn)
        W, H, g = state.dictionary, state.activations, state.gain
        q = monte_carlo_q(power, state.heard(drawn.sigma), w, W, H, g, mask)
        return replace(state, objective=q + log_prior(self.noise, H, g, state.response, mask))

    @unchecked
    def finish(
        self, observation: Observation, state: MCEMState, *, rng: torch.Generator
    ) -> Separation:
        """S20, by a longer run of the chains."""
        drawn = self.e_step(observation, state, self.final_warmup, self.final_draws, rng)
        return separation(self, observation, *drawn)
