"""A video's pictures, and what else it carries, copied as they are under another sound.

Whether the new container takes the pictures is asked before any work, by writing its header into memory. Other sound
tracks, subtitles, chapters and the title come along where it takes them; `check_video` says what it does not.
"""

import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr
from jaxtyping import Float

from pyro_avse.data.media.container import opened, read_starts, stream_of
from pyro_avse.data.media.encoding import layout_of
from pyro_avse.files import beside, check_place
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
    """Write the pictures of `source`, not encoded again, under a waveform that replaces its sound `track`.

    The container is what `path` ends in (`CODECS`); the sound is AAC, or Opus in .webm, and starts where the first
    sample of the replaced one does. What else there is comes along where the container takes it.
    Raises InputError as `check_video`, and for pictures that cannot be copied.
    """
    suffix = path.suffix.lower()
    plan = _plan(path, source, track)
    check_place(path)
    starts = read_starts(source, track)
    known = [start for start in (starts.pictures, starts.sound) if start is not None]
    start = min(known, default=Fraction(0))
    delay = Fraction(0) if starts.sound is None else starts.sound - start

    def write(part: Path) -> None:
        with opened(source) as old, av.open(str(part), "w", format=FORMATS[suffix]) as new:
            new.metadata.update({k: v for k, v in old.metadata.items() if k not in TECHNICAL})
            _copy_chapters(old, new, start)
            replaced = stream_of(old, "audio", track)
            sound, streams = None, {}
            place = len(old.streams) if replaced is None else replaced.index
            for index in sorted((plan.pictures, *plan.others, place)):  # as they were
                if index == place:
                    sound = _encode(new, CODECS[suffix], waveform, sample_rate, delay)
                else:
                    streams[index] = _add(new, old.streams[index])
            assert sound is not None
            if replaced is not None:
                _copy_tags(replaced, sound[0])
            copied = [_packets(source, k, into, start) for k, into in streams.items() if into]
            for packet in merge(iter(sound[1]), *copied, key=lambda p: p.dts * p.time_base):
                new.mux(packet)
        part.replace(path.resolve())

    try:
        beside(path, write)
    except InputError:  # a full disk, a damaged source: said already
        raise
    except (av.FFmpegError, ValueError) as error:
        raise _refused(path, source, str(error).splitlines()[0], plan.pictures) from None


def check_video(path: Path, source: Path, track: int = 0) -> list[str]:
    """Whether `copy_pictures` can write there, and what it will leave out, a line each; call it before any work.

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
    taken: list[int] = []
    for index in kinds:
        if _refusal(suffix, source, [pictures, *taken, index]) is None:
            taken.append(index)
    left = ", ".join(kind for index, kind in kinds.items() if index not in taken)
    notes = (f"{source}: left out, as {suffix} does not take it: {left}",) if left else ()
    return Plan(pictures, tuple(taken), notes)


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


def _encode(
    container: Any,
    codec: str,
    waveform: Float[np.ndarray, "*channel sample"],
    rate: int,
    delay: Fraction,
) -> tuple[Any, list[Any]]:
    """A stream, and the packets of a sound that starts at `delay` seconds."""
    channels = np.atleast_2d(waveform)
    known = av.codec.Codec(codec, "w").audio_rates
    if known is not None and rate not in known:
        channels, rate = soxr.resample(channels.T, rate, 48000).T, 48000
    layout = layout_of(len(channels))
    stream = container.add_stream(codec, rate=rate, layout=layout)
    stream.bit_rate = min(192_000, 4 * rate) * len(channels)
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(channels, np.float32), format="fltp", layout=layout
    )
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(delay * rate)
    return stream, [*stream.encode(frame), *stream.encode(None)]


def _packets(source: Path, index: int, into: Any, start: Fraction) -> Iterator[Any]:
    """A stream's packets as they are, on the clock of the new file; a few are in memory at a time.

    Each is to be decoded after the one before: stamps that say otherwise (MPEG-1 says its first one twice, and after
    packets that are missing a reader guesses) are moved ahead.
    """
    with opened(source) as container:
        stream = container.streams[index]
        shift = round(start / stream.time_base)
        held: deque[Any] = deque()
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.dts is None and packet.pts is None:
                raise ValueError(f"{source.suffix} without time stamps")
            packet.dts = (packet.pts if packet.dts is None else packet.dts) - shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            following = packet.dts
            for before in reversed(held):
                if before.dts < following:
                    break
                before.dts = following = following - max(1, before.duration or 1)
            packet.stream = into
            held.append(packet)
            if len(held) > AHEAD:
                yield held.popleft()
        yield from held
