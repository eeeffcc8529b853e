"""Every example runs, with tiny settings, and stays short enough for a lesson."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SETTINGS = {
    "01_enhance.py": ["--iterations", "3"],
    "02_train_min_vae.py": ["--minutes", "0.3", "--speakers", "3", "--epochs", "1"],
    "04_new_kernel.py": ["--draws", "50"],
    "03_new_model.py": ["--minutes", "0.3", "--epochs", "1"],
    "05_compare_samplers.py": ["--only", "line", "--draws", "60"],
    "06_memory.py": ["--iterations", "1"],
}
TRAIN = ("02_train_min_vae.py", "03_new_model.py")  # synthetic talkers, into a folder


@pytest.mark.parametrize("example", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_example_runs(example: str, tmp_path: Path) -> None:
    """It ends well, says something, and writes only where it is told."""
    settings = SETTINGS[example]
    if example in TRAIN:
        pytest.importorskip("espeakng_loader")
        settings = [*settings, "--out", str(tmp_path / "lesson")]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *settings],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("example", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_example_is_a_lesson(example: str) -> None:
    """Under 130 lines, opening with what it shows."""
    text = (EXAMPLES / example).read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) < 130
