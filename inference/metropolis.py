"""Accept or reject, per chain and frame: the only place where it happens. [Sadeghi2021] (38)

A proposal is taken with probability min(1, exp(log_ratio)). Where the ratio is NaN, because the proposal left the
region in which the target is defined, it is rejected: a chain never enters such a region.
"""

from dataclasses import fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_avse.typing import Info, State

S = TypeVar("S", bound=State)


def metropolis_accept(
    log_ratio: Float[Tensor, "*batch frame"], *, rng: torch.Generator
) -> Bool[Tensor, "*batch frame"]:
    """True with probability min(1, exp(log_ratio)), each entry on its own draw. [Sadeghi2021] (38)"""
    u = torch.rand(log_ratio.shape, generator=rng, dtype=log_ratio.dtype, device=log_ratio.device)
    return torch.log(u) < log_ratio  # False for NaN


def accept_or_reject(
    state: S, proposal: S, log_ratio: Float[Tensor, "*batch frame"], *, rng: torch.Generator
) -> tuple[S, Info]:
    """`proposal` where it is accepted, `state` elsewhere, in every field of the two.

    Fields are tensors whose leading axes are log_ratio's, (chain, ..., frame); more may follow, as latent does in z.
    """
    accepted = metropolis_accept(log_ratio, rng=rng)
    chosen = {}
    for field in fields(state):
        new, old = getattr(proposal, field.name), getattr(state, field.name)
        mask = accepted.reshape(*accepted.shape, *[1] * (new.dim() - accepted.dim()))
        chosen[field.name] = torch.where(mask, new, old)
    return type(state)(**chosen), Info(accepted, log_ratio)
