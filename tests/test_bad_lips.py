"""What a report says of bad lips is what the rows say."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from pyro_avse.sweep.bad_lips import draw_responsibilities, loss_table
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.protocol import read_protocol
from pyro_avse.sweep.report import make_report
from pyro_avse.sweep.results import load_results


def test_the_loss_is_between_the_same_mixtures() -> None:
    """Bad minus clean, mixture by mixture, averaged over clips; a mixture without its clean twin does not count."""
    mixtures = [("x", -5.0), ("x", 5.0), ("y", -5.0), ("z", -5.0)]
    rows = [
        {"clip": c, "noise": "white", "snr": s, "model": "m", "inference": "vem", "lips": lips}
        | {f"{name}_out": value for name in ("si_sdr", "sdr", "pesq_nb", "stoi")}
        for lips, values in (("clean", [10, 20, 30]), ("black", [9, 17, 24, 99]))
        for (c, s), value in zip(mixtures, values, strict=False)
    ]
    header, row = loss_table(pd.DataFrame(rows))
    # clip x: the mean of -1 and -3; clip y: -6
    assert row[3].startswith("-4.00 [")
    assert header[:3] + header[-1:] == ["model", "inference", "lips", "clips"]
    assert row[-1] == "2"


@pytest.fixture(scope="module")
def sweep(small_sweep: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad_lips")
    part = small_sweep | {"noises": ["white"], "snrs": [0.0], "clips": 1}
    evaluate(**part, lips=["clean", "black"], out=folder)
    return folder


def test_the_figure_shows_r_over_the_truth(sweep: Path) -> None:
    """One panel for the one model that has r(alpha): r in [0, 1] over shades that are the share of bad frames."""
    frame, protocol = load_results(sweep), read_protocol(sweep)
    (panel,) = draw_responsibilities(frame, protocol).axes
    r = panel.lines[0].get_ydata()
    assert panel.get_title().startswith("min_vae_v2")
    row = frame[frame["auc"].notna()].iloc[0]
    assert np.mean(r) == pytest.approx(row["audio_responsibility"], abs=1e-6)
    assert panel.collections


def test_a_report_tells_of_bad_lips_where_there_were_some(
    sweep: Path, finished_sweep: Path
) -> None:
    """Tables and figure are there, and are not where all lips were clean."""
    out = sweep / "report"
    said = make_report(sweep)
    assert "| min_vae_v2 | vem | black |" in said
    assert (out / "bad_lips.md").read_text().count("\n") == 4  # A-VAE does not look, MIN-VAE does
    assert imread(out / "responsibilities.png").ndim == 3
    make_report(finished_sweep, sweep / "clean")
    assert not (sweep / "clean" / "bad_lips.md").exists()
