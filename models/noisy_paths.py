"""The joint of models/noisy_speech.py where frames are not independent: dynamical priors, and switching ones.

Of a dynamical prior z_1:N is drawn at once, and the utterance is one event. Under a switching prior alpha_n goes from
frame to frame.
"""

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_avse.distributions import ComplexNormal
from pyro_avse.models.markov import utterance_plates
from pyro_avse.typing import FrameMask, MixingWeight, Power, Spectrum


def noisy_utterances(
    prior: Any,
    mixture: Spectrum | None,
    lips: Tensor | None,
    noise_variance: Power,
    gain: Tensor | None,
    log_response: Tensor | None,
    speech_latent: bool,
    mask: FrameMask | None,
) -> Spectrum:
    """`noisy_speech` with utterances for events: one component, and a plate for each utterance axis alone."""
    *utterances, num_frames = noise_variance.shape[:-1]
    prior = prior.within(mask=mask)
    sound = True if mask is None else mask[..., None]

    with utterance_plates(tuple(utterances)):
        z = pyro.sample("z", prior.latent_path((*utterances, num_frames), lips))
        log_variance = recorded(prior.log_variance(z, lips)[0], gain, log_response)
        if speech_latent:
            s = pyro.sample("s", ComplexNormal(0, log_variance).mask(sound).to_event(2))
            x = ComplexNormal(s, noise_variance.log())  # (28)
        else:
            x = ComplexNormal(0, torch.log(log_variance.exp() + noise_variance))  # S17
        found: Spectrum = pyro.sample("x", x.mask(sound).to_event(2), obs=mixture)
        return found


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
    """`noisy_speech` frame after frame, alpha_n | alpha_n-1 ~ Cat(A): sites alpha_n, z_n, s_n and x_n.

    alpha_1:N is enumerated. What `mask` leaves out adds nothing: alpha_n goes on there, unheard.
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
