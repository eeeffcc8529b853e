"""Every kernel against stored posteriors of three small problems, and those against quadrature. S7, S17

How they were made is told in `reference_posteriors/make.py`. A new kernel is held against them by its line in
`KERNELS`; ULA, which is biased, is a twin that must fail.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Independent, Normal
from torch import Tensor

from pyro_avse.inference import KERNELS, run_chains
from pyro_avse.inference.adaptation import DualAveraging
from pyro_avse.inference.gibbs import Gibbs
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.typing import InputError, Kernel

FOLDER = Path(__file__).parent / "reference_posteriors"
PROBLEMS = sorted(path.stem for path in FOLDER.glob("*.json"))
every_exact_kernel = pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"ula"}))
every_problem = pytest.mark.parametrize("problem", PROBLEMS)
CHAINS = 500


def load_make() -> Any:
    spec = importlib.util.spec_from_file_location("make_reference_posteriors", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


def wider(target: CollapsedTarget) -> CollapsedTarget:
    """A twin whose prior standard deviations are 1.5 times the stored ones."""
    tensors = target.prior.tensors
    twin = make.target_of({**tensors, "stddev": 1.5 * tensors["stddev"]})
    return replace(twin, proposal=target.proposal)


def reference(problem: str) -> tuple[CollapsedTarget, dict[str, Tensor]]:
    """The target, with a guide to propose from, and the summary of the stored draws as tensors."""
    target, stored = make.load(problem)
    summary = {key: torch.tensor(value).double() for key, value in stored["summary"].items()}
    guide = Independent(Normal(summary["mean"], 1.3 * summary["stddev"]), 1)
    return replace(target, proposal=guide), summary


def least_ess(summary: dict[str, Any]) -> float:
    return min(float(np.asarray(summary[ess]).min()) for ess in ("ess_bulk", "ess_tail"))


def end_of_chains(kernel: Kernel, target: CollapsedTarget, chains: int = CHAINS) -> Tensor:
    """Where independent chains stand after 180 steps from draws of the wide guide, (chain, frame, latent).

    A kernel that needs a Gaussian prior runs inside Gibbs, and without a mixture Gibbs is its inner kernel; a step
    size is adapted in the first 120.
    """
    guide, rng = target.proposal, torch.Generator().manual_seed(7)
    noise = torch.randn(chains, *guide.mean.shape, generator=rng, dtype=torch.float64)
    z0 = guide.mean + guide.stddev * noise
    try:
        kernel.init(target, z0)
    except InputError:
        kernel = kernel.inner if isinstance(kernel, Gibbs) else Gibbs(kernel)
    tunable = hasattr(getattr(kernel, "inner", kernel), "target_acceptance")
    options = {"draws": 1, "warmup": 120, "thin": 60, "adapt": DualAveraging() if tunable else None}
    return run_chains(kernel, target, z0, seed=8, **options).state.z


def max_z(z: Tensor, summary: dict[str, Tensor]) -> float:
    """The worst z-score of 2 means, 2 variances, a covariance and 10 quantiles of each frame.

    The Monte Carlo error is that of the chains and of the stored draws together. Of 30 scores |z| > 4.5 has
    probability 7e-6 each: false alarms 2e-4.
    """
    deviation = z - summary["mean"]
    below = z[..., None] < summary["quantiles"]
    statistics = [deviation, deviation.square(), deviation.prod(-1, True), below.flatten(-2)]
    probabilities = torch.tensor(make.PROBABILITIES).double().repeat(2).expand(z.shape[1], -1)
    variance, covariance = summary["stddev"].square(), summary["covariance"][:, None]
    expected = [torch.zeros_like(variance), variance, covariance, probabilities]
    s, e = torch.cat([x.double() for x in statistics], -1), torch.cat(expected, -1)
    error = (s.var(0) * (1 / len(z) + 1 / least_ess(summary))).sqrt()
    return ((s.mean(0) - e) / error).abs().max().item()


@every_problem
@every_exact_kernel
def test_a_kernel_draws_from_the_reference_posterior(name: str, problem: str) -> None:
    """S17: five hundred chains from a wide guide end in the stored posterior, modes and all."""
    target, summary = reference(problem)
    assert max_z(end_of_chains(KERNELS[name](), target), summary) < 4.5


@every_problem
@every_exact_kernel
@pytest.mark.slow
def test_a_kernel_draws_from_the_reference_posterior_in_full(name: str, problem: str) -> None:
    """S17: with ten thousand chains, as many as there are stored draws."""
    target, summary = reference(problem)
    assert max_z(end_of_chains(KERNELS[name](), target, 10_000), summary) < 4.5


@every_problem
def test_the_references_see_a_wrong_sampler(problem: str) -> None:
    """A target with a wider prior, and a biased kernel, fail every problem."""
    target, summary = reference(problem)
    for kernel, on in ((KERNELS["mala"](), wider(target)), (ULA(0.2), target)):
        assert max_z(end_of_chains(kernel, on), summary) > 4.5


@every_problem
def test_the_stored_draws_are_ten_thousand_and_agree_with_quadrature(problem: str) -> None:
    """R-hat < 1.01; means, spreads, covariances and quantiles within Monte Carlo error of a grid's. |z| < 4.5."""
    # 2 frames of 2 means, 2 spreads, 1 covariance, 10 quantiles: false alarms 2e-4.
    target, stored = make.load(problem)
    summary = {key: np.array(value) for key, value in stored["summary"].items()}
    assert stored["chains"] * stored["draws"] == 10_000
    assert summary["r_hat"].max() < 1.01
    assert least_ess(stored["summary"]) > 2_000

    def max_z(of: CollapsedTarget) -> float:
        exact = make.quadrature(of, summary["quantiles"])
        sd, n = exact["stddev"], least_ess(stored["summary"])
        p = np.array(stored["probabilities"])
        scores = [
            (summary["mean"] - exact["mean"]) / sd,
            (summary["stddev"] / sd - 1) * np.sqrt(2),
            (summary["covariance"] - exact["covariance"]) / sd.prod(-1),
            (exact["below"] - p) / np.sqrt(p * (1 - p)),
        ]
        return np.sqrt(n) * max(np.abs(score).max() for score in scores)

    assert max_z(target) < 4.5
    assert max_z(wider(target)) > 4.5


def test_the_references_are_of_several_shapes() -> None:
    """One mode and two; spreads from 0.07 to 0.3: a kernel that suits one of them only is found out."""
    stored = {problem: make.load(problem)[1] for problem in PROBLEMS}
    assert stored["a_vae"]["modes"] == [1, 1]
    assert stored["min_vae_v2"]["modes"] == [2, 2]
    spreads = np.array([s["summary"]["stddev"] for s in stored.values()])
    assert spreads.min() < 0.1 < 0.25 < spreads.max()
