"""What a guide for noisy speech gives a scheme to start with: codes, level, W and H. (28), (31)

The guide (`models/guide.py`) is q(z, alpha, g, a, noise | x, v), amortised. A scheme takes its means:

    z        a chain at each component's mean in turn, the likeliest component's first
    g        as believed where that is below 1, which is the level of training
    W, H     if the noise model says so (`start="guide"`), Itakura-Saito NMF of the guide's noise variance, the prior
             on H included. Else they start as noise that is always there: what a guide takes for noise that changes
             holds some speech, and EM keeps it

and `encode`, what kernels propose from, becomes q(z_n | alpha_n = k, x, v) itself; importance sampling narrows it.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.inference.nmf import (
    Activations,
    Dictionary,
    is_nmf_update_H,
    is_nmf_update_W,
    normalise,
)
from pyro_avse.models.nmf_noise import VARIANCE_FLOOR, NoiseModel, response_basis
from pyro_avse.typing import FrameMask, Guess, Power, SpeechPrior

UPDATES = 8
"""Of W and of H each."""


def first_component(guess: Guess) -> Guess:
    """What a mixture's guide believes where component 0, which is audio, is all there is."""
    codes = unchecked_normal(guess.codes.mean[:1], guess.codes.stddev[:1])
    r = torch.ones_like(guess.responsibilities[:1])
    return replace(guess, codes=codes, responsibilities=r)


def guessed_level(guess: Guess) -> Float[Tensor, "*utterance 1"]:
    """g as the guide believes it where speech is fainter than in training; else 1.

    (Where it is louder the belief costs more than it brings, and so does that of the microphone's response.)
    """
    return guess.log_gain.mean.clamp_max(0).exp()


def guessed_codes(guess: Guess, chains: int) -> Float[Tensor, "chain *utterance frame latent"]:
    """Where chains start: at the component means of each frame, the likeliest first, in turn."""
    mean, r = guess.codes.mean, guess.responsibilities
    order = r.argsort(0, descending=True)[..., None].expand(mean.shape)
    ranked = mean.gather(0, order)
    return torch.stack([ranked[chain % len(mean)] for chain in range(chains)])


def guessed_factors(
    guess: Guess,
    noise: NoiseModel,
    W: Dictionary,
    H: Activations,
    *,
    mask: FrameMask | None = None,
) -> tuple[Dictionary, Activations]:
    """W and H, from where they would start at random, fitted to the noise that the guide hears."""
    V: Power = guess.log_noise.mean.exp().clamp_min(VARIANCE_FLOOR)
    if mask is not None:
        V = torch.where(mask[..., None], V, V.new_ones(()))
    frames = V if mask is None else torch.where(mask[..., None], V, 0)
    loud = frames.mean(-2)  # of each frequency
    W = W * loud[..., None, :]
    W = W / W.sum(-1, keepdim=True)
    H = torch.ones_like(H) * (V.sum(-1) / H.shape[-1])[..., None]
    for _ in range(UPDATES):
        H = is_nmf_update_H(V, W, H, exponent=0.5, smoothness=noise.smoothness, mask=mask)
        W = is_nmf_update_W(V, W, H, exponent=0.5, mask=mask)
        W, H = normalise(W, H)
    return W, H


def guessed_gain(guess: Guess, prior: SpeechPrior, lips: Tensor | None) -> Power:
    """The guide's own Wiener filter, sum_k r_nk S_k / (S_k + N), at the means of its q; no sampling.

    S_k is speech as component k decodes it, through the level and the response that the guide believes, N its noise.
    """
    return gain_of(guess, own_log_variance(guess, prior, lips))


def gain_of(guess: Guess, log_sigma: Float[Tensor, "component *utterance frame freq"]) -> Power:
    """The same, of what is decoded already (`own_log_variance`)."""
    over = guess.log_noise.mean - _level(guess, log_sigma) - log_sigma  # log of N / S_k
    return (guess.responsibilities[..., None] * torch.sigmoid(-over)).sum(0)


def guessed_filters(
    guess: Guess, prior: SpeechPrior, lips: Tensor | None
) -> Float[Tensor, "*utterance speaker_and_noise frame freq"]:
    """The same where several speak, of every speaker and, last, of noise: S_j and N over their sum, in which each
    speaker has S_j = sum_k r_jk S_jk. They sum to one.
    """
    S = (guess.responsibilities[..., None] * guessed_speech(guess, prior, lips)).sum(0)
    parts = torch.cat([S, guess.log_noise.mean.exp()[..., None, :, :]], -3)
    return parts / parts.sum(-3, keepdim=True)


def guessed_speech(
    guess: Guess, prior: SpeechPrior, lips: Tensor | None
) -> Float[Tensor, "component *utterance frame freq"]:
    """S_k, speech's variance at the means of q."""
    log_sigma = own_log_variance(guess, prior, lips)
    return (log_sigma + _level(guess, log_sigma)).exp()


def own_log_variance(
    guess: Guess, prior: SpeechPrior, lips: Tensor | None
) -> Float[Tensor, "component *utterance frame freq"]:
    """log sigma_k at the mean of q(z_n | alpha_n = k): of decoder k only the code of component k."""
    decoded = prior.log_variance(guess.codes.mean, lips)
    return decoded[0] if len(decoded) == 1 else torch.diagonal(decoded).movedim(-1, 0)


def _level(guess: Guess, like: Tensor) -> Float[Tensor, "*utterance 1 freq"]:
    """log of g times the microphone's response, as believed."""
    basis = response_basis(guess.response.mean.shape[-1], like.shape[-1], like)
    return (guess.log_gain.mean + guess.response.mean @ basis[1:])[..., None, :]


def louder(guess: Guess, power: float) -> Guess:
    """What is believed of speech and noise in a unit in which all powers are `power` times as large."""
    step = math.log(power)
    log_gain, log_noise = (
        unchecked_normal(q.mean + step, q.stddev) for q in (guess.log_gain, guess.log_noise)
    )
    return replace(guess, log_gain=log_gain, log_noise=log_noise)


def lengthened(old: Guess, new: Guess, known: int) -> Guess:
    """What was believed of the last `known` frames, and what is of the new ones; the level is the newest."""

    def joined(before: Independent, after: Independent, frame: int) -> Independent:
        kept = before.mean.shape[frame] - known
        mean, scale = (
            torch.cat([b.narrow(frame, kept, known), a], frame)
            for b, a in ((before.mean, after.mean), (before.stddev, after.stddev))
        )
        return unchecked_normal(mean, scale)

    r = torch.cat(
        [old.responsibilities[:, old.responsibilities.shape[1] - known :], new.responsibilities], 1
    )
    return replace(
        new,
        codes=joined(old.codes, new.codes, 1),
        responsibilities=r,
        log_noise=joined(old.log_noise, new.log_noise, 0),
    )
