"""Noise: drawn (white, pink), cut from a recording, made of other speakers; mixed at a chosen SNR.

Waveforms are NumPy arrays (sample,). Every draw comes from the generator that the caller passes.
SNR here is broadband: mean power over the whole clip, pauses included, speech over noise.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from pyro_avse.typing import InputError

Waveform = Float[np.ndarray, "sample"]


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
    clips: Sequence[Float[np.ndarray, "_"]], num_samples: int, rng: np.random.Generator
) -> Float32[np.ndarray, "sample"]:
    """Several speakers at once, as one noise with an RMS of 1.

    Every clip is brought to the same RMS, cut at a random place and looped if short.
    Raises InputError without clips, for an empty or silent one, or where all cuts are silent.
    """
    if not clips:
        raise InputError("babble of 0 clips: give at least one, of speakers other than the target")
    voices = []
    for i, clip in enumerate(clips):
        piece, _ = take_noise(clip, num_samples, rng)
        voices.append(piece.astype(np.float64) / np.sqrt(_power(clip, f"babble clip {i}")))
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
    if num_samples < 1 or len(recording) == 0:
        raise InputError(f"cannot take {num_samples} samples from a recording of {len(recording)}")
    if len(recording) < num_samples:
        start = int(rng.integers(len(recording)))
        return recording[(start + np.arange(num_samples)) % len(recording)], start
    start = int(rng.integers(len(recording) - num_samples + 1))
    return recording[start : start + num_samples].copy(), start


def mix_at_snr(speech: Waveform, noise: Waveform, snr_db: float) -> tuple[Waveform, Waveform]:
    """(mixture, scaled noise): speech plus the noise scaled to an SNR; the speech keeps its level.

    `snr_db` is broadband, in dB over the whole clip: 10 log10(mean speech^2 / mean noise^2).
    Raises InputError for different lengths, an SNR that is not finite, and speech or noise that
    is silent or not finite.
    """
    if speech.shape != noise.shape:
        raise InputError(
            f"speech has {len(speech)} samples, noise {len(noise)}: cut the noise with take_noise"
        )
    if not np.isfinite(snr_db):
        raise InputError(f"an SNR of {snr_db} dB cannot be mixed: give a finite number")
    ratio = _power(speech, "speech") / _power(noise, "noise")
    scaled = noise * float(np.sqrt(ratio) * 10 ** (-snr_db / 20))
    return speech + scaled, scaled


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
