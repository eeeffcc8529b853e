"""Compiled: the kernel's own draws from the same seed, whatever is compiled with it; refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_avse.inference import (
    HMC,
    MALA,
    VEM,
    Compiled,
    DualAveraging,
    Independence,
    RandomWalk,
    run_chains,
)
from pyro_avse.inference.compiled import leaves, rebuild, signature
from pyro_avse.inference.gibbs import Gibbs
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import Info, InputError, Kernel, State, Target

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # torch's own
]
Posterior = Callable[[str], CollapsedTarget]


@pytest.fixture
def posterior(
    small_prior: Callable[..., nn.Module], random_power: Callable[..., Tensor]
) -> Posterior:
    """p(z | x) of two utterances of four frames under that prior, of another mixture at each call."""
    priors: dict[str, Any] = {}

    def build(name: str) -> CollapsedTarget:
        prior = priors.setdefault(name, small_prior(name))
        K, powers = prior.num_components, (random_power(2, 4, 7), random_power(2, 4, 7))
        return CollapsedTarget(prior, None, *powers, torch.full((K, 2), 1 / K), torch.ones(2, 4))

    return build


@pytest.mark.parametrize(
    ("kernel", "prior"),
    [
        (RandomWalk(0.5), "two_decoders"),
        (HMC(1.0, steps=2), "a_vae"),
        pytest.param(MALA(1.5), "two_decoders", marks=pytest.mark.slow),
        pytest.param(Gibbs(MALA(1.5)), "two_decoders", marks=pytest.mark.slow),
    ],
)
def test_draws_are_the_kernels_own(kernel: Kernel, prior: str, posterior: Posterior) -> None:
    """Blocks of 2 in 5 kept draws after 2 and a warm-up of 2: whole blocks and a step that is left over.

    One program serves two targets: nothing of the first is left in it.
    """
    compiled = Compiled(kernel, steps=2)
    for seed in (1, 2):
        target, z = (
            posterior(prior),
            torch.randn(3, 2, 4, 2, generator=torch.Generator().manual_seed(seed)),
        )
        own = run_chains(kernel, target, z, draws=5, warmup=2, seed=seed)
        found = run_chains(compiled, target, z, draws=5, warmup=2, seed=seed)
        for name in ("draws", "log_density", "acceptance_rate"):
            torch.testing.assert_close(getattr(found, name), getattr(own, name), rtol=0, atol=1e-10)
        assert torch.equal(found.accepted, own.accepted)
        assert (own.diverging is None) == (found.diverging is None)
        assert type(found.state) is type(own.state)
        assert 0 < own.accepted.double().mean() < 1
    assert len(compiled.programs) == 1


def test_step_sizes_are_adapted_uncompiled_then_go_into_the_program(posterior: Posterior) -> None:
    """Adapted step sizes are its inputs: another adaptation needs no other program."""
    kernel, target, z = RandomWalk(), posterior("a_vae"), torch.zeros(1, 2, 4, 2)
    compiled = Compiled(kernel, steps=2)
    found = None
    for seed in (1, 2):
        settings: Any = {"draws": 4, "warmup": 6, "adapt": DualAveraging(), "seed": seed}
        own = run_chains(kernel, target, z, **settings)
        found = run_chains(compiled, target, z, **settings)
        torch.testing.assert_close(found.draws, own.draws, rtol=0, atol=1e-10)
        assert isinstance(found.kernel, Compiled)
        assert torch.equal(found.kernel.inner.step_size, own.kernel.step_size)  # type: ignore[attr-defined]
    assert len(compiled.programs) == 1


def test_in_a_scheme_it_changes_nothing(
    small_prior: Callable[..., nn.Module], random_power: Callable[..., Tensor]
) -> None:
    """Inside VEM, whose target is another in every iteration, one program serves all."""
    prior: Any = small_prior("a_vae")
    x = torch.polar(random_power(4, 7), random_power(4, 7))
    compiled = Compiled(RandomWalk(), steps=3)
    settings: Any = {"iterations": 3, "warmup": 4, "draws": 2, "noise": NoiseModel.paper(2)}
    own = VEM(**settings)(prior, x)
    found = VEM(kernel=compiled, **settings)(prior, x)
    torch.testing.assert_close(found.speech, own.speech, rtol=0, atol=1e-10)
    assert len(compiled.programs) == 1


def test_trees_of_tensors_come_apart_and_together() -> None:
    kernel, state = Gibbs(RandomWalk(torch.tensor(0.5))), State(torch.zeros(2), torch.ones(2))
    tree = (kernel, state)
    assert [leaf.tolist() for leaf in leaves(tree)] == [0.5, [0.0, 0.0], [1.0, 1.0]]
    doubled = rebuild(tree, iter([2 * leaf for leaf in leaves(tree)]))
    assert isinstance(doubled[0], Gibbs)
    assert doubled[0].inner.step_size == 1
    assert doubled[1].log_density.tolist() == [2.0, 2.0]
    assert signature(tree) == signature(doubled)
    assert signature(RandomWalk(0.1)) != signature(RandomWalk(0.2))
    assert signature(state) != signature(State(torch.zeros(3), torch.ones(3)))


def test_refusals(posterior: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="proposes from a guide that each E-step makes anew: take"):
        Compiled(Gibbs(Independence()))
    with pytest.raises(InputError, match="Compiled: steps is 0: give 1 or more"):
        Compiled(RandomWalk(), steps=0)
    target, z = posterior("a_vae"), torch.zeros(1, 2, 4, 2)
    with pytest.raises(
        InputError, match=r"Compiled: Peeking cannot be compiled .*no tensor's value"
    ):
        run_chains(Compiled(Peeking(), steps=2), target, z, draws=2)
    with pytest.raises(
        InputError, match="Compiled: normal draws by the values of a tensor: draw by"
    ):
        run_chains(Compiled(Centred(), steps=2), target, z, draws=2)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(InputError, match=r"RandomWalk cannot be compiled .*needs a C\+\+ compiler"):
        run_chains(Compiled(RandomWalk(), steps=2), target, z, draws=2)


def test_a_kernels_own_errors_are_its_own_and_what_fails_is_not_kept(posterior: Posterior) -> None:
    target, z = posterior("a_vae"), torch.zeros(1, 2, 4, 2)
    broken = Compiled(Broken(), steps=2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of luck"):
            run_chains(broken, target, z, draws=2)
    assert not broken.programs


class Broken(RandomWalk):
    """A walk that fails for a reason of its own."""

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        raise RuntimeError("out of luck")


class Centred(RandomWalk):
    """A walk that lets torch.normal centre the proposal: right by itself, not to be drawn apart from z."""

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        z = torch.normal(state.z, 0.1, generator=rng)
        return State(z, target.log_density(z)), Info(torch.ones_like(state.log_density).bool())


class Peeking(RandomWalk):
    """A walk that looks at where it stands."""

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        if state.z.sum() > 1e9:
            raise ValueError("gone")
        return super().step(target, state, rng=rng)
