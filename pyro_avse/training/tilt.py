"""Spectra tilted at random, for training only.

Corpora differ by the tilt of their spectra: GRID's s1 has 1 % of its power above 1 kHz, spoken commands 17 %. A tilt of
up to so many dB an octave, the frame's power kept, covers other microphones, rooms and voices.
"""

import torch
from jaxtyping import Float
from torch import Tensor

FLAT_BELOW = 8
"""The lowest frequency that is tilted, as a bin (125 Hz): under it a tilt would raise rumble over all speech."""


def tilt_spectra(
    power: Float[Tensor, "frame *freq"],
    heard: Float[Tensor, "frame *freq"],
    steepest: float,
    rng: torch.Generator | None = None,
) -> tuple[Float[Tensor, "frame *freq"], Float[Tensor, "frame *freq"]]:
    """Both with one response per frame, or per cut (cut, frame, freq): a slope uniform between -steepest and steepest,
    in dB an octave, and the gain that keeps the mean of `power`. Below 125 Hz it is flat. `rng`: None is torch's own
    generator, which a training run seeds for each epoch.
    """
    bins = torch.arange(power.shape[-1], device=power.device, dtype=power.dtype).clamp_min(
        FLAT_BELOW
    )
    shape, inner = (len(power), *[1] * (power.dim() - 1)), tuple(range(1, power.dim()))
    u = torch.rand(shape, generator=rng, device=power.device, dtype=power.dtype)
    response = 10 ** (0.1 * steepest * (2 * u - 1) * torch.log2(bins))
    after = (response * power).sum(inner, keepdim=True)
    response = response * power.sum(inner, keepdim=True) / after.clamp_min(1e-30)  # silence stays
    return response * power, response * heard
