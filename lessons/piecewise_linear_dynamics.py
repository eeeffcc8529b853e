"""Piecewise-linear dynamics: a head that turns between people, followed by variational EM.

After X. Alameda-Pineda, V. Drouard and R. Horaud, *Variational inference and learning of piecewise-linear dynamical
systems*, TNNLS 2021. Its text was not at hand: all is derived here from the model statement. Chosen here: q(x) and
q(z) are whole chains; x_0 comes before the first frame, so that the filter is the smoother of one frame; what a pose
looks like (C, e, R: "static") is known, and the dynamics (A, b, Q, P) are learned.

The story. A head has a pose x_t (pan and tilt, degrees) and in every frame a mode z_t: it turns to the person on the
left, to the one on the right, or circles in thought. Each of the K modes moves the pose linearly:

    z_1 ~ Cat(pi),   z_t | z_t-1 = j ~ Cat(P_j)                                                                  (1)
    x_0 ~ N(m_0, V_0),   x_t | x_t-1, z_t = k ~ N(A_k x_t-1 + b_k, Q_k)                                          (2)
    y_t | x_t, z_t = k ~ N(C_k x_t + e_k, R_k)                                                                   (3)

Given the path z this is a Kalman smoother. But there are K^T paths: p(x | y) is a mixture of K^T Gaussians. So let
q(x, z) = q(x) q(z), and raise the bound  F = E_q log p(y, x, z) - E_q log q  over one factor at a time.

E-x. With r_tk = q(z_t = k), log q(x) = E_q(z) log p(y, x, z) + const is quadratic: -x'J x / 2 + h'x. J has blocks only
on and next to its diagonal (W_k = Q_k^-1, U_k = R_k^-1; the prior adds V_0^-1 to J_00 and V_0^-1 m_0 to h_0):

    J_tt = sum_k r_tk (W_k + C_k' U_k C_k) + sum_k r_t+1,k A_k' W_k A_k,     J_t,t-1 = -sum_k r_tk W_k A_k       (4)
    h_t = sum_k r_tk (W_k b_k + C_k' U_k (y_t - e_k)) - sum_k r_t+1,k A_k' W_k b_k                               (5)

It is no Kalman smoother with an averaged A_k: E[A'WA] is not E[A]' E[W] E[A]. Eliminate x_0, x_1, ..., then go back:

    L_t = J_tt - J_t,t-1 L_t-1^-1 J_t,t-1',   l_t = h_t - J_t,t-1 L_t-1^-1 l_t-1,   G_t = -L_t^-1 J_t+1,t'       (6)
    m_t = L_t^-1 l_t + G_t m_t+1,   S_t = L_t^-1 + G_t S_t+1 G_t',   Cov(x_t+1, x_t) = S_t+1 G_t'                (7)
    log Z_x = sum_t (l_t' L_t^-1 l_t - log |L_t| + d log 2 pi) / 2 + the terms without x                         (8)

E-z. q(z) is a hidden Markov chain with the evidence (9). The forward-backward recursion solves it; Z_z is its sum:

    log g_tk = E_q(x) log N(x_t; A_k x_t-1 + b_k, Q_k) + E_q(x) log N(y_t; C_k x_t + e_k, R_k)                   (9)

The bound is F = log Z_x + E log p(z) + H(q(z)) after E-x, and F = log Z_z + E log p(x_0) + H(q(x)) after E-z.   (10)

M. A_k, b_k: the regression of x_t on (x_t-1, 1) with weights r_tk; Q_k: what it leaves; P_jk: steps from j to k. (11)
"""

import math
from dataclasses import dataclass, replace

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, MultivariateNormal
from scipy.cluster.vq import kmeans2
from torch import Generator, Tensor
from torch.nn.functional import one_hot, pad

Seen = Float[Tensor, "T p"]


@dataclass(frozen=True)
class Parameters:
    """Of (1), (2), (3), for K modes, d numbers in a pose, p numbers seen in a frame."""

    pi: Float[Tensor, "K"]
    P: Float[Tensor, "K K"]
    m_0: Float[Tensor, "d"]
    V_0: Float[Tensor, "d d"]
    A: Float[Tensor, "K d d"]
    b: Float[Tensor, "K d"]
    Q: Float[Tensor, "K d d"]
    C: Float[Tensor, "K p d"]
    e: Float[Tensor, "K p"]
    R: Float[Tensor, "K p p"]


@dataclass(frozen=True)
class Posterior:
    """q(x): of x_0 ... x_T, and Cov(x_t, x_t-1). q(z): of z_1 ... z_T, of neighbours. (10) after every E-x and E-z."""

    mean: Float[Tensor, "T+1 d"]
    covariance: Float[Tensor, "T+1 d d"]
    cross: Float[Tensor, "T d d"]
    modes: Float[Tensor, "T K"]
    pairs: Float[Tensor, "T-1 K K"]
    bounds: Float[Tensor, "steps"]


def head() -> Parameters:
    """10 frames a second: towards (-30, 0), towards (30, -5), circling about (0, 10) degrees, where faces blur."""
    spin = 0.95 * torch.linalg.matrix_exp(torch.tensor([[0.0, -0.5], [0.5, 0.0]]))
    A = torch.stack([0.85 * torch.eye(2), 0.85 * torch.eye(2), spin])
    goals = torch.tensor([[-30.0, 0.0], [30.0, -5.0], [0.0, 10.0]])
    P = torch.full((3, 3), 0.03) + 0.91 * torch.eye(3)
    Q = torch.tensor([4.0, 4.0, 9.0])[:, None, None] * torch.eye(2)
    C = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, -0.7]]).expand(3, 3, 2)
    R = torch.tensor([4.0, 4.0, 16.0])[:, None, None] * torch.eye(3)
    b, m_0, V_0 = goals - _times(A, goals), torch.zeros(2), 25.0 * torch.eye(2)
    return Parameters(torch.full((3,), 1 / 3), P, m_0, V_0, A, b, Q, C, torch.zeros(3, 3), R)


def draw(p: Parameters, frames: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """z (T,), x (T + 1, d) and y (T, p) from (1), (2), (3)."""
    z, x, y = [], [_normal(p.m_0, p.V_0, rng)], []
    for t in range(frames):
        z.append(k := torch.multinomial(p.P[z[-1]] if t else p.pi, 1, generator=rng)[0])
        x.append(_normal(p.A[k] @ x[-1] + p.b[k], p.Q[k], rng))
        y.append(_normal(p.C[k] @ x[-1] + p.e[k], p.R[k], rng))
    return torch.stack(z), torch.stack(x), torch.stack(y)


def model(p: Parameters, y: Seen) -> None:
    """(1), (2), (3) as a Pyro program; z can be summed out by enumeration."""
    x, z = pyro.sample("x_0", MultivariateNormal(p.m_0, p.V_0)), None
    for t in pyro.markov(range(1, len(y) + 1)):
        chances = Categorical(p.pi if z is None else p.P[z])
        z = pyro.sample(f"z_{t}", chances, infer={"enumerate": "parallel"})
        x = pyro.sample(f"x_{t}", MultivariateNormal(_times(p.A[z], x) + p.b[z], p.Q[z]))
        y_t = MultivariateNormal(_times(p.C[z], x) + p.e[z], p.R[z])
        pyro.sample(f"y_{t}", y_t, obs=y[t - 1])


def smooth_pose(p: Parameters, y: Seen, r: Float[Tensor, "*path T K"]) -> tuple[Tensor, ...]:
    """E-x: mean, covariance and cross of q(x), and log Z_x. For many r at once; if r is a path z, of p(x | y, z)."""
    W, U, W_0, v = p.Q.inverse(), p.R.inverse(), p.V_0.inverse(), y[:, None] - p.e
    Wb, Uv = _times(W, p.b), _times(U, v)
    blocks = (W + p.C.mT @ U @ p.C, -W @ p.A, p.A.mT @ W @ p.A)
    own, link, past = (torch.einsum("...tk,kab->...tab", r, block) for block in blocks)
    J = pad(own, (0, 0, 0, 0, 1, 0)) + pad(past, (0, 0, 0, 0, 0, 1))  # (4)
    h = pad((r[..., None] * (Wb + _times(p.C.mT, Uv))).sum(-2), (0, 0, 1, 0))  # (5)
    h = h - pad(r @ _times(p.A.mT, Wb), (0, 0, 0, 1))
    J, link, h = J.unbind(-3), link.unbind(-3), h.unbind(-2)
    L, l, G = [(J[0] + W_0).inverse()], [h[0] + W_0 @ p.m_0], []  # (6); L is L_t^-1 here
    for t in range(1, len(J)):
        G.append(-L[-1] @ link[t - 1].mT)
        l.append(h[t] + _times(G[-1].mT, l[-1]))
        L.append((J[t] + link[t - 1] @ G[-1]).inverse())
    means, S, X = [_times(L[-1], l[-1])], [L[-1]], []  # (7)
    for t in reversed(range(len(G))):
        X.append(S[-1] @ G[t].mT)
        means.append(_times(L[t], l[t]) + _times(G[t], means[-1]))
        S.append(L[t] + G[t] @ X[-1])
    L, l = torch.stack(L, -3), torch.stack(l, -2)  # (8)
    alone = (p.b * Wb).sum(-1) + (v * Uv).sum(-1) + _log_det(p.Q) + _log_det(p.R)
    log_Z = (l * _times(L, l)).sum((-2, -1)) + _log_det(L).sum(-1) - (r * alone).sum((-2, -1))
    log_Z = 0.5 * (log_Z - p.m_0 @ W_0 @ p.m_0 - _log_det(p.V_0))
    return torch.stack(means[::-1], -2), *(torch.stack(a[::-1], -3) for a in (S, X)), log_Z


def _times(M: Tensor, a: Tensor) -> Tensor:
    return (M @ a[..., None])[..., 0]


def _log_det(covariance: Tensor) -> Tensor:
    return covariance.logdet() + covariance.shape[-1] * math.log(2 * math.pi)


def _normal(mean: Tensor, covariance: Tensor, rng: Generator) -> Tensor:
    return mean + _times(torch.linalg.cholesky(covariance), torch.randn(mean.shape, generator=rng))


def _log_normal(rest: Tensor, covariance: Tensor, spread: Tensor | float = 0.0) -> Tensor:
    """E log N(x; mean, covariance) where x - mean has the mean `rest` and the covariance `spread`."""
    square = rest[..., :, None] * rest[..., None, :] + spread
    return -0.5 * ((covariance.inverse() * square).sum((-2, -1)) + _log_det(covariance))


def evidence(p: Parameters, y: Seen, mean: Tensor, covariance: Tensor, cross: Tensor) -> Tensor:
    """log g_tk of (9), (T, K)."""
    m, S, AX = mean[:, None], covariance[:, None], p.A @ cross[:, None].mT
    step_spread = S[1:] - AX - AX.mT + p.A @ S[:-1] @ p.A.mT
    step, seen = m[1:] - _times(p.A, m[:-1]) - p.b, y[:, None] - _times(p.C, m[1:]) - p.e
    return _log_normal(step, p.Q, step_spread) + _log_normal(seen, p.R, p.C @ S[1:] @ p.C.mT)


def smooth_modes(p: Parameters, log_g: Float[Tensor, "T K"]) -> tuple[Tensor, Tensor, Tensor]:
    """E-z: q(z_t), q(z_t-1, z_t) and log Z_z."""
    log_P, forward, backward = p.P.log(), [p.pi.log() + log_g[0]], [torch.zeros_like(p.pi)]
    for g in log_g[1:]:
        forward.append((forward[-1][:, None] + log_P).logsumexp(0) + g)
    for g in log_g[1:].flip(0):
        backward.append((log_P + g + backward[-1]).logsumexp(1))
    a, b = torch.stack(forward), torch.stack(backward[::-1])
    log_Z = a[-1].logsumexp(0)
    pairs = a[:-1, :, None] + log_P + (log_g + b)[1:, None] - log_Z
    return (a + b - log_Z).exp(), pairs.exp(), log_Z


def fit(p: Parameters, y: Seen, steps: int, learn: bool = False) -> tuple[Parameters, Posterior]:
    """From q(z) = p(z): E-x and E-z in turn, and the M-step after them where the dynamics are to be learned."""
    (r, pairs, _), bounds = smooth_modes(p, y.new_zeros(len(y), len(p.pi))), []
    for _ in range(steps):
        mean, covariance, cross, log_Z_x = smooth_pose(p, y, r)
        log_p_z = torch.xlogy(r[0], p.pi).sum() + torch.xlogy(pairs, p.P).sum()
        entropy = torch.special.entr(torch.cat([r[0], pairs.flatten()])).sum()
        entropy = entropy - torch.special.entr(r[:-1]).sum()
        bounds.append(log_Z_x + log_p_z + entropy)
        log_g = evidence(p, y, mean, covariance, cross)
        rest = log_Z_x - (r * log_g).sum()  # E log p(x_0) + H(q(x))
        r, pairs, log_Z_z = smooth_modes(p, log_g)
        bounds.append(log_Z_z + rest)
        q = Posterior(mean, covariance, cross, r, pairs, torch.stack(bounds))
        p = learn_dynamics(p, q) if learn else p
    return p, q


def learn_dynamics(p: Parameters, q: Posterior) -> Parameters:
    """M: (11)."""
    m, r, given = q.mean, q.modes, pad(q.mean[:-1], (0, 1), value=1.0)  # (x_t-1, 1)
    XX = m[1:, :, None] * m[1:, None] + q.covariance[1:]
    XU = m[1:, :, None] * given[:, None] + pad(q.cross, (0, 1))
    UU = given[:, :, None] * given[:, None] + pad(q.covariance[:-1], (0, 1, 0, 1))
    XX, XU, UU = (torch.einsum("tk,tab->kab", r, x) for x in (XX, XU, UU))
    B, P = XU @ UU.inverse(), q.pairs.sum(0)
    Q = (XX - B @ XU.mT) / r.sum(0)[:, None, None]
    return replace(p, A=B[..., :-1], b=B[..., -1], Q=(Q + Q.mT) / 2, P=P / P.sum(-1, keepdim=True))


def start(p: Parameters, y: Seen, rng: Generator) -> Parameters:
    """Dynamics to learn from: K drifts, each to a place where the head often is (k-means of the poses as seen)."""
    K, x = len(p.pi), torch.linalg.lstsq(p.C[0], (y - p.e[0]).mT).solution.mT
    seed = torch.randint(2**31, (1,), generator=rng).numpy()
    places = torch.as_tensor(kmeans2(x.numpy(), K, minit="++", rng=seed)[0])
    eye = torch.eye(x.shape[1]).expand(K, -1, -1)
    P = (0.1 + 0.9 * K * torch.eye(K)) / K
    return replace(p, A=0.8 * eye, b=0.2 * places, Q=x.diff(dim=0).var() * eye, P=P)


def enumerate_paths(p: Parameters, y: Seen) -> tuple[Tensor, Tensor, Tensor]:
    """log p(y), E[x | y] (T + 1, d) and p(z_t | y) (T, K): one smoother for each of the K^T paths."""
    paths = torch.cartesian_prod(*[torch.arange(len(p.pi))] * len(y))
    r = one_hot(paths, len(p.pi)).to(y.dtype)
    mean, _, _, log_p = smooth_pose(p, y, r)
    log_p = log_p + p.pi.log()[paths[:, 0]] + p.P.log()[paths[:, :-1], paths[:, 1:]].sum(-1)
    mean, r = (torch.tensordot(log_p.softmax(0), a, 1) for a in (mean, r))
    return log_p.logsumexp(0), mean, r


def sample_paths(p: Parameters, y: Seen, N: int, paths: int, rng: Generator) -> tuple[Tensor, ...]:
    """log p(y) by a filter of N particles; then z (paths, T) and x (paths, T, d) drawn backwards through its clouds."""
    x, log_p, clouds = _normal(p.m_0.expand(N, -1), p.V_0, rng), y.new_zeros(()), []
    for t in range(len(y)):
        z = torch.multinomial(p.P[z] if t else p.pi.expand(N, -1), 1, generator=rng)[:, 0]
        x = _normal(_times(p.A[z], x) + p.b[z], p.Q[z], rng)
        log_w = _log_normal(y[t] - _times(p.C[z], x) - p.e[z], p.R[z])
        log_p = log_p + log_w.logsumexp(0) - math.log(N)
        clouds.append((z, x, log_w))
        i = torch.multinomial(log_w.softmax(0), N, replacement=True, generator=rng)
        z, x = z[i], x[i]
    drawn = [(z[:paths], x[:paths])]
    for z, x, log_w in reversed(clouds[:-1]):
        k, ahead = drawn[-1]
        step = ahead[:, None] - _times(p.A[k, None], x) - p.b[k, None]
        log_v = log_w + p.P.log()[z][:, k].mT + _log_normal(step, p.Q[k, None])
        i = torch.multinomial(log_v.softmax(-1), 1, generator=rng)[:, 0]
        drawn.append((z[i], x[i]))
    return log_p, *(torch.stack(parts[::-1], 1) for parts in zip(*drawn, strict=True))
