"""The sound of a container through PyAV, on its own time line.

Every decoded block is put where its time stamp says, counted from the first one. What is missing between two blocks is
silence, what comes twice is taken once. A difference of up to 10 ms is the rounding of time stamps and no gap. It never
adds up, as each block's own stamp tells its place.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float32, Float64

from pyro_avse.data.media import TOLERANCE
from pyro_avse.data.media.container import (
    damaged,
    frames_of,
    opened,
    read_starts,
    stream_of,
    streams_of,
)
from pyro_avse.errors import Silence
from pyro_avse.typing import InputError

ROUNDING = 0.01
"""Seconds by which a block may lie beside its time stamp; a lost packet of any usual codec is longer."""
LONGEST_GAP = 600.0
"""Seconds: a jump beyond is no pause but a wrong time stamp."""
MOST_SILENCE = 10
"""Times as long as the sound may be the gaps in it, besides those ten minutes."""
Block = Float32[np.ndarray, "channel sample"]


@dataclass(frozen=True)
class Sound:
    """One sound track of a file."""

    samples: Float32[np.ndarray, "sample channel"]
    """From the first one that is there to the last; gaps are zeros."""
    sample_rate: int
    channels: tuple[str, ...]
    """Their names, such as FL, FR, FC."""
    delay: float
    """Seconds from the first picture to the first sample; negative where sound is first, 0 without pictures."""
    notes: tuple[str, ...]
    """Gaps, and other tracks: a line each, for the user to know."""
    tracks: int = 1
    """How many the file has."""


@dataclass(frozen=True)
class Track:
    """A sound track of an open file, decoded as its blocks are taken."""

    blocks: Iterator[Block]
    """In a row, with silence in the gaps."""
    sample_rate: int
    num_channels: int
    channels: tuple[str, ...]
    """Their names, as far as the file says them."""
    gaps: list[tuple[float, float]]
    """In seconds from the first sample; grows as blocks are taken."""
    changes: list[float]
    """When channels or rate become others, as of `gaps`."""
    lost: list[float]
    """When packets that cannot be decoded were due, by the file's time stamps; grows too."""
    tracks: tuple[str, ...]
    """The languages of all that the file has."""

    def notes(self, path: Path, track: int, delay: float) -> tuple[str, ...]:
        """When all blocks are taken, what to say of gaps and of other tracks, a line each."""
        notes = [f"{path}: {describe_gaps(self.gaps, max(0.0, delay))}"] if self.gaps else []
        if self.lost:
            notes.append(f"{path}: {len(self.lost)} packet(s) of its sound cannot be decoded")
        if self.changes:
            at = max(0.0, delay) + self.changes[0]
            notes.append(
                f"{path}: channels or sample rate change at {at:.2f} s: turned into those before"
            )
        if len(self.tracks) > 1:
            said = ", ".join(f"{k} {language}" for k, language in enumerate(self.tracks))
            notes.append(f"{path} has {len(self.tracks)} sound tracks ({said}): {track} is taken")
        return tuple(notes)


@contextlib.contextmanager
def open_track(path: Path, track: int = 0) -> Iterator[Track]:
    """A sound of a video or of any sound file that PyAV reads; `track` counts its sounds from 0.

    Raises InputError for no sound, no such track, and a file that cannot be read or is damaged (with the second): here,
    or when its blocks are taken.
    """
    with opened(path) as container:
        stream = stream_of(container, "audio", track)
        tracks = streams_of(container, "audio")
        if not tracks:
            raise InputError(f"{path} has no sound: give a video with sound, or the sound file")
        if stream is None:
            raise InputError(f"{path} has {len(tracks)} sound track(s), not {track}: count from 0")
        context = stream.codec_context
        if context is None:
            raise InputError(f"{path}: its sound is of a kind unknown here: convert it to .wav")
        changes: list[float] = []
        lost: list[float] = []
        timed = _blocks(container, stream, path, changes, lost)
        first = list(islice(timed, 1))  # some codecs tell their rate and channels with it
        rate = context.sample_rate
        if rate < 1:
            raise InputError(f"{path}: its sound has a sample rate of {rate} Hz: check the file")
        gaps: list[tuple[float, float]] = []
        alone = stream_of(container, "video") is None
        yield Track(
            place_blocks(chain(first, timed), rate, path, gaps, glued=alone),
            rate,
            len(first[0][1]) if first else context.layout.nb_channels,
            tuple(channel.name for channel in context.layout.channels),
            gaps,
            changes,
            lost,
            tuple(t.language or "und" for t in tracks),
        )


def decode_sound(path: Path, track: int = 0) -> Sound:
    """The whole of a track. Raises InputError as `open_track`."""
    with open_track(path, track) as found:
        blocks = list(found.blocks)
    delay = read_starts(path, track).delay
    nothing = np.zeros((found.num_channels, 0), np.float32)
    samples = np.concatenate([nothing, *blocks], axis=1)
    notes = found.notes(path, track, delay)
    return Sound(samples.T, found.sample_rate, found.channels, delay, notes, len(found.tracks))


def silent_track(path: Path, track: int, tracks: int) -> Silence:
    """The refusal of one track that is silent, where there are others."""
    other = 1 if track == 0 else 0
    return Silence(f"{path}: its sound track {track} of {tracks} is silent: give --track {other}")


def read_sound(path: Path, track: int = 0) -> tuple[Float64[np.ndarray, "sample channel"], int]:
    """A sound track of a file and its rate in Hz. Raises InputError as `decode_sound`."""
    sound = decode_sound(path, track)
    return sound.samples.astype(np.float64), sound.sample_rate


def place_blocks(
    timed: Iterable[tuple[float | None, Block]],
    rate: int,
    path: Path,
    gaps: list[tuple[float, float]],
    *,
    glued: bool = False,
) -> Iterator[Block]:
    """Blocks of sound in a row with silence in the gaps, which are noted, in seconds from the first sample.

    `timed` has each block's seconds, or None where nothing is said: right after the last one.
    Sound that may be `glued` of several files, as recorded radio is, may count from 0 again: one follows the other.
    Else raises InputError for a jump back of more than 0.25 s; and for one ahead of more than ten minutes.
    """
    start, length, silent = None, 0, 0
    for time, block in timed:
        missing = 0
        if time is not None:
            start = time - length / rate if start is None else start
            missing = round((time - start) * rate) - length
            if missing < -TOLERANCE * rate and glued:
                start, missing = time - length / rate, 0
            if missing < -TOLERANCE * rate or missing > LONGEST_GAP * rate:
                raise damaged(path, start + length / rate, f"the sound jumps to {time:.2f} s")
            silent += max(0, missing)
            if silent > LONGEST_GAP * rate + MOST_SILENCE * (length - silent + missing):
                raise damaged(path, start + length / rate, "its sound is nearly nothing but gaps")
        if missing > ROUNDING * rate:
            gaps.append((length / rate, (length + missing) / rate))
            yield np.zeros((len(block), missing), np.float32)
            length += missing
        elif missing < -ROUNDING * rate:
            block = block[:, -missing:]
        yield block
        length += block.shape[1]


def describe_gaps(gaps: list[tuple[float, float]], delay: float = 0.0) -> str:
    """One line for any number of them, in the recording's seconds; its sound starts at `delay`."""
    said = ", ".join(f"{delay + start:.2f}-{delay + stop:.2f} s" for start, stop in gaps[:3])
    if len(gaps) > 3:
        total = sum(stop - start for start, stop in gaps)
        said += f" and {len(gaps) - 3} times more, {total:.2f} s in all"
    return f"no sound at {said}: silence stands there, so that the rest keeps its time"


def _blocks(
    container: Any, stream: Any, path: Path, changes: list[float], lost: list[float]
) -> Iterator[tuple[float | None, Block]]:
    """The decoded blocks with their times; what an encoder added at the end is cut off the last one.

    Where rate or channels change, as broadcasts do between programmes, all that follows is turned into the first ones,
    and the seconds from the first block are noted; when packets that cannot be decoded were due is, too.
    """
    held: tuple[float | None, Block] | None = None
    padding, time, first, form = 0, None, None, None
    resampler: Any = None
    for frame in frames_of(container, stream, path, lost):
        if held is not None:
            yield held
        first = frame if first is None else first
        count = first.layout.nb_channels
        time = frame.time
        padding = 0
        if frame.duration and frame.time_base == Fraction(1, frame.sample_rate):
            padding = max(0, frame.samples - frame.duration)
        try:
            if form != (form := (frame.sample_rate, frame.layout.name, frame.format.name)):
                if frame is not first:
                    changes.append((time or 0.0) - (first.time or 0.0))
                layout = "mono" if frame.layout.nb_channels < count else first.layout
                resampler = av.AudioResampler("flt", layout, first.sample_rate)
            parts = [_samples(part, count) for part in resampler.resample(frame)]
        except ValueError as error:
            raise damaged(path, time or 0.0, str(error)) from None
        held = (time, np.concatenate(parts, axis=1)) if parts else None
    if held is not None:
        rest = [_samples(part, count) for part in resampler.resample(None)]
        last = np.concatenate([held[1], *rest], axis=1)
        yield held[0], last[:, : last.shape[1] - padding]


def _samples(frame: Any, count: int) -> Block:
    """Of an interleaved frame, as PyAV reads beyond the channels of one that has eight; one channel is given to all."""
    channels = frame.to_ndarray().reshape(-1, frame.layout.nb_channels).T
    return np.repeat(channels, count // len(channels), axis=0)
