"""Training by several processes: the curve of one with twice the batch, a lost worker, and going on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pyro_avse.training.crew import Crew
from pyro_avse.training.folder import LOG, WEIGHTS
from pyro_avse.training.stages import train
from pyro_avse.weights.checkpoint import load_prior

ROOT = Path(__file__).parents[1]
RECIPE = """
model = "{model}"
[options]
hidden = 8
latent_dim = 3
features = 8
[data]
noisy_fraction = 0.4
level_range_db = 6
augment_lips = 0.5
[training]
epochs = {epochs}
batch_size = {batch}
learning_rate = 1e-3
responsibilities = "{r}"
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def recipe(folder: Path, **values: object) -> Path:
    path = folder / f"{values['batch']}.toml"
    path.write_text(RECIPE.format(**values))
    return path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def curve(folder: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [[row["train_objective"], row["valid_elbo"], *row["mixing_weight"]] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "r"),
    [
        ("min_vae_v2", "step"),
        ("min_vae_v3", "epoch"),
    ],
)
def test_two_processes_are_one_with_twice_the_batch(
    model: str, r: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    """(18): the same minibatches, draws and gradients, so the same curve and weights; 37 frames are odd to share."""
    values = {"model": model, "r": r, "epochs": 3}
    ours, theirs = (recipe(tmp_path, **values, batch=batch) for batch in (37, 74))
    arguments = ["-m", "pyro_avse.cli", "train", str(ours), "--data", str(tiny_corpus)]
    found = subprocess.run(
        [*TORCHRUN, *arguments, "--out", str(tmp_path / "two")],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("pyro-avse: wrote") == 1
    train(theirs, tiny_corpus, tmp_path / "one")
    one, two = (torch.tensor(curve(tmp_path / name)) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
    alone = train(ours, tiny_corpus, tmp_path / "half")
    assert (torch.tensor(curve(tmp_path / "half")) - one).abs().max() > 1e-2
    states = [load_prior(tmp_path / name / WEIGHTS)[0].state_dict() for name in ("one", "two")]
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key], tensor, rtol=1e-3, atol=1e-5)
    assert alone.exists()


@pytest.mark.slow
def test_a_lost_worker_ends_the_run_in_a_line_and_it_goes_on(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    """SIGKILL for the second: the first says one line and ends with 2; --resume ends as a run that was not killed."""
    path = recipe(tmp_path, model="min_vae_v2", r="step", epochs=12, batch=37)

    def start(out: Path, *more: str) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [sys.executable, "-m", "pyro_avse.cli", "train", str(path), "--data"]
        command += [str(tiny_corpus), "--out", str(out), *more]
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        told["TORCHELASTIC_RUN_ID"] = "test"
        return [
            subprocess.Popen(
                command,
                env=environment(**told, RANK=str(rank)),
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first, second = start(killed)
    while not (killed / LOG).exists():
        assert first.poll() is None, first.stderr and first.stderr.read()
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    _, said = first.communicate(timeout=300)
    lines = [line for line in said.splitlines() if "ELBO" not in line]
    assert first.returncode == 2, said
    assert "another process of the training ended: start them again, with --resume" in lines[-1]
    assert "Traceback" not in said
    done = len(curve(killed))
    assert 0 < done < 12
    second.communicate()
    for out, more in ((killed, ["--resume"]), (whole, [])):
        for process in start(out, *more):
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_shares_are_all_frames_once() -> None:
    """Any number of frames and processes; who has none takes one that weighs nothing."""
    for size in (1, 2, 3):
        for count in range(1, 8):
            weights = torch.zeros(count)
            for rank in range(size):
                share, weight = Crew(rank, size).share(count)
                assert share.stop > share.start
                weights[share] += weight
            assert torch.equal(weights, torch.ones(count))
