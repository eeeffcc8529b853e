"""Accept and reject, (38), and the random walk's proposal, (37)."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_avse.inference import RandomWalk, run_chains
from pyro_avse.inference.metropolis import accept_or_reject, metropolis_accept
from pyro_avse.inference.random_walk import random_walk_proposal
from pyro_avse.typing import State

INF, NAN = math.inf, math.nan


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def barker_accept(log_ratio: Tensor, *, rng: torch.Generator) -> Tensor:
    """Another rule, ratio / (1 + ratio): it keeps the target too, but is not (38)."""
    return torch.rand(log_ratio.shape, generator=rng) < torch.sigmoid(log_ratio)


def test_acceptance_probability_is_min_one_ratio() -> None:
    """(38): each entry is accepted with probability min(1, ratio)."""
    # 4.5 standard deviations of a binomial count, 6 ratios: false alarms 4e-5.
    log_ratio = torch.tensor([-4.0, -2.0, -1.0, -0.3, -0.05, -0.01]).double()
    N, p = 40_000, log_ratio.exp()

    def max_z(accept: Callable[..., Tensor]) -> Tensor:
        rate = accept(log_ratio.expand(N, -1), rng=generator()).double().mean(0)
        return ((rate - p) / (p * (1 - p) / N).sqrt()).abs().max()

    assert max_z(metropolis_accept) < 4.5
    assert max_z(barker_accept) > 4.5


def test_uphill_is_always_taken() -> None:
    """(38): a ratio of one or more is accepted for certain."""
    log_ratio = torch.tensor([0.0, 1e-9, 3.0, INF]).double().expand(10_000, -1)
    assert metropolis_accept(log_ratio, rng=generator()).all()
    assert not barker_accept(log_ratio, rng=generator()).all()


def test_nan_and_zero_density_are_rejected() -> None:
    """(38): a ratio that is NaN, or zero, is never accepted."""
    log_ratio = torch.tensor([NAN, -INF]).double().expand(10_000, -1)
    assert not metropolis_accept(log_ratio, rng=generator()).any()


def test_a_state_of_zero_density_is_left_and_never_entered() -> None:
    """(38): from density zero any proposal of positive density is taken, never the reverse."""
    # columns: current -> proposed
    current = torch.tensor([-INF, 1.0, -INF, 1.0]).double()
    proposed = torch.tensor([2.0, -INF, -INF, NAN]).double()
    z, z_new = torch.zeros(4, 3).double(), torch.ones(4, 3).double()
    state, info = accept_or_reject(
        State(z, current), State(z_new, proposed), proposed - current, rng=generator()
    )
    assert info.accepted.tolist() == [True, False, False, False]
    assert state.z[:, 0].tolist() == [1, 0, 0, 0]
    assert state.log_density.tolist() == [2, 1, -INF, 1]


def test_every_entry_has_its_own_draw() -> None:
    """(38): frames decide independently; a draw shared by two frames fails the same test."""
    # Agreement of two fair coins in N tosses, 4.5 standard deviations: false alarms 7e-6.
    N = 20_000
    log_ratio = torch.full((N, 2), math.log(0.5)).double()

    def z(accepted: Tensor) -> float:
        agree = (accepted[:, 0] == accepted[:, 1]).double().mean().item()
        return abs(agree - 0.5) / math.sqrt(0.25 / N)

    assert z(metropolis_accept(log_ratio, rng=generator())) < 4.5
    assert z(metropolis_accept(log_ratio[:, :1], rng=generator()).expand(N, 2)) > 4.5


def test_random_walk_proposal_has_the_moments_of_a_gaussian() -> None:
    """(37): z' - z has mean 0, covariance step_size^2 I, no skew and a Gaussian's kurtosis."""
    # 4 + 10 + 4 + 4 statistics within 4.5 of their standard deviations: false alarms 2e-4.
    N, step_size = 100_000, 0.1  # epsilon = 0.01 is the variance
    z = torch.tensor([-3.0, 0.0, 0.5, 20.0]).double().expand(N, -1)

    def max_z(proposed: Tensor, step_size: float) -> Tensor:
        u = (proposed - z) / step_size
        i, j = torch.triu_indices(4, 4)
        variance = torch.where(i == j, 2.0, 1.0)
        scores = torch.cat(
            [
                u.mean(0),
                ((u.T @ u / N)[i, j] - (i == j).double()) / variance.sqrt(),
                (u**3).mean(0) / math.sqrt(15),
                ((u**4).mean(0) - 3) / math.sqrt(96),
            ]
        )
        return (scores * math.sqrt(N)).abs().max()

    proposed = random_walk_proposal(z, step_size, rng=generator())
    assert max_z(proposed, step_size) < 4.5
    assert max_z(proposed, step_size**2) > 4.5  # epsilon taken for the standard deviation


def test_random_walk_proposal_is_symmetric() -> None:
    """(37): z -> z' is as likely as z' -> z, which is why no proposal density enters (38)."""
    # A bin's counts of going i -> j and j -> i, under z uniform on a circle, differ by chance
    # only: 3 pairs of bins, 4.5 standard deviations, false alarms 2e-5.
    z = torch.rand(100_000, generator=generator(1)).double()[:, None]

    def max_z(proposed: Tensor) -> float:
        i, j = (z[:, 0] * 3).long(), (proposed[:, 0] % 1 * 3).long()
        flow = torch.bincount(3 * i + j, minlength=9).reshape(3, 3).double()
        difference = (flow - flow.T).abs() / (flow + flow.T).sqrt()
        return difference[flow + flow.T > 0].max().item()

    proposed = random_walk_proposal(z, 0.1, rng=generator())
    assert max_z(proposed) < 4.5
    assert max_z(proposed + 0.02) > 4.5  # drift


class StandardNormal:
    event_dim = 1

    def log_density(self, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1)


@pytest.mark.parametrize("step_size", [0.3, 1.0, 4.0])
def test_acceptance_rate_in_one_dimension_is_the_known_one(step_size: float) -> None:
    """(37), (38): a random walk on N(0, 1) accepts (2 / pi) arctan(2 / step_size) of its steps."""
    # Chains are independent: their rates' own spread gives the error; false alarms 7e-6 a step.
    z0 = torch.randn(4_000, 1, 1, generator=generator(2), dtype=torch.float64)
    rate = run_chains(RandomWalk(step_size), StandardNormal(), z0, draws=30).acceptance_rate
    exact = 2 / math.pi * math.atan(2 / step_size)
    error = (rate.std() / math.sqrt(len(rate))).item()
    assert abs(rate.mean().item() - exact) < 4.5 * error
    always = torch.ones_like(rate)  # a kernel that never rejects
    assert abs(always.mean().item() - exact) > 4.5 * error
