"""What draws of chains that sit in different modes count, against the modes' known shares; and when chains disagree."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_avse.inference.monte_carlo import FEWEST, GAP, chain_weights, chains_disagree

pytestmark = pytest.mark.usefixtures("float64")
LATENT, FRAMES = 32, 400


def two_modes(
    draws: int, widths: tuple[float, float], share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact draws of two far Gaussian modes, a chain in each, and the log densities of their mixture there.

    Returns log densities (chain, draw, frame), draws (chain, draw, frame, latent), and the modes' log heights.
    """
    rng = torch.Generator().manual_seed(0)
    sd = torch.tensor(widths)[:, None, None, None]
    centre = torch.tensor([-20.0, 20.0])[:, None, None, None]
    unit = torch.randn(2, draws, FRAMES, LATENT, generator=rng)
    weight = torch.tensor([share, 1 - share])
    height = weight.log() - LATENT * sd.flatten().log()  # but for (2 pi)^(L/2)
    log_density = height[:, None, None] - 0.5 * unit.square().sum(-1)
    return log_density, centre + sd * unit, height


@pytest.mark.parametrize("draws", [10, 40])
def test_weights_are_the_modes_shares(draws: int) -> None:
    """Mean error of the first mode's share, 0.3 in truth, over 400 frames; the broad mode is the lower one.

    Printed by this test at 10 draws (40): equal weights 0.20 (0.20), the last draws' log densities 0.67 (0.68), mean
    log densities 0.70 (0.70), with the entropy 0.15 (0.04), which is chance of the draws: its median is 0.31 (0.30).
    """
    share = 0.3
    log_density, z, _ = two_modes(draws, (0.7, 1.0), share)

    def error(weights: Tensor) -> float:
        return float((weights[0] - share).abs().mean())

    found = chain_weights(log_density, z, 1.0)
    errors = {
        "equal": error(torch.full_like(found, 0.5)),
        "last log densities": error(torch.softmax(log_density[:, -1], 0)),
        "mean log densities": error(torch.softmax(log_density.mean(1), 0)),
        "with the entropy": error(found),
    }
    print({name: round(value, 3) for name, value in errors.items()}, float(found[0].median()))
    torch.testing.assert_close(found.sum(0), torch.ones(FRAMES))
    assert errors["mean log densities"] > 0.6
    assert errors["last log densities"] > 0.6
    assert errors["with the entropy"] < (0.2 if draws == 10 else 0.06)
    # without bias: the log odds of 400 frames, in standard errors
    odds = found[0].log() - found[1].log()
    score = (odds.mean() - math.log(share / (1 - share))) / odds.std() * FRAMES**0.5
    assert abs(float(score)) < 4.5


def test_a_temperature_flattens_the_shares() -> None:
    log_density, z, _ = two_modes(10, (0.7, 1.0), 0.02)
    plain, tempered = (chain_weights(log_density, z, T) for T in (1.0, 20.0))
    odds = [(w[0].log() - w[1].log()) for w in (plain, tempered)]
    torch.testing.assert_close(odds[0] / 20, odds[1])
    assert (chain_weights(log_density, z, math.inf) == 0.5).all()


def test_few_draws_have_no_entropy_and_a_still_chain_a_finite_weight() -> None:
    log_density, z, _ = two_modes(2, (0.7, 1.0), 0.5)
    found = chain_weights(log_density, z, 3.0)
    torch.testing.assert_close(found, torch.softmax(log_density.mean(1) / 3, 0))
    still = chain_weights(log_density.repeat(1, 4, 1), z[:, :1].expand(-1, 8, -1, -1), 1.0)
    assert still.isfinite().all()


def test_the_entropy_counts_from_five_draws_on() -> None:
    """At exactly `FEWEST` the broad mode is lifted, with one fewer it is not."""
    log_density, z, _ = two_modes(FEWEST, (0.7, 1.0), 0.5)
    lifted = chain_weights(log_density, z, 1.0)[1].mean()
    plain = chain_weights(log_density[:, 1:], z[:, 1:], 1.0)[1].mean()
    assert lifted > 0.3 > 0.05 > plain


def chains(level: Tensor, draws: Tensor) -> Any:
    return SimpleNamespace(log_density=level[:, None].expand(-1, draws.shape[1], -1), draws=draws)


def test_chains_disagree_where_their_mean_log_densities_are_far_apart() -> None:
    level = torch.tensor([[0.0, 0.0, -9.0], [GAP - 0.1, GAP + 0.1, 0.0], [1.0, 1.0, 0.0]])
    draws = torch.randn(3, 4, 3, 2)
    assert chains_disagree(chains(level, draws)).tolist() == [False, True, True]
    assert chains_disagree(chains(level[:1], draws[:1])) is None
    assert chains_disagree(chains(level[:2], draws[:2])).tolist() == [False, True, True]
    whole = SimpleNamespace(log_density=torch.zeros(3, 4), draws=draws)  # one for all frames
    assert chains_disagree(whole) is None
