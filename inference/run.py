"""Running chains: any kernel on any target. The E-step of Monte Carlo EM, S7.

Chains are a leading axis, not a loop: one call of the target moves every chain, utterance and frame.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.errors import Divergence, InputError
from pyro_avse.inference.adaptation import (
    Adaptation,
    acceptance_error,
    step_size_of,
    with_step_size,
)
from pyro_avse.typing import Chains, FrameMask, Kernel, Target

P = ParamSpec("P")
R = TypeVar("R")


def unchecked(function: Callable[P, R]) -> Callable[P, R]:
    """Without gradients, and without Pyro's checks: a Gaussian that looks at its parameters waits for the device."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.no_grad(), pyro.validation_enabled(False):
            return function(*args, **kwargs)

    return call


@unchecked
def run_chains(
    kernel: Kernel,
    target: Target,
    z0: Tensor,
    *,
    draws: int,
    warmup: int = 0,
    adapt: Adaptation | None = None,
    thin: int = 1,
    seed: int | torch.Generator = 0,
    where: str | None = None,
) -> Chains:
    """Draw from `target` by `kernel`, keeping every `thin`-th state after `warmup` steps: the draws of S7's E-step.

    Args:
        z0: where the chains start, (chain, ..., frame, latent).
        draws: how many states to keep for each chain.
        adapt: how to find each frame's step size during the warm-up, after which it is frozen; None: as it is.
        seed: an integer, or a generator on z0's device that goes on from where it stands.
        where: what a Divergence is to say first, as "mcem, iteration 3".

    Raises:
        Divergence: in a draw the log density is NaN or plus infinity, as where z0 lies outside the target's region.
            Minus infinity is not refused: a chain may leave where there is no density.
        InputError: the kernel does not suit the target, or has nothing to adapt; draws or thin below 1, warmup below 0.

    The global random state is neither read nor changed.
    """
    for name, count, least in (("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1)):
        if count < least:
            raise InputError(f"{name} is {count}: give {least} or more")
    rng = seed
    if not isinstance(rng, torch.Generator):
        rng = torch.Generator(device=z0.device).manual_seed(rng)
    state = kernel.init(target, z0)
    tuning = None
    if adapt is not None:
        tuning = adapt.init(step_size_of(kernel, state.log_density))
    z, log_density, accepted, diverging = [], [], [], []
    accepted_in_all = torch.zeros_like(state.log_density)
    steps = warmup + draws * thin
    for step in range(1, steps + 1):
        state, info = kernel.step(target, state, rng=rng)
        accepted_in_all += info.accepted
        if adapt is not None and step <= warmup:
            tuning = adapt.update(tuning, acceptance_error(kernel, info), step)
            kernel = with_step_size(kernel, adapt.step_size(tuning, final=step == warmup))
        if step > warmup and (step - warmup) % thin == 0:
            z.append(state.z)
            log_density.append(state.log_density)
            accepted.append(info.accepted)
            if info.diverging is not None:
                diverging.append(info.diverging)
    chains = Chains(
        draws=torch.stack(z, dim=1),
        log_density=torch.stack(log_density, dim=1),
        accepted=torch.stack(accepted, dim=1),
        diverging=torch.stack(diverging, dim=1) if diverging else None,
        acceptance_rate=accepted_in_all / steps,
        state=state,
        kernel=kernel,
    )
    stop_if_diverged(chains, where)
    return chains


def stop_if_diverged(chains: Chains, where: str | None = None) -> None:
    """Raise Divergence, naming the first such draw, where a log density is NaN or plus infinity."""
    bad = chains.log_density.isnan() | chains.log_density.isposinf()
    if bad.any():
        by_draw = bad.movedim(1, 0).flatten(1)
        first = int(by_draw.any(1).int().argmax()) + 1
        draw = f", first in draw {first} of {len(by_draw)}" if len(by_draw) > 1 else ""
        raise Divergence(
            f"{'' if where is None else where + ': '}{type(chains.kernel).__name__}: the log density of "
            f"{int(by_draw.any(0).sum())} of {by_draw.shape[1]} frames is not finite{draw}: "
            "start elsewhere, or take a smaller step size",
            chains,
        )


def sum_of_frames(
    frames: Float[Tensor, "*utterance frame"], mask: FrameMask | None
) -> Float[Tensor, "*utterance"]:
    """Each utterance's sum over its frames, padding left out."""
    return (frames if mask is None else torch.where(mask, frames, 0)).sum(-1)
