"""Recordings that are too long for memory: in blocks, of which one is in memory at a time.

`open_blocks` reads a sound file through libsndfile, `decode_blocks` a video or whatever else PyAV reads, `cut_blocks`
what is in memory already. A file is read three times: for its channels, for its peak, and block by block.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Shaped

from pyro_avse.data.media.audio import (
    DECODED,
    SMALLEST,
    Audio,
    check_band,
    check_finite,
    check_length,
    resample,
    silent,
)
from pyro_avse.data.media.channels import Choice, choose
from pyro_avse.data.media.level import level_of_moments, moments
from pyro_avse.data.media.muted import muted
from pyro_avse.data.media.reading import (
    UNKNOWN,
    EndsEarly,
    Unreadable,
    ends_early,
    names_of,
    open_file,
)
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.errors import Silence
from pyro_avse.typing import InputError

MOST_BLOCKS = 100_000
"""Of a recording: a month in blocks of 30 s."""
PART = 2**16
"""Samples that are read from a sound file at once."""
Parts = Callable[[], Iterator[Shaped[np.ndarray, "sample channel"]]]
"""The samples of a recording from its beginning, in parts of any length."""


@dataclass(frozen=True)
class Blocks:
    """A recording in blocks, each sharing some time with the next; one is in memory at a time."""

    spans: list[tuple[int, int]]
    """First sample of each block, and the one after its last, at the recording's rate."""
    sample_rate: int
    read: Callable[[], Iterator[Audio]]
    """The blocks, from the first, in the unit of the whole recording: its peak is 1, not each block's."""
    delay: float = 0.0
    notes: tuple[str, ...] = ()
    """Both as of `Audio`."""

    @property
    def num_samples(self) -> int:
        """Of the recording, at its own rate."""
        return self.spans[-1][1]


def open_long(
    path: Path, *, seconds: float, overlap: float, channel: str | int = "auto", track: int = 0
) -> Blocks | None:
    """A recording that lasts longer than `seconds`, in such blocks; None for a shorter one.

    None too where `load_audio` knows better: what it refuses at once, a sound file that ends early.
    Raises InputError as `load_audio`.
    """
    blocks = None
    more: Any = {"seconds": seconds, "overlap": overlap, "channel": channel}
    if path.suffix.lower() in DECODED:
        if _may_last(path, seconds):
            blocks = decode_blocks(path, track=track, **more)
    elif (said := _says(path)) is None:
        with contextlib.suppress(InputError):
            blocks = decode_blocks(path, track=track, **more) if _may_last(path, seconds) else None
    elif said > seconds and not track:
        with contextlib.suppress(EndsEarly):
            try:
                blocks = open_blocks(path, **more)
            except Unreadable:  # some .opus, after their beginning
                with contextlib.suppress(InputError):
                    blocks = decode_blocks(path, track=track, **more)
    if blocks is not None and blocks.num_samples <= seconds * blocks.sample_rate:
        return None
    return blocks


def open_blocks(
    path: Path, *, seconds: float, overlap: float, channel: str | int = "auto"
) -> Blocks:
    """A sound file in blocks of at most `seconds`, neighbours sharing `overlap` seconds.

    Raises InputError as `load_audio` does, but knows no videos; and for a file that ends early, blocks too short.
    """
    with open_file(path) as file:
        rate, num_samples, count = file.samplerate, file.frames, file.channels
    check_length(num_samples, rate, path)
    parts = partial(_file_parts, path)
    choice = choose(parts(), rate, count, channel, str(path), names_of(path, count))
    return _in_blocks(parts, path, rate, _spans(num_samples, rate, seconds, overlap), choice)


def decode_blocks(
    path: Path, *, seconds: float, overlap: float, channel: str | int = "auto", track: int = 0
) -> Blocks:
    """The same of a sound track of a video, or of another file that PyAV reads, on its own time line.

    Raises InputError as `load_audio` does, and for blocks too short.
    """
    from pyro_avse.data.media.container import read_starts  # PyAV takes a while to load
    from pyro_avse.data.media.sound import open_track, silent_track

    def parts() -> Iterator[Float32[np.ndarray, "sample channel"]]:
        with open_track(path, track) as found:
            yield from (block.T for block in found.blocks)

    num_samples = 0
    with open_track(path, track) as found:
        rate, tracks = found.sample_rate, len(found.tracks)

        def counted() -> Iterator[Float32[np.ndarray, "sample channel"]]:
            nonlocal num_samples
            for block in found.blocks:
                num_samples += block.shape[1]
                yield block.T

        heard = counted()
        choice = choose(heard, rate, found.num_channels, channel, str(path), found.channels)
        deque(heard, maxlen=0)  # one channel is not listened to
    check_length(num_samples, rate, path)
    delay = read_starts(path, track).delay
    spans = _spans(num_samples, rate, seconds, overlap)
    try:
        blocks = _in_blocks(parts, path, rate, spans, choice)
    except Silence:
        if tracks == 1:
            raise
        raise silent_track(path, track, tracks) from None
    return replace(blocks, delay=delay, notes=found.notes(path, track, delay) + blocks.notes)


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

    return Blocks(spans, rate, read, audio.delay, audio.notes)


def opening(audio: Audio | Blocks, seconds: float) -> Float32[np.ndarray, "sample"]:
    """The first seconds of a recording at 16 kHz, or all of a shorter one."""
    wanted = round(seconds * SAMPLE_RATE)
    if isinstance(audio, Audio):
        return audio.waveform[:wanted]
    heard = np.zeros(0, np.float32)
    for (start, _), block in zip(audio.spans, audio.read(), strict=True):
        known = start * SAMPLE_RATE // audio.sample_rate
        heard = np.concatenate([heard[:known], block.waveform])
        if len(heard) >= wanted:
            break
    return heard[:wanted]


def _says(path: Path) -> float | None:
    """The seconds that libsndfile finds in a header; None where it reads none, or no length."""
    with contextlib.suppress(InputError), open_file(path) as file:
        return None if file.frames >= UNKNOWN else file.frames / file.samplerate
    return None


def _may_last(path: Path, seconds: float) -> bool:
    """Whether a file that PyAV opens says that it lasts longer, or, as browsers' recordings, not how long."""
    from pyro_avse.data.media.container import read_seconds  # PyAV takes a while to load

    with contextlib.suppress(InputError):
        said = read_seconds(path)
        return said == 0 or said > seconds
    return False


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


def _in_blocks(
    parts: Parts, path: Path, rate: int, spans: list[tuple[int, int]], choice: Choice
) -> Blocks:
    """One channel of a file, listened to once for its peak and level. Raises InputError for what is no sound."""
    loudest = peak = 0.0
    rms = []
    for (start, _), samples in zip(
        spans, _read_spans(parts(), path, rate, spans, choice), strict=True
    ):
        check_finite(samples, rate, path, start)
        loudest = max(loudest, float(np.abs(samples).max()))
        resampled = resample(samples, rate, SAMPLE_RATE)
        peak = max(peak, float(np.abs(resampled).max()))
        rms.append(moments(resampled))
    if loudest < SMALLEST:
        raise silent(path, spans[-1][1])
    check_band(peak / loudest, path)
    level = level_of_moments(np.concatenate(rms)) / peak or 1.0

    def read() -> Iterator[Audio]:
        for samples in _read_spans(parts(), path, rate, spans, choice):
            waveform = (resample(samples, rate, SAMPLE_RATE) / peak).astype(np.float32)
            yield Audio(waveform, peak, rate, samples.astype(np.float32), level, path)

    return Blocks(spans, rate, read, notes=choice.notes)


def _file_parts(path: Path) -> Iterator[Float[np.ndarray, "sample channel"]]:
    with open_file(path) as file:
        while True:
            with muted():
                part = file.read(PART, dtype="float64", always_2d=True)
            if not len(part):
                return
            yield part


def _read_spans(
    parts: Iterator[Shaped[np.ndarray, "sample channel"]],
    path: Path,
    rate: int,
    spans: list[tuple[int, int]],
    choice: Choice,
) -> Iterator[Float[np.ndarray, "sample"]]:
    """One channel of each span, in one pass; what two spans share is kept meanwhile."""
    held, first = np.zeros(0), 0
    for start, stop in spans:
        pieces = [held[start - first :]]
        first, count = start, len(pieces[0])
        while count < stop - start:
            part = next(parts, None)
            if part is None:
                raise ends_early(path, (start + count) / rate)
            pieces.append(choice.of(part))
            count += len(part)
        held = np.concatenate(pieces)
        yield held[: stop - start]
