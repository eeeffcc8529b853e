"""Rivals: a function or a program as a row, its delay taken out, and every refusal one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_avse.data.media.audio import audio_from_array
from pyro_avse.lab.comparison import Clip, compare
from pyro_avse.lab.page import comparison_page
from pyro_avse.metrics import score
from pyro_avse.rivals.external import Program, call, in_time
from pyro_avse.rivals.find import RIVALS, find_rival, find_rivals
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.report import make_report
from pyro_avse.typing import InputError

MODULE = """
import numpy as np
delay = 7
def late(samples, sample_rate):
    assert sample_rate == 16000
    return np.concatenate([np.zeros(delay, np.float32), samples[:-delay]])
def sees(samples, sample_rate, lips):
    return samples if lips is not None else 1 / 0
"""
COPY = """
import sys, soundfile
samples, rate = soundfile.read(sys.argv[1])
step = int(sys.argv[3]) if len(sys.argv) > 3 else 1
soundfile.write(sys.argv[2], samples[::step], rate)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module `theirs` and a program copy.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(MODULE)
    (tmp_path / "copy.py").write_text(COPY)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return tmp_path


@pytest.fixture
def noisy() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)


def run(*arguments: str) -> str:
    return " ".join([sys.executable, *arguments])


@pytest.mark.parametrize("late", [-1600, -3, 0, 1, 384, 1600])
def test_delay_is_taken_out(noisy: np.ndarray, late: int) -> None:
    """Of what is the recording in part; without, a sample is lost speech. Beyond 0.1 s nothing is promised."""
    padded = np.pad(noisy + 0.3 * np.roll(noisy, 11)[::-1], 1600)
    given = padded[1600 - late : 9600 - late]
    found = in_time(given, noisy)
    kept = slice(1600, 6400)
    assert np.array_equal(found[kept], padded[1600:9600][kept])
    before = score(given[kept].astype(float), noisy[kept], only=("si_sdr",)).si_sdr
    after = score(found[kept].astype(float), noisy[kept], only=("si_sdr",)).si_sdr
    assert after > 8
    assert late == 0 or before < 0


def test_a_function_is_found_in_the_working_folder(here: Path, noisy: np.ndarray) -> None:
    late = find_rival("theirs:late")
    assert late is not None
    assert np.array_equal(late(noisy)[:-7], noisy[:-7])
    sees = find_rival("theirs:sees")
    assert sees is not None
    with pytest.raises(InputError, match="theirs:sees failed: ZeroDivisionError: division by zero"):
        sees(noisy)
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (lambda x: x[:-1], r"theirs returned \(7999,\) samples for \(8000,\)"),
        (lambda x: (32767 * x).astype(np.int16), "theirs returned int16, not all finite"),
        (lambda x: x * np.nan, "theirs returned float32, not all finite"),
        (lambda x: None, "theirs returned"),
    ],
)
def test_what_a_function_may_not_return(
    noisy: np.ndarray, returned: Callable[[np.ndarray], Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as refusal:
        call("theirs", lambda samples, sample_rate: returned(samples), noisy, None)
    assert "\n" not in str(refusal.value)


def test_a_program_reads_a_file_and_writes_one(here: Path, noisy: np.ndarray) -> None:
    """To half a step of 16 bits, as it is written; another rate is resampled."""
    copied = Program(run("copy.py", "{noisy}", "{out}"))(noisy, 16000)
    assert np.abs(copied - noisy).max() <= 2**-15
    (here / "wide.py").write_text(
        "import soxr\n"
        + COPY.replace("samples[::step], rate", "soxr.resample(samples, 1, 3), 3 * rate")
    )
    wide = Program(run("wide.py", "{noisy}", "{out}"))(noisy, 16000)
    assert len(wide) == len(noisy)
    assert score(in_time(wide, noisy).astype(float), noisy, only=("si_sdr",)).si_sdr > 10


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no_such_program {noisy} {out}", "no_such_program cannot be run: No such file"),
        (run("-c", "pass", "{noisy}", "{out}"), r"wrote no \{out\}"),
        (
            run("-c", "'import sys; sys.exit(3)'", "{noisy}", "{out}"),
            "ended with status 3: it said no",
        ),
        (run("copy.py", "{out}", "{noisy}"), "ended with status 1: .*Error opening"),
        (run("copy.py", "{noisy}", "{out}", "2"), "wrote 4000 samples at 16 kHz for 8000"),
        (run("-c", "'import sys; open(sys.argv[2], \"w\")'", "{noisy}", "{out}"), "out.wav"),
    ],
)
def test_a_program_that_does_not_do_it(
    here: Path, noisy: np.ndarray, command: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as refusal:
        Program(command)(noisy, 16000)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("theirs:nothing", "no function 'nothing' in it: known are late, sees"),
        ("absent:late", "module absent cannot be imported"),
        ("CMD {noisy}", r"lacks \{out\}"),
        ("just a command", r"lacks \{noisy\}"),
    ],
)
def test_names_that_are_no_rival(here: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        find_rival(name)


def test_other_names_are_left_to_priors(here: Path) -> None:
    """And `compare` refuses them; a command without a label has none to stand under."""
    assert find_rival("a_vae") is None
    assert find_rival("no/such.safetensors") is None
    with pytest.raises(InputError, match=r"'a_vae' is no rival .*known are log_mmse"):
        find_rivals(["log_mmse", "a_vae"])
    with pytest.raises(InputError, match="give a command a name, NAME='CMD"):
        find_rivals(["CMD {noisy} {out}"])
    assert [r.name for r in find_rivals(["mine=theirs:late", "log_mmse"])] == ["mine", "log_mmse"]
    assert all(find_rival(name) is not None for name in RIVALS)


def test_rivals_are_rows_of_a_sweep(
    here: Path, small_sweep: dict[str, Any], tmp_path: Path
) -> None:
    """Once for all schemes, in time, with their failures; a second call does nothing again."""
    sweep = small_sweep | {"noises": ["white"], "snrs": [5.0], "clips": 1}
    sweep["models"] = [
        *small_sweep["models"][:1],
        "late=theirs:late",
        "sees=theirs:sees",
        "copy=" + run(str(here / "copy.py"), "{noisy}", "{out}"),
        "none=" + run("-c", "pass", "{noisy}", "{out}"),
    ]
    sweep["inference"] = ["vem", "again=vem"]
    sweep["settings"] = dict.fromkeys(("vem", "again"), small_sweep["settings"]["vem"])
    steps: list[tuple[int, int]] = []
    found = evaluate(**sweep, out=tmp_path / "out", progress=lambda d, t: steps.append((d, t)))
    assert steps[-1] == (6, 6)
    rows = found.set_index("model")
    assert rows.loc["a_vae", "inference"].tolist() == ["again", "vem"]
    for name in ("late", "sees", "copy"):
        assert rows.loc[name, "inference"] == "-"
        assert abs(rows.loc[name, "si_sdr_improvement"]) < 0.1, name
        assert rows.loc[name, "seconds"] > 0
    assert "wrote no {out}" in rows.loc["none", "failure"]
    assert np.isnan(rows.loc["none", "si_sdr_out"])
    again = evaluate(**sweep, out=tmp_path / "out")
    assert again["seconds"].equals(found["seconds"])
    text = make_report(tmp_path / "out")
    assert "Not finished" not in text
    assert "1 rows failed: InputError: none: " in text


def test_rivals_stand_beside_schemes(here: Path, tiny_prior: Callable[..., Any]) -> None:
    """In `compare`, with scores and seconds, players on the page, and refusals as rows."""
    rng, time = np.random.default_rng(0), np.arange(9600) / 16000
    clean = np.sin(2 * np.pi * 300 * time) * np.hanning(9600)
    clip = Clip(
        "one",
        audio_from_array(clean + 0.1 * rng.standard_normal(9600), 16000),
        audio_from_array(clean, 16000),
    )
    found = compare(
        [clip],
        tiny_prior("a_vae"),
        {},
        rivals=find_rivals(["late=theirs:late", "sees=theirs:sees", "spectral_subtraction"]),
        draws=0,
        device="cpu",
    )
    late, sees, subtraction = found.rows
    assert abs(late["si_sdr_improvement"]) < 0.1
    assert late["kernel"] is None
    assert late["iterations"] is None
    assert sees["reason"].startswith("sees failed: ZeroDivisionError")
    assert subtraction["si_sdr_improvement"] > 1
    page = comparison_page(found).decode()
    assert page.count("<audio") == 4  # noisy, clean, two rivals
    with pytest.raises(InputError, match="called as the scheme late"):
        compare(
            [clip],
            tiny_prior("a_vae"),
            {"late": object()},
            rivals=find_rivals(["late=theirs:late"]),
        )  # type: ignore[dict-item]
