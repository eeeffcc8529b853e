"""Milliseconds for one EM iteration of VEM with the random walk, at the paper's setting, against two references.

MIN-VAE v2 with random weights, F = 513, L = 32, hidden 128, N = 150 frames, NMF rank 10, 40 Metropolis-Hastings steps
of which 30 are burn-in. The references are
 the 40 steps alone in plain torch (one decoder call a step), and the matrix products of those 40 decoder calls
alone. All are measured in turn, after two rounds to warm up; medians of the rounds, and of each round's own ratios, so
that a machine that is faster one minute than the next is so to all. Threads as torch has them.

    python benchmarks/em_iteration.py
    python benchmarks/em_iteration.py --device cuda --batch 64      # iterations of 64 recordings at once

Milliseconds are of the batch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_avse.enhancement.find import find_device
from pyro_avse.inference import VEM, RandomWalk, run_chains
from pyro_avse.inference.mean_field import MeanFieldTarget
from pyro_avse.models import MINVAEv2

FRAMES, STEPS, ITERATIONS, ROUNDS = 150, 40, 25, 15


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="recordings at once")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = find_device(args.device)
    shape = (FRAMES,) if args.batch == 1 else (args.batch, FRAMES)
    prior = MINVAEv2().to(device)
    x = torch.randn(*shape, 513, dtype=torch.complex64, device=device)
    lips = torch.randint(0, 256, (*shape, 67, 67), dtype=torch.uint8, device=device)
    power, z = x.abs().square(), torch.randn(1, *shape, 32, device=device)
    decoder = prior.decoder
    target = MeanFieldTarget(prior, lips, power, torch.full((2, *shape), 0.5, device=device))

    def products() -> None:
        h = z[0]
        for _ in range(STEPS):
            (h @ decoder.hidden.weight.T) @ decoder.log_variance.weight.T

    sides: dict[str, tuple[Callable[[], object], int, int]] = {  # calls a round, iterations a call
        "plain_torch": (partial(metropolis, partial(log_density, decoder), z[0], power), 5, 1),
        "floor": (products, 5, 1),
    }
    kernel = RandomWalk()
    steps = partial(run_chains, kernel, target, z, draws=10, warmup=STEPS - 10, seed=0)
    vem = VEM(kernel=kernel, iterations=ITERATIONS)
    sides["iteration"] = partial(vem, prior, x, lips), 1, ITERATIONS
    sides["steps"] = steps, 5, 1
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds + 2):
        for name, (call, calls, iterations) in sides.items():
            finish(device)
            start = time.perf_counter()
            for _ in range(calls):
                call()
            finish(device)
            rounds[name].append(1e3 * (time.perf_counter() - start) / (calls * iterations))
    ms = {name: statistics.median(found[2:]) for name, found in rounds.items()}
    plain = rounds["plain_torch"][2:]
    print(
        f"{device}, {torch.get_num_threads()} threads, {args.batch} at once, median of {args.rounds} rounds, over "
        "plain torch's 40 steps"
    )
    for name, label in (
        ("iteration", "one EM iteration"),
        ("steps", "its 40 steps"),
        ("plain_torch", "40 steps in plain torch"),
        ("floor", "their matrix products alone"),
    ):
        ratio = statistics.median(a / b for a, b in zip(rounds[name][2:], plain, strict=True))
        print(f"{label:34s} {ms[name]:6.1f} ms  {ratio:.2f}")
    print(json.dumps({f"{name}_ms": ms[name] for name in sides}))


def log_density(
    decoder: Any, z: Tensor, power: Tensor, tanh: Callable[[Tensor], Tensor] = torch.tanh
) -> Tensor:
    """(36) under N(0, I), up to a constant, in plain torch."""
    A, a = decoder.hidden.weight.T, decoder.hidden.bias
    B, b = decoder.log_variance.weight.T, decoder.log_variance.bias
    lv = tanh(z @ A + a) @ B + b
    return -(lv + power * torch.exp(-lv)).sum(-1) - 0.5 * z.square().sum(-1)


def metropolis(
    density: Callable[[Tensor, Tensor], Tensor], z: Tensor, power: Tensor, at_once: bool = False
) -> Tensor:
    """`STEPS` steps of (37) and (38) with nothing around them, their numbers drawn `at_once` or step by step."""
    here, at = z, density(z, power)
    if at_once:
        pushes, levels = torch.randn(STEPS, *z.shape), torch.rand(STEPS, *at.shape).log()
    for step in range(STEPS):
        push = pushes[step] if at_once else torch.randn_like(here)
        there = here + 0.1 * push
        new = density(there, power)
        level = levels[step] if at_once else torch.rand_like(at).log()
        taken = level < new - at
        here, at = torch.where(taken[..., None], there, here), torch.where(taken, new, at)
    return here


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
