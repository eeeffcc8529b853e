"""Training a speech prior from a recipe and corpora, in a folder that a killed run goes on in. [Sadeghi2021] (18)

A checkpoint is written after every epoch and holds all that the next one depends on (`pyro_avse.svi`), so a run that
was killed ends in the same bytes as one that was not.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_avse.checkpoint import (
    find_weights,
    load_state,
    load_tensors,
    save_prior,
    save_tensors,
)
from pyro_avse.data.corpus import find_utterances
from pyro_avse.data.frames import Frames, load_frames
from pyro_avse.enhancer import find_device
from pyro_avse.files import make_folder, write_atomically
from pyro_avse.models import MODELS
from pyro_avse.recipe import Recipe, load_recipe
from pyro_avse.stft import STFT
from pyro_avse.svi import Trainer, check_elbo, seeded
from pyro_avse.typing import JSON, InputError

SPLITS: tuple[Literal["train", "valid"], ...] = ("train", "valid")
CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"
LOG, CURVES = "log.jsonl", "curves.png"


def train(
    recipe: Recipe | str | Path,
    data: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    device: str | torch.device = "auto",
    elbo: ELBO | None = None,
    progress: Callable[[JSON], None] | None = None,
) -> Path:
    """Train a prior by maximising the bound (18), and return the path of its weights.

    Args:
        recipe: a recipe, the name of a bundled one ("default/a_vae"), or a TOML file.
        data: corpus folders, or one, whose train and valid splits are used.
        out: folder for weights.safetensors, checkpoint.safetensors, log.jsonl (a line an epoch) and
            curves.png.
        resume: go on where a run in `out` stopped; without it a folder that holds one is refused.
        device: "cpu", "cuda", ..., or "auto" for the fastest at hand.
        elbo: another Pyro ELBO than the recipe's; it must enumerate where the prior is a mixture.
        progress: called with every epoch's line of the log.

    Raises:
        InputError: no usable data; `out` in use; weights to start from that do not fit; a wrong `elbo`.
    """
    from pyro_avse.plots import training_figure  # matplotlib takes a second to load

    out = Path(out)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    roots = [data] if isinstance(data, str | Path) else list(data)
    stft = STFT(hop=recipe.data.hop)
    settings = json.loads(json.dumps(asdict(recipe)))
    prior = build_prior(recipe).to(find_device(device))
    if prior.num_freqs != stft.n_fft // 2 + 1:
        raise InputError(
            f"[options] num_freqs is {prior.num_freqs}, the STFT has {stft.n_fft // 2 + 1}: leave it out"
        )
    checkpoint = _find_checkpoint(out, settings, resume)
    train_frames, valid_frames = (
        _load_split(roots, split, recipe, stft, prior.uses_lips) for split in SPLITS
    )
    check_elbo(prior, elbo, valid_frames)
    trainer = Trainer(prior, recipe, train_frames, valid_frames, elbo=elbo)
    if checkpoint is not None:
        trainer.restore(*checkpoint, path=out / CHECKPOINT)
    if progress is not None:
        for row in trainer.history:
            progress(row)
    while not trainer.finished:
        row = trainer.run_epoch()
        save_tensors(out / CHECKPOINT, *trainer.snapshot(settings))
        write_log(out / LOG, trainer.history)
        if progress is not None:
            progress(row)
    write_log(out / LOG, trainer.history)
    training_figure(trainer.history, out / CURVES)
    prior.load_state_dict(trainer.best)
    save_prior(out / WEIGHTS, prior, stft, half=recipe.half_precision)
    return out / WEIGHTS


def build_prior(recipe: Recipe) -> Any:
    """The recipe's model, freshly drawn from its seed, with the networks that `initialise` names copied in."""
    with seeded(recipe.seed):
        try:
            prior: Any = MODELS[recipe.model](**recipe.options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"[options] of {recipe.model}: {error}") from None
    for network, source in recipe.initialise.items():
        if network not in dict(prior.named_children()):
            known = ", ".join(name for name, _ in prior.named_children())
            raise InputError(f"[initialise] {network}: {recipe.model} has only {known}")
        path = find_weights(source)
        tensors = {
            name.removeprefix(f"{network}."): tensor
            for name, tensor in load_tensors(path)[0].items()
            if name.startswith(f"{network}.")
        }
        load_state(prior.get_submodule(network), tensors, path)
    return prior


def write_log(path: Path, history: list[JSON]) -> None:
    """A line an epoch, as JSON."""
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(path, lines.encode())


def _find_checkpoint(
    out: Path, settings: JSON, resume: bool
) -> tuple[dict[str, Tensor], JSON] | None:
    """The checkpoint to go on from, if any; makes the folder."""
    make_folder(out)
    path = out / CHECKPOINT
    if not path.exists():
        return None
    if not resume:
        raise InputError(
            f"{out}: holds a training run: go on with --resume, or choose another --out"
        )
    tensors, header = load_tensors(path)
    if header.get("recipe") != settings:
        raise InputError(f"{path}: was trained by another recipe: choose another --out")
    return tensors, header


def _load_split(
    data: Iterable[str | Path],
    split: Literal["train", "valid"],
    recipe: Recipe,
    stft: STFT,
    lips: bool,
) -> Frames:
    utterances = [u for root in data for u in find_utterances(root, split)]
    return load_frames(
        utterances,
        stft,
        with_lips=lips,
        noise_floor_db=recipe.data.noise_floor_db or None,
        seed=recipe.seed,
    )
