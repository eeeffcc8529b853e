"""A comparison to look at and listen to: its table for the terminal, and one self-contained HTML page."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_avse import html
from pyro_avse.enhancement import measure
from pyro_avse.lab.comparison import Comparison, Trial
from pyro_avse.lab.diagnostics import RHAT_MAX
from pyro_avse.plots import draw_spectrogram
from pyro_avse.typing import JSON

COLUMNS = {
    **measure.TITLES,
    "seconds": ("seconds", 1),
    "iterations": ("iterations", 0),
    "ess_per_second_min": ("ESS/s min", 1),
    "ess_per_second_median": ("ESS/s median", 1),
    "rhat_max": ("R-hat max", 3),
    "unmixed": (f"R-hat > {RHAT_MAX}", 2),
    "acceptance": ("acceptance", 2),
}
"""Title and decimals of the numbers that a table shows."""
TITLES = ["scheme", "kernel", *(title for title, _ in COLUMNS.values())]


def input_cells(comparison: Comparison) -> list[str]:
    """The row of the mixtures themselves: means of their scores."""
    means = {}
    for name in COLUMNS:
        values = [getattr(s, name) for s in comparison.inputs if s is not None and hasattr(s, name)]
        means[name] = float(np.mean(values)) if values else np.nan
    cells = [_number(means[name], digits) for name, (_, digits) in COLUMNS.items()]
    return ["noisy", "", *cells]


def cells(row: JSON, num_clips: int) -> list[str]:
    """One row of `Comparison.rows` in text: `1.23 ± 0.10 (n=47/50)`, or - for what is missing."""
    found = [row["scheme"], row["kernel"] or "-"]
    for name, (_, digits) in COLUMNS.items():
        text = _number(np.nan if row[name] is None else row[name], digits)
        if name in row["intervals"]:
            text += f" ± {row['intervals'][name][1] - row[name]:.{digits}f}"
        count = row["counts"][name]
        found.append(text + (f" (n={count}/{num_clips})" if 0 < count < num_clips else ""))
    return found


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def comparison_page(comparison: Comparison) -> bytes:
    """The HTML page: the table over all clips; sound, spectrograms and curves of the first clip."""
    rows, clip = comparison.rows, comparison.clips[0]
    heard = [trial for trial in comparison.trials if trial.speech is not None]
    table = [input_cells(comparison), *(cells(row, len(comparison.clips)) for row in rows)]
    return html.page(
        f"Schemes and kernels on {', '.join(clip.name for clip in comparison.clips)}",
        html.table(TITLES, table),
        *_notes(rows),
        html.heading(f"Listen: {clip.name}"),
        html.table(["", "sound"], list(_players(comparison, heard))),
        html.heading("Spectrograms"),
        html.picture(_spectrograms(comparison, heard)),
        html.heading("Objective against time"),
        html.paragraph(
            "Each scheme has an objective of its own. Iterations, which of nuts are its draws and of auto_normal its "
            "steps, are drawn as if each took the same time."
        ),
        html.picture(_objectives(heard)),
        html.heading("Effective draws a second, frame by frame"),
        html.picture(_efficiencies(heard)),
    )


def _notes(rows: list[JSON]) -> Iterator[str]:
    for row in rows:
        for key, text in (("diagnosed", "ESS, R-hat and acceptance of"), ("reason", "missing:")):
            if row[key]:
                yield html.paragraph(f"{label(row)}: {text} {row[key]}")


def label(row: JSON) -> str:
    return " with ".join(filter(None, (row["scheme"], row["kernel"])))


def _waveforms(comparison: Comparison, heard: list[Trial]) -> Iterator[tuple[str, Any]]:
    clip = comparison.clips[0]
    yield "noisy", clip.mixture.waveform
    if clip.clean is not None:
        yield "clean", clip.clean.waveform
    for trial in heard:
        yield label(trial.row), trial.speech


def _players(comparison: Comparison, heard: list[Trial]) -> Iterator[list[str]]:
    for name, waveform in _waveforms(comparison, heard):
        yield [name, html.player(waveform)]


def _spectrograms(comparison: Comparison, heard: list[Trial]) -> Figure:
    sounds = list(_waveforms(comparison, heard))
    height = (len(sounds) + 1) // 2
    figure = Figure(figsize=(12, 1.8 * height), layout="constrained")
    axes: Any = figure.subplots(height, 2, squeeze=False).ravel()
    for axis, (name, waveform) in zip(axes, sounds, strict=False):
        draw_spectrogram(axis, waveform, name)
    for axis in axes[len(sounds) :]:
        axis.set_axis_off()
    return figure


def _objectives(heard: list[Trial]) -> Figure:
    """A panel for each scheme, a line for each of its kernels."""
    heard = [trial for trial in heard if trial.enhanced is not None]  # a rival has none
    schemes = list(dict.fromkeys(trial.row["scheme"] for trial in heard))
    figure = Figure(figsize=(12, 2.2 * max(len(schemes), 1)), layout="constrained")
    axes: Any = figure.subplots(max(len(schemes), 1), 1, squeeze=False)[:, 0]
    for axis, scheme in zip(axes, schemes, strict=False):
        for trial in heard:
            if trial.row["scheme"] != scheme or trial.enhanced is None:
                continue
            objective = trial.enhanced.objective / trial.enhanced.separation.speech.numel()
            seconds = np.linspace(0, trial.row["seconds"], len(objective) + 1)[1:]
            axis.plot(seconds, objective, label=trial.row["kernel"])
        axis.set_title(scheme, fontsize=9)
        axis.set(xlabel="seconds", ylabel="nats / coefficient")
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
    return figure


def _efficiencies(heard: list[Trial]) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    axis = figure.subplots()
    for trial in heard:
        if trial.ess_per_second is not None and trial.enhanced is not None:
            axis.plot(trial.enhanced.frame_times, trial.ess_per_second, label=label(trial.row))
    axis.set(xlabel="time in the clip (s)", ylabel="bulk ESS / s", yscale="symlog")
    if axis.lines:
        axis.legend(fontsize=8)
    return figure
