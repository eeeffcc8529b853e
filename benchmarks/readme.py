"""README's commands, as they stand and in their order: seconds and memory of each, beside what `make demo` writes.

Left out is what needs a recording of your own, a microphone or another installation. It takes minutes: one command
trains, and some sample for long. `--only WORD ...` runs those that contain one of the words. A row that failed ends
with what it said.

    python benchmarks/readme.py
    python benchmarks/readme.py --only enhance live
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).resolve().parents[1] / "README.md"
YOURS = (
    "talk.mp4",
    "mix.wav",
    "FILE",
    "arecord",
    "mine=",
    "-avse app",
    "paper/all",
    "runs/separate",
)
"""In a command that needs what is not here, or never ends, or takes a day."""


class Row(NamedTuple):
    """One command that ran."""

    command: str
    seconds: float
    """From start to end."""
    busy: float
    """Of a processor."""
    megabytes: float
    """Of memory at its highest."""
    said: str
    """What it wrote to stderr, where it failed."""


def commands(page: Path) -> Iterator[str]:
    """Indented or fenced lines that begin with pyro-avse, or pipe into it, without their comments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    line = r"(?m)^(?: {3,}|)((?:[^#`\n|]*\| )?(?:\.venv/bin/)?(?:pyro-avse|torchrun) +[a-z-].*)$"
    for found in re.findall(line, text):
        yield " ".join(re.sub(r" +#.*", "", found).split())


def ready(page: Path = README) -> list[str]:
    """Those that run after `make demo`."""
    return [line for line in commands(page) if not any(word in line for word in YOURS)]


def run(line: str, folder: Path) -> Row:
    """One command in a folder, by the shell."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            line,
            shell=True,
            cwd=folder,
            env=os.environ | {"PATH": path},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read() if process.returncode else ""
    seconds = time.perf_counter() - start
    return Row(line, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""])
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory() as folder:
        for line in ["pyro-avse demo --out demo", *ready()]:
            if line.endswith("demo --out demo") or any(word in line for word in only):
                row = run(line, Path(folder))
                print(
                    f"{row.seconds:7.1f} s, {row.busy:7.1f} s of a processor, {row.megabytes:5.0f} MB: "
                    f"{row.command} {row.said.strip()[-300:]}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
