"""The command line: a file a group of commands, registered on the `app` of `app.py`.

Open `enhance.py` first; `app.py` has what all share.
"""

import contextlib
import io
import signal
import sys

import typer
from typer.exceptions import TyperException

from pyro_avse.cli.app import app, fail, say
from pyro_avse.cli.stopping import WORDS, stopping
from pyro_avse.errors import InputError

INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def main() -> None:
    """Run the command line; every refusal is one line and exit code 2, every interruption one and 128 + its signal."""
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # names may hold any bytes, a terminal may know few letters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with stopping() as stop:
        try:
            code = _run()
        except BaseException as error:
            if stop.number is None and not isinstance(error, KeyboardInterrupt):
                raise
            code = INTERRUPTED
    if code == INTERRUPTED:
        number = stop.number or signal.SIGINT
        with contextlib.suppress(OSError):  # of a terminal that is closed
            say(WORDS[number])
        code = 128 + number
    sys.exit(code)


def _run() -> int:
    from pyro_avse.cli import (  # noqa: F401
        data,
        enhance,
        lab,
        live,
        page,
        posteriors,
        separate,
        sweep,
        training,
        weights,
    )

    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name="pyro-avse", standalone_mode=False)
    except InputError as error:
        fail(str(error))
    except TyperException as error:
        fail(f"{error.format_message().rstrip('.')}: see pyro-avse --help")
    except typer.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0
