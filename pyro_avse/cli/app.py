"""What all commands share: the application, options, tables, the progress bar, and how a refusal is said.

Progress and prose go to stderr, results to stdout. Anything wrong with the input is one line on stderr and exit code 2.
Heavy imports stand inside the commands, so that --help is quick.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from pyro_avse.errors import InputError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Unsupervised audio-visual speech enhancement.",
)
data_app = typer.Typer(rich_markup_mode=None, help="Make training data, and look at it.")
app.add_typer(data_app, name="data")
lab_app = typer.Typer(rich_markup_mode=None, help="Experiments on inference itself.")
app.add_typer(lab_app, name="lab")


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Unsupervised audio-visual speech enhancement."""
    if version:
        from pyro_avse import __version__

        print(f"pyro-avse {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise InputError("no command is given: see pyro-avse --help")


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of every random draw.")]


SettingsOption = Annotated[
    str, typer.Option(help='Of the schemes: {"vem": {"iterations": 50, "kernel": "hmc"}}.')
]


ThreadsOption = Annotated[
    int, typer.Option(min=1, help="Of the processor; more help where as many cores are idle.")
]


DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto for the fastest at hand.")]


FaceOption = Annotated[
    str,
    typer.Option(help="Of several: left, right, 0 (the leftmost), 1, ... or auto, who speaks."),
]


def fail(message: str) -> None:
    say("error: " + " ".join(message.split()))
    sys.exit(2)


def say(message: str) -> None:
    """One line, whatever a file's name holds."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    print(f"pyro-avse: {line}", file=sys.stderr)


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    """To stdout, in full, whatever the terminal's width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in titles:
        table.add_column(Text(title))  # names are no markup
    for row in rows:
        table.add_row(*map(Text, row))
    wide = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, wide)).print(table)


def split_names(text: str, option: str) -> list[str]:
    """What stands between commas. Raises InputError where nothing does."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{option} {text!r}: give one name or more, by commas")
    return names


def read_settings(text: str) -> dict[str, dict[str, Any]]:
    """Of --settings. Raises InputError where it is no JSON object of objects."""
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"--settings is no JSON ({error}): give an object for every scheme"
        ) from None
    if not isinstance(settings, dict) or not all(isinstance(v, dict) for v in settings.values()):
        raise InputError('--settings: give an object for every scheme, {"vem": {"iterations": 50}}')
    return settings


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr that starts with its first update (fraction done, text); a refusal takes it away."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=1.0)

    def update(done: float, text: str) -> None:
        bar.start()
        bar.update(task, completed=done, description=text)

    try:
        yield update
    except BaseException:
        bar.live.transient = True
        bar.live.stop()
        raise
    finally:
        if bar.live.is_started:
            bar.stop()
