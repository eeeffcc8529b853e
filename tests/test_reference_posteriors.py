"""Every kernel against the stored posteriors of three small problems, and those against quadrature. S7, S17

They are of `pyro_avse.lab.posteriors`; benchmarks/reference_posteriors.py made them. A new kernel is held against them
by its line in `KERNELS`; ULA, which is biased, is a twin that must fail.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Independent, Normal
from torch import Tensor

from pyro_avse.inference import KERNELS, run_chains
from pyro_avse.inference.adaptation import DualAveraging
from pyro_avse.inference.gibbs import Gibbs
from pyro_avse.inference.ula import ULA
from pyro_avse.lab.posteriors import load
from pyro_avse.typing import InputError, Kernel

PROBLEMS = ("one_mode", "two_decoders", "two_modes")
PROBABILITIES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
every_exact_kernel = pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"ula", "blocks"}))
every_problem = pytest.mark.parametrize("problem", PROBLEMS)
CHAINS, FRAMES = 500, 2
Summary = dict[str, Tensor]


def wider(problem: str) -> Any:
    """A twin whose prior standard deviations are 1.5 times the stored ones."""
    posterior = load(problem)
    return replace(
        posterior, arrays=posterior.arrays | {"stddev": 1.5 * posterior.arrays["stddev"]}
    ).target()


@cache
def summary_of(problem: str) -> Summary:
    """Means, spreads, covariances and quantiles of the stored draws, and their effective number."""
    known = load(problem).reference()
    z = torch.from_numpy(known.draws).flatten(0, 1).double()
    return {
        "mean": z.mean(0),
        "stddev": z.std(0),
        "covariance": (z - z.mean(0)).prod(-1).mean(0),
        "quantiles": z.quantile(PROBABILITIES, dim=0).movedim(0, -1),
        "ess": torch.tensor(min(known.ess_bulk.min(), known.ess_tail.min())),
    }


def guided(problem: str, target: Any) -> Any:
    """The target with a guide to propose from."""
    summary = summary_of(problem)
    guide = Independent(Normal(summary["mean"], 1.3 * summary["stddev"]), 1)
    return replace(target, proposal=guide)


def end_of_chains(kernel: Kernel, target: Any, chains: int = CHAINS) -> Tensor:
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


def max_z(z: Tensor, summary: Summary) -> float:
    """The worst z-score of 2 means, 2 variances, a covariance and 10 quantiles of each frame.

    The Monte Carlo error is that of the chains and of the stored draws together. Of 30 scores |z| > 4.5 has
    probability 7e-6 each: false alarms 2e-4.
    """
    deviation = z - summary["mean"]
    below = z[..., None] < summary["quantiles"]
    statistics = [deviation, deviation.square(), deviation.prod(-1, True), below.flatten(-2)]
    probabilities = PROBABILITIES.repeat(2).expand(z.shape[1], -1)
    variance, covariance = summary["stddev"].square(), summary["covariance"][:, None]
    expected = [torch.zeros_like(variance), variance, covariance, probabilities]
    s, e = torch.cat([x.double() for x in statistics], -1), torch.cat(expected, -1)
    error = (s.var(0) * (1 / len(z) + 1 / summary["ess"])).sqrt()
    return ((s.mean(0) - e) / error).abs().max().item()


@every_problem
@every_exact_kernel
def test_a_kernel_draws_from_the_reference_posterior(name: str, problem: str) -> None:
    """S17: five hundred chains from a wide guide end in the stored posterior, modes and all."""
    target = guided(problem, load(problem).target())
    assert max_z(end_of_chains(KERNELS[name](), target), summary_of(problem)) < 4.5


@every_problem
@every_exact_kernel
@pytest.mark.slow
def test_a_kernel_draws_from_the_reference_posterior_in_full(name: str, problem: str) -> None:
    """S17: with ten thousand chains, as many as there are stored draws."""
    target = guided(problem, load(problem).target())
    assert max_z(end_of_chains(KERNELS[name](), target, 10_000), summary_of(problem)) < 4.5


@every_problem
def test_the_references_see_a_wrong_sampler(problem: str) -> None:
    """A target with a wider prior, and a biased kernel, fail every problem."""
    for kernel, on in (
        (KERNELS["mala"](), wider(problem)),
        (ULA(0.2), load(problem).target()),
    ):
        z = end_of_chains(kernel, guided(problem, on))
        assert max_z(z, summary_of(problem)) > 4.5


def quadrature(target: Any, at: np.ndarray) -> dict[str, Any]:
    """Moments, P(z < at) and the number of modes of every frame by the trapezoid rule on a 401 x 401 grid.

    `at` is (frame, latent, point).
    """
    frames, axis = len(at), torch.linspace(-3.5, 3.5, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = target.log_density(grid[:, None].expand(-1, frames, -1)).T.reshape(frames, 401, 401)
    p = torch.softmax(log_p.flatten(1), 1).reshape_as(log_p)
    marginal = torch.stack([p.sum(2), p.sum(1)], 1)  # (frame, latent, point)
    mean = marginal @ axis
    deviation = axis - mean[..., None]
    cross = torch.einsum("nij,ni,nj->n", p, deviation[:, 0], deviation[:, 1])
    # A bin's probability stands half on either side of its point.
    cdf = (marginal.cumsum(-1) - 0.5 * marginal).flatten(0, 1).numpy()
    below = [np.interp(x, axis, F) for x, F in zip(at.reshape(len(cdf), -1), cdf, strict=True)]
    highest = torch.nn.functional.max_pool2d(log_p[:, None], 3, 1, 1)[:, 0]
    modes = (log_p == highest) & (log_p > log_p.amax((1, 2), keepdim=True) - 4)
    return {
        "mean": mean.numpy(),
        "stddev": (marginal * deviation.square()).sum(-1).sqrt().numpy(),
        "covariance": cross.numpy(),
        "below": np.reshape(below, at.shape),
        "modes": modes.sum((1, 2)).tolist(),
    }


def off_quadrature(problem: str, target: Any) -> float:
    """The worst z-score of the stored draws' means, spreads, covariances and quantiles."""
    summary = {key: value.numpy() for key, value in summary_of(problem).items()}
    exact = quadrature(target, summary["quantiles"])
    sd, p = exact["stddev"], PROBABILITIES.numpy()
    spread = (
        np.sqrt(2) if problem in PROBLEMS else 0.1
    )  # two far modes: a spread is known far better
    scores = [
        (summary["mean"] - exact["mean"]) / sd,
        (summary["stddev"] / sd - 1) * spread,
        (summary["covariance"] - exact["covariance"]) / sd.prod(-1),
        (exact["below"] - p) / np.sqrt(p * (1 - p)),
    ]
    return float(np.sqrt(summary["ess"]) * max(np.abs(score).max() for score in scores))


@pytest.mark.parametrize("problem", [*PROBLEMS, "far_modes"])
def test_the_stored_draws_agree_with_quadrature(problem: str) -> None:
    """Means, spreads, covariances and quantiles are within Monte Carlo error of a grid's. |z| < 4.5.

    2 frames of 2 means, 2 spreads, 1 covariance, 10 quantiles: false alarms 2e-4. The twin's prior is wider.
    """
    assert load(problem).reference().draws.shape[:2] == (10, 1_000)
    assert off_quadrature(problem, load(problem).target()) < 4.5
    assert off_quadrature(problem, wider(problem)) > 4.5


def test_the_references_are_of_several_shapes() -> None:
    """One mode and two; spreads from 0.07 to 0.3: a kernel that suits one of them only is found out."""
    modes, spreads = {}, []
    for problem in (*PROBLEMS, "far_modes"):
        summary = summary_of(problem)
        modes[problem] = quadrature(load(problem).target(), summary["quantiles"].numpy())["modes"]
        spreads.append(summary["stddev"])
    assert modes["one_mode"] == [1, 1]
    assert modes["two_modes"] == [2, 2]
    assert modes["far_modes"] == [2]
    assert torch.cat(spreads[:3]).min() < 0.1 < 0.25 < torch.cat(spreads[:3]).max()
