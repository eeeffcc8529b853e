"""What each way to hasten 40 Metropolis-Hastings steps is worth on this machine, over the same steps in plain torch.

MIN-VAE v2 with random weights at the paper's setting, as in em_iteration.py: F = 513, L = 32, hidden 128, 150 frames,
target (36). The plain steps are changed in one way a row:

    in place            the density's own buffers are written over
    drawn at once       the numbers of all 40 steps in one call
    tanh by sigmoid     tanh x = 2 sigmoid(2 x) - 1, in place of torch.tanh
    bfloat16            the decoder alone: a first stage of delayed acceptance, without the second in float32
    two chains          for each frame, in one call; milliseconds a chain
    two threads         half of the frames each, every call of torch on one core

All are measured in turn, after two rounds to warm up: medians of the rounds, and of each round's own ratios. Threads as
torch has them, but in the last row. The last line is the share of proposals that are accepted where the chains end:
decoding only frames that moved could save the others.

    python benchmarks/em_levers.py
"""

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from em_iteration import FRAMES, ROUNDS, STEPS, log_density, metropolis
from torch import Tensor

from pyro_avse.models import MINVAEv2


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    decoder = MINVAEv2().decoder
    A, a = decoder.hidden.weight.T, decoder.hidden.bias
    B, b = decoder.log_variance.weight.T, decoder.log_variance.bias
    halves = [weight.bfloat16() for weight in (A, a, B, b)]
    power = torch.randn(FRAMES, 513, dtype=torch.complex64).abs().square()
    z = torch.randn(FRAMES, 32)

    plain = partial(log_density, decoder)

    def in_place(z: Tensor, power: Tensor) -> Tensor:
        lv = torch.addmm(b, torch.addmm(a, z, A).tanh_(), B)
        return -lv.neg().exp_().mul_(power).add_(lv).sum(-1) - 0.5 * z.square().sum(-1)

    def bfloat16(z: Tensor, power: Tensor) -> Tensor:
        A, a, B, b = halves
        lv = (torch.tanh(z.bfloat16() @ A + a) @ B + b).float()
        return -(lv + power * torch.exp(-lv)).sum(-1) - 0.5 * z.square().sum(-1)

    pool = ThreadPoolExecutor(2, initializer=on_one_core)

    def two_threads() -> None:
        parts = [
            pool.submit(metropolis, plain, z[part], power[part])
            for part in (slice(0, FRAMES // 2), slice(FRAMES // 2, FRAMES))
        ]
        for part in parts:
            part.result()

    sides: dict[str, tuple[Callable[[], object], int]] = {  # chains a call
        "plain torch": (partial(metropolis, plain, z, power), 1),
        "in place": (partial(metropolis, in_place, z, power), 1),
        "drawn at once": (partial(metropolis, plain, z, power, at_once=True), 1),
        "tanh by sigmoid": (partial(metropolis, partial(plain, tanh=by_sigmoid), z, power), 1),
        "bfloat16": (partial(metropolis, bfloat16, z, power), 1),
        "two chains": (partial(metropolis, plain, z.expand(2, FRAMES, 32), power), 2),
        "two threads": (two_threads, 1),
    }
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS + 2):
        for name, (call, chains) in sides.items():
            start = time.perf_counter()
            for _ in range(5):
                call()
            rounds[name].append(1e3 * (time.perf_counter() - start) / (5 * chains))
    print(f"{torch.get_num_threads()} threads, median of {ROUNDS} rounds, {STEPS} steps")
    ms = {name: statistics.median(found[2:]) for name, found in rounds.items()}
    for name, found in rounds.items():
        ratio = statistics.median(
            x / y for x, y in zip(found[2:], rounds["plain torch"][2:], strict=True)
        )
        print(f"{name:18s} {ms[name]:6.1f} ms  {ratio:.2f}")
    end = metropolis(plain, z, power).expand(STEPS, FRAMES, 32)
    rise = plain(end + 0.1 * torch.randn_like(end), power) - plain(end, power)
    accepted = float(rise.clamp_max(0).exp().mean())
    print(f"accepted           {accepted:.2f}")
    print(json.dumps({"threads": torch.get_num_threads(), "ms": ms, "accepted": accepted}))


def by_sigmoid(x: Tensor) -> Tensor:
    """tanh x."""
    return 2 * torch.sigmoid(2 * x) - 1


def on_one_core() -> None:
    """What a thread sets for itself before it works."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


if __name__ == "__main__":
    main()
