"""Figures: what a recording sounds like before and after, and how a training run went."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_avse.data.audio import SAMPLE_RATE
from pyro_avse.enhancer import Enhanced
from pyro_avse.files import write_atomically
from pyro_avse.typing import JSON

BLUE, ORANGE, GREY = "#3366aa", "#dd7722", "#888888"


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
            axes[count].plot(result.frame_times, result.responsibilities[0], BLUE, label=label)
    seconds = len(next(iter(waveforms.values()))) / SAMPLE_RATE
    axes[count].set(xlim=(0, seconds), ylim=(-0.05, 1.05), xlabel="time (s)", ylabel="r(audio)")
    axes[count].set_title("responsibility of the audio component along time", fontsize=9)
    axes[count].legend(fontsize=8)
    for (name, result), colour in zip(results.items(), (GREY, ORANGE, BLUE), strict=False):
        coefficients = result.separation.speech.numel()
        iterations = np.arange(1, len(result.objective) + 1)
        axes[-1].plot(iterations, result.objective / coefficients, colour, label=name)
    axes[-1].set(xlabel="EM iteration", ylabel="nats / coefficient")
    axes[-1].set_title("objective (41)", fontsize=9)
    axes[-1].legend(fontsize=8)
    save_figure(figure, path)


def draw_spectrogram(axis: Axes, waveform: Float[np.ndarray, "sample"], title: str) -> None:
    """Power in dB under the loudest bin, 70 dB down to black, 0 to 8 kHz."""
    window = np.hanning(512)
    padded = np.pad(waveform, (256, 256))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::128]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    level = 10 * np.log10(power / power.max() + 1e-12)
    axis.imshow(
        level.T,
        origin="lower",
        aspect="auto",
        extent=(0, len(waveform) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000),
        vmin=-70,
        vmax=0,
        cmap="magma",
    )
    axis.set(ylabel="kHz")
    axis.set_title(title, fontsize=9)


def training_figure(history: Sequence[JSON], path: Path) -> None:
    """The ELBO, its two parts on held-out frames, and the mean responsibilities, epoch by epoch."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    epochs = [row["epoch"] for row in history]
    curves = {
        "ELBO": ((0, 0), {"train": "train_elbo", "valid": "valid_elbo"}),
        "reconstruction": ((0, 1), {"valid": "valid_reconstruction"}),
        "KL": ((1, 0), {"valid": "valid_kl"}),
    }
    for title, (place, keys) in curves.items():
        for label, key in keys.items():
            colour = BLUE if label == "valid" else GREY
            axes[place].plot(epochs, [row[key] for row in history], colour, label=label)
        axes[place].set(xlabel="epoch", ylabel="nats / frame")
        axes[place].set_title(title, fontsize=9)
        axes[place].legend(fontsize=8)
    axes[1, 1].plot(
        epochs, [row["valid_responsibility"][0] for row in history], BLUE, label="valid"
    )
    axes[1, 1].plot(epochs, [row["mixing_weight"][0] for row in history], GREY, label="pi")
    axes[1, 1].set(xlabel="epoch", ylim=(-0.05, 1.05))
    axes[1, 1].set_title("mean responsibility of component 0, and pi", fontsize=9)
    axes[1, 1].legend(fontsize=8)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, beside and then renamed."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, buffer.getvalue())
