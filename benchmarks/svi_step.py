"""Milliseconds of one training step of MIN-VAE v2, against the same step written by hand in torch.

F = 513, L = 32, hidden 128, 512 features, lips as uint8, 128 frames a step, r(alpha_n) from each step's own draws,
random weights and data. Ours is `Trainer.step` as all but the first of an epoch run: the Pyro program traced, alpha_n
enumerated. By hand is the same objective with the same networks, minibatch and fused Adam, but no distribution and no
trace. Before anything is timed both take a step from the same weights and draws in float64: loss, r and every gradient
agree to 1e-9. (In float32 each rounds J, some 1000 nats, to 1e-4, and with it r and the gradients to 1e-5 or so.)

    python benchmarks/svi_step.py
    python benchmarks/svi_step.py --device cuda --batch 1024

The two, and `pyro.infer.SVI.step` for comparison, are measured in turn in one run, after two rounds to warm up; medians
of the rounds, and the median of each round's own ratio. Threads as torch has them.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.optim
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

from pyro_avse.enhancement.find import find_device
from pyro_avse.models import MINVAEv2
from pyro_avse.training.frames import Frames
from pyro_avse.training.recipe import Recipe, Training
from pyro_avse.training.svi import Trainer, seeded

STEPS = 5  # a round, of each
HOUR = 3600 * 16000 // 533  # frames


class ByHand:
    """Minus the bound -log sum_k pi_k exp(-J_k) of a minibatch and a step along it, without Pyro."""

    def __init__(self, prior: MINVAEv2, frames: Frames, learning_rate: float) -> None:
        self.prior, self.frames = prior, frames
        self.optimiser = torch.optim.Adam(prior.parameters(), lr=learning_rate, fused=True)

    def step(self, index: Tensor) -> tuple[Tensor, Tensor]:
        assert self.frames.lips is not None
        device = self.prior.mixing_weight.device
        power = self.frames.power.index_select(0, index).to(device)
        pixels = self.frames.lips.index_select(0, index).to(device)
        pixels = pixels.flatten(1).to(power.dtype).div_(255)
        loss, r = self.loss(power, pixels)
        self.optimiser.zero_grad(set_to_none=True)
        (loss / len(index)).backward()
        self.optimiser.step()
        return loss.detach(), r

    def loss(self, power: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        prior: Any = self.prior
        audio, visual = prior.audio_encoder, prior.visual_encoder
        a = torch.tanh(audio.hidden(power))
        v = torch.tanh(visual.hidden(torch.relu(visual.features(pixels))))
        mean = torch.stack([audio.mean(a), visual.mean(v)])
        log_var = torch.stack([audio.log_variance(a), visual.log_variance(v)])
        eps = torch.randn_like(mean)
        z = mean + torch.exp(0.5 * log_var) * eps
        log_q = -0.5 * (log_var + eps.square()).sum(-1)

        priors = (prior.audio_prior, prior.visual_prior)
        centre = torch.stack([p.mean for p in priors])[:, None]
        log_width = torch.stack([p.log_variance for p in priors])[:, None]
        log_p = -0.5 * (log_width + (z - centre).square() * torch.exp(-log_width)).sum(-1)

        log_s_var = prior.decoder(z)
        log_s = -(log_s_var + power * torch.exp(-log_s_var)).sum(-1)
        log_s = log_s - power.shape[-1] * math.log(math.pi)
        log_joint = prior.mixing_weight.log()[:, None] - (log_q - log_s - log_p)
        return -torch.logsumexp(log_joint, 0).sum(), torch.softmax(log_joint.detach(), 0)


def disagreement(prior: MINVAEv2, frames: Frames, recipe: Recipe) -> float:
    """The largest relative error between the two in the loss, r and any parameter's gradient: one step, float64."""
    exact = Frames(frames.power.double(), frames.lips)
    ours = Trainer(copy.deepcopy(prior).double(), recipe, exact, exact)
    found = []
    for side in (ours, ByHand(copy.deepcopy(prior).double(), exact, 1e-4)):
        with seeded(1):
            loss, r = side.step(torch.arange(len(exact)))
        gradients = [p.grad.clone() for p in side.prior.parameters()]
        found.append([loss, r, *gradients])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))


def pyro_svi(prior: MINVAEv2, frames: Frames, learning_rate: float) -> Callable[[Tensor], object]:
    """A step of Pyro's own driver with its own Adam; the weights go into the param store."""

    def model(*batch: Tensor) -> None:
        pyro.module("prior", prior)
        prior.model(*batch)

    adam, device = pyro.optim.Adam({"lr": learning_rate}), prior.mixing_weight.device
    svi = SVI(model, prior.guide, adam, loss=TraceEnum_ELBO(max_plate_nesting=1))
    return lambda index: svi.step(frames.power[index].to(device), frames.lips[index].to(device))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=20_000, help="of training data")
    parser.add_argument("--batch", type=int, default=128, help="frames a step")
    parser.add_argument("--rounds", type=int, default=21, help=f"of {STEPS} steps of each")
    parser.add_argument("--device", default="cpu", help="of the networks; the data stay on the CPU")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    power = torch.randn(args.frames, 513, dtype=torch.complex64).abs().square()
    lips = torch.randint(0, 256, (args.frames, 67, 67), dtype=torch.uint8)
    frames = Frames(power, lips)
    recipe = Recipe("min_vae_v2", training=Training(batch_size=args.batch))
    rate = recipe.training.learning_rate
    device = find_device(args.device)
    prior = MINVAEv2().to(device)
    first = Frames(power[: args.batch], lips[: args.batch])
    error = disagreement(prior, first, recipe)
    assert error < 1e-9, f"the two steps differ by {error:.1e}"
    by_hand = ByHand(copy.deepcopy(prior), frames, rate)
    svi_step = pyro_svi(copy.deepcopy(prior), frames, rate)
    trainer = Trainer(prior, recipe, frames, frames)

    sides: dict[str, Callable[[Tensor], object]] = {
        "pyro": trainer.step,
        "torch": by_hand.step,
        "batch": trainer._batch,  # the data's part of a step
        "svi": svi_step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    with pyro.get_param_store().scope():  # of SVI's; left as it was
        for _ in range(args.rounds + 2):
            batches = torch.randperm(args.frames)[: STEPS * args.batch].split(args.batch)
            for name in order:
                with pyro.validation_enabled(name == "svi"):  # Pyro's own driver as it comes
                    start = time.perf_counter()
                    for index in batches:
                        sides[name](index)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    seconds[name].append((time.perf_counter() - start) / len(batches))
            order.reverse()
    ms = {name: 1e3 * statistics.median(rounds[2:]) for name, rounds in seconds.items()}
    pairs = zip(seconds["pyro"][2:], seconds["torch"][2:], strict=True)
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)

    size = power[0].nbytes + 67 * 67
    steps = 100 * -(-HOUR // args.batch)
    print(
        f"{device}, {torch.get_num_threads()} threads, median of {args.rounds} rounds of {STEPS} steps"
    )
    print(f"loss, r and gradients of one step agree to {error:.0e} in float64")
    print(f"Trainer.step          {ms['pyro']:7.2f} ms  {ratio:.2f} x by hand")
    print(f"  its minibatch       {ms['batch']:7.2f} ms")
    print(f"by hand, fused Adam   {ms['torch']:7.2f} ms")
    print(f"pyro.infer.SVI.step   {ms['svi']:7.2f} ms  {ms['svi'] / ms['torch']:.2f} x by hand")
    print(
        f"one hour of speech and lips, {HOUR} frames ({HOUR * size / 1e9:.2f} GB in memory), 100 epochs: "
        f"{steps * ms['pyro'] / 6e4:.0f} minutes, extrapolated from the step, without validation"
    )
    print(json.dumps({"pyro_ms": ms["pyro"], "torch_ms": ms["torch"], "ratio": ratio}))


if __name__ == "__main__":
    main()
