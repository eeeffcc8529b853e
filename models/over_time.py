"""Networks over time: LSTMs with padding, causal attention, and A-VAE's networks told of what they remember.

Whatever memory adds starts at nothing, so that a dynamical prior may start as a trained A-VAE and its N(0, I).
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_avse.typing import FrameMask, Power

FAINTEST = 1e-6
"""In |STFT|^2: networks over time hear log(|s|^2 + FAINTEST) / 4."""


def loudness(power: Power) -> Power:
    """How networks over time hear a spectrum: its logarithm, within a few units of 0."""
    return (power + FAINTEST).log() / 4


def join(*parts: Tensor | None) -> Tensor:
    """Features side by side, axes in front broadcast (chains of one recording); None is left out."""
    known = [part for part in parts if part is not None]
    front = torch.broadcast_shapes(*(part.shape[:-1] for part in known))
    return torch.cat([part.expand(*front, part.shape[-1]) for part in known], -1)


class Move(nn.Module):
    """tanh layer, then mean and log-variance of a frame's code; as long as nothing is learned, N(0, I)."""

    def __init__(self, inputs: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.mean = silent(nn.Linear(hidden, latent_dim))
        self.log_variance = silent(nn.Linear(hidden, latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.hidden(x))
        return self.mean(h), self.log_variance(h)


class ToldEncoder(nn.Module):
    """q(z_n | s_n, ...): A-VAE's encoder, whose hidden layer is told besides what memory makes of other frames.

    That starts at nothing: with A-VAE's `hidden`, `mean` and `log_variance` it is A-VAE's encoder.
    """

    def __init__(self, num_freqs: int, told: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_freqs, hidden)
        self.told = silent(nn.Linear(told, hidden, bias=False))
        self.mean = nn.Linear(hidden, latent_dim)
        self.log_variance = nn.Linear(hidden, latent_dim)

    def forward(
        self, heard: Float[Tensor, "*batch frame hidden"], told: Float[Tensor, "*batch frame told"]
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance; `heard` is `hidden` of the spectrum."""
        h = torch.tanh(heard + self.told(told))
        return self.mean(h), self.log_variance(h)


class ToldDecoder(nn.Module):
    """log sigma(z_n, ...): A-VAE's decoder, whose hidden layer is told besides what memory makes of other frames.

    That starts at nothing: with A-VAE's `hidden` and `log_variance` it is A-VAE's decoder.
    """

    def __init__(self, latent_dim: int, told: int, hidden: int, num_freqs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(latent_dim, hidden)
        self.told = silent(nn.Linear(told, hidden, bias=False)) if told else None
        self.log_variance = nn.Linear(hidden, num_freqs)

    def forward(self, z: Tensor, told: Tensor | None) -> Float[Tensor, "*batch frame freq"]:
        h = self.hidden(z)
        if self.told is not None:
            h = h + self.told(told)
        log_variance: Tensor = self.log_variance(torch.tanh(h))
        return log_variance


def silent(linear: nn.Linear) -> nn.Linear:
    """With all weights at 0."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


class Recurrence(nn.Module):
    """LSTM over the frames of (..., frame, input): forwards, backwards, or both side by side.

    What stands in padding, where `mask` is False after the last frame of sound, reaches no frame of sound.
    """

    def __init__(
        self, inputs: int, hidden: int, way: Literal["forwards", "backwards", "both"]
    ) -> None:
        super().__init__()
        ways = ("forwards", "backwards") if way == "both" else (way,)
        self.size = hidden * len(ways)
        for name in ways:
            self.add_module(name, nn.LSTM(inputs, hidden, batch_first=True))

    def forward(
        self, x: Float[Tensor, "*batch frame input"], mask: FrameMask | None = None
    ) -> Float[Tensor, "*batch frame size"]:
        flat = x.reshape(-1, *x.shape[-2:])
        found = []
        for way, lstm in self.named_children():
            if way == "forwards":
                found.append(lstm(flat)[0])
            else:
                found.append(backwards(lstm(backwards(flat, x, mask))[0], x, mask))
        return torch.cat(found, -1).reshape(*x.shape[:-1], self.size)

    def carry_on(
        self, x: Float[Tensor, "*batch frame input"], memory: Any
    ) -> tuple[Float[Tensor, "*batch frame size"], Any]:
        """The same forwards, of frames that follow those of `memory` (None: the first), and what to remember."""
        lstm = self.get_submodule("forwards")
        y, memory = lstm(x.reshape(-1, *x.shape[-2:]), memory)
        return y.reshape(*x.shape[:-1], self.size), memory


def backwards(flat: Tensor, like: Tensor, mask: FrameMask | None) -> Tensor:
    """The frames of (batch, frame, feature) from the last to the first; those of padding stay behind.

    `like` (..., frame, feature) has the axes that were made one, against which `mask` broadcasts. Twice is not at all.
    """
    if mask is None:
        return flat.flip(-2)
    frames = flat.shape[-2]
    place = torch.arange(frames, device=flat.device)
    order = (mask.sum(-1, keepdim=True) - 1 - place) % frames
    order = order.expand(like.shape[:-1]).reshape(-1, frames, 1)
    return flat.take_along_dim(order, -2)


class CausalAttention(nn.Module):
    """One block of a transformer over frames, each of which looks at itself and those before. [Vaswani2017]

    Where a frame lies it is told by its distance alone, a penalty on the attention that grows with it [Press2022]: so
    recordings may be longer than what training saw.
    """

    def __init__(self, size: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.key_value = nn.Linear(size, size), nn.Linear(size, 2 * size)
        self.out = nn.Linear(size, size)
        self.network = nn.Sequential(
            nn.Linear(size, 2 * size), nn.ReLU(), nn.Linear(2 * size, size)
        )

    def forward(
        self, x: Float[Tensor, "*batch frame size"], memory: Tensor | None = None
    ) -> tuple[Float[Tensor, "*batch frame size"], Tensor]:
        """Of frames that follow those of `memory` (None: the first), and what to remember."""
        y = self.before(x)
        seen = y if memory is None else torch.cat([memory, y], -2)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for part in (self.query(y), *self.key_value(seen).chunk(2, -1))
        )
        here = torch.arange(seen.shape[-2], device=x.device)
        away = (here[-x.shape[-2] :, None] - here).to(x.dtype)
        slope = 2.0 ** -torch.arange(1, self.heads + 1, device=x.device).to(x.dtype)
        penalty = torch.where(away < 0, torch.inf, slope[:, None, None] * away)
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=-penalty)
        x = x + self.out(found.transpose(-2, -3).flatten(-2))
        return x + self.network(self.after(x)), seen
