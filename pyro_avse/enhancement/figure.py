"""The demonstration as a figure: what it sounds like before and after, and what the inference did."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.plots import BLUE, GREY, ORANGE, draw_spectrogram, save_figure, shade_disagreement


def demo_figure(
    waveforms: Mapping[str, Float[np.ndarray, "sample"]],
    results: Mapping[str, Enhanced],
    path: Path,
) -> None:
    """Spectrograms of named 16 kHz waveforms, r(alpha_n) along time and the objectives of the results."""
    count = len(waveforms)
    figure = Figure(figsize=(9, 2.0 * (count + 2)), layout="constrained")
    axes = figure.subplots(count + 2, 1)
    for axis, (title, waveform) in zip(axes, waveforms.items(), strict=False):
        draw_spectrogram(axis, waveform, title)
    for name, result in results.items():
        if len(result.responsibilities) > 1:
            label = f"{name}: mean {result.responsibilities[0].mean():.2f}"
            axes[count].set_ylim(-0.05, 1.05)
            shade_disagreement(axes[count], result.frame_times, result.chains_disagree)
            axes[count].plot(result.frame_times, result.responsibilities[0], BLUE, label=label)
    seconds = len(next(iter(waveforms.values()))) / SAMPLE_RATE
    axes[count].set(xlim=(0, seconds), ylim=(-0.05, 1.05), xlabel="time (s)", ylabel="r(audio)")
    axes[count].set_title(
        "r(audio) along time; grey: its chains disagree, and it says where they began", fontsize=9
    )
    axes[count].legend(fontsize=8)
    for (name, result), colour in zip(results.items(), (GREY, ORANGE, BLUE), strict=False):
        coefficients = result.separation.speech.numel()
        iterations = np.arange(1, len(result.objective) + 1)
        axes[-1].plot(iterations, result.objective / coefficients, colour, label=name)
    axes[-1].set(xlabel="EM iteration", ylabel="nats / coefficient")
    axes[-1].set_title("objective", fontsize=9)
    axes[-1].legend(fontsize=8)
    save_figure(figure, path)
