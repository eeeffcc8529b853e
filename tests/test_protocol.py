"""What cannot be swept, or read as a sweep, is refused in one line before anything is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.protocol import read_protocol
from pyro_avse.sweep.results import load_results
from pyro_avse.typing import InputError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "noise": ({"noises": ["rain"]}, "unknown noise 'rain': give white, pink, babble"),
    "no sound": ({"noises": ["EMPTY/no.wav"]}, "no.wav cannot be read as sound"),
    "no mixtures": ({"noises": ["corpus"]}, "comes with no mixtures: give a folder"),
    "empty folder": ({"noises": ["EMPTY"]}, "holds no recordings"),
    "no noise": ({"noises": []}, "no noise: give"),
    "twice": ({"noises": ["white", "white"]}, "two noises are called 'white'"),
    "model": ({"models": ["av_v"]}, "unknown model 'av_v'"),
    "no model": ({"models": []}, "--models is empty"),
    "label": ({"models": ["x=a_vae", "x=v_vae"]}, "names 'x' twice"),
    "scheme": ({"inference": ["vme"]}, "unknown inference scheme 'vme': known are vem"),
    "setting": ({"settings": {"vem": {"steps": 1}}}, "vem has no setting 'steps': known are"),
    "setting of": ({"settings": {"mcem": {}}}, "settings for 'mcem', which is no scheme here"),
    "kernel": ({"settings": {"vem": {"kernel": "gibs"}}}, "unknown kernel 'gibs'"),
    "kernel's": (
        {"settings": {"vem": {"kernel": {"name": "hmc", "x": 1}}}},
        "hmc has no setting 'x': known are step_size",
    ),
    "kernel of no kind": ({"settings": {"vem": {"kernel": 3}}}, "vem cannot have settings"),
    "inner kernel": ({"settings": {"vem": {"kernel": "hmc:pcn"}}}, "hmc has no setting 'inner'"),
    "adaptation": ({"settings": {"vem": {"adapt": "yes"}}}, "unknown adaptation 'yes': known are"),
    "mcem inside": (
        {"inference": ["nuts"], "settings": {"nuts": {"mcem": {"steps": 1}}}},
        "mcem has no setting 'steps'",
    ),
    "no mcem": ({"settings": {"vem": {"mcem": {}}}}, "vem has no setting 'mcem'"),
    "split": ({"split": "test"}, "holds no test utterances: it has train (4), valid (2); name"),
    "clips": ({"clips": 5}, "5 clips of train, which has 4"),
    "snr": ({"snrs": [np.inf]}, "give finite numbers"),
    "level": ({"level": "peak"}, "a level over 'peak': take 'clip' or 'active'"),
    "lips": ({"lips": ["blurred"]}, "unknown lips 'blurred': known are clean, patch"),
    "bad lips": ({"lips": ["black"], "bad_lips": 1.0}, "give one between 0 and 1"),
    "device": ({"device": "abacus"}, "device 'abacus' cannot be used"),
    "data": ({"data": Path("nowhere")}, "nowhere is no folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_swept_is_refused_before_any_work(
    case: str, small_sweep: dict[str, Any], tmp_path: Path
) -> None:
    changes, message = REFUSED[case]
    (tmp_path / "empty").mkdir()
    if str(changes.get("noises")).startswith("['EMPTY"):
        changes = {"noises": [changes["noises"][0].replace("EMPTY", str(tmp_path / "empty"))]}
        if "no.wav" in changes["noises"][0]:
            (tmp_path / "empty/no.wav").write_text("no sound")
    with pytest.raises(InputError) as refusal:
        evaluate(**small_sweep | changes, out=tmp_path / "out")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_protocol_is_refused_untouched(
    finished_sweep: Path, small_sweep: dict[str, Any], tmp_path: Path
) -> None:
    """Seed, split, level, fewer clips, another noise, weights or settings under a used name: one line with the cure."""
    louder = tmp_path / "hum.wav"
    soundfile.write(louder, np.random.default_rng(2).standard_normal(20000), 16000)
    swapped = [small_sweep["models"][0].replace("a_vae.safe", "min_vae_v2.safe")]
    before = contents(finished_sweep)
    for changes, message in [
        ({"seed": 1}, "with seed 0, not 1: give another --out"),
        ({"split": "valid"}, "with split train, not valid"),
        ({"level": "active"}, "with level clip, not active"),
        ({"bad_lips": 0.5}, "with bad_lips 0.333"),
        ({"clips": 1}, "over 2 clips, of which"),
        ({"noises": [str(louder)]}, "whose noises have another 'hum'"),
        (
            {"models": swapped},
            "whose models have another 'a_vae': give another --out, or name it anew",
        ),
        ({"settings": {"vem": {"iterations": 3}}}, "whose inference have another 'vem'"),
    ]:
        with pytest.raises(InputError, match="holds a sweep of another protocol") as refusal:
            evaluate(**small_sweep | changes, out=finished_sweep)
        assert message in str(refusal.value)
    assert contents(finished_sweep) == before


def test_rows_without_their_protocol_are_refused_untouched(
    finished_sweep: Path, small_sweep: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "rows.parquet").write_bytes((finished_sweep / "rows.parquet").read_bytes())
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"has rows, no protocol.json: bring it, or give another"):
        evaluate(**small_sweep, out=tmp_path)
    assert contents(tmp_path) == before


def test_clips_of_one_name_are_refused(small_sweep: dict[str, Any], tmp_path: Path) -> None:
    """Clip b of s1, and a clip s1/b of nobody, both listed."""
    (tmp_path / "s1").mkdir()
    for name in ("s1/b.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.ones(3000), 16000)
    (tmp_path / "list.csv").write_text("file,speaker,split\ns1/b.wav,,train\nb.wav,s1,train\n")
    with pytest.raises(InputError, match="two clips are called 's1/b': rename one"):
        evaluate(**small_sweep | {"data": tmp_path, "noises": ["white"]}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_no_whole_results_are_refused(
    finished_sweep: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds no results: make them with pyro-avse evaluate"):
        load_results(tmp_path)
    (tmp_path / "protocol.json").write_text("{")
    with pytest.raises(InputError, match="no protocol"):
        read_protocol(tmp_path)
    for other in ("[]", '{"version": 2}', '{"version": 1, "clips": {}}'):
        (tmp_path / "protocol.json").write_text(other)
        with pytest.raises(InputError, match="no protocol of version 1: give another folder"):
            read_protocol(tmp_path)
    (tmp_path / "rows.parquet").write_bytes((finished_sweep / "rows.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"rows.parquet: no whole table.*delete it"):
        load_results(tmp_path)
