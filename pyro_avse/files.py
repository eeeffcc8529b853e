"""Writing files: a reader sees the old one or the new one, never half of one."""

import contextlib
import os
import tempfile
from pathlib import Path

from pyro_avse.errors import InputError


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
