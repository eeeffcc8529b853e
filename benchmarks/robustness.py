"""What the default does to recordings unlike those it was made with: one table, one picture, one sweep.

    python benchmarks/robustness.py --data ../shared/data --left-out runs/leave_one_out --out runs/robustness
    python benchmarks/robustness.py --data ../shared/data --quick          # a few cases of each kind, under two minutes

Clips are GRID's (grid/valid, three a speaker) and LibriSpeech's (librispeech_valid, the first four seconds); grid/test
is not touched unless --split test asks for it. With --left-out, GRID's clips are enhanced by priors that never heard
their speaker (benchmarks/leave_one_out.py --only default trains them); without it by the bundled ones, which did.

    near       GRID in a kitchen, a tram street and babble at -5, 0 and 5 dB
    far        LibriSpeech in a factory, a train, wind, a restaurant and babble at -20 to 5 dB
    white      GRID in white noise at 60, 30, 20 and 10 dB: almost clean
    loud clean both in every recorded noise at 20 and 30 dB
    trouble    GRID at 5 dB in a kitchen, 20 or 40 dB quieter, offset by 0.1 or 1 of its peak, one click of ten times
               its peak, hum of 50 Hz as loud as speech; scores are of what is left, away from the click
    lips       near's cases again, for models that can do without: right lips, another clip's, late, another face's,
               mirrored, upside down, frozen, none
    sweep      GRID in white noise from 60 to 0 dB in steps of 2 dB

Rivals are a 100 Hz high-pass and noisereduce [Sainburg 2020], non-stationary (pip install noisereduce). The table shows
means of SI-SDR in dB and of STOI, the picture what each system gains or loses; everything is also in scores.csv.
"""

import argparse
import json
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a process: times compare

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from conditions import KINDS, RATE, Case, mixture_of, pictures, thinned
from scipy.signal import butter, sosfiltfilt

from pyro_avse.defaults import DEFAULT_INFERENCE
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.find import build_scheme
from pyro_avse.files import make_folder
from pyro_avse.metrics import score
from pyro_avse.weights.checkpoint import load_prior


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid, speech and noise")
    parser.add_argument("--left-out", type=Path, help="made by benchmarks/leave_one_out.py")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--models", nargs="+", default=["a_vae", "min_vae_v2"])
    parser.add_argument("--lip-models", nargs="+", default=["min_vae_v2", "min_vae_v3", "vae_mm"])
    parser.add_argument("--inference", default=DEFAULT_INFERENCE, help="a scheme")
    parser.add_argument("--settings", default="{}", help="of the scheme, JSON")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="of GRID")
    parser.add_argument("--clips", type=int, default=3, help="a speaker")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    make_folder(args.out)
    cases = [case for kind in args.only for case in KINDS[kind](args)]
    if args.quick:
        cases = thinned(cases)
    if find_spec("noisereduce") is None:
        print("noisereduce is not installed: its column is left out (pip install noisereduce)")
        cases = [
            replace(c, systems=tuple(s for s in c.systems if s != "noisereduce")) for c in cases
        ]
    start = time.perf_counter()
    run = partial(
        scores_of,
        data=args.data,
        left_out=args.left_out,
        inference=args.inference,
        settings=args.settings,
    )
    with ProcessPoolExecutor(args.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = pd.DataFrame(row for rows in pool.map(run, cases, chunksize=4) for row in rows)
    rows.to_csv(args.out / "scores.csv", index=False)
    print(table(rows))
    print(
        f"\nlips, by the speaker's own priors: {lips_table(rows)}" * ("lips" in set(rows["kind"]))
    )
    times = rows[rows["seconds"] > 0].groupby("system")["seconds"].mean()
    print("\nseconds a second of sound:", {k: round(v, 3) for k, v in times.items()})
    apart = rows[rows["kind"] == "near"].groupby("system")["disagree"].mean().dropna()
    print("near's frames whose chains disagree:", {k: f"{v:.0%}" for k, v in apart.items()})
    print(f"{len(cases)} cases in {time.perf_counter() - start:.0f} s, {args.jobs} at a time")
    if "recording" in set(rows["system"]):
        picture(rows, args.out / "robustness.png")
    if "sweep" in set(rows["kind"]):
        sweep_picture(rows, args.out / "sweep.png")


# --- one case -------------------------------------------------------------------------------------------------------


@cache
def enhancer_of(
    model: str, speaker: str | None, left_out: Path | None, inference: str, settings: str
) -> Enhancer:
    """By the prior that did not hear the speaker, where there is one."""

    weights: str | Path = model
    if left_out is not None and speaker is not None:
        folder = left_out / speaker
        weights = folder / ("" if model == "a_vae" else "default") / model / "weights.safetensors"
    prior, stft = load_prior(weights)
    scheme = build_scheme(inference, json.loads(settings))
    return Enhancer(prior, scheme, stft=stft, device="cpu")


def high_passed(x: np.ndarray) -> np.ndarray:
    return sosfiltfilt(butter(4, 100, "highpass", fs=RATE, output="sos"), x)


def noise_reduced(x: np.ndarray) -> np.ndarray:
    import noisereduce

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return noisereduce.reduce_noise(y=x, sr=RATE, stationary=False)


def scores_of(
    case: Case, *, data: Path, left_out: Path | None, inference: str, settings: str
) -> list[dict[str, Any]]:
    """A row for every system."""
    clean, mixture = mixture_of(case, data)
    heard = np.ones(len(clean), bool)
    if case.condition == "a click":
        heard[len(clean) // 3 - 1024 : len(clean) // 3 + 1024] = False
    rows = []
    for system in case.systems:
        start, disagree = time.perf_counter(), float("nan")
        if system == "recording":
            speech = mixture
        elif system == "high-pass":
            speech = high_passed(mixture)
        elif system == "noisereduce":
            speech = noise_reduced(mixture)
        else:
            model = system.removesuffix(" without lips")
            enhancer = enhancer_of(model, case.speaker, left_out, inference, settings)
            seen = None if model != system or model == "a_vae" else pictures(case)
            found = enhancer(mixture, seen)
            speech = found.speech
            if found.chains_disagree is not None:
                disagree = float(found.chains_disagree.mean())
        seconds = (time.perf_counter() - start) * RATE / len(clean)
        if system == "recording":
            seconds = 0.0
        estimate = np.asarray(speech)[heard].astype(np.float64)
        scores = score(estimate, clean[heard], only=("si_sdr", "stoi"))
        rows.append(
            {
                "kind": case.kind,
                "condition": case.condition,
                "clip": case.clip.stem,
                "speaker": case.speaker,
                "noise": case.noise,
                "snr": case.snr,
                "system": system,
                "si_sdr": scores.si_sdr,
                "stoi": scores.stoi,
                "disagree": disagree,
                "seconds": seconds,
            }
        )
    return rows


# --- tables and pictures --------------------------------------------------------------------------------------------


def conditions(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """What the table has rows for: near and far by noise and as a whole, the others by condition."""
    found: list[tuple[str, str]] = []
    for kind in dict.fromkeys(rows["kind"]):
        if kind in ("near", "far"):
            found.append((kind, "all"))
            found += [(kind, noise) for noise in dict.fromkeys(rows[rows["kind"] == kind]["noise"])]
        elif kind not in ("lips", "sweep"):
            found += [(kind, c) for c in dict.fromkeys(rows[rows["kind"] == kind]["condition"])]
    return found


def of(rows: pd.DataFrame, kind: str, name: str) -> pd.DataFrame:
    rows = rows[rows["kind"] == kind]
    if name == "all":
        return rows
    return rows[rows["noise" if kind in ("near", "far") else "condition"] == name]


def means(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """Conditions down, systems across."""
    names = [
        s for s in dict.fromkeys(rows["system"]) if s in set(rows[rows["kind"] != "lips"]["system"])
    ]
    return pd.DataFrame(
        {
            f"{kind}: {name}": of(rows, kind, name).groupby("system")[score].mean()
            for kind, name in conditions(rows)
        }
    ).T.reindex(columns=names)


def table(rows: pd.DataFrame) -> str:
    si_sdr, stoi = means(rows, "si_sdr"), means(rows, "stoi")
    lines = [
        "SI-SDR in dB / STOI\n",
        "| | " + " | ".join(si_sdr.columns) + " |",
        "| --- " * (len(si_sdr.columns) + 1) + "|",
    ]
    for name in si_sdr.index:
        cells = [
            "" if np.isnan(a) else f"{a:.2f} / {b:.3f}"
            for a, b in zip(si_sdr.loc[name], stoi.loc[name], strict=True)
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def lips_table(rows: pd.DataFrame) -> str:
    """What each kind of lips adds to the same model without any."""
    rows = rows[rows["kind"] == "lips"]
    lines = ["| lips | " + " | ".join(dict.fromkeys(rows["system"])) + " |"]
    lines.append("| --- " * (rows["system"].nunique() + 1) + "|")
    mean = rows.groupby(["condition", "system"])[["si_sdr", "stoi"]].mean()
    for seen in dict.fromkeys(rows["condition"]):
        cells = []
        for system in dict.fromkeys(rows["system"]):
            less = mean.loc[(seen, system)] - mean.loc[("none", system)]
            cells.append(f"{less['si_sdr']:+.2f} dB / {less['stoi']:+.4f}")
        lines.append("| " + " | ".join([seen, *cells]) + " |")
    return "\n" + "\n".join(lines)


def picture(rows: pd.DataFrame, path: Path) -> None:
    """Two maps of what every system adds to the recording: blue is gain, red is harm."""
    fig, axes = plt.subplots(1, 2, figsize=(13, 0.34 * len(conditions(rows)) + 2), sharey=True)
    for axis, name, full, digits in (
        (axes[0], "si_sdr", 12.0, 1),
        (axes[1], "stoi", 0.12, 3),
    ):
        mean = means(rows, name)
        gain = mean.drop(columns="recording").sub(mean["recording"], axis=0)
        axis.imshow(gain, cmap="RdBu", vmin=-full, vmax=full, aspect="auto")
        axis.set_xticks(range(gain.shape[1]), gain.columns, rotation=30, ha="right")
        axis.set_yticks(range(len(gain)), gain.index)
        for (i, j), value in np.ndenumerate(gain.to_numpy()):
            if np.isfinite(value):
                dark = abs(value) > 0.6 * full
                axis.text(
                    j,
                    i,
                    f"{value:+.{digits}f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
        axis.set_title({"si_sdr": "SI-SDR gained, dB", "stoi": "STOI gained"}[name])
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def sweep_picture(rows: pd.DataFrame, path: Path) -> None:
    """Scores against the noise: nothing jumps."""
    rows = rows[rows["kind"] == "sweep"]
    fig, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, name, label in ((axes[0], "si_sdr", "SI-SDR, dB"), (axes[1], "stoi", "STOI")):
        for system, of_one in rows.groupby("system", sort=False):
            mean = of_one.groupby("snr")[name].mean()
            axis.plot(
                mean.index,
                mean,
                label=system,
                marker=".",
                ls="--" if system == "recording" else "-",
            )
        axis.set_xlabel("SNR of white noise, dB")
        axis.set_ylabel(label)
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0].legend()
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


if __name__ == "__main__":
    main()
