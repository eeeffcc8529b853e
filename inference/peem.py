"""Point-estimate EM: the collapsed posterior's mode in place of draws from it. Slides S17-S20 with R = 1

E-step: the code at which the joint of `CollapsedTarget` is highest,

    z_n = argmax log p(x_n, z_n),   p(x_n, z_n) = sum_k pi_k p(z_n | k) N_c(x_n; 0, g_n sigma_k(z_n) + (W H)_n)

by a few steps of Adam up its gradient, from where the last E-step ended. The prior counts once: -1/2 |z - mu|^2 / sigma
beside -log V - |x|^2 / V. alpha_n given z_n keeps its exact posterior rho_k, so M-step and filter are those of `mcem`
with one draw of weights w_k = rho_k. Both steps raise the one objective log p(x, z; W, H, g, pi): at exponent 1/2 the
M-step never lowers it; Adam, whose step size is fixed, may.

When to use it: for speed, and for a result without chance but that of W's and H's start. A mode is no mean: it ignores
how much of the posterior lies beside it, so parameters and speech are surer of themselves than `mcem`'s.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from pyro_avse.inference.em import EM, Observation, starting_codes
from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.monte_carlo import (
    Drawn,
    MCState,
    initial_theta,
    maximise,
    posterior,
    separation,
    weighted_draws,
)
from pyro_avse.inference.run import sum_of_frames, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.models.nmf_noise import NoiseModel, log_prior
from pyro_avse.typing import Codes, Separation, Target


@dataclass(frozen=True, kw_only=True)
class PEEMState(MCState):
    """The mode, (1, ..., frame, latent) as one chain, and theta."""

    adam: dict[str, Any] | None = None
    """What Adam remembers; None before its first step."""


@dataclass(frozen=True)
class PEEM(EM):
    """Settings of point-estimate EM. `objective` is log p(x, z, W, H, g) after each M-step; `z` is the mode.

    Attributes:
        iterations: EM iterations; as of `MCEM`.
        steps: of Adam in each E-step.
        learning_rate: of Adam, about the distance that a code moves in a step.
        noise, mixing_weight, exponent: as in `MCEM`.
    """

    name: ClassVar[str] = "peem"
    of_paths: ClassVar[bool] = True
    of_switching: ClassVar[bool] = True
    cure: ClassVar[str] = "take a smaller learning_rate"
    has_draws: ClassVar[bool] = False
    iterations: int = 12
    steps: int = 10
    learning_rate: float = 0.05
    noise: NoiseModel = field(default_factory=NoiseModel)
    mixing_weight: tuple[float, ...] | None = None
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> PEEMState:
        """At the encoder's code."""
        theta, z = initial_theta(self, observation, rng), starting_codes(observation, 1)
        return PEEMState(**theta, z=z)

    @unchecked
    def step(
        self, observation: Observation, state: PEEMState, *, rng: torch.Generator
    ) -> PEEMState:
        """Up the gradient, and one update each of H, W, g and pi."""
        before = state.z
        state = self.m_step(observation, *self.e_step(observation, state))
        mask, g, a = observation.mask, state.gain, state.response
        objective = sum_of_frames(self.log_joint(observation, state), mask)
        objective = objective + log_prior(self.noise, state.activations, g, a, mask)
        return replace(state, objective=objective, partial=before)

    def e_step(self, observation: Observation, state: PEEMState) -> tuple[PEEMState, Drawn]:
        """The mode, and rho there."""
        target, z = posterior(observation, state), state.z.clone()
        adam = climb(target, z, self.steps, self.learning_rate, state.adam)
        sigma, w = weighted_draws(target, z)
        state = replace(state, z=z, adam=adam, responsibilities=w.sum(1))
        return state, Drawn(target, sigma, w)

    def m_step(self, observation: Observation, state: PEEMState, drawn: Drawn) -> PEEMState:
        """S19 at the mode."""
        return maximise(self, observation, state, drawn)

    def log_joint(self, observation: Observation, state: PEEMState) -> Tensor:
        """log p(x_n, z_n)."""
        return posterior(observation, state).frames_log_density(state.z)[0]

    @unchecked
    def finish(
        self, observation: Observation, state: PEEMState, *, rng: torch.Generator
    ) -> Separation:
        """S20 at the mode of a last E-step."""
        return separation(self, observation, *self.e_step(observation, state))


def climb(
    target: Target, z: Codes, steps: int, learning_rate: float, memory: dict[str, Any] | None
) -> dict[str, Any]:
    """Move z, in place, by some steps of Adam up the gradient of the target's log density.

    `memory` is what it remembers from its last call, and is left as it is; what it remembers now is returned.
    """
    adam: Optimizer = Adam([z], lr=learning_rate, fused=True, maximize=True)
    if memory is not None:
        adam.load_state_dict(copy.deepcopy(memory))
    for _ in range(steps):
        _, z.grad = value_and_grad(target, z)
        adam.step()
    return adam.state_dict()
