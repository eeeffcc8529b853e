"""Figures: what a recording sounds like before and after, how a training run went, how well chains mix."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_avse.data.audio import SAMPLE_RATE
from pyro_avse.diagnostics import ESS_MIN, RHAT_MAX, Diagnosis, of_groups
from pyro_avse.enhancer import Enhanced
from pyro_avse.files import write_atomically
from pyro_avse.typing import JSON

if TYPE_CHECKING:
    import xarray

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
    axes[-1].set_title("objective", fontsize=9)
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
        "ELBO": ((0, 0), {"train": "train_objective", "valid": "valid_elbo"}),
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


def diagnosis_figures(idata: Any, diagnosis: Diagnosis, folder: Path) -> dict[str, str]:
    """Write trace.png, rank.png and ess.png into `folder`; their paths.

    Traces and ranks are ArviZ's, of the worst code of the three worst frames and of the median one. The ranks of chains
    that agree are uniform.
    """
    import arviz

    codes = chosen_codes(idata, diagnosis)
    figures = {"ess": ess_figure(diagnosis)}
    with warnings.catch_warnings():
        # Of chains that never moved, which `diagnosis` says too; of what Matplotlib deprecates, which is not ours.
        warnings.simplefilter("ignore")
        if int(arviz.__version__.split(".")[0]) >= 1:
            from matplotlib import pyplot

            for name, draw in {"trace": arviz.plot_trace, "rank": arviz.plot_rank}.items():
                drawn = draw(of_groups({"posterior": codes}), backend="matplotlib")
                figures[name] = drawn.viz["figure"].item()
                pyplot.close(figures[name])  # it is drawn below, and nowhere else
        else:
            count = len(codes.data_vars)
            for name in ("trace", "rank"):
                figures[name] = Figure(figsize=(9, 2.2 * count), layout="constrained")
            traces: Any = figures["trace"].subplots(count, 2, squeeze=False)
            ranks: Any = figures["rank"].subplots(count, 1, squeeze=False)
            arviz.plot_trace(codes, axes=traces, compact=False, show=False)
            arviz.plot_rank(codes, ax=ranks[:, 0], show=False)
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, path in paths.items():
        save_figure(figures[name], path)
    return {name: str(path) for name, path in paths.items()}


def chosen_codes(idata: Any, diagnosis: Diagnosis) -> "xarray.Dataset":
    """Draws (chain, draw) of one code each of the three frames of lowest ESS and of the median one, named so."""
    import arviz
    import xarray

    ess = diagnosis.ess_bulk
    order = np.argsort(ess, axis=None)
    codes = {}
    for place in dict.fromkeys([*order[:3], order[len(order) // 2]]):
        index = np.unravel_index(place, ess.shape)
        at = dict(zip(idata["posterior"]["z"].dims[2:-1], map(int, index), strict=True))
        frame = idata["posterior"]["z"].isel(at).reset_coords(drop=True)
        worst = int(np.argmin(arviz.ess(frame.to_dataset(name="z"))["z"].values))
        label = ", ".join(f"{name} {i}" for name, i in at.items())
        codes[f"{label}, code {worst}"] = frame.isel(latent=worst).reset_coords(drop=True)
    return xarray.Dataset(codes)


def ess_figure(diagnosis: Diagnosis) -> Figure:
    """Bulk and tail ESS and R-hat of every frame, all utterances one after another, with their thresholds."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes: Any = figure.subplots(2, 1, sharex=True)
    axes[0].plot(diagnosis.ess_bulk.ravel(), BLUE, label="bulk")
    axes[0].plot(diagnosis.ess_tail.ravel(), ORANGE, label="tail")
    axes[0].axhline(ESS_MIN, color=GREY, linestyle="--", label=f"threshold {ESS_MIN}")
    axes[0].set(ylabel="effective draws", yscale="symlog")
    axes[0].legend(fontsize=8)
    axes[1].plot(diagnosis.rhat.ravel(), BLUE)
    axes[1].axhline(RHAT_MAX, color=GREY, linestyle="--", label=f"threshold {RHAT_MAX}")
    axes[1].set(xlabel="frame", ylabel="R-hat")
    axes[1].legend(fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, beside and then renamed."""
    write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
