"""Lips changed at random, as other cameras and faces would show them: for training only.

A model that learnt from a few faces knows them by where the mouth lies, how large it is and how bright: on another face
it is lost. Each picture is drawn its own change, since the models look at one frame at a time:

    mirrored (half of them), turned, scaled and shifted     where the camera and the mouth are
    blurred                                                 focus, resolution
    contrast, brightness, and a light from one side         the lamp, the skin
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

TURN, SCALE, SHIFT = math.radians(10), 0.15, 0.15
"""The most at a strength of 1: an angle, a share of the size, a share of the picture's half width (5 pixels)."""
BLUR = 0.5
"""The same: a share of the mean over 5 x 5 pixels."""
CONTRAST, BRIGHTNESS, SLOPE = 0.35, 0.15, 0.15
"""The same: a factor's logarithm, grey levels in [0, 1], and grey levels from the middle to the brighter side."""


def augment_lips(
    lips: UInt8[Tensor, "frame 67 67"],
    strength: float,
    rng: torch.Generator | None = None,
    *,
    together: bool = False,
) -> Float[Tensor, "frame 67 67"]:
    """Pictures in [0, 1], each changed by its own draws; all changes are uniform, and grow with `strength`.

    What comes in from outside a picture repeats its border. `together`: all pictures are changed alike, as those of one
    clip. `rng`: None is torch's own generator, which a training run seeds for each epoch.
    """
    pictures = lips[:, None].to(torch.get_default_dtype()) / 255
    count, device = len(pictures), lips.device
    draws = 1 if together else count

    def draw(most: float) -> Tensor:
        """Uniform between -most and most, times the strength, one a picture."""
        u = torch.rand(draws, generator=rng, device=device, dtype=pictures.dtype)
        return (strength * most * (2 * u - 1)).expand(count)

    mirrored = (torch.rand(draws, generator=rng, device=device) < 0.5).expand(count)
    angle, size = draw(TURN), torch.exp(draw(SCALE))
    cosine, sine = size * torch.cos(angle), size * torch.sin(angle)
    sign = torch.where(mirrored, -1.0, 1.0).to(pictures)
    rows = [cosine * sign, -sine, draw(SHIFT), sine * sign, cosine, draw(SHIFT)]
    places = affine_grid(
        torch.stack(rows, 1).view(count, 2, 3), list(pictures.shape), align_corners=False
    )
    pictures = grid_sample(pictures, places, padding_mode="border", align_corners=False)

    smooth = avg_pool2d(pictures, 5, stride=1, padding=2, count_include_pad=False)
    pictures = torch.lerp(pictures, smooth, draw(BLUR).abs()[:, None, None, None])

    seen = pictures[:, 0]
    mean = seen.mean((-2, -1), keepdim=True)
    contrast = torch.exp(draw(CONTRAST))[:, None, None]
    across = torch.linspace(-1, 1, seen.shape[-1], dtype=seen.dtype, device=device)
    light = draw(BRIGHTNESS)[:, None, None] + draw(SLOPE)[:, None, None] * across
    return (contrast * (seen - mean) + mean + light).clamp(0, 1)
