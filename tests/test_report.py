"""Means, intervals, tables and the page to listen to say what the rows say."""

import base64
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from matplotlib.image import imread
from scipy import stats

from pyro_avse.cli import main
from pyro_avse.metrics import score
from pyro_avse.sweep.report import as_markdown, improvement_table, input_table, make_report
from pyro_avse.sweep.results import load_results, summarise
from pyro_avse.typing import InputError

Run = Callable[..., tuple[int, str, str]]


def test_intervals_hold_the_mean_over_clips_as_often_as_they_claim() -> None:
    """600 sweeps of 8 clips in 6 conditions, clips differing more than conditions.

    Of 600 intervals at 95 % the share that holds has a standard deviation of 0.009: 0.04 off is 4.5 of them (false
    alarms under 1e-5). Rows taken for clips, the broken twin, hold in less than three quarters.
    """
    rng = np.random.default_rng(0)
    sweep, clip, condition = (axis.ravel() for axis in np.indices((600, 8, 6)))
    of_clip, noise = rng.standard_normal((600, 8)), 0.5 * rng.standard_normal(sweep.shape)
    frame = pd.DataFrame({"sweep": sweep, "clip": clip, "gain": of_clip[sweep, clip] + noise + 3})

    def held(frame: pd.DataFrame) -> float:
        means = summarise(frame, ["sweep"], ["gain"])
        return float(((means["low"] < 3) & (means["high"] > 3)).mean())

    assert abs(held(frame) - 0.95) < 0.04
    assert held(frame.assign(clip=clip * 6 + condition)) < 0.75


def test_a_mean_is_over_clips_each_averaged_first() -> None:
    """Against scipy's interval of the clips' own means; rows without the score are counted."""
    frame = pd.DataFrame(
        {
            "model": ["a"] * 6 + ["b"],
            "clip": ["x", "x", "x", "y", "y", "z", "x"],
            "gain": [1.0, 2.0, 3.0, 8.0, np.nan, 5.0, 1.0],
        }
    )
    a, b = (row for _, row in summarise(frame, ["model"], ["gain"]).iterrows())
    clips = [2.0, 8.0, 5.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(clips), scale=stats.sem(clips))
    assert (a["mean"], a["low"], a["high"]) == pytest.approx((5.0, low, high))
    assert (a["clips"], a["n"], a["rows"]) == (3, 5, 6)
    assert (b["mean"], b["clips"], b["n"], b["rows"]) == (1.0, 1, 1, 1)
    assert np.isnan([b["low"], b["high"]]).all(), "one clip has no interval"
    empty = summarise(frame.assign(gain=np.nan), ["model"], ["gain"])
    assert empty["mean"].isna().all()
    assert empty["n"].tolist() == [0, 0]


def test_tables_are_means_of_their_rows_and_count_what_is_missing(finished_sweep: Path) -> None:
    """Every cell against a plain mean: the clips' conditions are as many for each."""
    frame = load_results(finished_sweep)
    header, *rows = improvement_table(frame)
    assert " | ".join(header) == (
        "model | noise | SNR dB | si_sdr | sdr | pesq_nb | pesq_wb | stoi | estoi | mean r(audio) | seconds"
    )
    assert len(rows) == 2 * (1 + 3 + 2)
    for model, noise, snr, *cells in rows:
        mine = frame[frame["model"] == model]
        mine = mine if noise == "all" else mine[mine["noise"] == noise]
        mine = mine if snr == "all" else mine[mine["snr"] == float(snr)]
        for name, cell in zip(header[3:9], cells, strict=False):
            gain = (mine[f"{name}_out"] - mine[f"{name}_in"]).mean()
            assert float(cell) == pytest.approx(gain, abs=0.006 if "sdr" in name else 6e-4)
            assert cell[0] in "+-"
    header, *rows = input_table(frame)
    assert [row[0] for row in rows] == ["-5", "5"]
    mixtures = frame.drop_duplicates(["clip", "noise", "snr"])
    expected = mixtures[mixtures["snr"] == 5]["pesq_nb_in"].mean()
    assert float(rows[1][header.index("PESQ narrow-band")]) == pytest.approx(expected, abs=6e-4)

    few = frame[frame["model"] == "a_vae"].assign(pesq_nb_improvement=np.nan)
    few.loc[few.index[:2], "stoi_improvement"] = np.nan
    header, total, *_ = improvement_table(few)
    assert re.fullmatch(r"[+-]\d\.\d{4} \(n=10/12\)", total[header.index("stoi")])
    assert total[header.index("pesq_nb")] == "- (n=0/12)"
    assert "n=" not in total[header.index("sdr")]
    markdown = as_markdown([["a|b", "c"], ["1", "2"]]).splitlines()
    assert markdown == ["| a\\|b | c |", "| --- | --- |", "| 1 | 2 |"]


def test_the_page_plays_what_was_scored(finished_sweep: Path, tmp_path: Path) -> None:
    """One file without links; best and worst clips, whose sounds have the scores of their rows."""
    text = make_report(finished_sweep, tmp_path)
    frame = load_results(finished_sweep)
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["fig3.png", "fig4.png", "report.html", "results.md", "table2.md"]
    )
    assert (tmp_path / "results.md").read_text() in text
    assert (tmp_path / "table2.md").read_text() in text
    assert "Shorter than some clips, and looped: hum." in text
    assert "Not finished" not in text
    for name in ("fig3.png", "fig4.png"):
        picture = imread(tmp_path / name)
        assert min(picture.shape[:2]) > 500
        assert np.ptp(picture) > 0.5
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page
    assert set(re.findall(r'src="([^,]{1,30}),', page)) == (
        {"data:image/png;base64", "data:audio/flac;base64"}
    )
    sounds = [
        soundfile.read(io.BytesIO(base64.b64decode(sound)))[0]
        for sound in re.findall(r"data:audio/flac;base64,([^\"]+)", page)
    ]
    titles = re.findall(r"<p>(\S+) in (\S+) at (\S+) dB, (\S+) by (\S+): SI-SDR", page)
    assert len(titles) == 4, "two clips, best and worst"
    assert len(sounds) == 3 * 4
    gains = []
    for title, clean, noisy, enhanced in zip(
        titles, sounds[::3], sounds[1::3], sounds[2::3], strict=True
    ):
        clip, noise, snr, model, _ = title
        row = frame[
            (frame["clip"] == clip)
            & (frame["noise"] == noise)
            & (frame["snr"] == float(snr))
            & (frame["model"] == model)
        ].iloc[0]
        assert score(noisy, clean).si_sdr == pytest.approx(row["si_sdr_in"], abs=0.01)
        assert score(enhanced, clean).si_sdr == pytest.approx(row["si_sdr_out"], abs=0.01)
        gains.append(row["si_sdr_improvement"])
    everything = frame["si_sdr_improvement"]
    assert (gains[0], gains[2]) == (everything.max(), everything.min())
    assert gains[0] >= gains[1] >= gains[3] >= gains[2]


def test_a_report_says_what_is_missing(finished_sweep: Path, tmp_path: Path) -> None:
    """Of a sweep that is not finished, has failures and whose corpus is gone."""
    folder = tmp_path / "results"
    (folder / "parts").mkdir(parents=True)
    protocol = json.loads((finished_sweep / "protocol.json").read_text())
    (folder / "protocol.json").write_text(json.dumps(protocol | {"data": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="holds no row yet"):
        make_report(folder)
    shutil.copy(finished_sweep / "rows.parquet", folder)
    table = pd.read_parquet(folder / "rows.parquet").iloc[:20]
    scores = [name for name in table if name.endswith(("_in", "_out"))]
    table.loc[table.index[:3], scores] = np.nan
    table.loc[table.index[:3], "failure"] = "RuntimeError: <b>diverged</b>"
    table.to_parquet(folder / "rows.parquet")
    text = make_report(folder)
    assert "Not finished: 20 of 24 rows." in text
    assert "3 rows failed: RuntimeError: <b>diverged</b>" in text
    assert re.search(r"\(n=\d+/\d+\)", text)
    page = (folder / "report/report.html").read_text()
    assert "&lt;b&gt;diverged" in page
    assert "<audio" not in page
    assert "Not to be heard: " in page


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pyro-avse", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return call


def command(sweep: dict[str, Any], out: Path) -> list[object]:
    lists = {"noise": sweep["noises"], "snr": sweep["snrs"], "models": sweep["models"]}
    options = {name: ",".join(map(str, values)) for name, values in lists.items()}
    options |= {"data": sweep["data"], "split": sweep["split"], "clips": 1, "out": out}
    options |= {"settings": json.dumps(sweep["settings"]), "inference": "vem"}
    return ["evaluate", *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_evaluate_and_report_on_the_command_line(
    small_sweep: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    """`evaluate` says what it looped, where, and what next; `report` prints the tables."""
    noises = small_sweep["noises"][2:]
    part = small_sweep | {"snrs": [-5.0], "noises": noises, "models": small_sweep["models"][:1]}
    code, out, err = run(*command(part, tmp_path / "out"))
    assert (code, out) == (0, "")
    assert "the noise hum is shorter than some clips: it was looped" in err
    assert "1 rows in" in err
    code, out, err = run("report", tmp_path / "out", "--out", tmp_path / "here")
    assert code == 0
    assert "| a_vae | hum | all |" in out
    assert (tmp_path / "here" / "report.html").is_file()
    assert not (tmp_path / "out" / "report").exists()
    before = sorted((tmp_path / "out").rglob("*"))
    for words, message in [
        (["--snr", "loud"], "--snr 'loud': give numbers of dB"),
        (["--settings", "{"], "--settings is no JSON"),
        (["--settings", '{"iterations": 3}'], "give an object for every scheme"),
        (["--seed", 5], "with seed 0, not 5: give another --out"),
        (["--split", "best"], "holds no best utterances"),
        (["--noise", "rain"], "unknown noise 'rain'"),
        (["--jobs", 0], "'--jobs'"),
    ]:
        code, out, err = run(*command(part, tmp_path / "out"), *words)
        assert (code, out) == (2, "")
        assert err.startswith("pyro-avse: error: ")
        assert err.count("\n") == 1
        assert message in err
    assert run("report", tmp_path)[0] == 2
    assert sorted((tmp_path / "out").rglob("*")) == before
