"""Training speech priors from recipes and corpora, in folders that a killed run goes on in. [Sadeghi2021] (18)

A checkpoint is written after every epoch and holds all that the next one depends on (`svi`), so a run that
was killed ends in the same bytes as one that was not. A pipeline is a run a stage, each in a folder of its own. Before
the first is trained all are rehearsed: a weight file that is missing, networks that do not fit, a folder that another
recipe used and data without lips are refused at once.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.enhancement.find import find_device
from pyro_avse.models import MODELS
from pyro_avse.stft import STFT
from pyro_avse.training.crew import ALONE, Crew
from pyro_avse.training.folder import CHECKPOINT, CURVES, LOG, WEIGHTS, find_checkpoint, write_log
from pyro_avse.training.frames import Frames, load_frames
from pyro_avse.training.recipe import (
    GuideRecipe,
    Pipeline,
    Recipe,
    RivalRecipe,
    load_recipe,
    split_source,
)
from pyro_avse.training.selection import EnhancementScore
from pyro_avse.training.supervised import train_rival
from pyro_avse.training.svi import Trainer, seeded
from pyro_avse.training.train_guide import train_guide
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.checkpoint import find_weights, save_prior
from pyro_avse.weights.tensors import load_state, load_tensors, save_tensors

SPLITS: tuple[Literal["train", "valid"], ...] = ("train", "valid")
Stages = Mapping[str, Path | tuple[nn.Module, STFT]]
"""Weights of earlier stages; in a rehearsal their models, not yet trained, and their STFTs."""


def train(
    recipe: Recipe | Pipeline | GuideRecipe | RivalRecipe | str | Path,
    data: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    device: str | torch.device = "auto",
    elbo: ELBO | None = None,
    noise: str | Path | None = None,
    progress: Callable[[JSON], None] | None = None,
    crew: Crew = ALONE,
) -> Path:
    """Train a prior, or the stages of a pipeline, by maximising the bound (18), or a guide for noisy speech, or the
    supervised rival.

    Returns the path of the (last) weights.

    Args:
        recipe: a recipe, a pipeline, a guide's or a rival's recipe, the name of a bundled one ("default/a_vae",
            "paper/all"), or a TOML file.
        data: corpus folders, or one, whose train and valid splits are used.
        out: folder for weights.safetensors, checkpoint.safetensors, log.jsonl (a line an epoch) and
            curves.png, the last two only of what is trained; of a pipeline, for a folder of these a stage.
        resume: go on where a run in `out` stopped, finished stages as they are; without it a folder that holds one is
            refused.
        device: "cpu", "cuda", ..., or "auto" for the fastest at hand.
        elbo: another Pyro ELBO than the recipe's; it must enumerate where the prior's guide does.
        noise: folder of the recordings that a rival's recipe names; nothing else learns from recorded noise.
        progress: called with every epoch's line of the log; of a pipeline, {"stage": its name} before the rest.
        crew: the processes that train together, each calling this (`pyro_avse.training.crew`).

    Raises:
        InputError: no usable data; `out` in use; weights to start from that do not fit; a wrong `elbo`.
    """
    out, device = Path(out), find_device(device)
    if not isinstance(recipe, Recipe | GuideRecipe | RivalRecipe | dict):
        recipe = load_recipe(recipe)
    roots = [data] if isinstance(data, str | Path) else list(data)
    if isinstance(recipe, GuideRecipe | RivalRecipe) and crew.size > 1:
        kind = "guide" if isinstance(recipe, GuideRecipe) else "rival"
        raise InputError(f"a {kind} learns in one process: start its training without torchrun")
    if isinstance(recipe, RivalRecipe):
        return train_rival(
            recipe, roots, out, noise=noise, resume=resume, device=device, progress=progress
        )
    if noise is not None:
        raise InputError(f"{noise}: recorded noise trains nothing but gabbay: leave --noise out")
    if isinstance(recipe, GuideRecipe):
        return train_guide(recipe, roots, out, resume=resume, device=device, progress=progress)
    stages = {"": recipe} if isinstance(recipe, Recipe) else recipe  # out / "" is out
    load = cache(partial(_load_split, roots))  # stages of one kind share their frames
    rehearsed: dict[str, tuple[nn.Module, STFT]] = {}
    for name, stage in stages.items():
        try:
            prior = build_prior(stage, rehearsed)
            rehearsed[name] = prior, STFT(hop=stage.data.hop)
            find_checkpoint(out / name, _settings(stage), resume)
            _load_frames(stage, prior, load)
        except InputError as error:
            if not name:
                raise
            raise InputError(f"stage {name!r}: {error}") from None
    done: dict[str, Path] = {}
    for name, stage in stages.items():
        report = progress
        if progress is not None and name:
            report = partial(_report, progress, name)
        score = None
        if stage.training.select == "enhancement" and stage.training.epochs > 0:
            valid = [u for root in roots for u in find_utterances(root, "valid")]
            prior, stft = rehearsed[name]
            score = EnhancementScore(valid, stft, with_lips=bool(prior.uses_lips), seed=stage.seed)
        done[name] = _train_stage(
            stage, done, load, out / name, resume, device, elbo, score, report, crew
        )
    return done[name]


def _report(progress: Callable[[JSON], None], stage: str, row: JSON) -> None:
    progress({"stage": stage, **row})


def _train_stage(
    recipe: Recipe,
    stages: Stages,
    load: Callable[..., Frames],
    out: Path,
    resume: bool,
    device: torch.device,
    elbo: ELBO | None,
    score: EnhancementScore | None,
    progress: Callable[[JSON], None] | None,
    crew: Crew,
) -> Path:
    """One recipe into one folder, from where its checkpoint stands; what is written there is of the crew's first."""
    from pyro_avse.training.curves import training_figure  # matplotlib takes a second to load

    stft = STFT(hop=recipe.data.hop)
    prior = build_prior(recipe, stages).to(device)
    header = {"recipe": _settings(recipe), "sources": _checksums(recipe, stages)}
    checkpoint = find_checkpoint(out, header["recipe"], resume)
    if checkpoint is not None and checkpoint[1].get("sources") != header["sources"]:
        raise InputError(
            f"{out / CHECKPOINT}: started from other weights than [initialise] now names: choose another --out"
        )
    precision = {"half": recipe.half_precision, "quarter": recipe.quarter_precision}
    crew.wait()  # before the first writes where the others look
    if recipe.training.epochs == 0:  # assembled: the recipe is all that a run depends on
        if crew.rank == 0:
            save_tensors(out / CHECKPOINT, {}, header)
            save_prior(out / WEIGHTS, prior, stft, **precision)
        crew.wait()
        return out / WEIGHTS
    frames = _load_frames(recipe, prior, load)
    trainer = Trainer(prior, recipe, *frames, elbo=elbo, score=score, crew=crew)
    if checkpoint is not None:
        trainer.restore(*checkpoint, path=out / CHECKPOINT)
    if progress is not None:
        for row in trainer.history:
            progress(row)
    while not trainer.finished:
        row = trainer.run_epoch()
        if crew.rank == 0:
            save_tensors(out / CHECKPOINT, *trainer.snapshot(header))
            write_log(out / LOG, trainer.history)
        if progress is not None:
            progress(row)
    if crew.rank == 0:
        write_log(out / LOG, trainer.history)
        training_figure(trainer.history, out / CURVES)
        prior.load_state_dict(trainer.best)
        save_prior(out / WEIGHTS, prior, stft, **precision)
    crew.wait()
    return out / WEIGHTS


def build_prior(recipe: Recipe, stages: Stages | None = None) -> Any:
    """The recipe's model, freshly drawn from its seed, with the networks that `initialise` names copied in.

    Raises:
        InputError: options that the model does not take; a network that it or the weights lack, or of another shape;
            weights of another STFT; without epochs, a network that `initialise` leaves as drawn.
    """
    with seeded(recipe.seed):
        try:
            prior: Any = MODELS[recipe.model](**recipe.options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"[options] of {recipe.model}: {error}") from None
    stft = STFT(hop=recipe.data.hop)
    frequencies = stft.n_fft // 2 + 1
    if prior.num_freqs != frequencies:
        raise InputError(
            f"[options] num_freqs is {prior.num_freqs}, the STFT has {frequencies}: leave it out"
        )
    for network, source in recipe.initialise.items():
        if network not in dict(prior.named_modules()):
            known = ", ".join(name for name, _ in prior.named_children())
            raise InputError(f"[initialise] {network}: {recipe.model} has only {known}")
        _copy_network(prior.get_submodule(network), network, source, stft, stages or {})
    copied = tuple(f"{network}." for network in recipe.initialise)
    drawn = [name for name, _ in prior.named_parameters() if not name.startswith(copied)]
    if recipe.training.epochs == 0 and drawn:
        networks = ", ".join(dict.fromkeys(name.split(".")[0] for name in drawn))
        raise InputError(
            f"[initialise] leaves {networks} of {recipe.model} untrained: name weights for it, or give epochs"
        )
    return prior


def _copy_network(module: nn.Module, network: str, source: str, stft: STFT, stages: Stages) -> None:
    """Start one network from the same one, or another, of some weights; a model from all of them."""
    weights, other = split_source(source)
    path, header, tensors = _find_donor(weights, stages)
    model = header.get("model")
    for key, ours in asdict(stft).items():
        if (theirs := header.get("stft", {}).get(key, ours)) != ours:
            raise InputError(
                f"[initialise] {network}: {path} was trained at {key} {theirs}, [data] {key} is {ours}: "
                "name other weights, or change [data]"
            )
    cure = "change [options]"
    wanted = _model_name(module)
    if wanted is not None and other is None:
        if model != wanted:
            raise InputError(
                f"[initialise] {network}: {path} holds {model}: name weights of {wanted}"
            )
        options: Any = module.options
        differ = {k: v for k, v in header.get("options", {}).items() if options.get(k) != v}
        if differ:
            named = (f"options.{network}.{k} = {json.dumps(v)}" for k, v in differ.items())
            cure = f"set {', '.join(named)}"
    else:
        prefix = f"{other or network}."
        found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if not found:
            known = ", ".join(dict.fromkeys(name.split(".")[0] for name in tensors if "." in name))
            raise InputError(
                f"[initialise] {network}: {path} holds {model} without {prefix[:-1]}: it has {known}"
            )
        tensors = found
    try:
        load_state(module, tensors, path)
    except InputError as error:
        raise InputError(
            f"[initialise] {network}: {error}: name other weights, or {cure}"
        ) from None


def _find_donor(weights: str, stages: Stages) -> tuple[Path, JSON, dict[str, Tensor]]:
    """Where weights are, their header, and the tensors: of an earlier stage, bundled, or in a file."""
    stage = stages.get(weights)
    if isinstance(stage, tuple):
        prior, stft = stage
        header = {"model": _model_name(prior), "options": prior.options, "stft": asdict(stft)}
        return Path(weights), header, prior.state_dict()
    path = _find_file(weights, stages)
    tensors, header = load_tensors(path)
    return path, header, tensors


def _model_name(module: nn.Module) -> str | None:
    """The key of MODELS, if the module is itself a model."""
    return next((name for name, kind in MODELS.items() if type(module) is kind), None)


def _find_file(weights: str, stages: Stages) -> Path:
    stage = stages.get(weights)
    if isinstance(stage, Path):
        return stage
    try:
        return find_weights(weights)
    except InputError as error:
        earlier = f"no earlier stage ({', '.join(stages)}), and " if stages else ""
        raise InputError(f"[initialise] {weights!r}: {earlier}{error}") from None


def _checksums(recipe: Recipe, stages: Stages) -> dict[str, int]:
    """Of the weight files that a run starts from."""
    names = {split_source(source)[0] for source in recipe.initialise.values()}
    return {name: zlib.crc32(_find_file(name, stages).read_bytes()) for name in sorted(names)}


def _settings(recipe: Recipe) -> JSON:
    return json.loads(json.dumps(asdict(recipe)))


def _load_frames(recipe: Recipe, prior: Any, load: Callable[..., Frames]) -> list[Frames]:
    """Training and validation frames; none of what is only assembled."""
    if recipe.training.epochs == 0:
        return []
    floor, stft = recipe.data.noise_floor_db or None, STFT(hop=recipe.data.hop)
    settings = (stft, prior.uses_lips, floor, recipe.seed, recipe.data.level, recipe.data.bad_lips)
    return [load(split, *settings) for split in SPLITS]


def _load_split(
    roots: Iterable[str | Path],
    split: Literal["train", "valid"],
    stft: STFT,
    with_lips: bool,
    noise_floor_db: float | None,
    seed: int,
    level: Literal["peak", "speech"],
    bad_lips: float,
) -> Frames:
    utterances = [u for root in roots for u in find_utterances(root, split)]
    if with_lips and not any(u.lips for u in utterances):
        raise InputError(
            f"the model learns from lips, and none of the {len(utterances)} {split} clips has an .npz beside it: "
            "add them, or train a_vae"
        )
    return load_frames(
        utterances,
        stft,
        with_lips=with_lips,
        noise_floor_db=noise_floor_db,
        seed=seed,
        level=level,
        bad_lips=bad_lips,
    )
