"""Sound into files: whole or not at all, in the format that the extension names."""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from jaxtyping import Float

from pyro_avse.files import beside, check_place, kind_of, refused, signals_held
from pyro_avse.typing import InputError

SUBTYPES = {"WAV": "FLOAT", "FLAC": "PCM_24"}
"""What is written where libsndfile's default, 16 bits, would lose something."""
ENCODED = frozenset({".m4a", ".opus"})
"""What PyAV writes, as AAC and Opus."""


def save_audio(
    path: str | os.PathLike[str], waveform: Float[np.ndarray, "sample"], sample_rate: int
) -> None:
    """Write a mono file whose format its extension names; an older file is replaced whole or kept.

    .wav holds float32 as it is; .flac 24 bits; .m4a is AAC and .opus Opus; the others are libsndfile's default.
    All but .wav clip samples beyond +-1, as their formats have no such values.
    Raises InputError as `check_writable` does, for samples that are not finite, a rate the format
    does not know, and a disk that refuses.
    """
    save_together([path], [(waveform,)], sample_rate)


def save_pieces(
    path: str | os.PathLike[str],
    pieces: Iterable[Float[np.ndarray, "sample"]],
    sample_rate: int,
) -> None:
    """`save_audio` of a waveform that comes piece by piece: written beside as it comes, renamed when whole."""
    save_together([path], ((piece,) for piece in pieces), sample_rate)


def save_together(
    paths: Sequence[str | os.PathLike[str]],
    pieces: Iterable[Sequence[Float[np.ndarray, "sample *channel"]]],
    sample_rate: int,
    channels: int = 1,
    pictures: tuple[Path, int] | None = None,
) -> None:
    """The same of several waveforms that come together, one for each path: all are renamed when all are whole.

    Each is (sample,), or (sample, channel) of that many channels. `pictures` is a video and the sound track in it,
    from 0, that is replaced in those of the paths that are videos.
    """
    for path in paths:
        if pictures is None or kind_of(Path(path)) != "video":
            check_writable(path)

    def write(parts: list[Path]) -> None:
        with contextlib.ExitStack() as files:
            opened = []
            for path, part in zip(paths, parts, strict=True):
                form = (sample_rate, channels, pictures)
                opened.append(_created(files, part, Path(path), *form))
            for together in pieces:
                for path, (said, file), piece in zip(paths, opened, together, strict=True):
                    if not np.isfinite(piece).all():
                        raise InputError(
                            f"{path} not written: the waveform holds NaN or infinite samples"
                        )
                    with said():
                        file.write(piece)
        for part in parts:
            with part.open("r+b") as written:
                _forget_time(written)
                written.flush()
                os.fsync(written.fileno())
        for path, part in zip(paths, parts, strict=True):
            part.replace(os.path.realpath(path))

    def nested(parts: list[Path]) -> None:
        if len(parts) == len(paths):
            write(parts)
        else:
            beside(Path(paths[len(parts)]), lambda part: nested([*parts, part]))

    try:
        nested([])
    except soundfile.LibsndfileError as err:
        names = " and ".join(map(str, paths))
        raise _cannot_hold(names, sample_rate, channels, err) from err


class _Disk:
    """A file to write to that keeps why a write failed: libsndfile says "System error" of all, and goes on after some.

    libsndfile is called under `said()` alone. It raises InputError with the disk's reason.
    """

    def __init__(self, path: str | os.PathLike[str], part: Path) -> None:
        self.path, self.file = Path(path), part.open("wb", buffering=0)
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Called by libsndfile, through which nothing can be raised."""
        left = memoryview(data)
        try:
            while left and self.failure is None:
                left = left[self.file.write(left) :]
        except OSError as error:
            self.failure = error
        return len(data) - len(left)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    @contextlib.contextmanager
    def said(self) -> Iterator[None]:
        """Why it failed, in place of what libsndfile made of it. Signals wait, as they could not be raised either."""
        with signals_held():
            try:
                yield
            except (soundfile.LibsndfileError, AssertionError):
                if self.failure is None:
                    raise
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise refused(self.path, failure)

    def close(self, sound: soundfile.SoundFile) -> None:
        """The header gets its lengths, and the file its end."""
        with self.file, self.said():
            sound.close()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Whether `save_audio` will be able to write there; call it before any work.

    Raises InputError for an extension that names no sound format, a missing folder, one that cannot
    be written to (tried with an empty file, removed at once), and a path that is a folder.
    """
    _format(Path(path))
    check_place(Path(path))


def check_holds(path: str | os.PathLike[str], sample_rate: int, channels: int = 1) -> None:
    """Whether the format has that rate, and so many channels; call it before any work. Raises InputError."""
    path = Path(path)
    if path.suffix.lower() in ENCODED:
        from pyro_avse.data.media.encoding import layout_of  # PyAV takes a while to load

        layout_of(channels)
        return
    form = _format(path)
    more: Any = {"subtype": SUBTYPES.get(form), "format": form}
    try:
        soundfile.SoundFile(io.BytesIO(), "w", sample_rate, channels, **more).close()
    except soundfile.LibsndfileError as err:
        raise _cannot_hold(str(path), sample_rate, channels, err) from None


def _cannot_hold(
    names: str, sample_rate: int, channels: int, err: soundfile.LibsndfileError
) -> InputError:
    reason = err.error_string.removeprefix("Error : ").rstrip(".")
    count = "1 channel" if channels == 1 else f"{channels} channels"
    return InputError(f"{names} cannot hold {sample_rate} Hz in {count} ({reason}): write .wav")


def _created(
    files: contextlib.ExitStack,
    part: Path,
    path: Path,
    sample_rate: int,
    channels: int,
    pictures: tuple[Path, int] | None,
) -> tuple[Callable[[], contextlib.AbstractContextManager[None]], Any]:
    """A new file with `write`, of the format that `path` names, and what a write stands under."""
    if pictures is not None and kind_of(path) == "video":
        from pyro_avse.data.media.copying import VideoFile  # PyAV takes a while to load

        video = VideoFile(part, path, *pictures, sample_rate, channels)
        return contextlib.nullcontext, files.enter_context(video)
    if path.suffix.lower() in ENCODED:
        from pyro_avse.data.media.encoding import EncodedFile

        encoded = EncodedFile(part, path.suffix.lower(), sample_rate, channels)
        return contextlib.nullcontext, files.enter_context(encoded)
    form = _format(path)
    disk = _Disk(path, part)
    files.callback(disk.file.close)
    with disk.said():
        sound = soundfile.SoundFile(
            disk, "w", sample_rate, channels, subtype=SUBTYPES.get(form), format=form
        )
        files.callback(disk.close, sound)
    return disk.said, sound


def _forget_time(file: BinaryIO) -> None:
    """libsndfile notes in floating-point .wav the second of writing: the same speech is to be the same bytes."""
    file.seek(0)
    header = file.read(100)
    at = header.find(b"PEAK")
    if header.startswith(b"RIFF") and at > 0:
        file.seek(at + 12)  # after the chunk's name, size and version
        file.write(bytes(4))


def _format(path: Path) -> str:
    """libsndfile's name of the format that the extension names; of `ENCODED`, PyAV's, the extension itself."""
    name = path.suffix[1:].upper()
    if path.suffix.lower() in ENCODED:
        return name
    if name == "RAW" or name not in soundfile.available_formats():
        raise InputError(f"{path} names no sound format ({path.suffix!r}): end it in .wav or .flac")
    return name
