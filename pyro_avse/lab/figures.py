"""How well chains mix, as figures: traces, ranks, effective draws."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from pyro_avse.lab.diagnostics import ESS_MIN, RHAT_MAX, Diagnosis, of_groups
from pyro_avse.plots import BLUE, GREY, ORANGE, save_figure

if TYPE_CHECKING:
    import xarray


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
