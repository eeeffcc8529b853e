"""Speech in noise where alpha_1:N is a Markov chain: `noisy_speech` frame after frame. [Sadeghi2021b]"""

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_avse.distributions import ComplexNormal
from pyro_avse.models.markov import utterance_plates
from pyro_avse.typing import FrameMask, MixingWeight, Power, Spectrum


def noisy_switching(
    prior: Any,
    mixture: Spectrum | None,
    lips: Tensor | None,
    noise_variance: Power,
    mixing_weight: MixingWeight | None,
    gain: Tensor | None,
    log_response: Tensor | None,
    speech_latent: bool,
    mask: FrameMask | None,
) -> Spectrum:
    """`noisy_speech` of a `Switching` prior: sites alpha_n, z_n, s_n and x_n, frame after frame, alpha_1:N enumerated.

    What `mask` leaves out adds nothing: alpha_n goes on there, unheard.
    """
    utterances = noise_variance.shape[:-2]
    pi = None if mixing_weight is None else mixing_weight.movedim(0, -1)
    found = []
    with utterance_plates(utterances):
        for n, log_variance in prior.frames(
            noise_variance.shape[:-1], prior.visual_features(lips), pi, mask
        ):
            noise = noise_variance[..., n, :]
            g = None if gain is None else gain[..., n : n + 1]
            log_variance = recorded(log_variance[..., None, :], g, log_response)[..., 0, :]
            sound = True if mask is None else mask[..., n]
            if speech_latent:
                s = pyro.sample(f"s_{n}", ComplexNormal(0, log_variance).to_event(1).mask(sound))
                x = ComplexNormal(s, noise.log())  # (28)
            else:
                x = ComplexNormal(0, torch.log(log_variance.exp() + noise))  # S17
            heard = None if mixture is None else mixture[..., n, :]
            found.append(pyro.sample(f"x_{n}", x.to_event(1).mask(sound), obs=heard))
    return torch.stack(found, -2)


def recorded(log_variance: Tensor, gain: Tensor | None, log_response: Tensor | None) -> Tensor:
    """log g_n c sigma."""
    if gain is not None:
        log_variance = log_variance + gain.log()[..., None]
    if log_response is not None:
        log_variance = log_variance + log_response[..., None, :]
    return log_variance
