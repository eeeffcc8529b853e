"""PyroKernel: inside pyro.infer.MCMC our kernels draw what `run_chains` draws, bit for bit."""

import math
import os
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Independent, Normal
from pyro.infer import MCMC, Predictive
from torch import Tensor, nn

from pyro_avse.errors import Divergence
from pyro_avse.inference import KERNELS, PyroKernel, RandomWalk, run_chains
from pyro_avse.inference.adaptation import DualAveraging, RobbinsMonro
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.typing import Chains, InputError, Kernel, Target

pytestmark = pytest.mark.usefixtures("float64")
every_kernel = pytest.mark.parametrize(
    "name", sorted(KERNELS.keys() - {"blocks"})
)  # which are of paths
Build = Callable[[str], Target]


@pytest.fixture
def posterior(small_prior: Callable[..., nn.Module], random_power: Callable[..., Tensor]) -> Build:
    """posterior(kernel): p(z | x) of two utterances of four frames, of a mixture for gibbs, with a proposal."""

    def build(kernel: str) -> Target:
        prior: Any = small_prior("two_decoders" if kernel == "gibbs" else "a_vae")
        K, powers = prior.num_components, (random_power(2, 4, 7), random_power(2, 4, 7))
        pi, q = torch.full((K, 2), 1 / K), Normal(torch.zeros(2), 2 * torch.ones(2))
        return CollapsedTarget(prior, None, *powers, pi, proposal=Independent(q, 1))

    return build


def run_in_pyro(kernel: PyroKernel, draws: int, warmup: int = 0) -> MCMC:
    mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    mcmc.run()
    return mcmc


def assert_same(mcmc: MCMC, kernel: PyroKernel, chains: Chains) -> None:
    """Draws, state, kernel and diagnostics of the two are the same."""
    assert torch.equal(mcmc.get_samples()["z"].movedim(0, 1), chains.draws)
    assert torch.equal(mcmc.get_samples(group_by_chain=True)["z"][0], mcmc.get_samples()["z"])
    assert torch.equal(kernel.state.z, chains.state.z)
    assert torch.equal(kernel.state.log_density, chains.state.log_density)
    found = mcmc.diagnostics()
    assert torch.equal(found["acceptance rate"]["chain 0"], chains.acceptance_rate)
    assert ("divergences" in found) == (chains.diverging is not None)
    if chains.diverging is not None:
        expected = [d for d in range(chains.draws.shape[1]) if chains.diverging[:, d].any()]
        assert found["divergences"]["chain 0"] == expected


@every_kernel
def test_draws_are_run_chains_bit_for_bit(name: str, posterior: Build) -> None:
    """S7: three chains of a batch, warm-up thrown away, with and without thinning; no other random state is used."""
    target, z0 = posterior(name), 0.3 * torch.randn(3, 2, 4, 2)
    for thin in (1, 3):
        before = torch.get_rng_state()
        kernel = PyroKernel(KERNELS[name](), target, z0, thin=thin, seed=5)
        mcmc = run_in_pyro(kernel, draws=6, warmup=4)
        assert torch.equal(torch.get_rng_state(), before)
        chains = run_chains(KERNELS[name](), target, z0, draws=6, warmup=4, thin=thin, seed=5)
        assert_same(mcmc, kernel, chains)
        other = run_chains(KERNELS[name](), target, z0, draws=6, warmup=4, thin=thin, seed=6)
        assert not torch.equal(other.draws, chains.draws)


@pytest.mark.parametrize("adapt", [RobbinsMonro(), DualAveraging()], ids=["robbins", "dual"])
@pytest.mark.parametrize("name", ["random_walk", "hmc", "gibbs"])
def test_step_sizes_adapt_as_in_run_chains(name: str, adapt: Any, posterior: Build) -> None:
    """Pyro's warm-up is the adaptation's: the same frozen step sizes, thinned draws after it the same."""
    target, z0 = posterior(name), 0.3 * torch.randn(3, 2, 4, 2)
    kernel = PyroKernel(KERNELS[name](), target, z0, adapt=adapt, thin=2, seed=5)
    mcmc = run_in_pyro(kernel, draws=5, warmup=12)
    settings = {"draws": 5, "warmup": 12, "thin": 2, "seed": 5}
    chains = run_chains(KERNELS[name](), target, z0, adapt=adapt, **settings)
    assert_same(mcmc, kernel, chains)
    fixed = run_chains(KERNELS[name](), target, z0, **settings)
    assert not torch.equal(fixed.draws, chains.draws)


def test_divergences_are_the_draws_that_saw_one(posterior: Build) -> None:
    """A step far too large: every trajectory diverges, and Pyro's summary counts them."""
    kernel = PyroKernel(HMC(1e8), posterior("hmc"), torch.zeros(2, 2, 4, 2))
    mcmc = run_in_pyro(kernel, draws=5)
    assert mcmc.diagnostics()["divergences"]["chain 0"] == [0, 1, 2, 3, 4]
    assert not kernel.diagnostics()["acceptance rate"].any()


def test_pyros_hooks_and_initial_params_work(posterior: Build, capsys: Any) -> None:
    """A hook sees every step, its acceptance too; `initial_params` takes the place of z0."""
    target, z0 = posterior("random_walk"), 0.3 * torch.randn(3, 2, 4, 2)
    seen: list[tuple[str, str]] = []

    def hook(kernel: Any, params: dict[str, Tensor], stage: str, step: int) -> None:
        seen.append((stage, kernel.logging()["acceptance"]))

    kernel = PyroKernel(RandomWalk(), target, torch.zeros_like(z0), seed=2)
    settings = {"num_samples": 5, "warmup_steps": 2, "hook_fn": hook, "disable_progbar": True}
    mcmc = MCMC(kernel, initial_params={"z": z0}, **settings)
    mcmc.run()
    chains = run_chains(RandomWalk(), target, z0, draws=5, warmup=2, seed=2)
    assert_same(mcmc, kernel, chains)
    assert [stage for stage, _ in seen] == ["Warmup"] * 2 + ["Sample"] * 5
    assert seen[-1][1] == f"{float(chains.acceptance_rate.mean()):.3f}"
    mcmc.summary()
    assert "z[0,0,0,0]" in capsys.readouterr().out


def test_a_second_run_goes_on_with_the_random_numbers(posterior: Build) -> None:
    """Run twice it starts at z0 twice, and does not draw the same: that would look like perfect agreement."""
    target, z0 = posterior("mala"), 0.3 * torch.randn(3, 2, 4, 2)
    rng = torch.Generator().manual_seed(3)
    kernel = PyroKernel(KERNELS["mala"](), target, z0, seed=3)
    for _ in range(2):
        mcmc = run_in_pyro(kernel, draws=4, warmup=2)
        chains = run_chains(KERNELS["mala"](), target, z0, draws=4, warmup=2, seed=rng)
        assert_same(mcmc, kernel, chains)


def test_processes_of_pyro_are_refused(posterior: Build, monkeypatch: Any) -> None:
    """`num_chains` would start processes that all draw the same: one line says where the chains are."""
    kernel = PyroKernel(RandomWalk(), posterior("random_walk"), torch.zeros(2, 2, 4, 2))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(InputError, match="leave num_chains of MCMC at 1") as refusal:
        run_in_pyro(kernel, draws=1)
    assert "\n" not in str(refusal.value)


def test_a_start_outside_the_region_is_a_divergence(posterior: Build) -> None:
    """Where `run_chains` raises Divergence so does the run in Pyro, with the last state."""
    z0 = torch.zeros(2, 2, 4, 2)
    z0[1, 0, 3] = math.nan
    kernel: Kernel = RandomWalk()
    with pytest.raises(Divergence, match="1 of 16 frames is not finite") as stop:
        run_in_pyro(PyroKernel(kernel, posterior("random_walk"), z0), draws=3)
    assert stop.value.partial.draws.shape == (2, 1, 2, 4, 2)


def test_draws_feed_pyros_predictive(posterior: Build) -> None:
    """What MCMC returns are posterior samples like any other of Pyro's: a program takes them up."""
    kernel = PyroKernel(RandomWalk(), posterior("random_walk"), torch.zeros(3, 2, 4, 2))
    mcmc = run_in_pyro(kernel, draws=5)

    def program() -> Tensor:
        z = pyro.sample("z", Normal(torch.zeros(3, 2, 4, 2), 1).to_event(4))
        return pyro.deterministic("norm", z.norm(dim=-1))

    norms = Predictive(program, mcmc.get_samples())()["norm"]
    torch.testing.assert_close(norms, mcmc.get_samples()["z"].norm(dim=-1))
