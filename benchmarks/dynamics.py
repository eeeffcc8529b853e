"""Is memory worth it? Every prior by the same schemes and equal work, and with what only an oracle knows.

    python benchmarks/dynamics.py --data ../shared/data --models a_vae rvae --every 4
    python benchmarks/dynamics.py --data ../shared/data --models rvae runs/dkf/weights.safetensors --only ladder

Recordings are every --every-th clip of grid/valid (speakers of the training, other sentences) and of librispeech_valid
(speakers that no training heard), at most four seconds of each, every one in another of seven noises and at another of
five SNRs. Nothing of these noises has trained anything.

    bound     the ELBO, its likelihood and its divergence, in nats a frame, of grid/valid and librispeech_valid; cut
              into pieces of 2.5 s
    schemes   ldem without a guide, in the same steps for every prior; what `enhance` takes; and, with --schemes, others
    ladder    the code of the clean recording and the true noise, averaged over five frames, are known; or the noise is,
              and z is found by 100 tamed Langevin steps from the clean code, or the noisy start (priors without lips)

Scores are means of SI-SDR in dB and of STOI; time is process time of one thread a second of sound.
"""

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from conditions import RATE, SPEAKERS, Case, grid_clips, mixture_of, other_voices, pictures
from guides import Heard, enhanced, enhancer_of
from oracle_ladder import Ladder

from pyro_avse.data.corpora.corpus import find_corpus, find_utterances
from pyro_avse.data.media.audio import audio_from_array
from pyro_avse.metrics import score
from pyro_avse.training.frames import Frames, load_frames
from pyro_avse.training.recipe import Recipe
from pyro_avse.training.sequences import cut_frames, draw_cuts
from pyro_avse.training.svi import validate
from pyro_avse.typing import couples_frames
from pyro_avse.weights.checkpoint import load_prior

NOISES = ("kitchen", "street_tram", "machine_factory", "restaurant", "rain", "babble", "white")
SNRS = (-10.0, -5.0, 0.0, 5.0, 10.0)
TABLES = ("bound", "schemes", "ladder")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid, speech and noise")
    parser.add_argument("--models", nargs="+", required=True, help="names or weight files")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--schemes", nargs="*", default=[], help="besides")
    parser.add_argument("--every", type=int, default=4, help="only every so many-th recording")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="of GRID")
    args = parser.parse_args()
    args.clips = 99
    torch.set_num_threads(1)
    for table in args.only:
        for number, row in enumerate(globals()[f"table_of_{table}"](args)):
            if number == 0:
                print(f"\n{table}\n| {' | '.join(row)} |", flush=True)
                print("| --- " * len(row) + "|", flush=True)
            print(f"| {' | '.join(row.values())} |", flush=True)


def table_of_bound(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    clips = find_utterances(args.data / "grid", "valid")
    clips += find_corpus(args.data / "speech" / "librispeech_valid").utterances
    for model in args.models:
        prior, stft = load_prior(model, guide=None)
        frames = load_frames(
            clips,
            stft,
            with_lips=prior.uses_lips,
            noise_floor_db=40.0,
            seed=0,
            level="speech",
        )
        cut = cut_frames(Recipe(model))
        seen = draw_cuts(frames.ends, cut, at_random=False).flatten()  # by all priors alike
        lips = None if frames.lips is None else frames.lips[seen]
        same = Frames(frames.power[seen], lips, tuple(range(cut, len(seen) + 1, cut)))
        found = validate(prior, same, seed=0, cut=cut if couples_frames(prior) else 0)
        parts = ("elbo", "reconstruction", "kl")
        yield {"": model} | {part: f"{found[f'valid_{part}']:.1f}" for part in parts}


def table_of_schemes(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    cases = list(recordings(args, lips=False))
    yield row_of(args, cases, "recording", lambda case, mixture: mixture)
    for model in args.models:
        prior, _ = load_prior(model)
        cases = list(recordings(args, lips=prior.requires_lips))
        runs = [("ldem", None), *((scheme, None) for scheme in args.schemes)]
        if prior.noise_guide is not None:
            runs.append(("guided", "own"))
        for scheme, guide in runs:
            yield row_of(args, cases, f"{model}, {scheme}", enhanced(model, scheme, guide))


def table_of_ladder(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    cases = list(recordings(args, lips=False))
    for model in args.models:
        if load_prior(model, guide=None)[0].requires_lips:
            continue
        for rung in ("code and noise", "noise, from the code", "noise, from the start"):
            yield row_of(args, cases, f"{model}: {rung}", partial(known, args, model, rung))


def row_of(args: argparse.Namespace, cases: list[Case], title: str, run: Heard) -> dict[str, str]:
    """Means over the corpora, over the SNRs, and of the time."""
    rows = []
    for case in cases:
        clean, mixture = mixture_of(case, args.data)
        start = time.process_time()
        speech = np.asarray(run(case, mixture), np.float64)
        spent = (time.process_time() - start) * RATE / len(clean)
        found = score(speech, clean, only=("si_sdr", "stoi"))
        rows.append((case.kind, case.snr, found.si_sdr, found.stoi, spent))
    table = pd.DataFrame(rows, columns=["kind", "snr", "si_sdr", "stoi", "seconds"])
    parts = {kind: table[table.kind == kind] for kind in ("grid", "librispeech")}
    parts |= {f"{snr:g} dB": table[table.snr == snr] for snr in SNRS}
    cells = {
        name: f"{p.si_sdr.mean():.2f} / {p.stoi.mean():.3f}" if len(p) else ""
        for name, p in parts.items()
    }
    return {"": title, "n": str(len(rows)), **cells, "s/s": f"{table.seconds.mean():.3f}"}


def known(
    args: argparse.Namespace, model: str, rung: str, case: Case, mixture: np.ndarray
) -> np.ndarray:
    """Speech as it comes out with the noise known, and what `rung` says of the code."""
    clean, _ = mixture_of(case, args.data)
    enhancer = enhancer_of(model, "ldem", None)
    ladder = Ladder(enhancer, enhancer.prepare(audio_from_array(mixture, 16000)), clean)
    z = {
        "code and noise": lambda: ladder.clean_code,
        "noise, from the code": lambda: ladder.chains(ladder.clean_code),
        "noise, from the start": lambda: ladder.chains(ladder.noisy_code),
    }[rung]()
    heard = enhancer.stft.synthesise(ladder.by(z, ladder.noise), len(clean)).double().numpy()
    return heard + ladder.clean.low / ladder.clean.level


def recordings(args: argparse.Namespace, *, lips: bool) -> Iterator[Case]:
    grid: list[Any] = grid_clips(args)
    read = sorted((args.data / "speech" / "librispeech_valid").glob("*.flac"))
    clips = [("grid", clip.audio) for clip in grid] + [("librispeech", path) for path in read]
    for n, (kind, path) in enumerate(clips):
        noise, snr = NOISES[n % len(NOISES)], SNRS[n % len(SNRS)]
        speaker = next((s for s in SPEAKERS if s in path.parts), None)
        others = other_voices(args.data, path)
        case = Case(kind, f"{snr:g} dB", path, noise, snr, n, speaker, others=others)
        if n % args.every == 0 and (not lips or pictures(case) is not None):
            yield case


if __name__ == "__main__":
    main()
