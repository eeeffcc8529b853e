"""Clean speech as the frames that a prior is trained on: |STFT|^2 and the lips seen at each.

Every clip loses its offset (DC) and is brought to the level that recordings have at test time, or to a peak of 1.
Digital silence would drive the decoder's
log-variance to minus infinity there, and a prior so trained suppresses real speech; so pink noise is added at a stated
level under each clip's peak.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import soxr
import torch
from torch import Tensor

from pyro_avse.data.corpora.corpus import Utterance
from pyro_avse.data.lips.corrupt import Kind, corrupt_lips
from pyro_avse.data.lips.lips import lips_on_grid
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.level import speech_level
from pyro_avse.data.noise import add_noise_floor
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError


@dataclass(frozen=True)
class Frames:
    """Training data, all clips one after another."""

    power: Tensor
    """|STFT|^2, (frame, freq) float32."""
    lips: Tensor | None
    """(frame, 67, 67) uint8; None where the model does not see them."""
    ends: tuple[int, ...] = ()
    """Where each clip ends: for priors that couple frames."""

    def __len__(self) -> int:
        return len(self.power)


def load_frames(
    utterances: Iterable[Utterance],
    stft: STFT,
    *,
    with_lips: bool,
    noise_floor_db: float | None,
    seed: int,
    level: Literal["peak", "speech"] = "peak",
    bad_lips: float = 0.0,
) -> Frames:
    """Read clips into memory; where lips are wanted, clips without them are left out.

    Args:
        noise_floor_db: pink noise this many dB under each clip's peak; None adds none.
        seed: of that noise; each clip's also depends on its name, not on its place.
        level: what all clips have in common, floor included: a peak of 1, or a `speech_level` of 1, as at test time.
        bad_lips: the share of each clip's pictures that are made bad, by one of three kinds as its name has it.

    Raises:
        InputError: no clip is left.
    """
    power, lips, ends = [], [], [0]
    usable = (u for u in utterances if u.lips is not None or not with_lips)
    for spectrum, seen in load_clips(
        usable,
        stft,
        with_lips=with_lips,
        noise_floor_db=noise_floor_db,
        seed=seed,
        level=level,
        bad_lips=bad_lips,
    ):
        power.append(spectrum.abs().square())
        ends.append(ends[-1] + len(spectrum))
        if seen is not None:
            lips.append(seen)
    if not power:
        raise InputError(
            f"no clips{' with lips' if with_lips else ''} to train on in the data folders"
        )
    return Frames(torch.cat(power), torch.cat(lips) if with_lips else None, tuple(ends[1:]))


def load_clips(
    utterances: Iterable[Utterance],
    stft: STFT,
    *,
    with_lips: bool,
    noise_floor_db: float | None,
    seed: int,
    level: Literal["peak", "speech"] = "peak",
    bad_lips: float = 0.0,
    speeds: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each clip's STFT (frame, freq), complex, and its lips on the frames' grid where there are and are wanted.

    Arguments as in `load_frames`, and `speeds`: clips are played at exp(U(-speeds, speeds)) times their speed, lips
    too. Pitch and formants move along, as if others had spoken.
    """
    for utterance in utterances:
        waveform = load_audio(utterance.audio).waveform
        speed = 1.0
        if speeds:
            rng = np.random.default_rng([seed, zlib.crc32(utterance.name.encode()), 1])
            speed = math.exp(rng.uniform(-speeds, speeds))
            waveform = soxr.resample(waveform, 16000 * speed, 16000)
        waveform = waveform - waveform.mean()
        waveform = waveform / (np.abs(waveform).max() or 1.0)
        if noise_floor_db is not None:
            rng = np.random.default_rng([seed, zlib.crc32(utterance.name.encode())])
            waveform = add_noise_floor(waveform, noise_floor_db, rng)
        if level == "speech":
            waveform = waveform / (speech_level(waveform) or 1.0)
        spectrum = stft.analyse(torch.from_numpy(waveform))
        if not with_lips or utterance.lips is None:
            yield spectrum, None
            continue
        seen = load_lips(utterance.lips, fps=utterance.fps)
        if bad_lips:
            place = zlib.crc32(utterance.name.encode())
            kind = get_args(Kind)[place % len(get_args(Kind))]
            rng = np.random.default_rng([seed, place])
            seen, _ = corrupt_lips(seen, kind, rng, fraction=bad_lips)
        times = speed * stft.frame_times(len(spectrum))
        yield spectrum, torch.from_numpy(lips_on_grid(seen, times, speed * len(waveform) / 16000))
