"""The demonstration as a figure: what it sounds like before and after, and what the inference did."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.drawing import draw_responsibilities, spectrograms_above
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.plots import BLUE, GREY, ORANGE, save_figure


def demo_figure(
    waveforms: Mapping[str, Float[np.ndarray, "sample"]],
    results: Mapping[str, Enhanced],
    path: Path,
) -> None:
    """Spectrograms of named 16 kHz waveforms, r(alpha_n) of the last result along time, the objectives of all.

    The waveforms have one scale, whose 0 dB is the first one's loudest bin.
    """
    axes = spectrograms_above([1.3] * len(waveforms) + [1.2, 1.5], waveforms)
    seconds = len(next(iter(waveforms.values()))) / SAMPLE_RATE
    *_, last = results.values()
    draw_responsibilities(axes[-2], last, seconds, last.uncertainty)
    axes[-2].set_xlabel("time (s)")
    for (name, result), colour in zip(results.items(), (GREY, ORANGE, BLUE), strict=False):
        coefficients = result.separation.speech.numel()
        iterations = np.arange(1, len(result.objective) + 1)
        axes[-1].plot(iterations, result.objective / coefficients, colour, label=name)
    axes[-1].set(xlabel="EM iteration", ylabel="nats")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_title(
        "the objective that the inference climbs, for each coefficient of the spectrogram",
        fontsize=9,
    )
    axes[-1].legend(fontsize=8, loc="lower right", frameon=False)  # objectives rise
    save_figure(axes[0].figure, path)  # type: ignore[arg-type]
