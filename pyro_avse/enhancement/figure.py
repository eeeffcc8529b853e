"""The demonstration as a figure: what it sounds like before and after, and what the inference did."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.drawing import draw_responsibilities
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.plots import BLUE, GREY, ORANGE, draw_spectrogram, save_figure, spectral_power


def demo_figure(
    waveforms: Mapping[str, Float[np.ndarray, "sample"]],
    results: Mapping[str, Enhanced],
    path: Path,
) -> None:
    """Spectrograms of four named 16 kHz waveforms, r(alpha_n) of the last result along time, the objectives of all.

    The waveforms have one scale, whose 0 dB is the first one's loudest bin.
    """
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes: Any = figure.subplots(3, 2)
    first = next(iter(waveforms.values()))
    loudest = float(spectral_power(first).max())
    for axis, (title, waveform) in zip(axes[:2].flat, waveforms.items(), strict=True):
        image = draw_spectrogram(axis, waveform, title, loudest)
        axis.label_outer()
    figure.colorbar(image, ax=axes[:2], label="dB", pad=0.01, aspect=40)
    *_, last = results.values()
    draw_responsibilities(axes[2, 0], last, len(first) / SAMPLE_RATE, last.uncertainty)
    axes[2, 0].set_xlabel("time (s)")
    for (name, result), colour in zip(results.items(), (GREY, ORANGE, BLUE), strict=False):
        iterations = np.arange(1, len(result.objective) + 1)
        objective = result.objective / result.separation.speech.numel()
        axes[2, 1].plot(iterations, objective, colour, label=name)
    axes[2, 1].set(xlabel="EM iteration", ylabel="nats")
    axes[2, 1].xaxis.set_major_locator(MaxNLocator(integer=True))
    title = "the objective that the inference climbs,\nfor each coefficient of the spectrogram"
    axes[2, 1].set_title(title, fontsize=9)
    axes[2, 1].legend(fontsize=8, loc="lower right", frameon=False)  # objectives rise
    save_figure(figure, path)
