"""What figures share: spectrograms, grey where chains disagree, files. Each wing draws its own."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.files import write_atomically

BLUE, ORANGE, GREY, GREEN = "#3366aa", "#dd7722", "#888888", "#44cc99"


DEEP = 70
"""dB under the loudest bin at which a spectrogram is black."""


def spectral_power(waveform: Float[np.ndarray, "sample"]) -> Float[np.ndarray, "frame freq"]:
    """|STFT|^2 of a 16 kHz waveform, 32 ms a frame, 8 ms apart."""
    padded = np.pad(waveform, (256, 256))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::128]
    return np.abs(np.fft.rfft(frames * np.hanning(512))) ** 2


def draw_spectrogram(
    axis: Axes,
    waveform: Float[np.ndarray, "sample"],
    title: str,
    loudest: float | None = None,
) -> AxesImage:
    """Power in dB under `loudest` (None: its own loudest bin), 70 dB down to black, 0 to 8 kHz."""
    power = spectral_power(waveform)
    level = 10 * np.log10(power / (power.max() if loudest is None else loudest) + 1e-12)
    image = axis.imshow(
        level.T,
        origin="lower",
        aspect="auto",
        extent=(0, len(waveform) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000),
        vmin=-DEEP,
        vmax=0,
        cmap="magma",
    )
    axis.set(ylabel="kHz")
    axis.set_title(title, fontsize=9, parse_math=False)
    return image


def shade_disagreement(
    axis: Axes, times: Float[np.ndarray, "frame"], disagree: Bool[np.ndarray, "frame"] | None
) -> None:
    """Grey where chains sat in different modes: r(alpha_n) there is where they began, and no posterior."""
    if disagree is not None and disagree.any():
        low, high = axis.get_ylim()
        width = float(times[1] - times[0]) if len(times) > 1 else 1.0
        centres, height = times[disagree], high - low
        axis.bar(centres, height, width, low, color="#e4e4e4", label="chains disagree")
        axis.set_ylim(low, high)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, beside and then renamed."""
    write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
