"""Seconds from the shell's prompt to the end: `pyro-avse --help`, and `enhance` of a three-second clip with its lips.

Each in a fresh process, imports included, beside a bare Python and one that imports torch, in the same run; the clip is
the bundled talker in the workshop's noise. Median of repeats after one run to warm the disk's cache.

    python benchmarks/cold_start.py
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.saving import save_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.enhancement.demo import CLIPS

REPEATS, SAMPLES = 5, 48000
MAIN = "from pyro_avse.cli import main; main()"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        noisy = Path(folder) / "noisy.wav"
        clean, noise = (
            load_audio(CLIPS / f"{name}.flac").waveform[:SAMPLES] for name in ("talker", "workshop")
        )
        mixed, _ = mix_at_snr(clean, noise, 0)
        save_audio(noisy, 0.9 * mixed / np.abs(mixed).max(), 16000)
        with np.load(CLIPS / "talker.npz") as lips:
            frames = round(SAMPLES / 16000 * float(lips["fps"]))
            np.savez(Path(folder) / "lips.npz", lips=lips["lips"][:frames], fps=lips["fps"])
        enhance = ["-c", MAIN, "enhance", noisy, "--lips", noisy.with_name("lips.npz")]
        commands = {
            "python": ["-c", ""],
            "import_torch": ["-c", "import torch"],
            "help": ["-c", MAIN, "--help"],
            "enhance": [*enhance, "-o", noisy.with_name("out.wav")],
        }
        seconds = {name: median_seconds(command) for name, command in commands.items()}
    print(f"{os.cpu_count()} cores, median of {REPEATS}")
    for name, found in seconds.items():
        print(f"{name:14s} {found:6.2f} s  {found / seconds['import_torch']:.2f} x import torch")
    print(json.dumps(seconds))


def median_seconds(arguments: list[str | Path]) -> float:
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
