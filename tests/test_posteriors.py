"""The library of posteriors: densities by other routes, references, other libraries' samplers, verdicts, command."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_avse.cli import main
from pyro_avse.distributions import ComplexNormal
from pyro_avse.errors import InputError
from pyro_avse.inference import HMC, MALA, RandomWalk
from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.ula import ULA
from pyro_avse.lab.posteriors import POSTERIORS, judge, library, load, race
from pyro_avse.lab.posteriors.race import FAR, Counted, Verdict
from pyro_avse.lab.posteriors.stories import Line, Noise
from pyro_avse.typing import Info, State

every_posterior = pytest.mark.parametrize("name", POSTERIORS)
pytestmark = pytest.mark.usefixtures("float64")


def by_pyro(posterior: Any, z: Tensor) -> Tensor:
    """log p(x, z) of one z (frame, latent), term by term, by Pyro's distributions, components enumerated."""
    p, story = posterior.arrays, posterior.story
    standard = dist.Normal(torch.zeros(()), 1)
    if isinstance(story, Line):
        rho = p["rho"]
        prior = standard.log_prob(z[0]).sum()
        for before, after in pairwise(z):
            prior = prior + dist.Normal(rho * before, (1 - rho**2) ** 0.5).log_prob(after).sum()
        return prior + dist.Normal(z @ p["C"], p["scale"]).log_prob(p["y"]).sum()
    noise: Any = p.get("noise_variance")
    if isinstance(story, Noise):
        z, log_W, log_H = story.parts(z)
        prior = standard.log_prob(z).sum()
        for log_w, mean, shape in (
            (log_W, p["W_mean"], p["W_shape"]),
            (log_H, torch.ones(()), p["H_shape"]),
        ):
            # The logarithm's density is that of w, times w; w in units of its mean.
            w = log_w.exp() / mean
            prior = prior + (dist.Gamma(shape, shape).log_prob(w) + w.log()).sum()
        noise = log_H.exp() @ log_W.exp()
    components = []
    for k in range(len(p.get("pi", [1]))):
        A, a, B, b = (p[name][k % len(p[name])] for name in library.NETWORK)
        V = (torch.tanh(z @ A + a) @ B + b).exp() + noise
        of_frame = ComplexNormal(0, V.log()).log_prob(p["power"].sqrt()).sum(-1)
        if posterior.kind != "frames":
            return prior + of_frame.sum()
        prior_k = dist.Normal(p["mean"][k], p["stddev"][k][:, None]).log_prob(z).sum(-1)
        components.append(p["pi"][k].log() + prior_k + of_frame)
    return torch.logsumexp(torch.stack(components), 0).sum()


@every_posterior
def test_the_density_is_that_of_its_story(name: str) -> None:
    """Against Pyro's distributions, and what our kernels sample is the same, with its gradient."""
    posterior = load(name)
    z = posterior.starts(3, seed=0)
    expected = torch.stack([by_pyro(posterior, one) for one in z])
    assert torch.allclose(posterior.log_density(z), expected, rtol=1e-10)
    assert torch.allclose(posterior.potential({"z": z[0]}), -expected[0], rtol=1e-10)
    target = posterior.target()
    value, gradient = value_and_grad(target, z)
    total = value if target.event_dim == 2 else value.sum(-1)
    assert torch.allclose(total, expected, rtol=1e-10)
    leaf = z.clone().requires_grad_()
    slope = torch.autograd.grad(posterior.log_density(leaf).sum(), leaf)[0]
    assert torch.allclose(gradient, slope, rtol=1e-8, atol=1e-8)


@pytest.fixture
def jax64() -> Iterator[Any]:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        yield jax


@every_posterior
def test_jax_has_the_same_density_and_gradient(name: str, jax64: Any) -> None:
    """To 1e-6, jitted."""
    posterior = load(name)
    z = posterior.starts(1, seed=1)[0].requires_grad_()
    value = posterior.log_density(z)
    (slope,) = torch.autograd.grad(value, z)
    value = value.detach()
    both = jax64.jit(jax64.value_and_grad(posterior.log_density_in_jax()))
    found, gradient = both(z.detach().numpy())
    assert float(found) == pytest.approx(float(value), rel=1e-6)
    assert np.asarray(gradient) == pytest.approx(slope.numpy(), rel=1e-6, abs=1e-6)


def test_jax_is_loaded_on_demand_alone() -> None:
    code = (
        "import sys; from pyro_avse.lab.posteriors import load; load('line').target();"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_jax_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setitem(sys.modules, "jax.numpy", None)
    with pytest.raises(InputError, match="pip install"):
        load("line").log_density_in_jax()


@pytest.mark.parametrize("name", ["two_modes", "line", "unknown_noise"])
def test_simulated_data_are_of_the_story(name: str) -> None:
    """Over draws (x, z) of a story the score s = d/dz log p(x, z) has mean zero, and z s has mean -1.

    300 draws, 4.5 standard errors, of at most 108 numbers: false alarms 1e-3. A twin whose data are thrice too loud is
    seen.
    """
    posterior = load(name)
    data = "y" if name == "line" else "power"

    def worst(loudness: float) -> float:
        found = []
        for seed in range(300):
            new, z = posterior.simulate(seed=seed)
            new = replace(new, arrays=new.arrays | {data: loudness * new.arrays[data]})
            score = value_and_grad(new.target(), z[None])[1][0]
            found.append(torch.stack([score, z * score + 1]))
        of = torch.stack(found)
        return float((of.mean(0) / (of.std(0) / 300**0.5)).abs().max())

    assert worst(1.0) < 4.5
    assert worst(3.0) > 4.5


def test_the_answer_of_the_line_is_known() -> None:
    """Its Gaussian is its density up to a constant, and the reference its mean and spread."""
    posterior = load("line")
    assert isinstance(posterior.story, Line)
    exact, z = posterior.story.posterior(), posterior.starts(5, seed=0)
    difference = posterior.log_density(z) - exact.log_prob(z.flatten(1))
    assert torch.allclose(difference, difference[:1].expand(5), rtol=1e-10)
    known = posterior.reference()
    mean = exact.mean.reshape(posterior.shape).numpy()
    stddev = exact.stddev.reshape(posterior.shape).numpy()
    assert (np.abs(known.mean - mean) < 4.5 * known.mean_error).all()
    assert (np.abs(known.stddev - stddev) < 4.5 * known.stddev_error).all()


@every_posterior
def test_references_are_checked_and_small(name: str) -> None:
    """R-hat, ESS and tempered SMC, as is promised; draws agree with what the whole run said; ArviZ opens them."""
    import arviz

    known, posterior = load(name).reference(), load(name)
    assert known.mean.shape == posterior.shape
    assert known.r_hat.max() <= 1.01
    assert min(known.ess_bulk.min(), known.ess_tail.min()) >= 1_000
    assert known.about["smc_mean_off"] <= 0.2
    assert known.about["smc_stddev_off"] <= 0.2
    assert "benchmarks/reference_posteriors.py" in known.about["command"]
    z = known.draws.reshape(-1, *posterior.shape)
    assert (np.abs(z.mean(0) - known.mean) < 0.25 * known.stddev).all()
    assert (np.abs(z.std(0) / known.stddev - 1) < 0.2).all()
    draws = arviz.from_netcdf(library.FOLDER / f"{name}.nc")["posterior"]["z"]
    assert draws.dims == ("chain", "draw", "frame", "latent")
    assert np.array_equal(draws.values, known.draws)


def test_all_files_are_there_and_none_is_large() -> None:
    assert sum(file.stat().st_size for file in library.FOLDER.iterdir()) < 2e6
    networks = {"network_a_vae", "network_min_vae_v2"}
    assert {file.stem for file in library.FOLDER.iterdir()} == set(POSTERIORS) | networks
    assert 8 <= len(POSTERIORS) <= 12


def test_pyros_sampler_takes_it() -> None:
    """`potential_fn` of Pyro's NUTS."""
    from pyro.infer import MCMC, NUTS

    posterior = load("line")
    start = posterior.starts(1, seed=0)[0]
    mcmc = MCMC(
        NUTS(potential_fn=posterior.potential),
        num_samples=60,
        warmup_steps=40,
        initial_params={"z": start},
        disable_progbar=True,
    )
    mcmc.run()
    near(posterior, mcmc.get_samples()["z"].numpy())


@pytest.mark.slow
def test_numpyros_sampler_takes_it(jax64: Any) -> None:
    """`potential_fn` of NumPyro's NUTS."""
    infer = pytest.importorskip("numpyro.infer")
    posterior = load("line")
    density = posterior.log_density_in_jax()
    kernel = infer.NUTS(potential_fn=lambda z: -density(z))
    mcmc = infer.MCMC(kernel, num_warmup=60, num_samples=100, progress_bar=False)
    start = jax64.numpy.asarray(posterior.starts(1, seed=0)[0].numpy())
    mcmc.run(jax64.random.key(0), init_params=start)
    near(posterior, np.asarray(mcmc.get_samples()))


@pytest.mark.slow
def test_blackjaxs_sampler_takes_it(jax64: Any) -> None:
    """The log density of BlackJAX's NUTS."""
    blackjax = pytest.importorskip("blackjax")
    posterior = load("line")
    size = posterior.shape[0] * posterior.shape[1]
    nuts = blackjax.nuts(posterior.log_density_in_jax(), 0.15, jax64.numpy.ones(size))
    state = nuts.init(jax64.numpy.asarray(posterior.starts(1, seed=0)[0].numpy()))

    def step(state: Any, key: Any) -> Any:
        state, _ = nuts.step(key, state)
        return state, state.position

    keys = jax64.random.split(jax64.random.key(0), 150)
    near(posterior, np.asarray(jax64.lax.scan(step, state, keys)[1])[50:])


def near(posterior: Any, draws: np.ndarray) -> None:
    """60 draws or more have the reference's mean to 0.9 standard deviations, in 36 numbers: 0.13 each and alone."""
    known = posterior.reference()
    assert draws.shape[1:] == posterior.shape
    assert (np.abs(draws.mean(0) - known.mean) < 0.9 * known.stddev).all()


def test_a_right_kernel_passes_and_wrong_ones_do_not() -> None:
    """HMC passes; too short a walk has not mixed; a biased kernel is off."""
    posterior = load("one_mode")
    assert race(HMC(steps=8), posterior, draws=400, warmup=200).reason is None
    assert race(RandomWalk(), posterior, draws=100, warmup=0).reason == "R-hat over 1.01"
    biased = race(ULA(0.15), posterior, chains=100, draws=100, warmup=100)
    assert max(biased.mean_off, biased.stddev_off) > 2 * FAR


def test_far_modes_are_seen_to_be_missed() -> None:
    """HMC stays where it starts: R-hat says so where chains start in both modes, the reference where they do not."""
    posterior = load("far_modes")
    z0 = [posterior.starts(2, seed=seed)[:, 0, 0] for seed in range(20)]
    apart = next(seed for seed, z in enumerate(z0) if z.sign().prod() < 0)
    together = next(seed for seed, z in enumerate(z0) if z.sign().prod() > 0)
    options: Any = {"chains": 2, "draws": 300, "warmup": 100}
    assert race(HMC(), posterior, seed=apart, **options).reason == "R-hat over 1.01"
    missed = race(HMC(), posterior, seed=together, **options)
    assert missed.mean_off > 10
    assert missed.reason is not None


def test_the_reference_passes_its_own_judgement() -> None:
    """Its draws, as any sampler's; shifted by a fifth of a standard deviation they are off."""
    posterior = load("two_modes")
    draws = posterior.reference().draws
    assert judge(posterior, draws).reason is None
    shifted = judge(posterior, draws + 0.2 * posterior.reference().stddev)
    assert shifted.reason == "mean off"
    wide = draws.mean((0, 1)) + 1.2 * (draws - draws.mean((0, 1)))
    assert judge(posterior, wide).reason == "stddev off"


def test_chains_that_never_move_are_no_success() -> None:
    posterior = load("one_mode")
    stuck = judge(posterior, np.zeros((2, 10, *posterior.shape)), evaluations=10, seconds=1.0)
    assert (stuck.ess, stuck.r_hat, stuck.reason) == (0, np.inf, "R-hat over 1.01")
    assert json.loads(json.dumps(stuck.row()))["r_hat"] is None


def test_evaluations_are_counted() -> None:
    """HMC asks once a leapfrog step, MALA once, a walk once; the target stays itself."""
    posterior, rng = load("two_modes"), torch.Generator().manual_seed(0)
    z = posterior.starts(2, seed=0)
    for kernel, asked in ((HMC(steps=7), 7), (MALA(), 1), (RandomWalk(), 1)):
        target: Any = Counted(posterior.target())
        state = kernel.init(target, z)
        target.count = 0
        kernel.step(target, state, rng=rng)
        assert target.count == asked
        assert target.event_dim == 1
        assert target.gaussian is None  # a mixture's


def test_refusals_are_one_line() -> None:
    posterior = load("one_mode")
    for call, said in (
        (lambda: load("far_mode"), "did you mean 'far_modes'"),
        (lambda: race(HMC(), posterior, draws=3), "4 chains of 3 draws have no R-hat"),
        (lambda: race(HMC(), posterior, chains=1), "give 2 chains or more"),
        (lambda: judge(posterior, np.zeros((4, 3, *posterior.shape))), "of 4 draws or more"),
        (lambda: judge(posterior, np.zeros((4, 100, 2))), r"one_mode has \(chain, draw, 2, 2\)"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            call()
        assert "\n" not in str(refused.value)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pyro-avse", "lab", "posteriors", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capsys.readouterr()

    return call


def test_the_command_prints_a_row_for_every_kernel_and_posterior(run: Run) -> None:
    names = ["--only", "one_mode,line", "--kernels", "hmc,gibbs:pcn"]
    few = ["--draws", "20", "--warmup", "20", "--chains", "2"]
    code, out, err = run(*names, *few, "--json")
    assert code == 0
    rows = json.loads(out)
    assert [(row["posterior"], row["kernel"]) for row in rows] == [
        (p, k) for p in ("one_mode", "line") for k in ("hmc", "gibbs:pcn")
    ]
    assert rows[0]["ess_per_1000_evaluations"] > 0
    assert rows[1]["reason"].startswith("refused: gibbs needs a mixture, and CollapsedTarget")
    code, out, err = run(*names, *few)
    assert code == 0
    assert "verdict" in out
    assert "refused" in out
    assert "gibbs needs a mixture" in err


def test_the_command_refuses_in_one_line(run: Run) -> None:
    for arguments, said in (
        (["--only", "line,lime"], "unknown posterior 'lime'"),
        (["--kernels", "nuts"], "unknown kernel 'nuts'"),
        (["--draws", "3"], "of 4 draws or more"),
    ):
        code, out, err = run(*arguments)
        assert code == 2
        assert said in err
        assert len(err.splitlines()) == 1
        assert out == ""


def test_a_kernel_of_ones_own_is_judged() -> None:
    """Anything with `init` and `step`: here one that draws the answer itself."""

    class Oracle:
        def init(self, target: Any, z: Tensor) -> State:
            return State(z, target.log_density(z))

        def step(self, target: Any, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
            exact = target.story.posterior()
            noise = torch.randn(len(state.z), 36, 1, generator=rng)
            z = exact.mean + (exact.scale_tril @ noise)[..., 0]
            state = self.init(target, z.reshape(state.z.shape))
            return state, Info(torch.ones(len(z), dtype=torch.bool))

    verdict = race(Oracle(), load("line"), draws=400, warmup=0)
    assert isinstance(verdict, Verdict)
    assert verdict.reason is None
    assert verdict.ess > 1_000
    assert Path(library.FOLDER).is_dir()
