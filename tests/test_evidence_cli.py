"""`pyro-avse evidence`: models weighed on one recording."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from pyro_avse.cli import main
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.stft import STFT
from pyro_avse.weights.checkpoint import save_prior
from pyro_avse.weights.guides import save_guide

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tiny_prior: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """The command in a folder with two models, a guide of the second, another STFT's model, half a second of sound."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (tmp_path / "guided").mkdir()
    priors = {"audio": "a_vae", "guided/mixture": "min_vae_v2"}
    for file, name in priors.items():
        prior = tiny_prior(name, num_freqs=513)
        save_prior(tmp_path / f"{file}.safetensors", prior, STFT())
    guide = NoisyGuide(prior, hidden=6, layers=1)
    save_guide(tmp_path / "guided" / "guide.safetensors", guide, STFT())
    save_prior(
        tmp_path / "short.safetensors", tiny_prior("a_vae", num_freqs=33), STFT(n_fft=64, hop=32)
    )
    sound = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(tmp_path / "noisy.wav", sound, 16000)

    def call(*arguments: str) -> tuple[int, str, str]:
        few = ["--particles", "8", "--moves", "1"]
        monkeypatch.setattr("sys.argv", ["pyro-avse", "evidence", "noisy.wav", *few, *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capsys.readouterr()

    return call


def test_models_are_weighed_at_their_noise_and_at_the_firsts(run: Run) -> None:
    names = "audio.safetensors,guided/mixture.safetensors"
    code, out, _ = run("--models", names, "--json")
    assert code == 0
    first, second = json.loads(out)
    assert [first["model"], second["model"]] == names.split(",")
    assert first["log_evidence"] == first["common_noise"]
    assert first["a_frame_over_first"] == first["common_a_frame_over_first"] == 0
    assert second["log_evidence"] != second["common_noise"]
    mean = (second["log_evidence"] - first["log_evidence"]) / first["frames"]
    assert second["a_frame_over_first"] == pytest.approx(mean, rel=1e-3)
    assert first["r_audio"] == 1
    assert 0 < second["r_audio"] < 1
    assert abs(first["below_by"]) < 0.5 * first["frames"]  # two estimates of one number


def test_any_kernel_moves_the_particles(run: Run) -> None:
    """Whichever does, the number is the same but for chance."""
    found = [
        json.loads(run("--models", "audio.safetensors", "--json", *options)[1])[0]["log_evidence"]
        for options in ([], ["--kernel", "mala"])
    ]
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_the_table_and_refusals(run: Run) -> None:
    code, out, err = run("--models", "audio.safetensors")
    assert code == 0
    assert "log evidence" in out
    assert "in nats" in err
    for arguments, said in (
        (["--models", "audio.safetensors,short.safetensors"], "another STFT than the first model"),
        (["--models", "audio.safetensors", "--inference", "vem"], "VEM ends with no posterior"),
        (["--models", "audio.safetensors", "--kernel", "ula"], "ULA cannot be tempered"),
        (["--models", "audio.safetensors", "--kernel", "gibbs"], "Gibbs cannot be tempered"),
    ):
        code, out, err = run(*arguments)
        assert code == 2
        assert said in err.splitlines()[-1]
        assert out == ""
