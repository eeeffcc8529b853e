"""The exceptions that a user's input raises. They import nothing, so that the command line starts fast."""

from typing import Any


class InputError(ValueError):
    """Something the caller passed in cannot be used: one line with what was found and what to do.

    The command line prints it without a traceback; a bare ValueError from the library is a bug.
    """


class Divergence(InputError):
    """An algorithm left the region where its numbers are finite; its settings do not suit this input.

    Attributes:
        partial: what was drawn before: the `Chains` of the E-step in which it was seen, or the codes z of a scheme
            that runs none.
    """

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial
