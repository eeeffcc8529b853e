"""How sure a recording's speech is, as a figure."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pyro_avse.enhancement.uncertainty import Uncertainty
from pyro_avse.plots import BLUE, GREEN, ORANGE, save_figure, shade_disagreement


def uncertainty_figure(blocks: Sequence[Uncertainty], path: Path) -> None:
    """Speech with doubt shaded, how sure each frame is, and r(audio) with its band.

    `blocks` follow one another in time. Green is what may be heard and is not known: Var s / E|s|^2, the less of it
    shown the fainter it is.
    """
    doubt = Uncertainty(
        **{
            f.name: np.concatenate([getattr(b, f.name) for b in blocks])
            for f in fields(Uncertainty)
        }
    )
    several = doubt.r.shape[1] > 1
    figure = Figure(figsize=(9, 5.5 if several else 4.2), layout="constrained")
    heights = [3, 1, 1][: 3 if several else 2]
    axes: Any = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    known = np.abs(doubt.mean) ** 2
    power, loudest = known + doubt.variance, max(known.max(), 1e-30)
    level = 10 * np.log10(known / loudest + 1e-7)
    heard = np.clip(1 + 10 * np.log10(power / loudest + 1e-7) / 60, 0, 1)
    share = np.divide(doubt.variance, power, out=np.zeros_like(power), where=power > 0)
    first, last = doubt.times[0], doubt.times[-1]
    place: Any = {
        "origin": "lower",
        "aspect": "auto",
        "extent": (first, last if last > first else first + 1, 0, 8),
    }
    axes[0].imshow(level.T, vmin=-70, vmax=0, cmap="magma", **place)
    shade = np.zeros((*share.T.shape, 4)) + to_rgba(GREEN)
    shade[..., 3] = (share * heard).T
    axes[0].imshow(shade, **place)
    axes[0].set(ylabel="kHz")
    axes[0].set_title("the estimate; green: power that may be there and is not known", fontsize=9)
    axes[1].plot(doubt.times, doubt.sure, BLUE)
    axes[1].set(ylim=(0, 1.02), ylabel="sure")
    axes[1].set_title("share of speech's power that is known", fontsize=9)
    if several:
        axes[2].set_ylim(-0.05, 1.05)
        shade_disagreement(axes[2], doubt.times, doubt.chains_disagree)
        axes[2].fill_between(
            doubt.times, doubt.r_low[:, 0], doubt.r_high[:, 0], color=ORANGE, alpha=0.4
        )
        axes[2].plot(doubt.times, doubt.r[:, 0], BLUE)
        axes[2].set(ylim=(-0.05, 1.05), ylabel="r(audio)")
        axes[2].set_title(
            "r(audio); band: nine tenths of the draws; grey: chains disagree", fontsize=9
        )
    axes[-1].set(xlabel="time (s)", xlim=place["extent"][:2])
    save_figure(figure, path)
