"""Files: their kinds by name, and writing them: a reader sees the old one or the new one, never half of one."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyro_avse.errors import InputError

SOUNDS = frozenset((".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".m4a"))


VIDEOS = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".asf", ".flv", ".3gp", ".ts",
    ".mts", ".m2ts", ".vob", ".ogv", ".mxf",
))  # fmt: skip


LIPS = frozenset({".npz", ".npy", ".mat"})


WORDS = frozenset({".align", ".txt"})


PART = re.compile(r"\.pyro_avse-[0-9a-f]{16}\.part")
"""What is being written, or was when its process was killed."""


def kind_of(path: Path) -> str | None:
    """ "sound", "video", "lips", "words", or None for anything else, by the extension."""
    suffix = path.suffix.lower()
    kinds = {"sound": SOUNDS, "video": VIDEOS, "lips": LIPS, "words": WORDS}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), None)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename.

    Raises:
        InputError: the folder is missing or cannot be written to, or the disk is full.
    """

    def write(part: Path) -> None:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, os.path.realpath(path))

    beside(path, write)


def make_folder(path: Path) -> None:
    """Make an output folder and its parents; what a killed run left half-written in it is removed.

    Raises:
        InputError: it cannot be made, or not written to (tried with an unnamed file).
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{path}: cannot be written to ({reason}): choose another folder"
        ) from None
    remove_litter(path)


def check_place(path: Path) -> None:
    """Whether a file can be written there, whatever its format. Raises InputError as `check_writable`."""
    if not os.path.isdir(os.path.dirname(os.path.realpath(path))):
        raise InputError(f"{path} cannot be written: make the folder {path.parent} first")
    if os.path.isdir(path):
        raise InputError(f"{path} cannot be written: it is a folder, name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} cannot be written: it is a pipe or a device, name a file")

    def probe(part: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # refuses a name too long for the file system

    beside(path, probe)
    remove_litter(Path(os.path.realpath(path)).parent)


def refuse_inputs(written: Iterable[Path | None], read: Mapping[str, Path | None]) -> None:
    """Refuse to write over what the same call reads, by whatever name: another path, a link, a hard link.

    Args:
        read: by what they are, as "the recording".
    """
    for output in filter(None, written):
        for what, path in read.items():
            if path is not None and same_file(output, path):
                raise InputError(f"{output} is {what} itself: name another file")


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, be it there or not."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)


def beside(path: Path, use: Callable[[Path], None]) -> None:
    """Call `use` with a new empty file in the folder where `path` leads, for it to fill and rename; leave none such.

    Whoever writes holds the file's lock, by which `remove_litter` knows what a killed process left.

    Raises:
        InputError: the folder or the disk refuses, with its reason.
    """
    try:
        part, lock = _new_part(Path(os.path.realpath(path)).parent)
    except (OSError, ValueError) as err:
        raise refused(path, err) from err
    try:
        use(part)
    except OSError as err:
        raise refused(path, err) from err
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Signals that Python handles wait until the end: for calls into C that call Python and lose what it raises."""
    if threading.current_thread() is not threading.main_thread():  # no handler runs here
        yield
        return
    came: list[tuple[Any, ...]] = []
    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
                signal.signal(number, lambda *signalled: came.append(signalled))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for signalled in came:
            before[signal.Signals(signalled[0])](*signalled)


def refused(path: str | Path, error: OSError | ValueError) -> InputError:
    """Why a file could not be written, with the cure."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = "make room, or write elsewhere" if full else "choose another place"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return InputError(f"{path} cannot be written: {reason}: {cure}")


def remove_litter(folder: Path) -> None:
    """Remove half-written files in a folder whose process was killed: those of `beside` that nobody locks."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not PART.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):  # locked, of another user, or gone
                number = os.open(entry.path, os.O_RDWR)
                try:
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                finally:
                    os.close(number)


def _new_part(folder: Path) -> tuple[Path, int]:
    """An empty file with an unused name, and the number under which it is open and locked."""
    while True:
        part = folder / f".pyro_avse-{secrets.token_hex(8)}.part"
        number = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: its litter stays
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            os.stat(part)
            return part, number
        os.close(number)  # taken for litter before it was locked
