"""One training run: SVI with the mixture variable enumerated. [Sadeghi2021] (17)-(25)

The loss of a minibatch is minus the bound (17), from Pyro's traces of `model` and `guide` with alpha_n enumerated. What
r(alpha_n) is held at, always detached, is the recipe's choice:

    step    (22) with J_k = log q(z_k) - log p(s | z_k) - log p(z_k | k) at this step's own draws, where the loss
            becomes -logsumexp_k(log pi_k - J_k): again a bound, and its gradient is that of (23)
    epoch   a table, refreshed by (21) and (22) in a pass without gradients after every epoch: the paper's

and pi is the mean of r (25) after every epoch. With one component pi and r stay 1, and where its guide enumerates an
alpha_n of its own (AV-VAE's S15, r held by the model) so does the bound. Of encoders that `alternate`, one an epoch is
trained, in turn. Each epoch seeds its own draws, and a snapshot holds all that the next one depends on.
"""

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_avse.data.lips.augment import augment_lips
from pyro_avse.distributions import update_mixing_weight
from pyro_avse.models.mixture import (
    component_elbo_terms,
    component_negative_elbo,
    mixture_free_energy,
    update_responsibilities,
)
from pyro_avse.training.crew import ALONE, Crew
from pyro_avse.training.enumeration import check_elbo
from pyro_avse.training.frames import Frames
from pyro_avse.training.recipe import Recipe
from pyro_avse.training.sequences import (
    cut_frames,
    draw_cuts,
    path_loss,
    validate_paths,
)
from pyro_avse.training.tilt import tilt_spectra
from pyro_avse.typing import (
    JSON,
    InputError,
    Responsibilities,
    SpeechPrior,
    couples_frames,
)
from pyro_avse.weights.tensors import load_state


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
        score: Callable[[Any], float] | None = None,
        crew: Crew = ALONE,
    ) -> None:
        """`score` of the prior, in dB, then says which epoch is the best, instead of the validation ELBO.

        `crew`: the processes that train it together.
        """
        self.crew = crew
        self.prior, self.recipe, self.elbo, self.score = prior, recipe, elbo, score
        self.criterion = "valid_elbo" if score is None else "valid_si_sdr"
        self.train, self.valid = train, valid
        self.cut = cut_frames(recipe) if couples_frames(prior) else 0
        self.enumerates = False if self.cut else check_elbo(prior, elbo, train)
        self.optimiser = torch.optim.Adam(
            prior.parameters(), lr=recipe.training.learning_rate, fused=True
        )
        self.encoders: tuple[str, ...] = getattr(prior, "alternate", ())
        self.bound = crew.parallel(prior, lambda *batch: self._loss(*batch))
        self.noise_level, self.noisy = self._noise_injection()
        self.history: list[JSON] = []
        self.best: dict[str, Tensor] = {}
        self.table: Tensor | None = None
        frame_by_frame = prior.num_components > 1 and not self.cut
        if frame_by_frame and recipe.training.responsibilities == "epoch":
            self.table = torch.full((prior.num_components, len(train)), 1 / prior.num_components)

    @property
    def finished(self) -> bool:
        """All epochs run, or none better, by the recipe's `select`, than the best for `patience` epochs."""
        if not self.history:
            return False
        best = max(self.history, key=lambda row: row[self.criterion])["epoch"]
        last = len(self.history) - 1
        options = self.recipe.training
        return last + 1 >= options.epochs or last - best >= options.patience

    def run_epoch(self) -> JSON:
        """One pass over the training frames, pi by (25), and the validation ELBO; returns the log's line.

        Raises:
            InputError: parameters or the validation bound are not finite; the epoch is not recorded.
        """
        epoch = len(self.history)
        rate = self._learning_rate(epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.encoders:
            self.prior.active_encoder = self.encoders[epoch % len(self.encoders)]
        try:
            with seeded(self.recipe.seed, epoch, device=self.device):
                train_objective, mean_responsibility = self._pass_over_frames()
                if self.table is not None:
                    self._refresh_table()
                    mean_responsibility = update_mixing_weight(self.table)
            self.prior.mixing_weight.copy_(mean_responsibility)  # (25)
            validation = self.crew.of_first(
                lambda: validate(self.prior, self.valid, seed=self.recipe.seed, cut=self.cut)
            )
        except ValueError as error:
            if "constraint" not in str(error):  # what Pyro says of parameters that are NaN
                raise
            reason = str(error).splitlines()[0]
            raise InputError(
                f"training diverged in epoch {epoch} ({reason}): lower learning_rate"
            ) from error
        if not math.isfinite(bound := validation["valid_elbo"]):
            raise InputError(
                f"training diverged in epoch {epoch} (the bound is {bound}): lower learning_rate"
            )
        row = {
            "epoch": epoch,
            "learning_rate": rate,
            "train_objective": train_objective,
            **validation,
            "mixing_weight": self.prior.mixing_weight.tolist(),
        }
        if self.score is not None:
            row["valid_si_sdr"] = self.crew.of_first(partial(self.score, self.prior))
        so_far = max((r[self.criterion] for r in self.history), default=-math.inf)
        if row[self.criterion] > so_far:
            self.best = {name: t.detach().clone() for name, t in self.prior.state_dict().items()}
        self.history.append(row)
        return row

    def _pass_over_frames(self) -> tuple[float, Tensor]:
        """Mean ELBO of the epoch's steps, and the mean of the r(alpha_n) they used."""
        size, count = self.crew.size * self.recipe.training.batch_size, len(self.train)
        order = torch.randperm(count)
        if self.cut:
            order = draw_cuts(self.train.ends, self.cut, at_random=True)
            order, count = order[torch.randperm(len(order))], order.numel()
        total = torch.zeros((), device=self.device)
        responsibility = torch.zeros_like(self.prior.mixing_weight)
        for number, index in enumerate(order.split(size)):
            # Pyro checks shapes and values in the first step alone; NaN from later ones shows in validation
            with nullcontext() if number == 0 else pyro.validation_enabled(False):
                loss, r = self.step(index)
            total -= loss
            responsibility += r.sum(-1)
        total, responsibility = self.crew.total(total), self.crew.total(responsibility)
        return float(total) / count, responsibility / count

    def step(self, index: Tensor) -> tuple[Tensor, Responsibilities]:
        """One step of the optimiser on the training frames `index`; the loss, detached, and r(alpha_n) as it was, of
        this process's share of them.
        """
        share, weight = self.crew.share(len(index))
        batch = [None if part is None else part[share] for part in self._batch(index)]
        with ScaledCodes(self.recipe.training.kl_weight), self.crew.draws(share, len(index)):
            loss, r = self.bound(*batch, index[share])
        # none, not 0: with a gradient of 0 Adam would still move a resting encoder
        self.optimiser.zero_grad(set_to_none=True)
        loss = weight * loss
        (self.crew.size * loss / index.numel()).backward()  # the crew's gradients are averaged
        self.optimiser.step()
        return loss.detach(), weight * r

    def _loss(
        self, power: Tensor, lips: Tensor | None, heard: Tensor, index: Tensor
    ) -> tuple[Tensor, Responsibilities]:
        """Minus the bound of a minibatch, and the r(alpha_n) it was taken at."""
        heard_by = {"encoder_power": heard}
        model, guide, pi = self.prior.model, self.prior.guide, self.prior.mixing_weight
        if self.cut:
            return path_loss(self.prior, power, lips, heard, self.recipe.training.kl_weight)
        if self.prior.num_components == 1:
            enumerating, plain = TraceEnum_ELBO(max_plate_nesting=1), TraceMeanField_ELBO()
            elbo = self.elbo or (enumerating if self.enumerates else plain)
            lips = self.prior.visual_features(lips)  # once for model and guide
            loss = elbo.differentiable_loss(model, guide, power, lips, **heard_by)
            return loss, power.new_ones(1, len(power))
        if self.table is None and self.elbo is None:
            J = enumerated_negative_elbo(self.prior, power, lips, **heard_by)
            log_joint = pi.log()[:, None] - J
            return -torch.logsumexp(log_joint, 0).sum(), torch.softmax(log_joint.detach(), 0)
        if self.table is not None:
            r = self.table.index_select(1, index).to(power.device)
        else:
            with torch.no_grad():
                J = component_negative_elbo(self.prior, power, lips, **heard_by)
                r = update_responsibilities(J, pi)
        elbo = self.elbo or TraceEnum_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(model, guide, power, lips, responsibilities=r, **heard_by)
        return loss, r

    @torch.no_grad()
    def _refresh_table(self) -> None:
        """r(alpha_n) of all training frames by (21) and (22)."""
        assert self.table is not None
        for index in torch.arange(len(self.train)).split(4096):
            power, lips, heard = self._batch(index)
            J = component_negative_elbo(self.prior, power, lips, encoder_power=heard)
            self.table[:, index] = update_responsibilities(J, self.prior.mixing_weight).cpu()

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Clean power, lips, and the power that the audio encoder hears."""
        power = heard = self.train.power[index].to(self.device)
        lips = self.train.lips
        if self.noise_level:
            hit = self.noisy[index].to(self.device)[..., None]
            heard = power + hit * self.noise_level * torch.rand_like(power)
        if quieter := self.recipe.data.level_range_db:
            each = torch.rand(len(index), *[1] * index.dim(), device=self.device)
            scale = 10 ** (-0.1 * quieter * each)
            power, heard = scale * power, scale * heard
        if steepest := self.recipe.data.tilt_db:
            power, heard = tilt_spectra(power, heard, steepest)
        if lips is not None:
            lips = lips[index].to(self.device)
            if strength := self.recipe.data.augment_lips:
                if self.cut:
                    lips = torch.stack([augment_lips(v, strength, together=True) for v in lips])
                else:
                    lips = augment_lips(lips, strength)
        return power, lips, heard

    def _noise_injection(self) -> tuple[float, Tensor]:
        """Level and frames of the noise on the audio encoder's input (Sec. IV-B): uniform on the power, 0 dB.

        The SNR is that of all training frames together: noise drawn from [0, level] has the mean power of speech,
        and `level_range_db` makes the two quieter together. The frames are drawn once for the run; what the decoder
        has to explain stays clean.
        """
        with seeded(self.recipe.seed, 0, 1):
            noisy = torch.rand(len(self.train)) < self.recipe.data.noisy_fraction
        level = 2 * float(self.train.power.mean(dtype=torch.float64))
        return (level if self.recipe.data.noisy_fraction else 0.0), noisy

    def _learning_rate(self, epoch: int) -> float:
        options = self.recipe.training
        if options.schedule == "constant":
            return options.learning_rate
        fall = 0.5 * (1 + np.cos(np.pi * epoch / options.epochs))
        return options.learning_rate * float(0.02 + 0.98 * fall)

    @property
    def device(self) -> torch.device:
        return self.prior.mixing_weight.device

    def snapshot(self, header: JSON) -> tuple[dict[str, Tensor], JSON]:
        """All that the next epoch depends on: tensors, and `header` with the data's checksum and the log so far."""
        tensors = {f"model.{k}": v for k, v in self.prior.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, parameter in self.prior.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        if self.table is not None:
            tensors["table"] = self.table
        return tensors, header | {"data": self.digest, "history": self.history}

    def restore(self, tensors: dict[str, Tensor], header: JSON, *, path: Path) -> None:
        """Go back to a `snapshot`."""
        if header["data"] != self.digest:
            raise InputError(
                f"{path}: was trained on other data than --data now holds: give the same folders in "
                "the same order"
            )
        part: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition(".")
            if prefix in part:
                part[prefix][rest] = tensor.to(self.device)
        load_state(self.prior, part["model"], path)
        self.best, self.history = part["best"], header["history"]
        for name, parameter in self.prior.named_parameters():
            if f"{name}.step" in part["adam"]:  # not of an encoder whose first turn is yet to come
                self.optimiser.state[parameter] = {
                    key: part["adam"][f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
        if self.table is not None:
            self.table = tensors["table"]

    @cached_property
    def digest(self) -> list[int]:
        """A checksum of all training and validation frames: another order is other data."""
        parts = (self.train.power, self.train.lips, self.valid.power, self.valid.lips)
        return [zlib.crc32(part.numpy().data) for part in parts if part is not None]


class ScaledCodes(Messenger):  # type: ignore[misc]
    """Within it the log densities of "z", in model and guide, count `weight` times: a weight on its divergence."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z":
            msg["scale"] = msg["scale"] * self.weight


def enumerated_negative_elbo(
    prior: SpeechPrior,
    power: Float[Tensor, "frame freq"],
    lips: Tensor | None,
    *,
    encoder_power: Tensor | None = None,
) -> Float[Tensor, "component frame"]:
    """J_k = log q(z_k) - log p(s | z_k) - log p(z_k | k), from one trace with alpha_n enumerated.

    One draw z_k of each component's encoder. Unlike (21) the divergence too is taken at the draw, so that
    logsumexp_k(log pi_k - J_k) is in expectation no more than log p(s).
    """
    held = power.new_ones(prior.num_components, len(power)) / prior.num_components  # not used by J
    given = {"responsibilities": held, "encoder_power": encoder_power}
    with poutine.enum(first_available_dim=-2):
        guide = poutine.trace(prior.guide).get_trace(power, lips, **given)
        model = poutine.trace(poutine.replay(prior.model, guide)).get_trace(power, lips, **given)
    for trace in (guide, model):
        trace.compute_log_prob(lambda name, site: name != "alpha")
    log_q, log_p = guide.nodes["z"]["log_prob"], model.nodes["z"]["log_prob"]
    return log_q - model.nodes["s"]["log_prob"] - log_p


@torch.no_grad()
def validate(prior: Any, frames: Frames, *, seed: int, cut: int = 0) -> JSON:
    """The bound (17) and its parts on held-out frames, in nats a frame, by draws of a fixed seed.

    r(alpha_n) is (22) at one draw of every encoder, and J_k is taken at another: for r that does not know J's draw the
    estimate is without bias. At one and the same draw it would prefer whichever component was lucky, and be too high.
    Of encoders that are trained in turn, the mean over all of them, so that epochs compare. Of AV-VAE, the bound of
    q(z | s, v), whatever share of the loss (S15) its prior has: one scale for all shares. At a share of 1 that encoder
    never learns, and epochs are then told apart by how prior and decoder fit the codes that it began with.
    """
    device = prior.mixing_weight.device
    if cut:
        with seeded(seed, device=device):
            return validate_paths(prior, frames, cut)
    sums = torch.zeros(3, device=device)
    responsibility = torch.zeros_like(prior.mixing_weight)
    encoders = getattr(prior, "alternate", ()) or (None,)
    for encoder in encoders:
        if encoder is not None:
            prior.active_encoder = encoder
        with seeded(seed, device=device):
            for index in torch.arange(len(frames)).split(4096):
                power = frames.power.index_select(0, index).to(device)
                lips = frames.lips
                if lips is not None:
                    lips = lips.index_select(0, index).to(device)
                # r by draws of its own: the least of two noisy J would be below either's mean
                r = update_responsibilities(
                    component_negative_elbo(prior, power, lips), prior.mixing_weight
                )
                kl, log_likelihood = component_elbo_terms(prior, power, lips)
                J = kl - log_likelihood
                elbo = -mixture_free_energy(r, J, prior.mixing_weight)
                reconstruction = (r * log_likelihood).sum(0)
                sums += torch.stack([elbo, reconstruction, reconstruction - elbo]).sum(-1)
                responsibility += r.sum(-1)
    count = len(frames) * len(encoders)
    elbo, reconstruction, kl = (sums / count).tolist()
    return {
        "valid_elbo": elbo,
        "valid_reconstruction": reconstruction,
        "valid_kl": kl,
        "valid_responsibility": (responsibility / count).tolist(),
    }


@contextmanager
def seeded(*entropy: int, device: torch.device | None = None) -> Iterator[None]:
    """Draws inside depend on these integers alone; the global generators stay as they were."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        yield
