"""Sound of files and videos: any rate and level in, 16 kHz mono with peak 1 inside, the same rate
and level out.

`load_audio` (or `audio_from_array`) refuses what cannot be enhanced, `restore` undoes its
resampling and scaling, and `save_audio` writes a whole file or nothing. What is too long for memory
comes in blocks (`blocks`) and goes in pieces (`save_pieces`). Which channel has the voice is a question of `channels`,
where the samples of a video stand in time one of `sound`.
"""

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr
from jaxtyping import Float, Float32, Shaped

from pyro_avse.data.media import TOLERANCE
from pyro_avse.data.media.channels import choose
from pyro_avse.data.media.level import speech_level
from pyro_avse.data.media.reading import (
    UNKNOWN,
    Unreadable,
    ends_early,
    names_of,
    open_file,
    read_whole,
)
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.errors import Silence
from pyro_avse.files import VIDEOS
from pyro_avse.typing import InputError

SHORTEST = 1024 / SAMPLE_RATE
"""One STFT window, in seconds."""


DECODED = VIDEOS | {".m4a", ".oga"}
"""What PyAV reads, and libsndfile is not asked for."""
LOWEST = 1000
"""Hz: of less, nothing of speech is left, and 16 kHz are far more samples than there are."""
LARGEST = 1e37
"""Float32 holds little more."""
SMALLEST = 1e-37
"""Below it all is silence."""


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
    delay: float = 0.0
    """Seconds from the first picture of its video to its first sample; negative where sound is first."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each: gaps that were filled, which channel was taken."""

    @property
    def num_samples(self) -> int:
        """Of the original, at its own rate."""
        return len(self.original)


def load_audio(
    path: str | os.PathLike[str], *, channel: str | int = "auto", track: int = 0
) -> Audio:
    """Read one channel of a sound file in any format of libsndfile or PyAV, or of the sound of a video.

    `channel` is "auto" (the first, unless the voice is on another: `channels`), "first", "mean" (of all channels) or
    an index from 0; `track` is one from 0 of a video's sounds.
    Raises InputError, in one line that names the file: missing, a folder, not a sound file, a video
    without sound or damaged, no such channel; empty, silent, NaN or infinite samples, or shorter than
    one STFT window (0.064 s).
    """
    path = Path(path)
    check_recording(path)
    if path.suffix.lower() in DECODED:
        return _decoded(path, channel, track)
    if track:
        raise InputError(f"{path} has one sound track, not {track}: tracks are of videos")
    try:
        with open_file(path) as file:
            if file.frames >= UNKNOWN:  # libsndfile cannot read it to its end
                return _decoded(path, channel, track)
            samples, sample_rate = read_whole(file, path), file.samplerate
            said, form, codec = file.frames, file.format, file.subtype
    except Unreadable as refusal:
        return _decoded(path, channel, track, refusal)
    if len(samples) == 0:  # recorders that were switched off say so, and have written all the same
        with contextlib.suppress(InputError):
            return _decoded(path, channel, track)
    notes: tuple[str, ...] = ()
    if len(samples) < said:
        if form == "OGG":  # libsndfile closes its gaps: PyAV has its time stamps
            return _decoded(path, channel, track)
        lasts, there = said / sample_rate, len(samples) / sample_rate
        if not codec.startswith("MPEG"):  # whose length is a guess of its encoder's
            raise ends_early(path, there)
        if lasts - there > TOLERANCE:
            note = f"it says it lasts {lasts:.2f} s, there are {there:.2f} s of it"
            notes = (f"{path} is not whole: {note}",)
    count = samples.shape[1]
    choice = choose([samples], sample_rate, count, channel, str(path), names_of(path, count))
    audio = _normalise(choice.of(samples), sample_rate, name=str(path), path=path)
    return replace(audio, notes=notes + choice.notes)


def check_recording(path: Path) -> None:
    """Raises InputError for what is missing, a folder, an empty file, and a pipe, at which a reader would wait."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder: name one sound file in it")
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: check the path")
    if not os.path.isfile(path):
        raise InputError(f"{path} is a pipe or a device: give a file, or - for stdin")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} cannot be read as sound (0 bytes): record or copy it again")


def count_channels(path: Path, track: int = 0) -> int:
    """Of a recording that `load_audio` reads. Raises InputError likewise."""
    check_recording(path)
    if path.suffix.lower() not in DECODED:
        with contextlib.suppress(InputError), open_file(path) as file:
            return file.channels
    from pyro_avse.data.media.sound import open_track  # PyAV takes a while to load

    with open_track(path, track) as found:
        return found.num_channels


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
    resampled = resample(waveform.astype(np.float64) * like.peak, SAMPLE_RATE, like.sample_rate)
    missing = max(0, like.num_samples - len(resampled))
    return np.pad(resampled[: like.num_samples], (0, missing)).astype(np.float32)


def _normalise(
    samples: Float[np.ndarray, "sample"], sample_rate: int, *, name: str, path: Path | None
) -> Audio:
    check_length(len(samples), sample_rate, name)
    check_finite(samples, sample_rate, name)
    if np.abs(samples).max() < SMALLEST:
        raise silent(name, len(samples))
    # Twice: a resampled peak is not the original's, and so no level over- or underflows.
    first_peak = float(np.abs(samples).max())
    resampled = resample(samples / first_peak, sample_rate, SAMPLE_RATE)
    second_peak = float(np.abs(resampled).max())
    check_band(second_peak, name)
    waveform = (resampled / second_peak).astype(np.float32)
    return Audio(
        waveform=waveform,
        peak=first_peak * second_peak,
        sample_rate=sample_rate,
        original=samples.astype(np.float32),
        level=speech_level(waveform),
        path=path,
    )


def check_length(num_samples: int, sample_rate: int, name: str | Path) -> None:
    seconds = num_samples / sample_rate
    if num_samples == 0:
        raise InputError(f"{name} is empty: give at least {SHORTEST} s of sound")
    if sample_rate < LOWEST:
        raise InputError(f"{name} has a sample rate of {sample_rate} Hz: speech needs {LOWEST}")
    if seconds < SHORTEST:
        raise InputError(f"{name} lasts {seconds:.4f} s: give at least {SHORTEST} s, one window")


def check_finite(
    samples: Float[np.ndarray, "sample"], sample_rate: int, name: str | Path, start: int = 0
) -> None:
    if not np.isfinite(samples).all():
        at = (start + int(np.argmin(np.isfinite(samples)))) / sample_rate
        raise InputError(f"{name} holds NaN or infinite samples, the first at {at:.3f} s: mend it")
    largest = float(np.abs(samples).max(initial=0.0))
    if largest > LARGEST:
        raise InputError(f"{name} holds samples as large as {largest:.0e}: scale it down")


def silent(name: str | Path, num_samples: int) -> Silence:
    return Silence(f"{name} is silent, all {num_samples} samples are 0: check the recording")


def check_band(peak_left: float, name: str | Path) -> None:
    if peak_left < 1e-4:
        raise InputError(f"{name} holds nothing under 8 kHz, where speech is: check the recording")


def _decoded(
    path: Path, channel: str | int, track: int, refusal: InputError | None = None
) -> Audio:
    """The sound of a container through PyAV; what it cannot read either has libsndfile's `refusal`, if there is."""
    from pyro_avse.data.media.container import has_pictures  # PyAV takes a while to load
    from pyro_avse.data.media.sound import decode_sound, silent_track

    try:
        sound = decode_sound(path, track)
    except InputError:
        if refusal is None or has_pictures(path):
            raise
        raise refusal from None
    count = sound.samples.shape[1]
    choice = choose([sound.samples], sound.sample_rate, count, channel, str(path), sound.channels)
    samples = choice.of(sound.samples)
    try:
        audio = _normalise(samples, sound.sample_rate, name=str(path), path=path)
    except Silence:
        if sound.tracks == 1:
            raise
        raise silent_track(path, track, sound.tracks) from None
    return replace(audio, delay=sound.delay, notes=sound.notes + choice.notes)


def resample(samples: Float[np.ndarray, "sample"], old: int, new: int) -> np.ndarray:
    return samples if old == new else soxr.resample(samples, old, new)
