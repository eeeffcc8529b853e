"""Evidence: tempering against quadrature and enumeration, bounds from both sides, an alpha that can be trusted."""

import math
from dataclasses import replace
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.errors import InputError
from pyro_avse.inference import KERNELS
from pyro_avse.inference.evidence import (
    Bridge,
    Path,
    annealed_importance,
    component_evidence,
    drawn_anew,
    effective_share,
    reverse_annealed,
    tempered_smc,
)
from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.independence import Independence
from pyro_avse.inference.ldem import SmoothTarget
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.models.noisy_speech import noisy_speech

pytestmark = pytest.mark.usefixtures("float64")
FRAMES = 6
TEMPERED = ["random_walk", "pcn", "elliptical_slice", "mala", "hmc"]


@pytest.fixture
def drawn(small_prior: Any) -> Any:
    """A prior's posterior of some frames that it drew itself, and the codes that it drew."""

    def build(name: str, noise: float = 0.3) -> tuple[CollapsedTarget, Tensor]:
        prior = small_prior(name).requires_grad_(False)
        variance = torch.full((FRAMES, 7), noise)
        lips = torch.rand(FRAMES, 67, 67)
        trace = poutine.trace(noisy_speech).get_trace(prior, None, lips, variance)
        power = trace.nodes["x"]["value"].abs().square()
        v = prior.visual_features(lips)
        target = CollapsedTarget(prior, v, power, variance, prior.mixing_weight)
        return target, trace.nodes["z"]["value"]

    return build


def prior_of(target: CollapsedTarget, k: int = 0) -> Any:
    shape = (FRAMES, 2)
    mean, scale = target.components.mean[k, 0], target.components.stddev[k, 0]
    return unchecked_normal(mean.expand(shape), scale.expand(shape))


def by_quadrature(target: CollapsedTarget) -> Tensor:
    """log p(x_n, k) of every component by a grid over both codes."""
    axis = torch.linspace(-9, 9, 361)
    grid = torch.cartesian_prod(axis, axis)[:, None].expand(-1, FRAMES, 2)
    cell = 2 * math.log(float(axis[1] - axis[0]))
    return torch.logsumexp(target.component_log_joint(grid), 1) + cell


@pytest.mark.parametrize("kernel", TEMPERED)
def test_tempering_finds_the_integral(kernel: str, drawn: Any) -> None:
    """By every kernel that can, to a tenth of a nat; without the weights it would be off by nats."""
    target, _ = drawn("a_vae")
    exact = by_quadrature(target)[0]
    made = KERNELS[kernel]()
    found = tempered_smc(target, prior_of(target), kernel=made, particles=1000, moves=4)
    assert ((found.log_evidence - exact).abs() < 0.15).all()
    assert (found.path.betas[-1] == 1).all()
    assert (found.path.betas.diff(dim=0) >= 0).all()


def test_a_start_near_the_posterior_needs_fewer_steps_and_finds_the_same(drawn: Any) -> None:
    target, _ = drawn("a_vae", noise=0.02)
    far = tempered_smc(target, prior_of(target), particles=500)
    mean, scale = far.z.mean(0), 1.3 * far.z.std(0)
    near = tempered_smc(target, unchecked_normal(mean, scale), particles=500)
    assert len(near.path.betas) < len(far.path.betas)
    exact = by_quadrature(target)[0]
    assert ((near.log_evidence - exact).abs() < 0.15).all()


def test_bounds_from_both_sides_enclose_the_integral(drawn: Any) -> None:
    """Means over 15 runs: forwards below, backwards above, half a nat apart at most; backwards from z that is no draw
    of the posterior is nothing of the kind (the broken twin).
    """
    target, truth = drawn("a_vae")
    start, exact = prior_of(target), by_quadrature(target)[0]
    path = tempered_smc(target, start, particles=200).path
    few = {"particles": 4, "moves": 2}
    below, above, broken = [], [], []
    for seed in range(15):
        below.append(annealed_importance(target, start, path, **few, seed=10 + seed))
        above.append(reverse_annealed(target, start, path, truth, **few, seed=100 + seed))
        broken.append(reverse_annealed(target, start, path, truth + 9, **few, seed=100 + seed))
    below, above, broken = (torch.stack(t).mean() for t in (below, above, broken))
    assert exact.mean() - 0.5 < below < exact.mean() + 0.02
    assert below < above < exact.mean() + 0.5
    assert (broken - exact.mean()).abs() > 2 * (above - exact.mean()).abs()


def test_backwards_is_above_on_average_over_exact_draws(small_prior: Any) -> None:
    """BDMC over 200 frames of the program, each with the draw that made it; beyond 4.5 sigma: false alarms of 3e-6."""
    prior = small_prior("a_vae").requires_grad_(False)
    noise = torch.full((200, 7), 0.05)
    trace = poutine.trace(noisy_speech).get_trace(prior, None, None, noise)
    power = trace.nodes["x"]["value"].abs().square()
    target = CollapsedTarget(prior, None, power, noise, prior.mixing_weight)
    start = unchecked_normal(torch.zeros(200, 2), torch.ones(200, 2))
    fine = tempered_smc(target, start, particles=400)
    coarse = Path(torch.tensor([0.2, 1.0])[:, None].expand(2, 200), (HMC(0.1),) * 2)
    one = {"particles": 1, "moves": 1}
    gap = fine.log_evidence - annealed_importance(target, start, coarse, **one)
    over = reverse_annealed(target, start, coarse, trace.nodes["z"]["value"], **one)
    over = over - fine.log_evidence
    for excess in (gap, over):
        assert excess.mean() > 4.5 * excess.std() / math.sqrt(len(excess))


@pytest.mark.parametrize("name", ["min_vae_v1", "min_vae_v2", "two_decoders"])
def test_the_alpha_of_evidence_is_that_of_enumeration(name: str, drawn: Any) -> None:
    """r(alpha_n) and log p(x_n | k) against the grid, for shared decoders and own ones."""
    target, _ = drawn(name)
    exact = by_quadrature(target)
    found = component_evidence(target, particles=1000, annealed=True)
    r = found.responsibilities
    assert torch.allclose(found.evidence + target.mixing_weight.log()[:, None], exact, atol=0.2)
    assert torch.allclose(r, torch.softmax(exact, 0), atol=0.05)
    assert torch.allclose(r.sum(0), torch.ones(FRAMES))
    for estimate in (found.evidence, found.lower):
        assert torch.allclose(found.of_mixture(estimate), torch.logsumexp(exact, 0), atol=0.3)


def test_the_bridge_is_what_it_says(drawn: Any) -> None:
    """Its ends are q and the posterior; its gradient is autograd's; its Gaussian and likelihood make it up."""
    target, z = drawn("min_vae_v2")
    q = unchecked_normal(torch.randn(FRAMES, 2), torch.rand(FRAMES, 2) + 0.5)
    z = z.expand(3, FRAMES, 2) + 0.1 * torch.randn(3, FRAMES, 2)
    for beta in (torch.zeros(FRAMES), torch.rand(FRAMES), torch.ones(FRAMES)):
        bridge = Bridge(target, q, beta)
        by_hand = (1 - beta) * q.log_prob(z) + beta * target.log_density(z)
        assert torch.allclose(bridge.log_density(z), by_hand)
        assert torch.allclose(bridge.gaussian.log_prob(z) + bridge.log_likelihood(z), by_hand)
        leaf = z.clone().requires_grad_()
        expected = torch.autograd.grad(bridge.log_density(leaf).sum(), leaf)[0]
        value, slope = value_and_grad(bridge, z)
        assert torch.allclose(value, by_hand)
        assert torch.allclose(slope, expected)


def test_drawing_anew_keeps_the_weights() -> None:
    """Each particle comes as often as its weight says, rounded up or down."""
    rng = torch.Generator().manual_seed(0)
    z = torch.arange(8.0)[:, None, None].expand(8, 5, 1)
    log_w = torch.randn(8, 5)
    anew = drawn_anew(z, log_w, rng)
    counts = torch.stack([(anew[..., 0] == i).sum(0) for i in range(8)])
    assert ((counts - 8 * torch.softmax(log_w, 0)).abs() < 1).all()
    assert torch.allclose(effective_share(torch.zeros(8, 5)), torch.ones(5))


def test_refusals_are_one_line(drawn: Any) -> None:
    target, _ = drawn("a_vae")
    start = prior_of(target)
    for options, said in (
        ({"kernel": ULA()}, "ULA cannot be tempered, it rejects nothing"),
        ({"kernel": Independence()}, "cannot be tempered"),
        ({"kernel": type("Mine", (ULA,), {})()}, "Mine cannot be tempered"),
        ({"particles": 1}, "particles is 1"),
        ({"keep": 1.0}, "keep 1.0"),
        ({"moves": 0}, "moves 0"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            tempered_smc(target, start, **options)
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="whole utterances"):
        tempered_smc(SmoothTarget(target, 1.0), start)
    lost = replace(target, power=1e12 * target.power, noise_variance=1e-9 * target.noise_variance)
    with pytest.raises(InputError, match=r"not at beta = 1"):
        tempered_smc(lost, start, kernel=RandomWalk(), particles=2, keep=0.99, moves=1)
