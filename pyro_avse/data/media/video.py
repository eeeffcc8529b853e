"""Video files through PyAV (FFmpeg): their sound, their pictures with the times at which they show, and a copy of the
pictures under another sound.

Time starts with the sound (without sound, with the first picture), so that pictures and samples share one clock even
where a container starts its two streams apart.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from heapq import merge
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import soxr
from jaxtyping import Float, Float64, Int, UInt8

from pyro_avse.data.media import TOLERANCE
from pyro_avse.files import beside, check_place
from pyro_avse.typing import InputError

CODECS = {".mp4": "aac", ".m4v": "aac", ".mov": "aac", ".mkv": "aac", ".webm": "libopus"}
"""What the sound is written as: the containers that also say how much an encoder runs ahead."""
_FORMATS = {".mkv": "matroska", ".m4v": "mp4"}
_Kind = Literal["video", "audio"]


@dataclass(frozen=True)
class Timing:
    """When the pictures of a video show."""

    times: Float64[np.ndarray, "picture"]
    """Seconds from the start of the sound."""
    shown: Int[np.ndarray, "frame"]
    """The picture of every frame at a constant rate, from the start of the sound on."""
    fps: float
    note: str | None
    """What had to be done to have a constant rate, for the user to know."""


def read_sound(path: Path) -> tuple[Float64[np.ndarray, "sample channel"], int]:
    """The first sound of a video (or .m4a) and its rate in Hz.

    Raises InputError for no sound, and a file that cannot be read or is damaged (with the second).
    """
    pieces: list[np.ndarray] = []
    with _opened(path) as container:
        stream = _stream(container, "audio", path)
        if stream is None:
            raise InputError(f"{path} has no sound: give a video with sound, or the sound file")
        resampler = av.AudioResampler(format="dblp")
        end, padding = None, 0
        for frame in _frames(container, stream, path):
            if end is not None and frame.time is not None and abs(frame.time - end) > TOLERANCE:
                raise _damaged(path, end, f"the sound jumps to {frame.time:.2f} s")
            if frame.time is not None:
                end = frame.time + frame.samples / frame.sample_rate
            if frame.duration and frame.time_base == Fraction(1, frame.sample_rate):
                padding = max(0, frame.samples - frame.duration)  # of the last block
            try:
                pieces += [part.to_ndarray() for part in resampler.resample(frame)]
            except ValueError as error:
                raise _damaged(path, end or 0.0, str(error)) from None
        pieces += [part.to_ndarray() for part in resampler.resample(None)]
        channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
    samples = np.concatenate(pieces, axis=1) if pieces else np.zeros((channels, 0))
    return samples[:, : samples.shape[1] - padding].T, rate


def read_pictures(
    path: Path,
) -> Iterator[tuple[float, Callable[[], UInt8[np.ndarray, "row column"]]]]:
    """Every picture's time in seconds, and a function that makes it grey and upright.

    Raises InputError for no pictures, and a file that cannot be read or is damaged (with the second).
    """
    with _opened(path) as container:
        stream = _stream(container, "video", path)
        if stream is None:
            raise InputError(f"{path} has no pictures: give a video, or the lips' file")
        sound = _stream(container, "audio", path)
        start = (
            None
            if sound is None or sound.start_time is None
            else sound.start_time * sound.time_base
        )
        rate = stream.average_rate or Fraction(25)
        sounds = False
        for number, frame in enumerate(_frames(container, stream, path)):
            if frame.is_corrupt and not sounds:
                continue  # a recording cut out of a stream starts with pictures that lean on lost ones
            time = Fraction(number) / rate if frame.pts is None else frame.pts * frame.time_base
            if frame.is_corrupt:
                raise _damaged(path, float(time), "a picture is incomplete")
            start = time if start is None else start
            sounds = True
            yield float(time - start), partial(_upright_grey, frame)
    if not sounds:
        raise InputError(f"{path} has no pictures that can be decoded: check the file")


def time_pictures(path: Path, times: Float64[np.ndarray, "picture"]) -> Timing:
    """Put pictures on a constant rate that starts with the sound.

    Where every picture is within half a frame of k / fps, each is a frame. Else (a variable rate, or pictures that
    start later or earlier than the sound) a frame shows the last picture that began before it, at the rate that the
    median interval gives; nothing is blended.
    Raises InputError where the pictures begin more than 0.25 s after the sound.
    """
    with _opened(path) as container:
        stream = _stream(container, "video", path)
        assert stream is not None
        rate = float(stream.average_rate or 25)
    steps = np.diff(times)
    usual = 1 / float(np.median(steps)) if len(steps) and np.median(steps) > 0 else rate
    for fps in (rate, usual):
        if np.abs(times - np.arange(len(times)) / fps).max() < 0.5 / fps:
            return Timing(times, np.arange(len(times)), fps, None)
    if times[0] > TOLERANCE or times[-1] <= 0:
        raise InputError(
            f"{path}: its pictures show from {times[0]:.2f} to {times[-1]:.2f} s of its sound: trim the sound"
        )
    grid = np.arange(0, times[-1] + 1 / usual - 1e-6, 1 / usual)
    shown = np.searchsorted(times, grid + 1e-6, side="right") - 1
    if steps.max() > 1.5 / usual or steps.min() < 0.5 / usual:
        slow, fast = 1 / steps.max(), 1 / max(steps.min(), 1e-3)
        note = f"the frame rate varies from {slow:.3g} to {fast:.3g} fps: held at {usual:.4g} fps by its time stamps"
    else:
        note = f"pictures and sound start {times[0]:+.3f} s apart: aligned by their time stamps"
    return Timing(times, shown.clip(0), usual, note)


def read_timing(path: Path) -> Timing:
    """The same of a file, all of whose pictures are decoded. Raises InputError as both."""
    return time_pictures(path, np.array([time for time, _ in read_pictures(path)]))


def copy_pictures(
    path: Path, source: Path, waveform: Float[np.ndarray, "sample"], sample_rate: int
) -> None:
    """Write the pictures of `source`, not encoded again, under a mono waveform that replaces its sound.

    The container is what `path` ends in (`CODECS`); the sound is AAC, or Opus in .webm, and starts where the sound of
    `source` does.
    Raises InputError as `check_video`, and for pictures that the container cannot hold.
    """
    check_video(path, source)
    suffix = path.suffix.lower()

    def write(part: Path) -> None:
        format_name = _FORMATS.get(suffix, suffix[1:])
        with _opened(source) as old, av.open(str(part), "w", format=format_name) as new:
            seen, heard = _stream(old, "video", source), _stream(old, "audio", source)
            pictures = new.add_stream_from_template(seen)
            starts = [
                s.start_time * s.time_base for s in (seen, heard) if s is not None and s.start_time
            ]
            start = min(starts) if len(starts) == 2 else Fraction(0)
            delay = (
                Fraction(0) if heard is None else (heard.start_time or 0) * heard.time_base - start
            )
            sound = _encode(new, CODECS[suffix], waveform, sample_rate, delay)
            copied = _packets_to_copy(old, seen, pictures, start, source)
            for packet in merge(copied, sound, key=lambda p: p.dts * p.time_base):
                new.mux(packet)
        part.replace(path.resolve())

    try:
        beside(path, write)
    except InputError:  # of the disk
        raise
    except (av.FFmpegError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} cannot hold the pictures of {source} ({reason}): end it in .mkv"
        ) from None


def check_video(path: Path, source: Path) -> None:
    """Whether `copy_pictures` will be able to write there; call it before any work.

    Raises InputError for an extension not in `CODECS`, a source without pictures, and a place that cannot be written.
    """
    if path.suffix.lower() not in CODECS:
        known = ", ".join(CODECS)
        raise InputError(
            f"{path}: pictures are copied into {known}: end it in one of these, or in .wav"
        )
    with _opened(source) as container:
        if _stream(container, "video", source) is None:
            raise InputError(f"{source} has no pictures to copy into {path}: end it in .wav")
    check_place(path)


def _opened(path: Path) -> Any:
    if path.is_dir():
        raise InputError(f"{path} is a folder: name one video in it")
    try:
        return av.open(os.path.abspath(path))  # a name with a colon is no address
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        cure = (
            "check the path" if isinstance(error, FileNotFoundError) else "check that it is whole"
        )
        raise InputError(f"{path} cannot be read as a video ({reason}): {cure}") from None


def _stream(container: Any, kind: _Kind, path: Path) -> Any:
    """The first stream of a kind, or None; the cover of an album is no video."""
    streams = container.streams.video if kind == "video" else container.streams.audio
    cover = av.stream.Disposition.attached_pic
    return next((s for s in streams if not s.disposition & cover), None)


def _frames(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """What a stream decodes to; refuses a file that breaks off or cannot be decoded."""
    time = end = 0.0
    try:
        for packet in container.demux():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            for frame in packet.decode():
                time = frame.time if frame.time is not None else time
                yield frame
    except (av.FFmpegError, OSError) as error:
        raise _damaged(path, time, error.strerror or type(error).__name__) from None
    # Others lose their index with their end, and do not open; Matroska says its length at its beginning.
    said = container.duration / av.time_base if container.duration else end
    if "matroska" in container.format.name and said > end + TOLERANCE:
        raise _damaged(path, end, f"it says to last {said:.2f} s")


def _damaged(path: Path, seconds: float, reason: str) -> InputError:
    return InputError(
        f"{path} is damaged at {seconds:.2f} s ({reason}): copy it again, or trim it there"
    )


def _upright_grey(frame: Any) -> UInt8[np.ndarray, "row column"]:
    """Grey levels, turned as the file says (telephones store pictures lying)."""
    return np.ascontiguousarray(
        np.rot90(frame.to_ndarray(format="gray"), round(frame.rotation / 90))
    )


def _encode(
    container: Any, codec: str, waveform: Float[np.ndarray, "sample"], rate: int, delay: Fraction
) -> list[Any]:
    """The packets of a mono sound that starts at `delay` seconds."""
    known = av.codec.Codec(codec, "w").audio_rates
    if known is not None and rate not in known:
        waveform, rate = soxr.resample(waveform, rate, 48000), 48000
    stream = container.add_stream(codec, rate=rate, layout="mono")
    stream.bit_rate = min(192_000, 4 * rate)
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(waveform, np.float32)[None], format="fltp", layout="mono"
    )
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(delay * rate)
    return [*stream.encode(frame), *stream.encode(None)]


def _packets_to_copy(
    container: Any, stream: Any, into: Any, start: Fraction, path: Path
) -> list[Any]:
    """A stream's packets as they are, on the clock of the new file."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    shift = round(start / stream.time_base)
    following = None
    for packet in reversed(packets):
        if packet.dts is None and packet.pts is None:
            raise ValueError(f"{path.suffix} without time stamps")
        packet.dts = (packet.pts if packet.dts is None else packet.dts) - shift
        packet.pts = packet.dts if packet.pts is None else packet.pts - shift
        if following is not None and packet.dts >= following:  # MPEG-1 says its first one twice
            packet.dts = following - max(1, packet.duration or 1)
        following = packet.dts
        packet.stream = into
    return packets
