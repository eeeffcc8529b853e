"""Recordings too long for memory: enhanced in blocks that share a second, one at a time, and cross-faded.

    blocks = open_blocks(Path("hour.flac"), seconds=30, overlap=OVERLAP)      # cut_blocks of what is in memory
    pieces = enhance_blocks(enhancer, blocks, lips)
    save_pieces("clean.flac", (piece.speech for piece in pieces), blocks.sample_rate)

Frames are independent given W and pi, so a block loses nothing but what the rest of the recording says of the noise. A
running dictionary hands that on: a block's W starts from the last one's, mixed with a flat spectrum,

    W_0 = (1 - u) W_before + u / F,   u = 0.1

without which a frequency that was quiet before could hardly become loud in the few multiplicative updates of a block.
A noise model that starts at random needs that most; with a stationary start, the default, it made no difference on 27 s
of GRID in kitchen noise at 0 dB, in three blocks (`ldem` 0.03 dB less, `mcem` 0.1). pi, H and the gains are each
block's own. Schemes that take no start (`nuts`, `auto_normal`) begin every block anew. So do priors with memory: what a
block's first frames do not remember lies in the second that fades. On 27 s of GRID in kitchen noise they gained as much
by three blocks (RVAE and DKF, `ldem`: 0.2 dB) as A-VAE.

Memory holds one block; of the whole recording only the lips (0.4 GB an hour at 25 frames a second, as uint8).
Level and unit are the whole recording's: its peak, found in a first pass, is 1 in every block. Where two blocks meet,
the speech is w_n of the later one and 1 - w_n of the earlier: 0 and 1 in the outer quarters of the shared second,
where a block's edge is less well known, and sin^2 between. The weights sum to one, as the two estimates are of the same
speech; so what a scheme leaves as it is comes out as it was.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.media.audio import Audio, check_recording, load_audio
from pyro_avse.data.media.blocks import Blocks, cut_blocks, open_long
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.uncertainty import Uncertainty, of_silence
from pyro_avse.typing import JSON, InputError

OVERLAP = 1.0
"""Seconds that neighbours share."""
FLAT = 0.1
"""u, the share of a flat spectrum in a dictionary that is handed on."""


@dataclass(frozen=True)
class Piece:
    """The speech of a recording from where the last piece ended."""

    speech: Float32[np.ndarray, "sample"]
    """At the recording's rate and level."""
    recording: Float32[np.ndarray, "sample"]
    """As it came."""
    block: Enhanced | None
    """What the whole block gave, nothing faded; None for digital silence, which is no work."""
    draws: list[Float32[np.ndarray, "sample"]] = field(default_factory=list)
    """Of the speech, as many as were asked for; where blocks meet they fade as it does."""
    uncertainty: Uncertainty | None = None
    """Of the frames whose centres lie nearer to this block's than to another's, if asked."""


def enhance_blocks(
    enhancer: Enhancer,
    blocks: Blocks,
    lips: Lips | None = None,
    *,
    draws: int = 0,
    uncertain: bool = False,
    seed: int = 0,
) -> Iterator[Piece]:
    """Enhance a recording block by block; the pieces' speech in a row is as long as the recording.

    Args:
        lips: of the whole recording.
        draws: of the speech, besides.
        uncertain: whether pieces are to say how sure they are.
        seed: of the first block; the others count on from it.

    Raises:
        InputError: as `Enhancer.prepare` does; sound that changes or ends while it is read.
    """
    duration = blocks.num_samples / blocks.sample_rate
    carries = "dictionary" in signature(enhancer.inference).parameters
    dictionary = None
    # the last block's share of what it has in common with this one, of the speech and of every draw
    held = np.zeros((1 + draws, 0), np.float32)
    ends = [start for start, _ in blocks.spans[1:]] + [blocks.num_samples]
    for index, (audio, (start, _), end) in enumerate(
        zip(blocks.read(), blocks.spans, ends, strict=True)
    ):
        recording = enhancer.place(audio, lips, start / blocks.sample_rate, duration)
        if audio.waveform.any():
            number = (seed + index) % 2**63
            block = enhancer.separate(recording, seed=number, dictionary=dictionary)
            drawn = block.draws(draws, seed=number) if draws else []
            sounds = np.stack([block.speech, *drawn])
            if carries:
                W = block.separation.dictionary
                dictionary = (1 - FLAT) * W + FLAT / W.shape[-1]
        else:
            block, sounds = None, np.zeros((1 + draws, audio.num_samples), np.float32)
        before, after = held.shape[1], audio.num_samples - (end - start)
        sounds[:, :before] = held + fade_in(before) * sounds[:, :before]
        doubt = None
        if uncertain:
            doubt = _of_block(enhancer, recording, block)
            first, last = (
                before / 2 / audio.sample_rate,
                (end - start + after / 2) / audio.sample_rate,
            )
            inside = (doubt.times >= first) & ((doubt.times < last) | (after == 0))
            doubt = doubt.frames(inside)
            doubt = replace(doubt, times=doubt.times + start / audio.sample_rate)
        own = list(sounds[:, : end - start])
        yield Piece(own[0], audio.original[: end - start], block, own[1:], doubt)
        shared = sounds[:, end - start :]
        held = (1 - fade_in(after)) * shared


def _of_block(enhancer: Enhancer, recording: Recording, block: Enhanced | None) -> Uncertainty:
    if block is not None:
        return block.uncertainty
    frames, freqs = recording.spectrum.shape
    times = enhancer.stft.frame_times(frames)
    return of_silence(times, freqs, enhancer.prior_of(recording).num_components)


def fade_in(num_samples: int) -> Float64[np.ndarray, "sample"]:
    """w_n: 0 in the first quarter, 1 in the last, sin^2 between."""
    place = (np.arange(num_samples) + 0.5) / num_samples if num_samples else np.zeros(0)
    return np.sin(0.5 * np.pi * np.clip(2 * place - 0.5, 0, 1)) ** 2


def open_sound(
    path: Path, *, channel: str | int = "auto", block: float, track: int = 0
) -> Audio | Blocks:
    """A recording, or the blocks of one that lasts longer than `block` seconds; 0 is no limit.

    Raises InputError as `load_audio`, and for blocks under three times `OVERLAP`.
    """
    if block != 0 and not block >= 3 * OVERLAP:
        raise InputError(f"blocks of {block:g} s: give {3 * OVERLAP:g} or more, or 0 for none")
    check_recording(path)
    if block:
        more: Any = {"seconds": block, "overlap": OVERLAP, "channel": channel}
        blocks = open_long(path, track=track, **more)
        if blocks is not None:
            return blocks
    audio = load_audio(path, channel=channel, track=track)
    if block and audio.num_samples > block * audio.sample_rate:  # longer than its file says
        return cut_blocks(audio, seconds=block, overlap=OVERLAP)
    return audio


def measure_blocks(
    enhancer: Enhancer,
    blocks: Blocks,
    lips: Lips | None,
    write: Callable[[Iterator[Piece]], None],
    *,
    draws: int = 0,
    uncertain: bool = False,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda done, text: None,
) -> JSON:
    """Enhance into `write`, which takes the pieces one by one; what `measure` says of time, and how many blocks.

    `draws` and `uncertain` are as of `enhance_blocks`. `iterations` are the most of any block. `progress` is told the
    fraction that is done, and a text.
    """
    start, count, iterations = time.perf_counter(), len(blocks.spans), 0

    def pieces() -> Iterator[Piece]:
        nonlocal iterations
        more: Any = {"draws": draws, "uncertain": uncertain, "seed": seed}
        for index, piece in enumerate(enhance_blocks(enhancer, blocks, lips, **more), 1):
            if piece.block is not None:
                iterations = max(iterations, len(piece.block.objective))
            progress(index / count, f"{index} of {count} blocks")
            yield piece

    write(pieces())
    seconds = time.perf_counter() - start
    factor = seconds * blocks.sample_rate / blocks.num_samples
    row = {"iterations": iterations, "seconds": seconds, "real_time_factor": factor}
    return row | {"blocks": count, "input": None, "output": None}
