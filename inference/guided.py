"""Langevin EM that starts from a guide, and ends between the guide's filter and its own. (31), S20

`ldem`'s chains come from the encoders, which are lost in noise, and take long to arrive. Here they start at the codes
of q(z_1:N | x_1:N) (`models/guide.py`), which has heard the frames around: two chains and two thirds of the iterations
do. Nothing else changes in the E- and M-steps.

In the end two Wiener filters are at hand: the model's (S20), by the noise that was fitted here, and the guide's, by the
noise that it hears. They err apart: W H is found by frames that are taken for independent, and follows this recording;
the guide knows what speech in noise is like, and has never heard this noise. Speech is between them, in decibels:

    s_n = G_guide^v G_model^(1-v) x_n,   v = `filter_share` (1 - e) + `clear_share` e

(a logarithmic opinion pool of the two [Genest and Zidek 1986]). e is the share of the recording's power that the guide
takes for speech: the less there is, the worse W H is told from speech, and the more the guide counts.

The posterior of speech is pooled draw by draw: what the model calls the variance of x, V = V_s + V_b, stays, and
G^v_guide G^(1-v) of it, in place of G = V_s / V, is speech's. So its bands have the model's doubt of the codes, and
that of a Wiener filter; not the guide's, nor that of the noise. It is no posterior of one program: how often its bands
hold the truth is a measurement (docs/POSTERIOR.md, "Uncertainty").

When to use it: the default of `enhance` where the prior has a guide. Where there is none `otherwise` runs: `ldem`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

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
        filter_share: v of a recording without speech, from 0, the model's filter, to 1, the guide's.
        clear_share: v of one without noise.
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
    filter_share: float = 1.0
    clear_share: float = 0.7
    otherwise: LDEM = field(default_factory=LDEM)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("filter_share", "clear_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise InputError(
                    f"{name} is {share}: give 0, the model's filter, to 1, the guide's"
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
        if guess is None or self.filter_share == self.clear_share == 0:
            return found
        least = torch.finfo(x.real.dtype).tiny
        model = found.speech.abs() / observation.power.sqrt().clamp_min(least)
        guide = guessed_gain(guess, observation.prior, observation.v)
        share = self.share(guide, observation.power)
        gain = guide.pow(share) * model.pow(1 - share)
        posterior = found.posterior and pooled(found.posterior, guide, share)
        return replace(found, speech=gain * x, posterior=posterior)

    def share(self, guide: Power, power: Power) -> Float[Tensor, "*utterance 1 1"]:
        """v, by the guide's gain and |x|^2; padding, which is 0 there, has no say."""
        speech = (guide.square() * power).sum((-2, -1), keepdim=True)
        noise = ((1 - guide).square() * power).sum((-2, -1), keepdim=True)
        e = speech / (speech + noise).clamp_min(torch.finfo(power.dtype).tiny)
        return self.filter_share * (1 - e) + self.clear_share * e


def pooled(
    posterior: SpeechPosterior, guide: Power, share: Float[Tensor, "*utterance 1 1"]
) -> SpeechPosterior:
    """Every draw's gain G becomes `guide`^share G^(1 - share), of the same V = V_s + V_b."""
    V = posterior.speech_variance + posterior.noise_variance
    gain = guide.pow(share) * (posterior.speech_variance / V).pow(1 - share)
    return replace(posterior, speech_variance=gain * V, noise_variance=(1 - gain) * V)
