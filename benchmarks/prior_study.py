"""What makes a speech prior generalise: A-VAE by one recipe, changed in one thing at a time, on speakers never heard.

Every variant learns from spoken commands and synthetic talkers, and is scored on the same mixtures of GRID's validation
clips: other speakers, another corpus, recorded noises. Only `and grid/train` has heard these speakers, as a reference.
The base has 20 minutes of each folder, so that the mix of data is told from its amount.

    python benchmarks/prior_study.py --data ../shared/data --synth runs/synth --out runs/prior_study
    python benchmarks/prior_study.py ... --split test --noises all --snrs -5 0 5 --bundled a_vae min_vae_v2

A folder a variant in --out: what is trained and scored there already is not done again. `--only` names some variants.
"""

import argparse
import io
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from scipy.signal import butter, sosfilt, sosfiltfilt
from scipy.stats import t as student

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.noise import white_noise
from pyro_avse.defaults import DEFAULT_INFERENCE, SAMPLE_RATE
from pyro_avse.files import write_atomically
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.training.recipe import Recipe, load_recipe
from pyro_avse.training.stages import WEIGHTS, train

NOISES = ("street_tram", "kitchen", "highway", "windy_street")
SCORES = {"si_sdr": 2, "sdr": 2, "pesq_nb": 3, "stoi": 3}
ALL = math.inf


@dataclass(frozen=True)
class Variant:
    """What is not as in the base."""

    minutes: dict[str, float] = field(default_factory=lambda: {"commands": 20, "synth": 20})
    """Of every folder's training clips."""
    options: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    inference: dict[str, Any] = field(default_factory=dict)
    """Settings of the scheme."""
    weights_of: str = ""
    """The variant whose weights serve; "": its own."""
    high_pass: float = 0.0
    """Hz below which the training clips are cut off, before any floor is added; 0: as they are."""


VARIANTS = {
    "base": Variant(),
    "commands alone, 40 min": Variant({"commands": 40}),
    "talkers alone, 40 min": Variant({"synth": 40}),
    "commands and talkers, all (2 h)": Variant({"commands": ALL, "synth": ALL}),
    "and grid/train (speakers seen)": Variant({"commands": 20, "synth": 20, "grid": ALL}),
    "no floor": Variant(data={"noise_floor_db": 0.0}),
    "floor 30 dB": Variant(data={"noise_floor_db": 30.0}),
    "floor 35 dB": Variant(data={"noise_floor_db": 35.0}),
    "floor 45 dB": Variant(data={"noise_floor_db": 45.0}),
    "floor 50 dB": Variant(data={"noise_floor_db": 50.0}),
    "gain fixed at 1": Variant(inference={"noise": {"gain": "none"}}, weights_of="base"),
    "no response at test time": Variant(inference={"noise": {"response": 0}}, weights_of="base"),
    "peak of 1": Variant(data={"level": "peak"}),
    "peak of 1, gain fixed at 1": Variant(
        inference={"noise": {"gain": "none"}}, weights_of="peak of 1"
    ),
    "levels vary by 20 dB": Variant(data={"level_range_db": 20.0}),
    "nothing below 100 Hz learned": Variant(high_pass=100.0),
    "nothing below 200 Hz learned": Variant(high_pass=200.0),
    "tilts up to 3 dB an octave": Variant(data={"tilt_db": 3.0}),
    "tilts up to 6 dB an octave": Variant(data={"tilt_db": 6.0}),
    "L = 16": Variant(options={"latent_dim": 16}),
    "hidden 256": Variant(options={"hidden": 256}),
    "KL weight 0.5": Variant(training={"kl_weight": 0.5}),
    "KL weight 2": Variant(training={"kl_weight": 2.0}),
    "10 epochs": Variant(training={"epochs": 10}),
    "100 epochs": Variant(training={"epochs": 100}),
    "100 epochs, best enhancer kept": Variant(training={"epochs": 100, "select": "enhancement"}),
    "hop 256": Variant(data={"hop": 256}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with commands, grid and noise")
    parser.add_argument("--synth", type=Path, required=True, help="made by pyro-avse data synth")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--bundled", nargs="+", default=[], help="bundled models, for comparison")
    parser.add_argument("--split", default="valid", choices=("valid", "test"), help="of grid")
    parser.add_argument("--clips", type=int, default=6, help="evenly over the speakers")
    parser.add_argument("--snrs", type=float, nargs="+", default=[-5.0, 5.0])
    parser.add_argument(
        "--noises",
        nargs="+",
        default=list(NOISES),
        help="files of noise/, babble, white, car (made here); or all, which is all but car",
    )
    parser.add_argument("--inference", default=DEFAULT_INFERENCE, help="a scheme")
    parser.add_argument("--iterations", type=int, help="of the scheme, fewer than its default")
    args = parser.parse_args()
    torch.set_num_threads(1)

    folders = {
        "commands": args.data / "commands",
        "synth": args.synth,
        "grid": args.data / "grid",
    }
    recorded = sorted(path.stem for path in (args.data / "noise").glob("*.flac"))
    noises = [*recorded, "babble", "white"] if args.noises == ["all"] else args.noises
    files = {name: str(args.data / "noise" / f"{name}.flac") for name in recorded}
    if "car" in noises:
        files["car"] = str(car_noise(args.out / "data" / "car.flac"))
    results: dict[str, pd.DataFrame] = {}
    for name in [*args.bundled, *args.only]:
        variant = VARIANTS.get(name, Variant())
        weights = (
            name if name in args.bundled else trained(variant.weights_of or name, folders, args.out)
        )
        settings = {"iterations": args.iterations} if args.iterations else {}
        settings |= variant.inference
        rows = evaluate(
            args.data / "grid",
            [files.get(noise, noise) for noise in noises],
            args.snrs,
            [f"model={weights}"],
            [args.inference],
            split=args.split,
            clips=args.clips,
            settings={args.inference: settings},
            out=folder_of(args.out, name)
            / f"scores_{args.inference}{'_test' * (args.split == 'test')}",
        )
        results[name] = rows[rows["noise"].isin(noises) & rows["snr"].isin(args.snrs)]
        print(f"\n{table(results)}", flush=True)


def trained(name: str, folders: dict[str, Path], out: Path) -> Path:
    """The variant's weights, trained now unless they are there."""
    weights = folder_of(out, name) / WEIGHTS
    if not weights.is_file():
        corpora = [
            excerpt(folders[which], minutes, out / "data" / f"{which}_{minutes:g}")
            for which, minutes in VARIANTS[name].minutes.items()
        ]
        if hz := VARIANTS[name].high_pass:
            data = out / "data"
            corpora = [high_passed(c, hz, data / f"{c.name}_above_{hz:g}_Hz") for c in corpora]
        train(recipe_of(VARIANTS[name]), corpora, weights.parent, resume=True)
    return weights


def recipe_of(variant: Variant) -> Recipe:
    """default/a_vae, but for its tilts, changed."""
    recipe = load_recipe("default/a_vae")
    assert isinstance(recipe, Recipe)
    return replace(
        recipe,
        options=recipe.options | variant.options,
        data=replace(recipe.data, **({"tilt_db": 0.0} | variant.data)),
        training=replace(recipe.training, **variant.training),
    )


def folder_of(out: Path, name: str) -> Path:
    return out / "".join(c if c.isalnum() else "_" for c in name)


def excerpt(corpus: Path, minutes: float, out: Path) -> Path:
    """A folder of links to so many minutes of the corpus's training clips, evenly over them, and to all valid ones."""
    if minutes == ALL:
        return corpus
    for split in ("train", "valid"):
        clips = [u.audio for u in find_utterances(corpus, split)]  # type: ignore[arg-type]
        seconds = [soundfile.info(clip).duration for clip in clips]
        share = min(1.0, 60 * minutes / sum(seconds)) if split == "train" else 1.0
        for place, clip in enumerate(clips):
            if int((place + 1) * share) > int(place * share):
                link(clip, corpus, out)
    return out


def car_noise(out: Path) -> Path:
    """A minute of rumble as in a car: white noise through a second-order low-pass at 50 Hz, 96 % of it below 100 Hz."""
    if not out.exists():
        low = butter(2, 50.0, fs=SAMPLE_RATE, output="sos")
        rumble = sosfilt(low, white_noise(60 * SAMPLE_RATE, np.random.default_rng(0)))
        write_flac(out, rumble / np.abs(rumble).max(), SAMPLE_RATE)
    return out


def high_passed(corpus: Path, hz: float, out: Path) -> Path:
    """The corpus's training and valid clips without what lies below `hz`: 24 dB an octave, twice, no phase."""
    for split in ("train", "valid"):
        for clip in find_utterances(corpus, split):  # type: ignore[arg-type]
            place = out / clip.audio.relative_to(corpus)
            if not place.exists():
                waveform, rate = soundfile.read(clip.audio)
                filtered = sosfiltfilt(butter(4, hz, "highpass", fs=rate, output="sos"), waveform)
                write_flac(place, filtered / max(1.0, np.abs(filtered).max()), rate)
    return out


def write_flac(out: Path, waveform: np.ndarray, rate: int) -> None:
    """As a whole or not at all, with the folders above."""
    sound = io.BytesIO()
    soundfile.write(sound, waveform, rate, format="FLAC")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, sound.getvalue())


def link(clip: Path, corpus: Path, out: Path) -> None:
    """The clip, and its lips if it has some, at the same place under `out`."""
    for path in (clip, clip.with_suffix(".npz")):
        place = out / path.relative_to(corpus)
        if path.exists() and not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(path.resolve(), place)


def table(results: dict[str, pd.DataFrame]) -> str:
    """Mean improvements, a row a variant; the first is what SI-SDR's differences are taken from."""
    keys = ["clip", "noise", "snr"]
    first = next(iter(results.values()))
    base, noises = first.set_index(keys)["si_sdr_improvement"], list(first["noise"].unique())
    head = ["variant", *SCORES, "SI-SDR less the first's", *(f"SI-SDR, {n}" for n in noises)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, rows in results.items():
        cells = [f"{rows[f'{s}_improvement'].mean():+.{digits}f}" for s, digits in SCORES.items()]
        difference = rows.set_index(keys)["si_sdr_improvement"] - base
        of_clips = difference.groupby("clip").mean()  # clips are independent, their mixtures not
        half = student.ppf(0.975, len(of_clips) - 1) * of_clips.std() / len(of_clips) ** 0.5
        cells.append(f"{of_clips.mean():+.2f} ± {half:.2f}")
        by_noise = rows.groupby("noise")["si_sdr_improvement"].mean()
        cells += [f"{by_noise[noise]:+.2f}" for noise in noises]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
