"""Processor time of one thread for a second of sound, warm: ours beside the rivals that are installed, in one run.

    python benchmarks/real_time_factor.py
    python benchmarks/real_time_factor.py --seconds 3 10 60 --models a_vae min_vae_v2

Every system enhances the same mixture (the bundled talker in the workshop's noise at 0 dB, repeated up to --seconds),
once to warm up and then --repeats times; the table has the least process time, which counts all threads, divided by
the seconds of sound, and its ratio to the first row. Ours are the default scheme without a guide and with the model's
own, on lips where the model looks, and a stream by a causal guide where the model has one. Rivals are those of
`pyro_avse.rivals`; one that is not installed or trained is named at the end, with what it lacks.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr, take_noise
from pyro_avse.defaults import DEFAULT_INFERENCE
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.find import find_scheme
from pyro_avse.enhancement.live import live_scheme
from pyro_avse.rivals.find import RIVALS, find_rival
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior
from pyro_avse.weights.guides import load_guide, own_guide

RATE = 16000
System = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["min_vae_v2", "a_vae"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[3.0, 10.0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    absent: dict[str, str] = {}
    print("seconds of one thread for a second of sound, and against the first row")
    for length in args.seconds:
        mixture, lips = sound(length)
        systems: dict[str, System] = {}
        for model in args.models:
            systems |= ours(model, mixture, lips)
        for name in RIVALS:
            run = partial(find_rival(name), mixture, lips)
            try:
                run()
                systems[name] = run
            except InputError as reason:
                absent[name] = str(reason)
        first = None
        for name, run in systems.items():
            spent = least(run, args.repeats) / length
            first = first or spent
            print(f"{length:6g} s  {name:28} {spent:.3f}  {spent / first:.2f}", flush=True)
    for reason in absent.values():
        print("left out,", reason)


def sound(length: float) -> tuple[np.ndarray, Lips]:
    """The mixture and its lips."""
    clean = load_audio(CLIPS / "talker.flac").waveform
    clean = np.resize(clean, round(length * RATE))
    noise, _ = take_noise(
        load_audio(CLIPS / "workshop.flac").waveform, len(clean), np.random.default_rng(0)
    )
    mixture = mix_at_snr(clean, noise, 0)[0]
    with np.load(CLIPS / "talker.npz") as shown:
        fps = float(shown["fps"])
        frames = np.resize(shown["lips"], (round(length * fps), *shown["lips"].shape[1:]))
    return (mixture / np.abs(mixture).max()).astype(np.float32), Lips(frames, fps)


def ours(model: str, mixture: np.ndarray, lips: Lips) -> dict[str, System]:
    """The default scheme on a recording, without guide and with, and a stream."""
    found: dict[str, System] = {}
    prior, stft = load_prior(model)
    seen = lips if prior.uses_lips else None
    for guide, title in ((None, model), (prior.noise_guide, f"{model}, guide")):
        if guide is None and title != model:
            continue
        scheme = find_scheme(DEFAULT_INFERENCE)
        enhancer = Enhancer(prior, scheme, stft=stft, guide=guide, device="cpu")
        found[title] = lambda enhancer=enhancer: enhancer(mixture, seen)
    path = own_guide(model, causal=True)
    if path is not None:
        causal = load_guide(path, prior, stft, causal=True)
        online = Enhancer(prior, live_scheme(), stft=stft, guide=None, device="cpu")

        def live() -> None:
            stream = online.stream(RATE, guide=causal)
            for block in np.array_split(mixture, max(1, len(mixture) // 1600)):
                stream.push(block)
            stream.flush()

        found[f"{model}, live"] = live
    return found


def least(run: System, repeats: int) -> float:
    """Seconds of this process, all its threads."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times[1:])


if __name__ == "__main__":
    main()
