"""What some kernels need of a target besides its density: that it is right where it is, and refused where it is not."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pyro.distributions import Independent, Normal
from torch import Tensor, nn

from pyro_avse.inference import KERNELS, ULA, RandomWalk, run_chains
from pyro_avse.inference.elliptical_slice import EllipticalSlice
from pyro_avse.inference.gibbs import ConditionedTarget, Gibbs, draw_component
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.independence import Independence
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.mean_field import CollapsedMeanFieldTarget, MeanFieldTarget
from pyro_avse.inference.pcn import PCN
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.typing import InputError, Kernel, Target

pytestmark = pytest.mark.usefixtures("float64")
Build = Callable[..., Target]


@pytest.fixture
def collapsed(
    small_prior: Callable[..., nn.Module],
    random_power: Callable[..., Tensor],
    random_lips: Callable[..., Tensor],
) -> Build:
    """collapsed(name, kind): p(z | x) or r(z) of an utterance of three frames under any small prior."""

    def build(name: str, kind: type = CollapsedTarget, **options: int) -> Target:
        prior, power = small_prior(name, **options), random_power(3, 7)
        pi = torch.softmax(torch.randn(prior.num_components), 0)
        if kind is CollapsedTarget:
            return CollapsedTarget(prior, random_lips(3), power, random_power(3, 7), pi)
        return CollapsedMeanFieldTarget(prior, random_lips(3), power, pi)

    return build


@pytest.mark.parametrize("kind", [CollapsedTarget, CollapsedMeanFieldTarget])
@pytest.mark.parametrize("name", ["a_vae", "v_vae"])
def test_gaussian_times_likelihood_is_the_density_of_one_component(
    name: str, kind: type, collapsed: Build
) -> None:
    """S17: with one component the collapsed targets have a Gaussian prior; pCN and the slice then agree with MALA."""
    target = collapsed(name, kind)
    z = torch.randn(4, 3, 2)
    split = target.gaussian.log_prob(z) + target.log_likelihood(z)  # type: ignore[attr-defined]
    torch.testing.assert_close(split, target.log_density(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [CollapsedTarget, CollapsedMeanFieldTarget])
@pytest.mark.parametrize("name", ["min_vae_v2", "two_decoders"])
def test_given_its_component_a_mixture_has_a_gaussian_prior(
    name: str, kind: type, collapsed: Build
) -> None:
    """S17: log p(z, alpha) at alpha, component by component, and its Gaussian p(z | alpha)."""
    target = collapsed(name, kind)
    assert target.gaussian is None  # type: ignore[attr-defined]
    z, alpha = torch.randn(4, 3, 2), torch.tensor([0, 1, 1]).expand(4, 3)
    joint = target.component_log_joint(z)  # type: ignore[attr-defined]
    given = ConditionedTarget(target, alpha)
    expected = torch.where(alpha == 0, joint[0], joint[1])
    torch.testing.assert_close(given.log_density(z), expected)

    prior = target.prior.latent_prior(None)  # type: ignore[attr-defined]
    of_frame = [Normal(prior.mean[a, 0], prior.stddev[a, 0]) for a in (0, 1, 1)]
    log_prior = torch.stack([p.log_prob(z[:, n]).sum(-1) for n, p in enumerate(of_frame)], 1)
    assert given.gaussian is not None
    torch.testing.assert_close(given.gaussian.log_prob(z), log_prior)
    torch.testing.assert_close(given.log_likelihood(z), expected - log_prior)


def test_components_are_drawn_from_the_softmax() -> None:
    """S17: alpha_n by exponential clocks has the probabilities softmax_k log p(z, k), -inf being zero."""
    # 4.5 standard deviations of 2 x 3 counts of 15000: false alarms 4e-5.
    log_joint = torch.tensor([[2.0, 1.0, 0.5], [-1000.0, -1000.5, -math.inf]]).T[..., None]
    N, p = 40_000, torch.softmax(log_joint, 0)

    def max_z(temperature: float) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        alpha = draw_component(temperature * log_joint.expand(3, 2, N), rng=rng)
        rate = torch.stack([(alpha == k).double().mean(-1) for k in range(3)])
        return ((rate - p[..., 0]).abs() / (p * (1 - p) / N).sqrt()[..., 0].clamp_min(1e-9)).max()

    assert max_z(1) < 4.5
    assert max_z(0.9) > 4.5


@pytest.mark.parametrize(
    "kernel",
    [Gibbs(EllipticalSlice()), Gibbs(PCN(0.7)), Gibbs(MALA(0.7)), Gibbs(HMC(0.5, steps=5))],
    ids=str,
)
def test_gibbs_with_any_kernel_inside_samples_the_mixture(kernel: Kernel, collapsed: Build) -> None:
    """S17: E z of a mixture of two decoders, by quadrature; the chain held in component 0 misses it."""
    # Means of 1500 chains in 3 frames: |z| < 4.5 has false alarms of 2e-5.
    target = collapsed("two_decoders", latent_dim=1)
    prior = target.prior  # type: ignore[attr-defined]
    with torch.no_grad():
        prior.audio_prior.mean.fill_(-1)
        prior.visual_prior.mean.fill_(1)
    grid = torch.linspace(-10, 10, 4_001)[:, None, None].expand(-1, 3, 1)
    p = torch.softmax(target.log_density(grid), 0)
    mean = (p * grid[..., 0]).sum(0)
    spread = ((p * grid[..., 0].square()).sum(0) - mean.square()).sqrt()

    def max_z(kernel: Kernel, on: Target) -> float:
        z = run_chains(kernel, on, torch.zeros(1_500, 3, 1), draws=1, warmup=39).state.z[..., 0]
        return ((z.mean(0) - mean) / spread * math.sqrt(1_500)).abs().max().item()

    held = ConditionedTarget(target, torch.zeros(1_500, 3, dtype=torch.int64))
    assert max_z(kernel, target) < 4.5
    assert max_z(EllipticalSlice(), held) > 4.5


def test_a_slice_that_ran_out_of_shrinks_keeps_its_state_and_its_law() -> None:
    """Two angles a step: many frames stay, and N(1/2, 1/2) is left invariant all the same."""
    # Mean and variance of 20000 chains: |z| < 4.5 has false alarms of 1e-5.

    class Sharp:
        event_dim = 1
        gaussian = Independent(Normal(torch.zeros(1).double(), torch.ones(1).double()), 1)

        def log_likelihood(self, z: Tensor) -> Tensor:
            return -50 * (z[..., 0] - 1).square()  # noise 0.01

        def log_density(self, z: Tensor) -> Tensor:
            return self.gaussian.log_prob(z) + self.log_likelihood(z)

    N, target = 20_000, Sharp()
    noise = torch.randn(N, 1, 1, generator=torch.Generator().manual_seed(1))
    mean, variance = 100 / 101, 1 / 101
    chains = run_chains(
        EllipticalSlice(max_shrinks=2), target, mean + variance**0.5 * noise, draws=20
    )
    u = (chains.state.z - mean) / variance**0.5
    assert chains.acceptance_rate.mean() < 0.6
    assert (u.mean() * math.sqrt(N)).abs() < 4.5
    assert ((u.square().mean() - 1) * math.sqrt(N / 2)).abs() < 4.5


@pytest.mark.parametrize("kernel", [PCN(), EllipticalSlice()], ids=["pcn", "elliptical_slice"])
def test_kernels_of_a_gaussian_prior_refuse_a_mixture(kernel: Kernel, collapsed: Build) -> None:
    """S17: the refusal names the target, its components and the cure."""
    target = collapsed("min_vae_v2")
    reason = (
        r"CollapsedTarget, a mixture of 2 components, has none: run it inside Gibbs, as Gibbs\("
    )
    with pytest.raises(InputError, match=reason):
        run_chains(kernel, target, torch.zeros(1, 3, 2), draws=1)
    run_chains(Gibbs(kernel), target, torch.zeros(1, 3, 2), draws=1)
    run_chains(kernel, collapsed("a_vae"), torch.zeros(1, 3, 2), draws=1)


def test_gibbs_and_independence_refuse_a_target_without_what_they_need(
    collapsed: Build, small_prior: Callable[..., nn.Module], random_power: Callable[..., Tensor]
) -> None:
    """(36) is one geometric mixture, with no component to draw; no target has a proposal but the one it was given."""
    z, r = torch.zeros(1, 3, 2), torch.full((2, 3), 0.5)
    mean_field = MeanFieldTarget(small_prior("min_vae_v2"), None, random_power(3, 7), r)
    with pytest.raises(
        InputError, match=r"gibbs needs .*component_log_joint.* MeanFieldTarget has none"
    ):
        run_chains(Gibbs(), mean_field, z, draws=1)
    with pytest.raises(InputError, match="take the scheme collapsed_vem or mcem, or another"):
        run_chains(Gibbs(), mean_field, z, draws=1)
    alone = "CollapsedTarget has one component: take its inner kernel, EllipticalSlice, alone"
    with pytest.raises(InputError, match=alone):
        run_chains(Gibbs(EllipticalSlice()), collapsed("a_vae"), z, draws=1)
    for target in (mean_field, collapsed("a_vae"), collapsed("a_vae", CollapsedMeanFieldTarget)):
        with pytest.raises(InputError, match=r"independence needs .*`proposal`.*give it one"):
            run_chains(Independence(), target, z, draws=1)


def test_a_proposal_is_an_argument_of_every_target(
    small_prior: Callable[..., nn.Module], random_power: Callable[..., Tensor]
) -> None:
    """The encoder's q(z | s) as `proposal`, twice as wide, broadcasts over chains."""
    prior, power = small_prior("a_vae"), random_power(3, 7)
    q = prior.encode(power, None)
    proposal = Independent(Normal(q.mean[0], 2 * q.stddev[0]), 1)
    target = CollapsedTarget(prior, None, power, power / 10, torch.ones(1), proposal=proposal)
    chains = run_chains(Independence(), target, torch.zeros(5, 3, 2), draws=50)
    assert chains.draws.shape == (5, 50, 3, 2)
    assert chains.acceptance_rate.mean() > 0.02


class OneEvent:
    """The frames of a target as one event, as under a prior with dynamics."""

    event_dim = 2

    def __init__(self, of: CollapsedTarget) -> None:
        self.of, self.gaussian = of, None
        if of.gaussian is not None:
            frames = of.power.shape[:1]
            self.gaussian = Independent(of.gaussian.expand((1, *frames)), 1)
        wide = torch.full((*of.power.shape[:1], 2), 1.5)
        self.proposal = Independent(Normal(torch.zeros_like(wide), wide), 2)

    def log_density(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self.component_log_joint(z), 0)

    def log_likelihood(self, z: Tensor) -> Tensor:
        return self.of.log_likelihood(z).sum(-1)

    def component_log_joint(self, z: Tensor) -> Tensor:
        return self.of.component_log_joint(z).sum(-1)


@pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"blocks"}))
def test_an_utterance_can_be_one_event(name: str, collapsed: Build) -> None:
    """Event dimension 2: all frames move or stay together; with one frame it is event dimension 1, draw by draw."""
    target = collapsed("min_vae_v2" if name == "gibbs" else "a_vae")
    assert isinstance(target, CollapsedTarget)
    z0 = 0.3 * torch.randn(200, 3, 2)
    moves = run_chains(KERNELS[name](), OneEvent(target), z0, draws=20).draws.diff(dim=1) != 0
    assert torch.equal(moves.any((-2, -1)), moves.all(-1).all(-1))
    assert moves.any()

    first = replace(target, power=target.power[:1], noise_variance=target.noise_variance[:1])
    q = Independent(Normal(torch.zeros(1, 2), torch.full((1, 2), 1.5)), 1)
    frame = run_chains(KERNELS[name](), replace(first, proposal=q), z0[:, :1], draws=20)
    event = run_chains(KERNELS[name](), OneEvent(first), z0[:, :1], draws=20)
    torch.testing.assert_close(event.draws, frame.draws)


@pytest.mark.parametrize("kind", [RandomWalk, PCN, MALA, ULA, HMC])
@pytest.mark.parametrize("step_size", [0, 0.0, -0.1, math.nan])
def test_a_step_of_no_length_is_refused(kind: Callable[..., Kernel], step_size: float) -> None:
    """The line names the setting and the cure; adapted step sizes, tensors, are not looked at."""
    with pytest.raises(InputError, match=rf"step_size is {step_size}: give a number above 0"):
        kind(step_size)
    kind(torch.full((2, 3), 1.5))


@pytest.mark.parametrize(
    ("build", "cure"),
    [
        (lambda: PCN(1.5), "step_size is 1.5: give a number above 0 and up to 1"),
        (lambda: HMC(steps=0), "steps is 0: give 1 or more"),
        (lambda: EllipticalSlice(max_shrinks=0), "max_shrinks is 0: give 1 or more"),
    ],
)
def test_constants_that_no_kernel_can_run_with_are_refused(
    build: Callable[[], Kernel], cure: str
) -> None:
    with pytest.raises(InputError, match=cure):
        build()


@pytest.mark.parametrize(
    "wrong", [{"draws": 0}, {"draws": 1, "thin": 0}, {"draws": 1, "warmup": -1}]
)
def test_a_run_of_no_draws_is_refused(wrong: dict[str, int], collapsed: Build) -> None:
    with pytest.raises(InputError, match=r"is (0|-1): give"):
        run_chains(RandomWalk(), collapsed("a_vae"), torch.zeros(1, 3, 2), **wrong)
