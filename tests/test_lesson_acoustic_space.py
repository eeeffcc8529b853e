"""lessons/acoustic_space.py: posteriors by quadrature and by the Pyro program, the bound term by term, the head."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal, Normal
from scipy import stats
from torch import Tensor

from lessons.acoustic_space import (
    Located,
    Mapping,
    draw,
    e_step,
    ears,
    expected_error,
    features,
    locate,
    m_step,
    model,
    record,
    separate,
    talk,
    train,
)

pytestmark = pytest.mark.usefixtures("float64")
ONE = torch.ones(1)


def some_mapping(pieces: int = 2, freqs: int = 3, seed: int = 0) -> Mapping:
    rng = torch.Generator().manual_seed(seed)
    B = torch.randn(pieces, 2, 2, generator=rng)
    share = torch.rand(pieces, generator=rng) + 0.3
    return Mapping(
        share / share.sum(),
        torch.randn(pieces, 2, generator=rng),
        B @ B.mT + 0.3 * torch.eye(2),
        0.7 * torch.randn(pieces, freqs, 3, 3, generator=rng),
        0.5 + torch.rand(freqs, 3, generator=rng),
    )


def pyro_log_joint(
    mapping: Mapping, sources: Tensor, y: Tensor, heard: Tensor, **values: Tensor
) -> float:
    trace = poutine.trace(poutine.condition(model, values)).get_trace(mapping, sources, y, heard)
    return float(trace.log_prob_sum())


def drawn_from(mapping: Mapping, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, y, z of (1), (2)."""
    rng = torch.Generator().manual_seed(seed)
    z = mapping.share.multinomial(count, replacement=True, generator=rng)
    factor = torch.linalg.cholesky(mapping.spread)[z]
    x = mapping.centre[z] + (factor @ torch.randn(count, 2, 1, generator=rng))[..., 0]
    A, b = mapping.affine[z][..., :2], mapping.affine[z][..., 2]
    noise = mapping.noise.sqrt() * torch.randn(b.shape, generator=rng)
    return x, torch.einsum("nfdl,nl->nfd", A, x) + b + noise, z


def test_the_e_step_of_learning_is_the_pyro_programs_posterior() -> None:
    mapping = some_mapping(3)
    x, y, _ = drawn_from(mapping, 4, 1)
    everything, w = torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.long)
    joint = torch.tensor(
        [
            [
                pyro_log_joint(
                    mapping, ONE, y[n : n + 1], everything, z_0=torch.tensor(k), x_0=x[n], w=w
                )
                for k in range(3)
            ]
            for n in range(4)
        ]
    )
    r, likelihood = e_step(mapping, x, y)
    torch.testing.assert_close(r, joint.softmax(1))
    torch.testing.assert_close(likelihood, joint.logsumexp(1).sum())


def test_the_m_step_of_learning_is_the_maximum_of_the_expected_log_joint() -> None:
    x, y, _ = drawn_from(some_mapping(), 60, 2)
    r = torch.rand(60, 2).softmax(1)
    best = m_step(x, y, r)

    def expected(logits: Tensor, c: Tensor, spread: Tensor, W: Tensor, s: Tensor) -> Tensor:
        A, b = W[..., :2], W[..., 2]
        mean = torch.einsum("kfdl,nl->nkfd", A, x) + b
        heard = Normal(mean, s.sqrt()).log_prob(y[:, None]).sum((2, 3))
        region = MultivariateNormal(c, spread).log_prob(x[:, None])
        return (r * (logits.log_softmax(0) + region + heard)).sum()

    parts = (best.share.log(), best.centre, best.spread, best.affine, best.noise)
    given = [part.clone().requires_grad_() for part in parts]
    for slope in torch.autograd.grad(expected(*given), given):
        assert slope.abs().max() < 1e-8


def test_learning_never_lowers_the_likelihood() -> None:
    for seed in range(8):
        x, y, _ = drawn_from(some_mapping(4, 3, seed), 150, seed)
        _, bounds = train(x, y, 3 + seed % 4, 25, torch.Generator().manual_seed(seed))
        assert torch.tensor(bounds).diff().min() > -1e-8, seed


def test_learning_gives_the_truth_back() -> None:
    truth = some_mapping(1, 4, 3)
    x, y, _ = drawn_from(truth, 4000, 3)
    found, _ = train(x, y, 1, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.affine, truth.affine, atol=0.06, rtol=0)
    torch.testing.assert_close(found.noise, truth.noise, atol=0, rtol=0.12)
    truth = some_mapping(2, 6, 4)
    truth = replace(truth, centre=torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
    x, y, z = drawn_from(truth, 2000, 4)
    found, _ = train(x, y, 2, 30, torch.Generator().manual_seed(1))
    order = torch.cdist(truth.centre, found.centre).argmin(1)
    assert sorted(order.tolist()) == [0, 1]
    assert (order[z] == e_step(found, x, y)[0].argmax(1)).double().mean() > 0.95
    middle = torch.cat([truth.centre, torch.ones(2, 1)], 1)
    heard = [torch.einsum("kfdl,kl->kfd", W, middle) for W in (found.affine[order], truth.affine)]
    torch.testing.assert_close(*heard, atol=0.2, rtol=0)


def on_a_grid(
    mapping: Mapping, y: Tensor, chi: Tensor, side: int = 140
) -> tuple[Tensor, Tensor, Tensor]:
    """nu, m and V of (5)-(7) by summing exp(sum chi log N) p(x, z) over a grid of x."""
    line = torch.linspace(-7, 7, side)
    x = torch.cartesian_prod(line, line)
    A, b = mapping.affine[..., :2], mapping.affine[..., 2]
    mean = torch.einsum("kfdl,gl->gkfd", A, x) + b
    log = (
        MultivariateNormal(mapping.centre, mapping.spread).log_prob(x[:, None])
        + mapping.share.log()
    )
    for t in range(len(y)):
        log = log + (chi[t] * Normal(mean, mapping.noise.sqrt()).log_prob(y[t]).sum(-1)).sum(-1)
    p = log.flatten().softmax(0).reshape(log.shape)
    nu = p.sum(0)
    m = torch.einsum("gk,gl->kl", p, x) / nu[:, None]
    V = torch.einsum("gk,gl,gm->klm", p, x, x) / nu[:, None, None] - m[:, :, None] * m[:, None]
    return nu, m, V


@pytest.mark.parametrize("soft", [False, True])
def test_inverse_regression_is_quadrature_with_missing_and_soft_bins(soft: bool) -> None:
    mapping = some_mapping(3)
    _, y, _ = drawn_from(mapping, 2, 5)
    chi = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    if soft:
        chi = torch.rand(2, 3)
    found = locate(mapping, y, chi)
    for mine, theirs in zip(
        (found.share, found.mean, found.covariance), on_a_grid(mapping, y, chi), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=2e-3)
    garbage = torch.where(chi[..., None] > 0, y, 1e3 * torch.randn(y.shape))
    torch.testing.assert_close(locate(mapping, garbage, chi).mean, found.mean)
    nothing = locate(mapping, y, torch.zeros(2, 3))
    torch.testing.assert_close(nothing.share, mapping.share)
    torch.testing.assert_close(nothing.mean, mapping.centre)


def test_inverse_regression_is_the_pyro_programs_posterior() -> None:
    """Differences of log p(x, z | y) between places are those of the program's log-joint."""
    mapping, heard = some_mapping(2), torch.tensor([[1.0, 0.0, 1.0]])
    _, y, _ = drawn_from(mapping, 1, 6)
    q = locate(mapping, y, heard)
    gaps = []
    for k in range(2):
        for x in torch.randn(3, 2):
            w = torch.zeros(1, 3, dtype=torch.long)
            joint = pyro_log_joint(mapping, ONE, y, heard, z_0=torch.tensor(k), x_0=x, w=w)
            gaps.append(
                joint
                - float(
                    q.share[k].log() + MultivariateNormal(q.mean[k], q.covariance[k]).log_prob(x)
                )
            )
    assert max(gaps) - min(gaps) < 1e-9  # all the evidence, log p(y)


def sigma_points(q: Located) -> list[tuple[int, Tensor, float]]:
    """k, x and weights that integrate any quadratic in x exactly: the log-joint is one."""
    points = []
    for k in range(len(q.share)):
        factor = torch.linalg.cholesky(2 * q.covariance[k])
        for column in factor.mT:
            points += [(k, q.mean[k] + sign * column, float(q.share[k]) / 4) for sign in (1, -1)]
    return points


def test_the_bound_of_separation_is_the_pyro_joint_averaged_under_q_and_its_best() -> None:
    mapping, heard = some_mapping(2, 2), torch.tensor([[1.0, 1.0]])
    _, y, _ = drawn_from(mapping, 1, 7)
    found, w, bounds = separate(mapping, y, heard, 2, 1)
    doubtful = replace(mapping, noise=mapping.noise + torch.tensor([9.0, 0.1, 0.1]))
    lam = torch.full((2,), 0.5)

    def bound(found: list[Located], w: Tensor) -> float:
        total = float(-torch.xlogy(w, w).sum())
        for q in found:
            total += float(-torch.xlogy(q.share, q.share).sum())
            total += float(q.share @ MultivariateNormal(q.mean, q.covariance).entropy())
        for owner in itertools.product(range(2), repeat=2):
            chance = math.prod(float(w[m, 0, f]) for f, m in enumerate(owner))
            for (k, x, p), (j, v, r) in itertools.product(*(sigma_points(q) for q in found)):
                values = {"z_0": torch.tensor(k), "x_0": x, "z_1": torch.tensor(j), "x_1": v}
                values["w"] = torch.tensor([owner])
                total += chance * p * r * pyro_log_joint(doubtful, lam, y, heard, **values)
        return total

    assert bound(found, w) == pytest.approx(bounds[0], abs=1e-8)
    tilted = (w.log() + torch.tensor([0.3, -0.3])[:, None, None]).softmax(0)
    assert bound(found, tilted) < bounds[0]


def test_expected_errors_are_those_of_sigma_points() -> None:
    mapping = some_mapping(2, 2)
    _, y, _ = drawn_from(mapping, 3, 8)
    q = locate(mapping, y, torch.rand(3, 2))
    expected = torch.zeros_like(y)
    for k, x, p in sigma_points(q):
        expected += p * (y - mapping.affine[k] @ torch.cat([x, ONE])).square()
    torch.testing.assert_close(expected_error(mapping, q, y), expected)


def test_the_bound_of_separation_never_falls() -> None:
    for seed in range(8):
        mapping = some_mapping(4, 5, seed)
        _, y, _ = drawn_from(mapping, 12, seed)
        heard = (torch.rand(12, 5, generator=torch.Generator().manual_seed(seed)) < 0.7).double()
        _, _, bounds = separate(mapping, y, heard, 1 + seed % 3, 15)
        assert torch.tensor(bounds).diff().min() > -1e-9, seed


def test_posteriors_are_calibrated_and_those_of_a_twin_that_counts_twice_are_not() -> None:
    """The squared distance of the truth is chi-squared; p < 1e-5 is a false alarm in one run of 100,000."""
    mapping = some_mapping(1, 2, 9)
    x, y, _ = drawn_from(mapping, 500, 9)

    def pvalue(count: float) -> float:
        squares = []
        for n in range(500):
            q = locate(mapping, y[n : n + 1], torch.full((1, 2), count))
            apart = x[n] - q.mean[0]
            squares.append(float(apart @ q.covariance[0].inverse() @ apart))
        return float(stats.kstest(squares, stats.chi2(2).cdf).pvalue)

    assert pvalue(1.0) > 1e-5
    assert pvalue(2.5) < 1e-5


def test_the_head_delays_and_shadows_the_far_ear() -> None:
    hertz = torch.linspace(100.0, 8000.0, 80)
    x = torch.tensor([[50.0, 0.0], [-50.0, 0.0], [0.0, 0.0]])
    level = features(ears(x, hertz))[0][..., 0].mean(1)  # right against left
    assert level[0] > 3
    assert level[1] < -3
    assert level[2].abs() < 3
    at = ears(x, torch.tensor([250.0, 251.0]))
    phase = (at[:, 1] / at[:, 0]).angle()
    lead = (phase[:, 1] - phase[:, 0]) / (2 * math.pi)  # seconds by which the right ear is first
    assert lead[0] == pytest.approx(-float(lead[1]), abs=6e-5)
    assert 2e-4 < lead[0] < 7e-4  # a head of 17.5 cm


def test_sounds_are_located_and_two_talkers_separated() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = draw(400, rng)
    mapping, bounds = train(x, y, 30, 8, rng)
    assert torch.tensor(bounds).diff().min() > -1e-6
    there, heard = draw(40, torch.Generator().manual_seed(1))
    everything = torch.ones(1, y.shape[1])
    found = torch.stack([(q := locate(mapping, v[None], everything)).share @ q.mean for v in heard])
    nearest = x[torch.cdist(heard.flatten(1), y.flatten(1)).argmin(1)]
    assert (found - there).abs().median() < 0.5 * (nearest - there).abs().median()
    talkers = torch.tensor([[-40.0, 10.0], [30.0, -10.0]])
    sounds = torch.stack(
        [talk(1.2, pitch, torch.Generator().manual_seed(5)) for pitch in (120, 190)]
    )
    images = record(sounds, talkers)
    seen, mask = features(images.sum(0))
    sources, w, bounds = separate(mapping, seen, mask, 2, 6)
    assert torch.tensor(bounds).diff().min() > -1e-6
    azimuth = torch.stack([q.share @ q.mean for q in sources])[:, 0].sort()
    torch.testing.assert_close(azimuth.values, talkers[:, 0], atol=6.0, rtol=0)
    for talker, source in enumerate(azimuth.indices):
        left = images[talker, :, 0]
        rest = (w[source] * images[:, :, 0].sum(0) - left).abs().square().sum()
        before = images[1 - talker, :, 0].abs().square().sum()
        assert 10 * (before / rest).log10() > 5  # dB of noise taken away
