"""Sources that move: separation with filters that walk at random, by a Kalman smoother inside variational EM.

After D. Kounades-Bastian, L. Girin, X. Alameda-Pineda, S. Gannot and R. Horaud, *A variational EM algorithm for the
separation of moving sound sources*, WASPAA 2015, and *... of time-varying convolutive audio mixtures*, TASLP 2016.
Their texts were not at hand: all is derived here from the model statement. Chosen here: the filters to different
microphones walk independently, each source at its own pace; the latents are the sources, not their NMF components.

The story. I microphones hear J sources in noise, seen as an STFT of F frequencies and L frames. The window is long
against the room, so that a filter is one complex number for each frequency. Who moves changes it from frame to frame:

    s_fl,j ~ N_c(0, u_fl,j),   u_fl,j = sum_k w_j,fk h_j,kl                                                      (1)
    A_f1,ij ~ N_c(1, 1),   A_fl,ij ~ N_c(A_f,l-1,ij, q_fj)                                                       (2)
    x_fl ~ N_c(A_fl s_fl, v_f I)                                                                                 (3)

with log N_c(x; m, v I) = -I log(pi v) - |x - m|^2 / v. Frequencies are bound by W and H only, so f is left out below.
(3) has the product of A and s. Given one of them the other is Gaussian; together they are not. Let q(s, A) = q(s) q(A)
and raise  F = E_q log p(x, s, A) - E_q log q  over one factor at a time.

E-s, in every frame. Let A be the mean of the filters and C the covariance of a row of it (a J-vector, alike for all I):

    E[A^H A] = A^H A + I C^T,   S = (diag(1/u) + E[A^H A] / v)^-1,   E s = S A^H x / v                           (4)

This is Wiener's filter; C adds the doubt about the filters. E-a: as x_i = s^T a_i + noise, row a_i has the likelihood

    exp(-a_i^H K a_i + 2 Re w_i^H a_i),   K = conj(E[s s^H]) / v,   w_i = conj(E s) x_i / v                      (5)

where E[s s^H] = E s E s^H + S. With (2) that is Kalman's filter and smoother; V_l is the covariance as predicted:

    C_l = (V_l^-1 + K_l)^-1,   a_l = C_l (V_l^-1 a_l-1 + w_l),   V_l+1 = C_l + diag(q)                           (6)
    back:  G_l = C_l V_l+1^-1,   a_l += G_l (a_l+1 - a_l),   C_l += G_l (C_l+1 - V_l+1) G_l^H                    (7)
    log Z_a = sum_l I log(|C_l| / |V_l|) + sum_il (a_l^H C_l^-1 a_l - a_l-1^H V_l^-1 a_l-1), all of (6)          (8)

After E-a the bound is  F = log Z_a - sum_l (I log(pi v) + |x|^2 / v) + E log p(s) + H(q(s)).                    (9)

M. v: the mean of E|x_i - (A s)_i|^2. q_j: the mean of E|A_l,ij - A_l-1,ij|^2. W and H: one step of Itakura-Saito NMF of
P = E|s_j|^2 (it lowers sum P / u + log u):   h <- h ((W^T (P / u^2)) / (W^T (1 / u)))^1/2,   and so W.         (10)

Static filters are q = 0. Blocks of frames, each with static filters of its own, are the usual way to follow what moves:
the baseline. Its blocks must be long enough to learn a filter and so short that nobody moves within.
"""

import math
from dataclasses import dataclass, replace

import pyro
import torch
from jaxtyping import Complex, Float
from torch import Generator, Tensor

from pyro_avse.distributions import ComplexNormal

RATE, FRAME = 8000, 512  # samples a second, in a window of the STFT; half of it is the hop

Mixed = Complex[Tensor, "F L I"]


@dataclass(frozen=True)
class Mixture:
    """Of (1), (2), (3): noise, pace of the filters, spectra, how loud each spectrum is in every frame."""

    v: Float[Tensor, "F"]
    q: Float[Tensor, "F J"]
    W: Float[Tensor, "J F K"]
    H: Float[Tensor, "J K L"]


@dataclass(frozen=True)
class Separated:
    """q(s), q(A), Cov(a_l+1, a_l), and (9) after every iteration."""

    s: Complex[Tensor, "F L J"]
    S: Complex[Tensor, "F L J J"]
    A: Complex[Tensor, "F L I J"]
    C: Complex[Tensor, "F L J J"]
    cross: Complex[Tensor, "F L-1 J J"]
    bounds: Float[Tensor, "iterations"]


def source_variance(p: Mixture) -> Float[Tensor, "F L J"]:
    """u of (1)."""
    return (p.W @ p.H).clamp_min(1e-10).permute(1, 2, 0)


def model(p: Mixture, x: Mixed) -> None:
    """(1), (2), (3) as a Pyro program."""
    (_, frames, mics), u = x.shape, source_variance(p)
    s = pyro.sample("s", ComplexNormal(0, u.log()).to_event(3))
    log_q = p.q.log()[:, None].expand(-1, mics, -1)
    A = torch.ones_like(log_q).to(x.dtype)
    for l in range(frames):
        A = pyro.sample(f"A_{l}", ComplexNormal(A, log_q if l else 0 * log_q).to_event(3))
        mean = (A @ s[:, l, :, None])[..., 0]
        log_v = p.v.log()[:, None].expand(-1, mics)
        pyro.sample(f"x_{l}", ComplexNormal(mean, log_v).to_event(2), obs=x[:, l])


def draw(p: Mixture, mics: int, rng: Generator) -> tuple[Tensor, Tensor, Mixed]:
    """s (F, L, J), A (F, L, I, J) and x from (1), (2), (3)."""
    u = source_variance(p)
    steps = torch.cat(
        [torch.ones_like(p.q)[:, None], p.q[:, None].expand(-1, u.shape[1] - 1, -1)], 1
    )
    A = 1 + (steps.sqrt()[:, :, None] * _normal((*u.shape[:2], mics, u.shape[2]), rng)).cumsum(1)
    s = u.sqrt() * _normal(u.shape, rng)
    b = p.v.sqrt()[:, None, None] * _normal((*u.shape[:2], mics), rng)
    return s, A, (A @ s[..., None])[..., 0] + b


def _normal(shape: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.view_as_complex(torch.randn(*shape, 2, generator=rng) / math.sqrt(2))


def separate(p: Mixture, x: Mixed, A: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """E-s: (4)."""
    v, u = p.v[:, None, None, None], source_variance(p)
    AA = A.mH @ A + x.shape[-1] * C.mT
    S = (torch.diag_embed(1 / u) + AA / v).inverse()
    return (S @ A.mH @ x[..., None] / v)[..., 0], S


def second_moment(s: Tensor, S: Tensor) -> Tensor:
    """E[s s^H]."""
    return s[..., None] * s[..., None, :].conj() + S


def walk(p: Mixture, x: Mixed, s: Tensor, S: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E-a: A, C and cross by (5), (6), (7), and log Z_a (8) of all frequencies. A row a_i is a column here."""
    v, I = p.v[:, None, None], x.shape[-1]
    K = second_moment(s, S).conj() / v[..., None]
    w = s.conj()[..., None] * x[..., None, :] / v[..., None]  # (F, L, J, I)
    V, a = torch.eye(s.shape[-1], dtype=x.dtype).expand(len(x), -1, -1), torch.ones_like(w[:, 0])
    past, log_Z = [], 0.0
    for l in range(x.shape[1]):
        V = past[-1][1] + torch.diag_embed(p.q) if l else V
        inverse = V.inverse()
        C, prior = (inverse + K[:, l]).inverse(), inverse @ a
        a, before = C @ (prior + w[:, l]), (a.conj() * prior).sum()
        log_Z = log_Z + ((prior + w[:, l]).conj() * a).sum().real - before.real
        log_Z = log_Z + I * (C.logdet() - V.logdet()).real.sum()
        past.append((a, C, V))
    whole, cross = [past[-1][:2]], []
    for l in reversed(range(len(past) - 1)):
        (a, C, _), V = past[l], past[l + 1][2]
        G, (a_next, C_next) = C @ V.inverse(), whole[-1]
        cross.append(C_next @ G.mH)
        whole.append((a + G @ (a_next - a), C + G @ (C_next - V) @ G.mH))
    A, C = (torch.stack(parts[::-1], 1) for parts in zip(*whole, strict=True))
    cross = torch.stack(cross[::-1], 1) if cross else C[:, :0]
    return A.mT, C, cross, log_Z


def fit(p: Mixture, x: Mixed, iterations: int, static: bool = False) -> tuple[Mixture, Separated]:
    """E-s, E-a, M, from filters that are 1. Static filters have q = 0 and keep it."""
    p = replace(p, q=0 * p.q) if static else p
    A = torch.ones(*x.shape, p.q.shape[1], dtype=x.dtype)
    C, bounds = torch.zeros_like(A[..., :1, :] * A[..., :1, :].mT), []
    for _ in range(iterations):
        s, S = separate(p, x, A, C)
        A, C, cross, log_Z = walk(p, x, s, S)
        P, u = second_moment(s, S).diagonal(dim1=-2, dim2=-1).real, source_variance(p)
        about_s = (1 - u.log() - P / u).sum() + S.logdet().real.sum()  # E log p(s) + H(q(s))
        noise = (x.abs().square() / p.v[:, None, None]).sum() + x[0].numel() * (
            math.pi * p.v
        ).log().sum()
        bounds.append(log_Z - noise + about_s)
        q = Separated(s, S, A, C, cross, torch.stack(bounds))
        p = learn(p, x, q, static)
    return p, q


def learn(p: Mixture, x: Mixed, q: Separated, static: bool) -> Mixture:
    """M: v, the pace q unless static, and (10)."""
    ss, I = second_moment(q.s, q.S), x.shape[-1]
    AA = q.A.mH @ q.A + I * q.C.mT
    explained = (x.conj() * (q.A @ q.s[..., None])[..., 0]).sum(-1).real
    trace = torch.einsum("flij,flji->fl", AA, ss).real
    v = (x.abs().square().sum(-1) - 2 * explained + trace).mean(1) / I
    pace = p.q
    if not static:
        spread = q.C[:, 1:] + q.C[:, :-1] - 2 * q.cross
        steps = q.A.diff(dim=1).abs().square().sum(-2) + I * spread.diagonal(dim1=-2, dim2=-1).real
        pace = steps.mean(1) / I
    P, W, H = ss.diagonal(dim1=-2, dim2=-1).real.permute(2, 0, 1), p.W, p.H
    W, H = nmf_step(P, W, H)
    return replace(p, v=v, q=pace, W=W, H=H)


def nmf_step(P: Float[Tensor, "J F L"], W: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """(10), H and then W: sum P / u + log u falls."""
    u = (W @ H).clamp_min(1e-10)
    H = H * ((W.mT @ (P / u.square())) / (W.mT @ (1 / u))).sqrt()
    u = (W @ H).clamp_min(1e-10)
    return W * (((P / u.square()) @ H.mT) / ((1 / u) @ H.mT)).sqrt(), H


def nmf(P: Float[Tensor, "J F L"], rank: int, steps: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """W and H of powers: where the separation starts."""
    W = 0.5 + torch.rand(*P.shape[:2], rank, generator=rng)
    H = (
        (0.5 + torch.rand(len(P), rank, P.shape[2], generator=rng))
        * P.mean((1, 2))[:, None, None]
        / rank
    )
    for _ in range(steps):
        W, H = nmf_step(P, W, H)
    return W, H


def voice(t: Float[Tensor, "*when"], pitch: float, rng: Generator) -> Tensor:
    """Syllables of 12 harmonics at the times t (s): a formula, so that any delay is exact."""
    sound, start, seconds = torch.zeros_like(t), 0.0, float(t.max())
    while start < seconds:
        last, glide, gap = (float(r) for r in torch.rand(3, generator=rng))
        last, k = 0.2 + 0.2 * last, torch.arange(1, 13)
        formants = torch.rand(2, 1, generator=rng) * torch.tensor([[600.0], [1500]]) + torch.tensor(
            [[300.0], [1000]]
        )
        loud = (-((pitch * k - formants) / 200).square()).exp().sum(0) + 0.02
        phase = 2 * math.pi * pitch * (1 + 0.1 * (glide - 0.5) * (t - start)) * (t - start)
        shape = torch.sin(math.pi * ((t - start) / last).clamp(0, 1)).square()
        for a, n in zip(loud, k, strict=True):
            sound = sound + a * shape * torch.sin(n * phase)
        start += last + 0.15 * gap
    return sound


def move(
    azimuth: Float[Tensor, "J samples"], pitches: list[float], rng: Generator
) -> Float[Tensor, "J I samples"]:
    """What two microphones, 20 cm apart, hear of each voice that goes along its azimuth (degrees, 0 ahead)."""
    t = torch.arange(azimuth.shape[1]) / RATE
    ear = torch.tensor([[-1.0], [1.0]])
    delay = ear * 0.1 / 343 * torch.sin(azimuth[:, None] * math.pi / 180)
    near = 1 - 0.3 * ear * torch.sin(azimuth[:, None] * math.pi / 180)
    return torch.stack(
        [near[j] * voice(t - delay[j], pitch, rng) for j, pitch in enumerate(pitches)]
    )


def stft(sound: Float[Tensor, "*n samples"]) -> Complex[Tensor, "*n F L"]:
    """Root-Hann windows of 64 ms, half overlapping."""
    window, flat = torch.hann_window(FRAME).sqrt(), sound.flatten(0, -2)
    return torch.stft(
        flat, FRAME, window=window, hop_length=FRAME // 2, return_complex=True
    ).unflatten(0, sound.shape[:-1])
