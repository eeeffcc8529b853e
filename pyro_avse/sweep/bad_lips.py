"""What bad lips do, from a sweep that showed models clean and bad ones: does r(alpha_n) notice, and what does it cost?

auc                 how well r(audio) tells the frames whose lips are bad, over the frames of a mixture; of more than
                    two components, r of all that do not look at the lips
loss                scores with bad lips minus scores of the same mixture with clean ones
responsibilities    r(audio) along time of one mixture, over the truth of where its lips were bad
"""

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from pyro_avse.metrics import share_without_lips
from pyro_avse.plots import shade_disagreement
from pyro_avse.sweep.evaluation import find_enhancer
from pyro_avse.sweep.mixtures import rebuild
from pyro_avse.sweep.protocol import find_run
from pyro_avse.sweep.results import summarise
from pyro_avse.typing import JSON

if TYPE_CHECKING:
    import pandas as pd

SCORES = {"si_sdr": 2, "sdr": 2, "pesq_nb": 3, "stoi": 4}
MIXTURE = ["clip", "noise", "snr"]
SYSTEM = ["model", "inference", "lips"]


def auc_table(frame: "pd.DataFrame") -> list[list[str]]:
    """How well r(audio) tells the frames whose lips are bad, by system and SNR."""
    bad = frame[frame["auc"].notna()]
    means = summarise(bad, [*SYSTEM, "snr"], ["auc"])
    table = [[*SYSTEM, "SNR dB", "AUC", "low", "high", "clips"]]
    for row in means.sort_values([*SYSTEM, "snr"]).itertuples():
        values = [f"{value:.3f}" for value in (row.mean, row.low, row.high)]
        table.append(
            [*(str(getattr(row, n)) for n in SYSTEM), f"{row.snr:g}", *values, str(row.clips)]
        )
    return table


def loss_table(frame: "pd.DataFrame") -> list[list[str]]:
    """Scores with bad lips minus those of the same mixture with clean lips, with 95 % intervals over clips."""
    same = [*MIXTURE, "model", "inference"]
    clean = frame.loc[frame["lips"] == "clean", [*same, *(f"{name}_out" for name in SCORES)]]
    table = [[*SYSTEM, *(f"{name} [95 %]" for name in SCORES), "clips"]]
    for names, rows in frame[frame["lips"] != "clean"].groupby(SYSTEM, sort=False):
        pairs = rows.merge(clean, on=same, suffixes=("", "_clean"))
        if pairs.empty:
            continue
        losses = {n: pairs[f"{n}_out"] - pairs[f"{n}_out_clean"] for n in SCORES}
        means = summarise(pairs.assign(all=0, **losses), ["all"], list(SCORES)).set_index("score")
        cells = [
            f"{m['mean']:+.{digits}f} [{m['low']:+.{digits}f}, {m['high']:+.{digits}f}]"
            for m, digits in ((means.loc[n], d) for n, d in SCORES.items())
        ]
        table.append([*names, *cells, str(pairs["clip"].nunique())])
    return table


def draw_responsibilities(frame: "pd.DataFrame", protocol: JSON) -> Figure:
    """r(audio) along time of every system, bad lips shaded, for the mixture whose mean AUC is the median one.

    The mixture is made and enhanced again, from its row.
    """
    bad = frame[frame["auc"].notna()]
    means = bad.groupby([*MIXTURE, "lips"])["auc"].mean().sort_values()
    chosen = dict(zip(means.index.names, means.index[(len(means) - 1) // 2], strict=True))
    rows = bad
    for name, value in chosen.items():
        rows = rows[rows[name] == value]
    figure = Figure(figsize=(9, 1.9 * len(rows)), layout="constrained")
    panels: Any = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
    for panel, (_, row) in zip(panels, rows.iterrows(), strict=True):
        made = rebuild(protocol, row)
        enhancer = find_enhancer(find_run(protocol, row["model"], row["inference"]))
        result = enhancer.separate(enhancer.prepare(made.noisy, made.lips), seed=int(row["seed"]))
        times, truth = result.frame_times, made.bad_on_grid(result.frame_times)
        panel.set(ylim=(-0.05, 1.05), ylabel="r(audio)")
        shade_disagreement(panel, times, result.chains_disagree)
        shade = {"where": truth, "step": "mid", "color": "#eeccaa", "label": "lips are bad"}
        panel.fill_between(times, 0, 1, **shade)
        heard = share_without_lips(result.responsibilities, enhancer.prior.components_see)
        panel.plot(times, heard, color="#3366aa", label="r(audio)")
        title = f"{row['model']}, {row['inference']}: AUC {row['auc']:.2f}"
        panel.set_title(title, fontsize=9)
    panels[0].legend(fontsize=8, loc="upper right")
    panels[-1].set_xlabel("time (s)")
    figure.suptitle("{clip} in {noise} at {snr:g} dB, lips {lips}".format(**chosen), fontsize=10)
    return figure
