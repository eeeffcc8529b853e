"""Speech in noise: the test-time joint of any speech prior with NMF noise. [Sadeghi2021] (31); slides S11, S17

Generative story, for each frame n of each utterance:

    alpha_n ~ Cat(pi)                                      (11)   where the prior has more than one component
    z_n | alpha_n ~ N(mu_k(v_n), Sigma_k(v_n))             (10), (8)
    s_n | z_n, alpha_n ~ N_c(0, diag g_n c sigma_k(z_n, v_n))   (1), (7), (9), S17
    x_n | s_n ~ N_c(s_n, diag (W H)_n)                     (28), x = s + b

Where the prior couples frames, z_1:N is drawn at once from p(z_1:N | v), and sigma(z_1:N, v) is of the whole path.

Or, with s integrated out in closed form, x_n | z_n, alpha_n ~ N_c(0, diag(g_n c sigma_k(z_n, v_n) + (W H)_n)).

Several speakers j = 1, ..., J speak at once [Nguyen2021], each by the same prior and with his own face, level and way
to the microphone: every s_jn has the first three lines to itself, and

    x_n | s_1n, ..., s_Jn ~ N_c(sum_j s_jn, diag (W H)_n),        x = s_1 + ... + s_J + b
    x_n | z_n, alpha_n ~ N_c(0, diag(sum_j g_jn c_j sigma_k_j(z_jn, v_jn) + (W H)_n))

g_n is how much louder speech is than in training, c_f the microphone's response. They, W and H are given here; what is
assumed of them before the recording is seen is the program `noise_prior` of models/nmf_noise.py. The prior's networks
are frozen here. The fast targets of `inference/target.py` and `inference/speakers_target.py` are proved against this
program.
"""

from contextlib import ExitStack
from functools import reduce

import pyro
import pyro.poutine as poutine
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Normal
from torch import Tensor

from pyro_avse.distributions import ComplexNormal, align_components
from pyro_avse.models.mixture import select_component
from pyro_avse.models.noisy_paths import noisy_switching, noisy_utterances, recorded
from pyro_avse.typing import (
    FrameMask,
    InputError,
    MixingWeight,
    Power,
    Spectrum,
    SpeechPrior,
    couples_frames,
    switches,
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
    speakers: int | None = None,
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
        speakers: J, whose sites are "alpha_1", "z_1", "s_1", "alpha_2", ...; what is given of them then has an axis
            besides: lips (..., speaker, frame, 67, 67), pi (component, ..., speaker, frame), g_n (..., speaker, frame),
            log c_f (..., speaker, freq). None: one speaker, without that axis, whose sites are "alpha", "z" and "s".
    """
    frames = noise_variance.shape[:-1] if mixture is None else mixture.shape[:-1]
    if switches(prior):
        return noisy_switching(
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
        if speakers is not None:
            raise InputError(
                "several speakers need a prior whose frames are independent: take vae_mm"
            )
        return noisy_utterances(
            prior, mixture, lips, noise_variance, gain, log_response, speech_latent, mask
        )
    pi = prior.mixing_weight if mixing_weight is None else mixing_weight

    with ExitStack() as plates:
        for dim, size in enumerate(reversed(frames), start=1):
            name = "frame" if dim == 1 else f"utterance_{dim - 1}"
            plates.enter_context(pyro.plate(name, size, dim=-dim))
        if mask is not None:
            plates.enter_context(poutine.mask(mask=mask))

        variance, heard = [noise_variance], []
        for j in range(1 if speakers is None else speakers):
            own_lips, own_pi, own_gain, own_response = lips, pi, gain, log_response
            if speakers is not None:
                own_lips = None if lips is None else lips.select(len(frames) - 1, j)
                own_pi = pi.select(-2, j) if pi.dim() > 1 else pi
                own_gain = None if gain is None else gain[..., j, :]
                own_response = None if log_response is None else log_response[..., j, :]
            number = "" if speakers is None else f"_{j + 1}"
            log_variance = _speech(prior, own_lips, own_pi, len(frames), number)
            log_variance = recorded(log_variance, own_gain, own_response)
            if speech_latent:
                s = pyro.sample(f"s{number}", ComplexNormal(0, log_variance).to_event(1))  # (9)
                heard.append(s)
            else:
                variance.insert(j, log_variance.exp())  # S17
        x = ComplexNormal(sum(heard), reduce(torch.add, variance).log())  # (28)
        found: Spectrum = pyro.sample("x", x.to_event(1), obs=mixture)
        return found


def _speech(
    prior: SpeechPrior, lips: Tensor | None, pi: Tensor, frame_dims: int, number: str
) -> Float[Tensor, "*batch frame freq"]:
    """alpha and z of one speaker, whose sites end in `number`; log sigma_k(z, v)."""
    pi = pi.reshape(len(pi), *pi.shape[1:], *[1] * (frame_dims + 1 - pi.dim())).movedim(0, -1)
    latent = align_components(prior.latent_prior(lips), 1 + frame_dims)
    if prior.num_components > 1:
        alpha = pyro.sample(
            f"alpha{number}", Categorical(pi), infer={"enumerate": "parallel"}
        )  # (11)
        mean, scale = (select_component(p, alpha) for p in (latent.mean, latent.stddev))
    else:
        alpha, mean, scale = None, latent.mean[0], latent.stddev[0]
    z = pyro.sample(f"z{number}", Normal(mean, scale).to_event(1))  # (10)
    log_variance = prior.log_variance(z, lips)
    if len(log_variance) == 1 or alpha is None:
        return log_variance[0]
    return select_component(log_variance, alpha)
