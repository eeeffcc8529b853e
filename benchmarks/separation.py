"""Two voices taken apart by lips: mixtures of two GRID speakers, and what each choice is worth.

    python benchmarks/separation.py --data ../shared/data                        # all tables
    python benchmarks/separation.py --data ../shared/data --only settings
    python benchmarks/separation.py --data ../shared/data --only unheard
    python benchmarks/separation.py --data ../shared/data --figure docs/figures/separation.png

Mixtures are of GRID's valid clips, two speakers each, at -5, 0 and 5 dB of the first over the second, alone and in
noise of the folder `noise` 10 dB under both; no noise there has trained anything. `--split test` takes the test
clips, which have two speakers.

    mixtures  every SNR, alone and in noise
    lips      at 0 dB without noise: each speaker's own lips; one speaker's alone; each other's, counted as if they were
              his own; none; and the same prior without a guide, which hears and does not know who is who
    settings  at 0 dB without noise, what `SpeakersEM` adds to the guide: its share, moves as of `mcem`
    unheard   at 0 dB without noise, by a guide that never heard one speaker (--unheard), his voice and the other's

A voice is wrong where what is called his is nearer to the other's, by SI-SDR. Gains are over the mixture itself, means
over both voices.
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.defaults import SEPARATION_MODEL
from pyro_avse.enhancement.separate import Separator
from pyro_avse.inference import RandomWalk
from pyro_avse.inference.speakers import SpeakersEM
from pyro_avse.metrics import score
from pyro_avse.weights.checkpoint import load_prior
from pyro_avse.weights.guides import load_separating_guide

TABLES = ("mixtures", "lips", "settings", "unheard")
SNRS = (-5.0, 0.0, 5.0)
NOISES, NOISE_SNR = ("street_tram", "kitchen", "restaurant"), 10.0
SCORES = ("si_sdr", "pesq_wb", "stoi")


@dataclass(frozen=True)
class Case:
    """One mixture of two speakers."""

    mixture: np.ndarray
    voices: list[np.ndarray]
    """As they are in the mixture."""
    lips: list[Lips]
    speakers: tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid and noise")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES[:3]))
    parser.add_argument("--split", choices=["valid", "test"], default="valid")
    parser.add_argument("--pairs", type=int, default=4, help="of clips of each two speakers")
    parser.add_argument("--model", default=SEPARATION_MODEL)
    parser.add_argument("--guide", default="own", help="a separating guide's file")
    parser.add_argument("--unheard", default="s4", help="a speaker")
    parser.add_argument("--figure", type=Path, help="a picture of one mixture, and nothing else")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.figure is not None:
        draw(args)
        return
    for table in args.only:
        for number, row in enumerate(globals()[f"table_of_{table}"](args)):
            if number == 0:
                print(f"\n{table}\n| {' | '.join(row)} |\n{'| --- ' * len(row)}|", flush=True)
            print(f"| {' | '.join(row.values())} |", flush=True)


# --- tables: rows of each -------------------------------------------------------------------------------------------


def table_of_mixtures(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    separator = separator_of(args)
    for noisy in (False, True):
        for snr in SNRS:
            title = f"{snr:+g} dB, {f'noise at {NOISE_SNR:g} dB' if noisy else 'no noise'}"
            cases = mixtures(args, snr, noisy)
            yield row_of(title, [scores_of(separator, case, case.lips) for case in cases])


def table_of_lips(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    separator, cases = separator_of(args), mixtures(args, 0.0)
    yield row_of("each his own", [scores_of(separator, case, case.lips) for case in cases])
    yield row_of(
        "the first one's", [scores_of(separator, case, [case.lips[0], None]) for case in cases]
    )
    yield row_of("each other's", [scores_of(separator, case, case.lips[::-1]) for case in cases])
    yield row_of("none", [scores_of(separator, case, [None, None]) for case in cases])
    alone = separator_of(argparse.Namespace(**vars(args) | {"guide": None}))
    yield row_of("no guide", [scores_of(alone, case, case.lips) for case in cases])


def table_of_settings(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    mcem = SpeakersEM(
        kernel=RandomWalk(),
        iterations=12,
        warmup=30,
        draws=10,
        first_warmup=None,
        final_warmup=75,
        final_draws=25,
        chains=1,
    )
    for title, scheme in (
        ("as it is", SpeakersEM()),
        ("the guide alone", SpeakersEM(filter_share=1.0)),
        ("the model alone", SpeakersEM(filter_share=0.0)),
        ("moves as of mcem, the model alone", replace(mcem, filter_share=0.0)),
        ("moves as of mcem", mcem),
        ("twice the iterations", SpeakersEM(iterations=8)),
    ):
        separator = separator_of(args, scheme)
        yield row_of(title, [scores_of(separator, case, case.lips) for case in mixtures(args, 0.0)])


def table_of_unheard(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    separator = separator_of(args)
    cases = [c for c in mixtures(args, 0.0) if args.unheard in c.speakers]
    rows = [scores_of(separator, case, case.lips) for case in cases]
    for title, whose in ((args.unheard, True), ("the other", False)):
        voices = [
            {
                **row,
                "voices": [
                    v
                    for v, s in zip(row["voices"], c.speakers, strict=True)
                    if (s == args.unheard) == whose
                ],
            }
            for row, c in zip(rows, cases, strict=True)
        ]
        yield row_of(title, voices)


# --- mixtures and scores --------------------------------------------------------------------------------------------


def separator_of(args: argparse.Namespace, scheme: SpeakersEM | None = None) -> Separator:
    prior, stft = load_prior(args.model, guide=None)
    guide = load_separating_guide(args.model, args.guide, prior, stft)
    return Separator(prior, scheme, stft=stft, guide=guide, device="cpu")


def mixtures(args: argparse.Namespace, snr: float, noisy: bool = False) -> list[Case]:
    """`pairs` of clips of each two speakers, the first voice `snr` dB over the second."""
    by_speaker: dict[str, list[Any]] = {}
    for utterance in find_utterances(args.data / "grid", args.split):
        by_speaker.setdefault(str(utterance.speaker), []).append(utterance)
    cases = []
    for one, other in combinations(sorted(by_speaker), 2):
        for k in range(args.pairs):
            own = [by_speaker[s][k % len(by_speaker[s])] for s in (one, other)]
            voices = [load_audio(u.audio).waveform.astype(np.float64) for u in own]
            voices = [v - v.mean() for v in voices]
            length = min(len(v) for v in voices)
            voices = [v[:length] / np.std(v[:length]) for v in voices]
            voices = [0.05 * voices[0] * 10 ** (snr / 20), 0.05 * voices[1]]
            noise = np.zeros(length)
            if noisy:
                name = NOISES[(k + len(cases)) % len(NOISES)]
                noise = load_audio(args.data / "noise" / f"{name}.flac").waveform[:length]
                noise = noise - noise.mean()
                loud = 10 ** (-NOISE_SNR / 20) * np.std(sum(voices))
                noise = np.resize(noise, length) * loud / np.std(noise)
            lips = [load_lips(u.lips, fps=u.fps) for u in own]
            cases.append(Case(sum(voices) + noise, voices, lips, (one, other)))
    return cases


def scores_of(separator: Separator, case: Case, lips: list[Lips | None]) -> dict[str, Any]:
    """What both voices gain, by score; whether each is the other's; seconds a second."""
    start = time.process_time()
    found = separator(case.mixture, lips).speech.astype(np.float64)
    seconds = time.process_time() - start
    voices = []
    for j, voice in enumerate(case.voices):
        after, before = (score(x, voice, only=SCORES) for x in (found[j], case.mixture))
        other = score(found[j], case.voices[1 - j], only=("si_sdr",)).si_sdr
        voices.append(
            {name: getattr(after, name) - getattr(before, name) for name in SCORES}
            | {"wrong": other > after.si_sdr}
        )
    return {"voices": voices, "seconds": seconds * 16000 / len(case.mixture)}


def row_of(title: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    voices = [voice for row in rows for voice in row["voices"]]
    gains = {name: np.array([voice[name] for voice in voices]) for name in SCORES}
    names = {"si_sdr": "SI-SDRi, dB", "pesq_wb": "PESQ gain", "stoi": "STOI gain"}
    cells = {"": title, "voices": str(len(voices))}
    for name, digits in zip(SCORES, (2, 2, 3), strict=True):
        kept = gains[name][np.isfinite(gains[name])]
        missing = "" if len(kept) == len(voices) else f" (n={len(kept)}/{len(voices)})"
        cells[names[name]] = f"{kept.mean():+.{digits}f}{missing}"
    cells["wrong voice"] = f"{np.mean([v['wrong'] for v in voices]):.0%}"
    cells["s a s"] = f"{np.mean([row['seconds'] for row in rows]):.2f}"
    return cells


# --- the picture ----------------------------------------------------------------------------------------------------


def draw(args: argparse.Namespace) -> None:
    """The mixture, both voices as they are, and as they are found."""
    from matplotlib.figure import Figure

    from pyro_avse.plots import draw_spectrogram, save_figure, spectral_power

    case = mixtures(args, 0.0)[0]
    found = separator_of(args)(case.mixture, case.lips)
    figure = Figure(figsize=(11, 6), layout="constrained")
    loudest = float(spectral_power(case.mixture).max())
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, (title, sound) in zip(
        grid.T.flat,
        [
            ("mixture", case.mixture),
            ("what is left", found.noise),
            (f"{case.speakers[0]}", case.voices[0]),
            (f"{case.speakers[0]}, by his lips", found.speech[0]),
            (f"{case.speakers[1]}", case.voices[1]),
            (f"{case.speakers[1]}, by his lips", found.speech[1]),
        ],
        strict=True,
    ):
        draw_spectrogram(axes, sound, title, loudest)
    save_figure(figure, args.figure)


if __name__ == "__main__":
    main()
