"""How fast a gradient kernel's log ratio falls with its step size, on the posterior of a code under a decoder. S7

The orders are those of the integrators: 3 for one MALA step, 2 for an HMC trajectory of fixed length. A wrong drift, a
wrong Hastings term or a leapfrog out of step lowers them, however small the bias. Everything is measured on `step`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from pyro_avse.inference.adaptation import of_every_code
from pyro_avse.inference.gradient import GradientState, gradient_state
from pyro_avse.inference.hmc import HMC, energy
from pyro_avse.inference.mala import MALA, langevin_proposal
from pyro_avse.inference.mean_field import MeanFieldTarget
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.typing import Info, Kernel, Target

pytestmark = pytest.mark.usefixtures("float64")
LENGTH, SIZES = 0.24, (0.04, 0.03, 0.02, 0.015, 0.01)
TOLERANCE = 0.1
both_targets = pytest.mark.parametrize("on", ["collapsed", "mean field"])


@pytest.fixture
def posterior(
    small_prior: Callable[..., nn.Module], random_power: Callable[..., Tensor]
) -> Callable[[str], Target]:
    """posterior(on): p(z | x) or (36) of four frames under A-VAE; the second has a score in closed form."""
    prior, power = small_prior("a_vae"), random_power(4, 7)

    def build(on: str) -> Target:
        if on == "mean field":
            return MeanFieldTarget(prior, None, power, torch.ones(1, 4))
        return CollapsedTarget(prior, None, power, random_power(4, 7), torch.ones(1))

    return build


def order(kernel: Callable[[float], Kernel], on: Target) -> float:
    """The slope of log mean |log ratio| against log eps, by least squares over five step sizes.

    Every step size sees the same starts and the same noise, so that the slope has no Monte Carlo error but what is
    common to all.
    """
    z = 0.7 * torch.randn(1_000, 4, 2, generator=torch.Generator().manual_seed(5))

    def error(eps: float) -> Tensor:
        of_size = kernel(eps)
        _, info = of_size.step(on, of_size.init(on, z), rng=torch.Generator().manual_seed(6))
        return info.log_ratio.abs().mean().log()  # type: ignore[union-attr]

    x = torch.tensor(SIZES).log()
    y = torch.stack([error(eps) for eps in SIZES])
    return ((x - x.mean()) @ y / (x - x.mean()).square().sum()).item()


@dataclass(frozen=True)
class MALAWithoutHastingsTerm(MALA):
    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        proposal = gradient_state(target, langevin_proposal(state, self.step_size, rng=rng))
        return accept_or_reject(state, proposal, proposal.log_density - state.log_density, rng=rng)


@dataclass(frozen=True)
class MALAWithHalfTheDrift(MALA):
    """Exact, since the ratio knows of it, but no longer a discretised diffusion that keeps the target."""

    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        eps, xi = self.step_size, torch.randn(state.z.shape, generator=rng)
        proposal = gradient_state(target, state.z + 0.25 * eps**2 * state.gradient + eps * xi)
        back = (state.z - proposal.z - 0.25 * eps**2 * proposal.gradient) / eps
        log_ratio = proposal.log_density - state.log_density
        log_ratio = log_ratio + 0.5 * (xi.square() - back.square()).sum(-1)
        return accept_or_reject(state, proposal, log_ratio, rng=rng)


@dataclass(frozen=True)
class HMCWithAFullLastStep(HMC):
    """The momentum's last half-step is a full one."""

    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        start = torch.randn(state.z.shape, generator=rng)
        eps, end, p = of_every_code(self.step_size, target), state, start
        p = p + 0.5 * eps * end.gradient
        for _ in range(self.steps):
            end = gradient_state(target, end.z + eps * p)
            p = p + eps * end.gradient
        rise = energy(target, end, p) - energy(target, state, start)
        return accept_or_reject(state, end, -rise, rng=rng)


def of_fixed_length(kind: type[HMC]) -> Callable[[float], HMC]:
    return lambda eps: kind(eps, steps=round(LENGTH / eps))


@both_targets
def test_a_mala_steps_error_falls_as_the_cube_of_its_size(
    on: str, posterior: Callable[[str], Target]
) -> None:
    """Order 3; 1 without the Hastings term, or with half the drift."""
    target = posterior(on)
    assert order(MALA, target) == pytest.approx(3, abs=TOLERANCE)
    assert order(MALAWithoutHastingsTerm, target) == pytest.approx(1, abs=TOLERANCE)
    assert order(MALAWithHalfTheDrift, target) == pytest.approx(1, abs=TOLERANCE)


@both_targets
def test_a_trajectorys_error_falls_as_the_square_of_hmcs_step(
    on: str, posterior: Callable[[str], Target]
) -> None:
    """Order 2 at a fixed length; 1 where the last half-step is a full one."""
    target = posterior(on)
    assert all(math.isclose(eps * round(LENGTH / eps), LENGTH) for eps in SIZES)
    assert order(of_fixed_length(HMC), target) == pytest.approx(2, abs=TOLERANCE)
    assert order(of_fixed_length(HMCWithAFullLastStep), target) == pytest.approx(1, abs=TOLERANCE)


def test_one_leapfrog_step_is_a_mala_step(posterior: Callable[[str], Target]) -> None:
    """Order 3 for a trajectory of a single step, whose length falls with it: HMC and MALA are one there."""
    assert order(lambda eps: HMC(eps, steps=1), posterior("collapsed")) == pytest.approx(
        3, abs=TOLERANCE
    )
