"""Compare samplers on this library's posteriors: a kernel of your own, and another library's NUTS.

    python examples/05_compare_samplers.py [--only line two_modes] [--draws 1000]

The library has posteriors whose answers are known (`pyro-avse lab posteriors` runs our kernels on all of
them). Here a new kernel runs on some: HMC whose trajectories have random lengths, so that none comes back to where it
began. `race` finds its step size, draws, and holds mean and spread of every number against the reference. A sampler of
another library needs the density alone: BlackJAX's NUTS takes it from `log_density_in_jax`, `judge` its draws.

The second part needs BlackJAX: `pip install blackjax`.
"""

import argparse
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pyro_avse.inference import HMC
from pyro_avse.inference.gradient import GradientState
from pyro_avse.lab.posteriors import POSTERIORS, Posterior, Verdict, judge, load, race
from pyro_avse.typing import Info, Target


# 1. A kernel: `init`, and a pure `step`.
@dataclass(frozen=True)
class JitteredHMC(HMC):
    """Trajectories of 1 to `steps` leapfrog steps: each length leaves the density as it is, and so do all in turn."""

    steps: int = 12

    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        steps = int(torch.randint(1, self.steps + 1, (), generator=rng, device=rng.device))
        return HMC.step(replace(self, steps=steps), target, state, rng=rng)


# 2. Another library's sampler: the log density of one z (frame, latent), chains by vmap.
def blackjax_nuts(posterior: Posterior, chains: int, draws: int) -> np.ndarray:
    """Draws (chain, draw, frame, latent), after as many steps of warm-up."""
    import blackjax
    import jax

    log_density = posterior.log_density_in_jax()

    def one_chain(z: Any, key: Any) -> Any:
        warm, go = jax.random.split(key)
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, settings), _ = adaptation.run(warm, z, num_steps=draws)
        nuts = blackjax.nuts(log_density, **settings)

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            state, _ = nuts.step(key, state)
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(go, draws))[1]

    z0 = jax.numpy.asarray(posterior.starts(chains, seed=0).numpy())
    return np.asarray(jax.vmap(one_chain)(z0, jax.random.split(jax.random.key(0), chains)))


def show(posterior: Posterior, name: str, verdict: Verdict) -> None:
    print(
        f"{posterior.name:14s} {name:14s} ESS {verdict.ess:6.0f}, R-hat {verdict.r_hat:.3f}, mean off by "
        f"{verdict.mean_off:.1f} and spread by {verdict.stddev_off:.1f} standard errors: {verdict.reason or 'pass'}"
    )


parser = argparse.ArgumentParser()
parser.add_argument("--only", nargs="+", choices=POSTERIORS, default=["line", "two_modes"])
parser.add_argument("--draws", type=int, default=1_000)
args = parser.parse_args()
for posterior in map(load, args.only):
    for kernel in (HMC(steps=12), JitteredHMC()):
        verdict = race(kernel, posterior, draws=args.draws, warmup=args.draws)
        show(posterior, type(kernel).__name__, verdict)
    try:
        drawn = blackjax_nuts(posterior, chains=4, draws=args.draws)
    except ImportError:
        print("without BlackJAX: pip install blackjax")
        continue
    show(posterior, "blackjax nuts", judge(posterior, drawn))
