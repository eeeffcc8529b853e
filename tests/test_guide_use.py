"""Guides at the command line, beside weights, and the programs under benchmarks/ that run them."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from pyro_avse.cli import main
from pyro_avse.enhancement.enhancer import enhance
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior, save_prior
from pyro_avse.weights.guides import save_guide

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def folder(tiny_prior: Callable[..., Any], tmp_path: Path) -> Path:
    """Weights, their guide beside them, and noisy.wav of a second."""
    torch.manual_seed(0)
    prior = tiny_prior("a_vae", num_freqs=513)
    save_prior(tmp_path / "weights.safetensors", prior, STFT())
    save_guide(tmp_path / "guide.safetensors", NoisyGuide(prior, hidden=6, layers=1), STFT())
    sound = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(tmp_path / "noisy.wav", sound, 16000, subtype="FLOAT")
    return tmp_path


def test_enhance_starts_from_the_guide_beside_the_weights_a_file_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`own` is the guide beside the weights; `none` is what the weights without one give."""
    monkeypatch.chdir(folder)

    def run(*arguments: str, code: int = 0) -> None:
        monkeypatch.setattr("sys.argv", ["pyro-avse", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == code

    options = ["--model", "weights.safetensors", "--inference", "mcem", "--iterations", "1"]
    found = {}
    for name, guide in (
        ("default", []),
        ("own", ["--guide", "own"]),
        ("file", ["--guide", "guide.safetensors"]),
        ("none", ["--guide", "none"]),
    ):
        run("enhance", "noisy.wav", *options, *guide, "-o", f"{name}.wav")
        found[name] = soundfile.read(f"{name}.wav")[0]
    assert np.array_equal(found["own"], found["file"])
    assert np.array_equal(found["own"], found["default"])
    assert not np.allclose(found["own"], found["none"])
    (folder / "guide.safetensors").unlink()
    run("enhance", "noisy.wav", *options, "-o", "alone.wav")
    assert np.array_equal(found["none"], soundfile.read("alone.wav")[0])
    capsys.readouterr()
    refused = ["--guide", "weights.safetensors", "-o", "x.wav"]
    run("enhance", "noisy.wav", *options, *refused, code=2)
    assert "weights.safetensors: holds a_vae, no guide" in capsys.readouterr().err
    assert not Path("x.wav").exists()


def test_python_takes_the_same_three(folder: Path) -> None:
    weights, sound = folder / "weights.safetensors", np.random.default_rng(0).normal(size=8000)
    own, file, none = (
        enhance(sound, model=weights, inference="mcem", guide=guide).speech
        for guide in ("own", folder / "guide.safetensors", None)
    )
    assert np.array_equal(own, file)
    assert not np.allclose(own, none)
    assert load_prior(weights)[0].noise_guide is not None
    assert load_prior(weights, guide=None)[0].noise_guide is None
    with pytest.raises(InputError, match="no such"):
        enhance(sound, model=weights, guide=folder / "absent.safetensors")


def test_the_gpu_script_runs_small_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "gpu.md"
    small = {"--batch": 2, "--steps": 1, "--seconds": 0.5, "--draws": 2}
    options = [str(part) for pair in small.items() for part in pair]
    script = str(BENCHMARKS / "gpu.py")
    monkeypatch.setattr("sys.argv", [script, "--device", "cpu", *options, "--out", str(table)])
    runpy.run_path(script, run_name="__main__")
    rows = [line.split("|")[1:3] for line in table.read_text().splitlines() if line.startswith("|")]
    rates = {name.strip(): float(rate) for name, rate in rows[2:]}
    assert {"guide training, steps", "clips enhanced", "hmc, frame-steps"} <= set(rates)
    assert min(rates.values()) > 0
    assert table.read_text() == capsys.readouterr().out
