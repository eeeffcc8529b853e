"""Files of PyAV (FFmpeg): opened, their streams, what those decode to; damage is refused with its second."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av

from pyro_avse.data.media import TOLERANCE
from pyro_avse.typing import InputError

MOST_PIXELS = 2**26
"""Of a picture: twice 8K."""
MOST_LOST, LOST_SHARE = 50, 0.1
"""Packets that may fail to decode: so many, and besides this share of those that do not fail."""
PLAYLISTS = {"hls", "dash", "concat", "sdp", "imf", "webm_dash_manifest", "image2", "rtsp", "sap"}
"""FFmpeg's names of what makes it open other files, or addresses."""
JOINABLE = "mpegts", "mpeg"
"""FFmpeg's names of containers that may be joined end to end."""
Kind = Literal["video", "audio"]


@dataclass(frozen=True)
class Starts:
    """When a file's streams begin, in seconds of its own time stamps; None where it has no such stream."""

    pictures: Fraction | None
    sound: Fraction | None

    @property
    def delay(self) -> float:
        """Seconds from the first picture to the first sample of the sound; negative where the sound is first."""
        both = self.pictures is not None and self.sound is not None
        return float(self.sound - self.pictures) if both else 0.0  # type: ignore[operator]


def opened(path: Path) -> Any:
    """An input container.

    Raises InputError for a folder, a pipe, what is no video, a playlist of other files, and pictures of over
    `MOST_PIXELS`.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: name one video in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a pipe or a device: give a file, or - for stdin")
    try:
        container = av.open(
            os.path.abspath(path),  # a name with a colon is no address
            metadata_errors="replace",
            options={"protocol_whitelist": "file"},
        )
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        cure = (
            "check the path" if isinstance(error, FileNotFoundError) else "check that it is whole"
        )
        raise InputError(f"{path} cannot be read as a video ({reason}): {cure}") from None
    if not PLAYLISTS.isdisjoint(container.format.name.split(",")):
        container.close()
        raise InputError(f"{path} is a list of other files: name one of them")
    for stream in container.streams.video:
        if stream.codec_context is None:
            continue
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MOST_PIXELS:
            container.close()
            raise InputError(f"{path} has pictures of {width} x {height} pixels: scale it down")
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # if they grow on the way
    return container


def streams_of(container: Any, kind: Kind) -> list[Any]:
    """The streams of a kind; the cover of an album is no video."""
    streams = container.streams.video if kind == "video" else container.streams.audio
    cover = av.stream.Disposition.attached_pic
    return [s for s in streams if not s.disposition & cover]


def stream_of(container: Any, kind: Kind, number: int = 0) -> Any:
    """The stream of a kind with a number, or None."""
    return next(iter(streams_of(container, kind)[number:]), None)


def has_pictures(path: Path) -> bool:
    """Whether a file has pictures that move: no sound file, not one with a cover. Raises no InputError: then False."""
    try:
        with opened(path) as container:
            return stream_of(container, "video") is not None
    except InputError:
        return False


def read_seconds(path: Path) -> float:
    """What a file says it lasts; 0 where it says nothing. Raises InputError for what cannot be read."""
    with opened(path) as container:
        return (container.duration or 0) / av.time_base


def read_starts(path: Path, track: int = 0) -> Starts:
    """When the pictures and the sound of a file begin: the sound by its first decoded block, as encoders run ahead."""
    with opened(path) as container:
        pictures, sound = stream_of(container, "video"), stream_of(container, "audio", track)
        if pictures is None or sound is None:
            return Starts(None, None)
        said = [
            None if s.start_time is None else s.start_time * s.time_base for s in (pictures, sound)
        ]
        heard = None
        for packet in container.demux(sound):
            try:
                blocks = packet.decode()
            except (av.FFmpegError, OSError):
                continue  # said when the sound is read
            if blocks:
                heard = blocks[0]
                break
    if heard is not None and heard.pts is not None:
        said[1] = heard.pts * heard.time_base
    return Starts(said[0], said[1])


def demux(container: Any) -> Iterator[Any]:
    """All packets. Where an MPEG stream is two that were joined, and its clock goes back by over a second, what follows
    is put behind what came before, all streams alike.
    """
    if container.format.name not in JOINABLE:
        yield from container.demux()
        return
    shifts, end = [Fraction(0)], Fraction(0)
    part: dict[int, int] = {}
    last: dict[int, Fraction] = {}
    for packet in container.demux():
        shown = packet.dts if packet.pts is None else packet.pts
        if shown is not None:
            index, time = packet.stream.index, shown * packet.time_base
            if time < last.get(index, time) - 1:
                part[index] = part.get(index, 0) + 1
                if part[index] == len(shifts):  # the first of its streams to go on
                    shifts.append(end - time)
            last[index] = time
            shift = shifts[part.get(index, 0)]
            ticks = round(shift / packet.time_base)
            if packet.dts is not None:  # at the joint it may still be counted on
                packet.dts = min(packet.dts, shown) + ticks
            if packet.pts is not None:
                packet.pts += ticks
            end = max(end, time + shift + (packet.duration or 0) * packet.time_base)
        yield packet


def frames_of(
    container: Any, stream: Any, path: Path, lost: list[float] | None = None
) -> Iterator[Any]:
    """What a stream decodes to. Refuses a file that breaks off or cannot be decoded; with `lost`, packets that cannot
    are left out as long as they are few, and when each was due, in seconds, is appended.
    """
    time = end = 0.0
    decoded = 0
    try:
        for packet in demux(container):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            try:
                frames = packet.decode()
            except (av.FFmpegError, OSError):
                if lost is None or not may_lose(lost, decoded):
                    raise
                lost.append(float(packet.pts * packet.time_base) if packet.pts else time)
                continue
            decoded += 1
            for frame in frames:
                time = frame.time if frame.time is not None else time
                yield frame
    except (av.FFmpegError, OSError) as error:
        raise damaged(path, time, error.strerror or type(error).__name__) from None
    if lost and len(lost) >= decoded:
        raise damaged(path, lost[0], f"most of its {stream.type} cannot be decoded")
    # Others lose their index with their end, and do not open; Matroska says its length at its beginning.
    said = container.duration / av.time_base if container.duration else end
    if "matroska" in container.format.name and said > end + TOLERANCE:
        raise damaged(path, end, f"it says to last {said:.2f} s")


def may_lose(lost: list[float] | None, decoded: int) -> bool:
    """Whether one more may be left out, of a file of which so many were decoded; None: none may."""
    return lost is not None and len(lost) < MOST_LOST + LOST_SHARE * decoded


def damaged(path: Path, seconds: float, reason: str) -> InputError:
    """The refusal of a file that is not whole."""
    return InputError(
        f"{path} is damaged at {seconds:.2f} s ({reason}): copy it again, or trim it there"
    )
