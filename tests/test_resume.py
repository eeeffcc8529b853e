"""A training run gives the same bytes each time, killed or not, and never mixes with another run's."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from pyro_avse.files import PART
from pyro_avse.models import MODELS
from pyro_avse.stft import STFT
from pyro_avse.training.recipe import Data, Recipe, Training
from pyro_avse.training.stages import CHECKPOINT, CURVES, LOG, WEIGHTS, build_prior, train
from pyro_avse.typing import InputError, couples_frames
from pyro_avse.weights.checkpoint import load_prior, save_prior
from pyro_avse.weights.tensors import load_tensors, save_tensors

KILLS = 20
STEPS = Training(epochs=2, batch_size=64, learning_rate=1e-2, responsibilities="epoch")
SIZES = {"hidden": 8, "latent_dim": 3}

DRIVER = """
import os, signal, sys
import pyro_avse.plots
from pyro_avse import files
from pyro_avse.training.recipe import load_recipe
from pyro_avse.training.stages import train

recipe, data, out, fatal = sys.argv[1:]
fsync, calls = os.fsync, 0

def fsync_or_die(number):
    global calls
    calls += 1
    if calls == int(fatal):  # half the file is there
        os.ftruncate(number, os.fstat(number).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(number)

files.os.fsync = fsync_or_die
print("training", flush=True)
train(load_recipe(recipe), [data], out, resume=True, progress=lambda row: print(row, flush=True))
"""
RECIPE = """
model = "min_vae_v2"
half_precision = true
[options]
hidden = 8
latent_dim = 3
features = 8
[data]
level_range_db = 6
[training]
epochs = 30
batch_size = 32
learning_rate = 3e-3
schedule = "cosine"
responsibilities = "epoch"
"""


def tiny_recipe(model: str = "min_vae_v2", **rest: Any) -> Recipe:
    lips = SIZES | {"features": 8}
    options: dict[str, Any] = SIZES if model == "a_vae" else lips
    if model == "vae_mm":
        options = {"audio": SIZES, "audio_visual": lips}
    return Recipe(model, **{"options": options, "training": STEPS} | rest)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("half", [False, True])
def test_the_same_seed_gives_the_same_bytes(half: bool, tiny_corpus: Path, tmp_path: Path) -> None:
    """Two runs agree in every byte of every file, wherever the global generator stands; and leave it there."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train(tiny_recipe(half_precision=half), [tiny_corpus], tmp_path / str(seed))
        assert torch.equal(torch.get_rng_state(), before)
        found.append(contents(tmp_path / str(seed)))
    assert sorted(found[0]) == sorted([CHECKPOINT, WEIGHTS, LOG, CURVES])
    assert found[0] == found[1]


def test_another_seed_gives_other_weights(tiny_corpus: Path, tmp_path: Path) -> None:
    """The recipe's seed draws the initial weights and all else."""
    weights = [
        train(tiny_recipe(seed=seed), [tiny_corpus], tmp_path / str(seed)).read_bytes()
        for seed in (0, 1)
    ]
    assert weights[0] != weights[1]


class Killed:
    """Runs of the driver, killed or left to end, and the files they leave."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data, self.seconds = folder, data, 0.0
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "driver.py").write_text(DRIVER)

    def run(self, out: Path, *, epochs: int = 10**9, delay: float = 0, in_write: int = 0) -> bool:
        """Train into `out`; whether the run was killed: `delay` seconds after so many epochs, or in its n-th write."""
        arguments = ["recipe.toml", str(self.data), str(out), str(in_write)]
        process = subprocess.Popen(
            [sys.executable, "driver.py", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"training\n"
            start = time.monotonic()
            if all(process.stdout.readline() for _ in range(epochs)):  # the log so far comes first
                time.sleep(delay)
                process.kill()
            process.wait()
        self.seconds = time.monotonic() - start
        assert process.returncode in (0, -signal.SIGKILL)
        return process.returncode != 0


@pytest.mark.slow  # a short form of it is in test_campaigns.py
def test_a_killed_run_resumes_to_the_same_bytes(tiny_corpus: Path, tmp_path: Path) -> None:
    """kill -9 at random moments, one of them inside a checkpoint's write: the files of a run that was not killed.

    A run that ends before it is killed has its files compared, and the next one starts in a fresh folder.
    """
    runs = Killed(tmp_path, tiny_corpus)
    assert not runs.run(tmp_path / "whole")
    an_epoch = runs.seconds / 30
    expected = contents(tmp_path / "whole")

    out, done, folders = tmp_path / "run0", 1, 0
    assert runs.run(out, in_write=5)  # checkpoint and log in turn: the third epoch's checkpoint
    (torn,) = (path for path in out.iterdir() if PART.fullmatch(path.name))
    assert 0 < torn.stat().st_size < len(expected[CHECKPOINT])
    moments = random.Random(KILLS)
    while done < KILLS:
        trained = (out / LOG).read_text().count("\n") if (out / LOG).exists() else 0
        epochs, delay = trained + moments.randrange(12), moments.uniform(0, 2 * an_epoch)
        if runs.run(out, epochs=epochs, delay=delay):
            done += 1
        else:
            assert contents(out) == expected
            folders += 1
            out = tmp_path / f"run{folders}"
    assert not runs.run(out)
    assert contents(out) == expected
    assert not list(tmp_path.rglob("*.part"))


def test_each_mode_resumes(tiny_corpus: Path, tmp_path: Path) -> None:
    """Interrupted after its first epoch, a run of every model and mode ends in the same bytes."""

    class Interrupted(Exception):
        pass

    def interrupt(row: dict[str, Any]) -> None:
        raise Interrupted

    for name in (n for n in MODELS if not couples_frames(MODELS[n])):
        recipe = tiny_recipe(name, training=replace(STEPS, responsibilities="step", epochs=3))
        train(recipe, [tiny_corpus], tmp_path / name / "whole")
        out, epochs = tmp_path / name / "stopped", []
        with pytest.raises(Interrupted):
            train(recipe, [tiny_corpus], out, progress=interrupt)
        train(
            recipe,
            [tiny_corpus],
            out,
            resume=True,
            progress=lambda row, seen=epochs: seen.append(row["epoch"]),  # type: ignore[misc]
        )
        assert contents(out) == contents(tmp_path / name / "whole")
        assert epochs == [0, 1, 2]


def test_a_finished_run_resumes_to_itself(tiny_corpus: Path, tmp_path: Path) -> None:
    """--resume of a run that is done trains nothing, and mends files that were lost."""
    recipe = tiny_recipe("a_vae")
    train(recipe, [tiny_corpus], tmp_path)
    before = contents(tmp_path)
    for name in (WEIGHTS, LOG, CURVES):
        (tmp_path / name).unlink()
    train(recipe, [tiny_corpus], tmp_path, resume=True)
    assert contents(tmp_path) == before


@pytest.fixture
def trained(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The folder of an A-VAE's run."""
    train(tiny_recipe("a_vae"), [tiny_corpus], tmp_path / "run")
    return tmp_path / "run"


def test_a_folder_in_use_is_refused(trained: Path, tiny_corpus: Path) -> None:
    """Without --resume a folder that holds a run is left as it is; with it, only the same recipe goes on."""
    before = contents(trained)
    with pytest.raises(InputError, match="holds a training run: go on with --resume"):
        train(tiny_recipe("a_vae"), [tiny_corpus], trained)
    for other in (
        tiny_recipe("a_vae", seed=1),
        tiny_recipe("a_vae", data=Data(noise_floor_db=30.0)),
        tiny_recipe("v_vae"),
    ):
        with pytest.raises(InputError, match="was trained by another recipe: choose another --out"):
            train(other, [tiny_corpus], trained, resume=True)
    assert contents(trained) == before


def test_changed_data_is_refused(trained: Path, tiny_corpus: Path) -> None:
    """A resumed run on other frames is refused."""
    before = contents(trained)
    with pytest.raises(InputError, match="was trained on other data than --data now holds"):
        train(tiny_recipe("a_vae"), [tiny_corpus, tiny_corpus], trained, resume=True)
    assert contents(trained) == before


def test_a_broken_checkpoint_is_refused(trained: Path, tiny_corpus: Path) -> None:
    """A checkpoint cut short, as no kill of ours leaves it, is refused by name."""
    path = trained / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"checkpoint.safetensors: not a whole safetensors file"):
        train(tiny_recipe("a_vae"), [tiny_corpus], trained, resume=True)


def test_data_that_cannot_be_used_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    """No such folder, no clips with lips for a model that looks, and an output folder that cannot be made."""
    with pytest.raises(InputError, match="is no folder"):
        train(tiny_recipe(), [tmp_path / "none"], tmp_path / "out")
    for split in ("train", "valid"):
        (tmp_path / "heard" / split).mkdir(parents=True)
        noise = np.random.default_rng(0).standard_normal(4000)
        soundfile.write(tmp_path / "heard" / split / "a.wav", 0.1 * noise, 16000)
    with pytest.raises(InputError, match=r"none of the 1 train clips has an .npz beside"):
        train(tiny_recipe(), [tmp_path / "heard"], tmp_path / "out")
    train(tiny_recipe("a_vae"), [tmp_path / "heard"], tmp_path / "out")
    for out in (tmp_path / "recipe", Path("/proc")):
        (tmp_path / "recipe").touch()
        with pytest.raises(InputError, match="choose another folder"):
            train(tiny_recipe(), [tiny_corpus], out)


@pytest.mark.parametrize(
    ("model", "mode", "rate", "reason"),
    [
        ("a_vae", "step", 1e30, "Expected parameter"),
        ("min_vae_v2", "step", 1e30, "Expected parameter"),
        ("min_vae_v2", "epoch", 1e30, "Expected parameter"),
        ("v_vae", "step", 200.0, "the bound is nan"),
    ],
)
def test_a_step_that_diverges_is_not_saved(
    model: str, mode: Any, rate: float, reason: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Of one batch an epoch, only validation and the table see where the step led: refused, and no file is written."""
    far = replace(STEPS, batch_size=10**6, learning_rate=rate, responsibilities=mode)
    with pytest.raises(InputError, match=rf"epoch 0 \({reason}.*\): lower learning_rate"):
        train(tiny_recipe(model, training=far), tiny_corpus, tmp_path)
    assert contents(tmp_path) == {}


def test_another_number_of_frequencies_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    """A model of other frequencies than the STFT's cannot see its frames."""
    with pytest.raises(InputError, match="num_freqs is 9, the STFT has 513"):
        train(Recipe("a_vae", options={"num_freqs": 9}), [tiny_corpus], tmp_path / "out")


@pytest.fixture
def donor(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A random A-VAE and its weight file."""
    torch.manual_seed(5)
    prior = MODELS["a_vae"](**SIZES)
    save_prior(tmp_path / "donor.safetensors", prior, STFT())
    return prior, tmp_path / "donor.safetensors"


def test_initialise_copies_networks(donor: tuple[nn.Module, Path]) -> None:
    """[initialise] starts a network from another model's of that name; the others are drawn as ever."""
    prior, path = donor
    recipe = tiny_recipe(initialise={"decoder": str(path), "audio_encoder": str(path)})
    found, drawn = build_prior(recipe), build_prior(tiny_recipe())
    for name, tensor in found.state_dict().items():
        copied = name.split(".")[0] in recipe.initialise
        source = prior if copied else drawn
        assert torch.equal(tensor, source.state_dict()[name])
    assert not torch.equal(drawn.decoder.hidden.weight, found.decoder.hidden.weight)


def test_initialise_refuses_what_does_not_fit(
    donor: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    """An unknown network, a missing file, a network that the file lacks, another size, another STFT."""
    prior, path = donor
    dense = tmp_path / "dense.safetensors"
    save_prior(dense, prior, STFT(hop=256))
    learned = tmp_path / "learned.safetensors"
    save_prior(learned, MODELS["a_vae"](**SIZES, learned_prior=True), STFT())
    wide = tiny_recipe(options=SIZES | {"hidden": 9, "features": 8})
    refused: list[tuple[Recipe, dict[str, str], str]] = [
        (tiny_recipe(), {"decodr": str(path)}, "min_vae_v2 has only audio_prior, visual_prior"),
        (tiny_recipe(), {"decoder": "no_such"}, "unknown model 'no_such'"),
        (tiny_recipe(), {"decoder": str(tmp_path / "x.safetensors")}, "no such weight file"),
        (tiny_recipe(), {"visual_encoder": str(path)}, "without visual_encoder: it has audio_enc"),
        (tiny_recipe(), {"visual_encoder": f"{path}:decoder"}, "lacks 'features.bias'"),
        (tiny_recipe("vae_mm"), {"audio_visual": str(path)}, "holds a_vae: name weights of av_vae"),
        (
            tiny_recipe("vae_mm"),
            {"audio": str(learned)},
            r"set options.audio.learned_prior = true$",
        ),
        (tiny_recipe(), {"decoder": str(dense)}, r"trained at hop 256, \[data\] hop is 533: name"),
        (wide, {"decoder": str(path)}, r"hidden.bias is \(8,\), this model's is \(9,\)"),
    ]
    for recipe, networks, message in refused:
        with pytest.raises(InputError, match=message):
            build_prior(replace(recipe, initialise=networks))


@pytest.mark.parametrize("spoil", ["options", "adam"])
def test_a_checkpoint_that_was_edited_is_refused(
    spoil: str, trained: Path, tiny_corpus: Path
) -> None:
    """A checkpoint of ours whose recipe or tensors were changed is refused, not trained on."""
    tensors, header = load_tensors(trained / CHECKPOINT)
    if spoil == "options":
        header["recipe"]["options"]["hidden"] = 9
    else:
        del tensors["model.decoder.hidden.bias"]
    save_tensors(trained / CHECKPOINT, tensors, header)
    with pytest.raises(InputError):
        train(tiny_recipe("a_vae"), [tiny_corpus], trained, resume=True)


def test_trained_weights_enhance(trained: Path) -> None:
    """The weights of a run load as a prior."""
    prior, stft = load_prior(trained / WEIGHTS)
    assert isinstance(prior, MODELS["a_vae"])
    assert stft == STFT()


def test_recipe_by_file_and_data_as_one_folder(tiny_corpus: Path, tmp_path: Path) -> None:
    """A recipe's file and a single folder are as good as a `Recipe` and a list."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        'model = "a_vae"\noptions = {hidden = 8, latent_dim = 3}\ntraining = {epochs = 1}\n'
    )
    recipe = Recipe("a_vae", options={"hidden": 8, "latent_dim": 3}, training=Training(epochs=1))
    one = train(path, tiny_corpus, tmp_path / "one")
    other = train(recipe, [tiny_corpus], tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()
