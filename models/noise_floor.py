"""The noise that is always there, from the quiet frames of every frequency [Martin 2001]: what guides hear besides x.

Of stationary Gaussian noise |x|^2 is exponential, and the quantile below which a share q of the frames lies is
-log(1 - q) times its variance. `steady_floor` sorts all frames; `follow_floor` knows the past alone, and moves the
logarithm of its quantile up by `RISE` where |x|^2 lies above and down by `FALL` where below. It rests where
(1 - q) RISE = q FALL.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.typing import FrameMask

SHARE = 0.2
"""q."""
RISE, FALL = 0.05, 0.2
"""Nats a frame."""
LOG_QUANTILE = math.log(-math.log(1 - SHARE))
"""Of an exponential with mean 1."""


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
