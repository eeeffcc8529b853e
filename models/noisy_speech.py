"""Speech in noise: the test-time joint of any speech prior with NMF noise. [Sadeghi2021] (31); slides S11, S17

Generative story, for each frame n of each utterance:

    alpha_n ~ Cat(pi)                                      (11)   where the prior has more than one component
    z_n | alpha_n ~ N(mu_k(v_n), Sigma_k(v_n))             (10), (8)
    s_n | z_n, alpha_n ~ N_c(0, diag g_n c sigma_k(z_n, v_n))   (1), (7), (9), S17
    x_n | s_n ~ N_c(s_n, diag (W H)_n)                     (28), x = s + b

Where the prior couples frames, z_1:N is drawn at once from p(z_1:N | v), and sigma(z_1:N, v) is of the whole path.

Or, with s integrated out in closed form, x_n | z_n, alpha_n ~ N_c(0, diag(g_n c sigma_k(z_n, v_n) + (W H)_n)).

g_n is how much louder speech is than in training, c_f the microphone's response. They, W and H are given here; what is
assumed of them before the recording is seen is the program `noise_prior` of models/nmf_noise.py. The prior's networks
are frozen here. The fast targets of `inference/target.py` are proved against this program.
"""

from contextlib import ExitStack
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Normal
from torch import Tensor

from pyro_avse.distributions import ComplexNormal, align_components
from pyro_avse.models.markov import utterance_plates
from pyro_avse.models.mixture import select_component
from pyro_avse.typing import (
    FrameMask,
    MixingWeight,
    Power,
    Spectrum,
    SpeechPrior,
    couples_frames,
)


def noisy_speech(
    prior: SpeechPrior,
    mixture: Spectrum | None,
    lips: Tensor | None,
    noise_variance: Power,
    *,
    mixing_weight: MixingWeight | None = None,
    gain: Float[Tensor, "*utterance frame"] | None = None,
    log_response: Float[Tensor, "*utterance freq"] | None = None,
    speech_latent: bool = False,
    mask: FrameMask | None = None,
) -> Spectrum:
    """The joint (31) of x = s + b (S11) as a Pyro program, x observed at `mixture`, or drawn; returns x.

    Args:
        prior: any speech prior.
        mixture: x, (..., frame, freq) complex; one plate for each utterance axis and one for the frames. None: the
            program runs forwards, with as many utterances and frames as the noise has.
        lips: (..., frame, 67, 67), or None where the prior does not need them.
        noise_variance: W H, as `nmf_noise_variance` returns it.
        mixing_weight: pi, (component, ...), or (component, ..., frame); default the prior's own.
        gain: g_n; None is 1.
        log_response: log c_f; None is 0.
        speech_latent: keep s as a sample site; else it is integrated out.
        mask: (..., frame), False where padding adds nothing to the joint.
    """
    frames = noise_variance.shape[:-1] if mixture is None else mixture.shape[:-1]
    if hasattr(prior, "transition"):
        return _noisy_switching(
            prior,
            mixture,
            lips,
            noise_variance,
            mixing_weight,
            gain,
            log_response,
            speech_latent,
            mask,
        )
    if couples_frames(prior):
        return _noisy_utterances(
            prior, mixture, lips, noise_variance, gain, log_response, speech_latent, mask
        )
    pi = prior.mixing_weight if mixing_weight is None else mixing_weight
    pi = pi.reshape(len(pi), *pi.shape[1:], *[1] * (len(frames) + 1 - pi.dim())).movedim(0, -1)
    latent = align_components(prior.latent_prior(lips), 1 + len(frames))

    with ExitStack() as plates:
        for dim, size in enumerate(reversed(frames), start=1):
            name = "frame" if dim == 1 else f"utterance_{dim - 1}"
            plates.enter_context(pyro.plate(name, size, dim=-dim))
        if mask is not None:
            plates.enter_context(poutine.mask(mask=mask))

        if prior.num_components > 1:
            alpha = pyro.sample("alpha", Categorical(pi), infer={"enumerate": "parallel"})  # (11)
            mean, scale = (select_component(p, alpha) for p in (latent.mean, latent.stddev))
        else:
            alpha, mean, scale = None, latent.mean[0], latent.stddev[0]
        z = pyro.sample("z", Normal(mean, scale).to_event(1))  # (10)

        log_variance = prior.log_variance(z, lips)
        if len(log_variance) == 1 or alpha is None:
            log_variance = log_variance[0]
        else:
            log_variance = select_component(log_variance, alpha)
        log_variance = _recorded(log_variance, gain, log_response)
        if speech_latent:
            s = pyro.sample("s", ComplexNormal(0, log_variance).to_event(1))  # (9)
            x = ComplexNormal(s, noise_variance.log())  # (28)
        else:
            x = ComplexNormal(0, torch.log(log_variance.exp() + noise_variance))  # S17
        found: Spectrum = pyro.sample("x", x.to_event(1), obs=mixture)
        return found


def _noisy_utterances(
    prior: Any,
    mixture: Spectrum | None,
    lips: Tensor | None,
    noise_variance: Power,
    gain: Tensor | None,
    log_response: Tensor | None,
    speech_latent: bool,
    mask: FrameMask | None,
) -> Spectrum:
    """The same with utterances for events: one component, and a plate for each utterance axis alone."""
    *utterances, num_frames = noise_variance.shape[:-1]
    prior = prior.within(mask=mask)
    sound = True if mask is None else mask[..., None]

    with utterance_plates(tuple(utterances)):
        z = pyro.sample("z", prior.latent_path((*utterances, num_frames), lips))
        log_variance = _recorded(prior.log_variance(z, lips)[0], gain, log_response)
        if speech_latent:
            s = pyro.sample("s", ComplexNormal(0, log_variance).mask(sound).to_event(2))
            x = ComplexNormal(s, noise_variance.log())  # (28)
        else:
            x = ComplexNormal(0, torch.log(log_variance.exp() + noise_variance))  # S17
        found: Spectrum = pyro.sample("x", x.mask(sound).to_event(2), obs=mixture)
        return found


def _noisy_switching(
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
    """The same frame after frame, alpha_n | alpha_n-1 ~ Cat(A): sites alpha_n, z_n, s_n and x_n, alpha_1:N enumerated.

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
            log_variance = _recorded(log_variance[..., None, :], g, log_response)[..., 0, :]
            sound = True if mask is None else mask[..., n]
            if speech_latent:
                s = pyro.sample(f"s_{n}", ComplexNormal(0, log_variance).to_event(1).mask(sound))
                x = ComplexNormal(s, noise.log())  # (28)
            else:
                x = ComplexNormal(0, torch.log(log_variance.exp() + noise))  # S17
            heard = None if mixture is None else mixture[..., n, :]
            found.append(pyro.sample(f"x_{n}", x.to_event(1).mask(sound), obs=heard))
    return torch.stack(found, -2)


def _recorded(log_variance: Tensor, gain: Tensor | None, log_response: Tensor | None) -> Tensor:
    """log g_n c sigma."""
    if gain is not None:
        log_variance = log_variance + gain.log()[..., None]
    if log_response is not None:
        log_variance = log_variance + log_response[..., None, :]
    return log_variance
