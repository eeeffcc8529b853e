"""What a report says of bad lips is what the rows say."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from pyro_avse.metrics import auc
from pyro_avse.stft import STFT
from pyro_avse.sweep.bad_lips import draw_responsibilities, loss_table
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.mixtures import rebuild
from pyro_avse.sweep.protocol import read_protocol
from pyro_avse.sweep.report import make_report
from pyro_avse.sweep.results import load_results
from pyro_avse.weights.checkpoint import save_prior


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


def test_of_three_components_those_that_do_not_look_speak_together(
    small_sweep: dict[str, Any], tiny_prior: Any, tmp_path: Path
) -> None:
    """The AUC of a mixture of three is that of r(A-VAE) + r(V-VAE); the report and its figure are there."""
    files = [tmp_path / f"{name}.safetensors" for name in ("a_vae", "v_vae", "av_vae")]
    for file in files:
        save_prior(file, tiny_prior(file.stem), STFT())
    part = small_sweep | {"noises": ["white"], "snrs": [0.0], "clips": 1}
    evaluate(
        **part | {"models": [f"three={'+'.join(map(str, files))}"]},
        lips=["clean", "black"],
        out=tmp_path / "out",
    )
    frame, protocol = load_results(tmp_path / "out"), read_protocol(tmp_path / "out")
    assert frame["failure"].isna().all()
    (row,) = frame[frame["auc"].notna()].to_dict("records")
    (panel,) = draw_responsibilities(frame, protocol).axes
    made = rebuild(protocol, pd.Series(row))
    times, shown = panel.lines[0].get_xdata(), panel.lines[0].get_ydata()
    assert auc(np.asarray(shown), made.bad_on_grid(np.asarray(times)))[0] == row["auc"]
    assert np.mean(shown) > row["audio_responsibility"]
    assert "| three | vem | black |" in make_report(tmp_path / "out")


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
