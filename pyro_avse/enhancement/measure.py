"""One enhancement, timed and scored: a row of the tables."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pyro_avse.data.media.audio import Audio
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.enhanced import Enhanced, mix
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.metrics import Scores, score
from pyro_avse.typing import JSON, InputError

TITLES = {
    "si_sdr": ("SI-SDR dB", 1),
    "sdr": ("SDR dB", 1),
    "pesq_wb": ("PESQ wb", 2),
    "pesq_nb": ("PESQ nb", 2),
    "stoi": ("STOI", 2),
    "estoi": ("ESTOI", 2),
}
"""Of the scores, in tables, with their decimals."""
FEW = 16
"""Samples at 16 kHz, a millisecond, by which a reference may be longer or shorter: files are cut to whole blocks."""


def measure(
    enhancer: Enhancer,
    recording: Recording,
    model: str,
    inference: str,
    clean: Audio | None,
    seed: int,
    *,
    before: Scores | None = None,
    strength: float = 1.0,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[Enhanced, JSON]:
    """Enhance a recording; the result, and its row: time, and scores before and after where `clean` is given.

    The scores after are of `Enhanced.mix(strength)`; `before` are the recording's own, where they are already known.
    `iterations` is the length of the objective: of `nuts` its draws, of `auto_normal` its steps. `progress` is that of
    `Enhancer.separate`.
    """
    start = time.perf_counter()
    result = enhancer.separate(recording, seed=seed, progress=progress)
    seconds = time.perf_counter() - start
    audio = recording.audio
    row: JSON = {
        "model": model,
        "inference": inference,
        "iterations": len(result.objective),
        "seconds": seconds,
        "real_time_factor": seconds * SAMPLE_RATE / len(audio.waveform),
        "input": None,
        "output": None,
    }
    if clean is not None:
        row["input"] = (before or score(audio.waveform, clean.waveform)).as_dict()
        heard = mix(audio.waveform, result.speech_16k, strength)
        row["output"] = score(heard, clean.waveform).as_dict()
    return result, row


def check_same_length(clean: Audio, mixture: Audio) -> None:
    """Refuse a reference that is not of the mixture's length, up to `FEW` samples at 16 kHz."""
    ours, theirs = len(mixture.waveform), len(clean.waveform)
    if abs(ours - theirs) > FEW:
        raise InputError(
            f"{clean.path} lasts {theirs / SAMPLE_RATE:.3f} s, the recording {ours / SAMPLE_RATE:.3f} s"
            f" ({theirs} and {ours} samples at 16 kHz): give the clean speech of the same clip"
        )


def of_same_length(clean: Audio, mixture: Audio) -> Audio:
    """A reference with the mixture's samples: a few too many are cut, a few too few are zeros.

    Raises InputError as `check_same_length`.
    """
    check_same_length(clean, mixture)
    samples = len(mixture.waveform)
    if len(clean.waveform) == samples:
        return clean
    fitted = np.pad(clean.waveform[:samples], (0, max(0, samples - len(clean.waveform))))
    return replace(clean, waveform=fitted)
