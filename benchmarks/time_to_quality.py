"""Quality against seconds: what every scheme has reached after 3, 6, 12, 25, 50 and 100 iterations, and its best.

The yardstick is Monte Carlo EM by the papers' noise model and schedule, 40 random-walk steps an iteration (30 of them
burn-in), at 25 iterations, where it is best. A scheme has arrived when its mean SI-SDR is within 0.1 dB of the
yardstick's, or above, and its mean STOI within 0.005; the last table says after how many seconds, as a ratio to the
yardstick's, and at what real-time factor; and at how many iterations it is best, by SI-SDR plus 50 times STOI. All in
one run, on the same mixtures and seeds; seconds are those of `Enhancer`, without loading, one thread a run unless
--threads says otherwise.

    python benchmarks/time_to_quality.py --data ../shared/data/grid \
        --noise ../shared/data/noise/street_tram.flac,../shared/data/noise/kitchen.flac --out runs/time_to_quality
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr, take_noise
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL
from pyro_avse.enhancement.enhancer import Enhancer, audio_from_array
from pyro_avse.enhancement.measure import measure
from pyro_avse.files import make_folder
from pyro_avse.inference import MCEM, SCHEMES
from pyro_avse.metrics import score
from pyro_avse.models.nmf_noise import NOISE_MODELS
from pyro_avse.plots import save_figure
from pyro_avse.weights.checkpoint import load_prior

YARDSTICK = "mcem, papers' noise"
NEAR = {"si_sdr": 0.1, "stoi": 0.005}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="corpus; its valid split is used")
    parser.add_argument("--noise", required=True, help="recordings, by commas")
    parser.add_argument("--snr", default="-5,5", help="dB, by commas")
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument(
        "--schemes",
        default="vem,collapsed_vem,mcem,peem,gpeem,ldem,importance,amortised_vem",
        help="by commas; nuts and auto_normal start from all of mcem's iterations",
    )
    parser.add_argument("--iterations", default="3,6,12,25,50,100", help="by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of the figure")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    make_folder(args.out)

    prior, stft = load_prior(args.model)
    mixtures = make_mixtures(args)
    yardstick = MCEM(iterations=25, noise=NOISE_MODELS["paper"])
    rows = [run(YARDSTICK, yardstick, prior, stft, mixtures)]
    for name in args.schemes.split(","):
        whole = SCHEMES[name]()
        for iterations in map(int, args.iterations.split(",")):
            scheme = dataclasses.replace(whole, iterations=iterations)
            rows.append(run(name, scheme, prior, stft, mixtures))
    draw(rows, args.out / "time_to_quality.png")
    print(
        f"\n| scheme | arrives after s | over {YARDSTICK} | real-time factor | best after | SI-SDR, STOI there |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    arrivals = [arrival(rows, name) for name in dict.fromkeys(row["scheme"] for row in rows[1:])]
    print(
        json.dumps(
            {"model": args.model, "threads": args.threads, "rows": rows, "arrivals": arrivals}
        )
    )


def make_mixtures(args: argparse.Namespace) -> list[tuple[Any, Any, Any]]:
    """Clean speech, its lips and the mixture, of clips spread over the speakers, in every noise at every SNR."""
    by_speaker: dict[Path, list[Any]] = {}
    for utterance in find_utterances(args.data, "valid"):
        by_speaker.setdefault(utterance.audio.parent, []).append(utterance)
    in_turn = [u for group in zip(*by_speaker.values(), strict=False) for u in group]
    mixtures = []
    for number, utterance in enumerate(in_turn[: args.clips]):
        clean = load_audio(utterance.audio)
        lips = load_lips(utterance.lips, fps=utterance.fps) if utterance.lips else None
        for path in args.noise.split(","):
            rng = np.random.default_rng(number)
            noise, _ = take_noise(load_audio(path).waveform, len(clean.waveform), rng)
            for snr in map(float, args.snr.split(",")):
                mixed, _ = mix_at_snr(clean.waveform, noise, snr)
                mixtures.append((clean, lips, audio_from_array(mixed, 16000)))
    return mixtures


def run(name: str, scheme: Any, prior: Any, stft: Any, mixtures: list[Any]) -> dict[str, Any]:
    """Mean seconds and improvements over all mixtures, printed and returned."""
    enhancer = Enhancer(prior, scheme, stft=stft, device="cpu")
    found = []
    for clean, lips, mixture in mixtures:
        recording = enhancer.prepare(mixture, lips)
        before = score(mixture.waveform, clean.waveform)
        _, row = measure(enhancer, recording, "", name, clean, 0, before=before)
        gains = {key: row["output"][key] - row["input"][key] for key in NEAR}
        found.append({"seconds": row["seconds"], "rtf": row["real_time_factor"], **gains})
    mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    print(
        f"{name:16s} {scheme.iterations:4d} iterations  {mean['seconds']:6.2f} s  "
        f"SI-SDR {mean['si_sdr']:+.2f} dB  STOI {mean['stoi']:+.4f}",
        flush=True,
    )
    return {"scheme": name, "iterations": scheme.iterations, **mean}


def arrival(rows: list[dict[str, Any]], scheme: str) -> dict[str, Any]:
    """The first of a scheme's rows that is as good as the yardstick, printed and returned; None where none is."""
    goal = rows[0]
    arrived = [
        row
        for row in rows[1:]
        if row["scheme"] == scheme
        and all(row[key] >= goal[key] - near for key, near in NEAR.items())
    ]
    own = [row for row in rows[1:] if row["scheme"] == scheme]
    top = max(own, key=lambda row: row["si_sdr"] + 50 * row["stoi"])
    best = f"{top['iterations']} | {top['si_sdr']:+.2f}, {top['stoi']:+.3f}"
    default = " (default)" if scheme == DEFAULT_INFERENCE else ""
    if not arrived:
        print(f"| {scheme}{default} | never | | | {best} |")
        return {"scheme": scheme, "seconds": None, "ratio": None, "rtf": None}
    first = min(arrived, key=lambda row: row["seconds"])
    ratio = first["seconds"] / goal["seconds"]
    print(
        f"| {scheme}{default} | {first['seconds']:.2f} | {ratio:.2f} | {first['rtf']:.3f} | {best} |"
    )
    return {"scheme": scheme, "seconds": first["seconds"], "ratio": ratio, "rtf": first["rtf"]}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axis, key, title in zip(
        figure.subplots(1, 2), NEAR, ("SI-SDR improvement, dB", "STOI improvement"), strict=True
    ):
        for name in dict.fromkeys(row["scheme"] for row in rows):
            line = [(row["seconds"], row[key]) for row in rows if row["scheme"] == name]
            axis.plot(*zip(*line, strict=True), marker="o", label=name)
        axis.set(xscale="log", xlabel="seconds a clip", ylabel=title)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
