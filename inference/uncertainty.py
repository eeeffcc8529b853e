"""How sure a scheme is of speech: draws, mean and variance, intervals, of every coefficient. (31), S17, S20

Given z_n, alpha_n and the noise, speech is Gaussian around the Wiener filter's output. With draws of them, weighted by
w_rk, what is known of speech is a mixture of such Gaussians,

    s_n | x_n ~ sum_rk w_rk N_c(G_rk x_n, G_rk V_b),   G_rk = V_s / (V_s + V_b)                       `SpeechPosterior`

whose mean is the estimate (S20), and whose variance has two parts: what a Wiener filter cannot know even if it is right
about both variances, and how far the draws' filters lie apart,

    Var s = E_rk G_rk V_b + |x|^2 Var_rk G_rk                                                                  `moments`

How sure, frame by frame, is the share of speech's expected power that is known,

    sure_n = sum_f |E s_nf|^2 / sum_f E|s_nf|^2                                                                   `sure`

from 0, the frame's speech may be anything of that power, to 1: all draws are the same sound. 0.9 means that the error
is expected to be 10 dB below speech, 0.5 that it is as loud as what came out. Where speech is silent it is low: of
nothing, little is known, and none of it is heard.

A scheme that puts its estimate elsewhere than at this mean (`guided`) has the same spread around its estimate. None of
this knows what the model gets wrong, and schemes that optimise the noise take it for known: docs/POSTERIOR.md,
"Uncertainty", says how often such intervals hold the truth.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from pyro_avse.inference.gibbs import draw_component
from pyro_avse.inference.wiener import average
from pyro_avse.typing import (
    InputError,
    Power,
    Responsibilities,
    Separation,
    Spectrum,
    SpeechPosterior,
)

BISECTIONS = 30
"""Halvings in which a quantile is found: to 1e-8 of eight standard deviations."""


def posterior_of(separation: Separation) -> SpeechPosterior:
    """A scheme's posterior of speech. Raises InputError where it has none."""
    if separation.posterior is None:
        raise InputError(
            "this scheme ends with one code a frame and has no draws: take guided, ldem, mcem, bnmf, vem or importance"
        )
    return separation.posterior


def gains(posterior: SpeechPosterior) -> Float[Tensor, "component draw *utterance frame freq"]:
    """G_rk."""
    return posterior.speech_variance / (posterior.speech_variance + posterior.noise_variance)


def moments(separation: Separation) -> tuple[Spectrum, Power]:
    """E s, which is the estimate, and Var s. Raises InputError as `posterior_of`."""
    p = posterior_of(separation)
    G = gains(p)
    known = average(G, p.weights)
    inner = average(G * p.noise_variance, p.weights)
    apart = average((G - known).square(), p.weights)
    return separation.speech, inner + p.mixture.abs().square() * apart


def sure(mean: Spectrum, variance: Power) -> Float[Tensor, "*utterance frame"]:
    """sum_f |E s|^2 / sum_f E|s|^2, from 0 to 1; 1 in digital silence."""
    known, unknown = mean.abs().square().sum(-1), variance.sum(-1)
    total = known + unknown
    return torch.where(total > 0, known / total, torch.ones_like(total))


def alpha_band(separation: Separation) -> tuple[Responsibilities, Responsibilities]:
    """Between which nine tenths of the draws' own r(alpha_n | z_r) lie; r(alpha_n) itself where draws have none.

    Raises InputError as `posterior_of`.
    """
    w, r = posterior_of(separation).weights, separation.responsibilities
    if w.shape[1] == 1:  # a factor r(s) beside r(alpha)
        return r, r
    of_draw = w.sum(0)
    own, order = torch.where(of_draw > 0, w / of_draw, 0).sort(1)
    below = of_draw.expand_as(w).gather(1, order).cumsum(1)
    edges = [(below < share * below[:, -1:]).sum(1, keepdim=True) for share in (0.05, 0.95)]
    low, high = (own.gather(1, edge.clamp_max(w.shape[1] - 1))[:, 0] for edge in edges)
    return low, high


def draw_speech(
    separation: Separation, count: int, *, rng: torch.Generator
) -> Complex[Tensor, "draw *utterance frame freq"]:
    """Draws of s around the estimate. Raises InputError as `posterior_of`, and for a count below 1."""
    p = posterior_of(separation)
    if count < 1:
        raise InputError(f"draws is {count}: give 1 or more")
    G = gains(p)
    centre = average(G, p.weights)
    V_b = p.noise_variance.expand_as(G)
    weights = p.weights if len(G) > 1 else p.weights.sum(0, keepdim=True)
    found = []
    for _ in range(count):
        k, r = _chosen(weights, p.of_recording, rng)
        gain, noise = (_taken(t, k, r) for t in (G, V_b))
        xi = torch.randn(p.mixture.shape, generator=rng, dtype=p.mixture.dtype, device=G.device)
        found.append(separation.speech + (gain - centre) * p.mixture + (gain * noise).sqrt() * xi)
    return torch.stack(found)


def _chosen(weights: Tensor, of_recording: bool, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Component and draw of every frame, by their weights; the same draw for all frames if it is the recording's."""
    if of_recording:
        one = weights.sum(0).mean(-1, keepdim=True)  # the same in every frame
        r = draw_component(one.log(), rng=rng).expand(weights.shape[2:])
        of_r = weights.gather(1, r.expand(len(weights), 1, *r.shape))[:, 0]
        return draw_component(of_r.log(), rng=rng), r
    index = draw_component(weights.flatten(0, 1).log(), rng=rng)
    return index // weights.shape[1], index % weights.shape[1]


def _taken(terms: Tensor, k: Tensor, r: Tensor) -> Tensor:
    """terms_rk (component, draw, ..., frame, freq) of the chosen component and draw."""
    index = (k * terms.shape[1] + r)[None, ..., None]
    flat = terms.flatten(0, 1)
    return flat.gather(0, index.expand(1, *flat.shape[1:]))[0]


def cdf(separation: Separation, value: Spectrum) -> Float[Tensor, "part *utterance frame freq"]:
    """P(Re s <= Re value) and P(Im s <= Im value) of every coefficient. Raises InputError as `posterior_of`.

    At the truth they are even between 0 and 1 where the posterior is right.
    """
    p = posterior_of(separation)
    G = gains(p)
    away = G - average(G, p.weights)
    scale = (G * p.noise_variance).sqrt().clamp_min(torch.finfo(G.dtype).tiny)
    found = []
    for part in (torch.real, torch.imag):
        mean = part(separation.speech) + away * part(p.mixture)
        found.append(average(0.5 * (1 + torch.erf((part(value) - mean) / scale)), p.weights))
    return torch.stack(found)


def interval(
    separation: Separation, share: float
) -> tuple[
    Float[Tensor, "part *utterance frame freq"], Float[Tensor, "part *utterance frame freq"]
]:
    """Between which Re s lies with probability `share`, as much of the rest below as above; and Im s.

    Raises InputError as `posterior_of`, and for a share outside of 0 to 1.
    """
    if not 0 < share < 1:
        raise InputError(f"share is {share}: give a number between 0 and 1")
    mean, variance = moments(separation)
    centre, found = torch.stack([mean.real, mean.imag]), []
    for quantile in (0.5 - share / 2, 0.5 + share / 2):
        reach = variance.sqrt() / math.sqrt(min(quantile, 1 - quantile))  # Cantelli's bound
        low, high = centre - reach, centre + reach
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            below = cdf(separation, torch.complex(middle[0], middle[1])) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        found.append(0.5 * (low + high))
    return found[0], found[1]
