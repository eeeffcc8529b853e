"""Adapted step sizes: they reach the kernel's acceptance in every frame, freeze, and leave the posterior invariant. S7

And what stops a run whose numbers are no longer finite.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from pyro.distributions import Independent, Normal
from torch import Tensor

from pyro_avse.errors import Divergence
from pyro_avse.inference import KERNELS, MCEM, SCHEMES, VEM, CollapsedVEM, RandomWalk, run_chains
from pyro_avse.inference.adaptation import (
    Adaptation,
    DualAveraging,
    RobbinsMonro,
    acceptance_error,
    can_adapt,
    step_size_of,
    with_step_size,
)
from pyro_avse.inference.gibbs import Gibbs
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.pcn import PCN
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import Info, InputError, Kernel, State, Target

pytestmark = pytest.mark.usefixtures("float64")
OF_FRAMES = KERNELS.keys() - {"blocks"}  # which are of paths
ADAPTED = sorted(name for name in OF_FRAMES if can_adapt(KERNELS[name]()))
FIXED = sorted(OF_FRAMES - set(ADAPTED))
ADAPTATIONS = [RobbinsMonro(), DualAveraging()]
every_adapted = pytest.mark.parametrize("name", ADAPTED)
every_adaptation = pytest.mark.parametrize("adapt", ADAPTATIONS, ids=["robbins", "dual"])


@dataclass(frozen=True)
class Gaussians:
    """Frame n's code is N(0, sd_n^2 I): a prior N(0, I) times a likelihood, and a mixture of two halves."""

    sd: Tensor = field(default_factory=lambda: torch.tensor([0.002, 0.02, 0.2]))
    event_dim: int = 1

    @property
    def gaussian(self) -> Independent:
        return Independent(Normal(torch.zeros(2), torch.ones(2)), 1)

    @property
    def components(self) -> Independent:
        return Independent(Normal(torch.zeros(2, 1, 1, 2), torch.ones(2, 1, 1, 2)), 1)

    @property
    def proposal(self) -> Independent:
        return self.gaussian

    def log_density(self, z: Tensor) -> Tensor:
        log_density = -0.5 * (z / self.sd[:, None]).square().sum(-1)
        return log_density if self.event_dim == 1 else log_density.sum(-1)

    def log_likelihood(self, z: Tensor) -> Tensor:
        return self.log_density(z) - self.gaussian.log_prob(z)

    def component_log_joint(self, z: Tensor) -> Tensor:
        side = 3 * z[..., 0] / self.sd
        halves = torch.nn.functional.logsigmoid(torch.stack([side, -side]))
        return self.log_density(z) + halves

    def draws(self, chains: int) -> Tensor:
        rng = torch.Generator().manual_seed(9)
        return self.sd[:, None] * torch.randn(chains, len(self.sd), 2, generator=rng)


@every_adaptation
@every_adapted
def test_every_frame_reaches_the_kernels_acceptance(name: str, adapt: Adaptation) -> None:
    """A_t -> target within 0.08 in frames a hundred times as wide as others; without adaptation nowhere near."""
    # 20 chains x 200 draws: the rate's own error is below 0.02. The rest is for dual averaging, which keeps the mean of
    # log steps that swing to and fro: where acceptance falls ever faster, as HMC's does, that accepts 0.06 too much.
    truth, kernel = Gaussians(), adaptable(name)
    goal = getattr(kernel, "inner", kernel).target_acceptance  # type: ignore[attr-defined]

    def missed(adapt: Adaptation | None, warmup: int) -> Tensor:
        settings = {"draws": 200, "warmup": warmup, "adapt": adapt}
        chains = run_chains(kernel, truth, truth.draws(20), **settings)
        return (chains.accepted.double().mean((0, 1)) - goal).abs().max()

    assert missed(adapt, 500) < 0.08
    assert missed(None, 0) > 0.2


def adaptable(name: str) -> Kernel:
    """The kernel of that name; HMC with one leapfrog step.

    On a Gaussian more of them come back to where they began at some step sizes, and acceptance then falls, rises and
    falls again as steps grow: no target below 1 has one step size.
    """
    return HMC(steps=1) if name == "hmc" else KERNELS[name]()


@dataclass(frozen=True)
class Noted(RandomWalk):
    """A random walk that notes the step size of each step."""

    seen: list[Any] = field(default_factory=list)

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        self.seen.append(self.step_size)
        return super().step(target, state, rng=rng)


@every_adaptation
def test_after_the_warmup_steps_are_frozen(adapt: Adaptation) -> None:
    """Step sizes change in each step of the warm-up and in none after it; `chains.kernel` has the last."""
    kernel, truth = Noted(), Gaussians()
    chains = run_chains(kernel, truth, truth.draws(4), draws=15, warmup=25, adapt=adapt)
    assert len(kernel.seen) == 40
    last = chains.kernel.step_size  # type: ignore[attr-defined]
    assert last.shape == (4, 3)
    assert all(torch.equal(one, last) for one in kernel.seen[25:])
    assert all(not torch.equal(kernel.seen[i], kernel.seen[i - 1]) for i in range(2, 26))
    unadapted = run_chains(kernel, truth, truth.draws(4), draws=15, adapt=adapt)  # no warm-up
    assert unadapted.kernel == kernel


def test_dual_averaging_keeps_the_mean_of_what_it_tried() -> None:
    """The step sizes that 50 chains keep lie a third as far apart, or less, as those that they tried last."""
    kernel, truth = Noted(), Gaussians()
    settings = {"draws": 1, "warmup": 300, "adapt": DualAveraging()}
    kept = run_chains(kernel, truth, truth.draws(50), **settings).kernel.step_size  # type: ignore[attr-defined]
    tried = kernel.seen[299]
    assert (kept.log().std(0) < tried.log().std(0) / 3).all()


@every_adaptation
@every_adapted
def test_draws_are_those_of_the_frozen_kernel(name: str, adapt: Adaptation) -> None:
    """What follows the warm-up is `chains.kernel` run on from where it ended, to the last bit; a seed decides."""
    truth, settings = Gaussians(), {"warmup": 20, "adapt": adapt}
    z0 = truth.draws(3)
    whole = run_chains(KERNELS[name](), truth, z0, draws=9, seed=4, **settings)
    rng = torch.Generator().manual_seed(4)
    first = run_chains(KERNELS[name](), truth, z0, draws=1, seed=rng, **settings)
    rest = run_chains(first.kernel, truth, first.state.z, draws=8, seed=rng)
    assert torch.equal(torch.cat([first.draws, rest.draws], 1), whole.draws)
    again = run_chains(KERNELS[name](), truth, z0, draws=9, seed=4, **settings)
    assert torch.equal(again.draws, whole.draws)
    other = run_chains(KERNELS[name](), truth, z0, draws=9, seed=5, **settings)
    assert not torch.equal(other.draws, whole.draws)


def max_z(z: Tensor, truth: Gaussians) -> float:
    """The worst z-score of means and variances over independent chains: 12 statistics, false alarms 8e-5 at 4.5."""
    u = z / truth.sd[:, None]
    scores = torch.cat([u, (u.square() - 1) / math.sqrt(2)], -1)
    return (scores.mean(0).abs().max() * math.sqrt(len(z))).item()


@every_adapted
def test_an_adapted_kernel_leaves_the_posterior_invariant(name: str) -> None:
    """S7: frozen, each chain with the steps that it found, 1000 chains fill the posterior; aimed 20 % too wide not."""
    truth = Gaussians()
    settings = {"warmup": 100, "adapt": RobbinsMonro()}
    chains = run_chains(KERNELS[name](), truth, truth.draws(1000), draws=1, thin=60, **settings)
    assert max_z(chains.state.z, truth) < 4.5
    twin = Gaussians(1.2 * truth.sd)
    chains = run_chains(KERNELS[name](), twin, twin.draws(1000), draws=1, thin=60, **settings)
    assert max_z(chains.state.z, truth) > 4.5


def test_adapting_while_drawing_is_seen() -> None:
    """The broken twin: steps that go on following each acceptance leave a posterior too narrow or too wide."""
    truth, rng = Gaussians(), torch.Generator().manual_seed(0)

    def after(gain: float) -> float:
        kernel: Any = RandomWalk(1.5 * truth.sd.expand(40_000, 3))
        state = kernel.init(truth, truth.draws(40_000))
        for _ in range(30):
            state, info = kernel.step(truth, state, rng=rng)
            error = acceptance_error(kernel, info)
            kernel = with_step_size(kernel, kernel.step_size * torch.exp(-gain * error))
        return max_z(state.z, truth)

    assert after(gain=0) < 4.5
    assert after(gain=4) > 4.5


def test_crank_nicolson_never_steps_beyond_the_prior() -> None:
    """Where everything is accepted the adapted beta grows without end, and counts as 1: draws from the prior."""
    truth = Gaussians(torch.ones(3))
    settings = {"draws": 20, "seed": 1}
    chains = run_chains(PCN(), truth, truth.draws(50), warmup=400, adapt=RobbinsMonro(), draws=1)
    beta = chains.kernel.step_size  # type: ignore[attr-defined]
    assert (beta > 1).all()
    wide = run_chains(chains.kernel, truth, chains.state.z, **settings)
    one = run_chains(PCN(1.0), truth, chains.state.z, **settings)
    assert torch.equal(wide.draws, one.draws)
    assert wide.accepted.all()


def test_gibbs_adapts_the_kernel_inside() -> None:
    """The step sizes are the inner kernel's, and so is the acceptance that they aim at."""
    truth = Gaussians()
    chains = run_chains(
        Gibbs(MALA(0.3)), truth, truth.draws(20), draws=300, warmup=600, adapt=DualAveraging()
    )
    inner = chains.kernel.inner  # type: ignore[attr-defined]
    assert isinstance(inner, MALA)
    assert torch.equal(step_size_of(chains.kernel, chains.state.log_density), inner.step_size)
    assert (chains.accepted.double().mean((0, 1)) - 0.574).abs().max() < 0.08
    assert inner.step_size.mean(0)[2] > 50 * inner.step_size.mean(0)[0]


@pytest.mark.parametrize("name", FIXED)
def test_kernels_with_nothing_to_adapt_refuse(name: str) -> None:
    """Their acceptance says nothing about a step size: one line says so, alone or inside Gibbs."""
    truth = Gaussians()
    for kernel in (KERNELS[name](), Gibbs(KERNELS[name]())):
        with pytest.raises(InputError, match="leave adapt out") as refusal:
            run_chains(kernel, truth, truth.draws(2), draws=1, warmup=1, adapt=RobbinsMonro())
        assert "\n" not in str(refusal.value)
        run_chains(KERNELS[name](), truth, truth.draws(2), draws=1, warmup=1)


@dataclass(frozen=True)
class Fenced(Gaussians):
    """NaN beyond one standard deviation."""

    def log_density(self, z: Tensor) -> Tensor:
        beyond = z.norm(dim=-1) > self.sd
        return torch.where(beyond, math.nan, super().log_density(z))


@every_adaptation
def test_a_nan_ratio_counts_as_a_rejection(adapt: Adaptation) -> None:
    """(38): the error of NaN is the whole target, and beside a region of NaN steps shrink until enough stay out."""
    ratios = torch.tensor([math.nan, -math.inf, 0.0, math.inf, -1.0])
    error = acceptance_error(RandomWalk(), Info(ratios > 0, ratios))
    expected = 0.234 - torch.tensor([0, 0, 1, 1, math.exp(-1)])
    torch.testing.assert_close(error, expected)

    fenced = Fenced()
    z0 = 0.5 * fenced.sd[:, None].expand(20, 3, 2) / math.sqrt(2)
    chains = run_chains(RandomWalk(), fenced, z0, draws=300, warmup=800, adapt=adapt)
    assert (chains.accepted.double().mean((0, 1)) - 0.234).abs().max() < 0.08
    assert chains.draws.isfinite().all()


@every_adaptation
@pytest.mark.parametrize("name", ["random_walk", "mala", "hmc"])
def test_an_utterance_that_is_one_event_has_one_step_size(name: str, adapt: Adaptation) -> None:
    """event_dim 2: a step size for each chain and utterance, tuned to its joint acceptance."""
    truth, kernel = Gaussians(torch.tensor([0.02, 0.03, 0.04]), event_dim=2), adaptable(name)
    chains = run_chains(kernel, truth, truth.draws(20), draws=200, warmup=500, adapt=adapt)
    assert chains.kernel.step_size.shape == (20,)  # type: ignore[attr-defined]
    assert chains.accepted.shape == (20, 200)
    goal = kernel.target_acceptance  # type: ignore[attr-defined]
    assert abs(chains.accepted.double().mean() - goal) < 0.08


def test_a_start_outside_the_region_is_a_divergence() -> None:
    """A chain that stands at NaN says how many frames do; `partial` has what was drawn."""
    truth = Fenced()
    z0 = torch.zeros(2, 3, 2)
    z0[1, 2] = 1
    found = r"^here: RandomWalk: .* 1 of 6 frames is not finite, first in draw 1 of 5: start"
    with pytest.raises(Divergence, match=found) as stop:
        run_chains(RandomWalk(), truth, z0, draws=5, where="here")
    assert "\n" not in str(stop.value)
    assert stop.value.partial.draws.shape == (2, 5, 3, 2)
    assert stop.value.partial.log_density.isnan().sum() == 5


@dataclass(frozen=True)
class Leaves(RandomWalk):
    """In its third E-step it moves to infinity, and says that the density there is 0."""

    runs: list[int] = field(default_factory=list)

    def init(self, target: Target, z: Tensor) -> State:
        self.runs.append(1)
        return super().init(target, z)

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        state, info = super().step(target, state, rng=rng)
        return (replace(state, z=state.z / 0), info) if len(self.runs) == 3 else (state, info)


@pytest.mark.parametrize("scheme", [VEM, CollapsedVEM, MCEM])
def test_a_scheme_stops_where_its_objective_is_not_finite(
    scheme: Callable[..., Any], small_prior: Callable[..., Any]
) -> None:
    """The iteration and the cure in one line, and the chains of that E-step."""
    kernel: Kernel = Leaves()
    settings = {"iterations": 5, "warmup": 1, "draws": 2, "noise": NoiseModel.paper(2)}
    x = torch.randn(6, 7, dtype=torch.complex128)
    with pytest.raises(Divergence, match=r"not finite in iteration 3: .* smaller step") as stop:
        scheme(kernel=kernel, **settings)(small_prior("a_vae"), x)
    assert "\n" not in str(stop.value)
    assert stop.value.partial.draws.shape == (1, 2, 6, 2)
    ended = scheme(kernel=RandomWalk(), **settings)(small_prior("a_vae"), x)
    assert len(ended.objective) == 5


@dataclass(frozen=True)
class Lost(RandomWalk):
    """In its third E-step the density is NaN from the third step on: the second draw after one step of warm-up."""

    runs: list[int] = field(default_factory=list)
    moves: list[int] = field(default_factory=list)

    def init(self, target: Target, z: Tensor) -> State:
        self.runs.append(1)
        self.moves.clear()
        return super().init(target, z)

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        state, info = super().step(target, state, rng=rng)
        self.moves.append(1)
        lost = len(self.runs) == 3 and len(self.moves) == 3
        return (
            (replace(state, log_density=state.log_density / 0 * 0), info) if lost else (state, info)
        )


@pytest.mark.parametrize("name", ["vem", "collapsed_vem", "mcem", "ldem"])
def test_a_divergence_inside_an_e_step_names_the_iteration(
    name: str, small_prior: Callable[..., Any]
) -> None:
    """Scheme, iteration, kernel, and the first draw that is lost."""
    scheme = SCHEMES[name](
        kernel=Lost(), iterations=5, chains=1, warmup=1, draws=4, noise=NoiseModel.paper(2)
    )
    found = rf"^{name}, iteration 3: Lost: .* 6 of 6 frames is not finite, first in draw 2 of 4: "
    with pytest.raises(Divergence, match=found):
        scheme(small_prior("a_vae"), torch.randn(6, 7, dtype=torch.complex128))
