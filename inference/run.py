"""Running chains: any kernel on any target. The E-step of Monte Carlo EM, S7.

Chains are a leading axis, not a loop: one call of the target moves every chain, utterance and frame.
"""

import torch
from torch import Tensor

from pyro_avse.typing import Chains, Kernel, Target


@torch.no_grad()
def run_chains(
    kernel: Kernel,
    target: Target,
    z0: Tensor,
    *,
    draws: int,
    warmup: int = 0,
    thin: int = 1,
    seed: int | torch.Generator = 0,
) -> Chains:
    """Draw from `target` by `kernel`, keeping every `thin`-th state after `warmup` steps: the draws of S7's E-step.

    Args:
        z0: where the chains start, (chain, ..., frame, latent).
        draws: how many states to keep for each chain.
        seed: an integer, or a generator on z0's device that goes on from where it stands.

    The global random state is neither read nor changed.
    """
    rng = seed
    if not isinstance(rng, torch.Generator):
        rng = torch.Generator(device=z0.device).manual_seed(rng)
    state = kernel.init(target, z0)
    z, log_density = [], []
    accepted = torch.zeros_like(state.log_density)
    steps = warmup + draws * thin
    for step in range(1, steps + 1):
        state, info = kernel.step(target, state, rng=rng)
        accepted += info.accepted
        if step > warmup and (step - warmup) % thin == 0:
            z.append(state.z)
            log_density.append(state.log_density)
    return Chains(
        draws=torch.stack(z, dim=1),
        log_density=torch.stack(log_density, dim=1),
        acceptance_rate=accepted / steps,
        state=state,
    )
