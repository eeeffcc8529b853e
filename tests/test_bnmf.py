"""Draws of the noise: every move against a density on a grid, all of them together by Geweke's joint test. (28), S17"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from scipy.stats import beta as beta_distribution
from scipy.stats import gamma, kstest
from torch import Tensor

from pyro_avse.inference import BNMF, ULA
from pyro_avse.inference.em import observe
from pyro_avse.inference.noise_draws import (
    draw_factor,
    draw_mixing_weight,
    draw_parts,
    draw_rate,
    log_likelihood,
    walk,
)
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import InputError

pytestmark = pytest.mark.usefixtures("float64")
A, B = 1.5, 2.0
"""Shapes of the priors of W and of H."""


def posterior_of_log_h(power: Tensor, speech: Tensor, other: Tensor, rate: float) -> Tensor:
    """P(log h_1 <= u) on a grid, by quadrature over log h_1 and log h_2 under V = speech + h @ other."""
    u = torch.linspace(-9, 3, 601)
    h = torch.cartesian_prod(u, u).exp()
    V = speech + h @ other
    log_p = log_likelihood(power, V) + B * h.log().sum(-1) - rate * h.sum(-1)
    p = torch.softmax(log_p, 0).reshape(601, 601).sum(1)
    return torch.stack([u, p.cumsum(0) - 0.5 * p])


def ks(u: Tensor, grid: Tensor) -> float:
    """p value of the draws u under the distribution function on the grid."""
    at = torch.searchsorted(grid[0], u).clamp_max(600)
    return float(kstest(grid[1][at].numpy(), "uniform").pvalue)


def walked(
    x: Tensor, speech: Tensor, other: Tensor, rate: Tensor, shape: float, rng: Any
) -> Tensor:
    H = rate.new_full((len(x), 2), 0.3)
    step = torch.full_like(H, 1.0)
    for sweep in range(60):
        H, step = walk(
            x.abs().square(),
            speech,
            H,
            other,
            step,
            shape,
            rate,
            learning=0.5 * (sweep < 20),
            rng=rng,
        )
    return H


def drawn_explicitly(
    x: Tensor, speech: Tensor, other: Tensor, rate: Tensor, shape: float, rng: Any
) -> Tensor:
    H = rate.new_full((len(x), 2), 0.3)
    for _ in range(150):
        C = draw_parts(x, speech, other, H, rng)
        by_other = torch.stack([(c / w).sum(-1) for c, w in zip(C, other, strict=True)], -1)
        H = draw_factor(H, by_other, x.shape[-1], shape, rate, rng=rng)
    return H


@pytest.mark.parametrize("move", [walked, drawn_explicitly])
def test_a_factor_has_its_posterior(move: Callable[..., Tensor]) -> None:
    """2 000 rows of the same data, against quadrature in both activations: p < 1e-5 is a false alarm. With a prior of
    another shape, or another rate, the same test fails."""
    rng = torch.Generator().manual_seed(2)
    one = torch.tensor([[0.6 + 0.2j, -0.3 + 0.9j, 0.1 - 0.4j]])
    other = torch.tensor([[0.8, 0.1, 0.6], [0.2, 1.1, 0.1]])
    speech, rate = torch.tensor([[0.05, 0.1, 0.02]]), torch.full((1, 1), 3.0)
    grid = posterior_of_log_h(one.abs().square(), speech, other, 3.0)
    x = one.expand(2_000, 3)

    def p(shape: float, times: float = 1.0) -> float:
        return ks(
            move(x, speech.expand(2_000, 3), other, times * rate, shape, rng)[:, 0].log(), grid
        )

    assert p(B) > 1e-5
    assert p(B - 1) < 1e-5
    assert p(B, 2.0) < 1e-5


def test_a_proposal_of_another_shape_is_corrected() -> None:
    """With fewer numbers than the prior's shape an inverse gamma of shape 1/2 proposes: the same generalised inverse
    Gaussian, by quadrature."""
    rng, u = torch.Generator().manual_seed(0), torch.linspace(-9, 4, 4001)
    h = torch.full((4_000, 1), 0.5)
    C, rate = torch.full_like(h, 0.7), torch.full_like(h, 2.0)
    for _ in range(60):
        h = draw_factor(h, C, 1, B, rate, rng=rng)
    p = torch.softmax((B - 1) * u - 2.0 * u.exp() - 0.7 * (-u).exp(), 0)
    at = torch.searchsorted(u, h[:, 0].log())
    assert kstest(p.cumsum(0)[at].numpy(), "uniform").pvalue > 1e-5


def test_the_rate_and_pi_have_their_conditionals() -> None:
    """A gamma and a beta, by SciPy; frames that a mask leaves out count nowhere. p < 1e-5 is a false alarm."""
    rng = torch.Generator().manual_seed(1)
    H, mask = (
        torch.rand(1, 5, 2).expand(3_000, 5, 2),
        torch.tensor([True, True, True, False, False]),
    )
    level = torch.full((3_000,), 0.4)
    beta = draw_rate(H, B, level, mask.expand(3_000, 5), rng=rng)[:, 0, 1]
    known = gamma(0.5 + 3 * B, scale=1 / (0.5 * 0.4 / (B * 2) + float(H[0, :3, 1].sum())))
    assert kstest(beta.numpy(), known.cdf).pvalue > 1e-5
    counted = torch.tensor([[1.0, 0, 1, 1, 1], [0, 1, 0, 0, 0]])[:, None].expand(2, 3_000, 5)
    for informed, first, second in ((None, 5, 2), (mask.expand(3_000, 5), 3, 2)):
        pi = draw_mixing_weight(counted, informed, rng=rng)
        torch.testing.assert_close(pi.sum(0), torch.ones(3_000))
        assert kstest(pi[0].numpy(), beta_distribution(first, second).cdf).pvalue > 1e-5


RECORDINGS, FRAMES, FREQS, RANK, TERMS = 1_000, 3, 7, 2, 2
SPECTRUM = torch.tensor([0.2, 0.1, 0.4, 0.2, 0.1, 0.3, 0.1], dtype=torch.float64)


def joint_draw(prior: Any, seed: int) -> dict[str, Tensor]:
    """Recordings from the program of `inference/noise_draws.py`, with m_f held at `SPECTRUM`."""
    rng = torch.Generator().manual_seed(seed)

    def drawn_gamma(shape: float, rate: Tensor) -> Tensor:
        return torch._standard_gamma(torch.full_like(rate, shape), rng) / rate

    n, m = (1, RECORDINGS), SPECTRUM.mean()
    pi = torch.rand(n, generator=rng)
    alpha = (torch.rand((*n, FRAMES), generator=rng) >= pi[..., None]).long()
    q = prior.latent_prior(None)
    mean, scale = (t.reshape(2, -1)[alpha] for t in (q.mean, q.stddev))
    z = mean + scale * torch.randn(mean.shape, generator=rng)
    rate = drawn_gamma(0.5, (0.5 * m / (B * RANK)).expand(*n, 1, RANK))
    H = drawn_gamma(B, rate.expand(*n, FRAMES, RANK))
    W = drawn_gamma(A, (A * m / SPECTRUM).expand(*n, RANK, FREQS))
    gain = (2.3 * torch.randn((*n, 1), generator=rng)).exp().expand(*n, FRAMES)
    response = 0.3 * torch.randn((*n, TERMS), generator=rng)
    return {
        "mixing_weight": torch.stack([pi, 1 - pi]),
        "alpha": alpha,
        "z": z[None],
        "rate": rate,
        "activations": H,
        "dictionary": W,
        "gain": gain,
        "response": response,
    }


def heard(prior: Any, scheme: BNMF, state: Any, alpha: Tensor, rng: Any) -> Tensor:
    """x given all else."""
    log_variance = prior.log_variance(state.z, None)[:, 0]
    index = alpha[None, ..., None].expand(1, *log_variance.shape[1:])
    V = (
        scheme.speech(state, log_variance.gather(0, index)[0])
        + state.activations @ state.dictionary
    )
    return V.sqrt() * torch.randn(V.shape, generator=rng, dtype=torch.complex128)


def statistics(state: Any, x: Tensor) -> Tensor:
    """Ten numbers of every recording, and their products of two: (recording, 65)."""
    means = [
        state.mixing_weight[0, 0],
        state.z[0, 0].mean((-2, -1)),
        state.z[0, 0].square().mean((-2, -1)),
        state.gain[0, :, 0].log(),
        state.response[0, :, 0],
        state.rate[0].log().mean((-2, -1)),
        state.activations[0].log().mean((-2, -1)),
        state.dictionary[0].log().mean((-2, -1)),
        x[0].abs().square().log().mean((-2, -1)),
        (state.activations @ state.dictionary)[0].log().mean((-2, -1)),
    ]
    first = torch.stack(means, -1)
    i, j = torch.triu_indices(10, 10)
    return torch.cat([first, first[:, i] * first[:, j]], -1)


def worst_drift(prior: Any, scheme: BNMF, *, sweeps: int = 12) -> float:
    """[Geweke 2004]: the worst of 65 z-scores between joint draws, swept by `step` and x | all, and fresh ones.

    |z| > 4.7 has probability 2.6e-6 each, so that false alarms are 2e-4.
    """
    fresh, drawn, rng = joint_draw(prior, 1), joint_draw(prior, 2), torch.Generator().manual_seed(3)

    def started(values: dict[str, Tensor]) -> tuple[Any, Tensor]:
        alpha = values.pop("alpha")
        given = observe(prior, torch.randn(RECORDINGS, FRAMES, FREQS, dtype=torch.complex128))
        state = scheme.init(given, rng=rng)
        steps = tuple(0.7 + 0 * step for step in state.steps)
        state = replace(state, **values, iteration=10, spectrum=SPECTRUM.expand(1, RECORDINGS, -1))
        state = replace(state, steps=steps, level_kernel=replace(state.level_kernel, step_size=0.7))
        return state, heard(prior, scheme, state, alpha, rng)

    state, x = started(drawn)
    for _ in range(sweeps):
        state = scheme.step(observe(prior, x[0]), state, rng=rng)
        state, kept = replace(state, kept=()), state.kept[-1]
        rho = kept.rho[0, 0]  # alpha given all else, drawn anew
        x = heard(prior, scheme, state, (torch.rand(rho.shape, generator=rng) >= rho).long(), rng)
    p, q = statistics(state, x), statistics(*started(fresh))
    z = (p.mean(0) - q.mean(0)) / ((p.var(0) + q.var(0)) / len(p)).sqrt()
    return z.abs().max().item()


@pytest.mark.parametrize("explicit", [False, True])
def test_sweeps_stay_in_the_joint(explicit: bool, small_prior: Callable[..., Any]) -> None:
    """All moves together, speech and noise; twins with a prior of another shape drift away."""
    prior = small_prior("two_decoders").requires_grad_(False)
    noise = NoiseModel(RANK, response=TERMS)
    kept: dict[str, Any] = {"chains": 1, "iterations": 2, "draws": 1, "noise": noise}
    make = partial(BNMF, explicit=explicit, **kept)
    right = make(spectrum_shape=A, activation_shape=B)
    assert worst_drift(prior, right) < 4.7
    assert worst_drift(prior, make(spectrum_shape=A, activation_shape=2 * B)) > 4.7
    assert worst_drift(prior, make(spectrum_shape=2 * A, activation_shape=B)) > 4.7


def test_what_cannot_be_drawn_is_refused() -> None:
    for settings, message in (
        (
            {"kernel": ULA()},
            "bnmf needs an exact kernel whose step size it can find, and ULA has none",
        ),
        ({"noise": NoiseModel.paper()}, "bnmf draws one gain a recording"),
        (
            {"spectrum_shape": 0.0},
            "spectrum_shape is 0.0, activation_shape 2.0: give numbers above 0",
        ),
        ({"moves": 0}, "BNMF: moves is 0: give 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            BNMF(**settings)  # type: ignore[arg-type]
