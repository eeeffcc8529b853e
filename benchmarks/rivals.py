"""Ours beside the rivals: one table, and what knowing the noise is worth to the supervised one.

    python benchmarks/rivals.py --data ../shared/data                     # rivals that are installed or trained
    python benchmarks/rivals.py --data ../shared/data --every 9 --systems min_vae_v2 dtln
    python benchmarks/rivals.py --data ../shared/data --only crossing

    rivals     near, far and white of benchmarks/robustness.py, every --every-th recording: SI-SDR in dB / STOI, and in
               near the share of words that PocketSphinx gets right (chance is 0.19); process time of one thread a
               second of sound
    crossing   GRID's validation clips at -5, 0 and 5 dB, every --every-th mixture, SI-SDR gained / STOI: in the second
               halves of the noises whose first halves trained gabbay, and in noises that it never heard. Noises
               differ in how hard they are, so read each system against the others in the same column

Priors and rivals heard GRID's three speakers in training, in other sentences. Only gabbay heard a recorded noise.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from conditions import RATE, Case, grid_clips, mixture_of, pictures
from guides import enhanced, recordings

from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr, take_noise
from pyro_avse.defaults import DEFAULT_INFERENCE
from pyro_avse.metrics import score
from pyro_avse.rivals.find import RIVALS, find_rival
from pyro_avse.rivals.words import word_accuracy, words_of
from pyro_avse.training.recipe import RivalRecipe, load_recipe
from pyro_avse.training.supervised import KNOWN_SHARE
from pyro_avse.typing import InputError

OURS = ("min_vae_v2", "a_vae")
UNKNOWN = ("kitchen", "street_tram", "machine_factory", "train_ride", "restaurant", "wind_leaves")
Heard = Callable[[Case, np.ndarray], np.ndarray]
"""A mixture to its speech."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid, speech and noise")
    parser.add_argument("--only", nargs="+", choices=("rivals", "crossing"), default=["rivals"])
    parser.add_argument("--systems", nargs="+", default=["recording", *OURS, *RIVALS])
    parser.add_argument("--kinds", nargs="+", default=["near", "far", "white"])
    parser.add_argument("--every", type=int, default=5, help="only every so many-th recording")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="of GRID")
    args = parser.parse_args()
    args.clips, args.no_rivals, args.models = 3, True, []
    torch.set_num_threads(1)
    for table in args.only:
        cases = (
            recordings(args, OURS[0]) if table == "rivals" else list(crossing(args))[:: args.every]
        )
        make = mixture_of if table == "rivals" else crossed
        columns = table_of if table == "rivals" else gains_of
        for number, name in enumerate(args.systems):
            try:
                row = {"": name} | columns(scores(args, cases, name, make))
            except InputError as reason:
                print(f"{name} is left out: {reason}", flush=True)
                continue
            if number == 0:
                print(f"\n| {' | '.join(row)} |\n{'| --- ' * len(row)}|", flush=True)
            print(f"| {' | '.join(row.values())} |", flush=True)


def system(name: str) -> Heard:
    """The recording itself, a rival, or a prior by the default scheme with its guide."""
    if name == "recording":
        return lambda case, mixture: mixture
    rival = find_rival(name)
    if rival is None:
        return enhanced(name, DEFAULT_INFERENCE, "own")
    return lambda case, mixture: rival(mixture, pictures(case))


def scores(
    args: argparse.Namespace,
    cases: list[Case],
    name: str,
    make: Callable[[Case, Path], tuple[np.ndarray, np.ndarray]],
) -> pd.DataFrame:
    """A row a recording; NaN where a system needs the lips and there are none."""
    run, rows = system(name), []
    for case in cases:
        clean, mixture = make(case, args.data)
        row: dict[str, Any] = {"kind": case.kind, "snr": case.snr}
        if name != "gabbay" or pictures(case) is not None:
            start = time.process_time()
            speech = np.asarray(run(case, mixture), np.float64)
            row["seconds"] = (time.process_time() - start) * RATE / len(clean)
            found = score(speech, clean, only=("si_sdr", "stoi"))
            row |= {"si_sdr": found.si_sdr, "stoi": found.stoi}
            if case.kind == "near":
                row["words"] = words(speech, case)
        rows.append(row)
    return pd.DataFrame(rows)


def words(speech: np.ndarray, case: Case) -> float:
    try:
        return word_accuracy(speech, words_of(case.clip.stem))
    except InputError:
        return float("nan")


def table_of(rows: pd.DataFrame) -> dict[str, str]:
    means = rows.groupby("kind", sort=False).mean()
    cells = {
        kind: f"{row.si_sdr:.2f} / {row.stoi:.3f}" if np.isfinite(row.si_sdr) else "needs lips"
        for kind, row in means.iterrows()
    }
    heard = rows["words"].mean() if "words" in rows else float("nan")
    cells["near's words"] = f"{heard:.2f}" if np.isfinite(heard) else "no PocketSphinx"
    return cells | {"s/s": f"{rows['seconds'].mean():.3f}"}


def crossing(args: argparse.Namespace) -> Iterator[Case]:
    recipe = load_recipe("default/gabbay")
    assert isinstance(recipe, RivalRecipe)
    for place, clip in enumerate(grid_clips(args)):
        for kind, noises in (("known", recipe.noises), ("unknown", UNKNOWN)):
            for n, noise in enumerate(noises):
                snr = (-5.0, 0.0, 5.0)[(place + n) % 3]
                yield Case(kind, f"{noise} {snr:g} dB", clip.audio, noise, snr, place, clip.speaker)


def crossed(case: Case, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Clean and mixture, as `mixture_of`, in a stretch of the noise's second half: what gabbay did not hear."""
    clean = load_audio(case.clip).waveform
    recorded = load_audio(data / "noise" / f"{case.noise}.flac").waveform
    rng = np.random.default_rng([case.seed, sum(map(ord, case.noise))])
    noise, _ = take_noise(recorded[int(KNOWN_SHARE * len(recorded)) :], len(clean), rng)
    mixture, _ = mix_at_snr(clean, noise, case.snr)
    peak = np.abs(mixture).max()
    return clean / peak, (mixture / peak).astype(np.float32)


def gains_of(rows: pd.DataFrame) -> dict[str, str]:
    rows = rows.assign(gain=rows["si_sdr"] - rows["snr"])
    means = rows.groupby("kind", sort=False)[["gain", "stoi"]].mean()
    return {kind: f"{row.gain:+.2f} / {row.stoi:.3f}" for kind, row in means.iterrows()}


if __name__ == "__main__":
    main()
