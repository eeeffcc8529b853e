"""What lips say of loudness: one speaker's pictures to the energies of his speech in seven bands, frame by frame.

    y_n    the picture, 13 x 13 pixels, less the recording's mean picture, over the contrast of that picture
    d_n | y_1:N ~ N(mu_n, diag tau_n)      two convolutions over five frames each, on A y_n and its change

d_n is the logarithm of the frame's power between `EDGES`, less `MEAN` and over `SPREAD`: what opens the mouth. What a
face looks like goes with its mean picture, so that the reader does on a face what it learnt from others; a face that
stands still has y = 0, and says nothing. Trained on clean clips by their likelihood (pyro_avse.training.separate). It
tells a separating guide (models/separating_guide.py) which of the voices it hears belongs to the face.
"""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Independent
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from pyro_avse.distributions import unchecked_normal
from pyro_avse.typing import Lips, Power

EDGES = (100.0, 300.0, 600.0, 1000.0, 1700.0, 2800.0, 4500.0, 8000.0)
"""Hz."""
BANDS = len(EDGES) - 1
MEAN, SPREAD, LEAST = 2.0, 2.5, -1.0
"""Nats of |STFT|^2 summed over a band, of speech at the level of training; what is below LEAST counts as that."""
SIDE = 13
"""Pixels of the picture that it looks at, across and down: means of 5 x 5."""
LEAST_CONTRAST = 0.02
"""Grey levels in [0, 1]; pictures with less are flat."""


def band_energies(power: Power) -> Float[Tensor, "*utterance frame band"]:
    """d_n of frames |s|^2, from 0 Hz to 8 kHz."""
    last = power.shape[-1] - 1
    edges = [round(hertz / 8000 * last) for hertz in EDGES]
    bands = [power[..., a : b + 1].sum(-1) for a, b in pairwise(edges)]
    log_power = torch.stack(bands, -1).clamp_min(1e-30).log().clamp_min(LEAST)
    return (log_power - MEAN) / SPREAD


def small_pictures(lips: Lips) -> Float[Tensor, "*utterance frame pixel"]:
    """Pictures in [0, 1], uint8 or not, as 13 x 13 means."""
    grey = lips.reshape(-1, 1, *lips.shape[-2:])
    grey = grey if grey.is_floating_point() else grey.to(torch.get_default_dtype()) / 255
    return avg_pool2d(grey, 5).reshape(*lips.shape[:-2], SIDE * SIDE)


def faceless(
    pictures: Float[Tensor, "*utterance frame pixel"],
    shown: Bool[Tensor, "*utterance frame"] | None = None,
) -> Float[Tensor, "*utterance frame pixel"]:
    """y of a recording's small pictures; 0 where none is `shown`."""
    if shown is None:
        mean = pictures.mean(-2, keepdim=True)
    else:
        kept = shown[..., None].to(pictures.dtype)
        mean = (kept * pictures).sum(-2, keepdim=True) / kept.sum(-2, keepdim=True).clamp_min(1)
    contrast = mean.std(-1, keepdim=True).clamp_min(LEAST_CONTRAST)
    y = (pictures - mean) / contrast
    return y if shown is None else torch.where(shown[..., None], y, 0)


class LipReader(nn.Module):
    """q(d_n | y_1:N). Args: hidden, units of each layer."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.pixels = nn.Linear(SIDE * SIDE, 48)
        self.first = nn.Conv1d(96, hidden, 5, padding=2)
        self.second = nn.Conv1d(hidden, hidden, 5, padding=2)
        self.out = nn.Linear(hidden, 2 * BANDS)
        self.dropout = nn.Dropout(0.2)

    def forward(
        self,
        y: Float[Tensor, "*utterance frame pixel"],
        shown: Bool[Tensor, "*utterance frame"] | None = None,
    ) -> Independent:
        """Batch (..., frame), event (band,). Frames that are not `shown` say nothing to those beside them."""
        kept = 1.0 if shown is None else shown.reshape(-1, 1, y.shape[-2]).to(y.dtype)
        seen = self.pixels(y)
        change = torch.diff(seen, dim=-2, prepend=seen[..., :1, :])
        h = torch.relu(torch.cat([seen, 2 * change], -1)).reshape(-1, y.shape[-2], 96).mT
        h = torch.relu(self.first(kept * self.dropout(h)))
        h = torch.relu(self.second(kept * self.dropout(h)))
        mean, log_scale = self.out(h.mT).reshape(*y.shape[:-1], 2 * BANDS).chunk(2, -1)
        return unchecked_normal(mean, log_scale.clamp(-3, 3).exp())
