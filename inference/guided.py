"""Langevin EM that a guide keeps an eye on: the chains sample between its q(z | x_1:N) and the model's p(z | x). (31)

The model takes frames for independent, and hundreds of coefficients of a frame too, so that its posterior is far too
sure: it explains what noise is left over as speech. The guide (`models/guide.py`) has heard the frames around, and has
learned from draws what comes of that, but knows this recording's noise less well. Between both lies

    log f(z_n) = (1 - w) log p(x_n, z_n) + w log q(z_n),   q(z_n) = sum_k r_nk q(z_n | alpha_n = k)

the geometric mean of the two (`Bridge`), with `guide_share` w: 0 is the posterior of `ldem`, 1 the guide alone. (A
logarithmic opinion pool [Genest and Zidek 1986]; the likelihood to a power below one is a power posterior [Grünwald
2012].) r is the model's at the draws, W H, g and a are fitted as ever. In the end both have a Wiener filter: the
model's (S20), by the noise that was fitted here, and the guide's, by the noise that it hears. Speech is between them
too, in decibels:

    s_n = G_guide^v G_model^(1-v) x_n,   with `filter_share` v

Chains that start at the guide's codes have arrived: two chains and two thirds of the iterations do. When to use it: the
default of `enhance` where the prior has a guide. Where there is none `otherwise` runs: `ldem`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from pyro_avse.inference.bridge import Bridge
from pyro_avse.inference.em import Observation
from pyro_avse.inference.guess import guessed_gain
from pyro_avse.inference.ldem import LDEM
from pyro_avse.inference.monte_carlo import MCEMState
from pyro_avse.inference.run import unchecked
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.typing import InputError, Separation, Target


@dataclass(frozen=True)
class Guided(LDEM):
    """Settings of Langevin EM under a guide; how the defaults were found: docs/RESULTS.md, "Guides".

    Attributes:
        guide_share, filter_share: w and v, from 0 to 1.
        iterations, first_warmup, warmup, draws, final_warmup, final_draws, chains: as in `LDEM`, fewer.
        otherwise: what runs where there is no guide.

    Raises:
        InputError: another share; a `total_variation`, under which a guide of frames has no place.
    """

    name: ClassVar[str] = "guided"
    iterations: int = 4
    warmup: int = 2
    draws: int = 1
    first_warmup: int | None = 4
    final_warmup: int = 4
    final_draws: int = 4
    chains: int = 2
    guide_share: float = 0.3
    filter_share: float = 0.4
    otherwise: LDEM = field(default_factory=LDEM)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("guide_share", "filter_share"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise InputError(
                    f"{name} is {share}: give 0, the model alone, to 1, the guide alone"
                )
        if self.total_variation:
            raise InputError(
                f"total_variation is {self.total_variation} with guided, whose frames are events: take ldem"
            )

    def given(self, observation: Observation) -> LDEM:
        """This, or without a guide `otherwise`."""
        return self if observation.guess is not None else self.otherwise

    def sampled(self, observation: Observation, target: CollapsedTarget) -> Target:
        """f, where there is a guide."""
        if observation.guess is None:
            return target
        return Bridge.guided(target, observation.guess, 1 - self.guide_share)

    @unchecked
    def finish(
        self, observation: Observation, state: MCEMState, *, rng: torch.Generator
    ) -> Separation:
        """S20, and what the guide filters."""
        found = super().finish(observation, state, rng=rng)
        guess, x = observation.guess, observation.x
        if guess is None or not self.filter_share:
            return found
        model = found.speech.abs() / observation.power.sqrt().clamp_min(
            torch.finfo(x.real.dtype).tiny
        )
        gain = guessed_gain(guess, observation.prior, observation.v).pow(self.filter_share)
        return replace(found, speech=gain * model.pow(1 - self.filter_share) * x)
