"""The exceptions that a user's input raises, and near misses of names. Nothing heavy, so that --help is quick."""

import difflib
from collections.abc import Iterable
from typing import Any


def closest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: all that are known, and the nearest if one is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f": known are {', '.join(known)}{meant}"


class InputError(ValueError):
    """Something the caller passed in cannot be used: one line with what was found and what to do.

    The command line prints it without a traceback; a bare ValueError from the library is a bug.
    """


class Silence(InputError):
    """A recording, or the channel of it that is asked for, is nothing but zeros."""


class Divergence(InputError):
    """An algorithm left the region where its numbers are finite; its settings do not suit this input.

    Attributes:
        partial: what was drawn before: the `Chains` of the E-step in which it was seen, or the codes z of a scheme
            that runs none.
    """

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial
