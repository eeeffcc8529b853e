"""The command line: a file a group of commands, registered on the `app` of `app.py`.

Open `enhance.py` first; `app.py` has what all share.
"""

import sys

import typer
from typer.exceptions import TyperException

from pyro_avse.cli.app import app, fail, say
from pyro_avse.errors import InputError


def main() -> None:
    """Run the command line; every refusal is one line and exit code 2."""
    from pyro_avse.cli import data, enhance, lab, live, sweep, training, weights  # noqa: F401

    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name="pyro-avse", standalone_mode=False)
    except InputError as error:
        fail(str(error))
    except TyperException as error:
        fail(f"{error.format_message().rstrip('.')}: see pyro-avse --help")
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
