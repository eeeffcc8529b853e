"""The noise that is always there, from the quiet frames of every frequency [Martin 2001], and what a guide hears of x.

Of stationary Gaussian noise |x|^2 is exponential, and the quantile below which a share q of the frames lies is
-log(1 - q) times its variance. `steady_floor` sorts all frames; `follow_floor` knows the past alone, and moves the
logarithm of its quantile up by `RISE` where |x|^2 lies above and down by `FALL` where below. It rests where
(1 - q) RISE = q FALL. `follow_level` is the mean power of all frames so far, of the last minute at most.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.typing import FrameMask, Power

FAINTEST = 1e-6
"""In |STFT|^2 of a recording at the level of training: 60 dB under a quiet vowel."""
CUTOFF, ORDER = 60.0, 4
"""Hz, and order of the front's Butterworth high-pass, which runs forwards and backwards."""
LEAKY, DEEPEST = 80.0, -14.0
"""Hz below which a guide does not listen, and nats of the high-pass at the most."""
SHARE = 0.2
"""q."""
RISE, FALL = 0.05, 0.2
"""Nats a frame."""
LONGEST = 1800
"""Frames that a level remembers."""
LOG_QUANTILE = math.log(-math.log(1 - SHARE))
"""Of an exponential with mean 1."""


def inner(power: Power, mask: FrameMask | None = None) -> Power:
    """With the second frame in the place of the first, and the last but one in that of the last.

    These reach beyond the recording, the last one often with all but a few samples. What hears both ways takes so faint
    a frame for news of all that is before it.
    """
    N = power.shape[-2]
    frame = torch.arange(N, device=power.device).clamp_min(1)
    count = power.new_full(power.shape[:-2], N) if mask is None else mask.sum(-1)
    frame = torch.minimum(frame, (count.long() - 2).clamp_min(0)[..., None])
    return power.take_along_dim(frame[..., None], -2)


def begun(power: Power) -> Power:
    """With the second frame, if there is one, in the place of the first, which reaches beyond the beginning."""
    return torch.cat([power[..., 1:2, :], power[..., 1:, :]], -2) if power.shape[-2] > 1 else power


def log_heard(power: Power) -> Power:
    """log |x|^2 for a guide, which does not listen below `LEAKY`: there it gets what lies above, through the high-pass.

    The front's high-pass takes all of a recording away there, and the window of the STFT leaks some of it back from
    above. Draws of the program have no leak. A guide that met one took all of loud steady noise for speech.
    """
    low = round(LEAKY / 8000 * (power.shape[-1] - 1))
    hertz = torch.linspace(0, 8000, power.shape[-1], device=power.device)[: 2 * low]
    fade = (-2 * (CUTOFF / hertz).pow(2 * ORDER).log1p()).clamp_min(DEEPEST)
    below = power[..., low : 2 * low] * (fade[:low] - fade[low:]).exp()
    return (torch.cat([below, power[..., low:]], -1) + FAINTEST).log()


def steady_floor(
    log_power: Float[Tensor, "*utterance frame freq"], mask: FrameMask | None = None
) -> Float[Tensor, "*utterance 1 freq"]:
    """log of the variance of steady noise; padding has no say."""
    frames = log_power.shape[-2]
    if mask is None:
        rank = 1 + int(SHARE * (frames - 1))
        return log_power.kthvalue(rank, -2, keepdim=True).values - LOG_QUANTILE
    quietest_first = torch.where(mask[..., None], log_power, torch.inf).sort(-2).values
    ranks = (SHARE * (mask.sum(-1) - 1)).long()[..., None, None]
    return quietest_first.take_along_dim(ranks, -2) - LOG_QUANTILE


def follow_floor(
    log_power: Float[Tensor, "*utterance frame freq"], quantile: Float[Tensor, "*utterance freq"]
) -> tuple[Float[Tensor, "*utterance frame freq"], Float[Tensor, "*utterance freq"]]:
    """The same after each frame, from the log quantile before the first; and the log quantile after the last."""
    followed = []
    for frame in log_power.unbind(-2):
        quantile = torch.where(frame > quantile, quantile + RISE, quantile - FALL)
        followed.append(quantile)
    return torch.stack(followed, -2) - LOG_QUANTILE, quantile


def follow_level(
    power: Float[Tensor, "*utterance frame freq"], mean: Tensor | None = None, count: int = 0
) -> tuple[Float[Tensor, "*utterance frame 1"], Tensor]:
    """log of the mean power after each frame, from that of the `count` frames before; and the mean after the last."""
    means = []
    for frame in power.mean(-1, keepdim=True).unbind(-2):
        count += 1
        mean = frame if mean is None else mean + (frame - mean) / min(count, LONGEST)
        means.append(mean)
    found = torch.stack(means, -2)
    return found.clamp_min(FAINTEST).log(), found[..., -1, :]
