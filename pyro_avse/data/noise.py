"""Noise: drawn (white, pink), cut from a recording, made of other speakers; mixed at a chosen SNR.

Waveforms are NumPy arrays (sample,). Every draw comes from the generator or the seed that the caller passes.
An SNR is broadband, mean power of speech over mean power of noise: that of speech over the whole clip, pauses included,
or over active speech (`pyro_avse.data.media.level`); that of noise always over the whole clip.

A noise that has to be made again, sample for sample, is a `Segment`: `draw_segment` chooses it, `make_noise` makes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from pyro_avse.data.corpora.corpus import Utterance
from pyro_avse.data.media.level import active_power
from pyro_avse.typing import InputError

Waveform = Float[np.ndarray, "sample"]
Kind = Literal["white", "pink", "babble", "recording", "corpus"]
"""Of "corpus", a mixture that comes with the clip, nothing is drawn or made."""
Level = Literal["clip", "active"]
"""What the speech's level of an SNR is measured over: the whole clip, or active speech (P.56)."""


@dataclass(frozen=True)
class Segment:
    """Which noise exactly: with its recordings at hand, `make_noise` makes the same samples again."""

    kind: Kind
    seed: int
    """Of white and pink noise, and of what `draw_segment` chose."""
    files: tuple[str, ...] = ()
    """The recording, or babble's voices."""
    starts: tuple[int, ...] = ()
    """Where each file's stretch begins, in samples at 16 kHz; at its end it goes on from the beginning."""
    looped: bool = False
    """Whether a file is shorter than the clip."""


def draw_segment(
    kind: Kind, recordings: Mapping[str, Waveform], num_samples: int, seed: int
) -> Segment:
    """A random stretch of every recording (by file name), or the seed of a drawn noise."""
    rng = np.random.default_rng(seed)
    if (
        kind == "babble"
    ):  # anywhere: clips of a corpus are of one length, and their voices would begin together
        starts = tuple(int(rng.integers(len(x))) for x in recordings.values())
    else:
        starts = tuple(_start(len(x), num_samples, rng) for x in recordings.values())
    looped = any(len(x) < num_samples for x in recordings.values())
    return Segment(kind, seed, tuple(recordings), starts, looped)


def make_noise(segment: Segment, recordings: Mapping[str, Waveform], num_samples: int) -> Waveform:
    """The samples of a segment: drawn or babble at an RMS of 1, a recording at its own level.

    `recordings` holds the waveform of every file of the segment, 16 kHz, as `load_audio` gives it.
    Raises InputError for babble whose voices are silent.
    """
    sounds = [recordings[file] for file in segment.files]
    if segment.kind == "babble":
        return babble(sounds, num_samples, segment.starts)
    if segment.kind == "recording":
        return _stretch(sounds[0], segment.starts[0], num_samples)
    draw = white_noise if segment.kind == "white" else pink_noise
    return draw(num_samples, np.random.default_rng(segment.seed))


def choose_voices(
    utterances: Sequence[Utterance], target: str | None, count: int, seed: int
) -> list[Utterance]:
    """Utterances of other speakers than `target` for babble: `count`, or all there are; of as many speakers as can be.

    Where the other speakers are fewer, some are heard more than once, each time in another utterance.
    Raises InputError where speakers are not named, and where the others have fewer than two utterances.
    """
    if target is None:
        raise InputError(
            "babble needs the speakers' names: give a folder for each, or another noise"
        )
    rng = np.random.default_rng(seed)
    queues: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        if utterance.speaker not in (target, None):
            queues.setdefault(str(utterance.speaker), []).append(utterance)
    count = min(count, sum(map(len, queues.values())))
    if count < 2:
        raise InputError(
            f"babble for speaker {target} needs utterances of others, the corpus has {count}: give a larger one,"
            " or another noise"
        )
    chosen: list[Utterance] = []
    while len(chosen) < count:  # rounds over the speakers, in a new order each
        for speaker in rng.permutation(sorted(queues)):
            queue = queues[speaker]
            if queue and len(chosen) < count:
                chosen.append(queue.pop(int(rng.integers(len(queue)))))
    return chosen


def white_noise(num_samples: int, rng: np.random.Generator) -> Float32[np.ndarray, "sample"]:
    """Gaussian noise with a flat power spectrum and an RMS of 1.

    Raises InputError for fewer than 1 sample.
    """
    if num_samples < 1:
        raise InputError(f"white noise of {num_samples} samples: ask for at least 1")
    return _at_unit_rms(rng.standard_normal(num_samples))


def pink_noise(num_samples: int, rng: np.random.Generator) -> Float32[np.ndarray, "sample"]:
    """Gaussian noise whose power falls as 1/f, without DC, and with an RMS of 1.

    Raises InputError for fewer than 2 samples: a single sample is all DC.
    """
    if num_samples < 2:
        raise InputError(f"pink noise of {num_samples} samples: ask for at least 2")
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum[0] = 0.0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return _at_unit_rms(np.fft.irfft(spectrum, n=num_samples))


def babble(
    clips: Sequence[Float[np.ndarray, "_"]], num_samples: int, starts: Sequence[int]
) -> Float32[np.ndarray, "sample"]:
    """Several speakers at once, as one noise with an RMS of 1.

    Every clip is brought to the same RMS, begun at its start (a sample) and looped where it ends too soon.
    Raises InputError without clips, for an empty or silent one, or where all cuts are silent.
    """
    if not clips:
        raise InputError("babble of 0 clips: give at least one, of speakers other than the target")
    levels = [np.sqrt(_power(clip, f"babble clip {i}")) for i, clip in enumerate(clips)]
    voices = [
        _stretch(clip, start, num_samples).astype(np.float64) / level
        for clip, start, level in zip(clips, starts, levels, strict=True)
    ]
    mixture = np.sum(voices, axis=0)
    _power(mixture, f"babble cut to {num_samples} samples")
    return _at_unit_rms(mixture)


def take_noise(
    recording: Float[np.ndarray, "recorded"], num_samples: int, rng: np.random.Generator
) -> tuple[Waveform, int]:
    """A random stretch of a recording, and the sample at which it starts.

    A recording shorter than `num_samples` is looped, from a random start.
    Raises InputError for an empty recording or fewer than 1 sample.
    """
    start = _start(len(recording), num_samples, rng)
    return _stretch(recording, start, num_samples), start


def mix_at_snr(
    speech: Waveform, noise: Waveform, snr_db: float, *, level: Level = "clip"
) -> tuple[Waveform, Waveform]:
    """(mixture, scaled noise): speech plus the noise scaled to an SNR; the speech keeps its level.

    Raises InputError as `noise_gain` does.
    """
    scaled = noise * noise_gain(speech, noise, snr_db, level=level)
    return speech + scaled, scaled


def noise_gain(speech: Waveform, noise: Waveform, snr_db: float, *, level: Level = "clip") -> float:
    """What to multiply the noise by for an SNR, in dB: 10 log10(mean speech^2 / mean noise^2).

    The mean over speech is over the whole clip, or over active speech alone (`level="active"`).
    Raises InputError for different lengths, an SNR that is not finite, another level, and speech or noise that is
    silent or not finite.
    """
    if speech.shape != noise.shape:
        raise InputError(
            f"speech has {len(speech)} samples, noise {len(noise)}: cut the noise with take_noise"
        )
    if not np.isfinite(snr_db):
        raise InputError(f"an SNR of {snr_db} dB cannot be mixed: give a finite number")
    power = _power(speech, "speech")
    if level == "active":
        power = active_power(speech)
    elif level != "clip":
        raise InputError(f"a level over {level!r}: take 'clip' or 'active'")
    return float(np.sqrt(power / _power(noise, "noise")) * 10 ** (-snr_db / 20))


def add_noise_floor(waveform: Waveform, db_under_peak: float, rng: np.random.Generator) -> Waveform:
    """The waveform plus pink noise whose RMS lies `db_under_peak` dB under the waveform's peak.

    Gated or studio speech has digital silence, on which a model's log-variances run away; a floor
    holds them.
    Raises InputError for a silent or non-finite waveform and a level that is not finite.
    """
    if not np.isfinite(db_under_peak):
        raise InputError(f"a noise floor {db_under_peak} dB under the peak: give a finite number")
    _power(waveform, "the waveform")
    rms = float(np.abs(waveform).max() * 10 ** (-db_under_peak / 20))
    return waveform + pink_noise(len(waveform), rng) * rms


def _start(recorded: int, num_samples: int, rng: np.random.Generator) -> int:
    """Where a stretch may begin: anywhere it ends in time, or anywhere at all where it has to be looped."""
    if num_samples < 1 or recorded == 0:
        raise InputError(f"cannot take {num_samples} samples from a recording of {recorded}")
    return int(rng.integers(recorded if recorded < num_samples else recorded - num_samples + 1))


def _stretch(recording: Float[np.ndarray, "recorded"], start: int, num_samples: int) -> Waveform:
    """A copy of `num_samples` from `start`, going on from the beginning where the recording ends."""
    if start + num_samples <= len(recording):
        return recording[start : start + num_samples].copy()
    return recording[(start + np.arange(num_samples)) % len(recording)]


def _power(waveform: Waveform, name: str) -> float:
    """Mean square; refuses a signal that has none."""
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    if not np.isfinite(power):
        raise InputError(f"{name} holds NaN or infinite samples: mend the recording")
    if power == 0.0:
        raise InputError(f"{name} is silent: it has no level to scale by")
    return power


def _at_unit_rms(waveform: Float[np.ndarray, "sample"]) -> Float32[np.ndarray, "sample"]:
    return (waveform / np.sqrt(np.mean(waveform**2))).astype(np.float32)
