"""Gibbs sampling of the component and the code in turn, on a mixture. Slides S17

The collapsed target sums over alpha_n: p(z_n) = sum_k p(z_n, k). Here alpha_n is drawn too, and held while z moves:

    alpha_n | z_n ~ Cat(softmax_k log p(z_n, k))
    z_n | alpha_n   one step of any kernel on log p(z_n, alpha_n)

so that the draws of z_n alone follow p(z_n). When to use it: to run pcn or elliptical_slice on a mixture of Gaussian
priors, since given alpha_n the prior is one Gaussian. Any other kernel is better run on the sum itself: a step here
evaluates the target three times besides the inner kernel's proposal. `GibbsState` has the present alpha_n; `Chains`
keeps the draws of z, and alpha_n of the last alone.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.target import require
from pyro_avse.typing import Codes, Info, InputError, Kernel, State, Target


@dataclass(frozen=True)
class ConditionedTarget:
    """log p(z_n, alpha_n) of a target with `component_log_joint`, alpha_n (chain, ..., frame) given.

    Where the target has `components`, p(z_n | k), it has `gaussian` and `log_likelihood`.
    """

    target: Target
    alpha: Int[Tensor, "*batch frame"]

    @property
    def event_dim(self) -> int:
        return self.target.event_dim

    def log_density(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """The log joint of z_n and the given component."""
        joint: Tensor = require(self.target, "component_log_joint", kernel="gibbs")(z)
        return joint.gather(0, self.alpha[None])[0]

    @property
    def proposal(self) -> Independent | None:
        """The target's own."""
        return getattr(self.target, "proposal", None)

    @cached_property
    def gaussian(self) -> Independent | None:
        """p(z_n | alpha_n), batch (chain, ..., frame)."""
        components = getattr(self.target, "components", None)
        if components is None:
            return None

        def select(parameter: Tensor) -> Tensor:
            every = parameter.expand(len(parameter), *self.alpha.shape, parameter.shape[-1])
            which = self.alpha[None, ..., None].expand(1, *every.shape[1:])
            return every.gather(0, which)[0]

        mean, stddev = select(components.mean), select(components.stddev)
        return unchecked_normal(mean, stddev)

    def log_likelihood(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """log p(z_n, alpha_n) - log p(z_n | alpha_n)."""
        prior = require(self, "gaussian", kernel="this kernel inside gibbs")
        return self.log_density(z) - prior.log_prob(z)


@dataclass(frozen=True)
class GibbsState(State):
    """A state of z and alpha; its `log_density` is of z alone."""

    alpha: Int[Tensor, "*batch frame"]
    """The component of every frame, (chain, ..., frame), int64."""


@dataclass(frozen=True)
class Gibbs:
    """alpha_n drawn exactly, then one step of `inner` for z_n. Raises InputError on a target that is no mixture."""

    inner: Kernel = field(default_factory=RandomWalk)

    @property
    def uses_guide(self) -> bool:
        return getattr(self.inner, "uses_guide", False)

    def init(self, target: Target, z: Tensor) -> GibbsState:
        """The chain at z (chain, ..., frame, latent); alpha, which the first step draws, is its likeliest value."""
        joint: Tensor = require(target, "component_log_joint", kernel="gibbs")(z)
        if len(joint) == 1:
            raise InputError(
                f"gibbs needs a mixture, and {type(target).__name__} has one component: take its inner kernel, "
                f"{type(self.inner).__name__}, alone"
            )
        alpha = joint.argmax(0)
        self.inner.init(ConditionedTarget(target, alpha), z)  # refuses what it cannot sample
        return GibbsState(z, target.log_density(z), alpha)

    def step(
        self, target: Target, state: GibbsState, *, rng: torch.Generator
    ) -> tuple[GibbsState, Info]:
        """alpha_n | z_n, then z_n | alpha_n; `accepted` is the inner kernel's."""
        joint: Tensor = require(target, "component_log_joint", kernel="gibbs")(state.z)
        alpha = draw_component(joint, rng=rng)
        given = ConditionedTarget(target, alpha)
        moved, info = self.inner.step(given, self.inner.init(given, state.z), rng=rng)
        return GibbsState(moved.z, target.log_density(moved.z), alpha), info


def draw_component(
    log_joint: Float[Tensor, "component *batch frame"], *, rng: torch.Generator
) -> Int[Tensor, "*batch frame"]:
    """k with probability softmax_k(log_joint): the first of exponential clocks of rates p(z, k) to ring."""
    clock = torch.empty_like(log_joint).exponential_(generator=rng)
    return (log_joint - clock.log()).argmax(0)
