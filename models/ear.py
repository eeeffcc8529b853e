"""The network of a guide that hears noise: a recording's frames, and lips, into one summary h_n of each frame.

    f_nf   the floor: a quantile over time of |x_nf|^2, as noise that is always there would have it
    y_n    log |x_n|^2, log |x_n|^2 - log f_n, and what is made of the lips, or a mark that there are none
    h_1:N  GRU(y_1:N), both ways or forwards

The floor makes it easy to hear what stands out, whatever the spectrum of the noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyro_avse.models.noise_floor import follow_floor, steady_floor
from pyro_avse.typing import FrameMask, Power

FAINTEST = 1e-6
"""In |STFT|^2 of a recording at the level of training: 60 dB under a quiet vowel."""


@dataclass(frozen=True)
class Memory:
    """What a causal ear carries on from block to block of one recording."""

    state: Tensor
    """The GRU's."""
    quantile: Float[Tensor, "freq"]
    total: Float[Tensor, "out"]
    """Sum of h over all frames so far."""
    count: int


class Ear(nn.Module):
    """|x|^2 and what is made of the lips to h.

    Args:
        num_freqs: F.
        seen: numbers that say what a picture shows; 0: it never looks.
        hidden: units of the first layer, and of the GRU in each direction.
        layers: of the GRU.
        causal: whether it hears the past alone.
    """

    def __init__(
        self, num_freqs: int, seen: int, *, hidden: int, layers: int, causal: bool
    ) -> None:
        super().__init__()
        self.causal, self.size = causal, hidden if causal else 2 * hidden
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
    ) -> tuple[Float[Tensor, "*utterance frame out"], Tensor, Tensor]:
        """h, its mean over the frames, and log f, of whole recordings."""
        log_power = (power + FAINTEST).log()
        followed = follow_floor(log_power, log_power[..., 0, :])[0] if self.causal else None
        floor = steady_floor(log_power, mask) if followed is None else followed
        y = self.frames(log_power, floor, seen, lips_mask)
        h = run_gru(self.gru, y, mask)
        if mask is None:
            return h, h.mean(-2), floor
        total = torch.where(mask[..., None], h, 0).sum(-2)
        return h, total / mask.sum(-1, keepdim=True), floor

    def carry_on(
        self, power: Power, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        """The same of the next frames (frame, freq) of a recording, the mean being that of all so far; and what to
        remember.
        """
        log_power = (power + FAINTEST).log()
        start = log_power[0] if memory is None else memory.quantile
        floor, quantile = follow_floor(log_power, start)
        y = self.frames(log_power, floor, None)
        h, state = self.gru(y[None], None if memory is None else memory.state)
        total, count = h[0].sum(0), len(power)
        if memory is not None:
            total, count = total + memory.total, count + memory.count
        return h[0], total / count, floor, Memory(state, quantile, total, count)

    def frames(
        self,
        log_power: Tensor,
        floor: Tensor,
        seen: Tensor | None,
        lips_mask: FrameMask | None = None,
    ) -> Float[Tensor, "*utterance frame hidden"]:
        """The first layer: each frame on its own."""
        y = self.sound(torch.cat([log_power, log_power - floor], -1) / 4)
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
