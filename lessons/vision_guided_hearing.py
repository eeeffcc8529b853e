"""Who of those seen is speaking: vision says where to listen, a mixture says who is heard.

After X. Alameda-Pineda, R. Horaud, "Vision-guided robot hearing", International Journal of Robotics Research. The
paper's text was not at hand: all is derived here from the model statement, with numbers of our own. Our choices: time
is cut into windows of a second; all windows share the spread of hearing; after EM the weights become random, which
makes the EM variational. Lesson `av_gmm` learns where people are. Here vision knows it, and hearing says who talks.

The story. A camera sees N faces, at S_1, ..., S_N in metres. Two microphones hear all who talk, walls included:

    x_i(t) = sum_n sum_j  b^|j| / d_nij  s_n(t - d_nij / c) + noise           i = left, right                        (1)

d_nij is the distance from microphone i to the j-th mirror image of person n in the walls, |j| how many walls that sound
has met, b how much of it each gives back; j = 0 is the person. Direct sound reaches the two ears at different times:

    g(S_n) = (d_n,left,0 - d_n,right,0) / c                                                                          (2)

This map from the seen to the heard is deterministic: nothing of it is learned. Of each short frame k of a window w the
ears find one interaural time difference, the lag at which the two signals agree best when every frequency counts alike
(generalised cross-correlation with phase transform, X being the frame's Fourier transform):

    tau_wk = argmax_tau  sum_f Re [C_f / |C_f|  e^(2 pi i f tau)],       C = X_left conj(X_right)                    (3)

Whoever is loudest in that frame gave that lag, unless an echo or the noise did ("clutter", the last class):

    pi_w ~ Dir(a, ..., a)                     who owns how much of window w                                          (4)
    z_wk ~ Cat(pi_w)                          whose frame it is                                                      (5)
    tau_wk | z = n ~ N(g(S_n), sigma^2)       tau_wk | z = clutter ~ U(all lags)                                     (6)

EM, without (4): pi_w is a number to be found. With r_wk a distribution over z_wk, Jensen's inequality gives

    log p(tau; pi, sigma) >= sum_wkn r_wkn log [pi_wn p(tau_wk | n) / r_wkn]                                         (7)
    E:  r_wkn = pi_wn p(tau_wk | n) / sum_j pi_wj p(tau_wk | j)                                                      (8)
    M:  pi_wn = mean_k r_wkn      sigma^2 = sum r_wkn (tau_wk - g(S_n))^2 / sum r_wkn, over w, k and people n        (9)

The means never move: they are seen. EM has only the weights of each window to learn, and one spread for all.

VEM, with (4). A weight found by EM does not say how sure it is. The joint p(tau, z, pi) has no posterior in closed form
(it sums over all z), but the best product r(z) r(pi) has. From

    log p(tau; sigma) >= F = E_r log p(tau | z) p(z | pi) p(pi) - E_r log r(z) r(pi)                                (10)

each factor is best at exp of the expectation of the log-joint under the other, normalised:

    E-z:  r_wkn ∝ exp(E log pi_wn) p(tau_wk | n)        E log pi_wn = psi(c_wn) - psi(sum_j c_wj)                   (11)
    E-pi: r(pi_w) = Dir(c_w)                            c_wn = a + sum_k r_wkn                                      (12)

psi is the derivative of log Gamma; sigma is as in (9). With r(z) by (11), F of (10) is short:

    F = sum_wk log sum_n exp(E log pi_wn) p(tau_wk | n) - sum_w KL(Dir(c_w) || Dir(a))                              (13)

Under Dir(c_w) the weight of one person is Beta(c_wn, sum of the others). So the question's answer is a probability:

    P(n speaks in w) = P(pi_wn > share | tau)                                                                       (14)

Lags are in microseconds (us), positive to the right, where the left ear hears later; y points down, z ahead.
"""

import math
from dataclasses import dataclass

import pyro
import scipy.stats
import torch
from pyro.distributions import Categorical, Dirichlet, MaskedMixture, Normal, Uniform
from torch import Tensor
from torch.distributions import kl_divergence

SOUND = 343.0  # c, in m/s
RATE, FRAME, HOP = (
    16000,
    1024,
    320,
)  # samples: in a second, in a frame (64 ms), from frame to frame (20 ms)
EARS = torch.tensor([[-0.09, 0.0, 0.0], [0.09, 0.0, 0.0]], dtype=torch.float64)  # left, right; in m
ROOM = torch.tensor([[-2.5, -1.2, -1.0], [2.5, 1.4, 4.5]], dtype=torch.float64)  # two corners, in m
LONGEST = 560.0  # us: 525 is the longest lag of a direct sound
SPREAD = (8.0, 80.0)  # bounds of sigma, in us
CONCENTRATION, SHARE = 0.5, 0.1  # a of (4), and the share of (14)


def directions(positions: Tensor) -> Tensor:
    """g of (2), in us: (..., 3) to (...)."""
    left, right = (positions[..., None, :] - EARS.to(positions)).norm(dim=-1).unbind(-1)
    return 1e6 * (left - right) / SOUND


def images(position: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Mirror images of (3,) in up to `order` walls: (image, 3), and how many walls each has met, (image,)."""
    axis = torch.arange(-order, order + 1)
    j = torch.cartesian_prod(axis, axis, axis)
    j = j[j.abs().sum(-1) <= order]
    low, size = ROOM[0], ROOM[1] - ROOM[0]
    inside = torch.where(j % 2 == 0, position - low, size - (position - low))
    return low + j * size + inside, j.abs().sum(-1)


def propagate(source: Tensor, position: Tensor, reflection: float, order: int = 3) -> Tensor:
    """(1) of one person, without noise: (sample,) to (ear, sample). Delays of any fraction of a sample."""
    places, walls = images(position, order if reflection else 0)
    distance = (places[:, None] - EARS).norm(dim=-1)  # (image, ear)
    samples = (
        len(source) + RATE // 8
    )  # silence at the end, for delays turn round the end into the start
    f = torch.fft.rfftfreq(samples, 1 / RATE)
    heard = torch.zeros(2, len(f), dtype=torch.complex128)
    for d, met in zip(distance, walls.tolist(), strict=True):
        heard += reflection**met / d[:, None] * torch.exp(-2j * math.pi * f * d[:, None] / SOUND)
    return torch.fft.irfft(torch.fft.rfft(source, samples) * heard, samples)[:, : len(source)]


def babble(seconds: int, rng: torch.Generator) -> Tensor:
    """A voice, as far as ears care: noise from 100 Hz up, falling from 500 Hz on, in four syllables a second."""
    t = torch.arange(seconds * RATE) / RATE
    spectrum = torch.fft.rfft(torch.randn(len(t), generator=rng))
    f = torch.fft.rfftfreq(len(t), 1 / RATE)
    colour = (f > 100) / (1 + f / 500)
    phase = 2 * math.pi * torch.rand(2, generator=rng)
    syllables = torch.sin(2 * math.pi * 4 * t + 2 * torch.sin(t + phase[0]) + phase[1]).clamp_min(0)
    return torch.fft.irfft(spectrum * colour, len(t)) * syllables


@dataclass(frozen=True)
class Scene:
    """What the robot gets, and the truth."""

    positions: Tensor  # (person, 3): where people are, in m
    seen: Tensor  # (person, 3): where the camera sees them
    speaking: Tensor  # (second, person), bool
    sound: Tensor  # (ear, sample)


def draw(
    rng: torch.Generator, positions: Tensor, speaking: Tensor, snr: float, reflection: float
) -> Scene:
    """People talk in the seconds that `speaking` says; `snr` in dB over all; `reflection` is b, 0 for no walls.

    The camera errs by 3 cm across and 10 cm in depth.
    """
    on = speaking.double().repeat_interleave(RATE, 0).mT  # (person, sample)
    sound = torch.zeros(2, len(speaking) * RATE)
    for place, turn in zip(positions, on, strict=True):
        sound = sound + propagate(babble(len(speaking), rng) * turn, place, reflection)
    level = sound.square().mean().sqrt() * 10 ** (-snr / 20)
    noise = level * torch.randn(sound.shape, generator=rng)
    error = torch.tensor([0.03, 0.03, 0.10]) * torch.randn(positions.shape, generator=rng)
    return Scene(positions, positions + error, speaking, sound + noise)


def lags(sound: Tensor) -> Tensor:
    """(3): (ear, sample) to (window, frame), in us. Windows of a second, 50 frames each; lags on a grid of 5 us."""
    windows = sound.shape[-1] // RATE
    padded = torch.nn.functional.pad(sound, (0, FRAME))
    frames = padded.unfold(-1, FRAME, HOP)[:, : windows * RATE // HOP]
    left, right = torch.fft.rfft(frames * torch.hann_window(FRAME), dim=-1)
    C = left * right.conj()
    f, tau = torch.fft.rfftfreq(FRAME, 1 / RATE), torch.arange(5 - LONGEST, LONGEST, 5)
    agreement = (C / C.abs().clamp_min(1e-30)) @ torch.exp(2e-6j * math.pi * f[:, None] * tau)
    return tau[agreement.real.argmax(-1)].reshape(windows, -1)


@dataclass(frozen=True)
class Shares:
    """EM's state: pi, (window, person + clutter), and sigma in us."""

    pi: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Belief:
    """VEM's state: c of (12), (window, person + clutter), and sigma in us."""

    concentration: Tensor
    sigma: Tensor


def model(tau: Tensor, g: Tensor, sigma: Tensor) -> None:
    """(4) to (6) as a Pyro program: lags (window, frame), directions (person,)."""
    people = len(g)
    with pyro.plate("window", len(tau), dim=-2):
        pi = pyro.sample("pi", Dirichlet(torch.full((people + 1,), CONCENTRATION)))
        with pyro.plate("frame", tau.shape[1], dim=-1):
            z = pyro.sample("z", Categorical(pi), infer={"enumerate": "parallel"})
            person = Normal(g[z.clamp_max(people - 1)], sigma)
            heard = MaskedMixture(z == people, person, Uniform(-LONGEST, LONGEST))
            pyro.sample("tau", heard, obs=tau)


def log_likelihood(tau: Tensor, g: Tensor, sigma: Tensor) -> Tensor:
    """log p(tau_wk | n) of (6): (window, frame, person + clutter)."""
    people = Normal(g, sigma).log_prob(tau[..., None])
    clutter = torch.full_like(tau[..., None], -math.log(2 * LONGEST))
    return torch.cat([people, clutter], -1)


def spread(tau: Tensor, g: Tensor, r: Tensor) -> Tensor:
    """sigma of (9). Within its bounds the best value is the one nearest to the free one."""
    people = r[..., :-1]
    square = (people * (tau[..., None] - g) ** 2).sum()
    return (square / people.sum().clamp_min(1e-12)).sqrt().clamp(*SPREAD)


def em_step(tau: Tensor, g: Tensor, state: Shares) -> tuple[Shares, Tensor]:
    """(8), (9); log p(tau; pi, sigma) before them."""
    terms = log_likelihood(tau, g, state.sigma) + state.pi.log()[:, None]
    r = terms.softmax(-1)
    return Shares(r.mean(1), spread(tau, g, r)), terms.logsumexp(-1).sum()


def vem_step(tau: Tensor, g: Tensor, state: Belief) -> tuple[Belief, Tensor]:
    """(11), then (12) and sigma; F of (13) after (11)."""
    c = state.concentration
    log_pi = c.digamma() - c.sum(-1, keepdim=True).digamma()
    terms = log_likelihood(tau, g, state.sigma) + log_pi[:, None]
    r = terms.softmax(-1)
    prior = Dirichlet(torch.full_like(c, CONCENTRATION))
    F = terms.logsumexp(-1).sum() - kl_divergence(Dirichlet(c), prior).sum()
    return Belief(CONCENTRATION + r.sum(1), spread(tau, g, r)), F


def fit_em(tau: Tensor, g: Tensor, iterations: int = 50) -> tuple[Shares, Tensor]:
    """EM from even weights; log p(tau), (iteration,)."""
    state, rise = (
        Shares(torch.full((len(tau), len(g) + 1), 1 / (len(g) + 1)), torch.tensor(40.0)),
        [],
    )
    for _ in range(iterations):
        state, log_p = em_step(tau, g, state)
        rise.append(log_p)
    return state, torch.stack(rise)


def fit_vem(tau: Tensor, g: Tensor, iterations: int = 50) -> tuple[Belief, Tensor]:
    """VEM from an even belief; F, (iteration,)."""
    state, rise = Belief(torch.ones(len(tau), len(g) + 1), torch.tensor(40.0)), []
    for _ in range(iterations):
        state, F = vem_step(tau, g, state)
        rise.append(F)
    return state, torch.stack(rise)


def speaks(state: Belief, share: float = SHARE) -> Tensor:
    """(14): (window, person), a probability."""
    c = state.concentration
    others = c.sum(-1, keepdim=True) - c
    return torch.as_tensor(scipy.stats.beta.sf(share, c, others))[:, :-1]
