"""The campaigns of `make fuzz` and `make kill`, short here and ten minutes long in the slow suite: no findings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
slow = pytest.mark.slow


def campaign(name: str, *arguments: str) -> str:
    """What it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("files", "examples"), [(78, 10), pytest.param(2000, 200, marks=slow)], ids=["short", "long"]
)
def test_mutated_files(files: int, examples: int) -> None:
    """Each is enhanced or refused in one line; the mutations are mild enough that some get as far as inference."""
    said = campaign("fuzz", "--files", str(files), "--examples", str(examples), "--seed", "1")
    found = re.search(r"inference was reached by (\d+) of (\d+)", said)
    assert found is not None
    assert int(found[1]) >= 0.2 * files
    assert "0 findings" in said


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=slow)], ids=["short", "long"])
def test_kills(kills: int) -> None:
    """What is finished is there, and what goes on ends in the same bytes."""
    assert f"{kills} kills, 0 findings" in campaign("kill", "--kills", str(kills), "--seed", "1")
