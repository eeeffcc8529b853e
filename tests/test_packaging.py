"""What is packaged works where there is no checkout; what is declared is one thing everywhere."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pyro_avse

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"


def test_versions_and_extras_are_declared_once() -> None:
    """The package's version; the Pythons of README's badge; `all` has every extra that a user may want."""
    assert PROJECT["version"] == pyro_avse.__version__
    pythons = [re.search(r"3\.\d+$", line) for line in PROJECT["classifiers"]]
    names = [found[0] for found in pythons if found]
    assert names == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={names[0]}"
    assert f"python-{names[0]}%20to%20{names[-1]}" in (ROOT / "README.md").read_text()
    (everything,) = PROJECT["optional-dependencies"]["all"]
    extras = set(PROJECT["optional-dependencies"]) - {"all", "dev"}
    assert everything == f"pyro_avse[{','.join(sorted(extras))}]"


def run(*command: str | Path, cwd: Path) -> str:
    """What a program prints; it sees no checkout."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_demonstration_runs_from_the_wheel(tmp_path: Path) -> None:
    """Wheel and source archive hold the same package; in an environment of its own the wheel's commands work."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git here: what belongs to the package is not known")
    tree, built = tmp_path / "tree", tmp_path / "built"
    built.mkdir()
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        path = ROOT / name
        if name and (path.exists() or path.is_symlink()):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tree / name, follow_symlinks=False)
    run(sys.executable, "-c", BUILD, built, cwd=tree)
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        packaged = {name for name in archive.namelist() if name.startswith("pyro_avse/")}
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = tmp_path / "again"
    again.mkdir()
    run(sys.executable, "-c", BUILD, again, cwd=unpacked)
    with zipfile.ZipFile(next(again.glob("*.whl"))) as archive:
        assert {name for name in archive.namelist() if name.startswith("pyro_avse/")} == packaged
    assert "pyro_avse/models/a_vae.py" in packaged
    assert "pyro_avse/enhancement/clips/talker.npz" in packaged

    new = tmp_path / "new"
    run(sys.executable, "-m", "venv", new, cwd=tmp_path)
    (site,) = new.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # torch and the others
    run(new / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    found = run(
        new / "bin/python", "-c", "import pyro_avse; print(pyro_avse.__file__)", cwd=tmp_path
    )
    assert Path(found.strip()).is_relative_to(new)
    run(new / "bin/pyro-avse", "demo", "--out", "demo", cwd=tmp_path)
    assert (tmp_path / "demo/enhanced_min_vae_v2.wav").stat().st_size > 100_000
    assert "min_vae_v2" in run(new / "bin/pyro-avse", "models", cwd=tmp_path)
