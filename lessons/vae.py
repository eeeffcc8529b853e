"""From the bound to SVI: the smallest VAE of speech, its gradients by hand and by Pyro, its bound against the truth.

Derived here in full from the model statement of this library's A-VAE (models/a_vae.py), with decoder and encoder made
linear, so that every number that a VAE hides can be computed: log p by quadrature, the bound and its best Gaussian in
closed form. It is the hinge of the ladder: (9) is variational EM, as in `vision_guided_hearing`; (10) is the VAE.

The story. A frame of speech has L = 2 hidden numbers, say how open and how rounded the mouth is. They set the variance
of each of F frequencies. Of a complex Gaussian only the power P = |s|^2 matters, and that is exponential:

    z_n ~ N(0, I)                                                                                                    (1)
    P_fn | z_n ~ Exponential(mean v_fn),    log v_n = W z_n + b                                                      (2)
    log p(P_n | z_n) = - sum_f (log v_fn + P_fn / v_fn)                                                              (3)

W and b are to be learned from P alone: by log p(P_n), an integral over z_n. For any density r(z_n) of our choice,

    log p(P_n) = L_n + KL(r(z_n) || p(z_n | P_n)),    L_n = E_r log p(P_n | z_n) + E_r log p(z_n) / r(z_n)           (4)

and as no KL is negative, L_n is a lower bound. Let r(z_n) = N(m_n, diag d_n^2). An average over one draw of r is enough
to climb L_n, if it is drawn such that m and d can be differentiated: eps ~ N(0, I) is drawn, and

    z_n = m_n + d_n eps_n                                                                                            (5)
    L^_n = log p(P_n | z_n) + sum_l (eps_ln^2 - z_ln^2) / 2 + log d_ln                                               (6)

is L_n on average. With u_n = P_n / v_n - 1, which is dL^/d log v_n, the chain rule gives all of its gradients:

    dL^/dW = u_n z_n^T     dL^/db = u_n     dL^/dm_n = W^T u_n - z_n     dL^/d log d_n = d_n eps_n (dL^/dm_n) + 1    (7)

Here, unlike with a deep net, L_n is known too, as E_r 1 / v_fn is the moment generating function of a Gaussian:

    q_fn = E_r P_fn / v_fn = P_fn exp(- b_f - w_f^T m_n + sum_l w_fl^2 d_ln^2 / 2)
    L_n = - sum_f (w_f^T m_n + b_f + q_fn) + sum_l [1 + log d_ln^2 - m_ln^2 - d_ln^2] / 2                            (8)

Variational EM gives each frame the m and d that are best for it. L_n is concave in (m, d^2), so there is one optimum:

    W^T (q_n - 1) = m_n          1 / d_ln^2 = 1 + sum_f w_fl^2 q_fn                                                  (9)

That is an optimisation for every frame, and q depends on m and d: it is solved by Newton's method. A VAE learns instead
one map, the encoder, that answers for all frames, also unseen ones. With x_n = log P_n + 0.577 (so that E x = log v),

    m_n = A x_n + a,    log d_n = D x_n + e;     dL^/dA = (dL^/dm_n) x_n^T and so on                                (10)

and Adam climbs sum_n L^_n in W, b, A, a, D, e at once: stochastic variational inference. What L lacks has two parts:

    log p(P_n) - L_n = [log p(P_n) - max_r L_n] + [max_r L_n - L_n]                                                 (11)

The first is there as no posterior is quite a Gaussian with independent z's, the second as no one map is best for all.

Frames run down: P is (frame, freq), z, m, d, eps (frame, latent); gradients are of sums over frames.
"""

import math
from dataclasses import dataclass

import pyro
import torch
from pyro.distributions import Exponential, Normal
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """Decoder W (freq, latent), b (freq,); encoder A, D (latent, freq), a, e (latent,)."""

    W: Tensor
    b: Tensor
    A: Tensor
    a: Tensor
    D: Tensor
    e: Tensor


def truth(freqs: int = 12) -> Weights:
    """A decoder with two smooth patterns of the spectrum, and no encoder."""
    f = torch.arange(freqs) / (freqs - 1)
    W = torch.stack([1.5 * torch.cos(math.pi * f), 1.2 * torch.sin(2 * math.pi * f)], -1)
    none = torch.zeros(2, freqs)
    return Weights(W, 1 - 3 * f, none, torch.zeros(2), none, torch.zeros(2))


def start(rng: torch.Generator, freqs: int = 12) -> Weights:
    """Small random weights."""
    W, A, D = (0.1 * torch.randn(freqs, 2, generator=rng) for _ in range(3))
    return Weights(W, torch.zeros(freqs), A.mT, torch.zeros(2), D.mT, torch.zeros(2))


def draw(rng: torch.Generator, frames: int, w: Weights) -> Tensor:
    """P by (1), (2): (frame, freq)."""
    z = torch.randn(frames, 2, generator=rng)
    unit = torch.empty(frames, len(w.b)).exponential_(generator=rng)
    return (z @ w.W.mT + w.b).exp() * unit


def encode(P: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """(10): m and log d, (frame, latent)."""
    x = P.log() + 0.577
    return x @ w.A.mT + w.a, x @ w.D.mT + w.e


class VAE(nn.Module):
    """The same weights and the same story, as a Pyro model and guide."""

    def __init__(self, w: Weights) -> None:
        super().__init__()
        for name, value in vars(w).items():
            value = value.detach().clone(memory_format=torch.contiguous_format)  # Pyro needs that
            self.register_parameter(name, nn.Parameter(value))

    def weights(self) -> Weights:
        return Weights(**dict(self.named_parameters()))

    def model(self, P: Tensor) -> None:
        pyro.module("vae", self)
        w = self.weights()
        with pyro.plate("frame", len(P)):
            z = pyro.sample("z", Normal(P.new_zeros(2), 1.0).to_event(1))  # (1)
            log_v = z @ w.W.mT + w.b
            pyro.sample("P", Exponential((-log_v).exp()).to_event(1), obs=P)  # (2)

    def guide(self, P: Tensor) -> None:
        pyro.module("vae", self)
        m, log_d = encode(P, self.weights())
        with pyro.plate("frame", len(P)):
            pyro.sample("z", Normal(m, log_d.exp()).to_event(1))  # (5), (10)


def by_hand(P: Tensor, eps: Tensor, w: Weights) -> tuple[Tensor, Weights]:
    """sum_n L^_n of (6) and its gradients (7), (10): no autograd."""
    x = P.log() + 0.577
    m, log_d = encode(P, w)
    d = log_d.exp()
    z = m + d * eps
    log_v = z @ w.W.mT + w.b
    ratio = P * (-log_v).exp()
    L = -(log_v + ratio).sum() + (0.5 * (eps**2 - z**2) + log_d).sum()
    u = ratio - 1
    to_m = u @ w.W - z
    to_log_d = d * eps * to_m + 1
    return L, Weights(
        u.mT @ z, u.sum(0), to_m.mT @ x, to_m.sum(0), to_log_d.mT @ x, to_log_d.sum(0)
    )


def train_by_hand(
    P: Tensor, w: Weights, steps: int, rate: float, rng: torch.Generator
) -> tuple[Weights, Tensor]:
    """SVI with (7) and Adam, both written out; sum_n L^_n, (step,)."""
    values = dict(vars(w))
    mean = {name: torch.zeros_like(value) for name, value in values.items()}
    square = dict(mean)
    rise = []
    for t in range(1, steps + 1):
        eps = torch.normal(torch.zeros(len(P), 2), torch.ones(len(P), 2), generator=rng)
        L, gradients = by_hand(P, eps, Weights(**values))
        for name, g in vars(gradients).items():
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.999 * square[name] + 0.001 * g**2
            unbiased = mean[name] / (1 - 0.9**t), square[name] / (1 - 0.999**t)
            values[name] = values[name] + rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        rise.append(L)
    return Weights(**values), torch.stack(rise)


def train_with_pyro(
    P: Tensor, w: Weights, steps: int, rate: float, seed: int
) -> tuple[Weights, Tensor]:
    """The same by Pyro. Its draws come from torch's global generator, which is put back as it was."""
    vae = VAE(w)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": rate}), Trace_ELBO())
        rise = [-svi.step(P) for _ in range(steps)]
    return Weights(**{k: v.detach().clone() for k, v in vae.named_parameters()}), torch.tensor(rise)


def exact_bound(P: Tensor, m: Tensor, log_d: Tensor, w: Weights) -> Tensor:
    """L_n of (8): (frame,)."""
    square = (2 * log_d).exp()
    q = P * (-w.b - m @ w.W.mT + 0.5 * square @ w.W.square().mT).exp()
    prior = 0.5 * (1 + 2 * log_d - m**2 - square).sum(-1)
    return prior - (m @ w.W.mT + w.b + q).sum(-1)


def best_gaussian(P: Tensor, w: Weights, iterations: int = 60) -> tuple[Tensor, Tensor]:
    """m and log d that solve (9): Newton's step in m, halved where L_n would fall, then d's line, halfway."""
    m, square = P.new_zeros(len(P), 2), P.new_full((len(P), 2), 0.1)
    identity = torch.eye(2)
    for _ in range(iterations):
        q = P * (-w.b - m @ w.W.mT + 0.5 * square @ w.W.square().mT).exp()
        curvature = identity + torch.einsum("nf,fk,fl->nkl", q, w.W, w.W)
        step = torch.linalg.solve(curvature, (q - 1) @ w.W - m)
        for _ in range(8):
            falls = exact_bound(P, m + step, 0.5 * square.log(), w) < exact_bound(
                P, m, 0.5 * square.log(), w
            )
            step = torch.where(falls[:, None], 0.5 * step, step)
        m = m + step
        q = P * (-w.b - m @ w.W.mT + 0.5 * square @ w.W.square().mT).exp()
        square = (square / (1 + q @ w.W.square())).sqrt()
    return m, 0.5 * square.log()


def log_marginal(P: Tensor, w: Weights) -> Tensor:
    """log p(P_n) by quadrature over z, on a square of side 14 with points 0.1 apart: (frame,)."""
    side = torch.linspace(-7, 7, 141)
    z = torch.cartesian_prod(side, side)
    log_v = z @ w.W.mT + w.b
    log_p = -log_v.sum(-1) - P @ (-log_v).exp().mT  # (frame, point)
    log_prior = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    return (log_p + log_prior).logsumexp(-1) + 2 * math.log(0.1)
