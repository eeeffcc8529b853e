"""How much the bundled models and schemes improve noisy GRID clips: the tables of docs/RESULTS.md.

Every clip of grid/test is mixed with every noise at every SNR (a stretch drawn from a seed of its own), enhanced and
scored; printed are mean improvements, output minus input. A score that cannot be had is left out of its mean, and
counted.

    python benchmarks/enhancement_table.py --data ../shared/data
"""

import argparse
import json
import os
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"si_sdr": 2, "sdr": 2, "pesq_nb": 3, "pesq_wb": 3, "stoi": 4}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="holds grid/ and noise/")
    parser.add_argument("--split", default="test")
    parser.add_argument("--models", default="a_vae,v_vae,min_vae_v2", help="names or weight files")
    parser.add_argument("--noises", default="street_tram,kitchen,white")
    parser.add_argument("--snrs", default="-5,0,5", help="dB")
    parser.add_argument("--inference", default="vem", help="scheme for all models")
    parser.add_argument("--settings", default="{}", help="of the scheme, a JSON object")
    parser.add_argument("--clips", type=int, help="only so many, spread over the split")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()

    from pyro_avse.data.corpus import find_utterances

    clips = find_utterances(args.data / "grid", args.split)
    clips = clips[:: len(clips) // args.clips] if args.clips else clips
    tasks = [
        (model, clip, noise, float(snr), args.data, args.inference, args.settings)
        for model in args.models.split(",")
        for noise in args.noises.split(",")
        for snr in args.snrs.split(",")
        for clip in clips
    ]
    start = time.perf_counter()
    with ProcessPoolExecutor(args.jobs, initializer=one_thread) as pool:
        rows = list(pool.map(run, tasks))
    seconds = time.perf_counter() - start
    print(f"{len(clips)} clips of grid/{args.split}, {len(rows)} runs in {seconds:.0f} s\n")
    print("| model | noise | SNR dB | " + " | ".join(NAMES) + " | mean r(audio) | seconds a clip |")
    print("| --- " * (len(NAMES) + 5) + "|")
    for model in args.models.split(","):
        mine = [row for row in rows if row["model"] == model]
        print_row(model, "all", "all", mine)
        for noise in args.noises.split(","):
            print_row(model, noise, "all", [row for row in mine if row["noise"] == noise])
        for snr in args.snrs.split(","):
            print_row(model, "all", snr, [row for row in mine if row["snr"] == float(snr)])


def run(task: tuple[str, Any, str, float, Path, str, str]) -> dict[str, Any]:
    """One clip in one noise, enhanced by one model."""
    from pyro_avse.data.audio import audio_from_array, load_audio
    from pyro_avse.data.lips import load_lips
    from pyro_avse.data.noise import mix_at_snr, take_noise, white_noise
    from pyro_avse.measure import measure

    model, clip, noise, snr, data, inference, settings = task
    clean = load_audio(clip.audio)
    rng = np.random.default_rng([zlib.crc32(f"{clip.name} {noise}".encode()), int(snr + 100)])
    count = len(clean.waveform)
    if noise == "white":
        segment = white_noise(count, rng)
    else:
        segment, _ = take_noise(load_audio(data / "noise" / f"{noise}.flac").waveform, count, rng)
    mixture, _ = mix_at_snr(clean.waveform, segment, snr)
    enhancer = load(model, inference, settings)
    recording = enhancer.prepare(audio_from_array(mixture, 16000), load_lips(clip.lips))
    result, row = measure(enhancer, recording, model, inference, clean, seed=0)
    row |= {"noise": noise, "snr": snr, "responsibility": float(result.responsibilities[0].mean())}
    return row


@cache
def load(model: str, inference: str, settings: str) -> Any:
    from pyro_avse.checkpoint import load_prior
    from pyro_avse.enhancer import Enhancer, find_scheme

    prior, stft = load_prior(model)
    scheme = find_scheme(inference, **json.loads(settings))
    return Enhancer(prior, scheme, stft=stft, device="cpu")


def print_row(model: str, noise: str, snr: str, rows: list[dict[str, Any]]) -> None:
    cells = []
    for name, digits in NAMES.items():
        gains = [
            row["output"][name] - row["input"][name]
            for row in rows
            if None not in (row["output"][name], row["input"][name])
        ]
        missing = "" if len(gains) == len(rows) else f" (n={len(gains)}/{len(rows)})"
        cells.append(f"{np.mean(gains):+.{digits}f}{missing}")
    responsibility = np.mean([row["responsibility"] for row in rows])
    seconds = np.mean([row["seconds"] for row in rows])
    print(
        f"| {model} | {noise} | {snr} | {' | '.join(cells)} | {responsibility:.2f} | {seconds:.1f} |"
    )


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
