"""Who is where and who speaks when: several people followed by eye and ear, with variational Bayes.

After Y. Ban, X. Alameda-Pineda, L. Girin, R. Horaud, *Variational Bayesian inference for audio-visual tracking of
multiple speakers*, TPAMI 2019. Its text was not at hand: all is derived here from the model statement. Chosen here:
whole chains in q (theirs is a filter); Poisson numbers of detections; Gaussian clutter; sounds that are directions.

The story. N people sit and walk around a camera with microphones. s_tn is where person n is in frame t, azimuth and
elevation, and their change a frame (degrees). Two senses watch. For each a person is on or off: v_tn, in view; u_tn,
speaking. Sight first; hearing is the same with u, b, g in place of v, a, f:

    s_1n ~ N(m_n, V),   s_tn ~ N(D s_t-1,n, Lambda)                                                              (1)
    v_1n ~ Cat(pi),   v_tn | v_t-1,n = i ~ Cat(T_i)                                                              (2)
    M_t ~ Poisson(l_0 + sum_n l(v_tn)) faces are found,   a_tm ~ Cat prop. to (l_0, l(v_t1), ..., l(v_tN))       (3)
    f_tm | a_tm = n ~ N(P s_tn, r I),   f_tm | a_tm = 0 ~ N(0, r_0 I): clutter                                   (4)

Microphones hear all around but only azimuths, P = (1, 0, 0, 0): who leaves the picture is still heard. In (3) the sum
of the rates cancels. What is left of log p(M_t, a_t | v_t) binds no two people together:

    sum_m log l(a_tm) - l_0 - sum_n l(v_tn) - log M_t!       with l(a) the rate of the person that a points to   (5)

Exactly, the posterior mixes all (N + 1)^(faces + sounds) assignments. Let q = prod_n q(s_n) q(v_n) q(u_n) times q(a_tm)
and q(b_tk) of every detection, with whole chains s_n, v_n, u_n, and raise  F = E_q log p - E_q log q.  Each factor is
exp(E_others log p), normalised. E-a, where alpha_tmn = q(a_tm = n) and S_tn is the covariance of s_tn:

    alpha_tm0 prop. to l_0 N(f_tm; 0, r_0 I)
    alpha_tmn prop. to exp(E log l(v_tn)) N(f_tm; P E[s_tn], r I) exp(-tr(P S_tn P') / 2r)                       (6)

E-v is a hidden Markov chain for each person (forward-backward; Z_v is its sum) with the evidence

    log e_tn(v) = sum_m alpha_tmn log l(v) - l(v)                                                                (7)

E-s is a Kalman smoother for each person: s_tn has the likelihood exp(-s'Omega s / 2 + w's) where, over both senses,

    Omega_tn = sum_m alpha_tmn P'P / r,   w_tn = sum_m alpha_tmn P'f_tm / r                                      (8)

Given q(a) and q(b) the chains do not meet. So a sweep is E-a and E-b, then all chains, and after it

    F = sum_n log Z_s + log Z_v + log Z_u + sum_tm [ H(alpha_tm) + alpha_tm0 log(l_0 N(f_tm; 0, r_0 I))
        - (1 - alpha_tm0) (log |2 pi r I| + |f_tm|^2 / r) / 2 ] - sum_t (l_0 + log M_t!) + the same of sounds    (9)

M. r: the mean square of f - P s. l(1): faces of a person in view, l_0: of nobody, a frame. The rest is given.   (10)

Where it starts counts. By the trace in (6), a person whose place is unknown loses every face, and each sweep wins back
only a few frames. So the first q(a) is that of a filter with s and v summed out, N(f; P m, r I + P V P') and E l(v).
"""

import math
from dataclasses import dataclass, replace

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Categorical, MultivariateNormal, Normal, Poisson
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

Found = tuple[Float[Tensor, "T M o"], ...]  # of each sense; NaN where fewer than M are found
Script = dict[str, Tensor]


@dataclass(frozen=True)
class Sense:
    """(2), (3), (4) of one sense."""

    P: Float[Tensor, "o 4"]
    l_0: Tensor
    l: Float[Tensor, "2"]
    r: Tensor
    r_0: Tensor
    pi: Float[Tensor, "*N 2"]
    T: Float[Tensor, "2 2"]


@dataclass(frozen=True)
class Scene:
    """(1), and the senses: sight, hearing."""

    m: Float[Tensor, "N 4"]
    V: Float[Tensor, "*N 4 4"]
    D: Float[Tensor, "4 4"]
    Lambda: Float[Tensor, "4 4"]
    senses: tuple[Sense, ...]


@dataclass(frozen=True)
class Tracks:
    """q(s); for each sense q(v_tn = 1), (T, N), and q(a), (T, M, 1 + N); (9) after every sweep."""

    mean: Float[Tensor, "T N 4"]
    covariance: Float[Tensor, "T N 4 4"]
    on: tuple[Tensor, ...]
    alpha: tuple[Tensor, ...]
    bounds: Float[Tensor, "sweeps"]


def meeting(azimuths: tuple[float, ...] = (-40.0, 0.0, 35.0)) -> Scene:
    """People whose first azimuths are known to 3 degrees; 10 frames a second."""
    P, m = torch.eye(4), torch.tensor([[azimuth, 0.0, 0.0, 0.0] for azimuth in azimuths])
    D = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0.95, 0], [0, 0, 0, 0.95]])
    V = torch.tensor([3.0, 3.0, 0.1, 0.1]).square().diag()
    Lambda = torch.tensor([0.1, 0.1, 0.2, 0.05]).square().diag()
    pi, T = torch.tensor([0.5, 0.5]), torch.tensor([[0.98, 0.02], [0.02, 0.98]])
    sight = Sense(P[:2], *map(torch.tensor, (0.3, [0.02, 1.2], 2.0**2, 30.0**2)), pi, T)
    hearing = Sense(P[:1], *map(torch.tensor, (0.5, [0.05, 3.0], 6.0**2, 60.0**2)), pi, T)
    return Scene(m, V, D, Lambda, (sight, hearing))


def model(p: Scene, frames: int, found: Found | None = None) -> None:
    """(1) to (4) as a Pyro program. Without `found` it draws what is found, too."""
    s, on, x, count = p.m, [torch.zeros(len(p.m)).long()] * len(p.senses), None, None
    for t in range(frames):
        s = MultivariateNormal(s @ p.D.mT, p.Lambda) if t else MultivariateNormal(p.m, p.V)
        s = pyro.sample(f"s_{t}", s.to_event(1))
        for i, e in enumerate(p.senses):
            chances = e.T[on[i]] if t else e.pi.expand(len(p.m), 2)
            on[i] = pyro.sample(f"on_{i}_{t}", Categorical(chances).to_event(1))
            l = torch.cat([e.l_0[None], e.l[on[i]]])
            if found:
                x = found[i][t][~found[i][t, :, 0].isnan()]
                count = torch.tensor(float(len(x)))
            M = pyro.sample(f"M_{i}_{t}", Poisson(l.sum()), obs=count)
            a = pyro.sample(f"a_{i}_{t}", Categorical(l).expand([int(M)]).to_event(1))
            centre = torch.cat([torch.zeros(1, len(e.P)), s @ e.P.mT])[a]
            spread = torch.where(a == 0, e.r_0, e.r).sqrt()[:, None]
            pyro.sample(f"x_{i}_{t}", Normal(centre, spread).to_event(2), obs=x)


def draw(p: Scene, T: int, rng: Generator, script: Script) -> tuple[Tensor, list[Tensor], Found]:
    """s (T, N, 4), who is on (T, N) and what is found, from the program: but sites in the script are as it says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
        sites = poutine.trace(poutine.condition(model, script)).get_trace(p, T).nodes
    names = ("s", "on_0", "on_1", "x_0", "x_1")
    s, v, u, *x = ([sites[f"{name}_{t}"]["value"] for t in range(T)] for name in names)
    x = tuple(pad_sequence(frames, True, torch.nan) for frames in x)
    return torch.stack(s), [torch.stack(v), torch.stack(u)], x


def _log_normal(r: Tensor, square: Tensor, e: Sense) -> Tensor:
    return -0.5 * (len(e.P) * (2 * math.pi * r).log() + square / r)


def _squares(e: Sense, x: Tensor, mean: Tensor, S: Tensor) -> Tensor:
    """E |x_tm - P s_tn|^2, (T, M, N)."""
    trace = (e.P @ S @ e.P.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (x[:, :, None] - (mean @ e.P.mT)[:, None]).square().sum(-1) + trace[:, None]


def assign(e: Sense, x: Tensor, log_person: Tensor) -> Tensor:
    """alpha (T, M, 1 + N), zeros where nothing is found."""
    clutter = e.l_0.log() + _log_normal(e.r_0, x.square().sum(-1), e)
    return torch.cat([clutter[..., None], log_person], -1).softmax(-1).nan_to_num(0.0)


def assign_again(e: Sense, x: Tensor, on: Tensor, mean: Tensor, S: Tensor) -> Tensor:
    """E-a: (6)."""
    log_l = on * e.l[1].log() + (1 - on) * e.l[0].log()
    return assign(e, x, log_l[:, None] + _log_normal(e.r, _squares(e, x, mean, S), e))


def follow(p: Scene, found: Found) -> tuple[Tensor, ...]:
    """q(a) of a filter: in every frame s and v are summed out of (6), then (7) and (8) are smoothers of one frame."""
    frames = []
    for t in range(len(found[0])):
        x, V = [each[t : t + 1] for each in found], p.V.expand(len(p.m), 4, 4)
        alphas, senses = [], []
        for e, f in zip(p.senses, x, strict=True):
            seen = MultivariateNormal(p.m @ e.P.mT, e.r * torch.eye(len(e.P)) + e.P @ V @ e.P.mT)
            log_person = (e.pi @ e.l).log() + seen.log_prob(f.nan_to_num(0.0)[:, :, None])
            alphas.append(assign(e, f, log_person))
            v = switch(e, alphas[-1])[0][0, :, None]
            senses.append(replace(e, pi=v * e.T[1] + (1 - v) * e.T[0]))
        (mean,), (S,), _ = move(p, x, alphas)
        p = replace(p, m=mean @ p.D.mT, V=p.D @ S @ p.D.mT + p.Lambda, senses=senses)
        frames.append(alphas)
    return tuple(map(torch.cat, zip(*frames, strict=True)))


def switch(e: Sense, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """E-v: q(v_tn = 1) and sum_n log Z_v, from the evidence (7)."""
    log_e, log_T = alpha[..., 1:].sum(-2)[..., None] * e.l.log() - e.l, e.T.log()
    forward, backward = [e.pi.log() + log_e[0]], [torch.zeros_like(log_e[0])]
    for now in log_e[1:]:
        forward.append((forward[-1][..., None] + log_T).logsumexp(-2) + now)
    for now in log_e[1:].flip(0):
        backward.append((log_T + (now + backward[-1])[..., None, :]).logsumexp(-1))
    both = torch.stack(forward) + torch.stack(backward[::-1])
    return both.softmax(-1)[..., 1], forward[-1].logsumexp(-1).sum()


def move(p: Scene, found: Found, alphas: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """E-s: mean and covariance of q(s_tn), and sum_n log Z_s: Kalman's filter with (8), and the way back."""
    Omega, w = 0.0, 0.0
    for e, x, alpha in zip(p.senses, found, alphas, strict=True):
        share = alpha[..., 1:].mT / e.r  # (T, N, M)
        Omega = Omega + share.sum(-1)[..., None, None] * (e.P.mT @ e.P)
        w = w + share @ x.nan_to_num(0.0) @ e.P
    mean, S, log_Z, ahead, past = p.m, p.V.expand(len(p.m), 4, 4), 0.0, [], []
    for t in range(len(w)):
        m, V = (mean @ p.D.mT, p.D @ S @ p.D.mT + p.Lambda) if t else (mean, S)
        ahead.append((m, V))
        S, prior = (V.inverse() + Omega[t]).inverse(), _times(V.inverse(), m)
        mean = _times(S, prior + w[t])
        square = ((prior + w[t]) * mean - prior * m).sum()
        log_Z = log_Z + 0.5 * (square + (S.logdet() - V.logdet()).sum())
        past.append((mean, S))
    whole = [past[-1]]
    for (m, V), (m_next, V_next) in zip(past[-2::-1], ahead[:0:-1], strict=True):
        G, (mean, S) = V @ p.D.mT @ V_next.inverse(), whole[-1]
        whole.append((m + _times(G, mean - m_next), V + G @ (S - V_next) @ G.mT))
    return *(torch.stack(parts[::-1]) for parts in zip(*whole, strict=True)), log_Z


def _times(M: Tensor, a: Tensor) -> Tensor:
    return (M @ a[..., None])[..., 0]


def fit(p: Scene, found: Found, sweeps: int, learn: bool = False) -> tuple[Scene, Tracks]:
    """Sweeps from the q(a) of `follow`, and after each the M-step (10) where it is to learn."""
    alpha, bounds = follow(p, found), []
    for sweep in range(sweeps):
        if sweep:
            each = zip(p.senses, found, on, strict=True)
            alpha = tuple(assign_again(*one, mean, S) for one in each)
        mean, S, log_Z = move(p, found, alpha)
        on, log_Zs = zip(*map(switch, p.senses, alpha), strict=True)
        bounds.append(log_Z + sum(log_Zs) + sum(map(_rest_of_bound, p.senses, found, alpha)))
        if learn:
            each = zip(p.senses, found, alpha, on, strict=True)
            p = replace(p, senses=tuple(learn_sense(*one, mean, S) for one in each))
    return p, Tracks(mean, S, on, alpha, torch.stack(bounds))


def _rest_of_bound(e: Sense, x: Tensor, alpha: Tensor) -> Tensor:
    """(9) of one sense, but for log Z."""
    M, square = (~x[..., 0].isnan()).sum(-1), x.nan_to_num(0.0).square().sum(-1)
    clutter = alpha[..., 0] * (e.l_0.log() + _log_normal(e.r_0, square, e))
    person = alpha[..., 1:].sum(-1) * _log_normal(e.r, square, e)
    entropy = torch.special.entr(alpha).sum(-1)
    return (clutter + person + entropy).sum() - (e.l_0 + torch.lgamma(M + 1.0)).sum()


def learn_sense(e: Sense, x: Tensor, alpha: Tensor, on: Tensor, mean: Tensor, S: Tensor) -> Sense:
    """M: (10)."""
    person, square = alpha[..., 1:], _squares(e, x.nan_to_num(0.0), mean, S)
    r = (person * square).sum() / (len(e.P) * person.sum())
    l_1 = (on * person.sum(1)).sum() / on.sum()
    return replace(e, r=r, l=torch.stack([e.l[0], l_1]), l_0=alpha[..., 0].sum() / len(x))
