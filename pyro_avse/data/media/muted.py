"""Quiet decoders: libmpg123, inside libsndfile, writes to stderr what it mends in a file."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing that is written to file descriptor 2 meanwhile is seen; what Python raises is."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
