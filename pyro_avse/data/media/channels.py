"""Which channel of a recording has the voice.

A microphone is often on one channel of two, and a film's voices are in its centre. `choose` listens to the speech band
(150 to 4000 Hz) of every channel, and takes the first one unless it is silent, far fainter than another, or of a film.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import soxr
from jaxtyping import Float, Shaped

from pyro_avse.data.media.level import LOUD, moments
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.errors import Silence
from pyro_avse.typing import InputError

FAR = 20.0
"""dB: a channel that much fainter than another is not the one meant."""
CENTRE = 30.0
"""dB: a film's centre counts unless it is that much fainter than its music."""
CANCELLED = 25.0
"""dB: channels whose mean is that much fainter than they are cancel each other."""
STRETCH = 30
"""Seconds that are listened to at once."""


@dataclass(frozen=True)
class Choice:
    """What is taken of a recording's channels."""

    channel: int | None
    """From 0; None: the mean of all."""
    note: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.note is None else (self.note,)

    def of(self, samples: Shaped[np.ndarray, "sample channel"]) -> Float[np.ndarray, "sample"]:
        """One channel of samples, float64."""
        taken = samples.mean(axis=1) if self.channel is None else samples[:, self.channel]
        return taken.astype(np.float64)


def choose(
    blocks: Iterable[Shaped[np.ndarray, "sample channel"]],
    sample_rate: int,
    count: int,
    channel: str | int,
    name: str,
    names: tuple[str, ...] = (),
) -> Choice:
    """The channel that is asked for, or the one with the voice.

    Args:
        blocks: the recording, in pieces; not touched where there is one channel.
        count: of its channels.
        channel: "auto", "first", "mean", or an index from 0.
        name: of the recording, for the user.
        names: of the channels, such as FL, FR, FC.

    Raises:
        InputError: no such channel; one asked for that is silent, where another is not.
    """
    asked = _index(channel, count, name)
    if count == 1:
        return Choice(0, None)
    levels, together = hear(blocks, sample_rate, count)
    loudest = int(np.argmax(levels))
    if levels[loudest] == 0:  # refused for its silence, whichever
        return Choice(asked or 0, None)
    if channel == "mean":
        if together > levels[loudest] * 10 ** (-CANCELLED / 20):
            return Choice(None, None)
        taken = _voice(levels, names)
        note = f"its {count} channels cancel each other in their mean: channel {taken} is taken"
        return Choice(taken, f"{name}: {note}")
    if asked is None:
        return _auto(levels, together, names, name)
    if levels[asked] == 0:
        raise Silence(
            f"{name}: channel {asked} of {count} is silent: give --channel {loudest}, or auto"
        )
    below = 20 * np.log10(levels[loudest] / levels[asked])
    note = f"{name}: channel {asked} of {count} is {below:.0f} dB fainter than channel {loudest}"
    return Choice(asked, f"{note}: is it the one with the voice?" if below > FAR else None)


def hear(
    blocks: Iterable[Shaped[np.ndarray, "sample channel"]], sample_rate: int, count: int
) -> tuple[Float[np.ndarray, "channel"], float]:
    """The level of each channel's speech band while it is loud, and that of their mean; 0 for silence."""
    heard: list[np.ndarray] = []
    for stretch in _stretches(blocks, STRETCH * sample_rate):
        part = np.nan_to_num(stretch, nan=0.0, posinf=0.0, neginf=0.0)  # refused when it is read
        part = np.column_stack([part, part.mean(axis=1)])
        part = part if sample_rate == SAMPLE_RATE else soxr.resample(part, sample_rate, 16000)
        if len(part):
            heard.append(np.stack([moments(column) for column in part.T]))
    if not heard:
        return np.zeros(count), 0.0
    moments_heard = np.concatenate(heard, axis=1)
    levels = np.quantile(moments_heard, LOUD, axis=1)
    levels = np.maximum(levels, 1e-3 * moments_heard.max(axis=1))  # one word is no silence
    return levels[:-1], float(levels[-1])


def _stretches(
    blocks: Iterable[Shaped[np.ndarray, "sample channel"]], length: int
) -> Iterator[Float[np.ndarray, "sample channel"]]:
    """The same samples, so many at once: decoders give a thousand."""
    held: list[np.ndarray] = []
    size = 0
    for block in blocks:
        while len(block):
            held.append(block[: length - size])
            block = block[length - size :]
            size += len(held[-1])
            if size == length:
                yield np.concatenate(held).astype(np.float64)
                held, size = [], 0
    if size:
        yield np.concatenate(held).astype(np.float64)


def _index(channel: str | int, count: int, name: str) -> int | None:
    """From 0; None for "auto" and "mean"."""
    if channel in ("auto", "mean"):
        return None
    index = 0 if channel == "first" else channel
    if isinstance(index, str) and index.isdecimal():
        index = int(index)
    if isinstance(index, int) and 0 <= index < count:
        return index
    raise InputError(
        f"{name} has {count} channel(s), not {channel!r}: take 'auto', 'first', 'mean' or"
        f" 0 to {count - 1}"
    )


def _voice(levels: Float[np.ndarray, "channel"], names: tuple[str, ...]) -> int:
    """A film's centre; else the first channel, unless another is far louder."""
    if len(levels) > 2 and "FC" in names[: len(levels)]:
        centre = names.index("FC")
        if levels[centre] > levels.max() * 10 ** (-CENTRE / 20):
            return centre
    return 0 if levels[0] > levels.max() * 10 ** (-FAR / 20) else int(np.argmax(levels))


def _auto(
    levels: Float[np.ndarray, "channel"], together: float, names: tuple[str, ...], name: str
) -> Choice:
    count, taken = len(levels), _voice(levels, names)
    alike = np.abs(np.append(levels, together) / levels[taken] - 1).max() < 0.01
    if alike:  # one sound on all of them
        return Choice(taken, None)
    if len(names) > taken and names[taken] == "FC":
        return Choice(taken, f"{name} has {count} channels: the centre, channel {taken}, is taken")
    if taken == 0:
        return Choice(
            0, f"{name} has {count} channels: channel 0 is taken (--channel for another, or all)"
        )
    if levels[0] == 0:
        note = f"channel 0 of {count} is silent"
    else:
        below = 20 * np.log10(levels[taken] / levels[0])
        note = f"channel 0 of {count} is {below:.0f} dB fainter than channel {taken}"
    return Choice(taken, f"{name}: {note}: channel {taken} is taken")
