"""Multiplicative updates of Itakura-Saito NMF: (42), (43)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from pyro_avse.inference.nmf import (
    is_nmf_cost,
    is_nmf_update_H,
    is_nmf_update_W,
    normalise,
)
from pyro_avse.models.nmf_noise import nmf_noise_variance

both_exponents = pytest.mark.parametrize("exponent", [0.5, 1.0])


def problem(
    seed: int, utterances: tuple[int, ...] = (), frames: int = 6, freqs: int = 7, rank: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """V of 60 dB range, and W, H to start from."""
    rng = torch.Generator().manual_seed(seed)

    def positive(*shape: int, spread: float) -> Tensor:
        normal = torch.randn(*utterances, *shape, generator=rng, dtype=torch.float64)
        return torch.exp(spread * normal)

    return (
        positive(frames, freqs, spread=3),
        positive(rank, freqs, spread=1),
        positive(frames, rank, spread=1),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    utterances=st.sampled_from([(), (2,), (2, 3)]),
    frames=st.integers(1, 6),
    freqs=st.integers(1, 7),
    rank=st.integers(1, 4),
    exponent=st.sampled_from([0.5, 1.0]),
    masked=st.booleans(),
)
def test_no_update_ever_raises_the_cost(
    seed: int,
    utterances: tuple[int, ...],
    frames: int,
    freqs: int,
    rank: int,
    exponent: float,
    masked: bool,
) -> None:
    """(42), (43): W H computed anew between them, neither update raises the divergence."""
    V, W, H = problem(seed, utterances, frames, freqs, rank)
    mask = None
    if masked:
        mask = torch.rand(V.shape[:-1], generator=torch.Generator().manual_seed(seed)) < 0.7
        mask[..., 0] = True
    cost = is_nmf_cost(V, W, H, mask)
    for _ in range(5):
        H = is_nmf_update_H(V, W, H, exponent=exponent)
        after_H = is_nmf_cost(V, W, H, mask)
        W = is_nmf_update_W(V, W, H, exponent=exponent, mask=mask)
        after_W = is_nmf_cost(V, W, H, mask)
        slack = 1e-12 * V.numel() * cost.abs().clamp_min(1)
        assert (after_H <= cost + slack).all()
        assert (after_W <= after_H + slack).all()
        cost = after_W


def test_from_a_stale_product_exponent_one_raises_the_cost() -> None:
    """(42), (43): updated at once from one W H, exponent 1 raises the cost; 1/2 does not."""
    raised = {0.5: 0, 1.0: 0}
    for exponent in raised:
        for seed in range(10):
            V, W, H = problem(seed)
            cost = is_nmf_cost(V, W, H)
            for _ in range(20):
                W, H = (
                    is_nmf_update_W(V, W, H, exponent=exponent),
                    is_nmf_update_H(V, W, H, exponent=exponent),
                )
                previous, cost = cost, is_nmf_cost(V, W, H)
                raised[exponent] += bool(cost > previous + 1e-9 * previous.abs())
    assert raised[0.5] == 0
    assert raised[1.0] > 20


@both_exponents
def test_one_entry_of_each_update_by_loops(exponent: float) -> None:
    """(42), (43): an entry of W and of H as the paper prints them, sums written out."""
    V, W, H = problem(0)
    N, F, K = *V.shape, W.shape[-2]
    WH = [[sum(float(W[k, f] * H[n, k]) for k in range(K)) for f in range(F)] for n in range(N)]

    n, k = 4, 1
    up = sum(float(W[k, f] * V[n, f]) / WH[n][f] ** 2 for f in range(F))
    down = sum(float(W[k, f]) / WH[n][f] for f in range(F))
    h = float(H[n, k]) * (up / down) ** exponent
    assert is_nmf_update_H(V, W, H, exponent=exponent)[n, k].item() == pytest.approx(h, rel=1e-12)

    k, f = 2, 5
    up = sum(float(H[n, k] * V[n, f]) / WH[n][f] ** 2 for n in range(N))
    down = sum(float(H[n, k]) / WH[n][f] for n in range(N))
    w = float(W[k, f]) * (up / down) ** exponent
    assert is_nmf_update_W(V, W, H, exponent=exponent)[k, f].item() == pytest.approx(w, rel=1e-12)


@both_exponents
def test_where_the_updates_stop_the_gradient_is_zero(exponent: float) -> None:
    """(42), (43): their fixed point is a stationary point of the cost in log W, log H."""
    V, W, H = problem(1, frames=5, freqs=4, rank=2)

    def gradient(W: Tensor, H: Tensor) -> Tensor:
        logs = [W.log().requires_grad_(), H.log().requires_grad_()]
        cost = is_nmf_cost(V, logs[0].exp(), logs[1].exp())
        return torch.cat([g.flatten() for g in torch.autograd.grad(cost, logs)])

    assert gradient(W, H).abs().max() > 1
    for _ in range(3000):
        H = is_nmf_update_H(V, W, H, exponent=exponent)
        W = is_nmf_update_W(V, W, H, exponent=exponent)
    assert gradient(W, H).abs().max() < 1e-6


def majoriser(h: np.ndarray, v: np.ndarray, W: np.ndarray, h_old: np.ndarray) -> float:
    """Jensen on 1 / (W h), a tangent on log (W h), for one frame."""
    old = h_old @ W
    total = 0.0
    for f in range(len(v)):
        for k in range(len(h)):
            share = W[k, f] * h_old[k] / old[f]
            total += v[f] * share**2 / (W[k, f] * h[k])
        total += math.log(old[f]) + (h @ W[:, f] - old[f]) / old[f]
    return total


def test_exponent_half_minimises_the_majoriser_and_one_keeps_its_height() -> None:
    """(42): 1/2 is the minimum of a bound that touches the cost, 1 its point of equal height."""
    V, W, H = problem(2, frames=1)
    v, w, h_old = V[0].numpy(), W.numpy(), H[0].numpy()

    def cost(h: np.ndarray) -> float:
        return is_nmf_cost(V, W, torch.from_numpy(h)[None]).item()

    assert majoriser(h_old, v, w, h_old) == pytest.approx(cost(h_old))
    for seed in range(20):  # it lies above the cost everywhere
        h = h_old * np.exp(np.random.default_rng(seed).normal(size=len(h_old)))
        assert majoriser(h, v, w, h_old) >= cost(h)

    found = minimize(lambda log_h: majoriser(np.exp(log_h), v, w, h_old), np.log(h_old), tol=1e-14)
    half = is_nmf_update_H(V, W, H, exponent=0.5)[0].numpy()
    np.testing.assert_allclose(half, np.exp(found.x), rtol=1e-5)

    one = is_nmf_update_H(V, W, H, exponent=1)[0].numpy()
    for k in range(len(h_old)):
        h = h_old.copy()
        h[k] = one[k]
        assert majoriser(h, v, w, h_old) == pytest.approx(cost(h_old))


@both_exponents
def test_silence_stays_finite(exponent: float) -> None:
    """(42), (43): all-zero frames, or a whole recording of zeros, leave all finite and positive."""
    V, W, H = problem(3)
    V[2:4] = 0
    for power in (V, torch.zeros_like(V)):
        w, h = W, H
        for _ in range(200):
            h = is_nmf_update_H(power, w, h, exponent=exponent)
            w, h = normalise(is_nmf_update_W(power, w, h, exponent=exponent), h)
        for factor in (w, h, nmf_noise_variance(w, h)):
            assert factor.isfinite().all()
            assert (factor > 0).all()
        assert is_nmf_cost(power, w, h).isfinite()


def test_padding_does_not_reach_the_dictionary() -> None:
    """(43): W is what the kept frames alone give, whatever stands in the others, NaN included."""
    V, W, H = problem(4, utterances=(2,))
    mask = torch.tensor([[True, True, True, True, False, False], [True] * 6])
    masked = is_nmf_update_W(V, W, H, exponent=0.5, mask=mask)
    alone = is_nmf_update_W(V[0, :4], W[0], H[0, :4], exponent=0.5)
    torch.testing.assert_close(masked[0], alone)
    torch.testing.assert_close(masked[1], is_nmf_update_W(V[1], W[1], H[1], exponent=0.5))

    V[0, 4:] = math.nan
    assert torch.equal(is_nmf_update_W(V, W, H, exponent=0.5, mask=mask), masked)
    assert is_nmf_cost(V, W, H, mask).isfinite().all()


def test_normalise_moves_only_the_scale() -> None:
    """(28): spectra sum to one, W H and with it the cost stay as they are."""
    V, W, H = problem(5, utterances=(2, 3))
    w, h = normalise(W, H)
    torch.testing.assert_close(w.sum(-1), torch.ones(2, 3, 3).double())
    torch.testing.assert_close(nmf_noise_variance(w, h), nmf_noise_variance(W, H))
    torch.testing.assert_close(is_nmf_cost(V, w, h), is_nmf_cost(V, W, H))
