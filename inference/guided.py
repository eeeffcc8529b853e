"""Langevin EM that starts from a guide, and ends between the guide's filter and its own. (31), S20

`ldem`'s chains come from the encoders, which are lost in noise, and take long to arrive. Here they start at the codes
of q(z_1:N | x_1:N) (`models/guide.py`), which has heard the frames around: two chains and two thirds of the iterations
do. Nothing else changes in the E- and M-steps.

In the end two Wiener filters are at hand: the model's (S20), by the noise that was fitted here, and the guide's, by the
noise that it hears. They err apart: W H is found by frames that are taken for independent, and follows this recording;
the guide knows what speech in noise is like, and has never heard this noise. Speech is between them, in decibels:

    s_n = G_guide^v G_model^(1-v) x_n,   with `filter_share` v

(a logarithmic opinion pool of the two [Genest and Zidek 1986]). The posterior of speech is pooled draw by draw: what
the model calls the variance of x, V = V_s + V_b, stays, and G^v_guide G^(1-v) of it, in place of G = V_s / V, is
speech's. So its bands have the model's doubt of the codes, and that of a Wiener filter; not the guide's, nor that of
the noise. It is no posterior of one program: how often its bands hold the truth is a measurement (docs/RESULTS.md,
"Uncertainty"). When to use it: the default of `enhance` where the
prior has a guide. Where there is none `otherwise` runs: `ldem`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from pyro_avse.inference.em import Observation
from pyro_avse.inference.guess import guessed_gain
from pyro_avse.inference.ldem import LDEM
from pyro_avse.inference.monte_carlo import MCEMState
from pyro_avse.inference.run import unchecked
from pyro_avse.typing import InputError, Power, Separation, SpeechPosterior


@dataclass(frozen=True)
class Guided(LDEM):
    """Settings of Langevin EM from a guide; how the defaults were found: docs/RESULTS.md, "Guides".

    Attributes:
        iterations, first_warmup, warmup, draws, final_warmup, final_draws, chains: as in `LDEM`, fewer.
        filter_share: v, from 0, the model's filter, to 1, the guide's.
        otherwise: what runs where there is no guide.

    Raises:
        InputError: another share.
    """

    name: ClassVar[str] = "guided"
    iterations: int = 4
    warmup: int = 2
    draws: int = 1
    first_warmup: int | None = 4
    final_warmup: int = 4
    final_draws: int = 4
    chains: int = 2
    filter_share: float = 0.4
    otherwise: LDEM = field(default_factory=LDEM)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.filter_share <= 1:
            raise InputError(
                f"filter_share is {self.filter_share}: give 0, the model's filter, to 1, the guide's"
            )

    def given(self, observation: Observation) -> LDEM:
        """This, or without a guide `otherwise`."""
        return self if observation.guess is not None else self.otherwise

    @unchecked
    def finish(
        self, observation: Observation, state: MCEMState, *, rng: torch.Generator
    ) -> Separation:
        """S20, and what the guide filters."""
        found = super().finish(observation, state, rng=rng)
        guess, x = observation.guess, observation.x
        if guess is None or not self.filter_share:
            return found
        least = torch.finfo(x.real.dtype).tiny
        model = found.speech.abs() / observation.power.sqrt().clamp_min(least)
        guide = guessed_gain(guess, observation.prior, observation.v)
        gain = guide.pow(self.filter_share) * model.pow(1 - self.filter_share)
        posterior = found.posterior and pooled(found.posterior, guide, self.filter_share)
        return replace(found, speech=gain * x, posterior=posterior)


def pooled(posterior: SpeechPosterior, guide: Power, share: float) -> SpeechPosterior:
    """Every draw's gain G becomes `guide`^share G^(1 - share), of the same V = V_s + V_b."""
    V = posterior.speech_variance + posterior.noise_variance
    gain = guide.pow(share) * (posterior.speech_variance / V).pow(1 - share)
    return replace(posterior, speech_variance=gain * V, noise_variance=(1 - gain) * V)
