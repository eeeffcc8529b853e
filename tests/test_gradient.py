"""Gradients and the kernels that follow them: exact scores, ULA's own law, divergences."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from pyro_avse.inference import run_chains
from pyro_avse.inference.gradient import gradient_state, value_and_grad
from pyro_avse.inference.hmc import HMC, leapfrog
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.mean_field import MeanFieldTarget
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.models import MODELS
from pyro_avse.typing import InputError, Kernel, couples_frames

pytestmark = pytest.mark.usefixtures("float64")
PRIORS = [*(n for n in MODELS if not couples_frames(MODELS[n])), "two_decoders"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Gaussian:
    """N(0, scale^2 I) for every frame, `scale` (frame,); NaN beyond `radius`."""

    scale: Tensor
    radius: float = math.inf
    event_dim: int = 1

    def log_density(self, z: Tensor) -> Tensor:
        value = -0.5 * (z.square().sum(-1) / self.scale.square())
        return torch.where(z.norm(dim=-1) > self.radius, math.nan, value)


@pytest.fixture
def collapsed(
    small_prior: Callable[..., nn.Module], random_power: Callable[..., Tensor]
) -> CollapsedTarget:
    """p(z | x) of a mixture of two decoders, three frames: anything but Gaussian."""
    pi = torch.tensor([0.3, 0.7])
    power, noise = random_power(3, 7), random_power(3, 7)
    return CollapsedTarget(small_prior("two_decoders"), None, power, noise, pi)


@pytest.mark.parametrize("name", PRIORS)
def test_the_mean_field_score_in_closed_form_is_autograds(
    name: str,
    small_prior: Callable[..., nn.Module],
    random_power: Callable[..., Tensor],
    random_lips: Callable[..., Tensor],
) -> None:
    """(36): one pass back through the decoder equals autograd through it all; at r = 0 and 1 too."""
    prior = small_prior(name)
    r = torch.softmax(torch.randn(prior.num_components, 2, 3), 0)
    r[:, 0, 0] = torch.arange(prior.num_components) == 0
    target = MeanFieldTarget(prior, random_lips(2, 3), random_power(2, 3, 7), r)
    z = torch.randn(4, 2, 3, 2)

    leaf = z.clone().requires_grad_()
    expected = target.log_density(leaf)
    (score,) = torch.autograd.grad(expected.sum(), leaf)
    value, gradient = target.value_and_grad(z)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, score, rtol=1e-10, atol=1e-10)
    assert not value.requires_grad
    assert not gradient.requires_grad


def test_the_score_is_the_slope_of_the_density(collapsed: CollapsedTarget) -> None:
    """S17: autograd, under no_grad as in `run_chains`, against central differences; parameters gather nothing."""
    z, h = torch.randn(4, 3, 2), 1e-6
    with torch.no_grad():
        value, gradient = value_and_grad(collapsed, z)
        for i, e in enumerate(torch.eye(2) * h):
            slope = (collapsed.log_density(z + e) - collapsed.log_density(z - e)) / (2 * h)
            torch.testing.assert_close(gradient[..., i], slope, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(value, collapsed.log_density(z))
    assert all(p.grad is None for p in collapsed.prior.parameters())
    assert not value.requires_grad


def test_leapfrog_runs_backwards(collapsed: CollapsedTarget) -> None:
    """With its momentum flipped a trajectory comes back to where it began."""
    start = gradient_state(collapsed, torch.randn(5, 3, 2))
    momentum = torch.randn(start.z.shape)
    end, p = leapfrog(collapsed, start, momentum, 0.1, 7)
    back, q = leapfrog(collapsed, end, -p, 0.1, 7)
    torch.testing.assert_close(back.z, start.z, rtol=0, atol=1e-12)
    torch.testing.assert_close(q, -momentum, rtol=0, atol=1e-12)
    assert (end.z - start.z).norm(dim=-1).min() > 0.01


def test_mala_is_hmc_with_one_leapfrog_step(collapsed: CollapsedTarget) -> None:
    """The same draws from the same seed, by two formulas for the ratio."""
    z0 = torch.randn(4, 3, 2)
    mala = run_chains(MALA(0.3), collapsed, z0, draws=50)
    hmc = run_chains(HMC(0.3, steps=1), collapsed, z0, draws=50)
    torch.testing.assert_close(mala.draws, hmc.draws, rtol=0, atol=1e-10)
    assert 0.3 < mala.acceptance_rate.mean() < 0.999


def test_ula_is_biased_by_its_law() -> None:
    """The stationary variance of N(0, s2) under ULA is s2 / (1 - eps^2 / (4 s2)), per frame; MALA's is s2."""
    # Variances of 20000 chains at 3 scales, |z| < 4.5: false alarms 2e-5.
    scale, N, eps = torch.tensor([0.09, 0.13, 0.3]), 20_000, 0.1
    s2 = scale.square()
    law = s2 / (1 - eps**2 / (4 * s2))

    def max_z(kernel: Kernel, variance: Tensor) -> float:
        z0 = law.sqrt()[:, None] * torch.randn(N, 3, 1, generator=generator(1))
        z = run_chains(kernel, Gaussian(scale), z0, draws=1, warmup=59, seed=3).state.z
        ratio = z[..., 0].square().mean(0) / variance
        return ((ratio - 1).abs().max() * math.sqrt(N / 2)).item()

    assert max_z(ULA(eps), law) < 4.5
    assert max_z(ULA(eps), s2) > 4.5
    assert max_z(MALA(eps), s2) < 4.5
    assert max_z(MALA(eps), law) > 4.5


def tamed_variance(scale: float, eps: float, longest: float) -> float:
    """Of z' = z - clip(eps^2 z / (2 s2), -m, m) + eps xi where it has settled, by quadrature: 2^12 steps."""
    z = torch.linspace(-4, 4, 601)
    drift = (0.5 * eps**2 * z / scale**2).clamp(-longest, longest)
    onward = torch.softmax(-0.5 * ((z[None] - (z - drift)[:, None]) / eps).square(), 1)
    for _ in range(12):
        onward = onward @ onward
    return float((onward[300] * z.square()).sum())


@pytest.mark.parametrize("scale", [0.05, 0.13, 0.3, 1.0])
def test_tamed_langevin_moves_have_the_law_of_their_recursion(scale: float) -> None:
    """Variances of 20000 chains, |z| < 4.5: 0.05 lies outside of ULA's stable region, where the untamed explodes.

    Nothing of the law is the target's there: against its own variance the same draws fail, but at a scale of 1, where
    the drift is never long and eps is small.
    """
    eps, longest, N = 0.2, 0.1, 20_000
    kernel, target = ULA(eps, longest_drift=longest), Gaussian(torch.tensor([scale]))
    z0 = scale * torch.randn(N, 1, 1, generator=generator(1))
    z = run_chains(kernel, target, z0, draws=1, warmup=400, seed=3).state.z
    found = z.square().mean()
    error = z.square().std() / N**0.5

    def z_score(variance: float) -> float:
        return float((found - variance).abs() / error)

    assert z_score(tamed_variance(scale, eps, longest)) < 4.5
    assert (z_score(scale**2) > 4.5) == (scale < 1)
    untamed = run_chains(ULA(eps), target, z0, draws=1, warmup=400, seed=3).state.z
    assert bool(untamed.abs().max() > 1e6) == (eps > 2 * scale)


def test_a_tamed_drift_is_a_frames_own() -> None:
    """Long drifts are shortened to `longest_drift`, in the direction of the score, short ones left as they are."""
    target, rng = Gaussian(torch.tensor([0.01, 10.0])), generator()
    kernel = ULA(0.1, longest_drift=0.05)
    state = kernel.init(target, torch.tensor([[[3.0, 4.0], [3.0, 4.0]]]))
    moved, _ = kernel.step(target, state, rng=rng)
    xi = torch.randn(state.z.shape, generator=generator())
    drift = (moved.z - state.z - 0.1 * xi)[0]
    torch.testing.assert_close(drift[0], -0.05 * torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(drift[1], -0.005 * torch.tensor([0.03, 0.04]))
    with pytest.raises(InputError, match="longest_drift is 0: give a number above 0"):
        ULA(longest_drift=0)


def test_ula_takes_every_step_but_those_that_leave_the_finite() -> None:
    """It stays where the density is NaN next door, and moves always elsewhere."""
    z0 = torch.zeros(50, 2, 1)
    free = run_chains(ULA(), Gaussian(torch.ones(2)), z0, draws=20)
    fenced = run_chains(ULA(), Gaussian(torch.ones(2), radius=0.1), z0, draws=20)
    assert (free.acceptance_rate == 1).all()
    assert 0 < fenced.acceptance_rate.mean() < 1
    assert fenced.draws.abs().max() <= 0.1


@pytest.mark.parametrize(
    "kernel", [MALA(0.3), ULA(0.3), HMC(0.3, steps=5)], ids=["mala", "ula", "hmc"]
)
def test_a_nan_gradient_is_rejected(kernel: Kernel) -> None:
    """Where the density is finite and its gradient is not, no chain ever stands."""

    @dataclass(frozen=True)
    class NaNGradient(Gaussian):
        def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
            gradient = torch.where(z > 0.5, math.nan, -z)
            return self.log_density(z), gradient

    target, rng = NaNGradient(torch.ones(4)), generator()
    state = kernel.init(target, torch.zeros(20, 4, 1))
    for _ in range(100):
        state, info = kernel.step(target, state, rng=rng)
        assert state.z.max() <= 0.5
        assert state.gradient.isfinite().all()  # type: ignore[attr-defined]
    assert info.accepted.any()
    assert state.z.min() < -0.5


def test_hmc_flags_the_frames_that_diverge_and_no_other() -> None:
    """Energy errors above 1000, and NaN, are `diverging`, frame by frame; the others sample on."""
    target = Gaussian(torch.tensor([1.0, 1e-3, 1.0]))
    kernel, rng = HMC(0.1, steps=10), generator()
    state = kernel.init(target, torch.zeros(30, 3, 2))
    moved, info = kernel.step(target, state, rng=rng)
    assert info.diverging.any(0).tolist() == [False, True, False]
    assert info.diverging[:, 1].all()
    assert not info.accepted[:, 1].any()
    assert info.accepted[:, [0, 2]].double().mean() > 0.9
    assert torch.equal(moved.z[:, 1], state.z[:, 1])

    fenced = replace(target, scale=torch.ones(3), radius=0.5)
    info = kernel.step(fenced, state, rng=rng)[1]
    assert 0.2 < info.diverging.double().mean() < 1
    assert not (info.diverging & info.accepted).any()
