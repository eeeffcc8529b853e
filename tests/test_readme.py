"""What README and the site's pages tell a user to type exists; and what follows `make demo` runs as it stands."""

import pkgutil
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import pyro_avse.cli
from pyro_avse.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [
    path for folder in ("tutorials", "howto") for path in (ROOT / "docs" / folder).glob("*.md")
]
MAIN = "from pyro_avse.cli import main; main()"
for found in pkgutil.iter_modules(pyro_avse.cli.__path__):
    if found.name != "__main__":
        import_module(f"pyro_avse.cli.{found.name}")  # each registers its commands


def commands(path: Path) -> list[list[str]]:
    """Lines that begin with pyro-avse, or pipe into it, without their comments."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(
        r"(?m)^(?: {3,}|)(?:[^#`\n]*\| )?(?:\.venv/bin/)?pyro-avse +([a-z].*)$", text
    )
    return [shlex.split(line, comments=True) for line in lines]


def check(words: list[str]) -> None:
    """Raises what typer does for a command or an option that does not exist."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, name
        command = command.commands[name]
    parser = command.make_parser(command.context_class(command))
    parser.parse_args([word for word in words if word != "..."])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_of_a_page_exists(path: Path) -> None:
    for words in commands(path):
        check(words)


def test_a_wrong_command_is_seen(tmp_path: Path) -> None:
    """An unknown option; and the lines above are found at all."""
    assert len(commands(PAGES[0])) > 20
    (tmp_path / "a.md").write_text("    pyro-avse enhance a.wav --strenght 1   # no\n")
    (words,) = commands(tmp_path / "a.md")
    with pytest.raises(Exception, match="strenght"):
        check(words)


@pytest.mark.slow
def test_commands_run_after_the_demonstration(tmp_path: Path) -> None:
    """Those of README that need nothing else, in README's order."""

    def run(words: list[str]) -> None:
        command = [sys.executable, "-c", MAIN, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)

    run(["demo", "--out", "demo"])
    ready = [words for words in commands(ROOT / "README.md") if "demo/noisy.wav" in words]
    assert len(ready) > 6
    for words in ready:
        run(words)
