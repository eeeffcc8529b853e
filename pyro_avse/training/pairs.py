"""Draws of the noisy program, with what was drawn: what a guide for noisy speech learns from. (28), (31)

    s_1:N        clips of clean speech in a row, with pauses; some at other speeds, as if others had spoken
    z_n, alpha_n of each frame, by the prior's own encoders at the clean frame: q(z_n | s_n, v_n, k), r_n by (22)
    b_1:N        models/drawn_noise.py as sound, with voices of other clips in some; at an SNR of U(-22, 25) dB, with
                 voices of U(-10, 25): among voices that are far louder nobody can tell which one is meant
    a            the microphone's response, N(0, (2 s_1)^2) a term
    x = h (c s + b), as the front hears it (its high-pass h), brought to the level of training

so that g, a, W H, alpha and z are known where x is. Nothing here is a recording of noise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from pyro_avse.data.corpora.corpus import Utterance
from pyro_avse.data.media.level import CREST, LOUD
from pyro_avse.distributions import squared_magnitude
from pyro_avse.enhancement.front import log_response
from pyro_avse.enhancement.sounded import overlap, sounded, sounded_noise
from pyro_avse.models.drawn_noise import DECIBEL
from pyro_avse.models.guide import RESPONSE_TERMS
from pyro_avse.models.mixture import component_negative_elbo, update_responsibilities
from pyro_avse.models.nmf_noise import RESPONSE_SPREAD, response_basis
from pyro_avse.stft import STFT
from pyro_avse.training.frames import load_clips
from pyro_avse.typing import InputError

BABBLES = 0.45
"""The share of recordings in which other voices are heard."""
LOWEST, HIGHEST = -22.0, 25.0
"""SNRs, dB."""
AMONG_VOICES = -10.0
"""The lowest in recordings with other voices."""
PAUSE_FRAMES, LONGEST_PAUSE = 600, 25
"""Frames of faint noise that stand for pauses, and how many of them come between two clips at most."""
FAINTEST_NOISE = 1e-3
"""What is known of noise ends here, 44 dB under speech: clips of clean speech have more."""
CLEARER = 20.0
"""dB."""


@dataclass(frozen=True)
class Speech:
    """Clean clips one after another, with the codes of every frame under one prior. The last "clip" is pause."""

    spectrum: Complex[Tensor, "frame freq"]
    ends: list[int]
    """Where each clip ends."""
    chances: Float[Tensor, "clip"]
    """How often each is drawn, but for the pause."""
    mean: Float[Tensor, "component frame latent"]
    """Of q(z_n | s_n, v_n, k)."""
    scale: Float[Tensor, "component frame latent"]
    responsibilities: Float[Tensor, "component frame"]
    seen: Float[Tensor, "frame seen"] | None
    """`NoisyGuide.seen` of the frame's picture; 0 where there is none. None: the prior never looks."""
    features: Float[Tensor, "frame feature"] | None
    """`visual_features` of it, where prior or decoder look at the lips."""
    has_lips: Bool[Tensor, "frame"]


@dataclass(frozen=True)
class Pairs:
    """Some recordings and what they were drawn from; `power` is heard."""

    power: Float[Tensor, "utterance frame freq"]
    speech: Float[Tensor, "utterance frame freq"]
    """|h c s|^2, of what is speech in x."""
    cross: Float[Tensor, "utterance frame freq"]
    """Re (h c s)^* x."""
    clear: Float[Tensor, "utterance frame freq"]
    """|x|^2 if the noise were `CLEARER` dB fainter."""
    features: Float[Tensor, "utterance frame feature"] | None
    """`visual_features` of the lips, for priors that look at them; None for others."""
    seen: Float[Tensor, "utterance frame seen"] | None
    lips_mask: Bool[Tensor, "utterance frame"] | None
    log_gain: Float[Tensor, "utterance"]
    response: Float[Tensor, "utterance term"]
    log_noise: Float[Tensor, "utterance frame freq"]
    codes: Float[Tensor, "component utterance frame latent"]
    responsibilities: Float[Tensor, "component utterance frame"]


@torch.no_grad()
def load_speech(
    utterances: Iterable[Utterance],
    guide: Any,
    stft: STFT,
    *,
    noise_floor_db: float | None = 40.0,
    speeds: float = 0.0,
    chances: Sequence[float] | None = None,
    seed: int = 0,
) -> Speech:
    """Read clips, and what the guide's prior makes of every frame; with `speeds` of `load_clips`, a second time so.

    `chances`: how often each utterance is drawn, in proportion; None: all alike.

    Raises InputError where no clip is left: a prior that needs lips learns from clips that have them.
    """
    prior = guide.prior
    device = prior.mixing_weight.device
    looks = any(prior.components_see)
    spectra, pictures, seen_of, features, ends, count = [], [], [], [], [], 0
    found, drawn = list(utterances), []
    for most in [0.0, speeds] if speeds else [0.0]:
        clips = load_clips(
            found,
            stft,
            with_lips=prior.uses_lips,
            noise_floor_db=noise_floor_db,
            seed=seed,
            level="speech",
            speeds=most,
        )
        for (spectrum, lips), chance in zip(clips, chances or [1.0] * len(found), strict=True):
            if lips is None and prior.requires_lips:
                continue
            count += len(spectrum)
            spectra.append(spectrum)
            pictures.append(lips)
            ends.append(count)
            drawn.append(chance)
    if not spectra:
        raise InputError("no clips to train the guide on: this prior needs clips with lips")
    spectra.append(pause(stft, seed))
    pictures.append(None)
    ends.append(count + PAUSE_FRAMES)
    means, scales, weights = [], [], []
    for spectrum, lips in zip(spectra, pictures, strict=True):
        power = squared_magnitude(spectrum).to(device)
        looked = None if lips is None else lips.to(device)
        mean, scale, r = frame_codes(prior, power, looked)
        means.append(mean.cpu())
        scales.append(scale.cpu())
        weights.append(r.cpu())
        blank = torch.zeros(len(spectrum), guide.sight)
        seen_of.append(blank if looked is None else guide.seen(looked).cpu())
        if looks:
            embedded = prior.visual_features(torch.zeros(1, 67, 67) if looked is None else looked)
            features.append(embedded.cpu().expand(len(spectrum), -1))
    has_lips = [
        torch.full((len(s),), p is not None) for s, p in zip(spectra, pictures, strict=True)
    ]
    return Speech(
        spectrum=torch.cat(spectra),
        ends=ends,
        chances=torch.tensor(drawn, dtype=torch.float),
        mean=torch.cat(means, 1),
        scale=torch.cat(scales, 1),
        responsibilities=torch.cat(weights, 1),
        seen=torch.cat(seen_of) if prior.uses_lips else None,
        features=torch.cat(features) if looks else None,
        has_lips=torch.cat(has_lips),
    )


def frame_codes(prior: Any, power: Tensor, lips: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Means and scales of q(z_n | s_n, v_n, k), (component, frame, latent), and r (22), (component, frame).

    Frames without lips are component 0's, which is audio; a prior that cannot do without is shown black ones.
    """
    K = prior.num_components
    alone = getattr(prior, "without_lips", prior)
    if lips is None and prior.uses_lips and not hasattr(alone, "audio_encoder"):
        lips = power.new_zeros(len(power), 67, 67)
    if lips is None and prior.uses_lips:
        q = alone.audio_encoder(power)
        mean, scale = (t.expand(K, *t.shape) for t in (q.mean, q.stddev))
        r = power.new_zeros(K, len(power))
        r[0] = 1
        return mean, scale, r
    q = prior.encode(power, lips)
    mean, scale = (t.expand(K, len(power), -1) for t in (q.mean, q.stddev))
    if K == 1:
        return mean, scale, power.new_ones(1, len(power))
    J = torch.stack([component_negative_elbo(prior, power, lips) for _ in range(4)]).mean(0)
    return mean, scale, update_responsibilities(J, prior.mixing_weight)


def pause(stft: STFT, seed: int) -> Tensor:
    """Frames as faint as what training adds to each clip: pink noise 40 dB under its peak."""
    rng = torch.Generator().manual_seed(seed)
    variance = 1 / torch.arange(stft.n_fft // 2 + 1).clamp_min(1).float()
    variance = (1e-4 * 512 * variance / variance.mean()).expand(
        1, PAUSE_FRAMES + 2 * overlap(stft), -1
    )
    noise = torch.randn(variance.shape, dtype=torch.complex64, generator=rng)
    return sounded(variance.sqrt() * noise, variance, stft)[0][0]


def draw_pairs(
    speech: Speech,
    *,
    utterances: int,
    num_frames: int,
    stft: STFT,
    lips_dropped: float = 0.3,
    snr: tuple[float, float] = (LOWEST, HIGHEST),
    device: torch.device | str = "cpu",
) -> Pairs:
    """The program above, by the global generator. In `lips_dropped` of the recordings the lips are absent."""
    index = torch.stack([_clips_in_a_row(speech, num_frames) for _ in range(utterances)])
    s = speech.spectrum[index].to(device)
    freqs = s.shape[-1]
    voices = _voices(speech, utterances, num_frames).to(device)
    drawn = sounded_noise(num_frames, stft, utterances=utterances, voices=voices, device=device)
    a = 2 * RESPONSE_SPREAD * torch.randn(utterances, RESPONSE_TERMS, device=device)
    c = (a @ response_basis(RESPONSE_TERMS, freqs, s.real)[1:]).exp()[:, None]
    h = torch.from_numpy(log_response(freqs)).float().to(device).exp()  # power
    among = (voices != 0).flatten(1).any(1)[:, None, None]
    lowest = torch.where(among, max(snr[0], min(AMONG_VOICES, snr[1])), snr[0])
    wanted = lowest + (snr[1] - lowest) * torch.rand(utterances, 1, 1, device=device)
    loud = (h * c * squared_magnitude(s)).mean((-2, -1), keepdim=True)
    loud_noise = (h * drawn.variance).mean((-2, -1), keepdim=True)
    b_power = loud / loud_noise.clamp_min(1e-12) * (-DECIBEL * wanted).exp()
    heard, b = (h * c).sqrt() * s, (h * b_power).sqrt() * drawn.noise
    x, clear = heard + b, heard + 10 ** (-CLEARER / 20) * b
    level = frames_level(x, stft)[:, None, None]
    at_level = level.square().reciprocal()
    K, L = len(speech.mean), speech.mean.shape[-1]
    eps = torch.randn(K, utterances, num_frames, L, device=device)
    mean, scale = (t[:, index].to(device) for t in (speech.mean, speech.scale))
    lips_mask = None
    if speech.seen is not None:
        kept = torch.rand(utterances, 1) >= lips_dropped
        lips_mask = (speech.has_lips[index] & kept).to(device)
    return Pairs(
        power=squared_magnitude(x) * at_level,
        speech=squared_magnitude(heard) * at_level,
        cross=(heard.real * x.real + heard.imag * x.imag) * at_level,
        clear=squared_magnitude(clear) * at_level,
        features=None if speech.features is None else speech.features[index].to(device),
        seen=None if speech.seen is None else speech.seen[index].to(device),
        lips_mask=lips_mask,
        log_gain=-2 * level[:, 0, 0].log(),
        response=a,
        log_noise=(h * b_power * at_level * drawn.variance + FAINTEST_NOISE).log(),
        codes=mean + scale * eps,
        responsibilities=speech.responsibilities[:, index].to(device),
    )


def frames_level(spectrum: Tensor, stft: STFT) -> Tensor:
    """`speech_level`, of frames in place of moments: the loud ones between 150 and 4000 Hz, times the crest."""
    first, last = (round(hertz * stft.n_fft / 16000) for hertz in (150, 4000))
    mean_square = (
        squared_magnitude(spectrum[..., first:last]).sum(-1) * 2 / (stft.n_fft * stft.n_fft / 2)
    )
    return CREST * mean_square.sqrt().quantile(LOUD, -1)


def _clips_in_a_row(speech: Speech, num_frames: int) -> Tensor:
    """Indices of frames: clips as the corpus has them, from somewhere in one of them on, with pauses between."""
    clips, pause_starts = len(speech.ends) - 1, speech.ends[-2]
    clip = int(torch.multinomial(speech.chances, 1))
    parts: list[Tensor] = []
    total = 0
    while total < num_frames:
        first = speech.ends[clip - 1] if clip else 0
        if not parts:  # the first may be cut
            first += int(torch.randint(max(1, (speech.ends[clip] - first) // 2), ()))
        own = torch.arange(first, speech.ends[clip])
        quiet = pause_starts + torch.randint(PAUSE_FRAMES, (int(torch.randint(LONGEST_PAUSE, ())),))
        parts += [own, quiet] if torch.rand(()) < 0.7 else [quiet, own]
        total += len(own) + len(quiet)
        clip = (clip + 1) % clips
    return torch.cat(parts)[:num_frames]


def _voices(speech: Speech, utterances: int, num_frames: int) -> Tensor:
    """Sums of one to six voices, in `BABBLES` of the recordings; in the others none."""
    summed = torch.zeros(utterances, num_frames, speech.spectrum.shape[-1], dtype=torch.complex64)
    for one in summed:
        if torch.rand(()) < BABBLES:
            for _ in range(int(torch.randint(1, 7, ()))):
                one += speech.spectrum[_clips_in_a_row(speech, num_frames)]
    return summed
