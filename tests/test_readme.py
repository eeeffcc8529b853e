"""What README and the site's pages tell a user to type exists; and what follows `make demo` runs as it stands."""

import importlib.util
import pkgutil
import re
import shlex
import shutil
import textwrap
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import typer

import pyro_avse.cli
from pyro_avse.cli.app import app
from pyro_avse.enhancement.demo import LIPS, mix_clip

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [
    path for folder in ("tutorials", "howto") for path in (ROOT / "docs" / folder).glob("*.md")
]
for found in pkgutil.iter_modules(pyro_avse.cli.__path__):
    if found.name != "__main__":
        import_module(f"pyro_avse.cli.{found.name}")  # each registers its commands


def load_benchmark() -> ModuleType:
    """benchmarks/readme.py, which is no package."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


readme = load_benchmark()


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
    """All of README, as they stand and in their order, but for those that need what a reader has to bring."""
    lines = readme.ready()
    assert len(lines) > 15
    assert len(lines) > 2 / 3 * len(list(readme.commands(readme.README)))
    for line in ["pyro-avse demo --out demo", *lines]:
        assert readme.run(line, tmp_path).said == "", line


@pytest.mark.slow
def test_the_lines_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's, after `make demo`; what they enhance sums to the recording."""
    block = re.search(r"(?m)^    import numpy(?:.|\n)*?(?=^\S)", PAGES[0].read_text())
    assert block is not None
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    mixture, _ = mix_clip()
    soundfile.write("demo/noisy.wav", mixture.waveform, mixture.sample_rate, subtype="FLOAT")
    shutil.copy(LIPS, "demo/lips.npz")
    found: dict[str, Any] = {}
    exec(textwrap.dedent(block[0]), found)
    enhanced = found["enhanced"]
    np.testing.assert_allclose(enhanced.speech + enhanced.noise, mixture.waveform, atol=1e-6)
    assert len(enhanced.responsibilities) == 2  # the lips were looked at
    assert found["row"]["files"] == {"speech": "clean.wav"}
