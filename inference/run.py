"""Running chains: any kernel on any target. The E-step of Monte Carlo EM, S7.

Chains are a leading axis, not a loop: one call of the target moves every chain, utterance and frame.
"""

from typing import Any

import torch
from torch import Tensor

from pyro_avse.errors import Divergence
from pyro_avse.inference.adaptation import (
    Adaptation,
    acceptance_error,
    step_size_of,
    with_step_size,
)
from pyro_avse.typing import Chains, Kernel, Target


@torch.no_grad()
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
) -> Chains:
    """Draw from `target` by `kernel`, keeping every `thin`-th state after `warmup` steps: the draws of S7's E-step.

    Args:
        z0: where the chains start, (chain, ..., frame, latent).
        draws: how many states to keep for each chain.
        adapt: how to find each frame's step size during the warm-up, after which it is frozen; None: as it is.
        seed: an integer, or a generator on z0's device that goes on from where it stands.

    Raises:
        Divergence: the log density became NaN or infinite, as where z0 lies outside the target's region.
        InputError: the kernel does not suit the target, or has nothing to adapt.

    The global random state is neither read nor changed.
    """
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
    stop_if_diverged(chains)
    return chains


def stop_unless_finite(
    objective: list[Tensor],
    partial: Any,
    scheme: str,
    cure: str = "take a smaller step size, or a kernel that rejects, such as random_walk",
) -> None:
    """Raise Divergence with what was drawn, naming the EM iteration, where the last objective is NaN or infinite."""
    if not objective[-1].isfinite().all():
        where = f"{scheme}: the objective is not finite in iteration {len(objective)}"
        raise Divergence(f"{where}: {cure}", partial)


def stop_if_diverged(chains: Chains) -> None:
    """Raise Divergence where a chain stands at a log density of NaN or plus infinity."""
    log_density = chains.state.log_density
    bad = log_density.isnan() | log_density.isposinf()
    if bad.any():
        raise Divergence(
            f"{type(chains.kernel).__name__}: the log density of {int(bad.sum())} of {bad.numel()} frames is not "
            "finite: start elsewhere, or take a smaller step size",
            chains,
        )
