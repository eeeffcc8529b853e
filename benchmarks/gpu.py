"""A GPU in ten minutes, as a table: guide training, a batch of clips, every kernel; beside the machine's CPU.

    python benchmarks/gpu.py --device cuda --out gpu.md
    python benchmarks/gpu.py --device cpu --batch 2 --steps 1 --seconds 1 --draws 1        # small, as the tests run it

    guide      steps a second of the training of a_vae's guide, as its recipe has it, on clips made of noise
    batch      clips of --seconds a second, --batch of them at once, by the default scheme with the model's guide
    kernels    frame-steps a second of each kernel on the posterior of such a batch, one chain a frame

Every part is warmed up, then timed with the device waited for. With a GPU each row also has the CPU's figure, found
with a tenth of the work, and their ratio.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.find import find_device, find_scheme
from pyro_avse.files import write_atomically
from pyro_avse.inference import KERNELS, run_chains
from pyro_avse.inference.ldem import LDEM
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.training.amortise import Amortiser
from pyro_avse.training.pairs import Speech, frame_codes
from pyro_avse.training.recipe import load_recipe
from pyro_avse.weights.checkpoint import load_prior

RATE, MODEL = 16000, "a_vae"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--draws", type=int, default=50, help="of each kernel")
    parser.add_argument("--out", type=Path, help="Markdown to write the table to")
    args = parser.parse_args()
    device = find_device(args.device)
    rows = measured(args, device)
    lines = [f"{name_of(device)}, torch {torch.__version__}", ""]
    if device.type == "cpu":
        lines += ["| what | a second |", "| --- | --- |"]
        lines += [f"| {name} | {rate:.3g} |" for name, rate in rows.items()]
    else:
        small = argparse.Namespace(**vars(args))
        small.batch, small.steps = max(1, args.batch // 10), max(1, args.steps // 10)
        small.draws = max(1, args.draws // 10)
        beside = measured(small, torch.device("cpu"))
        threads = torch.get_num_threads()
        lines += [
            f"| what | a second | CPU, {threads} threads | ratio |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {name} | {rate:.3g} | {beside[name]:.3g} | {rate / beside[name]:.1f} |"
            for name, rate in rows.items()
        ]
    table = "\n".join(lines)
    print(table)
    if args.out is not None:
        write_atomically(args.out, (table + "\n").encode())


def measured(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    prior, stft = load_prior(MODEL)
    prior = prior.to(device)
    run = trainer(device)
    found = {"guide training, steps": rate(run.step, args.steps, device)}
    enhancer = Enhancer(
        prior, find_scheme("ldem"), stft=stft, guide=prior.noise_guide, device=device
    )
    rng = np.random.default_rng(0)
    clips = [
        enhancer.prepare(rng.standard_normal(round(args.seconds * RATE)).astype(np.float32))
        for _ in range(args.batch)
    ]
    found["clips enhanced"] = args.batch * rate(lambda: enhancer.batch(clips), 1, device)
    x = torch.stack([clip.spectrum for clip in clips])
    once = replace(LDEM(), iterations=1, chains=1, final_draws=1)(prior, x)
    for name in sorted(KERNELS.keys() - {"blocks"}):  # which moves whole utterances
        kernel, target = KERNELS[name](), once.target
        if name in ("independence", "gibbs"):
            continue  # one proposes from an encoder, the other moves alpha: benchmarks/kernels.py
        steps = args.draws * once.z[0, ..., 0].numel()
        found[f"{name}, frame-steps"] = steps * rate(
            lambda kernel=kernel, target=target: run_chains(
                kernel, target, once.z[:1], draws=1, warmup=args.draws - 1
            ),
            1,
            device,
        )
    return found


def rate(run: Callable[[], object], times: int, device: torch.device) -> float:
    """Runs a second, the device waited for; one run before does not count."""
    run()
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    wait(device)
    return times / (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, no GPU"


def trainer(device: torch.device) -> Amortiser:
    """Of the guide's recipe, on clips of noise: what they say costs nothing and brings nothing."""
    prior, stft = load_prior(MODEL, guide=None)
    prior = prior.to(device)
    rng = torch.Generator().manual_seed(0)
    spectrum = 5 * torch.randn(2000, prior.num_freqs, dtype=torch.complex64, generator=rng)
    with torch.no_grad():
        mean, scale, r = frame_codes(prior, spectrum.abs().square().to(device), None)
    speech = Speech(
        spectrum=spectrum,
        ends=[400, 800, 1200, 1400, 2000],
        chances=torch.ones(4),
        mean=mean.cpu(),
        scale=scale.cpu(),
        responsibilities=r.cpu(),
        seen=None,
        features=None,
        has_lips=torch.zeros(2000, dtype=torch.bool),
    )
    guide = NoisyGuide(prior).to(device)
    return Amortiser(guide, load_recipe("default/guide_a_vae"), speech, speech, stft)


if __name__ == "__main__":
    main()
