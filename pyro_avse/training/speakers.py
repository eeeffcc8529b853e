"""Draws of the program of several speakers, with what was drawn: what a separating guide learns from. (28), (31)

    s_j,1:N      a clip of clean speech each, of another speaker, with pauses around; at a level of U(-6, 6) dB
    z_jn, alpha_jn of each frame, by the prior's own encoders at the clean frame
    a_j          what each one's way to the microphone does, N(0, (2 s_1)^2) a term
    b_1:N        models/drawn_noise.py, with voices of others in some; in half of the recordings too faint to matter
    x = h (sum_j c_j s_j + b), as the front hears it (its high-pass h), brought to the level of training

Lips are those of the clip, changed at random as other cameras and faces would show them, all pictures of a clip alike.
Clips without them get *drawn* lips: what a reader of them would say (models/lip_reader.py), as wrong as it would be,

    m = (d + t e) / (1 + t^2),   e an autoregression, t ~ U(0.4, 1.3)

d being the loudness of the frames, smoothed. So voices of hundreds of speakers whom no camera saw are learnt from. In
some recordings a face has no voice: its lips stand still, or are another's who is not heard. Its code is that of pause.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from pyro_avse.data.corpora.corpus import Utterance
from pyro_avse.data.lips.augment import augment_lips
from pyro_avse.enhancement.front import log_response
from pyro_avse.enhancement.sounded import sounded_noise
from pyro_avse.models.drawn_noise import DECIBEL
from pyro_avse.models.guide import RESPONSE_TERMS
from pyro_avse.models.lip_reader import band_energies, faceless, small_pictures
from pyro_avse.models.nmf_noise import RESPONSE_SPREAD, response_basis
from pyro_avse.stft import STFT
from pyro_avse.training.frames import load_clips
from pyro_avse.training.pairs import (
    FAINTEST_NOISE,
    PAUSE_FRAMES,
    frame_codes,
    frames_level,
    pause,
)
from pyro_avse.typing import InputError

VARIANTS = 4
"""Of each clip's lips: as they are, and changed at random."""
UNEQUAL = 6.0
"""dB."""
NOISY, BABBLES, MUTE, STILL = 0.5, 0.15, 0.1, 0.5
"""Shares: of recordings in noise; of those with voices in it; of faces without a voice; of these, that stand still."""
SNRS, FAINT_SNRS = (-5.0, 25.0), (25.0, 45.0)
"""dB over all voices."""
WORST = 0.8
"""t of lips that were seen: what a reader says of strange faces is worse than of those it learnt from."""


@dataclass(frozen=True)
class Voices:
    """Clean clips one after another, with their codes under one prior. The last "clip" is pause."""

    spectrum: Complex[Tensor, "frame freq"]
    starts: list[int]
    ends: list[int]
    speakers: list[list[list[int]]]
    """Clips by corpus and speaker; where a corpus has no lips each clip is taken for a speaker's."""
    chances: list[Float[Tensor, "speaker"]]
    """How often each is drawn, within his corpus."""
    mean: Float[Tensor, "component frame latent"]
    scale: Float[Tensor, "component frame latent"]
    responsibilities: Float[Tensor, "component frame"]
    bands: Float[Tensor, "frame band"]
    """What lips tell about: `band_energies`."""
    pictures: Float[Tensor, "variant picture pixel"]
    """`small_pictures` of all clips that have lips."""
    shown: Int[Tensor, "frame"]
    """Which picture each frame has; -1: none."""
    features: Float[Tensor, "frame feature"] | None
    """`visual_features`, where prior or decoder look at the lips."""


@dataclass(frozen=True)
class Mixtures:
    """Some recordings and what they were drawn from; `power` is heard."""

    mixture: Complex[Tensor, "utterance frame freq"]
    power: Float[Tensor, "utterance frame freq"]
    speech: Complex[Tensor, "utterance speaker frame freq"]
    """As it is heard in the mixture."""
    told: Float[Tensor, "utterance speaker frame band"]
    """What drawn lips say; 0 where lips are seen, or there are none."""
    pictures: Float[Tensor, "utterance speaker frame pixel"]
    """`faceless`; 0 where there are none."""
    seen: Bool[Tensor, "utterance speaker"]
    """Whether there are pictures."""
    known: Bool[Tensor, "utterance speaker"]
    """Whether there are lips, seen or drawn."""
    bands: Float[Tensor, "utterance speaker frame band"]
    """What the lips tell about."""
    features: Float[Tensor, "utterance speaker frame feature"] | None
    log_gain: Float[Tensor, "utterance speaker"]
    response: Float[Tensor, "utterance speaker term"]
    log_noise: Float[Tensor, "utterance frame freq"]
    codes: Float[Tensor, "component utterance speaker frame latent"]
    responsibilities: Float[Tensor, "component utterance speaker frame"]


@torch.no_grad()
def load_voices(
    corpora: Iterable[Iterable[Utterance]],
    prior: Any,
    stft: STFT,
    *,
    noise_floor_db: float | None = 40.0,
    variants: int = VARIANTS,
    seed: int = 0,
) -> Voices:
    """Read clips, what `prior` makes of every frame, and lips, changed at random by `seed`.

    Raises InputError where fewer than two speakers are left: a prior that needs lips learns from clips that have them.
    """
    rng = torch.Generator().manual_seed(seed)
    looks = any(prior.components_see)
    spectra, pictures, shown, codes, features = [], [], [], [], []
    starts: list[int] = []
    ends: list[int] = []
    speakers: list[list[list[int]]] = []
    chances = []
    count = seen_so_far = 0
    for corpus in corpora:
        by_speaker: dict[str, list[int]] = {}
        for utterance in corpus:
            for spectrum, lips in load_clips(
                [utterance],
                stft,
                with_lips=True,
                noise_floor_db=noise_floor_db,
                seed=seed,
                level="speech",
            ):
                if lips is None and prior.requires_lips:
                    continue
                name = str(utterance.audio if lips is None else utterance.speaker)
                by_speaker.setdefault(name, []).append(len(starts))
                starts.append(count)
                count += len(spectrum)
                ends.append(count)
                spectra.append(spectrum)
                codes.append(
                    frame_codes(prior, spectrum.abs().square(), lips if prior.uses_lips else None)
                )
                if looks:
                    known = torch.zeros(1, 67, 67) if lips is None else lips
                    features.append(prior.visual_features(known).expand(len(spectrum), -1))
                if lips is None:
                    shown.append(torch.full((len(spectrum),), -1))
                    continue
                changed = [augment_lips(lips, 1.0, rng, together=True) for _ in range(variants - 1)]
                pictures.append(torch.stack([small_pictures(p).half() for p in (lips, *changed)]))
                shown.append(seen_so_far + torch.arange(len(spectrum)))
                seen_so_far += len(spectrum)
        if by_speaker:
            speakers.append(list(by_speaker.values()))
            chances.append(torch.tensor([math.sqrt(len(c)) for c in by_speaker.values()]))
    if sum(len(s) for s in speakers) < 2 or not pictures:
        raise InputError(
            "fewer than two speakers to train the guide on, or none with lips: give corpora of more"
        )
    quiet = pause(stft, seed)
    spectra.append(quiet)
    starts.append(count)
    ends.append(count + PAUSE_FRAMES)
    shown.append(torch.full((PAUSE_FRAMES,), -1))
    codes.append(
        frame_codes(
            prior,
            quiet.abs().square(),
            None if not prior.requires_lips else torch.zeros(PAUSE_FRAMES, 67, 67),
        )
    )
    if looks:
        features.append(prior.visual_features(torch.zeros(1, 67, 67)).expand(PAUSE_FRAMES, -1))
    spectrum = torch.cat(spectra)
    mean, scale, r = (torch.cat(parts, 1) for parts in zip(*codes, strict=True))
    return Voices(
        spectrum=spectrum,
        starts=starts,
        ends=ends,
        speakers=speakers,
        chances=chances,
        mean=mean,
        scale=scale,
        responsibilities=r,
        bands=torch.cat([band_energies(part.abs().square()) for part in spectra]),
        pictures=torch.cat(pictures, 1),
        shown=torch.cat(shown),
        features=torch.cat(features) if looks else None,
    )


@dataclass(frozen=True)
class Track:
    """One speaker of one recording, as indices of frames."""

    heard: Int[Tensor, "frame"]
    shown: Int[Tensor, "frame"]
    """Which pictures; -1: none."""
    told_of: Int[Tensor, "frame"]
    """The frames whose loudness the lips tell."""
    known: bool
    """Whether there are lips, seen or drawn."""


def draw_mixtures(
    voices: Voices,
    *,
    utterances: int,
    num_frames: int,
    stft: STFT,
    speakers: int = 2,
    unseen: float = 0.1,
) -> Mixtures:
    """The program above, by the global generator. `unseen` speakers have no lips, but for one in each recording."""
    drawn = [_tracks(voices, num_frames, speakers, unseen) for _ in range(utterances)]

    def stacked(name: str) -> Tensor:
        return torch.stack([torch.stack([getattr(t, name) for t in own]) for own in drawn])

    heard, shown, told_of = stacked("heard"), stacked("shown"), stacked("told_of")
    known = torch.tensor([[t.known for t in own] for own in drawn])
    s = voices.spectrum[heard]
    level = (DECIBEL * UNEQUAL * (2 * torch.rand(utterances, speakers, 1, 1) - 1)).exp()
    a = 2 * RESPONSE_SPREAD * torch.randn(utterances, speakers, RESPONSE_TERMS)
    freqs = s.shape[-1]
    c = level * (a @ response_basis(RESPONSE_TERMS, freqs, s.real)[1:]).exp()[..., None, :]
    h = torch.from_numpy(log_response(freqs)).float().exp()  # power
    babble = _babble(voices, utterances, num_frames)
    noise = sounded_noise(num_frames, stft, utterances=utterances, voices=babble)
    speech = (h * c).sqrt() * s
    noisy = torch.rand(utterances, 1, 1) < NOISY
    low, high = (torch.where(noisy, *pair) for pair in zip(SNRS, FAINT_SNRS, strict=True))
    wanted = low + (high - low) * torch.rand(utterances, 1, 1)
    loud = speech.abs().square().sum(1).mean((-2, -1), keepdim=True)
    ratio = loud / (h * noise.variance).mean((-2, -1), keepdim=True).clamp_min(1e-12)
    b_power = h * ratio * (-DECIBEL * wanted).exp()
    x = speech.sum(1) + b_power.sqrt() * noise.noise
    peak = frames_level(x, stft)[:, None, None]
    mean, scale = (t[:, heard] for t in (voices.mean, voices.scale))
    seen = (shown >= 0).all(-1)
    variant = torch.randint(len(voices.pictures), (utterances, speakers, 1))
    pictures = faceless(voices.pictures[variant, shown.clamp_min(0)].float())
    pictures = torch.where((seen & known)[..., None, None], pictures, 0)
    bands = voices.bands[told_of]
    told = torch.where((known & ~seen)[..., None, None], _drawn_lips(bands), 0)
    return Mixtures(
        mixture=x / peak,
        power=(x / peak).abs().square(),
        speech=speech / peak[:, None],
        told=told,
        pictures=pictures,
        seen=seen & known,
        known=known,
        bands=bands,
        features=None if voices.features is None else voices.features[heard],
        log_gain=(level / peak[:, None].square()).log()[..., 0, 0],
        response=a,
        log_noise=(b_power * noise.variance / peak.square() + FAINTEST_NOISE).log(),
        codes=mean + scale * torch.randn_like(mean),
        responsibilities=voices.responsibilities[:, heard],
    )


def _tracks(voices: Voices, num_frames: int, speakers: int, unseen: float) -> list[Track]:
    """Speakers that differ, at least one of them with lips."""
    chosen: list[tuple[int, int]] = []
    weight = torch.tensor(
        [2.0 if voices.shown[voices.starts[s[0][0]]] >= 0 else 1.0 for s in voices.speakers]
    )
    while len(chosen) < speakers:
        corpus = int(torch.multinomial(weight, 1))
        one = corpus, int(torch.multinomial(voices.chances[corpus], 1))
        if one not in chosen:
            chosen.append(one)
    clips = [_one_of(voices.speakers[corpus][speaker]) for corpus, speaker in chosen]
    tracks = [_track(voices, clip, num_frames, unseen) for clip in clips]
    if not any(t.known for t in tracks):
        tracks[0] = _track(voices, clips[0], num_frames)
    if torch.rand(()) < MUTE:
        tracks[-1] = _mute(voices, _track(voices, clips[-1], num_frames))
    order = torch.randperm(speakers).tolist()
    return [tracks[k] for k in order]


def _track(voices: Voices, clip: int, num_frames: int, unseen: float = 0.0) -> Track:
    """A clip cut, or with pauses around it; lips are held while there is pause."""
    start, end = voices.starts[clip], voices.ends[clip]
    length = end - start
    if length >= num_frames:
        first = start + int(torch.randint(length - num_frames + 1, ()))
        heard = lasting = torch.arange(first, first + num_frames)
    else:
        before = int(torch.randint(num_frames - length + 1, ()))
        place = torch.arange(num_frames) - before
        lasting = start + place.clamp(0, length - 1)
        quiet = voices.starts[-1] + torch.randint(PAUSE_FRAMES, (num_frames,))
        heard = torch.where((place >= 0) & (place < length), lasting, quiet)
    return Track(heard, voices.shown[lasting], heard, bool(torch.rand(()) >= unseen))


def _mute(voices: Voices, track: Track) -> Track:
    """The same face without a voice: it stands still, or speaks and is not heard."""
    quiet = voices.starts[-1] + torch.randint(PAUSE_FRAMES, track.heard.shape)
    if torch.rand(()) < STILL:
        one = track.shown[torch.randint(len(track.shown), ())]
        return Track(quiet, one.expand_as(track.shown), quiet, True)
    return Track(quiet, track.shown, track.told_of, True)


def _drawn_lips(bands: Float[Tensor, "*batch frame band"]) -> Float[Tensor, "*batch frame band"]:
    """m above, for every speaker."""
    smooth = torch.nn.functional.avg_pool1d(
        torch.nn.functional.pad(bands.mT.flatten(0, -3), (1, 1), mode="replicate"), 3, 1
    ).mT.reshape(bands.shape)
    t = 0.4 + 0.9 * torch.rand(*bands.shape[:-2], 1, 1)
    return (smooth + t * reading_error(bands)) / (1 + t.square())


def reading_error(bands: Float[Tensor, "*batch frame band"]) -> Float[Tensor, "*batch frame band"]:
    """e: of unit variance, with a memory of three frames, half of it common to all bands."""
    own, common = torch.randn_like(bands), torch.randn_like(bands[..., :1])
    steps = math.sqrt(0.5) * (own + common)
    keep, e = math.exp(-1 / 3), [steps[..., 0, :]]
    for step in steps.unbind(-2)[1:]:
        e.append(keep * e[-1] + math.sqrt(1 - keep**2) * step)
    return torch.stack(e, -2)


def _babble(voices: Voices, utterances: int, num_frames: int) -> Tensor:
    """Sums of one to six voices for `sounded_noise`, in some recordings; in the others none."""
    summed = torch.zeros(utterances, num_frames, voices.spectrum.shape[-1], dtype=torch.complex64)
    for one in summed:
        if torch.rand(()) < BABBLES:
            for _ in range(int(torch.randint(1, 7, ()))):
                clip = int(torch.randint(len(voices.starts) - 1, ()))
                one += voices.spectrum[_track(voices, clip, num_frames).heard]
    return summed


def _one_of(clips: Sequence[int]) -> int:
    return clips[int(torch.randint(len(clips), ()))]
