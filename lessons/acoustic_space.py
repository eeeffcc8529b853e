"""The acoustic space: where a sound comes from, learned from what two ears hear, one affine piece at a time.

After A. Deleforge, F. Forbes, R. Horaud, *Acoustic Space Learning for Sound-Source Separation and Localization on
Binaural Manifolds*, Int. J. Neural Systems 2015. Derived here from the model statement; the equation numbers are ours.

The story. A dummy head hears white noise from many known directions x in R^2, azimuth and elevation. At frequency f the
ears differ: y_f = (difference of level in dB, cos and sin of the difference of phase). That tells where a sound is, not
what it is. As x moves in the plane, y moves on a curved sheet in hundreds of dimensions. We cover the sheet by K flat
pieces, each above its own region of directions:

    z ~ Cat(pi)     x | z = k ~ N(c_k, Gamma_k)                                                                   (1)
    y_f | x, z = k ~ N(A_kf x + b_kf, diag s_f)                s_f: noise, and how far the sheet is from flat     (2)

**Learning** has pairs (x_n, y_n); only z_n is hidden. With x~ = (x, 1) and W_k = (A_k, b_k), EM is

    E     r_nk = pi_k N(x_n; c_k, Gamma_k) prod_f N(y_nf; W_kf x~_n, diag s_f) / sum over k                       (3)
    M     pi_k, c_k, Gamma_k: share, mean and covariance of the x_n under r_nk
          W_k = (sum_n r_nk y_n x~_n') (sum_n r_nk x~_n x~_n')^-1     s = mean_n sum_k r_nk (y_n - W_k x~_n)^2    (4)

The E-step is exact, so the bound is the log-likelihood.

**Inverse regression.** Now y is heard and x asked for: Bayes' rule turns (1), (2) around. Speech is silent at most
times and frequencies; let chi_tf in [0, 1] say how much f counts in frame t, and n_f = sum_t chi_tf. Then
p(x, z = k | y) = nu_k N(x; m_k, V_k), where, in sums over f and the three numbers of y_f,

    V_k^-1     = Gamma_k^-1 + sum n_f A_kf' A_kf / s_f                                                            (5)
    V_k^-1 m_k = Gamma_k^-1 c_k + sum A_kf' sum_t chi_tf (y_tf - b_kf) / s_f                                      (6)
    log nu_k   = log pi_k + (log |V_k| - log |Gamma_k| + m_k' V_k^-1 m_k - c_k' Gamma_k^-1 c_k
                 - sum sum_t chi_tf (y_tf - b_kf)^2 / s_f) / 2 + constant                                         (7)

The direction is the mean, sum_k nu_k m_k. A missing bin costs nothing: its chi is 0.

**Several sources.** Speech is sparse: nearly every bin belongs to one of the M talkers, w_tf ~ Cat(lambda), and

    y_tf | w_tf = m, x_m, z_m = k ~ N(A_kf x_m + b_kf, diag s_f),     (x_m, z_m) as in (1)                        (8)

Variational EM takes q(w) prod_m q(x_m, z_m). Each factor's best is exp of the log-joint averaged over the others:

    E-XZ  q(x_m, z_m) is (5)-(7) with chi_tf = q(w_tf = m)
    E-W   log q(w_tf = m) = log lambda_m - sum E[(y_tf - A_kf x_m - b_kf)^2] / 2 s_f + constant                   (9)
    M     lambda_m = mean q(w_tf = m)      s_f = mean of those expected squares, but no less than in training    (10)

E[.] sums nu_k ((y - A_k m_k - b_k)^2 + A_k V_k A_k'). Each step is the bound's exact maximum in one factor, so it never
falls. q(w_tf = m) is the mask that separates. VEM starts in doubt (s_f large), at the regions that explain most.
"""

import math
from dataclasses import dataclass, replace

import pyro
import torch
from jaxtyping import Complex, Float
from pyro import poutine
from pyro.distributions import Categorical, MultivariateNormal, Normal
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import pad

RATE, WINDOW, HOP = 16000, 512, 256
ECHOES = ((0.4, 2, 2), (-0.4, 5, 6), (0.3, 9, 8))  # strength, least delay, how much more below
DOUBT = (9.0, 0.1, 0.1)  # what is added to s where a mixture begins: dB^2, and of cos and sin
Directions = Float[Tensor, "sound 2"]  # azimuth (right is positive) and elevation, in degrees
Features = Float[Tensor, "frame_or_sound freq 3"]
Mask = Float[Tensor, "frame freq"]
Weights = Float[Tensor, "sound piece"]


@dataclass(frozen=True)
class Mapping:
    """The parameters of (1), (2)."""

    share: Float[Tensor, "piece"]
    centre: Float[Tensor, "piece 2"]
    spread: Float[Tensor, "piece 2 2"]
    affine: Float[Tensor, "piece freq 3 3"]  # W_k = (A_k, b_k)
    noise: Float[Tensor, "freq 3"]


@dataclass(frozen=True)
class Located:
    """q(x, z) of a source: (5)-(7)."""

    share: Float[Tensor, "piece"]
    mean: Float[Tensor, "piece 2"]
    covariance: Float[Tensor, "piece 2 2"]


Learned = tuple[Mapping, list[float]]
Separated = tuple[list[Located], Float[Tensor, "source frame freq"], list[float]]


def model(mapping: Mapping, sources: Float[Tensor, "source"], y: Features, heard: Mask) -> None:
    """(8) as a Pyro program: `sources` is lambda; bins where `heard` is 0 are missing."""
    means = []
    for m in range(len(sources)):
        z = pyro.sample(f"z_{m}", Categorical(mapping.share))
        x = pyro.sample(f"x_{m}", MultivariateNormal(mapping.centre[z], mapping.spread[z]))
        means.append(mapping.affine[z] @ pad(x, (0, 1), value=1.0))
    with pyro.plate("freq", y.shape[1]), pyro.plate("frame", len(y)), poutine.mask(mask=heard > 0):
        w = pyro.sample("w", Categorical(sources))
        mean = torch.stack(means)[w, torch.arange(y.shape[1])]
        pyro.sample("y", Normal(mean, mapping.noise.sqrt()).to_event(1), obs=y)


def e_step(mapping: Mapping, x: Directions, y: Features) -> tuple[Weights, Tensor]:
    """r_nk of (3), and the log-likelihood."""
    W, s, y = mapping.affine.flatten(1, 2), mapping.noise.flatten(), y.flatten(1)
    line, region = pad(x, (0, 1), value=1.0), MultivariateNormal(mapping.centre, mapping.spread)
    cross = torch.einsum("nd,kdl,nl->nk", y / s, W, line)
    square = torch.einsum("kdl,d,kdm,nl,nm->nk", W, 1 / s, W, line, line)
    constant = ((2 * math.pi * s).log() + y.square() / s).sum(1)[:, None]
    joint = mapping.share.log() + region.log_prob(x[:, None]) + cross - 0.5 * (square + constant)
    return joint.softmax(1), joint.logsumexp(1).sum()


def m_step(x: Directions, y: Features, r: Weights) -> Mapping:
    """(4); no region is narrower than a hundredth of a degree, no variance below 1e-6."""
    line, n_k = pad(x, (0, 1), value=1.0), r.sum(0).clamp_min(1e-12)
    C = torch.einsum("nk,nl,nfd->kfdl", r, line, y)
    G = torch.einsum("nk,nl,nm->klm", r, line, line)
    centre = G[:, :2, 2] / n_k[:, None]
    spread = G[:, :2, :2] / n_k[:, None, None] - centre[:, :, None] * centre[:, None]
    values, vectors = torch.linalg.eigh(spread)
    spread = (vectors * values.clamp_min(1e-4)[:, None]) @ vectors.mT
    W = C @ torch.linalg.pinv(G)[:, None]
    noise = (y.square().sum(0) - (W * C).sum((0, 3))) / len(x)  # W solves W G = C
    return Mapping(n_k / len(x), centre, spread, W, noise.clamp_min(1e-6))


def train(x: Directions, y: Features, pieces: int, steps: int, rng: torch.Generator) -> Learned:
    """EM, with the log-likelihood after every M-step. Regions start around directions at random."""
    seeds = x[torch.randperm(len(x), generator=rng)[:pieces]]
    r, bounds = (-torch.cdist(x, seeds).square() / 50).softmax(1), []
    for _ in range(steps):
        mapping = m_step(x, y, r)
        r, likelihood = e_step(mapping, x, y)
        bounds.append(float(likelihood))
    return mapping, bounds


def locate(mapping: Mapping, y: Features, chi: Mask) -> Located:
    """p(x, z | y) where bins count chi: (5)-(7)."""
    A, b, s = mapping.affine[..., :2], mapping.affine[..., 2], mapping.noise
    n_f = chi.sum(0)[:, None]
    first, second = (torch.einsum("tf,tfd->fd", chi, power) for power in (y, y.square()))
    precision = mapping.spread.inverse()
    V = (precision + torch.einsum("kfdl,kfdm,fd->klm", A, A, n_f / s)).inverse()
    pull = torch.einsum("klm,km->kl", precision, mapping.centre)
    push = pull + torch.einsum("kfdl,kfd->kl", A, (first - n_f * b) / s)
    error = ((second - 2 * first * b + n_f * b.square()) / s).sum((1, 2))
    m = torch.einsum("klm,km->kl", V, push)
    change = V.logdet() - mapping.spread.logdet() + (m * push - mapping.centre * pull).sum(1)
    log_nu = mapping.share.log() + 0.5 * (change - error)
    return Located(log_nu.softmax(0), m, V)


def expected_error(mapping: Mapping, q: Located, y: Features) -> Features:
    """E[(y - A x - b)^2] under q(x, z)."""
    A, line = mapping.affine[..., :2], pad(q.mean, (0, 1), value=1.0)
    at = torch.einsum("kfdl,kl->kfd", mapping.affine, line)
    wide = torch.einsum("kfdl,klm,kfdm->kfd", A, q.covariance, A)
    mean, square = (torch.einsum("k,kfd->fd", q.share, part) for part in (at, at.square() + wide))
    return y.square() - 2 * y * mean + square


def separate(mapping: Mapping, y: Features, heard: Mask, sources: int, steps: int) -> Separated:
    """VEM (9), (10): q(x_m, z_m), the masks q(w), and the bound after every E-W."""
    trained, mapping = mapping.noise, replace(mapping, noise=mapping.noise + y.new_tensor(DOUBT))
    w, share, bounds = guess(mapping, y, heard, sources), torch.full((sources,), 1 / sources), []
    for _ in range(steps):
        found = [locate(mapping, y, mask * heard) for mask in w]
        error = torch.stack([expected_error(mapping, q, y) for q in found])
        fit = -0.5 * (error / mapping.noise + (2 * math.pi * mapping.noise).log()).sum(-1)
        joint = share.log()[:, None, None] + fit
        w, gap = joint.softmax(0), sum(divergence(q, mapping) for q in found)
        bounds.append(float((joint.logsumexp(0) * heard).sum() - gap))
        share = (w * heard).sum((1, 2)) / heard.sum()
        square, count = torch.einsum("mtf,tf,mtfd->fd", w, heard, error), heard.sum(0)[:, None]
        mapping = replace(mapping, noise=torch.maximum(square / count.clamp_min(1), trained))
    return found, w, bounds


def divergence(q: Located, p: Mapping) -> Tensor:
    """KL of q(x, z) from (1)."""
    region = MultivariateNormal(p.centre, p.spread)
    apart = kl_divergence(MultivariateNormal(q.mean, q.covariance), region)
    return torch.xlogy(q.share, q.share).sum() + (q.share * (apart - p.share.log())).sum()


def guess(mapping: Mapping, y: Features, heard: Mask, sources: int) -> Tensor:
    """q(w) at M regions, chosen one after the other so that all bins together are explained best."""
    regions = (Located(k, mapping.centre, mapping.spread) for k in torch.eye(len(mapping.share)))
    errors = (expected_error(mapping, q, y) / mapping.noise for q in regions)
    fit = torch.stack([-0.5 * error.sum(-1) for error in errors])
    chosen = fit.new_empty(0, *y.shape[:2])
    for _ in range(sources):
        gains = (torch.logaddexp(chosen.logsumexp(0), fit) * heard).sum((1, 2))
        chosen = torch.cat([chosen, fit[gains.argmax()][None]])
    return chosen.softmax(0)


def ears(x: Directions, hertz: Float[Tensor, "freq"]) -> Complex[Tensor, "sound 2 freq"]:
    """What a dummy head does to sound from x: delay and shadow of a sphere [Brown & Duda 1998], and of each pinna three
    echoes that come sooner from above. The pinnae are not alike, or nothing would tell up from down in the middle.
    """
    (azimuth, elevation), omega, at_ears = x.deg2rad().T[..., None], 2 * math.pi * hertz, []
    for side in (-1, 1):
        angle = (elevation.cos() * (azimuth - side * math.radians(100)).cos()).clamp(-1, 1).acos()
        path = torch.where(angle < math.pi / 2, 1 - angle.cos(), 1 + angle - math.pi / 2)
        across = 1j * omega * 0.0875 / 343  # seconds that sound takes along a radius, times i omega
        shadow = (1 + (1.05 + 0.95 * (1.2 * angle).cos()) * across / 2) / (1 + across / 2)
        echo = (azimuth / 2).cos() * ((0.6 + 0.1 * side) * (math.pi / 2 - elevation)).sin()
        pinna = 1 + sum(a * torch.exp(-1j * omega * (b + c * echo) / 44100) for a, b, c in ECHOES)
        at_ears.append(shadow * torch.exp(-across * path) * pinna)
    return torch.stack(at_ears, 1)


def features(at_ears: Complex[Tensor, "any 2 freq"], floor: float = 40.0) -> tuple[Features, Mask]:
    """y, right against left, and 1 where both ears hear more than the loudest bin less `floor` dB."""
    ratio = at_ears[:, 1] / at_ears[:, 0]
    phase, level = ratio / ratio.abs(), at_ears.abs().amin(1)
    y = torch.stack([20 * ratio.abs().log10(), phase.real, phase.imag], -1)
    return y, (level > 10 ** (-floor / 20) * level.max()).to(y.dtype)


def draw(count: int, rng: torch.Generator) -> tuple[Directions, Features]:
    """Directions at random, and y of white noise that lasts long enough: the ears' own."""
    x = (torch.rand(count, 2, generator=rng) - 0.5) * torch.tensor([120.0, 60.0])
    return x, features(ears(x, torch.linspace(0, RATE / 2, WINDOW // 2 + 1)[1:]))[0]


def record(sounds: Float[Tensor, "source sample"], x: Directions) -> Tensor:
    """The STFT of every sound as it is at the two ears, (source, frame, 2, freq)."""
    count = sounds.shape[-1]
    there = ears(x, torch.linspace(0, RATE / 2, count // 2 + 1))
    sound = torch.fft.irfft(torch.fft.rfft(sounds)[:, None] * there, count).flatten(0, 1)
    heard = torch.stft(sound, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    return heard[:, 1:].unflatten(0, (-1, 2)).permute(0, 3, 1, 2)


def talk(seconds: float, pitch: float, rng: torch.Generator) -> Float[Tensor, "sample"]:
    """Something like speech of power 1: syllables, and pauses, of gliding harmonics, each as loud as it likes."""
    count, syllables = int(RATE * seconds), round(5 * seconds)
    time, h = torch.arange(count) / RATE, torch.arange(1.0, RATE // (2.6 * pitch))[:, None]
    phase = 2 * math.pi * pitch * (time + 0.03 * torch.sin(2 * math.pi * 0.8 * time))
    loud = torch.exp(1.2 * torch.randn(len(h), syllables, generator=rng)) / h.sqrt()
    loud = (loud * (torch.rand(syllables, generator=rng) > 0.25)).repeat_interleave(RATE // 5, 1)
    voice = (loud * torch.sin(h * phase)).sum(0) * torch.sin(5 * math.pi * time).abs()
    return voice / voice.std()
