"""Audio-visual events by EM: one mixture in one space, in which vision teaches hearing.

After X. Alameda-Pineda, V. Khalidov, R. Horaud, F. Forbes, "Finding audio-visual events in informal social gatherings",
ICMI 2011. The paper's text was not at hand: all is derived here from the model statement, with numbers of our own. Our
choices: both senses share a person's mean, but each has its own spread and weights; spreads have physical bounds.

The story. A robot's head has two cameras and two microphones. People stand in front of it, and some of them talk. The
cameras give points, as pixels (u, v) and a disparity d. The microphones give interaural time differences (ITDs): how
much later a sound reaches the left ear than the right. Pixels and microseconds cannot be clustered together. But a
point in space has an ITD, so all that is seen can be moved to where things are heard:

    f = (b / d) (u, v, F)                              triangulation: baseline b in m, focal length F in pixels      (1)
    g(f) = (|f - m_left| - |f - m_right|) / c          the ITD of a point f, microphones at m, speed of sound c      (2)

The people are then clusters on one line. For each seen point m = 1..M, with v_m = g(f_m), and each sound k = 1..K:

    c_m ~ Cat(pi),      v_m | c_m = n ~ N(mu_n, sigma_n^2)      v_m | c_m = clutter ~ U(what is in view)             (3)
    z_k ~ Cat(lambda),  a_k | z_k = n ~ N(mu_n, tau^2)          a_k | z_k = clutter ~ U(all ITDs there are)          (4)

Person n is an audio-visual event: one mu_n, seen with weight pi_n and heard with weight lambda_n. Clutter (furniture,
echoes) is nobody's. theta = (mu, sigma, pi, tau, lambda) is sought. With any distributions alpha_m of c_m and
beta_k of z_k, Jensen's inequality gives the bound

    log p(v, a; theta) >= F(alpha, beta, theta) = sum_mn alpha_mn log [pi_n N(v_m; mu_n, sigma_n^2) / alpha_mn]
                                                + sum_kn beta_kn log [lambda_n N(a_k; mu_n, tau^2) / beta_kn]        (5)

(for n = clutter the density is one over the width of its interval). F grows in alpha until alpha is the posterior:

    alpha_mn = pi_n N(v_m; mu_n, sigma_n^2) / sum_j pi_j N(v_m; mu_j, sigma_j^2), and beta_kn likewise               (6)

and there F equals the log-likelihood. Vision comes first: EM on (3) alone alternates (6) with

    pi_n = mean_m alpha_mn     mu_n = sum_m alpha_mn v_m / sum_m alpha_mn
    sigma_n^2 = sum_m alpha_mn (v_m - mu_n)^2 / sum_m alpha_mn                                                       (7)

Its number of people has the least  BIC(N) = -2 log p(v) + 3 N log M  (a mean, a spread, a weight for each person).  (8)

Then vision supervises audio. Points are many and sharp, sounds are few and blurred: they should not move points from
person to person. So alpha stays as vision left it, and EM climbs F in beta and theta. That is lawful, as (5) holds for
every alpha: F never falls, and lies below log p(v, a; theta) by exactly the KL divergence of alpha from its posterior.
Setting dF / dmu_n to zero weighs both senses by their precisions:

    mu_n = (sum_m alpha_mn v_m / sigma_n^2 + sum_k beta_kn a_k / tau^2)
         / (sum_m alpha_mn / sigma_n^2 + sum_k beta_kn / tau^2)                                                      (9)
    tau^2 = sum_k,n beta_kn (a_k - mu_n)^2 / sum_k,n beta_kn, over people n;  lambda_n = mean_k beta_kn             (10)

(9) needs the spreads and the spreads need (9): each is maximised with the other held, so F still never falls. In
sigma^2 and in tau^2, F rises up to (7), (10) and falls beyond, so the best value within bounds is the nearest one.

Times are in microseconds (us). Tensors may have a leading axis, one for the starts of EM. Clutter is the last class.
"""

import math
from dataclasses import dataclass, replace

import pyro
import torch
from pyro.distributions import Categorical, MaskedMixture, Normal, Uniform
from torch import Tensor

SOUND = 343e-6  # c: metres in a microsecond
EARS = 0.18  # metres between the microphones; ears and cameras lie on the x axis; z looks forward
BASELINE, FOCAL = 0.20, 600.0  # b of (1) in m, F in pixels
LONGEST = EARS / SOUND  # no ITD is longer: 525 us
IN_VIEW = [-265.0, 265.0]  # where clutter is seen, in us: what the cameras see lies between these
HEARD = [-550.0, 550.0]  # where clutter is heard, in us: every ITD, and a margin for errors
SEEN_SPREAD, HEARD_SPREAD = (6.0, 35.0), (15.0, 60.0)  # bounds of sigma_n and tau, in us
ITERATIONS = 50


def itd(points: Tensor) -> Tensor:
    """g(f) of (2), in us: (..., 3) to (...). Positive to the right, where the right ear is nearer."""
    ear = points.new_tensor([EARS / 2, 0.0, 0.0])
    return ((points + ear).norm(dim=-1) - (points - ear).norm(dim=-1)) / SOUND


def project(points: Tensor) -> Tensor:
    """(..., 3) in m to (u, v, d) in pixels: where the point is in a camera between both eyes, and its disparity."""
    x, y, z = points.unbind(-1)
    return torch.stack([FOCAL * x / z, FOCAL * y / z, FOCAL * BASELINE / z], -1)


def triangulate(pixels: Tensor) -> Tensor:
    """(1): the inverse of `project`."""
    u, v, d = pixels.unbind(-1)
    return (BASELINE / d)[..., None] * torch.stack([u, v, torch.full_like(u, FOCAL)], -1)


@dataclass(frozen=True)
class Window:
    """A window of time in both senses, and its truth. Clutter, as an owner or a source, comes after the last person."""

    positions: Tensor  # (person, 3), in m
    speaking: Tensor  # (person,), bool
    pixels: Tensor  # (point, 3): u, v and d of what is seen
    owner: Tensor  # (point,): whose point it is
    sounds: Tensor  # (sound,): ITDs in us
    source: Tensor  # (sound,): whose sound it is


def place(rng: torch.Generator, people: int = 3, apart: float = 65.0) -> Tensor:
    """People in view, 1.2 to 3 m away, whose ITDs are `apart` us or more: (person, 3), in m."""
    while True:
        azimuth, distance, height = torch.rand(3, people, generator=rng)
        azimuth, distance = 0.84 * azimuth - 0.42, 1.2 + 1.8 * distance
        x, z = distance * azimuth.sin(), distance * azimuth.cos()
        positions = torch.stack([x, 0.4 * height - 0.2, z], -1)
        if (itd(positions).sort().values.diff() > apart).all():
            return positions


def draw(
    rng: torch.Generator, positions: Tensor, speaking: Tensor, clutter: float = 0.25
) -> Window:
    """40 points of each head, 6 cm wide, with pixels that err by 0.5; 60 sounds, ITDs that err by 28 us.

    `clutter` is its share of both. Seen, it is anywhere in the picture and 1 to 5 m away; heard, it has any ITD.
    """
    people, points, sounds = len(positions), 40, 60
    n_clutter = round(people * points * clutter / (1 - clutter))
    heads = positions[:, None] + 0.06 * torch.randn(people, points, 3, generator=rng)
    corner, size = torch.tensor([[-320.0, -240, 24], [640, 480, 96]])  # the picture; 1 to 5 m
    furniture = corner + size * torch.rand(n_clutter, 3, generator=rng)
    pixels = torch.cat([project(heads).reshape(-1, 3), furniture])
    pixels = pixels + 0.5 * torch.randn(pixels.shape, generator=rng)
    owner = (torch.arange(len(pixels)) // points).clamp(max=people)

    shares = [*((1 - clutter) * speaking / speaking.sum().clamp_min(1)), clutter]
    source = torch.multinomial(torch.tensor(shares), sounds, replacement=True, generator=rng)
    echo = LONGEST * (2 * torch.rand(sounds, generator=rng) - 1)
    voice = torch.cat([itd(positions), torch.zeros(1)])[source]
    heard = torch.where(source == people, echo, voice + 28 * torch.randn(sounds, generator=rng))
    return Window(positions, speaking, pixels, owner, heard, source)


@dataclass(frozen=True)
class Events:
    """theta: mu and sigma (*start, person), pi and lam (*start, person + clutter), tau (*start,); times in us."""

    mu: Tensor
    sigma: Tensor
    pi: Tensor
    tau: Tensor
    lam: Tensor


def model(v: Tensor, a: Tensor, events: Events) -> None:
    """(3) and (4) as a Pyro program."""
    clutter = len(events.mu)
    mu = torch.cat([events.mu, events.mu.new_zeros(1)])  # clutter's entries are never used
    sigma = torch.cat([events.sigma, events.sigma.new_ones(1)])
    every = {"enumerate": "parallel"}
    with pyro.plate("point", len(v)):
        c = pyro.sample("c", Categorical(events.pi), infer=every)
        seen = MaskedMixture(c == clutter, Normal(mu[c], sigma[c]), Uniform(*IN_VIEW))
        pyro.sample("v", seen, obs=v)
    with pyro.plate("sound", len(a)):
        z = pyro.sample("z", Categorical(events.lam), infer=every)
        heard = MaskedMixture(z == clutter, Normal(mu[z], events.tau), Uniform(*HEARD))
        pyro.sample("a", heard, obs=a)


def log_joint(x: Tensor, pi: Tensor, mu: Tensor, spread: Tensor, span: list[float]) -> Tensor:
    """log of weight times density of each class, as in (5): (*start, x, person + clutter)."""
    z = (x[:, None] - mu[..., None, :]) / spread[..., None, :]
    person = -0.5 * z**2 - (math.sqrt(2 * math.pi) * spread).log()[..., None, :]
    clutter = z.new_full((*z.shape[:-1], 1), -math.log(span[1] - span[0]))
    return torch.cat([person, clutter], -1) + pi.log()[..., None, :]


def see(v: Tensor, events: Events) -> Tensor:
    """log pi_n N(v_m; mu_n, sigma_n^2): its softmax is alpha of (6), its logsumexp log p(v_m)."""
    return log_joint(v, events.pi, events.mu, events.sigma, IN_VIEW)


def hear(a: Tensor, events: Events) -> Tensor:
    """log lambda_n N(a_k; mu_n, tau^2): its softmax is beta of (6), its logsumexp log p(a_k)."""
    tau = events.tau[..., None].expand_as(events.mu)
    return log_joint(a, events.lam, events.mu, tau, HEARD)


def moments(weight: Tensor, x: Tensor, mu: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mass of each person, and its sum of x, or of (x - mu)^2; (*start, person) both."""
    people = weight[..., :-1]
    value = x[:, None] if mu is None else (x[:, None] - mu[..., None, :]) ** 2
    return people.sum(-2) + 1e-12, (people * value).sum(-2)


def vision_step(v: Tensor, events: Events) -> tuple[Events, Tensor]:
    """One E-step (6) and M-step (7) on what is seen; log p(v) before it, (*start,)."""
    terms = see(v, events)
    alpha = terms.softmax(-1)
    mass, total = moments(alpha, v)
    mu = total / mass
    sigma = (moments(alpha, v, mu)[1] / mass).sqrt().clamp(*SEEN_SPREAD)
    return replace(events, mu=mu, sigma=sigma, pi=alpha.mean(-2)), terms.logsumexp(-1).sum(-1)


def audio_visual_step(v: Tensor, a: Tensor, alpha: Tensor, events: Events) -> tuple[Events, Tensor]:
    """beta by (6), then (9), (7) for sigma, (10), alpha held; F of (5) before it. With no points v: hearing alone."""
    terms_seen, terms_heard = see(v, events), hear(a, events)
    beta = terms_heard.softmax(-1)
    of_seen = torch.where(alpha > 0, alpha * (terms_seen - alpha.log()), 0).sum((-2, -1))
    bound = of_seen + terms_heard.logsumexp(-1).sum(-1)

    (mass_v, total_v), (mass_a, total_a) = moments(alpha, v), moments(beta, a)
    sharp_v, sharp_a = events.sigma**-2, events.tau[..., None] ** -2
    mu = (total_v * sharp_v + total_a * sharp_a) / (mass_v * sharp_v + mass_a * sharp_a)
    sigma = (moments(alpha, v, mu)[1] / mass_v).sqrt().clamp(*SEEN_SPREAD)
    tau = (moments(beta, a, mu)[1].sum(-1) / mass_a.sum(-1)).sqrt().clamp(*HEARD_SPREAD)
    return Events(mu, sigma, alpha.sum(-2) / max(len(v), 1), tau, beta.mean(-2)), bound


def starts(x: Tensor, people: int, count: int, rng: torch.Generator) -> Events:
    """`count` starts of EM: means at random points of x, spreads within their bounds, weights even."""
    mu = torch.stack([x[torch.randperm(len(x), generator=rng)[:people]] for _ in range(count)])
    even = x.new_full((count, people + 1), 1 / (people + 1))
    return Events(mu, torch.full_like(mu, 20.0), even, x.new_full((count,), 30.0), even)


def fit_vision(v: Tensor, people: int, *, rng: torch.Generator) -> tuple[Events, Tensor]:
    """EM on (3) from 12 starts: the best end, and log p(v), (iteration, start)."""
    events, rise = starts(v, people, 12, rng), []
    for _ in range(ITERATIONS):
        events, log_likelihood = vision_step(v, events)
        rise.append(log_likelihood)
    top = rise[-1].argmax()
    return Events(*(value[top] for value in vars(events).values())), torch.stack(rise)


def count_people(v: Tensor, *, rng: torch.Generator, most: int = 6) -> tuple[Events, list[float]]:
    """As many people as BIC (8) says, fitted, and BIC of 0, ..., `most` people."""
    fits = [fit_vision(v, n, rng=rng) for n in range(most + 1)]
    bic = [-2 * up[-1].max().item() + 3 * n * math.log(len(v)) for n, (_, up) in enumerate(fits)]
    return fits[bic.index(min(bic))][0], bic


def fit_audio_visual(v: Tensor, a: Tensor, seen: Events) -> tuple[Events, Tensor, Tensor]:
    """EM on (5) from what vision found: events, alpha as it is held, and F, (iteration,)."""
    alpha, events, rise = see(v, seen).softmax(-1), seen, []
    for _ in range(ITERATIONS):
        events, bound = audio_visual_step(v, a, alpha, events)
        rise.append(bound)
    return events, alpha, torch.stack(rise)


def speaks(events: Events) -> Tensor:
    """Who owns a tenth of the sounds or more: (*start, person), bool."""
    return events.lam[..., :-1] > 0.1
