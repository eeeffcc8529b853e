"""Every channel of a recording, each enhanced on its own: as many come out as go in, a silent one as it is."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.media.audio import Audio, count_channels
from pyro_avse.data.media.blocks import Blocks
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.long import Piece, enhance_blocks, open_sound
from pyro_avse.errors import Silence
from pyro_avse.typing import JSON

Samples = Float32[np.ndarray, "sample channel"]


def open_channels(path: Path, *, block: float, track: int = 0) -> list[Audio | Blocks | None]:
    """Each channel of a recording as `open_sound` has it; None for one that is silent.

    Raises InputError as `open_sound` does, where all are silent too.
    """
    opened: list[Audio | Blocks | None] = []
    for channel in range(count_channels(path, track)):
        try:
            opened.append(open_sound(path, channel=channel, block=block, track=track))
        except Silence as silence:
            opened.append(None)
            silent = silence
    if not any(opened):
        raise silent
    return opened


def measure_channels(
    enhancer: Enhancer,
    channels: list[Audio | Blocks | None],
    lips: Lips | None,
    write: Callable[[Iterator[tuple[Samples, Samples]]], None],
    *,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda done, text: None,
) -> JSON:
    """Enhance all channels into `write`, which takes pieces of speech and of the recording; time, as `measure` says it.

    All start from the same seed. `iterations` are the most of any channel's block.
    """
    start, iterations = time.perf_counter(), 0
    live = [channel for channel in channels if channel is not None]
    count = len(live[0].spans) if isinstance(live[0], Blocks) else 1

    def pieces() -> Iterator[tuple[Samples, Samples]]:
        nonlocal iterations
        streams = [_pieces(enhancer, channel, lips, seed) for channel in live]
        for number, together in enumerate(zip(*streams, strict=True), 1):
            blocks = [piece.block for piece in together if piece.block is not None]
            iterations = max([iterations, *(len(block.objective) for block in blocks)])
            progress(number / count, f"{number} of {count} blocks, {len(live)} channels")
            yield (
                _spread([piece.speech for piece in together], channels),
                _spread([piece.recording for piece in together], channels),
            )

    write(pieces())
    seconds = time.perf_counter() - start
    factor = seconds * live[0].sample_rate / live[0].num_samples
    row = {"iterations": iterations, "seconds": seconds, "real_time_factor": factor}
    return row | {"channels": len(channels), "input": None, "output": None}


def _pieces(
    enhancer: Enhancer, channel: Audio | Blocks, lips: Lips | None, seed: int
) -> Iterator[Piece]:
    if isinstance(channel, Blocks):
        yield from enhance_blocks(enhancer, channel, lips, seed=seed)
    else:
        result = enhancer.separate(enhancer.prepare(channel, lips), seed=seed)
        yield Piece(result.speech, result.recording, result)


def _spread(
    heard: list[Float32[np.ndarray, "sample"]], channels: list[Audio | Blocks | None]
) -> Samples:
    """The live channels where they were, zeros in the silent ones."""
    out = np.zeros((len(heard[0]), len(channels)), np.float32)
    out[:, [k for k, channel in enumerate(channels) if channel is not None]] = np.stack(heard, 1)
    return out
