"""lessons/piecewise_linear_dynamics.py against a Kalman smoother in NumPy, all paths, particles, Pyro and the truth."""

import itertools
import math

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from lessons import piecewise_linear_dynamics as lesson

pytestmark = pytest.mark.usefixtures("float64")


def drawn(frames: int, seed: int = 0) -> tuple[lesson.Parameters, Tensor, Tensor, Tensor]:
    p = lesson.head()
    return p, *lesson.draw(p, frames, torch.Generator().manual_seed(seed))


def kalman_smoother(
    p: lesson.Parameters, y: Tensor, path: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of x_0 ... x_T and log p(y | path): the filter and Rauch, Tung and Striebel's way back."""
    A, b, Q, C, e, R = (getattr(p, name).numpy() for name in "AbQCeR")
    m, V, log_p = p.m_0.numpy(), p.V_0.numpy(), 0.0
    filtered, predicted = [(m, V)], []
    for seen, k in zip(y.numpy(), path, strict=True):
        m, V = A[k] @ m + b[k], A[k] @ V @ A[k].T + Q[k]
        predicted.append((m, V))
        surprise, S = seen - C[k] @ m - e[k], C[k] @ V @ C[k].T + R[k]
        log_p -= 0.5 * (
            surprise @ np.linalg.solve(S, surprise) + np.linalg.slogdet(2 * np.pi * S)[1]
        )
        gain = V @ C[k].T @ np.linalg.inv(S)
        m, V = m + gain @ surprise, V - gain @ C[k] @ V
        filtered.append((m, V))
    means, covariances = [m], [V]
    for (m, V), (m_next, V_next), k in reversed(
        list(zip(filtered[:-1], predicted, path, strict=True))
    ):
        G = V @ A[k].T @ np.linalg.inv(V_next)
        means.append(m + G @ (means[-1] - m_next))
        covariances.append(V + G @ (covariances[-1] - V_next) @ G.T)
    return np.stack(means[::-1]), np.stack(covariances[::-1]), log_p


def test_on_one_path_the_pose_is_a_kalman_smoother() -> None:
    p, z, _, y = drawn(12)
    r = torch.nn.functional.one_hot(z, 3).double()
    mean, covariance, _, log_p = lesson.smooth_pose(p, y, r)
    m, V, log_Z = kalman_smoother(p, y, tuple(z.tolist()))
    np.testing.assert_allclose(mean, m, atol=1e-9)
    np.testing.assert_allclose(covariance, V, atol=1e-9)
    assert float(log_p) == pytest.approx(log_Z)


def expected_log_joint(p: lesson.Parameters, y: Tensor, r: Tensor, x: Tensor) -> Tensor:
    """E_q(z) log p(y, x | z) + log p(x_0), term by term, by torch's own normal distribution; x may be flat."""
    normal, x = torch.distributions.MultivariateNormal, x.view(len(y) + 1, 1, -1, 1)
    step = normal((p.A @ x[:-1])[..., 0] + p.b, p.Q).log_prob(x[1:, ..., 0])
    seen = normal((p.C @ x[1:])[..., 0] + p.e, p.R).log_prob(y[:, None])
    return normal(p.m_0, p.V_0).log_prob(x[0, 0, :, 0]) + (r * (step + seen)).sum()


def gaussian(p: lesson.Parameters, y: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of exp(expected_log_joint) over all poses at once: a square's slope and curvature at zero."""
    zero, auto = torch.zeros(2 * len(y) + 2), torch.autograd.functional
    J = -auto.hessian(lambda x: expected_log_joint(p, y, r, x), zero)
    h = auto.jacobian(lambda x: expected_log_joint(p, y, r, x), zero)
    return J.inverse() @ h, J.inverse()


def test_under_soft_modes_the_pose_is_the_gaussian_that_autograd_finds() -> None:
    p, _, _, y = drawn(4)
    r = torch.rand(4, 3).softmax(-1)
    m, S = gaussian(p, y, r)
    mean, covariance, cross, log_Z = lesson.smooth_pose(p, y, r)
    torch.testing.assert_close(mean.flatten(), m)
    for t in range(5):
        torch.testing.assert_close(covariance[t], S[2 * t : 2 * t + 2, 2 * t : 2 * t + 2])
    for t in range(4):
        torch.testing.assert_close(cross[t], S[2 * t + 2 : 2 * t + 4, 2 * t : 2 * t + 2])
    peak = expected_log_joint(p, y, r, m)  # the integral of a Gaussian from its top
    torch.testing.assert_close(log_Z, peak + 0.5 * (S.logdet() + 10 * math.log(2 * math.pi)))


def test_averaged_dynamics_are_not_the_e_step() -> None:
    """The twin that (4) warns of: a Kalman smoother with E[A_k], E[b_k], ... in place of (4) and (5)."""
    p, _, _, y = drawn(4)
    r = torch.rand(4, 3).softmax(-1)
    averages = {name: torch.einsum("tk,k...->t...", r, getattr(p, name)) for name in "AbQCeR"}
    twin, _, _ = kalman_smoother(lesson.replace(p, **averages), y, (0, 1, 2, 3))
    assert np.abs(twin - lesson.smooth_pose(p, y, r)[0].numpy()).max() > 1


def test_evidence_is_the_expectation_over_poses() -> None:
    """(9) by sigma points, exact for squares: mean +- sqrt(n) times the columns of a root of Cov(x_t, x_t-1)."""
    p, _, _, y = drawn(3)
    q = lesson.fit(p, y, 2)[1]
    log_g = lesson.evidence(p, y, q.mean, q.covariance, q.cross)
    for t, k in itertools.product(range(3), range(3)):
        S = torch.zeros(4, 4)
        S[:2, :2], S[2:, 2:] = q.covariance[t + 1], q.covariance[t]
        S[:2, 2:], S[2:, :2] = q.cross[t], q.cross[t].mT
        root = 2 * torch.linalg.cholesky(S).mT
        x = torch.cat([q.mean[t + 1], q.mean[t]]) + torch.cat([root, -root])
        now, past = x[:, :2], x[:, 2:]
        normal = torch.distributions.MultivariateNormal
        step = normal(past @ p.A[k].mT + p.b[k], p.Q[k]).log_prob(now)
        seen = normal(now @ p.C[k].mT + p.e[k], p.R[k]).log_prob(y[t])
        torch.testing.assert_close(log_g[t, k], (step + seen).mean())


def test_modes_by_enumeration() -> None:
    p, log_g = lesson.head(), 3 * torch.randn(5, 3)
    r, pairs, log_Z = lesson.smooth_modes(p, log_g)
    paths = torch.cartesian_prod(*[torch.arange(3)] * 5)
    log_w = p.pi[paths[:, 0]].log() + p.P[paths[:, :-1], paths[:, 1:]].log().sum(-1)
    log_w = log_w + log_g[torch.arange(5), paths].sum(-1)
    chosen = torch.nn.functional.one_hot(paths, 3).double()
    torch.testing.assert_close(log_Z, log_w.logsumexp(0))
    torch.testing.assert_close(r, torch.einsum("n,ntk->tk", log_w.softmax(0), chosen))
    both = torch.einsum("n,ntj,ntk->tjk", log_w.softmax(0), chosen[:, :-1], chosen[:, 1:])
    torch.testing.assert_close(pairs, both)


def test_the_program_has_the_same_joint_and_the_same_modes() -> None:
    """Pyro's log density of everything, and Pyro's own sum over z, given the poses."""
    p, z, x, y = drawn(5)
    values = {f"x_{t}": x[t] for t in range(6)} | {f"z_{t + 1}": z[t] for t in range(5)}
    trace = poutine.trace(poutine.condition(lesson.model, values)).get_trace(p, y)
    path = torch.nn.functional.one_hot(z, 3).double()
    log_p_z = p.pi[z[0]].log() + p.P[z[:-1], z[1:]].log().sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected_log_joint(p, y, path, x) + log_p_z)

    still = torch.zeros(6, 2, 2)
    r, _, log_Z = lesson.smooth_modes(p, lesson.evidence(p, y, x, still, still[1:]))
    seen = poutine.condition(lesson.model, {f"x_{t}": x[t] for t in range(6)})
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    found = elbo.compute_marginals(seen, lambda p, y: None, p, y)
    for t in range(5):
        torch.testing.assert_close(found[f"z_{t + 1}"].probs, r[t])
    first = torch.distributions.MultivariateNormal(p.m_0, p.V_0).log_prob(x[0])
    assert -elbo.loss(seen, lambda p, y: None, p, y) == pytest.approx(float(log_Z + first))


@pytest.mark.parametrize("seed", range(2))
def test_the_bound_lacks_exactly_the_divergence_of_q(seed: int) -> None:
    """log p(y) - F = KL(q || p(x, z | y)), over all paths; every term by autograd or the smoother in NumPy."""
    p, _, _, y = drawn(3, seed)
    q = lesson.fit(p, y, 80)[1]
    normal = torch.distributions.MultivariateNormal
    q_x, paths = normal(*gaussian(p, y, q.modes)), list(itertools.product(range(3), repeat=3))
    log_w, log_q, apart = [], [], []
    for path in paths:
        z = torch.tensor(path)
        log_p_z = p.pi[z[0]].log() + p.P[z[:-1], z[1:]].log().sum()
        log_w.append(kalman_smoother(p, y, path)[2] + float(log_p_z))
        first = q.modes[0, z[0]].log()
        steps = [(q.pairs[t, z[t], z[t + 1]] / q.modes[t, z[t]]).log() for t in range(2)]
        log_q.append(first + sum(steps))
        p_x = normal(*gaussian(p, y, torch.nn.functional.one_hot(z, 3).double()))
        apart.append(torch.distributions.kl_divergence(q_x, p_x))
    log_p, log_q = torch.tensor(log_w), torch.stack(log_q)
    divergence = (log_q.exp() * (log_q - log_p.log_softmax(0) + torch.stack(apart))).sum()
    assert divergence > 0
    torch.testing.assert_close(log_p.logsumexp(0) - q.bounds[-1], divergence, rtol=0, atol=1e-6)
    # and the lesson's own enumeration is that one
    torch.testing.assert_close(lesson.enumerate_paths(p, y)[0], log_p.logsumexp(0))


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_bound_never_falls(seed: int, learn: bool) -> None:
    p, _, _, y = drawn(40, seed)
    p = lesson.start(p, y, torch.Generator().manual_seed(seed)) if learn else p
    bounds = lesson.fit(p, y, 12, learn)[1].bounds
    assert (bounds.diff() > -1e-9 * bounds[-1].abs()).all()
    assert bounds[-1] > bounds[0] + 1


def test_learned_dynamics_are_where_the_bound_is_flat() -> None:
    """(11) by autograd: no derivative of E_q log p(y, x, z) is left, in A, b and Q."""
    p, _, _, y = drawn(40)
    q = lesson.fit(p, y, 5)[1]
    p = lesson.learn_dynamics(p, q)
    names = ("A", "b", "Q")
    free = {name: getattr(p, name).clone().requires_grad_() for name in names}
    log_g = lesson.evidence(lesson.replace(p, **free), y, q.mean, q.covariance, q.cross)
    slopes = torch.autograd.grad((q.modes * log_g).sum(), list(free.values()))
    assert all(slope.abs().max() < 1e-8 * 40 for slope in slopes)
    torch.testing.assert_close(p.P.sum(-1), torch.ones(3))


def test_close_to_enumeration_on_short_sequences() -> None:
    """Mean field errs: by how much depends on how sure the modes are. On most sequences it is close, on none far."""
    gaps, errors = [], []
    for seed in range(12):
        p, _, _, y = drawn(6, seed)
        q = lesson.fit(p, y, 20)[1]
        log_p, _, modes = lesson.enumerate_paths(p, y)
        gaps.append(float(log_p - q.bounds[-1]))
        errors.append(float((q.modes - modes).abs().max()))
    assert min(gaps) > 0
    assert np.median(gaps) < 0.2
    assert np.median(errors) < 0.2
    assert max(gaps) < 2


def test_filter_is_the_smoother_of_one_frame() -> None:
    """With one mode, frame after frame from the last posterior, it is the forward pass of Kalman's filter."""
    p, _, _, y = drawn(8)
    one = {name: getattr(p, name)[:1] for name in "AbQCeR"}
    p = lesson.replace(p, pi=torch.ones(1), P=torch.ones(1, 1), **one)
    whole = kalman_smoother(p, y, (0,) * 8)
    for frame in y:
        q = lesson.fit(p, frame[None], 1)[1]
        p = lesson.replace(p, m_0=q.mean[1], V_0=q.covariance[1])
    np.testing.assert_allclose(p.m_0, whole[0][-1])
    np.testing.assert_allclose(p.V_0, whole[1][-1])


def z_of_particles(p: lesson.Parameters, y: Tensor, log_p: Tensor) -> float:
    """How many standard errors the mean of 20 particle filters' p(y) is from the exact one."""
    seeds = [torch.Generator().manual_seed(seed) for seed in range(20)]
    runs = torch.stack([lesson.sample_paths(p, y, 400, 1, rng)[0] for rng in seeds])
    ratio = (runs - log_p).exp()
    return float((ratio.mean() - 1) / (ratio.std() / math.sqrt(20)))


def test_particles_agree_with_enumeration_and_a_twin_does_not() -> None:
    """p(y) is estimated without bias. |z| > 4.5 happens once in 4000 tries (Student's t, 19 degrees). The twin takes
    the blur of one mode for that of another."""
    p, _, _, y = drawn(5)
    log_p = lesson.enumerate_paths(p, y)[0]
    assert abs(z_of_particles(p, y, log_p)) < 4.5
    assert abs(z_of_particles(lesson.replace(p, R=p.R.flip(0)), y, log_p)) > 4.5


def test_drawn_paths_have_the_exact_moments() -> None:
    """Modes within 4.5 standard errors of 200 paths (of 15 numbers one is outside once in 10000) and 1/50 for the error
    of the particles; poses within 4.5 standard errors and 0.2 degrees."""
    p, _, _, y = drawn(5)
    _, mean, modes = lesson.enumerate_paths(p, y)
    _, z, x = lesson.sample_paths(p, y, 1500, 200, torch.Generator().manual_seed(0))
    share = torch.nn.functional.one_hot(z, 3).double().mean(0)
    assert ((share - modes).abs() < 4.5 * (modes * (1 - modes) / 200).sqrt() + 0.02).all()
    assert ((x.mean(0) - mean[1:]).abs() < 4.5 * x.std(0) / math.sqrt(200) + 0.2).all()


def test_recovers_modes_poses_and_goals() -> None:
    p, z, x, y = drawn(200, 1)
    known = lesson.fit(p, y, 8)[1]
    assert (known.modes.argmax(1) == z).double().mean() > 0.97
    seen = torch.linalg.lstsq(p.C[0], y.mT).solution.mT
    assert (known.mean - x)[1:].square().mean() < 0.7 * (seen - x[1:]).square().mean()
    found, q = lesson.fit(lesson.start(p, y, torch.Generator().manual_seed(0)), y, 20, learn=True)
    goals = torch.linalg.solve(torch.eye(2) - found.A, found.b)
    order = torch.cdist(torch.linalg.solve(torch.eye(2) - p.A, p.b), goals).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert (q.modes[:, order].argmax(1) == z).double().mean() > 0.93
    assert (goals[order][:, 0] - torch.tensor([-30.0, 30.0, 0.0])).abs().max() < 6
