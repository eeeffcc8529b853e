"""Sound of files and videos: any rate and level in, 16 kHz mono with peak 1 inside, the same rate
and level out.

`load_audio` (or `audio_from_array`) refuses what cannot be enhanced, `restore` undoes its
resampling and scaling, and `save_audio` writes a whole file or nothing. What is too long for memory
comes in blocks (`open_blocks`, `cut_blocks`) and goes in pieces (`save_pieces`).
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32, Shaped

from pyro_avse.data.media.level import level_of_moments, moments, speech_level
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.files import VIDEOS
from pyro_avse.typing import InputError

SHORTEST = 1024 / SAMPLE_RATE
"""One STFT window, in seconds."""


MOST_BLOCKS = 100_000
"""Of a recording: a month in blocks of 30 s."""


@dataclass(frozen=True)
class Audio:
    """A waveform as the models want it, and what `restore` needs to give it back."""

    waveform: Float32[np.ndarray, "sample"]
    """Mono, 16 kHz, max |waveform| = 1."""
    peak: float
    """`peak * waveform` is at the original's level."""
    sample_rate: int
    """Of the original, in Hz."""
    original: Float32[np.ndarray, "original_sample"]
    """The recording as it came."""
    level: float
    """`speech_level` of the waveform, or of the whole recording of which it is a block."""
    path: Path | None
    """Where it was read; None for an array."""

    @property
    def num_samples(self) -> int:
        """Of the original, at its own rate."""
        return len(self.original)


@dataclass(frozen=True)
class Blocks:
    """A recording in blocks, each sharing some time with the next; one is in memory at a time."""

    spans: list[tuple[int, int]]
    """First sample of each block, and the one after its last, at the recording's rate."""
    sample_rate: int
    read: Callable[[], Iterator[Audio]]
    """The blocks, from the first, in the unit of the whole recording: its peak is 1, not each block's."""

    @property
    def num_samples(self) -> int:
        """Of the recording, at its own rate."""
        return self.spans[-1][1]


def load_audio(path: str | os.PathLike[str], *, channel: str | int = "first") -> Audio:
    """Read one channel of a sound file in any format of libsndfile, or of the sound of a video.

    `channel` is "first", "mean" (of all channels) or an index from 0.
    Raises InputError, in one line that names the file: missing, a folder, not a sound file, a video
    without sound or damaged, no such channel; empty, silent, NaN or infinite samples, or shorter than
    one STFT window (0.064 s).
    """
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder: name one sound file in it")
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: check the path")
    if path.suffix.lower() in VIDEOS | {".m4a"}:
        from pyro_avse.data.media.video import read_sound  # PyAV takes a while to load

        samples, sample_rate = read_sound(path)
        return _normalise(_pick(samples, channel, path), sample_rate, name=str(path), path=path)
    with _opened(path) as file:
        try:
            samples, sample_rate = file.read(dtype="float64", always_2d=True), file.samplerate
        except MemoryError:
            raise InputError(
                f"{path} says it lasts {file.frames / file.samplerate:.0f} s, more than memory holds: check it, or "
                "cut it"
            ) from None
    return _normalise(_pick(samples, channel, path), sample_rate, name=str(path), path=path)


def audio_from_array(mixture: Shaped[np.ndarray, "..."], sample_rate: int) -> Audio:
    """The same for one channel of samples in memory, (sample,), floating point or signed integer.

    Raises InputError as `load_audio` does, and for another shape, dtype or a rate that is not
    positive.
    """
    if mixture.ndim != 1:
        raise InputError(f"mixture has shape {mixture.shape}: give one channel, (sample,)")
    if mixture.dtype.kind not in "fi":
        raise InputError(f"mixture is {mixture.dtype}: give floating-point samples")
    if sample_rate < 1:
        raise InputError(f"mixture has sample rate {sample_rate}: give it in Hz, such as 16000")
    return _normalise(mixture.astype(np.float64), int(sample_rate), name="mixture", path=None)


def open_blocks(
    path: Path, *, seconds: float, overlap: float, channel: str | int = "first"
) -> Blocks:
    """A sound file in blocks of at most `seconds`, neighbours sharing `overlap` seconds; read once for its peak.

    Raises InputError as `load_audio` does, but knows no videos; and for a file that ends early, blocks too short.
    """
    with _opened(path) as file:
        rate, num_samples = file.samplerate, file.frames
    _check_length(num_samples, rate, path)
    spans = _spans(num_samples, rate, seconds, overlap)
    loudest = peak = 0.0
    rms = []
    for (start, _), samples in zip(spans, _read_spans(path, spans, channel), strict=True):
        _check_finite(samples, rate, path, start)
        loudest = max(loudest, float(np.abs(samples).max()))
        resampled = _resample(samples, rate, SAMPLE_RATE)
        peak = max(peak, float(np.abs(resampled).max()))
        rms.append(moments(resampled))
    if loudest == 0:
        raise _silent(path, num_samples)
    _check_band(peak / loudest, path)
    level = level_of_moments(np.concatenate(rms)) / peak or 1.0

    def read() -> Iterator[Audio]:
        for samples in _read_spans(path, spans, channel):
            waveform = (_resample(samples, rate, SAMPLE_RATE) / peak).astype(np.float32)
            yield Audio(waveform, peak, rate, samples.astype(np.float32), level, path)

    return Blocks(spans, rate, read)


def cut_blocks(audio: Audio, *, seconds: float, overlap: float) -> Blocks:
    """The same of a recording in memory."""
    rate = audio.sample_rate
    spans = _spans(audio.num_samples, rate, seconds, overlap)

    def read() -> Iterator[Audio]:
        for start, stop in spans:
            end = None if stop == audio.num_samples else stop * SAMPLE_RATE // rate
            waveform = audio.waveform[start * SAMPLE_RATE // rate : end]
            original = audio.original[start:stop]
            yield Audio(waveform, audio.peak, rate, original, audio.level, audio.path)

    return Blocks(spans, rate, read)


def restore(
    waveform: Float[np.ndarray, "sample"], like: Audio
) -> Float32[np.ndarray, "original_sample"]:
    """A 16 kHz waveform at the rate, length and level of the recording that `like` was made from.

    `waveform` is as long as `like.waveform` and in its unit; the result is (like.num_samples,).
    Where the two rates' lengths round differently, the last sample or so is dropped or zero.
    Raises InputError for another length.
    """
    if waveform.shape != like.waveform.shape:
        raise InputError(
            f"waveform has shape {waveform.shape}, the recording {like.waveform.shape} at 16 kHz:"
            " restore what was made from it"
        )
    resampled = _resample(waveform.astype(np.float64) * like.peak, SAMPLE_RATE, like.sample_rate)
    missing = max(0, like.num_samples - len(resampled))
    return np.pad(resampled[: like.num_samples], (0, missing)).astype(np.float32)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # a name may be no text
            yield file
    except soundfile.LibsndfileError as err:
        raise InputError(
            f"{path} cannot be read as sound ({err.error_string}): convert it to .wav or .flac"
        ) from err
    except TypeError as err:  # what soundfile says of .raw, which has no header
        raise InputError(f"{path} does not say its sample rate: convert it to .wav") from err


def _spans(
    num_samples: int, sample_rate: int, seconds: float, overlap: float
) -> list[tuple[int, int]]:
    """Blocks as long as each other, whose borders are whole samples at the recording's rate and at 16 kHz."""
    tick = sample_rate // math.gcd(sample_rate, SAMPLE_RATE)
    total, shared = -(-num_samples // tick), math.ceil(overlap * sample_rate / tick)
    longest = int(seconds * sample_rate / tick)
    if longest < 3 * shared:  # else three blocks might meet
        raise InputError(
            f"blocks of {seconds:g} s that share {overlap:g} s: give {3 * overlap:g} s or more"
        )
    count = max(1, -((shared - total) // (longest - shared)))
    if count > MOST_BLOCKS:
        raise InputError(
            f"the recording says it lasts {num_samples / sample_rate / 86400:.0f} days: check the file"
        )
    starts = [k * (total - shared) // count * tick for k in range(count)]
    ends = [start + shared * tick for start in starts[1:]]
    return list(zip(starts, [*ends, num_samples], strict=True))


def _read_spans(
    path: Path, spans: list[tuple[int, int]], channel: str | int
) -> Iterator[Float[np.ndarray, "sample"]]:
    """One channel of each span, in one pass through the file; what two spans share is kept meanwhile."""
    with _opened(path) as file:
        held, at = np.zeros(0), 0
        for start, stop in spans:
            new = _pick(file.read(stop - at, dtype="float64", always_2d=True), channel, path)
            if len(new) < stop - at:
                seconds = (at + len(new)) / file.samplerate
                raise InputError(f"{path} ends early, at {seconds:.2f} s: copy it again")
            held, at = np.concatenate([held[len(held) - (at - start) :], new]), stop
            yield held


def _normalise(
    samples: Float[np.ndarray, "sample"], sample_rate: int, *, name: str, path: Path | None
) -> Audio:
    _check_length(len(samples), sample_rate, name)
    _check_finite(samples, sample_rate, name)
    if not samples.any():
        raise _silent(name, len(samples))
    # Twice: a resampled peak is not the original's, and so no level over- or underflows.
    first_peak = float(np.abs(samples).max())
    resampled = _resample(samples / first_peak, sample_rate, SAMPLE_RATE)
    second_peak = float(np.abs(resampled).max())
    _check_band(second_peak, name)
    waveform = (resampled / second_peak).astype(np.float32)
    return Audio(
        waveform=waveform,
        peak=first_peak * second_peak,
        sample_rate=sample_rate,
        original=samples.astype(np.float32),
        level=speech_level(waveform),
        path=path,
    )


def _check_length(num_samples: int, sample_rate: int, name: str | Path) -> None:
    seconds = num_samples / sample_rate
    if num_samples == 0:
        raise InputError(f"{name} is empty: give at least {SHORTEST} s of sound")
    if seconds < SHORTEST:
        raise InputError(f"{name} lasts {seconds:.4f} s: give at least {SHORTEST} s, one window")


def _check_finite(
    samples: Float[np.ndarray, "sample"], sample_rate: int, name: str | Path, start: int = 0
) -> None:
    if not np.isfinite(samples).all():
        at = (start + int(np.argmin(np.isfinite(samples)))) / sample_rate
        raise InputError(f"{name} holds NaN or infinite samples, the first at {at:.3f} s: mend it")


def _silent(name: str | Path, num_samples: int) -> InputError:
    return InputError(f"{name} is silent, all {num_samples} samples are 0: check the recording")


def _check_band(peak_left: float, name: str | Path) -> None:
    if peak_left < 1e-4:
        raise InputError(f"{name} holds nothing under 8 kHz, where speech is: check the recording")


def _pick(
    samples: Float[np.ndarray, "sample channel"], channel: str | int, path: Path
) -> Float[np.ndarray, "sample"]:
    num_channels = samples.shape[1]
    if channel == "mean":
        return samples.mean(axis=1)
    index = 0 if channel == "first" else channel
    if isinstance(index, str) and index.isdecimal():
        index = int(index)
    if isinstance(index, int) and 0 <= index < num_channels:
        return samples[:, index]
    raise InputError(
        f"{path} has {num_channels} channel(s), not {channel!r}: take 'first', 'mean' or"
        f" 0 to {num_channels - 1}"
    )


def _resample(samples: Float[np.ndarray, "sample"], old: int, new: int) -> np.ndarray:
    return samples if old == new else soxr.resample(samples, old, new)
