"""Pipelines: stages that start from each other's weights, all or none refused, and resumed between and inside them."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_avse.cli import main
from pyro_avse.files import write_atomically
from pyro_avse.models import MODELS
from pyro_avse.training.recipe import Data, Pipeline, Recipe, Training, load_recipe
from pyro_avse.training.stages import CHECKPOINT, CURVES, LOG, WEIGHTS, train
from pyro_avse.training.svi import Trainer
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior
from pyro_avse.weights.tensors import load_tensors

SIZES = {"hidden": 8, "latent_dim": 3}
LIPS = SIZES | {"features": 6}
EPOCH = Training(epochs=2, batch_size=64, learning_rate=1e-2)


def small(name: str) -> Pipeline:
    """A bundled pipeline with networks of a few units and one epoch a stage."""
    stages = load_recipe(name)
    assert isinstance(stages, dict)
    sizes = {model: {} if model == "vae_mm" else LIPS for model in MODELS}
    sizes |= {"a_vae": SIZES, "vae_mm": {"audio": SIZES, "audio_visual": LIPS}}
    for stage, recipe in stages.items():
        epochs = min(1, recipe.training.epochs)
        options = {**recipe.options, **sizes[recipe.model]}
        training = replace(recipe.training, epochs=epochs)
        stages[stage] = replace(recipe, options=options, training=training)
    return stages


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of what the curves would show: drawing them is most of the time of runs as small as these."""

    def draw(history: list[dict[str, Any]], path: Path) -> None:
        write_atomically(path, repr(history).encode())

    monkeypatch.setattr("pyro_avse.training.curves.training_figure", draw)


@pytest.fixture
def stages() -> Pipeline:
    """A-VAE, a V-VAE with its decoder, their MIN-VAE v3, and an A-VAE of its own weights, not trained again."""
    return {
        "a_vae": Recipe("a_vae", options=SIZES, training=EPOCH),
        "v": Recipe("v_vae", options=LIPS, training=EPOCH, initialise={"decoder": "a_vae"}),
        "min": Recipe(
            "min_vae_v3",
            options=LIPS,
            training=EPOCH,
            initialise={"audio_encoder": "a_vae", "visual_encoder": "v", "decoder": "v"},
        ),
        "copy": Recipe(
            "a_vae",
            options=SIZES,
            training=replace(EPOCH, epochs=0),
            initialise={"audio_encoder": "min", "decoder": "v"},
        ),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["default/all", "paper/all"])
def test_every_bundled_stage_trains(name: str, tiny_corpus: Path, tmp_path: Path) -> None:
    """An epoch of every stage of both regimes, in order, each into its own folder, whose weights load."""
    pipeline, rows = small(name), []
    last = train(pipeline, tiny_corpus, tmp_path, progress=rows.append)
    trained = [stage for stage, recipe in pipeline.items() if recipe.training.epochs]
    assert [row["stage"] for row in rows] == trained
    assert last == tmp_path / list(pipeline)[-1] / WEIGHTS
    for stage, recipe in pipeline.items():
        files = {WEIGHTS, CHECKPOINT} | ({LOG, CURVES} if stage in trained else set())
        assert {path.name for path in (tmp_path / stage).iterdir()} == files
        prior, _ = load_prior(tmp_path / stage / WEIGHTS)
        assert isinstance(prior, MODELS[recipe.model])
    for row in rows:
        assert row["valid_elbo"] == pytest.approx(row["valid_reconstruction"] - row["valid_kl"])


def test_a_stage_starts_from_an_earlier_one(
    stages: Pipeline, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[initialise] takes the weights of OUT/STAGE, not the bundled ones of that name; without epochs they stay."""
    started: list[dict[str, torch.Tensor]] = []
    build = Trainer.__init__

    def watched(self: Trainer, prior: Any, *args: Any, **rest: Any) -> None:
        started.append({name: t.clone() for name, t in prior.state_dict().items()})
        build(self, prior, *args, **rest)

    monkeypatch.setattr(Trainer, "__init__", watched)
    train(stages, tiny_corpus, tmp_path, device="cpu")
    saved = {stage: load_tensors(tmp_path / stage / WEIGHTS)[0] for stage in stages}
    for place, stage in enumerate(["v", "min"], start=1):
        for network, source in stages[stage].initialise.items():
            for name, tensor in started[place].items():
                if name.startswith(f"{network}."):
                    assert torch.equal(tensor, saved[source][name])
    for name, tensor in saved["copy"].items():
        source = "min" if name.startswith("audio_encoder") else "v"
        assert name == "mixing_weight" or torch.equal(tensor, saved[source][name])


def test_vae_mm_is_its_two_parts(tiny_corpus: Path, tmp_path: Path) -> None:
    """Assembled from two stages: every tensor of both, under `audio` and `audio_visual`, and no data read."""
    stages = small("default/all")
    pipeline = {name: stages[name] for name in ("a_vae", "v_vae", "av_vae", "vae_mm")}
    train(pipeline, tiny_corpus, tmp_path)
    parts = {"audio": "a_vae", "audio_visual": "av_vae"}
    files = {name: str(tmp_path / stage / WEIGHTS) for name, stage in parts.items()}
    alone = replace(pipeline["vae_mm"], initialise=files)
    weights = train(alone, tmp_path / "no data", tmp_path / "alone")
    found = load_tensors(weights)[0]
    for name, path in files.items():
        for key, tensor in load_tensors(Path(path))[0].items():
            assert torch.equal(found.pop(f"{name}.{key}"), tensor)
    assert set(found) == {"mixing_weight"}
    assert weights.read_bytes() == (tmp_path / "vae_mm" / WEIGHTS).read_bytes()


def test_finished_stages_are_not_rerun(
    stages: Pipeline, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--resume of a pipeline that is done trains no epoch and changes no byte."""
    train(stages, tiny_corpus, tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(Trainer, "run_epoch", lambda self: pytest.fail("trained again"))
    train(stages, tiny_corpus, tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_a_killed_pipeline_resumes_to_the_same_bytes(
    stages: Pipeline, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped inside its n-th write, n = 1, 3, 5, ...: between and inside stages; in the end, the bytes of one go."""

    class Killed(BaseException):
        pass

    train(stages, tiny_corpus, tmp_path / "whole")
    fsync, left, kills = os.fsync, 0, 0

    def fsync_or_die(number: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        fsync(number)

    monkeypatch.setattr("pyro_avse.files.os.fsync", fsync_or_die)
    while True:
        left = 1 + 2 * kills
        try:
            train(stages, tiny_corpus, tmp_path / "killed", resume=True)
        except Killed:
            kills += 1
        else:
            break
    assert kills >= 5
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def at_hop(stages: Pipeline, name: str, hop: int) -> None:
    stages[name] = replace(stages[name], data=Data(hop=hop))


REFUSED: dict[str, tuple[Callable[[Pipeline], Any], str]] = {
    "network left as drawn": (
        lambda s: s["copy"].initialise.pop("decoder"),
        r"stage 'copy': \[initialise\] leaves decoder of a_vae untrained: name weights for it, or give epochs",
    ),
    "prior left as drawn": (
        lambda s: s["copy"].options.update(learned_prior=True),
        r"stage 'copy': \[initialise\] leaves audio_prior of a_vae untrained",
    ),
    "stage of another hop": (
        lambda s: at_hop(s, "a_vae", 256),
        r"stage 'v': \[initialise\] decoder: a_vae was trained at hop 256, \[data\] hop is 533: name",
    ),
    "missing file": (
        lambda s: s["min"].initialise.update(decoder="no/such.safetensors"),
        r"stage 'min': no/such.safetensors: no such weight file",
    ),
    "unknown stage": (
        lambda s: s["min"].initialise.update(decoder="vv"),
        r"stage 'min': \[initialise\] 'vv': no earlier stage \(a_vae, v\), and unknown model 'vv'",
    ),
    "no such network": (
        lambda s: s["min"].initialise.update(audio_encoder="v"),
        r"stage 'min': \[initialise\] audio_encoder: v holds v_vae without audio_encoder: it has "
        r"visual_encoder, decoder",
    ),
    "other network": (
        lambda s: s["min"].initialise.update(audio_encoder="v:visual_encoder"),
        r"\[initialise\] audio_encoder: v: has an unknown tensor 'features.bias': weights of another",
    ),
    "other shape": (
        lambda s: s["v"].options.update(latent_dim=4),
        r"stage 'v': \[initialise\] decoder: a_vae: hidden.weight is \(8, 3\), this model's is "
        r"\(8, 4\): name other weights, or change \[options\]",
    ),
    "unknown option": (
        lambda s: s["copy"].options.update(featurs=4),
        r"stage 'copy': \[options\] of a_vae",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_all_stages_are_tried_before_the_first_is_trained(
    case: str, stages: Pipeline, tiny_corpus: Path, tmp_path: Path
) -> None:
    """What is wrong with a later stage is refused at once, in one line that names it; nothing is written."""
    spoil, message = REFUSED[case]
    stages = {
        name: replace(r, options=dict(r.options), initialise=dict(r.initialise))
        for name, r in stages.items()
    }
    spoil(stages)
    with pytest.raises(InputError, match=message) as refusal:
        train(stages, tiny_corpus, tmp_path)
    assert "\n" not in str(refusal.value)
    assert not contents(tmp_path)


def test_a_changed_stage_is_refused(stages: Pipeline, tiny_corpus: Path, tmp_path: Path) -> None:
    """Another recipe of a stage, another run in a later stage's folder, other weights of an earlier stage."""
    train(stages, tiny_corpus, tmp_path / "run")
    before = contents(tmp_path / "run")
    changed = stages | {"v": replace(stages["v"], seed=1)}
    with pytest.raises(
        InputError, match=r"stage 'v': .*v/checkpoint.safetensors: was trained by an"
    ):
        train(changed, tiny_corpus, tmp_path / "run", resume=True)
    with pytest.raises(
        InputError, match=r"stage 'a_vae': .*run/a_vae: holds a training run: go on"
    ):
        train(stages, tiny_corpus, tmp_path / "run")
    assert contents(tmp_path / "run") == before

    (tmp_path / "late").mkdir()
    (tmp_path / "run" / "copy").rename(tmp_path / "late" / "copy")
    with pytest.raises(InputError, match=r"stage 'copy': .*late/copy: holds a training run"):
        train(stages, tiny_corpus, tmp_path / "late")
    assert not (tmp_path / "late" / "a_vae" / CHECKPOINT).exists()

    for name in before:
        if name.startswith("a_vae"):
            (tmp_path / "run" / name).unlink()
    changed = stages | {"a_vae": replace(stages["a_vae"], seed=1)}
    with pytest.raises(InputError, match=r"v/checkpoint.safetensors: started from other weights"):
        train(changed, tiny_corpus, tmp_path / "run", resume=True)


def test_lips_are_asked_for_before_anything_is_trained(
    stages: Pipeline, tiny_corpus: Path, tmp_path: Path
) -> None:
    """A corpus of sound alone trains A-VAE; a pipeline with V-VAE is refused at once."""
    for sound in tiny_corpus.rglob("*.flac"):
        place = tmp_path / "heard" / sound.relative_to(tiny_corpus)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(sound)
    with pytest.raises(
        InputError, match="stage 'v': the model learns from lips, and none of the 4 t"
    ):
        train(stages, tmp_path / "heard", tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_from_the_command_line(
    tiny_corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`train PIPELINE` trains its stages and says where the weights are."""
    path = tmp_path / "p.toml"
    sizes = "options = {hidden = 8, latent_dim = 3}\ntraining.epochs = 1\n"
    path.write_text(
        f'[[stage]]\nname = "one"\nmodel = "a_vae"\n{sizes}'
        f'[[stage]]\nname = "two"\nmodel = "a_vae"\n{sizes}initialise.decoder = "one"\n'
    )
    words = ["train", path, "--data", tiny_corpus, "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["pyro-avse", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (0, "")
    assert f"wrote {tmp_path}/run/*/weights.safetensors" in " ".join(err.split())
    assert all((tmp_path / "run" / stage / WEIGHTS).exists() for stage in ("one", "two"))
