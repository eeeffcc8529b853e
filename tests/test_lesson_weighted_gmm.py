"""lessons/weighted_gmm.py: densities by quadrature and SciPy, both E-steps by the Pyro program, EM by autograd."""

import math

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.distributions import Gamma
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy import integrate, stats
from torch import Tensor

from lessons.weighted_gmm import (
    FixedWeights,
    GammaWeights,
    Mixture,
    Weights,
    cross_modal_weights,
    draw,
    draw_scene,
    e_step,
    em,
    m_step,
    message_length,
    model,
    scattered,
    shorten,
)

pytestmark = pytest.mark.usefixtures("float64")
KINDS = ["fixed", "gamma"]


def some_mixture(clusters: int = 3, dim: int = 2, seed: int = 0) -> Mixture:
    rng = torch.Generator().manual_seed(seed)
    A = torch.randn(clusters, dim, dim, generator=rng)
    share = torch.rand(clusters, generator=rng) + 0.2
    mean = 3 * torch.randn(clusters, dim, generator=rng)
    return Mixture(share / share.sum(), mean, A @ A.mT + 0.3 * torch.eye(dim))


def some_weights(kind: str, count: int, seed: int = 1) -> Weights:
    rng = torch.Generator().manual_seed(seed)
    w = 0.3 + 2 * torch.rand(count, generator=rng)
    return FixedWeights(w) if kind == "fixed" else GammaWeights(w.square() + 0.5, w)


def truth(count: int, seed: int = 0) -> tuple[Mixture, GammaWeights]:
    mean = torch.tensor([[0.0, 0.0], [6.0, 0.0], [2.0, 6.0]])
    covariance = torch.tensor(
        [[[1.0, 0.6], [0.6, 1.0]], [[2.0, 0.0], [0.0, 0.3]], [[0.5, 0.0], [0.0, 0.5]]]
    )
    w = 1.5 + 2 * torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return Mixture(torch.tensor([0.5, 0.3, 0.2]), mean, covariance), GammaWeights(w.square(), w)


def joint(
    w: float, x: np.ndarray, mean: np.ndarray, covariance: np.ndarray, a: float, b: float
) -> float:
    """p(x | w) p(w)."""
    normal = stats.multivariate_normal.pdf(x, mean, covariance / w)
    return float(normal * stats.gamma.pdf(w, a, scale=1 / b))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_marginal_is_pearson_vii_by_quadrature_and_by_scipys_student(dim: int) -> None:
    mixture, x = some_mixture(2, dim), torch.randn(3, dim)
    weights = some_weights("gamma", 3)
    assert isinstance(weights, GammaWeights)
    found = weights.log_marginal(x, mixture)
    for i in range(3):
        alpha, beta = float(weights.alpha[i]), float(weights.beta[i])
        for k in range(2):
            mean, covariance = mixture.mean[k].numpy(), mixture.covariance[k].numpy()
            given = (x[i].numpy(), mean, covariance, alpha, beta)
            value, _ = integrate.quad(joint, 0, np.inf, given, epsabs=0, epsrel=1e-8)
            assert math.log(value) == pytest.approx(float(found[i, k]), abs=1e-7)
            student = stats.multivariate_t(mean, covariance * beta / alpha, df=2 * alpha)
            assert student.logpdf(x[i].numpy()) == pytest.approx(float(found[i, k]), abs=1e-10)


def test_fixed_weights_density_is_scipys() -> None:
    mixture, x, weights = some_mixture(), torch.randn(4, 2), some_weights("fixed", 4)
    assert isinstance(weights, FixedWeights)
    found = weights.log_marginal(x, mixture)
    for i in range(4):
        for k in range(3):
            covariance = mixture.covariance[k].numpy() / float(weights.w[i])
            other = stats.multivariate_normal(mixture.mean[k].numpy(), covariance).logpdf(x[i])
            assert other == pytest.approx(float(found[i, k]), abs=1e-10)


def test_fixed_e_step_is_what_pyro_enumerates() -> None:
    mixture, x, weights = some_mixture(), 3 * torch.randn(6, 2), some_weights("fixed", 6)
    eta, w, bound = e_step(x, mixture, weights)

    def guide(*_: object) -> None: ...

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    marginal = elbo.compute_marginals(model, guide, mixture, weights, x)["z"]
    torch.testing.assert_close(marginal.probs, eta)
    assert elbo.loss(config_enumerate(model), guide, mixture, weights, x) == pytest.approx(
        -float(bound)
    )
    assert isinstance(weights, FixedWeights)
    torch.testing.assert_close(w, weights.w[:, None].expand(6, 3))


def posterior_on_a_grid(
    mixture: Mixture, weights: Weights, x: Tensor, k: int, log_w: Tensor
) -> Tensor:
    """The Pyro program's own log-joint of every point with z = k, at each weight of a grid, in log w: (grid, point)."""
    w = log_w.exp()[:, None].expand(-1, len(x))
    values = {"z": torch.full((len(x),), k), "w": w}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(mixture, weights, x)
    trace.compute_log_prob()
    return sum(trace.nodes[name]["log_prob"] for name in ("z", "w", "x")) + w.log()


def test_gamma_e_step_is_the_pyro_programs_posterior_by_quadrature() -> None:
    mixture, x, weights = some_mixture(), 3 * torch.randn(5, 2), some_weights("gamma", 5)
    eta, expected, bound = e_step(x, mixture, weights)
    log_w = torch.linspace(-25, 5, 900)
    step = float(log_w[1] - log_w[0])
    joint = torch.stack([posterior_on_a_grid(mixture, weights, x, k, log_w) for k in range(3)], -1)
    evidence = joint.logsumexp(0) + math.log(step)
    torch.testing.assert_close(evidence.softmax(-1), eta, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(evidence.logsumexp(-1).sum(), bound, rtol=1e-7, atol=0)
    mean = (joint.softmax(0) * log_w.exp()[:, None, None]).sum(0)
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=0)


def free_energy(x: Tensor, q: Mixture, mixture: Mixture, weights: Weights) -> Tensor:
    """E_q log p(x, z, w) - log q with q the posterior under `q`: term by term, of torch's distributions."""
    eta, w, _ = e_step(x, q, weights)
    energy = mixture.share.log() - eta.log()
    d = x.shape[-1]
    if isinstance(weights, GammaWeights):
        alpha, beta = weights.alpha[:, None], weights.beta[:, None]
        posterior = Gamma(alpha + d / 2, beta + q.distance(x) / 2)
        log_w = posterior.concentration.digamma() - posterior.rate.log()
        prior = alpha * beta.log() - alpha.lgamma() + (alpha - 1) * log_w - beta * w
        energy = energy + prior + posterior.entropy()
    else:
        log_w = weights.w[:, None].log()
    normal = d * (log_w - math.log(2 * math.pi)) - mixture.covariance.logdet()
    return (eta * (energy + 0.5 * (normal - w * mixture.distance(x)))).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_the_m_step_is_the_maximum_of_the_free_energy(kind: str) -> None:
    x, weights, mixture = 3 * torch.randn(40, 2), some_weights(kind, 40), some_mixture()
    eta, w, bound = e_step(x, mixture, weights)
    torch.testing.assert_close(free_energy(x, mixture, mixture, weights), bound)
    best = m_step(x, eta, w, floor=1e-9)
    logits = best.share.log().requires_grad_()
    mean, covariance = best.mean.clone().requires_grad_(), best.covariance.clone().requires_grad_()
    found = free_energy(x, mixture, Mixture(logits.softmax(-1), mean, covariance), weights)
    for slope in torch.autograd.grad(found, (logits, mean, covariance)):
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)
    assert found > bound
    for seed in range(5):  # and no point nearby is higher
        step = 0.05 * torch.randn(3, 2, generator=torch.Generator().manual_seed(seed))
        assert (
            free_energy(x, mixture, Mixture(best.share, best.mean + step, best.covariance), weights)
            < found
        )


def test_the_floor_is_the_maximum_on_its_set() -> None:
    x, weights, floor = (
        torch.randn(30, 2) * torch.tensor([1.0, 0.05]),
        some_weights("fixed", 30),
        0.1,
    )
    start = Mixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    eta, w, _ = e_step(x, start, weights)
    best = m_step(x, eta, w, floor)
    assert torch.linalg.eigvalsh(best.covariance).min() == pytest.approx(floor)
    found = free_energy(x, start, best, weights)
    for seed in range(50):
        rng = torch.Generator().manual_seed(seed)
        other = best.covariance + 0.1 * torch.randn(1, 2, 2, generator=rng)
        values, vectors = torch.linalg.eigh((other + other.mT) / 2)
        other = (vectors * values.clamp_min(floor)[:, None]) @ vectors.mT
        assert (
            free_energy(x, start, Mixture(best.share, best.mean, other), weights) <= found + 1e-12
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_never_falls_and_ends_where_the_likelihood_is_flat(kind: str) -> None:
    for seed in range(8):
        rng = torch.Generator().manual_seed(seed)
        x, weights = draw_scene(rng).x / 50, some_weights(kind, 380, seed)
        _, bounds = em(
            x, weights, scattered(x, 2 + seed % 4, rng), 25, floor=0.01 if seed % 2 else 1e-6
        )
        assert min(np.diff(bounds)) > -1e-8, seed
    mixture, weights = truth(300)
    x, w, _ = draw(mixture, weights, torch.Generator().manual_seed(0))
    given = FixedWeights(w) if kind == "fixed" else weights
    found, _ = em(x, given, mixture, 200)
    parameters = [
        part.clone().requires_grad_() for part in (found.share.log(), found.mean, found.covariance)
    ]
    share = parameters[0].softmax(-1)
    likelihood = e_step(x, Mixture(share, *parameters[1:]), given)[2]
    for slope in torch.autograd.grad(likelihood, parameters):
        assert slope.abs().max() < 1e-5


def distance_from_truth(found: Mixture, mixture: Mixture) -> float:
    return float(torch.cdist(mixture.mean, found.mean).amin(1).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_comes_back(kind: str) -> None:
    mixture, weights = truth(3000)
    x, w, z = draw(mixture, weights, torch.Generator().manual_seed(3))
    given = FixedWeights(w) if kind == "fixed" else weights
    start = scattered(x, 3, torch.Generator().manual_seed(0))
    found, _ = em(x, given, start, 80)
    order = torch.cdist(mixture.mean, found.mean).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(found.share[order], mixture.share, atol=0.04, rtol=0)
    torch.testing.assert_close(found.mean[order], mixture.mean, atol=0.12, rtol=0)
    torch.testing.assert_close(found.covariance[order], mixture.covariance, atol=0.1, rtol=0.15)
    eta, _, _ = e_step(x, found, given)
    assert (order[z] == eta.argmax(-1)).double().mean() > 0.9


def test_draws_follow_the_story_and_a_twin_that_forgets_the_weights_does_not() -> None:
    """w D is chi-squared with d degrees. Each p-value is below 1e-5 in one of 100,000 runs (false alarm)."""
    mixture, weights = truth(3000)
    x, w, z = draw(mixture, weights, torch.Generator().manual_seed(5))
    distance = mixture.distance(x).take_along_dim(z[:, None], 1)[:, 0]
    assert stats.kstest((w * distance).numpy(), stats.chi2(2).cdf).pvalue > 1e-5
    assert stats.kstest(distance.numpy(), stats.chi2(2).cdf).pvalue < 1e-5
    uniform = stats.gamma.cdf(w.numpy(), weights.alpha.numpy(), scale=1 / weights.beta.numpy())
    assert stats.kstest(uniform, "uniform").pvalue > 1e-5
    counts = torch.bincount(z, minlength=3).numpy()
    assert stats.chisquare(counts, 3000 * mixture.share.numpy()).pvalue > 1e-5


def test_the_length_is_figueiredo_and_jain_s_and_never_grows_between_deaths() -> None:
    mixture, x = some_mixture(), torch.randn(50, 2)
    weights = FixedWeights(torch.ones(50))
    densities = [
        stats.multivariate_normal(m, c).pdf(x)
        for m, c in zip(mixture.mean.numpy(), mixture.covariance.numpy(), strict=True)
    ]
    likelihood = np.log(mixture.share.numpy() @ np.stack(densities)).sum()
    expected = (
        2.5 * np.log(50 * mixture.share.numpy() / 12).sum() + 1.5 * np.log(50 / 12) + 9 - likelihood
    )
    assert float(message_length(x, mixture, weights)) == pytest.approx(expected)
    for seed in range(3):
        scene = draw_scene(torch.Generator().manual_seed(seed))
        w = cross_modal_weights(scene)
        given = GammaWeights(w.square(), w)
        endings = shorten(
            scene.x, given, scattered(scene.x, 8, torch.Generator().manual_seed(1)), floor=25.0
        )
        counts = [len(found.share) for found, _ in endings]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] == 1
        for _, lengths in endings:
            assert max(np.diff(lengths), default=0) < 1e-7


def test_the_scene_has_three_people_and_without_weights_more() -> None:
    scene = draw_scene(torch.Generator().manual_seed(0))
    w = cross_modal_weights(scene)
    assert w[scene.person >= 0].mean() > 4 * w[scene.person < 0].mean()
    start = scattered(scene.x, 8, torch.Generator().manual_seed(1))
    best = {}
    kinds: dict[str, Weights] = {
        "gamma": GammaWeights(w.square(), w),
        "fixed": FixedWeights(w),
        "none": FixedWeights(torch.ones_like(w)),
    }
    for name, given in kinds.items():
        endings = shorten(scene.x, given, start, floor=25.0)
        best[name], _ = min(endings, key=lambda end: end[1][-1])
    assert len(best["gamma"].share) == len(best["fixed"].share) == 3
    assert len(best["none"].share) > 3
    for name in ("gamma", "fixed"):
        assert torch.cdist(scene.centre, best[name].mean).amin(1).max() < 8  # pixels
