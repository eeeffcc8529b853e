"""The lesson on audio-visual events: its mixture against enumeration by hand and by Pyro, and what it recovers."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy.stats import norm
from torch import Tensor

from lessons import av_gmm
from lessons.av_gmm import Events, Window

pytestmark = pytest.mark.usefixtures("float64")


def window(seed: int, people: int = 3) -> tuple[Window, Tensor, torch.Generator]:
    """A drawn window, what is seen in it as ITDs, and the generator."""
    rng = torch.Generator().manual_seed(seed)
    positions = av_gmm.place(rng, people)
    speaking = torch.rand(people, generator=rng) < 0.6
    drawn = av_gmm.draw(rng, positions, speaking)
    return drawn, av_gmm.itd(av_gmm.triangulate(drawn.pixels)), rng


def events(people: int = 2) -> Events:
    """Any theta."""
    return Events(
        mu=torch.linspace(-90, 60, people),
        sigma=torch.linspace(12, 25, people),
        pi=torch.softmax(torch.arange(people + 1.0) / 3, 0),
        tau=torch.tensor(31.0),
        lam=torch.softmax(-torch.arange(people + 1.0) / 2, 0),
    )


V = torch.tensor([-80.0, -20.0, 50.0])
A = torch.tensor([-60.0, 110.0])


def test_space_to_pixels_and_back() -> None:
    """(1)"""
    points = torch.tensor([[0.3, -0.1, 2.0], [-1.0, 0.2, 4.0]])
    torch.testing.assert_close(av_gmm.triangulate(av_gmm.project(points)), points)


def test_itds_are_times_of_flight() -> None:
    """(2): in between, zero; far to a side, the longest; elsewhere, two distances written out."""
    ahead, right, left = torch.tensor([[0.0, 0.3, 2.0], [1e4, 0.0, 0.0], [-1e4, 0.0, 0.0]])
    assert av_gmm.itd(ahead) == 0
    assert av_gmm.itd(right).item() == pytest.approx(av_gmm.LONGEST)
    assert av_gmm.itd(left).item() == pytest.approx(-av_gmm.LONGEST)
    seconds = (math.dist((1, 0.5, 2), (-0.09, 0, 0)) - math.dist((1, 0.5, 2), (0.09, 0, 0))) / 343
    found = av_gmm.itd(torch.tensor([1.0, 0.5, 2.0])).item()
    assert found == pytest.approx(1e6 * seconds)


def brute_force(theta: Events) -> tuple[float, np.ndarray, np.ndarray]:
    """log p(v, a), alpha and beta, by adding up every way to label all of V and A: 3^5 of them."""
    people = len(theta.mu)
    alpha, beta = np.zeros((len(V), people + 1)), np.zeros((len(A), people + 1))
    total = 0.0
    for labels in itertools.product(range(people + 1), repeat=len(V) + len(A)):
        c, z = labels[: len(V)], labels[len(V) :]
        p = 1.0
        for x, n in zip(V.tolist(), c, strict=True):
            person = norm.pdf(x, theta.mu[n], theta.sigma[n]) if n < people else 1 / 530
            p *= theta.pi[n].item() * person
        for x, n in zip(A.tolist(), z, strict=True):
            person = norm.pdf(x, theta.mu[n], theta.tau) if n < people else 1 / 1100
            p *= theta.lam[n].item() * person
        total += p
        alpha[np.arange(len(V)), c] += p
        beta[np.arange(len(A)), z] += p
    return math.log(total), alpha / total, beta / total


def test_the_e_step_is_enumeration() -> None:
    """(6), and log p(v, a)."""
    theta = events()
    log_p, alpha, beta = brute_force(theta)
    seen, heard = av_gmm.see(V, theta), av_gmm.hear(A, theta)
    np.testing.assert_allclose(seen.softmax(-1), alpha, atol=1e-12)
    np.testing.assert_allclose(heard.softmax(-1), beta, atol=1e-12)
    assert (seen.logsumexp(-1).sum() + heard.logsumexp(-1).sum()).item() == pytest.approx(log_p)


def test_pyro_has_the_same_posterior() -> None:
    """(3), (4), (6): TraceEnum_ELBO's marginals and evidence of `model`, on a whole window."""
    drawn, v, _ = window(2)
    theta = events(3)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    marginals = elbo.compute_marginals(av_gmm.model, lambda *_: None, v, drawn.sounds, theta)
    seen, heard = av_gmm.see(v, theta), av_gmm.hear(drawn.sounds, theta)
    torch.testing.assert_close(marginals["c"].probs, seen.softmax(-1))
    torch.testing.assert_close(marginals["z"].probs, heard.softmax(-1))
    evidence = -elbo.loss(av_gmm.model, lambda *_: None, v, drawn.sounds, theta)
    ours = seen.logsumexp(-1).sum() + heard.logsumexp(-1).sum()
    assert evidence == pytest.approx(ours.item())


def test_pyro_has_the_same_joint() -> None:
    """(3), (4): log p(v, c, a, z) of any labels."""
    theta = events()
    c, z = torch.tensor([0, 2, 1]), torch.tensor([2, 0])
    labelled = poutine.condition(av_gmm.model, {"c": c, "z": z})
    log_p = poutine.trace(labelled).get_trace(V, A, theta).log_prob_sum()
    seen, heard = av_gmm.see(V, theta), av_gmm.hear(A, theta)
    torch.testing.assert_close(log_p, seen[range(3), c].sum() + heard[range(2), z].sum())


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), people=st.integers(1, 4))
def test_no_bound_ever_falls(seed: int, people: int) -> None:
    """log p(v) under (6), (7), from every start and any number of people; then F of (5), which is below log p(v, a) by
    the KL divergence of alpha from its posterior."""
    drawn, v, rng = window(seed)
    a = drawn.sounds
    theta = av_gmm.starts(v, people, 3, rng)
    before = torch.full((3,), -math.inf)
    for _ in range(12):
        theta, log_likelihood = av_gmm.vision_step(v, theta)
        assert (log_likelihood >= before - 1e-8).all()
        before = log_likelihood
    alpha, before = av_gmm.see(v, theta).softmax(-1), torch.full((3,), -math.inf)
    for _ in range(12):
        seen, heard = av_gmm.see(v, theta), av_gmm.hear(a, theta)
        log_p = seen.logsumexp(-1).sum(-1) + heard.logsumexp(-1).sum(-1)
        kl = (torch.xlogy(alpha, alpha) - alpha * seen.log_softmax(-1)).sum((-2, -1))
        theta, F = av_gmm.audio_visual_step(v, a, alpha, theta)
        assert (before - 1e-8 <= F).all()
        torch.testing.assert_close(F, log_p - kl)
        before = F


def free_bound(v: Tensor, a: Tensor, alpha: Tensor, beta: Tensor, theta: Events) -> Tensor:
    """F of (5) up to the entropies, from torch's own densities."""

    def expected(x: Tensor, q: Tensor, weights: Tensor, spread: Tensor) -> Tensor:
        person = torch.distributions.Normal(theta.mu, spread).log_prob(x[:, None])
        return (q * weights.log()).sum() + (q[:, :-1] * person).sum()

    return expected(v, alpha, theta.pi, theta.sigma) + expected(a, beta, theta.lam, theta.tau)


def test_the_m_step_is_where_the_gradient_vanishes() -> None:
    """(9) with the spreads of before, (7) and (10) with the means of after; autograd on (5)."""
    drawn, v, rng = window(5)
    a = drawn.sounds
    before = av_gmm.fit_vision(v, 3, rng=rng)[0]
    alpha, beta = av_gmm.see(v, before).softmax(-1), av_gmm.hear(a, before).softmax(-1)
    after, _ = av_gmm.audio_visual_step(v, a, alpha, before)
    assert (after.sigma > 6).all()
    assert (after.sigma < 35).all()
    mu = after.mu.clone().requires_grad_()
    free_bound(v, a, alpha, beta, replace(before, mu=mu)).backward()
    assert mu.grad is not None
    assert mu.grad.abs().max() < 1e-8
    sigma, tau = after.sigma.clone().requires_grad_(), after.tau.clone().requires_grad_()
    free_bound(v, a, alpha, beta, replace(after, sigma=sigma, tau=tau)).backward()
    assert sigma.grad is not None
    assert tau.grad is not None
    assert sigma.grad.abs().max() < 1e-8
    assert tau.grad.abs() < 1e-8


def test_a_spread_at_its_bound_is_the_best_within() -> None:
    """Heads of one point: the free maximiser of sigma is 0. Against every spread on a grid."""
    v, a, alpha = torch.tensor([0.0, 100.0]), torch.zeros(0), torch.eye(2, 3)
    before = events(2)
    after, _ = av_gmm.audio_visual_step(v, a, alpha, before)
    grid = torch.linspace(*av_gmm.SEEN_SPREAD, 30)
    bounds = [
        free_bound(v, a, alpha, torch.zeros(0, 3), replace(before, mu=after.mu, sigma=s))
        for s in grid
    ]
    assert grid[torch.stack(bounds).argmax()] == after.sigma[0]


def test_em_ends_where_pyros_evidence_is_flat() -> None:
    """(6), (7): the gradient of Pyro's enumerated log p(v) is zero at EM's end."""
    _, v, rng = window(5)
    theta = av_gmm.fit_vision(v, 3, rng=rng)[0]
    for _ in range(300):
        theta, _ = av_gmm.vision_step(v, theta)
    mu, sigma = theta.mu.clone().requires_grad_(), theta.sigma.clone().requires_grad_()
    echo, only_echoes = torch.tensor([400.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    theta = replace(theta, mu=mu, sigma=sigma, lam=only_echoes)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    elbo.differentiable_loss(av_gmm.model, lambda *_: None, v, echo, theta).backward()
    assert mu.grad is not None
    assert sigma.grad is not None
    assert torch.cat([mu.grad, sigma.grad]).abs().max() < 1e-6


def recovered(mapping: Callable[[Tensor], Tensor]) -> tuple[int, float, float]:
    """Of six windows: how many counts are right, the mean error of a direction in us, the share of people of whom it is
    found whether they speak."""
    counts, errors, speakers = 0, [], []
    for seed in range(6):
        drawn, v, rng = window(seed, people=2)
        seen, _ = av_gmm.count_people(mapping(v), rng=rng, most=3)
        found, _, _ = av_gmm.fit_audio_visual(mapping(v), drawn.sounds, seen)
        counts += len(found.mu) == len(drawn.positions)
        gap = (found.mu - av_gmm.itd(drawn.positions)[:, None]).abs()
        errors.append(gap.min(-1).values)
        speakers.append(av_gmm.speaks(found)[gap.argmin(-1)] == drawn.speaking)
    return counts, torch.cat(errors).mean().item(), torch.cat(speakers).double().mean().item()


def test_people_and_speakers_are_found() -> None:
    """And a head with its ears swapped, that maps points to the negative of their ITDs, must fail at the same."""
    counts, error, speakers = recovered(lambda v: v)
    assert counts == 6
    assert error < 5
    assert speakers > 0.9
    _, error, speakers = recovered(lambda v: -v)
    assert error > 20
    assert speakers < 0.9


def test_nobody_is_found_in_clutter() -> None:
    """BIC of clutter alone, even in view, takes no person."""
    rng = torch.Generator().manual_seed(0)
    v = 530 * torch.rand(80, generator=rng) - 265
    seen, bic = av_gmm.count_people(v, rng=rng, most=3)
    assert len(seen.mu) == 0
    assert bic[0] == pytest.approx(2 * 80 * math.log(530))
