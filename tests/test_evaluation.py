"""A sweep's rows are what they say, each once, whenever and however often it is stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from pyarrow.parquet import read_table

from pyro_avse.enhancement.find import build_scheme
from pyro_avse.inference import MCEM, SCHEMES, VEM, RandomWalk
from pyro_avse.inference.adaptation import DualAveraging, RobbinsMonro
from pyro_avse.inference.auto_normal import AutoNormal
from pyro_avse.inference.gibbs import Gibbs
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.nuts import NUTS
from pyro_avse.inference.pcn import PCN
from pyro_avse.metrics import NAMES, score
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.sweep import evaluation, mixtures
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.mixtures import mix, rebuild
from pyro_avse.sweep.protocol import make_protocol, read_protocol, units
from pyro_avse.sweep.results import KEYS, load_results, merge_parts, write_row
from pyro_avse.typing import InputError

Same = Callable[[pd.DataFrame, pd.DataFrame], None]


def test_every_combination_is_one_row(finished_sweep: Path) -> None:
    """2 clips x 3 noises x 2 SNRs x 2 models; nothing failed; improvements are output minus input."""
    frame = load_results(finished_sweep)
    assert len(frame) == 24 == len(frame.drop_duplicates(list(KEYS)))
    for name, count in zip(KEYS, (2, 3, 2, 1, 2, 1), strict=True):
        assert frame[name].nunique() == count, name
    assert frame["failure"].isna().all()
    assert np.allclose(
        frame["si_sdr_in"], frame["snr"], atol=0.6
    )  # not zero: speech and noise correlate
    for name in NAMES:
        change = frame[f"{name}_out"] - frame[f"{name}_in"]
        assert np.array_equal(frame[f"{name}_improvement"], change, equal_nan=True)
        assert frame[f"{name}_in"].notna().all(), name
    shared = frame.groupby(["clip", "noise", "snr"])[["si_sdr_in", "noise_gain"]].nunique()
    assert (shared == 1).all(axis=None), "models were given other mixtures"
    assert (frame["noise_looped"] == (frame["noise"] == "hum")).all()
    assert (frame["iterations"] == 2).all()
    assert frame.loc[frame["model"] == "a_vae", "audio_responsibility"].eq(1).all()
    assert frame.loc[frame["model"] != "a_vae", "audio_responsibility"].between(0, 0.999).all()
    for row in frame.itertuples():
        speakers = {Path(file).parts[-2] for file in row.noise_files}
        assert speakers == ({"s1", "s2"} - {row.speaker} if row.noise == "babble" else speakers)
        assert len(row.noise_files) == {"babble": 3, "hum": 1, "white": 0}[row.noise]


def test_a_mixture_is_rebuilt_from_its_row_bit_for_bit(finished_sweep: Path) -> None:
    """From files, starts and gain alone: the recording's by hand, and every one by its scores and samples."""
    frame, protocol = load_results(finished_sweep), read_protocol(finished_sweep)
    made = {(m.clip, m.noise, m.snr): mix(m).noisy.waveform for m, _ in units(protocol)}
    mixtures._load_audio.cache_clear()
    for row in frame.drop_duplicates(["clip", "noise", "snr"]).to_dict("records"):
        again = rebuild(protocol, row)
        assert (
            again.noisy.waveform.tobytes() == made[row["clip"], row["noise"], row["snr"]].tobytes()
        )
        scores = score(again.noisy.waveform, again.clean.waveform)
        assert all(
            np.isclose(getattr(scores, name), row[f"{name}_in"], rtol=1e-9, atol=0)
            for name in NAMES
        ), [(getattr(scores, name), row[f"{name}_in"]) for name in NAMES]
        if row["noise"] == "hum":
            hum, _ = soundfile.read(row["noise_files"][0])
            where = (row["noise_starts"][0] + np.arange(16000)) % len(hum)
            noise = hum[where] / np.abs(hum).max()
            noisy = again.clean.waveform + row["noise_gain"] * noise
            assert np.allclose(noisy / np.abs(noisy).max(), again.noisy.waveform, atol=1e-6)
    wrong = frame.iloc[0].to_dict() | {"noise_gain": frame.iloc[0]["noise_gain"] * 1.001}
    place = tuple(wrong[name] for name in ("clip", "noise", "snr"))
    assert rebuild(protocol, wrong).noisy.waveform.tobytes() != made[place].tobytes()


def test_rows_do_not_depend_on_order_or_on_the_rest(
    finished_sweep: Path, small_sweep: dict[str, Any], same_rows: Same, tmp_path: Path
) -> None:
    """Part of the sweep, in another order, gives the same rows; another seed others."""
    part = small_sweep | {"noises": small_sweep["noises"][2:0:-1], "snrs": [5.0], "clips": 1}
    part["models"] = small_sweep["models"][1:]
    mine = evaluate(**part, out=tmp_path / "part")
    theirs = load_results(finished_sweep)
    assert len(mine) == 2
    same_rows(mine, theirs[theirs["key"].isin(mine["key"])])
    other = evaluate(**part, seed=1, out=tmp_path / "other")
    assert not set(other["noise_gain"]) & set(theirs["noise_gain"])


def test_a_finished_row_is_never_done_again(small_sweep: dict[str, Any], tmp_path: Path) -> None:
    """More models, noises, SNRs and clips are added; rows that are there keep even their times."""
    few = {"noises": ["white"], "snrs": [5], "models": small_sweep["models"][:1], "clips": 1}
    first = evaluate(**small_sweep | few, out=tmp_path)
    steps: list[tuple[int, int]] = []
    more = evaluate(**small_sweep, out=tmp_path, progress=lambda d, t: steps.append((d, t)))
    assert (len(first), len(more)) == (1, 24)
    assert steps[0][0] > 1
    assert steps[-1] == (24, 24)
    kept = more[more["key"].isin(first["key"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first)
    assert len(read_protocol(tmp_path)["sweeps"]) == 2


def test_small_files_are_merged_along_the_way(
    small_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every so many rows, counted as they come, and at the end."""
    monkeypatch.setattr(evaluation, "MERGE_EVERY", 3)
    part = small_sweep | {"snrs": [5], "models": small_sweep["models"][:1]}
    parts: list[int] = []

    def count(done: int, total: int) -> None:
        parts.append(len(list((tmp_path / "parts").glob("*.parquet"))))

    assert len(evaluate(**part, out=tmp_path, progress=count)) == 6
    assert parts == [1, 2, 3, 1, 2, 3]


def test_the_beginning_of_a_sweep_is_balanced(small_sweep: dict[str, Any]) -> None:
    """Clip by clip, speakers in turn; fewer clips are the beginning of more."""
    arguments = {name: small_sweep[name] for name in ("data", "noises", "snrs", "models")}
    orders = [
        list(make_protocol(**arguments, inference=["vem"], split="train", clips=n)["clips"])
        for n in (1, 2, 3, None)
    ]
    assert all(orders[3][: len(order)] == order for order in orders)
    assert [clip.split("/")[0] for clip in orders[3]] == ["s1", "s2", "s1", "s2"]
    protocol = make_protocol(**arguments, inference=["vem"], split="train")
    clips = [mixture.clip for mixture, _ in units(protocol)]
    assert clips == [clip for clip in orders[3] for _ in range(6)]


def test_what_fails_is_a_row_with_its_reason(
    small_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent clip, a scheme that breaks down and one that returns NaN: NaN scores, and why."""

    def corpus(name: str, sound: np.ndarray) -> None:
        (tmp_path / "data/test/s1").mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / f"data/test/s1/{name}.wav", sound, 16000, subtype="FLOAT")

    corpus("silent", np.zeros(16000))
    corpus("short", np.random.default_rng(0).standard_normal(3000))
    calls = []

    class Broken(VEM):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs["seed"])
            raise RuntimeError("it\ndiverged")

    class Nan(VEM):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            result = super().__call__(*args, **kwargs)
            result.speech[:] = np.nan
            return result

    monkeypatch.setitem(SCHEMES, "broken", Broken)
    monkeypatch.setitem(SCHEMES, "nan", Nan)
    frame = evaluate(
        tmp_path / "data",
        ["white"],
        [0],
        small_sweep["models"][:1],
        ["vem", "broken", "nan"],
        out=tmp_path / "out",
        settings={"vem": {"iterations": 1}, "nan": {"iterations": 1}},
    ).set_index(["clip", "inference"])
    assert len(frame) == 6
    assert len(calls) == 1
    silent = frame.loc["s1/silent"]
    assert silent["failure"].str.contains("silent.wav is silent").all()
    assert silent[[f"{n}_{side}" for n in NAMES for side in ("in", "out")]].isna().all(axis=None)
    broken = frame.loc[("s1/short", "broken")]
    assert broken["failure"] == "RuntimeError: it diverged"
    assert np.isfinite(broken["si_sdr_in"])
    for scheme, missing in (("vem", {"stoi", "estoi", "pesq_wb", "pesq_nb"}), ("nan", set(NAMES))):
        row = frame.loc[("s1/short", scheme)]
        assert pd.isna(row["failure"])
        assert json.loads(row["reasons"])["out"].keys() == missing
        assert {n for n in NAMES if np.isnan(row[f"{n}_out"])} == missing


def test_failed_rows_are_done_again_when_asked(
    small_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`retry`: these alone, and the new row stands in place of the old; without it they stay."""
    part = small_sweep | {"noises": ["white"], "models": small_sweep["models"][:1], "clips": 1}
    broken, calls = [True], []

    class Sometimes(VEM):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs["seed"])
            if broken[0] and len(calls) == 1:
                raise RuntimeError("no memory")
            return super().__call__(*args, **kwargs)

    monkeypatch.setitem(SCHEMES, "vem", Sometimes)
    first = evaluate(**part, out=tmp_path)
    assert first["failure"].notna().sum() == 1
    broken[0] = False
    assert evaluate(**part, out=tmp_path)["failure"].notna().sum() == 1
    assert len(calls) == 2
    last = evaluate(**part, out=tmp_path, retry=True)
    assert len(calls) == 3
    assert len(last) == 2
    assert last["failure"].isna().all()
    kept = first["failure"].isna()
    pd.testing.assert_series_equal(last["seconds"][kept], first["seconds"][kept])


def test_files_that_change_or_do_not_fit(tmp_path: Path, small_sweep: dict[str, Any]) -> None:
    """Sound is read anew when its file changes; lips of another length are a failed row that names their file."""
    folder = tmp_path / "data/test/s1"
    folder.mkdir(parents=True)
    for seed in (0, 1):
        sound = np.random.default_rng(seed).standard_normal(16000 + seed)
        soundfile.write(folder / "a.wav", sound, 16000, subtype="FLOAT")
        heard = mixtures._audio(folder / "a.wav").waveform
        assert np.allclose(heard, sound / np.abs(sound).max(), atol=1e-6)
    np.savez(folder / "a.npz", lips=np.zeros((10, 67, 67), np.uint8), fps=25.0)
    part = (tmp_path / "data", ["white"], [0], small_sweep["models"][1:])
    one_step: Any = {"inference": ["vem"], "settings": {"vem": {"iterations": 1}}}
    frame = evaluate(*part, **one_step, out=tmp_path / "out")
    assert frame["failure"][0].startswith(f"InputError: {folder / 'a.npz'}: lips has 10 frames")
    np.savez(folder / "a.npz", lips=np.zeros((25, 67, 67), np.uint8), fps=25.0)
    with pytest.raises(InputError, match="whose clips have another 's1/a'"):
        evaluate(*part, **one_step, out=tmp_path / "out", retry=True)
    protocol = json.loads((tmp_path / "out/protocol.json").read_text())
    del protocol["clips"]["s1/a"]["lips_digest"]  # as an older version wrote it: not compared
    (tmp_path / "out/protocol.json").write_text(json.dumps(protocol))
    again = evaluate(*part, **one_step, out=tmp_path / "out", retry=True)
    assert again["failure"].isna().all()


def test_bad_lips_are_part_of_a_row(small_sweep: dict[str, Any], tmp_path: Path) -> None:
    """The same mixture with other lips; `auc` is the share of pairs that r(audio) puts in order; K = 1 has none."""
    part = small_sweep | {"noises": ["white"], "snrs": [5]}
    frame = evaluate(**part, lips=["clean", "black"], out=tmp_path)
    assert len(frame) == 8
    assert frame.groupby("clip")["noise_gain"].nunique().eq(1).all()
    has_auc = (frame["lips"] == "black") & (frame["model"] != "a_vae")
    assert (frame["auc"].notna() == has_auc).all()
    reasons = frame["reasons"].map(json.loads).map(lambda reason: reason.get("auc"))
    assert set(reasons[~has_auc]) == {"the lips are clean", "the model has one component"}
    row, protocol = frame[has_auc].iloc[0], read_protocol(tmp_path)
    again = rebuild(protocol, row)
    assert again.lips is not None
    assert again.bad is not None
    assert again.bad.mean() == pytest.approx(1 / 3, abs=0.02)
    assert (again.lips.frames.max(axis=(1, 2)) == 0).tolist() == again.bad.tolist()
    run = next(r for r in next(units(protocol))[1] if r.model == "min_vae_v2")
    enhancer = evaluation.find_enhancer(run)
    result = enhancer(again.noisy, again.lips, seed=int(row["seed"]))
    bad, heard = again.bad_on_grid(result.frame_times), result.responsibilities[0]
    assert bad is not None
    pairs = heard[bad][:, None] - heard[~bad]
    assert row["auc"] == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-9)


def test_schemes_take_their_kernel_by_name() -> None:
    """Settings are JSON: a kernel is its name, or an object with its constants too."""
    scheme = build_scheme("vem", {"kernel": "hmc", "noise": {"rank": 3}})
    assert type(scheme.kernel).__name__ == "HMC"  # type: ignore[attr-defined]
    tuned = build_scheme("vem", {"kernel": {"name": "random_walk", "step_size": 0.3}})
    assert tuned.kernel.step_size == 0.3  # type: ignore[attr-defined]
    inner = {"name": "random_walk", "step_size": 0.3}
    for kernel in ("gibbs:pcn", {"name": "gibbs", "inner": "pcn"}):
        assert build_scheme("mcem", {"kernel": kernel}) == MCEM(kernel=Gibbs(PCN()))
    tuned = build_scheme("mcem", {"kernel": {"name": "gibbs", "inner": inner}})
    assert tuned == MCEM(kernel=Gibbs(RandomWalk(0.3)))


def test_settings_become_what_the_schemes_take() -> None:
    """Adaptations by name, `mcem` inside another scheme, tuples; iterations are those of EM, wherever it is."""
    weight = {"mixing_weight": [0.25, 0.75]}
    assert build_scheme("vem", weight) == VEM(mixing_weight=(0.25, 0.75))
    assert build_scheme("vem", {"adapt": "robbins_monro"}) == VEM(adapt=RobbinsMonro())
    tuned = build_scheme("vem", {"adapt": {"name": "dual_averaging", "delay": 3.0}})
    assert tuned == VEM(adapt=DualAveraging(delay=3.0))
    assert build_scheme("vem", {"adapt": None}) == VEM()
    inner = {"mcem": {"kernel": "mala", "noise": {"rank": 3}}}
    assert build_scheme("nuts", inner, 7) == NUTS(
        mcem=MCEM(kernel=MALA(), noise=NoiseModel(3), iterations=7)
    )
    assert build_scheme("auto_normal", {}, 7) == AutoNormal(mcem=MCEM(iterations=7))
    assert build_scheme("vem", {}, 7) == VEM(iterations=7)
    assert build_scheme("vem", {"iterations": 3}, 7) == VEM(iterations=3)


def test_two_sweeps_do_not_write_to_one_folder(small_sweep: dict[str, Any], tmp_path: Path) -> None:
    """The second is refused while the first runs, and only then."""
    part = small_sweep | {"noises": ["white"], "snrs": [5], "models": small_sweep["models"][:1]}
    refusals = []

    def again(done: int, total: int) -> None:
        with pytest.raises(InputError, match="another evaluate is writing to") as refusal:
            evaluate(**part, out=tmp_path)
        refusals.append(refusal)

    evaluate(**part, out=tmp_path, progress=again)
    assert len(refusals) == 2
    assert len(evaluate(**part, out=tmp_path)) == 2


def test_a_crash_while_rows_are_merged_loses_and_doubles_none(
    finished_sweep: Path, same_rows: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead between the merged file and the removal of its parts; a row written again replaces the old one."""
    records = read_table(finished_sweep / "rows.parquet").to_pylist()
    (tmp_path / "parts").mkdir()
    (tmp_path / "protocol.json").write_text("{}")
    for row in records[:15]:
        write_row(tmp_path, row)
    (tmp_path / "parts" / ".x.parquet.part").write_bytes(b"half")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: pytest.exit)  # removes nothing
    merge_parts(tmp_path)
    monkeypatch.undo()
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 15
    assert len(load_results(tmp_path)) == 15
    for row in records[10:]:
        write_row(tmp_path, row | {"seconds": 7.0})
    for _ in range(2):
        frame = load_results(tmp_path)
        same_rows(frame, load_results(finished_sweep))
        assert (frame["seconds"] == 7.0).sum() == 14
        merge_parts(tmp_path)
    assert not list((tmp_path / "parts").glob("*.parquet"))
