"""The network of a guide that hears noise: a recording's frames, and lips, into one summary h_n of each frame.

    f_nf   the floor: a quantile over time of |x_nf|^2, as noise that is always there would have it
    l      the level: 0, or in a causal ear log of the mean of |x|^2 up to frame n
    y_n    log |x_n|^2 - l, log |x_n|^2 - log f_n, and what is made of the lips, or a mark that there are none
    h_1:N  GRU(y_1:N), both ways or forwards

Below the front's high-pass it does not listen (`log_heard` of models/noise_floor.py), nor at the recording's edges
(`inner`; `begun` where it knows no end).
The floor makes it easy to hear what stands out, whatever the spectrum of the noise. A recording is brought to the level
of training before it is heard. Of sound that is still coming in nobody knows the level, so a causal ear does without.
It may hear some frames `ahead`: h_n is then what it knows after frame n + ahead.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyro_avse.models.noise_floor import (
    begun,
    follow_floor,
    follow_level,
    inner,
    log_heard,
    steady_floor,
)
from pyro_avse.typing import FrameMask, Power


@dataclass(frozen=True)
class Heard:
    """What an ear makes of frames."""

    h: Float[Tensor, "*utterance frame out"]
    summary: Float[Tensor, "*utterance out"]
    """The mean of h."""
    log_floor: Float[Tensor, "*utterance #frame freq"]
    level: Float[Tensor, "*utterance 1"]
    """l, where the summary ends."""


@dataclass(frozen=True)
class Memory:
    """What a causal ear carries on from block to block of one recording."""

    state: Tensor
    """The GRU's."""
    quantile: Float[Tensor, "freq"]
    mean: Tensor
    """Of |x|^2."""
    count: int
    """Frames so far."""
    total: Float[Tensor, "out"]
    """The sum of h over those of them whose h is known."""

    def rescaled(self, power: float) -> "Memory":
        """In a unit in which all powers are `power` times as large."""
        return replace(self, quantile=self.quantile + math.log(power), mean=self.mean * power)


class Ear(nn.Module):
    """|x|^2 and what is made of the lips to h.

    Args:
        num_freqs: F.
        seen: numbers that say what a picture shows; 0: it never looks.
        hidden: units of the first layer, and of the GRU in each direction.
        layers: of the GRU.
        causal: whether it hears the past alone, and
        ahead: so many frames besides.

    Raises:
        ValueError: frames ahead where it hears all of them.
    """

    def __init__(
        self, num_freqs: int, seen: int, *, hidden: int, layers: int, causal: bool, ahead: int
    ) -> None:
        super().__init__()
        if ahead < 0 or (ahead and not causal):
            raise ValueError(f"ahead is {ahead}: 0 or more, and 0 where causal is false")
        self.causal, self.ahead, self.size = causal, ahead, hidden if causal else 2 * hidden
        self.sound = nn.Linear(2 * num_freqs, hidden)
        self.lips = nn.Linear(seen, hidden) if seen else None
        self.absent = nn.Parameter(torch.zeros(hidden)) if seen else None
        self.norm = nn.LayerNorm(hidden)
        self.gru = nn.GRU(hidden, hidden, layers, batch_first=True, bidirectional=not causal)

    def forward(
        self,
        power: Power,
        seen: Float[Tensor, "*utterance frame seen"] | None = None,
        *,
        mask: FrameMask | None = None,
        lips_mask: FrameMask | None = None,
    ) -> Heard:
        """Of whole recordings. While it is trained, the summary of a causal ear ends at a random frame."""
        if self.causal:
            return self._heard_forwards(power, seen, mask, lips_mask)
        log_power = log_heard(inner(power, mask))
        floor = steady_floor(log_power, mask)
        y = self.frames(log_power, log_power - floor, seen, lips_mask)
        h = run_gru(self.gru, y, mask)
        if mask is None:
            summary = h.mean(-2)
        else:
            summary = torch.where(mask[..., None], h, 0).sum(-2) / mask.sum(-1, keepdim=True)
        return Heard(h, summary, floor, torch.zeros_like(summary[..., :1]))

    def _heard_forwards(
        self,
        power: Power,
        seen: Tensor | None,
        mask: FrameMask | None,
        lips_mask: FrameMask | None,
    ) -> Heard:
        """Silence comes after the last frame."""
        N, ahead, power = power.shape[-2], (0, 0, 0, self.ahead), begun(power)
        if mask is not None:
            power = torch.where(mask[..., None], power, 0)
        power = nn.functional.pad(power, ahead)
        if seen is not None:
            seen = nn.functional.pad(seen, ahead)
            shown = seen.new_ones((*seen.shape[:-2], N), dtype=torch.bool)
            lips_mask = nn.functional.pad(shown if lips_mask is None else lips_mask, ahead[2:])
        log_power = log_heard(power)
        level = follow_level(power)[0]
        floor = follow_floor(log_power, log_power[..., 0, :])[0]
        y = self.frames(log_power - level, log_power - floor, seen, lips_mask)
        h, floor = run_gru(self.gru, y, None)[..., self.ahead :, :], floor[..., self.ahead :, :]
        known = mask.sum(-1) if mask is not None else torch.full(h.shape[:-2], N, device=h.device)
        if self.training:
            known = 1 + (torch.rand(known.shape, device=h.device) * known).long()
        last = (known - 1)[..., None, None]
        summary = (h.cumsum(-2).take_along_dim(last, -2) / (last + 1))[..., 0, :]
        return Heard(h, summary, floor, level.take_along_dim(last + self.ahead, -2)[..., 0])

    def carry_on(self, power: Power, memory: Memory | None) -> tuple[Heard, Memory]:
        """The same of the frames that lie `ahead` before the next ones (frame, freq) of a recording; and what to
        remember.
        """
        if memory is None:
            power = begun(power)
        log_power = log_heard(power)
        start = log_power[0] if memory is None else memory.quantile
        floor, quantile = follow_floor(log_power, start)
        before = 0 if memory is None else memory.count
        level, mean = follow_level(power, None if memory is None else memory.mean, before)
        y = self.frames(log_power - level, log_power - floor, None)
        h, state = self.gru(y[None], None if memory is None else memory.state)
        first = max(0, self.ahead - before)  # of these no frame is far enough back
        h, floor, count = h[0, first:], floor[first:], before + len(power)
        total = h.sum(0) if memory is None else memory.total + h.sum(0)
        summary = total / max(1, count - self.ahead)
        heard = Heard(h, summary, floor, level[-1])
        return heard, Memory(state, quantile, mean, count, total)

    def frames(
        self,
        loud: Tensor,
        over_floor: Tensor,
        seen: Tensor | None,
        lips_mask: FrameMask | None = None,
    ) -> Float[Tensor, "*utterance frame hidden"]:
        """The first layer: each frame on its own."""
        y = self.sound(torch.cat([loud, over_floor], -1) / 4)
        if self.lips is not None and self.absent is not None:
            if seen is None:
                y = y + self.absent
            elif lips_mask is None:
                y = y + self.lips(seen)
            else:
                y = y + torch.where(lips_mask[..., None], self.lips(seen), self.absent)
        return torch.relu(self.norm(y))


def run_gru(
    gru: nn.GRU, y: Float[Tensor, "*utterance frame in"], mask: FrameMask | None
) -> Float[Tensor, "*utterance frame out"]:
    """A GRU over the frames of every utterance; both ways, it turns round where padding begins."""
    *utterances, N, _ = y.shape
    flat = y.reshape(-1, N, y.shape[-1])
    if mask is None:
        return gru(flat)[0].reshape(*utterances, N, -1)
    lengths = mask.reshape(-1, N).sum(-1).cpu()
    packed = pack_padded_sequence(flat, lengths, batch_first=True, enforce_sorted=False)
    h, _ = pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=N)
    return h.reshape(*utterances, N, -1)
