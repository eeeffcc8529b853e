"""Tables, figures and a page to listen to, from a folder of results.

    table2.md    input scores by SNR: Table II of [Sadeghi2021]
    results.md   improvements of every model and scheme, over all, by noise and by SNR, as docs/RESULTS.md prints them
    fig3.png     improvements by SNR, Fig. 3            fig4.png   by type of noise, Fig. 4
    report.html  all of these in one file, with players for the best and the worst clips

and where lips were made bad on purpose, bad_lips.md, auc.md and responsibilities.png (`pyro_avse.sweep.bad_lips`).

Means are over clips, each first averaged over its conditions; intervals hold 95 % by Student's t. A mean over fewer
rows than there are says so: `+1.23 (n=47/50)`.
"""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from pyro_avse import html
from pyro_avse.files import make_folder, write_atomically
from pyro_avse.plots import save_figure
from pyro_avse.sweep.bad_lips import auc_table, draw_responsibilities, loss_table
from pyro_avse.sweep.evaluation import speech_of
from pyro_avse.sweep.mixtures import rebuild
from pyro_avse.sweep.protocol import find_run, read_protocol, runs_of
from pyro_avse.sweep.results import load_results, summarise
from pyro_avse.typing import JSON, InputError

if TYPE_CHECKING:
    import pandas as pd

DIGITS = {"si_sdr": 2, "sdr": 2, "pesq_nb": 3, "pesq_wb": 3, "stoi": 4, "estoi": 4}
TITLES = {
    "si_sdr": "SI-SDR (dB)",
    "sdr": "SDR (dB)",
    "pesq_nb": "PESQ narrow-band",
    "pesq_wb": "PESQ wide-band",
    "stoi": "STOI",
    "estoi": "ESTOI",
}
COLOURS = ("#3366aa", "#dd7722", "#339966", "#aa3355", "#7755aa", "#888888", "#bbaa22", "#22aabb")
SYSTEM = ["model", "inference", "lips"]
"""What is compared."""
PLAYERS = 3
"""Best clips, and worst, on the page."""

CAPTIONS = {
    "table2": "Input scores by SNR",
    "results": "Improvements, output minus input",
    "bad_lips": "What bad lips cost: scores with them minus scores with clean ones",
    "auc": "r(audio) as a detector of bad lips",
    "responsibilities": "r(audio) along time, and where the lips were bad",
    "fig3": "Improvements by SNR",
    "fig4": "Improvements by noise",
}
Table = list[list[str]]
"""Rows of cells; the first is the header."""


def make_report(folder: str | Path, out: str | Path | None = None) -> str:
    """Write the report of a sweep, finished or not, into `out` (default: FOLDER/report); its tables as markdown.

    Raises InputError for a folder without results, or without a single row, and an `out` that cannot be written to.
    """
    folder = Path(folder)
    protocol, frame = read_protocol(folder), load_results(folder)
    if frame.empty:
        raise InputError(f"{folder} holds no row yet: run pyro-avse evaluate --out {folder}")
    frame = _in_order(frame, protocol)
    out = folder / "report" if out is None else Path(out)
    make_folder(out)
    tables = {"table2": input_table(frame), "results": improvement_table(frame)}
    figures = {"fig3": draw_by(frame, "snr"), "fig4": draw_by(frame, "noise")}
    if len(loss := loss_table(frame)) > 1:
        tables["bad_lips"] = loss
    if frame["auc"].notna().any():
        tables["auc"] = auc_table(frame)
        figures["responsibilities"] = draw_responsibilities(frame, protocol)
    about = _about(frame, protocol)
    for name, table in tables.items():
        write_atomically(out / f"{name}.md", as_markdown(table).encode())
    for name, figure in figures.items():
        save_figure(figure, out / f"{name}.png")
    pieces = [html.paragraph(line) for line in about]
    for name, figure in figures.items():
        pieces += [html.heading(CAPTIONS[name]), html.picture(figure)]
    for name, (titles, *rows) in tables.items():
        pieces += [html.heading(CAPTIONS[name]), html.table(titles, rows)]
    pieces += _players(frame, protocol)
    write_atomically(out / "report.html", html.page("Evaluation", *pieces))
    return "\n".join([*about, "", *(as_markdown(table) for table in tables.values())])


def input_table(frame: "pd.DataFrame") -> Table:
    """Scores of the mixtures themselves, by SNR."""
    mixtures = frame.drop_duplicates(["clip", "noise", "snr"])
    table = [["SNR dB", *(TITLES[name] for name in DIGITS), "clips"]]
    for snr, rows in mixtures.groupby("snr", sort=True):
        table.append([f"{snr:g}", *_cells(rows, "in", ""), str(rows["clip"].nunique())])
    return table


def improvement_table(frame: "pd.DataFrame") -> Table:
    """Improvements of every system: over all rows, by noise, by SNR."""
    system = _system(frame)
    table = [[*system, "noise", "SNR dB", *DIGITS, "mean r(audio)", "seconds"]]
    for names, rows in frame.groupby(system, sort=False, observed=True):
        parts = [("all", "all", rows)]
        parts += [(str(n), "all", r) for n, r in rows.groupby("noise", sort=False, observed=True)]
        parts += [("all", f"{s:g}", r) for s, r in rows.groupby("snr", sort=True)]
        for noise, snr, part in parts:
            r = part["audio_responsibility"].mean()
            rest = [f"{r:.2f}" if np.isfinite(r) else "-", f"{part['seconds'].mean():.1f}"]
            table.append([*names, noise, snr, *_cells(part, "improvement", "+"), *rest])
    return table


def draw_by(frame: "pd.DataFrame", axis: str) -> Figure:
    """Mean improvements by "snr" or "noise", a panel for each score, a line for each system."""
    system = _system(frame)
    means = summarise(frame, [*system, axis], [f"{name}_improvement" for name in DIGITS])
    places = list(frame[axis].unique()) if axis == "noise" else sorted(frame[axis].unique())
    groups = list(means.groupby(system, sort=False, observed=True))
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels: Any = figure.subplots(2, 3).ravel()
    for panel, name in zip(panels, DIGITS, strict=True):
        for i, (names, rows) in enumerate(groups):
            mine = rows[rows["score"] == f"{name}_improvement"].set_index(axis).reindex(places)
            x = np.arange(len(places)) + 0.06 * (i - (len(groups) - 1) / 2)
            reach = [mine["mean"] - mine["low"], mine["high"] - mine["mean"]]
            style = {
                "color": COLOURS[i % len(COLOURS)],
                "marker": "o",
                "markersize": 4,
                "capsize": 3,
            }
            style["linestyle"] = "none" if axis == "noise" else ("-" if i < len(COLOURS) else "--")
            panel.errorbar(
                x, mine["mean"], yerr=np.nan_to_num(reach), label=" ".join(names), **style
            )
        panel.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        panel.set_title(f"{TITLES[name]}: output minus input", fontsize=9)
        turned = axis == "noise" and len(places) > 4
        labels = [f"{p:g}" if axis == "snr" else str(p) for p in places]
        panel.set_xticks(range(len(places)), labels, rotation=30 if turned else 0, fontsize=8)
        panel.set_xlabel("SNR (dB)" if axis == "snr" else "noise")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def as_markdown(table: Table) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([lines[0], "| --- " * len(table[0]) + "|", *lines[1:]]) + "\n"


def _cells(rows: "pd.DataFrame", side: str, sign: str) -> list[str]:
    """The mean of every score: `+1.23`, with `(n=47/50)` where rows lack it; `-` where all do."""
    means = summarise(rows.assign(all=0), ["all"], [f"{name}_{side}" for name in DIGITS])
    cells = []
    for (_, mean), digits in zip(means.iterrows(), DIGITS.values(), strict=True):
        missing = "" if mean["n"] == mean["rows"] else f" (n={mean['n']}/{mean['rows']})"
        cells.append((f"{mean['mean']:{sign}.{digits}f}" if mean["n"] else "-") + missing)
    return cells


def _system(frame: "pd.DataFrame") -> list[str]:
    """The model, and what else differs."""
    return ["model", *(name for name in SYSTEM[1:] if frame[name].nunique() > 1)]


def _in_order(frame: "pd.DataFrame", protocol: JSON) -> "pd.DataFrame":
    """Rows in the order in which the protocol names models, schemes and noises."""
    ranks = [
        frame[column].map({name: i for i, name in enumerate(protocol[kind])})
        for column, kind in (("model", "models"), ("inference", "inference"), ("noise", "noises"))
    ]
    order = np.lexsort([frame["snr"], ranks[2], ranks[1], ranks[0]])
    return frame.iloc[order].reset_index(drop=True)


def _about(frame: "pd.DataFrame", protocol: JSON) -> list[str]:
    """What was done, and what is missing from it."""
    axes = ("noises", "snrs", "lips")
    cells = {
        cell
        for sweep in protocol["sweeps"]
        for cell in product(*(sweep[a] for a in axes), runs_of(protocol, sweep))
    }
    total = len(cells) * len(protocol["clips"])
    over = {"clip": "whole clips", "active": "active speech (P.56)"}[protocol["level"]]
    lines = [
        f"{frame['clip'].nunique()} clips of {Path(protocol['data']).name}/{protocol['split']}, {len(frame)} rows,"
        f" {frame['seconds'].sum():.0f} s of enhancement. SNRs over {over}; seed {protocol['seed']}."
    ]
    if own := [name for name, noise in protocol["noises"].items() if noise["kind"] == "corpus"]:
        lines.append(
            f"Of {', '.join(own)}, the corpus's own mixtures, SNRs are nominal, as it says."
        )
    if len(frame) < total:
        lines.append(f"Not finished: {len(frame)} of {total} rows.")
    looped = frame.loc[frame["noise_looped"].fillna(False).astype(bool), "noise"].unique()
    if len(looped):
        lines.append(f"Shorter than some clips, and looped: {', '.join(sorted(looped))}.")
    for reason, count in frame["failure"].dropna().value_counts().items():
        lines.append(f"{count} rows failed: {reason}")
    return lines


def _players(frame: "pd.DataFrame", protocol: JSON) -> list[str]:
    """HTML: the clips with the best and the worst SI-SDR improvement, mixed and enhanced again."""
    ranked = frame.dropna(subset=["si_sdr_improvement"]).sort_values("si_sdr_improvement")
    worst = ranked.drop_duplicates("clip").head(PLAYERS)
    best = ranked.iloc[::-1].drop_duplicates("clip").head(PLAYERS)
    pieces = []
    for title, rows in (("Best clips", best), ("Worst clips", worst)):
        pieces.append(html.heading(f"{title}, by SI-SDR improvement"))
        for _, row in rows.iterrows():
            pieces += _player(row, protocol)
    return pieces


def _player(row: "pd.Series[Any]", protocol: JSON) -> list[str]:
    names = [row[name] for name in ("clip", "noise", "model", "inference")]
    title = "{} in {} at {:g} dB, {} by {}".format(*names[:2], row["snr"], *names[2:])
    scores = ", ".join(
        f"{TITLES[name]} {row[f'{name}_in']:.2f} to {row[f'{name}_out']:.2f}" for name in DIGITS
    )
    said = html.paragraph(f"{title}: {scores}")
    try:
        made = rebuild(protocol, row)
        run = find_run(protocol, row["model"], row["inference"])
        speech = speech_of(run, made, seed=int(row["seed"]))
    except InputError as error:
        return [said, html.paragraph(f"Not to be heard: {error}")]
    clean = made.clean.waveform / made.noisy.peak  # as loud as it is in the mixture
    sounds = {"clean": clean, "noisy": made.noisy.waveform, "enhanced": speech}
    return [said, html.table(list(sounds), [[html.player(0.9 * x) for x in sounds.values()]])]
