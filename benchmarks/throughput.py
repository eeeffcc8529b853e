"""Clips a second against batch size, milliseconds a frame against length, and memory of a long file in blocks.

The default model's bundled weights on coloured noise, which costs what speech costs; lips where the model looks. Three
tables, each scheme with the same few EM iterations, so that ratios, not seconds, are what to read:

    batch     clips of 3 s, 1 to 16 at once: clips a second, real-time factor
    length    one clip of 3, 12, 48, 192 s as a whole: milliseconds a frame, against the shortest
    memory    a file of --minutes enhanced by `enhance_blocks` in blocks of --block seconds, and one of two blocks: peak
              resident memory (Linux) of a process each; without lips, which would add 6.4 MiB a minute to it

    python benchmarks/throughput.py
    python benchmarks/throughput.py --batches 1,2 --lengths 3,6 --minutes 1 --iterations 2      # quick
    python benchmarks/throughput.py --minutes 60 --skip batch,length
    python benchmarks/throughput.py --device cuda --batches 1,16,64,256
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.media.audio import audio_from_array
from pyro_avse.data.media.blocks import open_blocks
from pyro_avse.data.media.saving import save_pieces
from pyro_avse.defaults import DEFAULT_MODEL
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.find import find_device, find_scheme
from pyro_avse.enhancement.long import OVERLAP, enhance_blocks
from pyro_avse.weights.checkpoint import load_prior

FPS = 25.0


def main() -> None:
    arguments = parse()
    if arguments.only_file is not None:
        enhance_file(arguments)
        return
    device = find_device(arguments.device)
    row: dict[str, Any] = {"threads": torch.get_num_threads(), "device": str(device)}
    row["iterations"] = arguments.iterations
    print(f"{row['threads']} threads, {device}, {arguments.iterations} EM iterations")
    for scheme in arguments.schemes.split(","):
        enhancer = make_enhancer(arguments, scheme)
        found: dict[str, Any] = {}
        if "batch" not in arguments.skip:
            found["clips_per_second"] = by_batch(enhancer, arguments, scheme)
        if "length" not in arguments.skip:
            found["ms_per_frame"] = by_length(enhancer, arguments, scheme)
        if "memory" not in arguments.skip:
            found["memory"] = by_file(arguments, scheme)
        row[scheme] = found
    print(json.dumps(row))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--schemes", default="vem,mcem")
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument("--lengths", default="3,12,48,192", help="seconds")
    parser.add_argument("--minutes", type=float, default=10, help="of the long file")
    parser.add_argument("--block", type=float, default=30, help="seconds")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip", default="", help="batch, length, memory")
    parser.add_argument("--only-file", type=Path, help="what `memory` starts")
    return parser.parse_args()


def make_enhancer(arguments: argparse.Namespace, scheme: str) -> Enhancer:
    prior, stft = load_prior(DEFAULT_MODEL)
    built = find_scheme(scheme, iterations=arguments.iterations)
    return Enhancer(prior, built, stft=stft, device=arguments.device)


def by_batch(enhancer: Enhancer, arguments: argparse.Namespace, scheme: str) -> dict[str, float]:
    """Clips a second, of clips of 3 s."""
    found: dict[str, float] = {}
    clips = [make_recording(enhancer, 3.0, seed) for seed in range(max(numbers(arguments.batches)))]
    print(f"\n{scheme}: clips of 3 s   clips/s   x real time   against one at a time")
    for size in numbers(arguments.batches):
        seconds = median(enhancer, clips[:size], arguments.repeats)
        rate = found[str(size)] = size / seconds
        ratio = rate / next(iter(found.values()))
        print(f"{size:>14} at once {rate:9.2f} {seconds / size / 3:13.3f} {ratio:15.2f}")
    return found


def by_length(enhancer: Enhancer, arguments: argparse.Namespace, scheme: str) -> dict[str, float]:
    """Milliseconds a frame of one clip as a whole."""
    found: dict[str, float] = {}
    print(f"\n{scheme}: one clip      ms a frame   x real time   against the shortest")
    for length in numbers(arguments.lengths):
        clip = make_recording(enhancer, length, 0)
        seconds = median(enhancer, [clip], arguments.repeats)
        each = found[str(length)] = 1e3 * seconds / len(clip.spectrum)
        ratio = each / next(iter(found.values()))
        print(f"{length:>14} s {each:14.3f} {seconds / length:13.3f} {ratio:15.2f}")
    return found


def by_file(arguments: argparse.Namespace, scheme: str) -> dict[str, float]:
    """Peak memory in MiB of processes that enhance a file of two blocks, and one of many."""
    found: dict[str, float] = {}
    print(f"\n{scheme}: blocks of {arguments.block:g} s      peak MiB   x real time")
    for minutes in (2 * arguments.block / 60 - 0.02, arguments.minutes):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "noisy.wav"
            write_noise(path, 60 * minutes)
            options = [f"--{n}={getattr(arguments, n)}" for n in ("block", "iterations", "device")]
            command = [sys.executable, __file__, *options, "--schemes", scheme]
            ran = subprocess.run(
                [*command, "--only-file", str(path)], check=True, capture_output=True, text=True
            )
        memory, seconds = json.loads(ran.stdout)
        found[f"{minutes:.3g} minutes"] = memory
        print(f"{minutes:>14.3g} minutes {memory:14.0f} {seconds / 60 / minutes:13.3f}")
    return found


def enhance_file(arguments: argparse.Namespace) -> None:
    """Enhance a file block by block; prints this process's peak memory and its seconds."""
    path = arguments.only_file
    enhancer = make_enhancer(arguments, arguments.schemes)
    blocks = open_blocks(path, seconds=arguments.block, overlap=OVERLAP)
    start = time.perf_counter()
    pieces = (piece.speech for piece in enhance_blocks(enhancer, blocks))
    save_pieces(path.with_name("clean.wav"), pieces, blocks.sample_rate)
    seconds = time.perf_counter() - start
    print(json.dumps([peak_memory(), seconds]))


def peak_memory() -> float:
    """MiB that this process had resident at most; getrusage would count what the process that started it had."""
    (line,) = (li for li in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in li)
    return int(line.split()[1]) / 1024


def make_recording(enhancer: Enhancer, seconds: float, seed: int) -> Recording:
    """Coloured noise, and lips where the model looks."""
    sound = audio_from_array(noise(round(16000 * seconds), np.random.default_rng(seed)), 16000)
    return enhancer.prepare(sound, make_lips(enhancer, seconds))


def make_lips(enhancer: Enhancer, seconds: float) -> Lips | None:
    if not enhancer.prior.uses_lips:
        return None
    rng = np.random.default_rng(0)
    shape = round(FPS * seconds), 67, 67
    return Lips(rng.integers(0, 256, shape, dtype=np.uint8), FPS)


def noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    white = rng.standard_normal(num_samples + 8)
    return np.convolve(white, np.hanning(9), mode="valid")


def write_noise(path: Path, seconds: float) -> None:
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 16000, 1, subtype="PCM_16") as file:
        for _ in range(int(seconds)):
            file.write(0.1 * noise(16000, rng))


def median(enhancer: Enhancer, clips: list[Recording], repeats: int) -> float:
    """Seconds of a batch, after one to warm up; synthesis brings the result to the CPU, which waits for it."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        enhancer.batch(clips)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
