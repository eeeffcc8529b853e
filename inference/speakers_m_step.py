"""What Monte Carlo EM of several speakers is given, and its M-step. [Nguyen2021]; slides S18, S19

    Q = sum_rc w_rc log p(x | z_r, c) + log p(W, H, g, c),   V_rc = sum_j g_j c_j sigma_k(z_jr) + W H

is raised in H, W, and g_j and c_j of one speaker after the other, V computed anew between them: to each of these
updates of inference/m_step.py all else in V is speech, or noise, that stays as it is. So Q never falls.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_avse.distributions import squared_magnitude
from pyro_avse.inference.em import Observation
from pyro_avse.inference.guess import first_component
from pyro_avse.inference.m_step import (
    mcem_update_gain,
    mcem_update_H,
    mcem_update_level,
    mcem_update_W,
)
from pyro_avse.inference.monte_carlo import MCState
from pyro_avse.inference.nmf import normalise
from pyro_avse.inference.run import unchecked
from pyro_avse.inference.speakers_target import combine, of_combination
from pyro_avse.inference.wiener import Draws, Weights
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import FrameMask, InputError, Power, Spectrum, SpeechPrior, couples_frames

S = TypeVar("S", bound=MCState)


@dataclass(frozen=True)
class SpeakersObservation(Observation):
    """What is given; lips, v, lips_mask and, but for the noise, the guess have a speaker axis before the frames."""

    speakers: int = 1
    """J."""

    @property
    def each(self) -> Observation:
        """The same for what looks at one speaker: all of them hear the mixture."""
        x, power = (
            t[..., None, :, :].expand(*t.shape[:-2], self.speakers, *t.shape[-2:])
            for t in (self.x, self.power)
        )
        return Observation(
            self.prior, x, power, self.lips, self.v, None, self.lips_mask, guess=self.guess
        )

    @property
    def informed(self) -> FrameMask | None:
        """As of `Observation`, for every speaker."""
        mask = None if self.mask is None else self.mask[..., None, :]
        if self.lips_mask is None or not any(self.prior.components_see):
            return mask
        return self.lips_mask if mask is None else self.lips_mask & mask


@unchecked
def observe_speakers(
    prior: SpeechPrior,
    mixture: Spectrum,
    lips: Tensor | None,
    speakers: int,
    *,
    mask: FrameMask | None = None,
    lips_mask: FrameMask | None = None,
    guide: Any = None,
) -> SpeakersObservation:
    """As `observe`, with lips (..., speaker, frame, 67, 67) and their mask (..., speaker, frame).

    Raises InputError for a prior that couples frames; lips of another number of speakers; none, or frames without,
    where the prior needs them.
    """
    if couples_frames(prior):
        raise InputError("several speakers need a prior whose frames are independent: take vae_mm")
    if lips is not None and lips.shape[mixture.dim() - 2] != speakers:
        raise InputError(
            f"lips of {lips.shape[mixture.dim() - 2]} speakers for {speakers}: give one pair of lips for each"
        )
    if prior.requires_lips and (lips is None or (lips_mask is not None and not lips_mask.all())):
        raise InputError(
            "this model needs the lips of every speaker in every frame: take vae_mm or a_vae, or give them"
        )
    power = squared_magnitude(mixture)
    guess = None
    if guide is not None:
        guess = guide.guess(power, lips, mask=mask, lips_mask=lips_mask, speakers=speakers)
        if len(guess.responsibilities) > prior.num_components:  # a mixture without its lips
            guess = first_component(guess)
    lips = lips if prior.uses_lips else None
    return SpeakersObservation(
        prior,
        mixture,
        power,
        lips,
        prior.visual_features(lips),
        mask,
        None if lips is None else lips_mask,
        guess=guess,
        speakers=speakers,
    )


def speakers_m_step(
    power: Power,
    sigma: Draws,
    weights: Weights,
    state: S,
    noise: NoiseModel,
    exponent: float,
    mask: FrameMask | None,
) -> S:
    """One update each of H, W and, if they are learned, every g_j and c_j. Slides S19

    `sigma` is sigma_k(z_jr) as decoded, (component | 1, draw, ..., speaker, frame, freq), `weights` (combination, draw,
    ..., frame).
    """
    W, H = state.dictionary, state.activations
    total, ones = combine(speech_of_each(sigma, state)), torch.ones_like(power[..., 0])
    H = mcem_update_H(
        power, total, weights, W, H, ones, exponent=exponent, smoothness=noise.smoothness, mask=mask
    )
    W = mcem_update_W(power, total, weights, W, H, ones, exponent=exponent, mask=mask)
    W, H = normalise(W, H)
    state = replace(state, dictionary=W, activations=H)
    if noise.gain == "none":
        return state
    for j in range(sigma.shape[-3]):
        speech = speech_of_each(sigma, state)
        own, g = of_combination(speech, j), state.gain[..., j, :]
        others = combine(speech) - own
        heard, a = own / g[..., None], None if state.response is None else state.response[..., j, :]
        if noise.gain == "frame":
            g = mcem_update_gain(power, heard, weights, W, H, g, exponent=exponent, others=others)
        else:
            g, a = mcem_update_level(power, heard, weights, W, H, g, a, mask=mask, others=others)
        state = replace(state, gain=_put(state.gain, g, j))
        if state.response is not None and a is not None:
            state = replace(state, response=_put(state.response, a, j))
    return state


def speech_of_each(sigma: Draws, state: MCState) -> Draws:
    """E|s_j|^2 = g_j c_j sigma_k(z_jr)."""
    return state.gain[..., None] * state.heard(sigma)


def _put(all_of_them: Tensor, own: Tensor, speaker: int) -> Tensor:
    """With speaker j's replaced."""
    each = list(all_of_them.unbind(-2))
    each[speaker] = own
    return torch.stack(each, -2)
