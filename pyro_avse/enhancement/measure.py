"""One enhancement, timed and scored: a row of the tables."""

import time

from pyro_avse.data.media.audio import Audio
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.enhancer import Enhanced, Enhancer, Recording, mix
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
) -> tuple[Enhanced, JSON]:
    """Enhance a recording; the result, and its row: time, and scores before and after where `clean` is given.

    The scores after are of `Enhanced.mix(strength)`; `before` are the recording's own, where they are already known.
    `iterations` is the length of the objective: of `nuts` its draws, of `auto_normal` its steps.
    """
    start = time.perf_counter()
    result = enhancer.separate(recording, seed=seed)
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
    """Refuse a reference that is not of the mixture's length."""
    ours, theirs = (len(a.waveform) / SAMPLE_RATE for a in (mixture, clean))
    if ours != theirs:
        raise InputError(
            f"{clean.path} lasts {theirs:.3f} s, the recording {ours:.3f} s: give the clean speech of the "
            "same clip"
        )
