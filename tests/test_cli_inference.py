"""`pyro-avse compare | diagnose`, and other kernels in `enhance`: tables, JSON, files, and refusals of one line."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pyro_avse.cli import main
from pyro_avse.cli.verdict import print_diagnosis
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.errors import Divergence
from pyro_avse.inference import KERNELS, run_chains
from pyro_avse.lab.comparison import NUMBERS
from pyro_avse.lab.diagnostics import ESS_MIN
from pyro_avse.lab.draws_on_disk import load_draws
from pyro_avse.models import AVAE
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import save_prior

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("compare", ...): exit code, stdout, stderr, in a folder with noisy.wav, clean.wav and a_vae.safetensors."""
    monkeypatch.chdir(tmp_path)
    save_prior(tmp_path / "a_vae.safetensors", AVAE(hidden=8, latent_dim=3), STFT())
    n, rng = 9600, np.random.default_rng(0)
    clean = np.sin(2 * np.pi * 450 * np.arange(n) / 16000) * np.hanning(n)
    for name, sound in {"noisy": clean + 0.1 * rng.standard_normal(n), "clean": clean}.items():
        soundfile.write(f"{name}.wav", sound, 16000, subtype="FLOAT")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pyro-avse", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return call


MODEL = ("--model", "a_vae.safetensors", "--iterations", 2, "--device", "cpu")


@pytest.mark.parametrize("command", ["compare", "diagnose"])
def test_help(command: str, run: Run) -> None:
    """--help goes to stdout and says how the command is called."""
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: pyro-avse {command} ")


def test_compare_prints_a_table_or_json(run: Run) -> None:
    """The table on stdout, prose on stderr; --json: {"clips", "rows"}; --html writes the page."""
    arguments = ("compare", "noisy.wav", "--reference", "clean.wav", *MODEL, "--chains", 2)
    arguments += ("--draws", 20, "--warmup", 5)
    code, out, err = run(*arguments, "--schemes", "vem, mcem", "--html", "page.html")
    assert code == 0
    lines = out.splitlines()
    assert "ESS/s median" in lines[1]
    assert [line.split()[1] for line in lines[3:-1]] == ["noisy", "vem", "mcem"]
    assert "wrote page.html" in err
    assert Path("page.html").read_bytes().startswith(b"<!doctype html>")
    code, out, _ = run(*arguments, "--schemes", "vem", "--kernels", "hmc,random_walk", "--json")
    found = json.loads(out)
    assert code == 0
    assert found.keys() == {"clips", "rows"}
    assert [clip["name"] for clip in found["clips"]] == ["noisy.wav"]
    assert found["clips"][0]["input"]["si_sdr"] is not None
    assert [(row["scheme"], row["kernel"]) for row in found["rows"]] == [
        ("vem", "hmc"),
        ("vem", "random_walk"),
    ]
    assert all(row.keys() >= {"scheme", "kernel", *NUMBERS} for row in found["rows"])


def test_compare_of_the_bundled_clip(run: Run) -> None:
    """Any scheme of the registry by its name, here three of their own kernels, with the bundled lips."""
    talker = CLIPS / "talker"
    arguments = ("compare", f"{talker}.flac", "--reference", f"{talker}.flac", *MODEL)
    code, out, err = run(*arguments, "--lips", f"{talker}.npz", "--draws", 0, "--json", "--adapt")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [row["scheme"] for row in rows] == ["vem", "collapsed_vem", "mcem"]
    assert all(row["kernel"] in KERNELS for row in rows)
    assert err.count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("compare noisy.wav --schemes vme", "unknown inference scheme 'vme'"),
        ("compare noisy.wav --kernels hcm", "unknown kernel 'hcm': known are random_walk"),
        ("compare noisy.wav --kernels ,", "give one name or more"),
        ("compare noisy.wav --settings x", "--settings is no JSON"),
        ('compare noisy.wav --settings {"nuts":{}}', "--settings for 'nuts', which is no scheme"),
        ('diagnose noisy.wav --settings {"guided":{"rnak":3}}', "guided has no setting 'rnak'"),
        ("diagnose noisy.wav --inference nuts", "nuts has no kernel to diagnose: take vem, coll"),
        ("diagnose noisy.wav --draws 2", "--draws 2 has no R-hat and no ESS: take 4 or more, or"),
        ("diagnose noisy.wav --superchains 3", "4 chains in 3 superchains: give two or more of"),
        ("compare noisy.wav --html none/x.html", "make the folder none first"),
        ("compare noisy.wav --chains 1", "'--chains'"),
        ("diagnose noisy.wav --kernel hcm", "unknown kernel 'hcm'"),
        ("diagnose noisy.wav --out /proc/x", "choose another folder"),
        ("diagnose noisy.wav --kernel gibbs --inference vem", "gibbs needs a target"),
        ("enhance noisy.wav --kernel hcm", "unknown kernel 'hcm'"),
        ("enhance noisy.wav --kernel ula --adapt", "ULA has no step size to adapt"),
    ],
)
def test_refusals_are_one_line(arguments: str, reason: str, run: Run) -> None:
    """Exit code 2, nothing on stdout; a progress line may come before what only the scheme can see."""
    code, out, err = run(*arguments.split(), *MODEL)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("pyro-avse: error: ")
    assert reason in last


def test_diagnose_says_which_frames_fail(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """--json has every number, threshold and failing frame; else a table; draws and three figures are written."""
    arguments = ("diagnose", "noisy.wav", *MODEL, "--kernel", "mala", "--inference", "mcem")
    arguments += ("--draws", 20, "--warmup", 5, "--chains", 2, "--out", "found")
    code, out, _ = run(*arguments, "--json")
    row = json.loads(out)
    assert code == 0
    assert (row["kernel"], row["chains"], row["draws"]) == ("mala", 2, 20)
    assert row["thresholds"]["ess"] == ESS_MIN
    for name in ("rhat", "ess_bulk", "ess_tail", "acceptance"):
        assert row[name].keys() == {"worst", "median"}
    assert row["files"].keys() == {"draws", "trace", "rank", "ess"}
    assert all(Path(file).stat().st_size > 1000 for file in row["files"].values())
    assert len(row["failing"]) == row["frames"]  # 40 draws cannot be worth 400
    assert all("bulk ESS under 400" in frame["reason"] for frame in row["failing"])
    print_diagnosis(row)
    out, err = capsys.readouterr()
    assert "worst frame" in out
    assert f"{row['frames']} of {row['frames']} frames fail" in out
    assert "draws and figures are in found" in err
    stretches = re.findall(
        r"frames (\d+) to (\d+) \(", out
    )  # one after another, from first to last
    assert [int(a) for a, _ in stretches] == [0, *(int(b) + 1 for _, b in stretches[:-1])]
    assert int(stretches[-1][1]) == row["frames"] - 1


def test_diagnose_of_many_short_chains_and_of_weights(run: Run) -> None:
    """Nested R-hat of one draw a chain; k-hat where there are no chains; both with a sentence."""
    arguments = (
        "diagnose",
        "noisy.wav",
        *MODEL,
        "--inference",
        "mcem",
        "--kernel",
        "hmc",
        "--json",
    )
    code, out, _ = run(*arguments, "--draws", 1, "--warmup", 2, "--chains", 8, "--superchains", 4)
    row = json.loads(out)
    assert code == 0
    assert row["rhat"]["worst"] > 1
    assert row["ess_bulk"]["worst"] is None
    assert row["thresholds"]["rhat"] > 1.01
    assert row["advice"].startswith("In ")
    code, out, _ = run("diagnose", "noisy.wav", *MODEL, "--inference", "importance", "--json")
    row = json.loads(out)
    assert code == 0
    assert len(row["k_hat"]) == len(row["effective_draws"]) == row["frames"]
    assert row["advice"].endswith(".")
    code, out, _ = run("diagnose", "noisy.wav", *MODEL, "--inference", "importance")
    assert (code, "k-hat" in out, row["advice"] in out) == (0, True, True)


def test_diagnose_of_smooth_codes(run: Run) -> None:
    """--settings chooses ldem's penalty and its kernel: an utterance is one event, and has its frames."""
    settings = {"ldem": {"total_variation": 1.0, "kernel": {"name": "mala", "step_size": 0.01}}}
    arguments = ("diagnose", "noisy.wav", *MODEL, "--inference", "ldem", "--json")
    arguments += ("--draws", 8, "--warmup", 2, "--chains", 2)
    code, out, _ = run(*arguments, "--settings", json.dumps(settings))
    row = json.loads(out)
    assert (code, row["kernel"]) == (0, "MALA")
    assert row["frames"] == len(row["failing"]) > 1


def test_a_diagnosis_that_diverges_says_where_the_draws_are(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*args: Any, **options: Any) -> Any:
        raise Divergence("gone", run_chains(*args, **options))

    monkeypatch.setattr("pyro_avse.lab.draws_on_disk.run_chains", diverge)
    code, out, err = run("diagnose", "noisy.wav", *MODEL, "--draws", 5, "--warmup", 0)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith("gone; what was drawn is in diagnosis/draws.nc")
    assert load_draws(Path("diagnosis/draws.nc"))["posterior"].sizes["draw"] == 5


def test_iterations_reach_the_mcem_inside(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """--iterations of nuts and auto_normal are their mcem's, in `enhance` and `compare`."""
    seen: list[Any] = []

    def separate(enhancer: Enhancer, recording: Any, **options: Any) -> Any:
        seen.append(enhancer.inference)
        raise InputError("seen")

    monkeypatch.setattr(Enhancer, "separate", separate)
    for name in ("nuts", "auto_normal"):
        assert run("enhance", "noisy.wav", *MODEL, "--inference", name)[0] == 2
        assert run("compare", "noisy.wav", *MODEL, "--schemes", name)[0] == 0
    assert [scheme.mcem.iterations for scheme in seen] == [2, 1, 2] * 2  # 1: the rehearsal


def test_enhance_with_another_kernel(run: Run) -> None:
    """--kernel and --adapt change what is written."""
    written = []
    for options in ((), ("--kernel", "mala"), ("--kernel", "mala", "--adapt")):
        assert run("enhance", "noisy.wav", *MODEL, "-o", "x.wav", *options)[0] == 0
        written.append(Path("x.wav").read_bytes())
    assert len(set(written)) == 3
