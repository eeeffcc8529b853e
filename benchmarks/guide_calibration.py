"""Is the guide's doubt right? Simulation-based calibration, of the guide alone and followed by an exact kernel.

    python benchmarks/guide_calibration.py --speech runs/speech --out runs/calibration

SBC [Talts et al. 2018]: where truth and recording are drawn from the program, the truth's rank among draws of the
posterior is uniform. For every frame and code number the rank of the truth among --chains draws, as a histogram:

    of training    draws of the guide; recordings as in training, of held-out speech, whose codes are the encoder's
    of the program draws of the guide; z from the prior, speech from the decoder, noise of models/drawn_noise.py
    and HMC        the same draws moved by --steps of HMC on the posterior, whose step sizes are found meanwhile: exact
                   once they have arrived, so what is left of a slope or bow says that they have not

A bow says that the guide is too sure (edges high) or too humble (edges low), a slope that it is shifted. Beside each:
the largest departure of the ranks' cumulative shares from uniform, and the share of truths in the middle 80 %.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.enhancement.front import log_response
from pyro_avse.files import make_folder
from pyro_avse.inference import HMC, run_chains
from pyro_avse.inference.adaptation import DualAveraging
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.drawn_noise import DECIBEL, drawn_noise
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.plots import BLUE, GREY, save_figure
from pyro_avse.stft import STFT
from pyro_avse.training.pairs import draw_pairs, load_speech
from pyro_avse.weights.checkpoint import load_prior

TITLES = ("of training", "of the program", "and HMC")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--speech", type=Path, required=True, help="a corpus; its valid part")
    parser.add_argument("--models", nargs="+", default=["a_vae"], help="priors without lips")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument("--frames", type=int, default=60, help="of each")
    parser.add_argument("--chains", type=int, default=19)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_folder(args.out)
    for model in args.models:
        torch.manual_seed(args.seed)
        prior, stft = load_prior(model)
        with torch.no_grad():
            found = dict(zip(TITLES, ranks(args, prior, stft), strict=True))
        print(f"{model}: ranks 0 to {args.chains} of {found[TITLES[0]].numel()} numbers")
        for title, rank in found.items():
            away, inside = departure(rank, args.chains), covered(rank, args.chains)
            print(f"  {title:16} departs by {away:.3f}, middle 80 % holds {inside:.1%}")
        picture(found, args.chains, args.out / f"{Path(model).stem}.png")


def ranks(args: argparse.Namespace, prior: Any, stft: STFT) -> tuple[Tensor, Tensor, Tensor]:
    guide, chains = prior.noise_guide, args.chains
    speech = load_speech(find_utterances(args.speech, "valid"), guide, stft)
    pairs = draw_pairs(
        speech, utterances=args.recordings, num_frames=args.frames, stft=stft, lips_dropped=1.0
    )
    q = guide.guess(pairs.power).codes
    trained = rank_of(pairs.codes[0], draws_of(q, chains)[:, 0])

    shape = (args.recordings, args.frames)
    b = drawn_noise(args.frames, prior.num_freqs, utterances=args.recordings)
    snr = -15 + 40 * torch.rand(args.recordings, 1, 1)
    h = torch.from_numpy(log_response(prior.num_freqs)).float()
    z = torch.randn(1, *shape, prior.latent_dim)
    loud = (prior.log_variance(z, None) + h).exp().mean()
    noise = h.exp() * b.variance * loud * (-DECIBEL * snr).exp()
    trace = poutine.trace(noisy_speech).get_trace(
        prior, None, None, noise, log_response=h.expand(args.recordings, -1)
    )
    truth, power = trace.nodes["z"]["value"], trace.nodes["x"]["value"].abs().square()
    target = CollapsedTarget(prior, None, power, noise, prior.mixing_weight, None, h)
    start = draws_of(guide.guess(power).codes, chains)[:, 0]
    kernel, adapt = HMC(), DualAveraging()
    moved = run_chains(
        kernel, target, start, draws=1, warmup=args.steps, adapt=adapt, seed=args.seed
    ).draws[:, 0]
    return trained, rank_of(truth, start), rank_of(truth, moved)


def draws_of(q: Any, chains: int) -> Tensor:
    """(chain, component, utterance, frame, latent)."""
    return q.mean + q.stddev * torch.randn(chains, *q.mean.shape)


def rank_of(truth: Tensor, draws: Tensor) -> Tensor:
    return (draws < truth).sum(0).flatten()


def shares(rank: Tensor, chains: int) -> Tensor:
    return torch.bincount(rank, minlength=chains + 1) / len(rank)


def departure(rank: Tensor, chains: int) -> float:
    even = torch.arange(1, chains + 2) / (chains + 1)
    return float((shares(rank, chains).cumsum(0) - even).abs().max())


def covered(rank: Tensor, chains: int) -> float:
    edge = (chains + 1) // 10
    return float(shares(rank, chains)[edge:-edge].sum())


def picture(found: dict[str, Tensor], chains: int, path: Path) -> None:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, (title, rank) in zip(figure.subplots(1, 3, sharey=True), found.items(), strict=True):
        axes.bar(range(chains + 1), shares(rank, chains) * (chains + 1), 0.9, color=BLUE)
        axes.axhline(1, color=GREY)
        axes.set(xlabel="rank of the truth")
        axes.set_title(title, fontsize=9)
    figure.axes[0].set_ylabel("share, 1 is uniform")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
