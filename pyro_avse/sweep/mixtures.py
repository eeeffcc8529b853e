"""One clip in one noise at one SNR, with good or bad lips: made from a seed, and made again from a row of results.

made = mix(mixture)                                     # from what the protocol says, and a seed
made = rebuild(read_protocol(folder), row)              # from the files, starts and gain noted in the row
made.clean, made.noisy, made.lips                       # the same samples either way
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool

from pyro_avse.data.lips.corrupt import Kind as Corruption
from pyro_avse.data.lips.corrupt import corrupt_lips
from pyro_avse.data.lips.lips import Lips, lips_on_grid
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import Audio, audio_from_array, load_audio
from pyro_avse.data.noise import Kind, Level, Segment, draw_segment, make_noise, noise_gain
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.typing import JSON, InputError

LIPS = ("clean", *get_args(Corruption), "mixed")
"""What a model may be shown; "mixed": each mixture has one of the corruptions, drawn from its seed."""


@dataclass(frozen=True)
class Mixture:
    """All that makes a mixture, but for the samples."""

    clip: str
    speaker: str | None
    audio: Path
    lips_file: Path | None
    fps: float | None
    """Of the lips, where their file does not say."""
    noise: str
    kind: Kind
    files: tuple[str, ...]
    """Recordings of the noise, relative to `data` or absolute; of kind "corpus", the mixture itself."""
    data: Path
    snr: float
    level: Level
    seed: int
    """Of the noise, the lips' corruption and the scheme."""
    lips: str
    """One of LIPS."""
    bad_lips: float
    """Share of the pictures that are bad where `lips` is not "clean"."""


@dataclass(frozen=True)
class Mixed:
    """A mixture's samples."""

    clean: Audio
    noisy: Audio
    lips: Lips | None
    bad: Bool[np.ndarray, "picture"] | None
    """Which of the lips' pictures were made bad; None for clean lips."""
    segment: Segment
    gain: float
    """Of the noise; NaN for a mixture that came with the corpus."""

    def bad_on_grid(self, times: np.ndarray) -> Bool[np.ndarray, "frame"] | None:
        """`bad` at `times`, in seconds, held as the pictures themselves are."""
        if self.bad is None or self.lips is None:
            return None
        seconds = len(self.noisy.waveform) / SAMPLE_RATE
        return lips_on_grid(Lips(self.bad, self.lips.fps), times, seconds)


def mix(mixture: Mixture) -> Mixed:
    """Choose the noise by the mixture's seed and mix.

    Raises InputError for sound or lips that cannot be read or have no level, lips that cannot be made bad; and for an
    SNR at which the corpus has no mixture of the clip, or one of another length.
    """
    if mixture.kind == "corpus":
        if not mixture.files:
            raise InputError(
                f"{mixture.audio} comes with no {mixture.noise} mixture of nominally {mixture.snr:g} dB: leave it out"
            )
        return _mixed(mixture, Segment("corpus", mixture.seed, mixture.files), math.nan)
    clean = _audio(mixture.audio).waveform
    recordings = {file: _audio(mixture.data / file).waveform for file in mixture.files}
    segment = draw_segment(mixture.kind, recordings, len(clean), mixture.seed)
    noise = make_noise(segment, recordings, len(clean))
    gain = noise_gain(clean, noise, mixture.snr, level=mixture.level)
    return _mixed(mixture, segment, gain)


def rebuild(protocol: JSON, row: Mapping[str, Any]) -> Mixed:
    """The mixture of a row of `load_results`, sample for sample, from what the row notes.

    Raises InputError where the corpus or the noise is no longer where the protocol says.
    """
    segment = Segment(
        protocol["noises"][row["noise"]]["kind"],
        int(row["seed"]),
        tuple(row["noise_files"]),
        tuple(int(start) for start in row["noise_starts"]),
        bool(row["noise_looped"]),
    )
    named = (row["clip"], row["noise"], float(row["snr"]), row["lips"])
    mixture = place_mixture(protocol, *named, seed=segment.seed, files=segment.files)
    return _mixed(mixture, segment, float(row["noise_gain"]))


def place_mixture(
    protocol: JSON,
    clip: str,
    noise: str,
    snr: float,
    lips: str,
    *,
    seed: int,
    files: tuple[str, ...],
) -> Mixture:
    """A mixture of a protocol, with its files where the protocol says they are."""
    data, entry = Path(protocol["data"]), protocol["clips"][clip]
    return Mixture(
        clip=clip,
        speaker=entry["speaker"],
        audio=data / entry["audio"],
        lips_file=None if entry["lips"] is None else data / entry["lips"],
        fps=entry["fps"],
        noise=noise,
        kind=protocol["noises"][noise]["kind"],
        files=files,
        data=data,
        snr=snr,
        level=protocol["level"],
        seed=seed,
        lips=lips,
        bad_lips=protocol["bad_lips"],
    )


def _mixed(mixture: Mixture, segment: Segment, gain: float) -> Mixed:
    clean = _audio(mixture.audio)
    if segment.kind == "corpus":
        noisy = _own(mixture.data / segment.files[0], clean)
    else:
        recordings = {file: _audio(mixture.data / file).waveform for file in segment.files}
        noise = make_noise(segment, recordings, len(clean.waveform))
        noisy = audio_from_array(clean.waveform + noise * gain, SAMPLE_RATE)
    if mixture.lips_file is None:
        return Mixed(clean, noisy, None, None, segment, gain)
    lips = _lips(mixture.lips_file, mixture.fps)
    if mixture.lips == "clean":
        return Mixed(clean, noisy, lips, None, segment, gain)
    rng = np.random.default_rng([mixture.seed, 1])  # not the noise's
    kinds = get_args(Corruption) if mixture.lips == "mixed" else (mixture.lips,)
    kind = kinds[mixture.seed % len(kinds)]
    seen, bad = corrupt_lips(lips, kind, rng, fraction=mixture.bad_lips)
    return Mixed(clean, noisy, seen, bad, segment, gain)


def _own(path: Path, clean: Audio) -> Audio:
    """A mixture that came with the corpus, in the unit of its clean sound's waveform."""
    heard = _audio(path)
    if len(heard.waveform) != len(clean.waveform):
        raise InputError(
            f"{path} has {len(heard.waveform)} samples at 16 kHz, its clean sound {len(clean.waveform)}: copy it again"
        )
    return audio_from_array(heard.waveform * (heard.peak / clean.peak), SAMPLE_RATE)


def _audio(path: Path) -> Audio:
    return _load_audio(path, _state(path))


def _lips(path: Path, fps: float | None) -> Lips:
    return _load_lips(path, fps, _state(path))


def _state(path: Path) -> tuple[int, int] | None:
    """Changes with the file."""
    status = path.stat() if path.is_file() else None
    return status and (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)  # babble's voices come back; a long noise is read once
def _load_audio(path: Path, state: tuple[int, int] | None) -> Audio:
    return load_audio(path)


@lru_cache(maxsize=4)
def _load_lips(path: Path, fps: float | None, state: tuple[int, int] | None) -> Lips:
    return load_lips(path, fps=fps)
