"""The one exception that a user's input raises. It imports nothing, so that the command line starts fast."""


class InputError(ValueError):
    """Something the caller passed in cannot be used: one line with what was found and what to do.

    The command line prints it without a traceback; a bare ValueError from the library is a bug.
    """
