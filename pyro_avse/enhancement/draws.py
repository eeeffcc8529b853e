"""Noise that the program draws (models/drawn_noise.py), as sound."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.sounded import sounded_noise
from pyro_avse.stft import STFT

Sound = Float32[np.ndarray, "sample"]


def draw_noises(
    count: int,
    seconds: float,
    *,
    speech: Path | None = None,
    snr: float = 0.0,
    voices: Sequence[Path] = (),
    seed: int = 0,
) -> Iterator[tuple[str, Sound]]:
    """("noise_1", its samples at 16 kHz, peak 1), ..., and with `speech` ("mixture_1", ...) at an SNR in dB.

    All files of `voices` talk at once in every noise. `speech` sets the length. Raises InputError as `load_audio`.
    """
    stft = STFT()
    clean = None if speech is None else load_audio(speech).waveform
    samples = round(seconds * SAMPLE_RATE) if clean is None else len(clean)
    talk = None
    if voices:
        sounds = [np.resize(load_audio(path).waveform, samples) for path in voices]
        talk = stft.analyse(torch.from_numpy(np.sum(sounds, 0).astype(np.float32)))
    for number in range(1, count + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number - 1)
            drawn = sounded_noise(
                stft.num_frames(samples), stft, voices=None if talk is None else talk[None]
            )
        noise = stft.synthesise(drawn.noise[0], samples).numpy()
        yield f"noise_{number}", (noise / np.abs(noise).max()).astype(np.float32)
        if clean is not None:
            mixture, _ = mix_at_snr(clean, noise, snr)
            yield f"mixture_{number}", (mixture / np.abs(mixture).max()).astype(np.float32)
