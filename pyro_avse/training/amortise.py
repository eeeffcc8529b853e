"""Training a guide for noisy speech: the sleep phase of wake-sleep, or reweighted wake-sleep. (14), (17), (31)

Sleep [Hinton et al. 1995; Le, Baydin, Wood 2017]: on draws of the program (`draw_pairs`) the forward divergence falls,

    E_p [ -log q(log g) - log q(a) - w log q(log WH) - sum_n sum_k r_nk (log q(alpha_n = k) + log q(z_nk | k)) ]

with alpha_n enumerated: z_nk is a draw of component k's encoder at the clean frame, r_nk what that weighs (22). The
noise has hundreds of coefficients a frame that are known together; w = 0.05 keeps them from drowning the codes.

Hearing: codes are for what they decode to. With weight `hearing` the loss has besides, at the means mu_nk of q,

    -sum_n sum_k r_nk log N_c(s_n + b_n / 10; 0, g c sigma_k(mu_nk) + W H / 100)

the likelihood of the same recording with its noise 20 dB fainter. Where sound leaves several codes open, the forward
divergence asks for their mean, whose variance is a geometric mean and too small; this asks for E|s|^2, which a Wiener
filter wants.

Filter: what is asked for in the end is G x, G the Wiener filter of the same means and of the noise believed. With
weight `filter` the loss has

    log (1 - rho^2) - log rho^2,   rho^2 = (Re sum s* G x)^2 / (sum |s|^2  sum |G x|^2)

of each recording: minus its SI-SDR in nats. Where codes or noise are doubtful it says which error matters less. (The
plain error |s - G x|^2 teaches silence where noise is loud.) Both of these move the means of q; its scales learn from
the divergence alone.

Wake [Bornschein and Bengio 2015]: the same x, but z is proposed by q itself, R times a frame, and counts by importance,

    -sum_r u_r log q(z_r),   u_r = softmax_r log p(x, z_r | W, H, g, a) - log q(z_r)

Where q is far from the posterior one draw takes all the weight; `wake` of a recipe is the share of it in the loss.

Steps come in rounds. A round seeds its own draws, and a checkpoint holds all that the next one depends on, so that a
run that was killed ends in the same bytes.
"""

import math
from pathlib import Path
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyro_avse.enhancement.front import log_response
from pyro_avse.inference.guess import gain_of, own_log_variance
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.models.nmf_noise import response_basis
from pyro_avse.stft import STFT
from pyro_avse.training.pairs import CLEARER, Pairs, draw_pairs
from pyro_avse.training.recipe import GuideRecipe
from pyro_avse.training.svi import seeded
from pyro_avse.typing import JSON, Guess, InputError
from pyro_avse.weights.tensors import load_state

NOISE_WEIGHT = 0.05
"""w."""
VALID_BATCHES, CLIP = 4, 30.0
"""Batches that say how good the guide is, and the largest norm of a gradient."""
UNHEARD = 0.003
"""1 - rho^2, or rho^2, that is as good as none: 25 dB."""
SHORTEST, LONGEST = 0.5, 1.6
"""Of a recipe's frames, what a step's recordings may have; there are then more of them, or fewer."""


class Amortiser:
    """One training run of a guide, a round at a time; of another kind of guide, a subclass (separate.py)."""

    def __init__(self, guide: Any, recipe: GuideRecipe, train: Any, valid: Any, stft: STFT) -> None:
        self.guide, self.recipe, self.stft = guide, recipe, stft
        self.train, self.valid = train, valid
        rate = recipe.training.learning_rate
        self.optimiser = torch.optim.Adam(guide.parameters(), lr=rate, fused=True)
        self.history: list[JSON] = []
        self.best: dict[str, Tensor] = {}
        if recipe.training.wake and any(guide.prior.components_see):
            raise InputError(
                "wake above 0 with a prior whose components look at the lips: train by sleep alone"
            )

    @property
    def device(self) -> torch.device:
        return self.guide.noise.weight.device

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.recipe.training.rounds

    def run_round(self) -> JSON:
        """`steps` steps, then the validation loss; returns the log's line. Raises InputError where it is not finite."""
        number, options = len(self.history), self.recipe.training
        rate = self._learning_rate(number)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        with seeded(self.recipe.seed, number, device=self.device):
            for step in range(options.steps):
                with pyro.validation_enabled(number == 0 and step == 0):
                    total += self.step()
        scores = self.validate()
        row = {
            "epoch": number,
            "learning_rate": rate,
            "train_objective": -float(total) / options.steps,
            **scores,
        }
        if not math.isfinite(row["valid_objective"]):
            raise InputError(
                f"training diverged in round {number} (the objective is {row['valid_objective']}): lower "
                "learning_rate"
            )
        if row["valid_objective"] >= max(
            (r["valid_objective"] for r in self.history), default=-math.inf
        ):
            self.best = {name: t.detach().clone() for name, t in self.guide.state_dict().items()}
        self.history.append(row)
        return row

    def step(self) -> Tensor:
        """One of Adam's; the loss, detached."""
        options = self.recipe.training
        share = SHORTEST + (LONGEST - SHORTEST) * float(torch.rand(()))
        num_frames = max(2, round(share * options.frames))
        utterances = max(1, round(options.batch_size / share))
        pairs = self.draw(self.train, utterances, num_frames)
        q = self.believe(pairs)
        loss = self.loss(q, pairs)
        if options.wake:
            wake = wake_loss(self.guide, q, pairs, options.particles)
            loss = (1 - options.wake) * loss + options.wake * wake
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.guide.parameters(), CLIP)
        self.optimiser.step()
        return loss.detach()

    def draw(self, speech: Any, utterances: int, num_frames: int) -> Any:
        """Recordings with what they were drawn from."""
        return draw_pairs(
            speech,
            utterances=utterances,
            num_frames=num_frames,
            stft=self.stft,
            lips_dropped=self.recipe.lips_dropped,
            device=self.device,
        )

    def loss(self, q: Guess, pairs: Any) -> Tensor:
        """Sleep's, and hearing's share."""
        loss, options = sleep_loss(self.guide, q, pairs), self.recipe.training
        if not options.hearing and not options.filter:
            return loss
        log_sigma = own_log_variance(q, self.guide.prior, pairs.features)
        heard, filtered = hearing_loss(log_sigma, pairs), filter_loss(q, log_sigma, pairs)
        return loss + options.hearing * heard + options.filter * filtered

    def believe(self, pairs: Any) -> Guess:
        """The guide's q of the pairs' recordings."""
        return self.guide.read(self.guide.ear(pairs.power, pairs.seen, lips_mask=pairs.lips_mask))

    @torch.no_grad()
    def validate(self) -> JSON:
        """Minus the loss on pairs of held-out speech, the same in every round, and the codes' part of it."""
        total = codes = 0.0
        for number in range(VALID_BATCHES):
            with seeded(self.recipe.seed, 1, number, device=self.device):
                options = self.recipe.training
                pairs = self.draw(self.valid, options.batch_size, options.frames)
            q = self.believe(pairs)
            total -= float(self.loss(q, pairs))
            log_q = q.codes.log_prob(pairs.codes)
            codes += float((pairs.responsibilities * log_q).sum(0).mean())
        return {"valid_objective": total / VALID_BATCHES, "valid_codes": codes / VALID_BATCHES}

    def _learning_rate(self, number: int) -> float:
        options = self.recipe.training
        fall = 0.5 * (1 + math.cos(math.pi * number / options.rounds))
        return options.learning_rate * (0.02 + 0.98 * fall)

    def snapshot(self, header: JSON) -> tuple[dict[str, Tensor], JSON]:
        """All that the next round depends on."""
        tensors = {f"guide.{k}": v for k, v in self.guide.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, parameter in self.guide.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        return tensors, header | {"history": self.history}

    def restore(self, tensors: dict[str, Tensor], header: JSON, *, path: Path) -> None:
        """Go back to a `snapshot`."""
        part: dict[str, dict[str, Tensor]] = {"guide": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition(".")
            part[prefix][rest] = tensor.to(self.device)
        load_state(self.guide, part["guide"], path)
        self.best, self.history = part["best"], header["history"]
        for name, parameter in self.guide.named_parameters():
            if f"{name}.step" in part["adam"]:
                self.optimiser.state[parameter] = {
                    key: part["adam"][f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }


def sleep_loss(guide: NoisyGuide, q: Guess, pairs: Pairs) -> Tensor:
    """The forward divergence's part with q in it, in nats a frame, from Pyro's trace of the guide at what was drawn."""
    drawn = {
        "log_g": pairs.log_gain[:, None, None],
        "a": pairs.response[:, None],
        "log_noise": pairs.log_noise,
        "z": pairs.codes if len(pairs.codes) > 1 else pairs.codes[0],
    }
    with poutine.enum(first_available_dim=-3), poutine.condition(data=drawn):
        trace = poutine.trace(guide.sample_sites).get_trace(q)
    trace.compute_log_prob()
    log_q = {
        name: trace.nodes[name]["log_prob"]
        for name in trace.stochastic_nodes + trace.observation_nodes
    }
    frames = log_q["z"]
    if "alpha" in log_q:
        frames = (pairs.responsibilities * (log_q["alpha"].reshape(frames.shape) + frames)).sum(0)
    level = log_q["log_g"].sum() + log_q["a"].sum()
    total = frames.sum() + NOISE_WEIGHT * log_q["log_noise"].sum() + level
    return -total / pairs.log_noise[..., 0].numel()


def hearing_loss(
    log_sigma: Float[Tensor, "component utterance frame freq"], pairs: Pairs
) -> Tensor:
    """Minus the likelihood of the clearer recording at the means of q, in nats a frame; component k's weighs r_k.

    `log_sigma` is what they decode to (`own_log_variance`).
    """
    level = pairs.log_gain[:, None] + _response(pairs)
    V = (log_sigma + level[:, None]).exp() + 10 ** (-CLEARER / 10) * pairs.log_noise.exp()
    loss = (V.log() + pairs.clear / V).sum(-1)
    return (pairs.responsibilities * loss).sum(0).mean()


def filter_loss(
    q: Guess, log_sigma: Float[Tensor, "component utterance frame freq"], pairs: Pairs
) -> Tensor:
    """Minus the SI-SDR of G x in nats, G the Wiener filter at the means of q: the mean of recordings."""
    known = likeness(gain_of(q, log_sigma), pairs)
    return ((1 - known + UNHEARD).log() - (known + UNHEARD).log()).mean()


def likeness(G: Float[Tensor, "utterance frame freq"], pairs: Pairs) -> Float[Tensor, "utterance"]:
    """rho^2 of each recording: the share of G x that is its speech. Its SI-SDR is rho^2 / (1 - rho^2)."""
    alike, kept, wanted = (
        part.mean((-2, -1)) for part in (G * pairs.cross, G.square() * pairs.power, pairs.speech)
    )
    return alike.square() / (kept * wanted)


def _response(pairs: Pairs) -> Tensor:
    """log |.|^2 of what speech went through, (utterance, freq): the microphone as drawn, and the front."""
    freqs = pairs.power.shape[-1]
    basis = response_basis(pairs.response.shape[-1], freqs, pairs.power)[1:]
    return pairs.response @ basis + front_response(freqs, pairs.power)


def front_response(num_freqs: int, like: Tensor) -> Tensor:
    """log |h_f|^2 of the front's high-pass."""
    return torch.from_numpy(log_response(num_freqs)).to(like)


def wake_loss(guide: NoisyGuide, q: Guess, pairs: Pairs, particles: int) -> Tensor:
    """-sum_r u_r log q(z_r), in nats a frame, z_r proposed by q, at the noise, level and response that were drawn."""
    response = _response(pairs)
    target = CollapsedTarget(
        guide.prior,
        None,
        pairs.power,
        pairs.log_noise.exp(),
        guide.prior.mixing_weight,
        pairs.log_gain[:, None].exp().expand(pairs.power.shape[:-1]),
        response,
    )
    r = q.responsibilities
    with torch.no_grad():
        picked = torch.distributions.Categorical(r.movedim(0, -1)).sample((particles,))
        index = picked[None, ..., None]
        shape = (len(r), particles, *q.codes.mean.shape[1:])
        mean, scale = (
            t[:, None].expand(shape).gather(0, index.expand(1, *shape[1:]))[0]
            for t in (q.codes.mean, q.codes.stddev)
        )
        z = mean + scale * torch.randn_like(mean)
        log_p = target.log_density(z)
    log_q = torch.logsumexp(r.log()[:, None] + q.codes.log_prob(z[:, None]).movedim(1, 0), 0)
    u = torch.softmax(log_p - log_q.detach(), 0)
    return -(u * log_q).sum(0).mean()
