"""R-hat and effective draws: ArviZ's own on the raw arrays, thresholds that see bad chains, blocks that are one run."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arviz
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from pyro.distributions import Independent
from pyro.distributions import Normal as pyro_normal
from torch import Tensor

from pyro_avse.errors import Divergence, InputError
from pyro_avse.inference import KERNELS, MCEM, RandomWalk, run_chains
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.ldem import LDEM
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.lab.diagnostics import (
    ACCEPTANCE_MIN,
    ESS_MIN,
    RHAT_MAX,
    Diagnosis,
    adaptation_for,
    diagnose,
    sample_posterior,
    starting_points,
    to_inference_data,
)
from pyro_avse.lab.draws_on_disk import load_draws, stream_chains
from pyro_avse.lab.figures import diagnosis_figures
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import Chains, Info, State

pytestmark = pytest.mark.usefixtures("float64")


@dataclass(frozen=True)
class Normal:
    """A standard normal of any latent dimension; it ends the run after so many calls."""

    calls: list[int]
    end: Any = None
    after: int = 10**9
    event_dim: int = 1

    def log_density(self, z: Tensor) -> Tensor:
        self.calls.append(1)
        if len(self.calls) > self.after and isinstance(self.end, BaseException):
            raise self.end
        value = -0.5 * z.square().sum(-1)
        return value + torch.nan if len(self.calls) > self.after else value


def chains_of(draws: Tensor, **changes: Any) -> Chains:
    """Draws (chain, draw, ..., frame, latent) as if run_chains had made them, every proposal accepted."""
    log_density = -0.5 * draws.square().sum(-1)
    chains = Chains(
        draws=draws,
        log_density=log_density,
        accepted=torch.ones_like(log_density, dtype=torch.bool),
        diverging=None,
        acceptance_rate=torch.ones_like(log_density[:, 0]),
        state=State(draws[:, -1], log_density[:, -1]),
        kernel=RandomWalk(),
    )
    return replace(chains, **changes)


def autoregression(factor: float, chains: int = 4, draws: int = 1000) -> Tensor:
    """Stationary, variance 1: one frame, one code."""
    z, noise = torch.randn(chains), torch.randn(draws, chains)
    steps = []
    for xi in noise:
        z = factor * z + (1 - factor**2) ** 0.5 * xi
        steps.append(z)
    return torch.stack(steps, 1)[..., None, None]


def posterior_of(draws: Tensor) -> Diagnosis:
    return diagnose(to_inference_data(chains_of(draws)))


def test_the_numbers_are_arvizs_on_the_raw_arrays() -> None:
    """A frame's R-hat is its codes' largest, its ESS their smallest, each what ArviZ says of (chain, draw)."""
    draws = torch.randn(3, 40, 2, 5, 4).cumsum(1) * torch.rand(5, 4) + torch.randn(3, 40, 2, 5, 4)
    found = posterior_of(draws)
    for u, n in np.ndindex(2, 5):
        arrays = [draws[:, :, u, n, code].numpy() for code in range(4)]
        assert found.rhat[u, n] == pytest.approx(max(arviz.rhat(a) for a in arrays), rel=1e-12)
        for method, prob in (("bulk", None), ("tail", (0.05, 0.95))):
            expected = min(arviz.ess(a, method=method, prob=prob) for a in arrays)
            ours = getattr(found, f"ess_{method}")[u, n]
            assert ours == pytest.approx(expected, rel=1e-12)


def test_an_autoregressions_ess_is_known() -> None:
    """n (1 - a) / (1 + a) of n draws, within 25 % (five runs of 4000 draws stay within 13 %)."""
    for factor in (0.0, 0.5, 0.8):
        expected = 4000 * (1 - factor) / (1 + factor)
        assert posterior_of(autoregression(factor)).ess_bulk[0] == pytest.approx(expected, rel=0.25)


def test_axes_have_names_and_nothing_is_lost() -> None:
    """Dims, statistics and constants of two utterances under HMC; without what a kernel has not."""
    target, z0, power = Normal([]), torch.randn(2, 3, 5, 4), torch.rand(3, 5, 7)
    chains = run_chains(HMC(0.3), target, z0, draws=6, warmup=4, adapt=adaptation_for(HMC()))
    idata = to_inference_data(chains, observed=power, model_name="a_vae")
    posterior, stats = idata["posterior"]["z"], idata["sample_stats"]
    frames = ("chain", "draw", "utterance_1", "frame")
    assert posterior.dims == (*frames, "latent")
    assert stats["lp"].dims == stats["acceptance_rate"].dims == stats["diverging"].dims == frames
    assert stats["step_size"].dims == ("chain", "utterance_1", "frame")
    np.testing.assert_array_equal(posterior, chains.draws)
    np.testing.assert_array_equal(stats["lp"], chains.log_density)
    np.testing.assert_array_equal(stats["acceptance_rate"], chains.accepted.double())
    np.testing.assert_array_equal(stats["diverging"], chains.diverging)
    np.testing.assert_array_equal(stats["step_size"], chains.kernel.step_size)
    np.testing.assert_array_equal(idata["observed_data"]["power"], power)
    assert idata["observed_data"]["power"].dims == ("utterance_1", "frame", "freq")
    assert idata["constant_data"]["model"].item() == "a_vae"
    bare = to_inference_data(chains_of(torch.randn(2, 6, 5, 4), kernel=KERNELS["independence"]()))
    assert set(bare["sample_stats"].data_vars) == {"lp", "acceptance_rate"}


def test_an_utterance_that_is_one_event() -> None:
    """lp and acceptance have no frames, the diagnosis has them all the same."""
    draws = torch.randn(4, 500, 3, 2)
    whole = -0.5 * draws.square().sum((-1, -2))
    accepted = torch.rand(4, 500) < 0.5
    chains = chains_of(draws, log_density=whole, accepted=accepted, state=State(draws, whole[:, 0]))
    idata = to_inference_data(chains)
    assert idata["sample_stats"]["lp"].dims == ("chain", "draw")
    assert idata["sample_stats"]["step_size"].dims == ("chain",)
    found = diagnose(idata)
    np.testing.assert_allclose(found.acceptance, [accepted.double().mean()] * 3)
    assert not found.failures()


def test_thresholds_pass_a_good_chain_and_flag_bad_ones() -> None:
    """Seven frames of 4 x 1000 draws: independent ones pass; each kind of trouble is named, in its frame alone.

    Of independent draws R-hat passes 1.01 about never at 4000 draws (its excess is of the order of 1/1000).
    """
    draws = torch.randn(4, 1000, 7, 2)
    draws[0, :, 1] += 0.5  # one chain is elsewhere
    draws[..., 2, :1] = autoregression(0.95)[..., 0, :]  # chains that agree, and crawl
    draws[:, :, 3] = draws[:1, :1, 3]  # all stand still at one point: ArviZ's ESS of it is 4000
    draws[:, :, 4] = draws[:, :1, 4]  # each stands at its own
    accepted = torch.ones(4, 1000, 7, dtype=torch.bool)
    accepted[:, 40:, 5] = False
    diverging = torch.zeros(4, 1000, 7, dtype=torch.bool)
    diverging[2, 17, 6] = True
    found = diagnose(to_inference_data(chains_of(draws, accepted=accepted, diverging=diverging)))
    failures = found.failures()
    assert failures.keys() == {(n,) for n in range(1, 7)}
    assert failures[1,] == f"R-hat over {RHAT_MAX}, bulk ESS under {ESS_MIN}"
    assert f"bulk ESS under {ESS_MIN}" in failures[2,]
    for still in (3, 4):
        assert found.rhat[still] == np.inf
        assert found.ess_bulk[still] == found.ess_tail[still] == 0
        assert "R-hat" in failures[still,]
        assert "tail ESS" in failures[still,]
    assert failures[5,] == f"acceptance under {ACCEPTANCE_MIN}"
    assert failures[6,] == "divergences"
    summary = found.summary()
    assert summary["rhat"]["worst"] is None  # infinite, which JSON has not
    assert summary["rhat"]["median"] == pytest.approx(np.median(found.rhat))
    assert summary["ess_bulk"] == {"worst": 0.0, "median": np.median(found.ess_bulk)}
    assert (summary["acceptance"]["worst"], summary["divergences"]) == (0.04, 1)


def test_one_chain_cannot_be_judged() -> None:
    """R-hat of a single chain is missing, and so it fails."""
    assert "R-hat" in posterior_of(torch.randn(1, 1000, 1, 2)).failures()[0,]


def test_a_long_run_goes_on_from_the_scheme(small_prior: Callable[..., Any]) -> None:
    """`sample_posterior`: a seed decides; steps are found and frozen; one chain starts where the scheme's stands."""
    x = torch.randn(6, 7, dtype=torch.complex128)
    result = MCEM(iterations=2, warmup=2, draws=2, chains=3, noise=NoiseModel.paper(2))(
        small_prior("a_vae"), x
    )
    runs = [
        sample_posterior(result, RandomWalk(), draws=30, warmup=20, chains=4, seed=s)
        for s in (1, 1, 2)
    ]
    (one, seconds), (again, _), (other, _) = runs
    assert seconds > 0
    assert torch.equal(one.draws, again.draws)
    assert not torch.equal(one.draws, other.draws)
    assert one.kernel.step_size.shape == (4, 6)
    assert one.draws.shape == (4, 30, 6, 2)
    still = sample_posterior(result, RandomWalk(1e-12), draws=1, warmup=0, chains=4)[0]
    torch.testing.assert_close(still.draws[0, 0], result.z[0])
    assert (still.draws[1:, 0] - result.z[0]).abs().amin((1, 2)).min() > 0
    with pytest.raises(InputError, match="needs a target with `proposal`"):
        sample_posterior(result, KERNELS["independence"](), draws=2, warmup=0)


@dataclass(frozen=True)
class TwoModes:
    """p(z) = 1/2 N(-6, 0.3^2 I) + 1/2 N(6, 0.3^2 I), under a prior whose two components are wider."""

    event_dim: int = 1

    @property
    def components(self) -> Independent:
        mean = torch.tensor([-6.0, 6.0])[:, None, None, None].expand(2, 1, 1, 4)
        return Independent(pyro_normal(mean, torch.full_like(mean, 2.0)), 1)

    def log_density(self, z: Tensor) -> Tensor:
        distances = torch.stack([z + 6, z - 6]).square().sum(-1)
        return -0.5 * distances.amin(0) / 0.3**2


def test_a_missed_mode_is_seen() -> None:
    """Two modes that no random walk crosses between: R-hat says so, and of chains that start in one mode it does not.

    Four codes, in which no step that is ever taken leads from mode to mode. The second R-hat is of chains that agree.
    """
    start = torch.full((1, 3, 4), 6.0)
    scheme: Any = SimpleNamespace(z=start, target=TwoModes())
    settings: Any = {"draws": 4000, "warmup": 200}
    drawn, _ = sample_posterior(scheme, RandomWalk(1.0), chains=4, **settings)
    assert (diagnose(to_inference_data(drawn)).rhat > 1.5).all()
    modes = drawn.draws.mean((1, 3)).sign()
    assert torch.equal(modes, torch.tensor([1, -1, 1, -1.0])[:, None].expand(4, 3))
    blind = run_chains(RandomWalk(0.3), TwoModes(), start.repeat(4, 1, 1), **settings)
    assert (diagnose(to_inference_data(blind)).rhat < RHAT_MAX).all()


def test_starts_are_of_the_prior(small_prior: Callable[..., Any]) -> None:
    """Component after component, of 4000 chains: mean and deviation within 5 standard errors (1 in 10^5 seeds)."""
    prior, x = small_prior("min_vae_v2"), torch.randn(3, 7, dtype=torch.complex128)
    lips = torch.rand(3, 67, 67)
    result = MCEM(iterations=1, warmup=1, draws=1, noise=NoiseModel.paper(2))(prior, x, lips)
    starts = starting_points(result, 8001, rng=torch.Generator().manual_seed(0))
    assert torch.equal(starts[0], result.z[0])
    p = prior.latent_prior(lips)
    for k in (0, 1):
        noise = (starts[1 + k :: 2] - p.mean[k]) / p.stddev[k]
        assert (noise.mean(0).abs() < 5 / 4000**0.5).all()
        assert ((noise.std(0) - 1).abs() < 5 / 8000**0.5).all()


def test_smooth_codes_can_be_diagnosed(small_prior: Callable[..., Any]) -> None:
    """Under ldem's penalty an utterance is one event: the diagnosis has its frames, of one acceptance."""
    x = torch.randn(5, 7, dtype=torch.complex128)
    quick = {"iterations": 1, "warmup": 1, "draws": 1, "final_warmup": 1, "final_draws": 1}
    scheme = LDEM(
        kernel=MALA(0.1), total_variation=1.0, chains=2, noise=NoiseModel.paper(2), **quick
    )
    result = scheme(small_prior("a_vae"), x)
    drawn, _ = sample_posterior(result, scheme.kernel, draws=40, warmup=40)
    assert drawn.log_density.shape == (4, 40)
    assert not torch.equal(drawn.draws[1, 0], drawn.draws[0, 0])
    found = diagnose(to_inference_data(drawn))
    assert found.rhat.shape == found.acceptance.shape == (5,)
    assert np.ptp(found.acceptance) == 0 < found.acceptance[0]


@pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"blocks"}))
def test_blocks_are_one_run_bit_for_bit(
    name: str, small_prior: Callable[..., Any], random_power: Callable[..., Tensor], tmp_path: Path
) -> None:
    """Every kernel, its step sizes adapted where it has any, thinned: 3 blocks and a rest are the draws of one run."""
    prior = small_prior("two_decoders" if name == "gibbs" else "a_vae")
    power, kernel, pi = random_power(5, 7), KERNELS[name](), prior.mixing_weight
    proposal = guide_proposal(kernel, lambda: prior.encode(power, None), pi[:, None].expand(-1, 5))
    target = CollapsedTarget(prior, None, power, torch.ones_like(power), pi, proposal=proposal)
    z0, adapt = torch.randn(2, 5, 2), adaptation_for(kernel)
    settings = {"draws": 20, "warmup": 7, "adapt": adapt, "thin": 2, "seed": 3}
    whole = run_chains(kernel, target, z0, **settings)
    drawn: list[int] = []
    path = tmp_path / "draws.nc"
    stream_chains(
        kernel, target, z0, path, block=6, model_name=name, progress=drawn.append, **settings
    )
    assert drawn == [6, 12, 18, 20]
    idata, expected = load_draws(path), to_inference_data(whole, model_name=name)
    for group in ("posterior", "sample_stats", "constant_data"):
        assert set(idata[group].data_vars) == set(expected[group].data_vars)
        for key in expected[group].data_vars:
            found, wanted = idata[group][key], expected[group][key]
            assert (found.dims, found.dtype) == (wanted.dims, wanted.dtype)
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(idata["posterior"]["draw"], np.arange(20))
    opened = arviz.from_netcdf(path)
    np.testing.assert_array_equal(opened["posterior"]["z"], whole.draws)


def test_an_interrupted_run_keeps_its_blocks(tmp_path: Path) -> None:
    """Ctrl-C in the third block leaves the two before, in a file that ends there when loaded."""
    z0, path = torch.randn(2, 3, 2), tmp_path / "draws.nc"
    whole = run_chains(RandomWalk(1.0), Normal([]), z0, draws=30, seed=1)
    stopped = Normal([], KeyboardInterrupt(), after=28)
    with pytest.raises(KeyboardInterrupt):
        stream_chains(RandomWalk(1.0), stopped, z0, path, draws=30, block=10, seed=1)
    np.testing.assert_array_equal(load_draws(path)["posterior"]["z"], whole.draws[:, :20])
    with pytest.raises(KeyboardInterrupt):  # before anything is drawn the older file stays
        stream_chains(RandomWalk(1.0), stopped, z0, path, draws=30, block=10, seed=2)
    np.testing.assert_array_equal(load_draws(path)["posterior"]["z"], whole.draws[:, :20])


@pytest.mark.parametrize(("calls", "kept"), [(23, 20), (27, 24)])
def test_a_diverging_run_keeps_what_was_drawn(calls: int, kept: int, tmp_path: Path) -> None:
    """Where the density becomes NaN under a kernel that does not look, the block is kept up to there.

    A block of 10 calls it 11 times.
    """
    path, broken = tmp_path / "draws.nc", Normal([], after=calls)
    with pytest.raises(Divergence, match="Reckless"):
        stream_chains(Reckless(), broken, torch.randn(2, 3, 2), path, draws=30, block=10)
    assert load_draws(path)["posterior"]["z"].shape == (2, kept, 3, 2)


@dataclass(frozen=True)
class Reckless(RandomWalk):
    """Takes every step, wherever it leads."""

    def step(self, target: Any, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        z = state.z + torch.randn(state.z.shape, generator=rng)
        new = State(z, target.log_density(z))
        return new, Info(torch.ones_like(new.log_density, dtype=torch.bool))


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """One line, which names the file."""
    path = tmp_path / "none" / "draws.nc"
    with pytest.raises(InputError, match=r"none/draws\.nc cannot be written") as refused:
        stream_chains(RandomWalk(), Normal([]), torch.randn(1, 2, 2), path, draws=2)
    assert "\n" not in str(refused.value)


KILLED = """
import sys, torch
from pathlib import Path
from pyro_avse.inference import RandomWalk
from pyro_avse.lab.draws_on_disk import stream_chains
class Normal:
    event_dim = 1
    def log_density(self, z): return -0.5 * z.square().sum(-1)
z0 = torch.zeros(2, 500, 8)
stream_chains(RandomWalk(1.0), Normal(), z0, Path(sys.argv[1]), draws=100_000 // 20, block=20,
              progress=lambda n: print(n, flush=True))
"""


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_keeps_its_blocks(kills: int, tmp_path: Path) -> None:
    """kill -9 at some moment: the file opens, and holds at least the blocks that were reported, as drawn."""
    torch.set_default_dtype(torch.float32)  # the other process's
    rng = np.random.default_rng(0)
    for kill in range(kills):
        path = tmp_path / f"{kill}.nc"
        command = [sys.executable, "-c", KILLED, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            reported = [20, *map(int, process.stdout.read().split())][-1]
        z = load_draws(path)["posterior"]["z"]
        assert reported <= z.sizes["draw"] < 5000
        same = run_chains(
            RandomWalk(1.0), Normal([]), torch.zeros(2, 500, 8), draws=z.sizes["draw"]
        )
        np.testing.assert_array_equal(z, same.draws)


def test_figures_show_something(tmp_path: Path) -> None:
    """Trace, rank and ESS figures of two utterances, one of them stuck, are written and not blank."""
    draws = torch.randn(2, 50, 2, 3, 2)
    draws[:, :, 1] = 0
    idata = to_inference_data(chains_of(draws))
    paths = diagnosis_figures(idata, diagnose(idata), tmp_path)
    assert paths.keys() == {"trace", "rank", "ess"}
    for path in paths.values():
        assert np.ptp(imread(path)) > 0.5
