"""Videos as they come from a camera, in noise, enhanced from end to end by the command line: sound, face and lips.

Every video of the folder gets noise on its sound (its pictures copied), is enhanced from that one file into another
video, and is scored against its own sound; one figure of spectrograms for all.

    python benchmarks/real_videos.py --videos ../shared/data/grid/video --noise ../shared/data/noise/street_tram.flac \
        --out runs/videos
"""

import argparse
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.saving import save_audio
from pyro_avse.data.media.video import copy_pictures
from pyro_avse.data.noise import mix_at_snr, take_noise
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.files import make_folder
from pyro_avse.plots import draw_spectrogram, save_figure

SCORES = {"si_sdr": 1, "sdr": 1, "pesq_nb": 2, "pesq_wb": 2, "stoi": 2, "estoi": 2}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--noise", type=Path, required=True, help="a recording")
    parser.add_argument("--snr", type=float, default=0.0, help="dB")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    videos = sorted(path for path in args.videos.iterdir() if path.suffix == ".mpg")
    recording = load_audio(args.noise).waveform
    make_folder(args.out)
    figure = Figure(figsize=(12, 1.8 * len(videos)), layout="constrained")
    rows = figure.subplots(len(videos), 3, squeeze=False)
    print("| video | " + " | ".join(SCORES) + " |\n" + "| --- " * (len(SCORES) + 1) + "|")
    for video, axes in zip(videos, rows, strict=True):
        clean = load_audio(video)
        rng = np.random.default_rng(zlib.crc32(video.name.encode()))
        noise, _ = take_noise(recording, len(clean.waveform), rng)
        mixture, _ = mix_at_snr(clean.waveform, noise, args.snr)
        noisy, enhanced = (args.out / f"{video.stem}_{what}.mp4" for what in ("noisy", "enhanced"))
        reference = args.out / f"{video.stem}_clean.wav"
        save_audio(reference, 0.9 * clean.waveform, SAMPLE_RATE)
        copy_pictures(noisy, video, 0.9 * mixture / np.abs(mixture).max(), SAMPLE_RATE)
        command = ["enhance", noisy, "-o", enhanced, "--reference", reference, "--json"]
        done = subprocess.run(
            [sys.executable, "-c", "from pyro_avse.cli import main; main()", *map(str, command)],
            check=True,
            stdout=subprocess.PIPE,
        )
        row = json.loads(done.stdout)
        cells = [
            f"{row['input'][name]:.{digits}f} -> {row['output'][name]:.{digits}f}"
            for name, digits in SCORES.items()
        ]
        print(f"| {video.stem} | " + " | ".join(cells) + " |", flush=True)
        for axis, (what, path) in zip(
            axes, {"clean": reference, "noisy": noisy, "enhanced": enhanced}.items(), strict=True
        ):
            draw_spectrogram(axis, load_audio(path).waveform, f"{video.stem}, {what}")
    save_figure(figure, args.out / "videos.png")


if __name__ == "__main__":
    main()
