"""The pictures of video files through PyAV (FFmpeg), with the times at which they show.

Time starts with the sound (without sound, with the first picture), so that pictures and samples share one clock even
where a container starts its two streams apart. Their sound is read by `sound`, they are copied by `copying`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt8

from pyro_avse.data.media import TOLERANCE
from pyro_avse.data.media.container import (
    damaged,
    frames_of,
    may_lose,
    opened,
    read_starts,
    stream_of,
)
from pyro_avse.data.media.copying import CODECS as CODECS
from pyro_avse.data.media.copying import check_video as check_video
from pyro_avse.data.media.copying import copy_pictures as copy_pictures
from pyro_avse.data.media.sound import read_sound as read_sound
from pyro_avse.typing import InputError

WIDEST = 2**14
"""Columns to which narrow pixels are stretched at most."""
FASTEST = 120.0
"""Frames a second at most where the rate varies: mouths are no faster, and two stamps that nearly agree no rate."""


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
    mask: Bool[np.ndarray, "frame"] | None = None
    """False for frames of sound before the first picture, where that comes over 0.25 s late; None: none."""


def read_pictures(
    path: Path, track: int = 0, lost: list[float] | None = None
) -> Iterator[tuple[float, Callable[[], UInt8[np.ndarray, "row column"]]]]:
    """Every picture's time in seconds from the start of a sound track, and a function that makes it grey and upright.

    With `lost`, a few that are incomplete or cannot be decoded are left out, and their times appended.
    Raises InputError for no pictures, and a file that cannot be read, breaks off or is damaged (with the second).
    """
    with opened(path) as container:
        stream = stream_of(container, "video")
        if stream is None:
            raise InputError(f"{path} has no pictures: give a video, or the lips' file")
        start = read_starts(path, track).sound
        rate = stream.average_rate or Fraction(25)
        shape = float(stream.sample_aspect_ratio or 1)
        whole = 0
        broken: Fraction | None = None
        for number, frame in enumerate(frames_of(container, stream, path, lost)):
            if frame.is_corrupt and not whole:
                continue  # a recording cut out of a stream starts with pictures that lean on lost ones
            time = Fraction(number) / rate if frame.pts is None else frame.pts * frame.time_base
            broken = time if frame.is_corrupt else None
            if broken is not None and not may_lose(lost, whole):
                raise damaged(path, float(time), "a picture is incomplete")
            start = time if start is None else start
            if lost is not None and broken is not None:
                lost.append(float(time - start))
                continue
            whole += 1
            yield float(time - start), partial(_upright_grey, frame, shape)
    if broken is not None:  # the last one: there is no more of it
        raise damaged(path, float(broken), "a picture is incomplete")
    if not whole:
        raise InputError(f"{path} has no pictures that can be decoded: check the file")


def time_pictures(
    path: Path, times: Float64[np.ndarray, "picture"], until: float = np.inf
) -> Timing:
    """Put pictures on a constant rate that starts with the sound.

    Where every picture is within half a frame of k / fps, each is a frame. Else (a variable rate, or pictures that
    start later or earlier than the sound) a frame shows the last picture that began before it, at the rate that the
    median interval gives; nothing is blended. Before a first picture that comes over 0.25 s after the sound there is
    none (`mask`), and pictures that end before the sound begins leave one frame, masked. At a varying rate there are
    no frames after `until`, in seconds: a wrong time stamp may be years ahead.
    """
    with opened(path) as container:
        stream = stream_of(container, "video")
        assert stream is not None
        rate = float(stream.average_rate or 25)
    steps = np.diff(times)
    usual = 1 / float(np.median(steps)) if len(steps) and np.median(steps) > 0 else rate
    for fps in (rate, usual):
        if np.abs(times - np.arange(len(times)) / fps).max() < 0.5 / fps:
            return Timing(times, np.arange(len(times)), fps, None)
    usual = min(usual, FASTEST)
    last = min(max(0.0, times[-1]), max(0.0, until))
    grid = np.arange(0, last + 1 / usual - 1e-6, 1 / usual)
    shown = np.searchsorted(times, grid + 1e-6, side="right") - 1
    mask = None
    if times[-1] + 1 / usual <= 0:
        mask = np.zeros(len(grid), bool)
    elif times[0] > TOLERANCE:
        mask = shown >= 0
    if len(steps) and (steps.max() > 1.5 / usual or steps.min() < 0.5 / usual):
        slow, fast = 1 / max(steps.max(), 1e-3), 1 / max(steps.min(), 1e-3)
        note = f"the frame rate varies from {slow:.3g} to {fast:.3g} fps: held at {usual:.4g} fps by its time stamps"
    else:
        note = f"pictures and sound start {times[0]:+.3f} s apart: aligned by their time stamps"
    return Timing(times, shown.clip(0), usual, note, mask)


def read_timing(path: Path) -> Timing:
    """The same of a file, all of whose pictures are decoded. Raises InputError as both."""
    return time_pictures(path, np.array([time for time, _ in read_pictures(path)]))


def _upright_grey(frame: Any, shape: float) -> UInt8[np.ndarray, "row column"]:
    """Grey levels, turned as the file says (telephones store pictures lying), of pixels as wide as they are high.

    `shape` is a stored pixel's width by its height; one of 4:5 to 5:4 is left as it is, as it was for the models' lips.
    """
    width = frame.width if 0.8 <= shape <= 1.25 else min(WIDEST, max(1, round(frame.width * shape)))
    grey = frame.to_ndarray(format="gray", width=width, height=frame.height)
    return np.ascontiguousarray(np.rot90(grey, round(frame.rotation / 90)))
