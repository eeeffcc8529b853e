"""Sound files through libsndfile: as far as they go, whatever length their header says."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

from pyro_avse.data.media.muted import muted
from pyro_avse.typing import InputError

UNKNOWN = 2**62
"""Samples from which on a file does not say its length: FLAC out of a pipe."""
UNKNOWN_FORMAT, NO_FILE = 1, 7
"""libsndfile's numbers of errors; the second is what it says of a .mp3 without any frame."""
PIECE = 2**20
"""Samples that are read at once: a header's length may be a lie, or none."""


class Unreadable(InputError):
    """What libsndfile does not read; PyAV may."""


class EndsEarly(InputError):
    """A sound file that holds less than it says."""


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[soundfile.SoundFile]:
    """Raises Unreadable for what libsndfile cannot open, and for damage that it meets inside."""
    try:
        with muted():
            file = soundfile.SoundFile(os.fsencode(path))  # a name may be no text
    except soundfile.LibsndfileError as err:
        unknown = err.code in (UNKNOWN_FORMAT, NO_FILE)
        reason = "no known format" if unknown else err.error_string.rstrip(".")
        raise Unreadable(
            f"{path} cannot be read as sound ({reason}): check that it is one and whole"
        ) from err
    except TypeError as err:  # what soundfile says of .raw, which has no header
        raise Unreadable(f"{path} does not say its sample rate: convert it to .wav") from err
    with file:
        if file.format == "MP3" and not _starts_as_mp3(path):
            raise Unreadable(f"{path} does not begin as a .mp3: check that it is one")
        if file.format == "OGG" and _has_several(path):
            raise Unreadable(f"{path} holds several streams: cut it")
        try:
            yield file
        except soundfile.LibsndfileError as err:
            raise Unreadable(f"{path} is damaged ({err.error_string}): copy it again") from err


def _has_several(path: Path) -> bool:
    """Of an .ogg, whether streams begin after its beginning, of which libsndfile reads the first."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.rfind(b"OggS\0\x02") > 0


def _starts_as_mp3(path: Path) -> bool:
    """libmpg123 takes anything of that name, and finds silence in a video."""
    with path.open("rb") as file:
        start = file.read(3)
    return start == b"ID3" or (start[:1] == b"\xff" and start[1:2] >= b"\xe0")


def read_whole(file: soundfile.SoundFile, path: Path) -> Float[np.ndarray, "sample channel"]:
    """All samples. Raises InputError for more than memory holds."""
    parts = [np.zeros((0, file.channels))]
    try:
        while len(parts) == 1 or len(parts[-1]):
            with muted():
                parts.append(file.read(PIECE, dtype="float64", always_2d=True))
        return np.concatenate(parts)
    except MemoryError:
        raise InputError(
            f"{path} says it lasts {file.frames / file.samplerate:.0f} s, more than memory holds: check it, or cut it"
        ) from None


def names_of(path: Path, count: int) -> tuple[str, ...]:
    """Of more than two channels, as the file says them, such as FL, FR, FC; else none."""
    if count < 3 or path.suffix.lower() not in (".wav", ".flac"):
        return ()
    from pyro_avse.data.media.container import opened, stream_of  # PyAV takes a while to load

    with contextlib.suppress(InputError), opened(path) as container:
        stream = stream_of(container, "audio")
        if stream is not None and stream.codec_context is not None:
            return tuple(channel.name for channel in stream.codec_context.layout.channels)
    return ()


def ends_early(path: Path, seconds: float) -> EndsEarly:
    """The refusal of a file that holds no more than so many seconds."""
    return EndsEarly(f"{path} ends early, at {seconds:.2f} s: copy it again")
