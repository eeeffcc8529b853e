"""Which schemes' r(alpha) can be trusted, and how closely evidence is known: two tables.

    python benchmarks/evidence.py --data ../shared/data                       # both: an hour of a core
    python benchmarks/evidence.py --data ../shared/data --only alpha --models vae_mm --schemes mcem guided
    python benchmarks/evidence.py --data ../shared/data --only bounds

alpha    Recordings are GRID's valid clips with lips, in noise. A scheme ends with W H, a level, pi and r(alpha_n); at
         these very numbers tempered SMC finds p(x_n | k), and what r(alpha_n) should have been. Of --frames frames of
         each recording, evenly spread: the correlation of r(audio) with evidence's, their mean distance, the area under
         the curve by which r(audio) tells frames of audio from others, and the share of frames on the same side of 1/2.
         "evidence" is evidence itself, by other random numbers: more than that no scheme can reach. NaN: r or its truth
         is the same in all frames.
bounds   Posteriors of pyro_avse.lab.posteriors with data that they made themselves, so that an exact draw is known:
         log p(x) in nats by annealed importance sampling (below on average), by tempered SMC, and by the reverse (above
         on average), over --draws data sets, and the gap, with its standard error. `line` has its true value beside it.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from conditions import Case, mixture_of
from reference_posteriors import as_frames, prior_moments
from scipy.stats import rankdata
from torch import Tensor

from pyro_avse.data.lips.open import load_lips
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.find import find_scheme
from pyro_avse.inference.evidence import (
    annealed_importance,
    component_evidence,
    reverse_annealed,
    tempered_smc,
)
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.lab.posteriors import POSTERIORS, load
from pyro_avse.lab.posteriors.stories import Line
from pyro_avse.models.nmf_noise import nmf_noise_variance
from pyro_avse.typing import Separation
from pyro_avse.weights.checkpoint import load_prior

CLIPS = (
    ("s1/bbaf5a", "street_tram", 0.0),
    ("s4/bwat1p", "kitchen", -5.0),
    ("s26/pbbg5p", "street_tram", 5.0),
)
SCHEMES = (
    "vem",
    "collapsed_vem",
    "mcem",
    "peem",
    "gpeem",
    "ldem",
    "guided",
    "amortised_vem",
    "importance",
)
MODELS = ("min_vae_v1", "min_vae_v2", "vae_mm")
TABLES = ("alpha", "bounds")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="with grid and noise, for alpha")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    parser.add_argument("--posteriors", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    parser.add_argument("--recordings", type=int, default=len(CLIPS))
    parser.add_argument("--frames", type=int, default=8, help="of each recording")
    parser.add_argument("--particles", type=int, default=24)
    parser.add_argument("--draws", type=int, default=20, help="data sets of each posterior")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "alpha" in args.only and args.data is None:
        parser.error("alpha needs --data")
    for table in args.only:
        print(f"\n{table}", flush=True)
        rows = table_of_alpha(args) if table == "alpha" else table_of_bounds(args)
        for number, row in enumerate(rows):
            if number == 0:
                print(f"| {' | '.join(row)} |\n{'| --- ' * len(row)}|")
            print(f"| {' | '.join(row.values())} |", flush=True)


def table_of_alpha(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    for model in args.models:
        for number, name in enumerate(args.schemes):
            found = list(alphas(args, model, name))
            said, true, again = (torch.cat(column).numpy() for column in zip(*found, strict=True))
            yield {"model": model, "scheme": name, **agreement(said, true)}
            if number == 0:
                yield {"model": model, "scheme": "evidence", **agreement(again, true)}


def alphas(
    args: argparse.Namespace, model: str, name: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """r(audio) of a recording's frames by the scheme, by evidence, and by evidence once more."""
    prior, stft = load_prior(model)
    enhancer = Enhancer(prior, find_scheme(name), stft=stft, device="cpu")
    for number, (clip, noise, snr) in enumerate(CLIPS[: args.recordings]):
        file = args.data / "grid" / "valid" / f"{clip}.flac"
        _, mixed = mixture_of(Case("near", "", file, noise, snr, number), args.data)
        recording = enhancer.prepare(mixed, load_lips(file.with_suffix(".npz")))
        separation = enhancer.separate(recording, seed=0).separation
        at = torch.linspace(0, len(recording.spectrum) - 1, args.frames).round().long()
        target = posterior(separation, recording, at)
        both = [
            component_evidence(target, particles=args.particles, moves=2, seed=seed)
            for seed in ((0, 1) if name == args.schemes[0] else (0,))
        ]
        true, again = both[0].responsibilities[0], both[-1].responsibilities[0]
        yield separation.responsibilities[0, at], true, again


def posterior(separation: Separation, recording: Any, at: Tensor) -> CollapsedTarget:
    """p(z | x) of some frames at what a scheme ended with, s and alpha summed out; its lips are features by now."""
    target: Any = separation.target
    target = getattr(target, "collapsed", target)
    noise = nmf_noise_variance(separation.dictionary, separation.activations)
    return CollapsedTarget(
        target.prior,
        None if target.lips is None else target.lips[at],
        recording.spectrum[at].abs().square(),
        noise[at],
        separation.mixing_weight,
        None if separation.gain is None else separation.gain.expand(len(noise))[at],
        separation.log_response,
    )


def agreement(said: np.ndarray, true: np.ndarray) -> dict[str, str]:
    """Of two r(audio), frame by frame."""
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = float(np.corrcoef(said, true)[0, 1])
    audio = true > 0.5
    pairs = audio.sum() * (~audio).sum()
    ranks = rankdata(said)[audio].sum() - audio.sum() * (audio.sum() + 1) / 2
    return {
        "r(audio)": f"{said.mean():.2f}",
        "by evidence": f"{true.mean():.2f}",
        "correlation": f"{correlation:.2f}",
        "distance": f"{np.abs(said - true).mean():.2f}",
        "AUC": f"{ranks / pairs if pairs else np.nan:.2f}",
        "same side": f"{np.mean((said > 0.5) == audio):.0%}",
        "frames": str(len(said)),
    }


def table_of_bounds(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    for name in args.posteriors:
        start = prior_moments(load(name), 1.0)
        found = np.array([bounds(args, name, start, seed) for seed in range(args.draws)])
        below, between, above, truth = found.mean(0)
        gap = found[:, 2] - found[:, 0]
        yield {
            "posterior": name,
            "AIS": f"{below:.2f}",
            "SMC": f"{between:.2f}",
            "reverse AIS": f"{above:.2f}",
            "gap": f"{gap.mean():.2f} ± {gap.std() / len(gap) ** 0.5:.2f}",
            "truth": "" if np.isnan(truth) else f"{truth:.2f}",
        }


def bounds(
    args: argparse.Namespace, name: str, start: Any, seed: int
) -> tuple[float, float, float, float]:
    """log p(x) of one data set, all frames together: from below, by SMC, from above, and in truth or NaN."""
    made, z = load(name).simulate(seed=seed)
    truth = np.nan
    if isinstance(made.story, Line):
        exact = made.story.posterior().log_prob(z.flatten())
        truth = float(made.log_density(z) - exact)
    target, start = as_frames(made, start)
    z, options = z.reshape(start.mean.shape), {"particles": args.particles, "moves": 2}
    smc = tempered_smc(target, start, seed=3 * seed, **options)
    below = annealed_importance(target, start, smc.path, seed=3 * seed + 1, **options)
    above = reverse_annealed(target, start, smc.path, z, seed=3 * seed + 2, **options)
    return float(below.sum()), float(smc.log_evidence.sum()), float(above.sum()), truth


if __name__ == "__main__":
    main()
