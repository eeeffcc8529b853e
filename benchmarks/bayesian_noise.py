"""Noise that is fitted and noise that is drawn: quality, coverage and seconds against iterations. docs/POSTERIOR.md

    python benchmarks/bayesian_noise.py --data ../shared/data
    python benchmarks/bayesian_noise.py --data ../shared/data --schemes bnmf --iterations 50 500

GRID's valid clips, the first of each speaker, in recorded noise. `ldem` and `mcem` are run once, and their estimate is
taken on the way, with W H as it stood. `bnmf`, and `explicit`, which is bnmf with noise drawn rather than integrated
out, throw the first half of their iterations away, so every count is a run of its own. No guide. Coverage is that of
intervals of 80 %, of what is heard (benchmarks/coverage.py).
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from coverage import NOISES, SNRS, Known, coverage, in_every_frame, truth_of

from pyro_avse.data.media.audio import audio_from_array, load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.inference import BNMF, LDEM, MCEM
from pyro_avse.metrics import score
from pyro_avse.typing import Separation
from pyro_avse.weights.checkpoint import load_prior

SCHEMES: dict[str, Any] = {
    "ldem": LDEM,
    "mcem": MCEM,
    "bnmf": BNMF,
    "explicit": lambda iterations: BNMF(iterations=iterations, explicit=True),
}


@dataclass(frozen=True)
class Measured:
    iterations: int
    si_sdr: float
    stoi: float
    known: Known
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid and noise")
    parser.add_argument("--model", default="a_vae")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--iterations", nargs="+", type=int, default=[12, 50, 200, 500])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| scheme | iterations | SI-SDR | STOI | 80 % hold | seconds |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name in args.schemes:
        found = [measured for case in range(3) for measured in measured_on(args, name, case)]
        for iterations in args.iterations:
            own = [m for m in found if m.iterations == iterations]
            means = [
                np.mean([getattr(m, field) for m in own]) for field in ("si_sdr", "stoi", "seconds")
            ]
            held = coverage([m.known for m in own], heard=True)[1]
            print(
                f"| {name} | {iterations} | {means[0]:.2f} | {means[1]:.3f} | {held:.0%} | {means[2]:.1f} |",
                flush=True,
            )


def measured_on(args: argparse.Namespace, name: str, case: int) -> Iterator[Measured]:
    """One scheme on the case-th clip and noise, at every count of iterations."""
    speakers = sorted(path for path in (args.data / "grid" / "valid").iterdir() if path.is_dir())
    clean = load_audio(sorted(speakers[case].glob("*.flac"))[0]).waveform
    noise = load_audio(args.data / "noise" / f"{NOISES[case]}.flac").waveform
    mixture, _ = mix_at_snr(clean, noise[80_000 : 80_000 + len(clean)], SNRS[case])
    audio = audio_from_array(mixture.astype(np.float32), 16_000)
    prior, stft = load_prior(args.model, guide=None)
    enhancer = Enhancer(prior, LDEM(), stft=stft, guide=None, device="cpu")
    recording = enhancer.prepare(audio)
    truth = truth_of(clean, recording, enhancer)

    def measured(found: Separation, iterations: int, seconds: float) -> Measured:
        enhanced = enhancer.synthesise(recording, found)
        scores = score(enhanced.speech_16k, clean).as_dict()
        return Measured(
            iterations,
            scores["si_sdr"],
            scores["stoi"],
            Known(in_every_frame(found), truth),
            seconds,
        )

    observation = enhancer.observe(recording)
    for scheme, counts in (
        [(SCHEMES[name](iterations=max(args.iterations)), args.iterations)]
        if name in ("ldem", "mcem")
        else [(SCHEMES[name](iterations=count), [count]) for count in args.iterations]
    ):
        rng, spent = torch.Generator().manual_seed(0), 0.0
        state = scheme.init(observation, rng=rng)
        for iteration in range(1, scheme.iterations + 1):
            began = time.process_time()
            state = scheme.step(observation, state, rng=rng)
            spent += time.process_time() - began
            if iteration in counts:
                own = torch.Generator().manual_seed(1)  # what follows does not depend on this look
                began = time.process_time()
                found = scheme.finish(observation, state, rng=own)
                yield measured(found, iteration, spent + time.process_time() - began)


if __name__ == "__main__":
    main()
