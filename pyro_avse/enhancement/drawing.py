"""A result as a figure: spectrograms on one scale, the mouths, and what the inference believes, along one time."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import soxr
from jaxtyping import Bool, Float, Float32, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.uncertainty import Uncertainty
from pyro_avse.plots import BLUE, ORANGE, draw_spectrogram, shade_disagreement, spectral_power

CROPS = 12
"""Mouths in a row."""


class Drawn(Protocol):
    """Of an `Enhanced`, what is drawn."""

    @property
    def recording(self) -> Float32[np.ndarray, "sample"]: ...

    @property
    def speech(self) -> Float32[np.ndarray, "sample"]: ...

    @property
    def noise(self) -> Float32[np.ndarray, "sample"]: ...

    @property
    def sample_rate(self) -> int: ...

    @property
    def responsibilities(self) -> Float[np.ndarray, "component frame"]: ...

    @property
    def chains_disagree(self) -> Bool[np.ndarray, "frame"] | None: ...

    @property
    def frame_times(self) -> Float[np.ndarray, "frame"]: ...


def result_figure(
    result: Drawn,
    lips: Shaped[np.ndarray, "frame 67 67"] | None = None,
    lips_mask: Bool[np.ndarray, "frame"] | None = None,
) -> Figure:
    """Recording, speech and noise on one scale of dB; the mouths, where given; r(alpha_n), where there are two.

    Args:
        lips: one picture a frame of the STFT, as `Recording.lips`.
        lips_mask: False where there is no picture.
    """
    parts = {"recording": result.recording, "speech": result.speech, "noise": result.noise}
    at_16k = {
        name: soxr.resample(w, result.sample_rate, SAMPLE_RATE)
        if result.sample_rate != SAMPLE_RATE
        else w
        for name, w in parts.items()
    }
    mixture = len(result.responsibilities) > 1
    heights = [1.5] * 3 + [0.62] * (lips is not None) + [1.1] * mixture
    axes = spectrograms_above(heights, at_16k)
    seconds = len(at_16k["recording"]) / SAMPLE_RATE
    if lips is not None:
        draw_mouths(axes[3], lips, lips_mask, seconds)
    if mixture:
        draw_responsibilities(axes[-1], result, seconds)
    axes[-1].set_xlabel("time (s)")
    axes[-1].tick_params(labelbottom=True)
    return axes[0].figure  # type: ignore[return-value]


def spectrograms_above(
    heights: list[float], waveforms: Mapping[str, Float[np.ndarray, "sample"]]
) -> list[Axes]:
    """Axes one below the other, of heights in inches; the first ones show the waveforms, on the scale of the first."""
    figure = Figure(figsize=(7, sum(heights) + 0.6), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, height_ratios=heights))
    loudest = float(spectral_power(next(iter(waveforms.values()))).max())
    image = None
    for axis, (title, waveform) in zip(axes, waveforms.items(), strict=False):
        image = draw_spectrogram(axis, waveform, title, loudest)
        axis.tick_params(labelbottom=False)
    if image is not None:
        figure.colorbar(image, ax=axes[: len(waveforms)], label="dB", pad=0.01, aspect=40)
    return axes


def draw_mouths(
    axis: Axes,
    lips: Shaped[np.ndarray, "frame 67 67"],
    lips_mask: Bool[np.ndarray, "frame"] | None,
    seconds: float,
) -> None:
    """What the model looks at, along time; an empty place where it has no picture."""
    for k in range(CROPS):
        frame = int((k + 0.5) / CROPS * len(lips))
        left, right = k * seconds / CROPS, (k + 1) * seconds / CROPS
        if lips_mask is None or lips_mask[frame]:
            most = 255 if lips.dtype == np.uint8 else 1
            axis.imshow(
                lips[frame],
                cmap="gray",
                vmin=0,
                vmax=most,
                aspect="auto",
                extent=(left, right, 0, 1),
            )
        else:
            axis.text((left + right) / 2, 0.5, "none", ha="center", va="center", fontsize=8)
    axis.set(xlim=(0, seconds), ylim=(0, 1), yticks=[])
    axis.tick_params(labelbottom=False)
    axis.set_title("the mouth, as the model sees it", fontsize=9)


def draw_responsibilities(
    axis: Axes, result: Drawn, seconds: float, doubt: Uncertainty | None = None
) -> None:
    """r(audio) of a model with two components along time, with the draws' band; grey where its chains disagree."""
    axis.set_ylim(-0.05, 1.05)
    shade_disagreement(axis, result.frame_times, result.chains_disagree)
    said = ["grey: chains disagree, no answer"] if axis.patches else []
    if doubt is not None:
        said.insert(0, "band: nine tenths of the draws")
        low, high = doubt.r_low[:, 0], doubt.r_high[:, 0]
        axis.fill_between(doubt.times, low, high, color=ORANGE, alpha=0.4, lw=0)
    axis.plot(result.frame_times, result.responsibilities[0], BLUE, lw=1)
    axis.set(xlim=(0, seconds), yticks=[0, 0.5, 1], yticklabels=["lips 0", "0.5", "sound 1"])
    legend = "\n" * bool(said) + "; ".join(said)
    axis.set_title(f"r(audio): do the sound or the lips explain the speech?{legend}", fontsize=9)
