"""A video's pictures, and what else it carries, copied as they are under another sound.

Whether the new container takes the pictures is asked before any work, by writing its header into memory. Other sound
tracks, subtitles, chapters and the title come along where it takes them; `check_video` says what it does not.
"""

import contextlib
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import soxr
from jaxtyping import Float, Float32

from pyro_avse.data.media.container import demux, opened, read_starts, stream_of
from pyro_avse.data.media.encoding import layout_of
from pyro_avse.files import beside, check_place, refused
from pyro_avse.typing import InputError

CODECS = {".mp4": "aac", ".m4v": "aac", ".mov": "aac", ".mkv": "aac", ".webm": "libopus"}
"""What the sound is written as: the containers that also say how much an encoder runs ahead."""
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
OFFERED = ".mkv", ".mp4", ".webm", ".mov"
"""What is proposed where pictures do not fit, the first that does."""
TECHNICAL = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time"}
"""Tags of a file that are not of its content."""
AHEAD = 64
"""Packets within which stamps are put in order."""


@dataclass(frozen=True)
class Plan:
    """What of a video goes into a container."""

    pictures: int
    """The index of their stream in the source."""
    others: tuple[int, ...]
    """Of the streams that come along: other sounds, subtitles, attachments."""
    notes: tuple[str, ...]
    """What does not, a line for the user."""


def copy_pictures(
    path: Path,
    source: Path,
    waveform: Float[np.ndarray, "*channel sample"],
    sample_rate: int,
    track: int = 0,
) -> None:
    """A whole `VideoFile` of a waveform; an older file is replaced whole or kept. Raises InputError as it does."""
    check_video(path, source, track)
    channels = np.atleast_2d(waveform)

    def write(part: Path) -> None:
        with VideoFile(part, path, source, track, sample_rate, len(channels)) as file:
            file.write(channels.T)
        part.replace(path.resolve())

    beside(path, write)


class VideoFile:
    """A video that is written to as soundfile's files are: the pictures of `source` under the sound that comes.

    Pictures are not encoded again. The container is what `path` ends in (`CODECS`); `part` is what is written. The
    sound is AAC, or Opus in .webm, at 48 kHz where the codec does not have its rate. It replaces the source's sound
    `track` and starts where the first sample of that one does. What else there is comes along where the container
    takes it.
    Raises InputError as `check_video`, for pictures that cannot be copied, and for a disk that refuses.
    """

    def __init__(
        self, part: Path, path: Path, source: Path, track: int, sample_rate: int, channels: int = 1
    ) -> None:
        suffix = path.suffix.lower()
        self.path, self.source, self.channels = path, source, channels
        plan = _plan(path, source, track)
        self.pictures = plan.pictures
        starts = read_starts(source, track)
        known = [start for start in (starts.pictures, starts.sound) if start is not None]
        start = min(known, default=Fraction(0))
        delay = Fraction(0) if starts.sound is None else starts.sound - start
        rates = av.codec.Codec(CODECS[suffix], "w").audio_rates
        self.rate = sample_rate if rates is None or sample_rate in rates else 48000
        self.resample = (
            None
            if self.rate == sample_rate
            else soxr.ResampleStream(sample_rate, self.rate, channels, dtype="float32")
        )
        self.next_sample = round(delay * self.rate)
        with self._said(), opened(source) as old:
            self.new: Any = av.open(str(part), "w", format=FORMATS[suffix])
            self.new.metadata.update({k: v for k, v in old.metadata.items() if k not in TECHNICAL})
            _copy_chapters(old, self.new, start)
            replaced = stream_of(old, "audio", track)
            streams = {}
            place = len(old.streams) if replaced is None else replaced.index
            for index in sorted((plan.pictures, *plan.others, place)):  # as they were
                if index == place:
                    self.sound = self._add_sound(CODECS[suffix])
                else:
                    streams[index] = _add(self.new, old.streams[index])
            if replaced is not None:
                _copy_tags(replaced, self.sound)
        copied = [_packets(source, k, into, start) for k, into in streams.items() if into]
        self.copied = merge(*copied, key=_clock)
        self.waiting: Any = None

    def __enter__(self) -> "VideoFile":
        with self._said():
            self.waiting = next(self.copied, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with contextlib.suppress(av.FFmpegError, OSError, ValueError):
                self.new.close()
            return
        with self._said():
            if self.resample is not None:
                nothing = np.zeros((0, self.channels), np.float32)
                self._encode(self.resample.resample_chunk(nothing, last=True))
            self._mux(self.sound.encode(None))
            while self.waiting is not None:
                self._mux_waiting()
            self.new.close()

    def write(self, piece: Float[np.ndarray, "sample *channel"]) -> None:
        """The next samples, (sample,) or (sample, channel), and the pictures until then."""
        samples = np.asarray(piece, np.float32).reshape(len(piece), self.channels)
        with self._said():
            if self.resample is not None:
                samples = self.resample.resample_chunk(samples)
            self._encode(samples)

    def _add_sound(self, codec: str) -> Any:
        stream = self.new.add_stream(codec, rate=self.rate, layout=layout_of(self.channels))
        stream.bit_rate = min(192_000, 4 * self.rate) * self.channels
        return stream

    def _encode(self, samples: Float32[np.ndarray, "sample channel"]) -> None:
        if len(samples) == 0:
            return
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples).reshape(1, -1), "flt", layout_of(self.channels)
        )
        frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
        frame.pts = self.next_sample
        self.next_sample += len(samples)
        self._mux(self.sound.encode(frame))

    def _mux(self, sound: list[Any]) -> None:
        """In the order of decoding."""
        for packet in sound:
            while self.waiting is not None and _clock(self.waiting) < _clock(packet):
                self._mux_waiting()
            self.new.mux(packet)

    def _mux_waiting(self) -> None:
        self.new.mux(self.waiting)
        self.waiting = next(self.copied, None)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Why it failed: a damaged source (said already), the disk, or the container."""
        try:
            yield
        except InputError:
            raise
        except OSError as error:
            raise refused(self.path, error) from None
        except (av.FFmpegError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise _refused(self.path, self.source, reason, self.pictures) from None


def check_video(path: Path, source: Path, track: int = 0) -> list[str]:
    """Whether a `VideoFile` can be written there, and what it will leave out, a line each; call it before any work.

    Raises InputError for an extension not in `CODECS`, a source without pictures, pictures that the container does not
    take (with one that does), and a place that cannot be written.
    """
    plan = _plan(path, source, track)
    check_place(path)
    return list(plan.notes)


def _plan(path: Path, source: Path, track: int) -> Plan:
    suffix = path.suffix.lower()
    if suffix not in CODECS:
        known = ", ".join(CODECS)
        raise InputError(
            f"{path}: pictures are copied into {known}: end it in one of these, or in .wav"
        )
    with opened(source) as container:
        seen, heard = stream_of(container, "video"), stream_of(container, "audio", track)
        if seen is None:
            raise InputError(f"{source} has no pictures to copy into {path}: end it in .wav")
        pictures, replaced = seen.index, None if heard is None else heard.index
        offered = [
            s
            for s in container.streams
            if s.index not in (pictures, replaced)
            # a .mp4's chapters are a stream of data too
            and s.type in ("audio", "subtitle", "attachment", "video")
        ]
        kinds = {s.index: f"{s.type} ({_codec(s)})" for s in offered}
    reason = _refusal(suffix, source, [pictures])
    if reason is not None:
        raise _refused(path, source, reason, pictures)
    if _without_clock(source, pictures):
        raise InputError(
            f"{path}: the first pictures of {source} have no time stamps: end it in .wav"
        )
    taken: list[int] = []
    for index in kinds:
        if _refusal(suffix, source, [pictures, *taken, index]) is None:
            taken.append(index)
    left = ", ".join(kind for index, kind in kinds.items() if index not in taken)
    notes = (f"{source}: left out, as {suffix} does not take it: {left}",) if left else ()
    return Plan(pictures, tuple(taken), notes)


def _without_clock(source: Path, index: int) -> bool:
    """Whether a stream has packets at its beginning that say no time, as Matroska's before time 0 do."""
    with opened(source) as container:
        packets = container.demux(container.streams[index])
        return any(p.size and p.dts is None and p.pts is None for p in islice(packets, AHEAD))


def fitting(source: Path, suffix: str) -> str:
    """The suffix of a container that takes a video's pictures, `suffix` if it does; ".wav" where none does."""
    with opened(source) as container:
        pictures = stream_of(container, "video").index
    return _first_that_fits([suffix, *OFFERED], source, pictures)


def _first_that_fits(suffixes: Sequence[str], source: Path, pictures: int) -> str:
    fit = (s for s in suffixes if _refusal(s.lower(), source, [pictures]) is None)
    return next(fit, ".wav")


def _refused(path: Path, source: Path, reason: str, pictures: int) -> InputError:
    """Names a container that takes the pictures, or none."""
    tried = [s for s in OFFERED if s != path.suffix.lower()]
    fits = _first_that_fits(tried, source, pictures)
    return InputError(f"{path} cannot hold the pictures of {source} ({reason}): end it in {fits}")


def _refusal(suffix: str, source: Path, indices: Sequence[int]) -> str | None:
    """Why a container does not take these streams of a source beside a sound; None where it does."""
    try:
        with (
            opened(source) as old,
            av.open(io.BytesIO(), "w", format=FORMATS[suffix]) as new,
        ):
            for index in indices:
                if _add(new, old.streams[index]) is None:
                    return f"{_codec(old.streams[index])} cannot be copied"
            new.add_stream(CODECS[suffix], rate=48000, layout="mono")
            new.start_encoding()  # writes the header, where containers refuse
    except InputError:
        raise
    except (av.FFmpegError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return None


def _add(container: Any, stream: Any) -> Any:
    """A stream like another, with its language and title; an attachment, whose content is in the header, as well."""
    if stream.type == "attachment":
        container.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
        return False
    made = container.add_stream_from_template(stream, opaque=True)  # no encoder is needed
    _copy_tags(stream, made)
    return made


def _copy_tags(stream: Any, into: Any) -> None:
    """Language, title, and what it is for (a cover, the default). Other tags are of the old container."""
    kept = {k: v for k, v in stream.metadata.items() if k.lower() in ("language", "title")}
    into.metadata.update(kept)
    into.disposition = stream.disposition


def _codec(stream: Any) -> str:
    context = stream.codec_context
    return "unknown" if context is None else str(context.name)


def _copy_chapters(old: Any, new: Any, start: Fraction) -> None:
    if not hasattr(old, "chapters"):  # PyAV before 14
        return
    chapters = [
        chapter
        | {
            side: max(0, chapter[side] - round(start / chapter["time_base"]))
            for side in ("start", "end")
        }
        for chapter in old.chapters()
    ]
    if chapters:
        new.set_chapters(chapters)


def _clock(packet: Any) -> Fraction:
    """When it is to be decoded, in seconds."""
    return Fraction(packet.dts * packet.time_base)


def _packets(source: Path, index: int, into: Any, start: Fraction) -> Iterator[Any]:
    """A stream's packets as they are, on the clock of the new file; a few are in memory at a time.

    Each is to be decoded after the one before: stamps that say otherwise (MPEG-1 says its first one twice, and after
    packets that are missing a reader guesses) are moved ahead.
    """
    with opened(source) as container:
        stream = container.streams[index]
        shift = round(start / stream.time_base)
        held: deque[Any] = deque()
        share = 1
        for packet in demux(container):
            if not packet.size or packet.stream.index != index:
                continue
            if packet.dts is None and packet.pts is None:
                raise ValueError(f"{source.suffix} without time stamps")
            packet.dts = (packet.pts if packet.dts is None else packet.dts) - shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            following = packet.dts
            for before in reversed(held):
                if before.dts < following:
                    break
                before.dts = following = following - max(1, (before.duration or 1) // share)
            packet.stream = into
            held.append(packet)
            if len(held) > AHEAD:
                yield held.popleft()
                share = 8  # what is written stays: those after it are moved by less than lies between two
        yield from held
