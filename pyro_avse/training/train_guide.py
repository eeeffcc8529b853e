"""A guide's training run in a folder: for noisy speech of one speaker, or of several."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pyro_avse.data.corpora.corpus import Utterance, find_utterances
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.models.separating_guide import SeparatingGuide
from pyro_avse.stft import STFT
from pyro_avse.training.amortise import Amortiser
from pyro_avse.training.folder import CHECKPOINT, CURVES, LOG, WEIGHTS, find_checkpoint, write_log
from pyro_avse.training.pairs import load_speech
from pyro_avse.training.recipe import GuideRecipe
from pyro_avse.training.separate import SeparationAmortiser
from pyro_avse.training.speakers import VARIANTS, load_voices
from pyro_avse.training.svi import seeded
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.checkpoint import load_prior
from pyro_avse.weights.guides import own_guide, read_guide, save_guide
from pyro_avse.weights.tensors import save_tensors


def train_guide(
    recipe: GuideRecipe,
    roots: list[str | Path],
    out: Path,
    *,
    resume: bool,
    device: torch.device,
    progress: Callable[[JSON], None] | None = None,
) -> Path:
    """Train a guide of either kind into `out`; files and refusals as of `pyro_avse.training.stages.train`."""
    from pyro_avse.training.curves import guide_figure  # matplotlib takes a second to load

    prior, stft = load_prior(recipe.prior, guide=None)
    prior = prior.to(device)
    with seeded(recipe.seed):
        try:
            kind = SeparatingGuide if recipe.separates else NoisyGuide
            guide: Any = kind(prior, **recipe.options).to(device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"[options] of a guide: {error}") from None
    if recipe.start:
        _start_from(guide, recipe.start)
    header: JSON = {"recipe": json.loads(json.dumps(asdict(recipe)))}
    found = find_checkpoint(out, header["recipe"], resume)
    corpora = [
        {split: find_utterances(root, split) for split in ("train", "valid")} for root in roots
    ]
    train, valid = (
        _load([corpus[split] for corpus in corpora], guide, stft, recipe, training=split == "train")
        for split in ("train", "valid")
    )
    kind_of_run = SeparationAmortiser if recipe.separates else Amortiser
    run = kind_of_run(guide, recipe, train, valid, stft)
    if found is not None:
        run.restore(*found, path=out / CHECKPOINT)
    for row in run.history:
        if progress is not None:
            progress(row)
    while not run.finished:
        row = run.run_round()
        save_tensors(out / CHECKPOINT, *run.snapshot(header))
        write_log(out / LOG, run.history)
        if progress is not None:
            progress(row)
    guide_figure(run.history, out / CURVES)
    guide.load_state_dict(run.best)
    precision = {"half": recipe.half_precision, "quarter": recipe.quarter_precision}
    save_guide(out / WEIGHTS, guide, stft, **precision)
    return out / WEIGHTS


def _load(
    corpora: list[list[Utterance]],
    guide: Any,
    stft: STFT,
    recipe: GuideRecipe,
    *,
    training: bool,
) -> Any:
    """Clean speech as that kind of guide learns from it, one corpus as often as another. What judges it is as it was
    spoken; `training` has other speeds besides, or of several speakers variants of their lips.
    """
    floor = recipe.noise_floor_db or None
    if recipe.separates:
        return load_voices(
            corpora,
            guide.prior,
            stft,
            noise_floor_db=floor,
            variants=VARIANTS if training else 1,
            seed=recipe.seed,
        )
    every = [utterance for corpus in corpora for utterance in corpus]
    chances = [1 / len(corpus) for corpus in corpora for _ in corpus]
    return load_speech(
        every,
        guide,
        stft,
        noise_floor_db=floor,
        speeds=recipe.speeds if training else 0.0,
        chances=chances,
        seed=recipe.seed,
    )


def _start_from(guide: Any, source: str) -> None:
    """Copy what fits of another guide, which may be another prior's: the ear stays, the codes are learned anew."""
    tensors, header = read_guide(own_guide(source) or source)
    if isinstance(guide, SeparatingGuide) and not header.get("separates"):
        guide.start_from(tensors)
        return
    state = guide.state_dict()
    for name, tensor in tensors.items():
        if name in state and state[name].shape == tensor.shape:
            state[name].copy_(tensor)
