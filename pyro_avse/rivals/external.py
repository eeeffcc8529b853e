"""Anyone's speech enhancement as a row of our tables: a Python function, or a program.

    def enhance(samples, sample_rate):              # (sample,) float32 and Hz in, as many samples out
    def enhance(samples, sample_rate, lips):        # the same, and the lips (`Lips`) or None

    denoise {noisy} {out}                           # a program that reads one .wav and writes another, at any rate

What comes out may be late, as from a program that works in blocks: it is shifted by the lag, of at most 0.1 s, at
which it is most like the recording.
"""

import importlib
import inspect
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float, Float32
from scipy.signal import correlate

from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.errors import closest
from pyro_avse.typing import InputError

MOST_DELAY = 0.1
"""Seconds."""
FEW = 2
"""Samples at 16 kHz, by which a program at another rate may round a length."""


@dataclass(frozen=True)
class Program:
    """A command line with {noisy} and {out}; no shell sees it."""

    command: str

    def __call__(
        self, samples: Float32[np.ndarray, "sample"], sample_rate: int
    ) -> Float32[np.ndarray, "sample"]:
        """Raises InputError where it cannot be run, fails, writes nothing, no sound, or another length."""
        with tempfile.TemporaryDirectory() as folder:
            noisy, out = Path(folder) / "noisy.wav", Path(folder) / "out.wav"
            soundfile.write(noisy, samples, sample_rate, subtype="PCM_16")
            words = [
                word.replace("{noisy}", str(noisy)).replace("{out}", str(out))
                for word in shlex.split(self.command)
            ]
            try:
                done = subprocess.run(words, capture_output=True, check=False)
            except OSError as error:
                raise InputError(f"{words[0]} cannot be run: {error.strerror}") from None
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                raise InputError(
                    f"{words[0]} ended with status {done.returncode}: {said[-1] if said else 'it said nothing'}"
                )
            if not out.exists():
                raise InputError(f"{words[0]} wrote no {{out}}: see that it takes the file's name")
            heard = load_audio(out)
            speech = heard.waveform * np.float32(heard.peak)
        missing = len(samples) - len(speech)
        if abs(missing) > (0 if heard.sample_rate == sample_rate else FEW):
            raise InputError(
                f"{words[0]} wrote {len(speech)} samples at 16 kHz for {len(samples)}: it must write as many"
            )
        return np.pad(speech, (0, max(0, missing)))[: len(samples)]


def import_function(name: str) -> Callable[..., Any]:
    """What "module:function" names; the working folder's modules too. Raises InputError for none."""
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a user's module can raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{name}: module {module} cannot be imported ({reason})") from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(getattr(found, function, None)):
        functions = [key for key, value in vars(found).items() if inspect.isfunction(value)]
        raise InputError(f"{name}: no function {function!r} in it{closest(function, functions)}")
    return getattr(found, function)


def call(
    name: str,
    function: Callable[..., Any],
    samples: Float32[np.ndarray, "sample"],
    lips: Lips | None,
) -> Float32[np.ndarray, "sample"]:
    """What a rival makes of a recording at 16 kHz, its delay taken out.

    Raises InputError, which begins with the rival's name: it failed; samples of another number or kind, or not finite.
    """
    takes_lips = "lips" in inspect.signature(function).parameters
    try:
        more = (lips,) if takes_lips else ()
        found = np.asarray(function(samples.copy(), SAMPLE_RATE, *more))
    except InputError as refusal:
        raise InputError(f"{name}: {refusal}") from None
    except Exception as error:  # anyone's code can raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{name} failed: {reason}") from None
    if found.shape != samples.shape:
        raise InputError(
            f"{name} returned {found.shape} samples for {samples.shape}: it must return as many"
        )
    if found.dtype.kind != "f" or not np.isfinite(found).all():
        raise InputError(f"{name} returned {found.dtype}, not all finite numbers: check it")
    return in_time(found.astype(np.float32), samples)


def in_time(
    speech: Float[np.ndarray, "sample"], noisy: Float[np.ndarray, "sample"]
) -> Float[np.ndarray, "sample"]:
    """`speech` shifted by the lag of its largest correlation with `noisy`; zeros come in at the end."""
    most = min(round(MOST_DELAY * SAMPLE_RATE), len(noisy) - 1)
    centre = len(noisy) - 1
    steps = (np.diff(x, prepend=0) for x in (speech, noisy))  # hum is alike at any lag
    alike = correlate(*steps, method="fft")[centre - most : centre + most + 1]
    late = int(alike.argmax()) - most
    shifted = np.zeros_like(speech)
    if late >= 0:
        shifted[: len(speech) - late] = speech[late:]
    else:
        shifted[-late:] = speech[:late]
    return shifted
