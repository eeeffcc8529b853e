"""A sweep over blocks of frames: any kernel on a stretch of a path at a time, the rest held. Metropolis within Gibbs.

Where frames are coupled an utterance is one event: a proposal of all its codes is accepted or rejected as a whole, and
the log ratio grows with the number of frames. On long clips chains stand still. A step here goes through the utterance
in blocks of B frames, from a place drawn anew each time on:

    z_block' ~ inner kernel on p(z_block | all other codes),   for each block in turn

Each leaves the density of the whole path invariant, whatever its length, and so does the sweep. What a block's codes
say of frames far away is in its ratio: the whole path is decoded for it, so a sweep costs the inner kernel's
evaluations N / B times. When to use it: for exact chains under priors that couple frames; short clips can do without.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.settings import check_settings
from pyro_avse.typing import Codes, Info, InputError, Kernel, State, Target


@dataclass(frozen=True)
class Blocks:
    """One step of `inner` on every block of `frames` frames: D13.

    `Info.accepted` says whether more than half of the blocks moved, and `Info.log_ratio` is the logarithm of their mean
    acceptance probability, which an adaptation steers.

    Raises InputError for targets whose frames are independent: there every frame is a block already.
    """

    inner: Kernel = field(default_factory=lambda: MALA(step_size=0.05))
    frames: int = 10

    def __post_init__(self) -> None:
        check_settings(self, frames=1)

    def init(self, target: Target, z: Tensor) -> State:
        """The chain at z (chain, ..., frame, latent)."""
        if target.event_dim != 2:
            raise InputError(
                "blocks are for priors that couple frames: take the inner kernel itself"
            )
        return State(z, target.log_density(z))

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        """One sweep."""
        z, log_density = state.z, state.log_density
        frames, size = z.shape[-2], min(self.frames, z.shape[-2])
        shift = int(torch.randint(size, (), generator=rng, device=z.device))
        bounds = sorted({0, *range(shift, frames, size), frames})
        taken, moved = [], []
        for first, last in pairwise(bounds):
            block = Block(target, z, first, last)
            inner = self.inner.init(block, z[..., first:last, :])
            inner, info = self.inner.step(block, inner, rng=rng)
            z, log_density = block.whole(inner.z), inner.log_density
            ratio = torch.zeros_like(log_density) if info.log_ratio is None else info.log_ratio
            taken.append(ratio.nan_to_num(nan=-torch.inf).clamp_max(0).exp())
            moved.append(info.accepted.to(log_density.dtype))
        log_ratio = torch.stack(taken).mean(0).log()
        return State(z, log_density), Info(torch.stack(moved).mean(0) > 0.5, log_ratio)


@dataclass(frozen=True)
class Block:
    """The density of frames first to last of a path, given the others as they are in z."""

    target: Target
    z: Codes
    first: int
    last: int
    event_dim: int = 2

    def whole(self, block: Codes) -> Codes:
        """The path with these codes in the block's place."""
        return torch.cat([self.z[..., : self.first, :], block, self.z[..., self.last :, :]], -2)

    def log_density(self, block: Codes) -> Tensor:
        """(chain, ...), of the whole path."""
        return self.target.log_density(self.whole(block))

    def value_and_grad(self, block: Codes) -> tuple[Tensor, Codes]:
        """The same, and the gradient in the block's codes."""
        value, gradient = value_and_grad(self.target, self.whole(block))
        return value, gradient[..., self.first : self.last, :]
