"""Files: their kinds by name, and writing them: a reader sees the old one or the new one, never half of one."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from pyro_avse.errors import InputError

SOUNDS = frozenset((".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".m4a"))


VIDEOS = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts",
))  # fmt: skip


LIPS = frozenset({".npz", ".npy", ".mat"})


WORDS = frozenset({".align", ".txt"})


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
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}): choose another place"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # where nothing could be written, nothing is left
            beside.unlink()


def make_folder(path: Path) -> None:
    """Make an output folder and its parents.

    Raises:
        InputError: it cannot be made, or not written to (tried with an unnamed file).
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"{path}: cannot be written to ({reason}): choose another folder"
        ) from None


def check_place(path: Path) -> None:
    """Whether a file can be written there, whatever its format. Raises InputError as `check_writable`."""
    if not os.path.isdir(os.path.dirname(os.path.realpath(path))):
        raise InputError(f"{path} cannot be written: make the folder {path.parent} first")
    if os.path.isdir(path):
        raise InputError(f"{path} cannot be written: it is a folder, name a file in it")

    def probe(part: Path) -> None:
        part.open("xb").close()
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # refuses a name too long for the file system

    beside(path, probe)


def beside(path: Path, use: Callable[[Path], None]) -> None:
    """Call `use` with an unused name in the folder where `path` leads; leave nothing so named."""
    part = Path(os.path.realpath(path)).with_name(f".{secrets.token_hex(8)}.part")
    try:
        try:
            use(part)
        finally:
            part.unlink(missing_ok=True)
    except OSError as err:
        raise InputError(f"{path} cannot be written: {err.strerror}") from err
