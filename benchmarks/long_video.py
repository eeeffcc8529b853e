"""Time and memory of `enhance` by the length of a video: a talking face of 1920 x 1080, 25 pictures a second, 48 kHz
stereo, made of one clip that is enlarged and repeated.

    python benchmarks/long_video.py --clip ../shared/data/grid/video/s1_bgaa7s.mpg --minutes 1 10 60 --out runs/long

Peak memory is the resident set of the process that enhances, in MB of 10^6 bytes; seconds are those of its CPU.
"""

import argparse
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr

from pyro_avse.data.media.audio import load_audio
from pyro_avse.files import make_folder

WIDTH, HEIGHT, FPS, RATE = 1920, 1080, 25, 48000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clip", type=Path, required=True, help="a video of a face that talks")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--codec", default="libx264", help="or mpeg4, which is decoded faster")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    make_folder(args.out)
    print("| video | CPU seconds | peak memory |\n| --- | --- | --- |")
    for minutes in args.minutes:
        video = args.out / f"{minutes:g}_minutes.mp4"
        make_video(video, args.clip, 60 * minutes, args.codec)
        command = ["enhance", video, "-o", args.out / f"{minutes:g}_enhanced.mp4"]
        process = subprocess.Popen(
            [sys.executable, "-c", "from pyro_avse.cli import main; main()", *map(str, command)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{video}: enhance ended with {os.waitstatus_to_exitcode(status)}")
        seconds, megabytes = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6
        print(f"| {60 * minutes:g} s | {seconds:.0f} | {megabytes:.0f} MB |", flush=True)


def make_video(path: Path, clip: Path, seconds: float, codec: str) -> None:
    """The clip's pictures are encoded once, and their packets repeated; its sound is encoded from end to end."""
    audio = load_audio(clip)
    voice = soxr.resample(audio.original, audio.sample_rate, RATE)
    voice = np.stack([voice, 0.5 * voice])
    with av.open(str(clip)) as old, av.open(str(path), "w") as new:
        seen: Any = new.add_stream(codec, rate=FPS, options={"preset": "fast", "bf": "0"})
        seen.width, seen.height, seen.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        seen.bit_rate = 4_000_000
        heard: Any = new.add_stream("aac", rate=RATE, layout="stereo")
        pictures: list[Any] = []
        for number, frame in enumerate(old.decode(video=0)):
            larger = frame.reformat(WIDTH, HEIGHT, "yuv420p")
            larger.pts, larger.time_base = number, Fraction(1, FPS)
            pictures += seen.encode(larger)
        pictures += seen.encode(None)
        count = len(pictures)
        for second in range(round(seconds)):
            for number in range(second * FPS, (second + 1) * FPS):
                packet = av.Packet(bytes(pictures[number % count]))
                packet.pts = packet.dts = number
                packet.time_base, packet.stream = Fraction(1, FPS), seen
                packet.is_keyframe = pictures[number % count].is_keyframe
                new.mux(packet)
            at = np.arange(second * RATE, (second + 1) * RATE) % voice.shape[1]
            sound = av.AudioFrame.from_ndarray(np.take(voice, at, axis=1), "fltp", "stereo")
            sound.sample_rate, sound.pts = RATE, second * RATE
            sound.time_base = Fraction(1, RATE)
            new.mux(heard.encode(sound))
        new.mux(heard.encode(None))


if __name__ == "__main__":
    main()
