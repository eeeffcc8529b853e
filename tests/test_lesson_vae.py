"""The lesson on the VAE: its bound and gradients by hand against Pyro, autograd and quadrature."""

import math

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import stats
from scipy.integrate import dblquad
from scipy.optimize import minimize
from torch import Tensor

from lessons import vae as lesson
from lessons.vae import VAE, Weights

pytestmark = pytest.mark.usefixtures("float64")


def anything(seed: int = 0, frames: int = 5, freqs: int = 4) -> tuple[Tensor, Weights]:
    """Powers, and weights of a decoder and an encoder."""
    rng = torch.Generator().manual_seed(seed)
    spread = {"W": 0.5, "b": 0.5, "A": 0.15, "a": 0.3, "D": 0.1, "e": 0.3}
    sizes = vars(lesson.start(rng, freqs))
    w = Weights(**{k: s * torch.randn(sizes[k].shape, generator=rng) for k, s in spread.items()})
    return lesson.draw(rng, frames, w), w


def largest_difference(a: Weights, b: Weights) -> float:
    return max((vars(a)[name] - vars(b)[name]).abs().max().item() for name in vars(a))


def test_the_bound_and_its_gradients_are_pyros() -> None:
    """(6), (7), (10) against Trace_ELBO on the same draws of eps."""
    P, w = anything()
    program = VAE(w)
    torch.manual_seed(3)
    loss = Trace_ELBO().loss_and_grads(program.model, program.guide, P)
    L, gradients = lesson.by_hand(P, torch.randn(5, 2, generator=torch.manual_seed(3)), w)
    assert -loss == pytest.approx(L.item(), rel=1e-12)
    theirs = Weights(**{k: -v.grad for k, v in program.named_parameters() if v.grad is not None})
    assert largest_difference(gradients, theirs) < 1e-10


def test_pyro_has_the_same_joint() -> None:
    """(1) to (3) and the encoder (10), with scipy's densities."""
    P, w = anything()
    program = VAE(w)
    trace = poutine.trace(program.guide).get_trace(P)
    joint = poutine.trace(poutine.replay(program.model, trace)).get_trace(P)
    z = trace.nodes["z"]["value"].detach()
    v = (z @ w.W.mT + w.b).exp()
    log_p = stats.norm.logpdf(z).sum() + stats.expon.logpdf(P, scale=v).sum()
    assert joint.log_prob_sum().item() == pytest.approx(log_p)
    m, log_d = lesson.encode(P, w)
    assert trace.log_prob_sum().item() == pytest.approx(stats.norm.logpdf(z, m, log_d.exp()).sum())


def test_draws_average_to_the_closed_form() -> None:
    """(5) to (7) averaged over eps by Gauss-Hermite quadrature: (8), and its gradient by autograd."""
    P, w = anything(frames=1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    mean, gradients = 0.0, Weights(*(torch.zeros_like(value) for value in vars(w).values()))
    for x, a in zip(nodes, weights, strict=True):
        for y, b in zip(nodes, weights, strict=True):
            L, g = lesson.by_hand(P, torch.tensor([[x, y]]), w)
            share = a * b / (2 * math.pi)
            mean += share * L.item()
            for name, value in vars(gradients).items():
                value += share * vars(g)[name]
    free = Weights(*(value.clone().requires_grad_() for value in vars(w).values()))
    exact = lesson.exact_bound(P, *lesson.encode(P, free), free).sum()
    exact.backward()
    assert mean == pytest.approx(exact.item())
    for name, value in vars(free).items():
        torch.testing.assert_close(vars(gradients)[name], value.grad)


def test_the_evidence_is_an_integral() -> None:
    """log p(P_n) against scipy's adaptive quadrature of the joint."""
    P, w = anything(frames=1)

    def joint(y: float, x: float) -> float:
        log_v = w.W.numpy() @ [x, y] + w.b.numpy()
        log_p = -(log_v + P[0].numpy() * np.exp(-log_v)).sum() - (x**2 + y**2) / 2
        return math.exp(log_p) / (2 * math.pi)

    total = dblquad(joint, -6, 6, -6, 6, epsabs=1e-8, epsrel=1e-5)[0]
    assert lesson.log_marginal(P, w).item() == pytest.approx(math.log(total), abs=1e-5)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_the_gap_is_a_divergence(seed: int) -> None:
    """(4): log p - L is KL(r || p(z | P)), the posterior on a grid; it is never negative."""
    P, w = anything(seed, frames=3)
    m, log_d = lesson.encode(P, w)
    d = log_d.exp()
    side = torch.linspace(-8, 8, 161)
    eps = torch.cartesian_prod(side, side)
    z = m[:, None] + d[:, None] * eps  # (frame, point, latent)
    log_r = (-0.5 * eps**2 - 0.5 * math.log(2 * math.pi)).sum(-1) - log_d.sum(-1)[:, None]
    log_v = z @ w.W.mT + w.b
    log_joint = -(log_v + P[:, None] * (-log_v).exp()).sum(-1)
    log_joint = log_joint - 0.5 * (z**2).sum(-1) - math.log(2 * math.pi)
    evidence = lesson.log_marginal(P, w)
    area = 0.01 * d.prod(-1)
    kl = (log_r.exp() * (log_r - log_joint + evidence[:, None])).sum(-1) * area
    gap = evidence - lesson.exact_bound(P, m, log_d, w)
    torch.testing.assert_close(gap, kl, atol=1e-5, rtol=1e-5)
    assert (gap > 0).all()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_variational_em_never_falls_and_ends_at_the_optimum(seed: int) -> None:
    """(9): the bound over iterations; its gradient at the end by autograd."""
    P, w = anything(seed)
    before = torch.full((5,), -math.inf)
    for iterations in range(6):
        after = lesson.exact_bound(P, *lesson.best_gaussian(P, w, iterations), w)
        assert (after >= before - 1e-9).all()
        before = after
    m, log_d = (x.requires_grad_() for x in lesson.best_gaussian(P, w, 40))
    lesson.exact_bound(P, m, log_d, w).sum().backward()
    assert m.grad is not None
    assert log_d.grad is not None
    assert torch.cat([m.grad, log_d.grad]).abs().max() < 1e-6


def test_no_other_optimiser_finds_a_better_gaussian() -> None:
    """(9) against scipy's BFGS from elsewhere."""
    P, w = anything(7, frames=1)

    def loss(x: np.ndarray) -> float:
        m, log_d = torch.from_numpy(x).reshape(2, 1, 2)
        return -lesson.exact_bound(P, m, log_d, w).item()

    ours = lesson.exact_bound(P, *lesson.best_gaussian(P, w), w).item()
    assert -minimize(loss, np.array([1.0, -1.0, -2.0, 0.3])).fun == pytest.approx(ours, abs=1e-7)


def test_svi_by_hand_is_pyros_svi() -> None:
    """(7), (10) and Adam: twenty steps end at the same weights, and leave nothing behind."""
    rng = torch.Generator().manual_seed(0)
    P, first = lesson.draw(rng, 30, lesson.truth()), lesson.start(rng)
    state = torch.get_rng_state()
    theirs, their_rise = lesson.train_with_pyro(P, first, 20, 0.02, seed=5)
    ours, rise = lesson.train_by_hand(P, first, 20, 0.02, torch.Generator().manual_seed(5))
    assert largest_difference(ours, theirs) < 1e-10
    torch.testing.assert_close(rise, their_rise)
    assert (torch.get_rng_state() == state).all()
    assert len(pyro.get_param_store()) == 0


def test_the_decoder_is_recovered() -> None:
    """From 800 frames: unseen frames are as likely as under the truth, but for 0.05 nats; W W^T, all that the
    likelihood knows of W, is found to a quarter. A start that was not trained must fail."""
    true, rng = lesson.truth(), torch.Generator().manual_seed(0)
    P, unseen, first = lesson.draw(rng, 800, true), lesson.draw(rng, 200, true), lesson.start(rng)
    learned, _ = lesson.train_by_hand(P, first, 600, 0.02, rng)

    def scores(w: Weights) -> tuple[float, float]:
        lost = (lesson.log_marginal(unseen, true) - lesson.log_marginal(unseen, w)).mean()
        G, G_true = w.W @ w.W.mT, true.W @ true.W.mT
        return lost.item(), ((G - G_true).norm() / G_true.norm()).item()

    lost, error = scores(learned)
    assert lost < 0.05
    assert error < 0.25
    lost, error = scores(first)
    assert lost > 1
    assert error > 0.5
