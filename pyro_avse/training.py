"""Training a speech prior by stochastic variational inference, the mixture variable enumerated. [Sadeghi2021] (18)-(25)

The loss of a minibatch is minus the bound (17), from Pyro's traces of `model` and `guide` with alpha_n enumerated. What
r(alpha_n) is held at, always detached, is the recipe's choice:

    step    (22) with J_k = log q(z_k) - log p(s | z_k) - log p(z_k | k) at this step's own draws, where the loss
            becomes -logsumexp_k(log pi_k - J_k): again a bound, and its gradient is that of (23)
    epoch   a table, refreshed by (21) and (22) in a pass without gradients after every epoch: the paper's

and pi is the mean of r (25) after every epoch. A checkpoint is written after every epoch and holds all that the next
one depends on; each epoch seeds its own draws. So a run that was killed goes on to the same bytes as one that was not.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.enum import get_importance_trace
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
from pyro_avse.files import make_folder, write_atomically
from pyro_avse.models import MODELS
from pyro_avse.models.mixture import (
    component_elbo_terms,
    component_negative_elbo,
    mixture_free_energy,
    update_mixing_weight,
    update_responsibilities,
)
from pyro_avse.recipe import Recipe
from pyro_avse.stft import STFT
from pyro_avse.typing import JSON, InputError, Responsibilities, SpeechPrior

SPLITS: tuple[Literal["train", "valid"], ...] = ("train", "valid")
CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"
LOG, CURVES = "log.jsonl", "curves.png"


def train(
    recipe: Recipe,
    data: Iterable[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    elbo: ELBO | None = None,
    progress: Callable[[JSON], None] | None = None,
) -> Path:
    """Train a prior by maximising the bound (18), and return the path of its weights.

    Args:
        data: corpus folders, whose train and valid splits are used.
        out: folder for weights.safetensors, checkpoint.safetensors, log.jsonl (a line an epoch) and
            curves.png.
        resume: go on where a run in `out` stopped; without it a folder that holds one is refused.
        elbo: another Pyro ELBO than the recipe's; it must enumerate where the prior is a mixture.
        progress: called with every epoch's line of the log.

    Raises:
        InputError: no usable data; `out` in use; weights to start from that do not fit; a wrong `elbo`.
    """
    from pyro_avse.plots import training_figure  # matplotlib takes a second to load

    out = Path(out)
    stft = STFT(hop=recipe.data.hop)
    settings = json.loads(json.dumps(asdict(recipe)))
    checkpoint = _find_checkpoint(out, settings, resume)
    prior = build_prior(recipe).to(device)
    if prior.num_freqs != stft.n_fft // 2 + 1:
        raise InputError(
            f"[options] num_freqs is {prior.num_freqs}, the STFT has {stft.n_fft // 2 + 1}: leave it out"
        )
    roots = list(data)
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


class Trainer:
    """One training run, an epoch at a time."""

    def __init__(
        self,
        prior: Any,
        recipe: Recipe,
        train: Frames,
        valid: Frames,
        *,
        elbo: ELBO | None = None,
    ) -> None:
        self.prior, self.recipe, self.elbo = prior, recipe, elbo
        self.train, self.valid = train, valid
        self.optimiser = torch.optim.Adam(
            prior.parameters(), lr=recipe.training.learning_rate, fused=True
        )
        self.history: list[JSON] = []
        self.best: dict[str, Tensor] = {}
        self.table: Tensor | None = None
        if prior.num_components > 1 and recipe.training.responsibilities == "epoch":
            self.table = torch.full((prior.num_components, len(train)), 1 / prior.num_components)

    @property
    def finished(self) -> bool:
        """All epochs run, or none better than the best for `patience` epochs."""
        if not self.history:
            return False
        best = max(self.history, key=lambda row: row["valid_elbo"])["epoch"]
        last = len(self.history) - 1
        options = self.recipe.training
        return last + 1 >= options.epochs or last - best >= options.patience

    def run_epoch(self) -> JSON:
        """One pass over the training frames, pi by (25), and the validation ELBO; returns the log's line."""
        epoch = len(self.history)
        rate = self._learning_rate(epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with seeded(self.recipe.seed, epoch, device=self.device):
            train_elbo, mean_responsibility = self._pass_over_frames()
            if self.table is not None:
                self._refresh_table()
                mean_responsibility = update_mixing_weight(self.table)
        self.prior.mixing_weight.copy_(mean_responsibility)  # (25)
        row = {
            "epoch": epoch,
            "learning_rate": rate,
            "train_elbo": train_elbo,
            **validate(self.prior, self.valid, seed=self.recipe.seed),
            "mixing_weight": self.prior.mixing_weight.tolist(),
        }
        if not self.history or row["valid_elbo"] > max(r["valid_elbo"] for r in self.history):
            self.best = {name: t.detach().clone() for name, t in self.prior.state_dict().items()}
        self.history.append(row)
        return row

    def _pass_over_frames(self) -> tuple[float, Tensor]:
        """Mean ELBO of the epoch's steps, and the mean of the r(alpha_n) they used."""
        size, count = self.recipe.training.batch_size, len(self.train)
        order = torch.randperm(count)
        total = torch.zeros((), device=self.device)
        responsibility = torch.zeros_like(self.prior.mixing_weight)
        for index in order.split(size):
            power, lips = self._batch(index)
            loss, r = self._loss(power, lips, index)
            self.optimiser.zero_grad()
            (loss / len(index)).backward()
            self.optimiser.step()
            total -= loss.detach()
            responsibility += r.sum(-1)
        return float(total) / count, responsibility / count

    def _loss(
        self, power: Tensor, lips: Tensor | None, index: Tensor
    ) -> tuple[Tensor, Responsibilities]:
        """Minus the bound of a minibatch, and the r(alpha_n) it was taken at."""
        model, guide = self.prior.model, self.prior.guide
        even = power.new_ones(self.prior.num_components, len(power)) / self.prior.num_components
        if self.elbo is not None:
            return self.elbo.differentiable_loss(model, guide, power, lips), even
        if self.prior.num_components == 1:
            return TraceMeanField_ELBO().differentiable_loss(model, guide, power, lips), even
        if self.table is not None:
            r = self.table[:, index].to(power.device)
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            return elbo.differentiable_loss(model, guide, power, lips, responsibilities=r), r
        J = enumerated_negative_elbo(self.prior, power, lips)
        r = update_responsibilities(J.detach(), self.prior.mixing_weight)
        return mixture_free_energy(r, J, self.prior.mixing_weight).sum(), r

    @torch.no_grad()
    def _refresh_table(self) -> None:
        """r(alpha_n) of all training frames by (21) and (22)."""
        assert self.table is not None
        for index in torch.arange(len(self.train)).split(4096):
            J = component_negative_elbo(self.prior, *self._batch(index))
            self.table[:, index] = update_responsibilities(J, self.prior.mixing_weight).cpu()

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        power = self.train.power[index].to(self.device)
        if quieter := self.recipe.data.level_range_db:
            power = power * 10 ** (-0.1 * quieter * torch.rand(len(index), 1, device=self.device))
        lips = self.train.lips
        return power, None if lips is None else lips[index].to(self.device)

    def _learning_rate(self, epoch: int) -> float:
        options = self.recipe.training
        if options.schedule == "constant":
            return options.learning_rate
        fall = 0.5 * (1 + np.cos(np.pi * epoch / options.epochs))
        return options.learning_rate * float(0.02 + 0.98 * fall)

    @property
    def device(self) -> torch.device:
        return self.prior.mixing_weight.device

    def snapshot(self, settings: JSON) -> tuple[dict[str, Tensor], JSON]:
        """All that the next epoch depends on."""
        tensors = {f"model.{k}": v for k, v in self.prior.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, parameter in self.prior.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        if self.table is not None:
            tensors["table"] = self.table
        return tensors, {"recipe": settings, "frames": len(self.train), "history": self.history}

    def restore(self, tensors: dict[str, Tensor], header: JSON, *, path: Path) -> None:
        """Go back to a `snapshot`."""
        if header["frames"] != len(self.train):
            raise InputError(
                f"{path}: was trained on {header['frames']} frames, --data now holds "
                f"{len(self.train)}: give the same folders"
            )
        part: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition(".")
            if prefix in part:
                part[prefix][rest] = tensor.to(self.device)
        load_state(self.prior, part["model"], path)
        self.best, self.history = part["best"], header["history"]
        for name, parameter in self.prior.named_parameters():
            self.optimiser.state[parameter] = {
                key: part["adam"][f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }
        if self.table is not None:
            self.table = tensors["table"]


def enumerated_negative_elbo(
    prior: SpeechPrior, power: Float[Tensor, "frame freq"], lips: Tensor | None
) -> Float[Tensor, "component frame"]:
    """J_k = log q(z_k) - log p(s | z_k) - log p(z_k | k), from one trace with alpha_n enumerated.

    One draw z_k of each component's encoder. Unlike (21) the divergence too is taken at the draw, so that
    logsumexp_k(log pi_k - J_k) is in expectation no more than log p(s).
    """
    held = power.new_ones(prior.num_components, len(power)) / prior.num_components  # not used by J
    with poutine.enum(first_available_dim=-2):
        model_trace, guide_trace = get_importance_trace(
            "flat", 1, prior.model, prior.guide, (power, lips), {"responsibilities": held}
        )
    model, guide = model_trace.nodes, guide_trace.nodes
    return guide["z"]["log_prob"] - model["s"]["log_prob"] - model["z"]["log_prob"]


@torch.no_grad()
def validate(prior: Any, frames: Frames, *, seed: int) -> JSON:
    """The bound (17) and its parts on held-out frames, in nats a frame, by one draw each of a fixed seed."""
    device = prior.mixing_weight.device
    sums = torch.zeros(3, device=device)
    responsibility = torch.zeros_like(prior.mixing_weight)
    with seeded(seed, device=device):
        for index in torch.arange(len(frames)).split(4096):
            power = frames.power[index].to(device)
            lips = None if frames.lips is None else frames.lips[index].to(device)
            kl, log_likelihood = component_elbo_terms(prior, power, lips)
            J = kl - log_likelihood
            r = update_responsibilities(J, prior.mixing_weight)
            elbo = -mixture_free_energy(r, J, prior.mixing_weight)
            reconstruction = (r * log_likelihood).sum(0)
            sums += torch.stack([elbo, reconstruction, reconstruction - elbo]).sum(-1)
            responsibility += r.sum(-1)
    elbo, reconstruction, kl = (sums / len(frames)).tolist()
    return {
        "valid_elbo": elbo,
        "valid_reconstruction": reconstruction,
        "valid_kl": kl,
        "valid_responsibility": (responsibility / len(frames)).tolist(),
    }


def check_elbo(prior: Any, elbo: ELBO | None, frames: Frames) -> None:
    """Refuse a pair that Pyro would train wrongly with only a warning: alpha_n sampled instead of enumerated."""
    if prior.num_components == 1:
        return
    if elbo is not None and not isinstance(elbo, TraceEnum_ELBO):
        raise InputError(
            f"{type(elbo).__name__} does not enumerate alpha: take TraceEnum_ELBO(max_plate_nesting=1)"
        )
    lips = None if frames.lips is None else frames.lips[:2].to(prior.mixing_weight.device)
    power = frames.power[:2].to(prior.mixing_weight.device)
    with torch.random.fork_rng():
        trace = poutine.trace(prior.guide).get_trace(power, lips)
    for name, site in trace.nodes.items():
        discrete = site["type"] == "sample" and getattr(site["fn"], "has_enumerate_support", False)
        if discrete and site["infer"].get("enumerate") != "parallel":
            raise InputError(
                f'the guide\'s site {name!r} is not enumerated: add infer={{"enumerate": "parallel"}}'
            )


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


@contextmanager
def seeded(*entropy: int, device: torch.device | None = None) -> Iterator[None]:
    """Draws inside depend on these integers alone; the global generators stay as they were."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        yield
