"""Accept or reject, per chain and frame: the only place where it happens. [Sadeghi2021] (38)

A proposal is taken with probability min(1, exp(log_ratio)). Where the ratio is NaN, because the proposal left the
region in which the target is defined, it is rejected: a chain never enters such a region.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_avse.typing import Info, State


def metropolis_accept(
    log_ratio: Float[Tensor, "*batch frame"], *, rng: torch.Generator
) -> Bool[Tensor, "*batch frame"]:
    """True with probability min(1, exp(log_ratio)), each entry on its own draw. [Sadeghi2021] (38)"""
    u = torch.rand(log_ratio.shape, generator=rng, dtype=log_ratio.dtype, device=log_ratio.device)
    return torch.log(u) < log_ratio  # False for NaN


def accept_or_reject(
    state: State, proposal: State, log_ratio: Float[Tensor, "*batch frame"], *, rng: torch.Generator
) -> tuple[State, Info]:
    """`proposal` where it is accepted, `state` elsewhere."""
    accepted = metropolis_accept(log_ratio, rng=rng)
    z = torch.where(accepted[..., None], proposal.z, state.z)
    log_density = torch.where(accepted, proposal.log_density, state.log_density)
    return State(z, log_density), Info(accepted)
