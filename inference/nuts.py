"""The no-U-turn sampler of Pyro on the posterior of z, with the noise held. [Hoffman and Gelman 2014]; slides S17

MCEM runs first; its W, H, g, c and pi stay, and with them held the posterior of z is `noisy_speech` with s and alpha
integrated out. Pyro's NUTS then draws z, from where MCEM's chains stand. It is Pyro as it comes: the energy
is that of all frames of an utterance together, so one step size serves the loudest frame and the quietest, and one
decision is taken for all. Speech is the posterior mean over its draws (S20).

When to use it: to check the kernels of this library on a second or two of sound, not to enhance. What it costs: up to
2^max_tree_depth - 1 gradients of the whole utterance for every step, 255 at depth 8, each through Pyro's handlers; and
utterances and chains run one after another, where HMC here takes `steps` gradients for all of them at once.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, ClassVar, cast

import numpy as np
import pyro
import torch
from pyro.infer import mcmc
from torch import Tensor

from pyro_avse.inference.mcem import MCEM
from pyro_avse.inference.monte_carlo import chains_disagree, speech_posterior, weighted_draws
from pyro_avse.inference.run import stop_if_diverged, sum_of_frames
from pyro_avse.inference.settings import check_prior, check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.wiener import Draws, Weights, monte_carlo_wiener
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import (
    Chains,
    FrameMask,
    GuideForNoise,
    Kernel,
    Separation,
    Spectrum,
    SpeechPrior,
    State,
)


@dataclass(frozen=True)
class NUTS:
    """Settings of NUTS on `noisy_speech` (S17).

    Attributes:
        mcem: what finds W, H, g and pi; as many chains as it has are drawn.
        warmup: steps in which Pyro finds a step size and a diagonal mass matrix.
        draws: steps kept, for each chain.
        max_tree_depth: a trajectory has at most 2^max_tree_depth - 1 leapfrog steps.
    """

    name: ClassVar[str] = "nuts"
    mcem: MCEM = field(default_factory=MCEM)
    warmup: int = 200
    draws: int = 100
    max_tree_depth: int = 8

    def __post_init__(self) -> None:
        check_settings(self, max_tree_depth=1)

    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        lips_mask: FrameMask | None = None,
        seed: int = 0,
        guide: GuideForNoise | None = None,
    ) -> Separation:
        """Separate x (..., frame, freq); `objective` is log p(x, z) of every draw, the chains' mean, in place of
        iterations.

        `chains.kernel` is these settings, since no kernel of this library drew them. Frames of padding stay where
        MCEM left them.
        """
        check_prior(self, prior)
        held = self.mcem(
            prior, mixture, lips, mask=mask, lips_mask=lips_mask, seed=seed, guide=guide
        )
        draws = held.z[:, None].repeat(1, self.draws, *[1] * (held.z.dim() - 1))
        diverging = torch.zeros(draws.shape[:-1], dtype=torch.bool, device=draws.device)
        for utterance, frames, program in held_programs(mixture, held, mask):
            own, own_diverging = (
                t[(slice(None), slice(None), *utterance)] for t in (draws, diverging)
            )
            for chain, start in enumerate(held.z):
                with pyro_session(seed, chain, *utterance, device=mixture.device):
                    z, when = self._draw(program, start[utterance][frames])
                own[chain][:, frames] = z
                own_diverging[chain, when] = True

        with torch.no_grad():
            return self._separation(mixture, held, draws, diverging, mask)

    def _draw(self, program: Callable[[], None], start: Tensor) -> tuple[Tensor, list[int]]:
        """One chain's draws (draw, frame, latent), and which of them ended a divergent trajectory."""
        divergences: list[int] = []

        def watch(kernel: Any, params: Any, stage: str, step: int) -> None:
            if stage == "Sample":
                divergences[:] = kernel.diagnostics()["divergences"]

        kernel = mcmc.NUTS(program, max_tree_depth=self.max_tree_depth, max_plate_nesting=1)
        run = mcmc.MCMC(
            kernel,
            num_samples=self.draws,
            warmup_steps=self.warmup,
            initial_params={"z": start},
            hook_fn=watch,
            disable_progbar=True,
        )
        with torch.enable_grad():
            run.run()
        return run.get_samples()["z"], divergences

    def _separation(
        self,
        mixture: Spectrum,
        held: Separation,
        draws: Tensor,
        diverging: Tensor,
        mask: FrameMask | None,
    ) -> Separation:
        target = cast(CollapsedTarget, held.target)
        log_density = torch.stack([target.log_density(chain) for chain in draws])
        moved = torch.cat([held.z[:, None], draws], 1).diff(dim=1).ne(0).any(-1)
        state = State(draws[:, -1], log_density[:, -1])
        chains = Chains(
            draws=draws,
            log_density=log_density,
            accepted=moved,
            diverging=diverging,
            acceptance_rate=moved.to(log_density.dtype).mean(1),
            state=state,
            kernel=cast(Kernel, self),
        )
        stop_if_diverged(chains)
        sigma, w = weighted_draws(target, draws.flatten(0, 1))
        return replace(
            held,
            **held_filter(mixture, held, sigma, w),
            responsibilities=w.sum(1),
            objective=sum_of_frames(log_density.mean(0), mask),
            z=state.z,
            chains=chains,
            chains_disagree=chains_disagree(chains),
        )


def held_filter(
    mixture: Spectrum, held: Separation, sigma: Draws, weights: Weights
) -> dict[str, Any]:
    """`speech`, S20, and its `posterior` at draws of z, with the W, H, g and c that MCEM found."""
    g = torch.ones_like(held.activations[..., 0]) if held.gain is None else held.gain
    if held.log_response is not None:
        sigma = sigma * held.log_response.exp()[..., None, :]
    heard = (mixture, sigma, weights, held.dictionary, held.activations, g)
    return {"speech": monte_carlo_wiener(*heard), "posterior": speech_posterior(*heard)}


def held_programs(
    mixture: Spectrum, held: Separation, mask: FrameMask | None
) -> Iterator[tuple[tuple[Any, ...], Any, Callable[[], None]]]:
    """For every utterance its index, its sound frames, and `noisy_speech` at MCEM's W, H, g, c and pi."""
    target = cast(CollapsedTarget, held.target)
    v, g, log_c, pi = target.lips, target.gain, target.log_response, target.mixing_weight
    framewise = pi.dim() == mixture.dim()
    for utterance in product(*map(range, mixture.shape[:-2])):
        frames = slice(None) if mask is None else mask[utterance]
        weight = pi.movedim(0, -1)[utterance]
        weight = weight[frames].mT if framewise else weight
        program: Any = partial(
            noisy_speech,
            cast(SpeechPrior, WithoutIdle(target.prior, weight, framewise)),
            mixture[utterance][frames],
            None if v is None else v[utterance][frames],
            target.noise_variance[utterance][frames],
            mixing_weight=weight,
            gain=None if g is None else g[utterance][frames],
            log_response=None if log_c is None else log_c[utterance],
        )
        yield utterance, frames, program


class WithoutIdle:
    """A prior as a Pyro program may see it: what components of pi_k = 0 decode is 0, since it could overflow.

    `mixing_weight` is pi, (component, ...), or (component, ..., frame) if `framewise`.
    """

    def __init__(self, prior: SpeechPrior, mixing_weight: Tensor, framewise: bool) -> None:
        self.prior = prior
        self.weight = mixing_weight if framewise else mixing_weight[..., None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def log_variance(self, z: Tensor, lips: Tensor | None) -> Tensor:
        """(component | 1, ..., frame, freq)."""
        found = self.prior.log_variance(z, lips)
        if len(found) == 1:  # one decoder for all components
            return found
        K, *shape = self.weight.shape
        weight = self.weight.reshape(K, *[1] * (found.dim() - len(shape) - 2), *shape, 1)
        return torch.where(weight > 0, found, 0)


@contextmanager
def pyro_session(*entropy: int, device: torch.device) -> Iterator[None]:
    """What is global in Pyro and torch, set for a scheme and afterwards as it was.

    Draws are decided by the integers `entropy`; no generator but the CPU's and `device`'s is touched. Pyro's checks
    are off, and its warnings of NaN silent: the schemes look at their objective, and stop with a Divergence.
    """
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        pyro.validation_enabled(False),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Encountered NaN")
        number = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(number)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield
