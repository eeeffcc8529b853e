"""Schemes and kernels side by side: rows, what is refused and why, JSON, the page; `diagnose` and --kernel too."""

import base64
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from pyro_avse import html
from pyro_avse.checkpoint import save_prior
from pyro_avse.cli import main
from pyro_avse.cli_inference import print_diagnosis
from pyro_avse.comparison import NUMBERS, Clip, Comparison, compare
from pyro_avse.comparison_page import COLUMNS, cells, comparison_page, input_cells
from pyro_avse.data.audio import Audio, audio_from_array
from pyro_avse.demo import CLIPS
from pyro_avse.diagnostics import ESS_MIN, RHAT_MAX, Diagnosis
from pyro_avse.inference import KERNELS, MCEM, VEM
from pyro_avse.inference.elliptical_slice import EllipticalSlice
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.ula import ULA
from pyro_avse.models import AVAE, MINVAEv2
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError, Separation

QUICK = {"iterations": 2, "warmup": 2, "draws": 2, "rank": 2}
SCHEMES = {"vem": VEM(**QUICK), "mcem": MCEM(**QUICK)}
LONG_RUN = {"draws": 30, "warmup": 40, "chains": 3, "device": "cpu"}
TIMED = {"seconds", "ess_per_second_min", "ess_per_second_median"}
WANTED = {
    *("scheme", "kernel", "si_sdr", "sdr", "pesq_wb", "pesq_nb", "stoi", "seconds", "rhat_max"),
    *("ess_per_second_min", "ess_per_second_median", "acceptance"),
}


def sound(seed: int, seconds: float = 0.6) -> tuple[Audio, Audio]:
    """A syllable in noise, and without."""
    rng, n = np.random.default_rng(seed), int(16000 * seconds)
    tones = sum(np.sin(2 * np.pi * 150 * k * np.arange(n) / 16000) / k for k in range(1, 20))
    clean = tones * np.hanning(n)
    noisy = clean + 0.1 * rng.standard_normal(n)
    return audio_from_array(noisy, 16000), audio_from_array(clean, 16000)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip("one", *sound(0))


@pytest.fixture(scope="module")
def a_vae() -> AVAE:
    torch.manual_seed(0)
    return AVAE(hidden=8, latent_dim=3)


@pytest.fixture(scope="module")
def two_kernels(clip: Clip, a_vae: AVAE) -> Comparison:
    kernels = {"random_walk": RandomWalk(), "elliptical_slice": EllipticalSlice()}
    return compare([clip], a_vae, SCHEMES, kernels, **LONG_RUN)


def test_a_row_for_every_combination(two_kernels: Comparison) -> None:
    """Scheme by scheme, kernel by kernel; every number is there, with what the sampling numbers are of."""
    names = [(row["scheme"], row["kernel"]) for row in two_kernels.rows]
    assert names == [(s, k) for s in SCHEMES for k in ("random_walk", "elliptical_slice")]
    for row in two_kernels.rows:
        assert row.keys() >= WANTED
        assert row["iterations"] == 2
        assert row["seconds"] > 0
        assert all(isinstance(row[name], float) for name in NUMBERS), row
        assert row["diagnosed"] == "3 chains of 30 draws after 40"
        assert row["reason"] is None
        assert row["counts"] == dict.fromkeys(NUMBERS, 1)
        assert not row["intervals"]
        assert 0 < row["ess_per_second_min"] <= row["ess_per_second_median"]
        assert 0 <= row["unmixed"] <= 1


def test_the_numbers_are_the_diagnosis(two_kernels: Comparison) -> None:
    """ESS a second, R-hat and acceptance of a row are those of its frames; improvements are output minus input."""
    before = two_kernels.inputs[0]
    assert before is not None
    for row, trial in zip(two_kernels.rows, two_kernels.trials, strict=True):
        found, per_second = trial.diagnosis, trial.ess_per_second
        assert isinstance(found, Diagnosis)
        assert per_second is not None
        assert row["ess_per_second_min"] == per_second.min()
        ratio = found.ess_bulk / per_second  # the same seconds for every frame
        np.testing.assert_allclose(ratio, ratio[0])
        assert row["rhat_max"] == found.rhat.max()
        assert row["unmixed"] == (found.rhat > RHAT_MAX).mean()
        assert row["acceptance"] == pytest.approx(found.acceptance.mean())
        assert row["si_sdr_improvement"] == pytest.approx(row["si_sdr"] - before.si_sdr)


def test_the_same_seed_gives_the_same_rows(
    clip: Clip, a_vae: AVAE, two_kernels: Comparison
) -> None:
    """But for seconds, and alone or among others: the order of the rows decides nothing. Another seed differs."""
    kernels = {"elliptical_slice": EllipticalSlice()}
    same = compare([clip], a_vae, {"vem": SCHEMES["vem"]}, kernels, **LONG_RUN).rows[0]
    other = compare([clip], a_vae, {"vem": SCHEMES["vem"]}, kernels, seed=1, **LONG_RUN).rows[0]
    first = two_kernels.rows[1]
    for name in set(NUMBERS) - TIMED:  # STOI's last digits depend on where memory lies
        assert same[name] == pytest.approx(first[name], rel=1e-9), name
    assert (other["si_sdr"], other["rhat_max"]) != (first["si_sdr"], first["rhat_max"])


def test_what_does_not_fit_is_a_row_with_the_reason(clip: Clip) -> None:
    """Elliptical slice sampling of a collapsed mixture, a chain that explodes: no number, and why; others go on."""
    prior = MINVAEv2(hidden=8, latent_dim=3, features=8)
    kernels = {"elliptical_slice": EllipticalSlice(), "mala": MALA(0.01)}
    refused, fits = compare([clip], prior, {"mcem": SCHEMES["mcem"]}, kernels, **LONG_RUN).rows
    assert "a mixture of 2 components" in refused["reason"]
    assert all(refused[name] is None for name in NUMBERS)
    assert refused["counts"] == dict.fromkeys(NUMBERS, 0)
    assert fits["reason"] is None
    assert fits["si_sdr"] is not None


@dataclass(frozen=True)
class Other:
    """A scheme without a kernel: VEM's result, its chains kept or not."""

    keep: bool

    def __call__(self, *args: Any, **options: Any) -> Separation:
        result = VEM(**(QUICK | {"draws": 20, "chains": 2}))(*args, **options)
        return result if self.keep else replace(result, chains=None)


def test_schemes_without_a_kernel_or_chains(clip: Clip, a_vae: AVAE) -> None:
    """One row each, whatever the kernels: own draws over all seconds, or a score without sampling numbers."""
    kernels = {"mala": MALA(), "random_walk": RandomWalk()}
    found = compare([clip], a_vae, {"own": Other(True), "none": Other(False)}, kernels, **LONG_RUN)
    own, none = found.rows
    assert own["kernel"] is none["kernel"] is None
    assert own["diagnosed"] == "its own draws"
    assert own["unmixed"] is not None
    diagnosis = found.trials[0].diagnosis
    assert diagnosis is not None
    assert own["ess_per_second_min"] == diagnosis.ess_bulk.min() / own["seconds"]
    assert none["si_sdr"] is not None
    assert none["ess_per_second_min"] is none["rhat_max"] is none["acceptance"] is None
    assert none["reason"] == "no ESS: no chains"


def test_no_kernels_no_draws_no_reference(clip: Clip, a_vae: AVAE) -> None:
    """Each scheme's own kernel by its name; 0 draws leave out the long run; without a clean clip no scores."""
    bare = replace(clip, clean=None)
    schemes = {"one": replace(SCHEMES["vem"], kernel=MALA()), "other": SCHEMES["mcem"]}
    found = compare([bare], a_vae, schemes, **(LONG_RUN | {"draws": 0}))
    assert [row["kernel"] for row in found.rows] == ["mala", "random_walk"]
    for row in found.rows:
        assert row["reason"] == "no scores: no reference; no ESS: no draws were asked for"
        assert row["si_sdr"] is row["ess_per_second_min"] is None
        assert row["seconds"] is not None
    assert found.as_dict()["clips"][0]["input"] is None


def test_a_run_that_explodes_leaves_the_scores(clip: Clip, a_vae: AVAE) -> None:
    """A long run that ends in a divergence takes only the sampling numbers with it."""

    @dataclass(frozen=True)
    class Later(ULA):
        """Sound in the scheme, whose chain is one; broken in the long run, whose chains are three."""

        def step(self, target: Any, state: Any, *, rng: torch.Generator) -> Any:
            new, info = super().step(target, state, rng=rng)
            bad = new.log_density * torch.nan if len(new.z) == 3 else new.log_density
            return replace(new, log_density=bad), info

    row = compare([clip], a_vae, {"vem": SCHEMES["vem"]}, {"later": Later(0.01)}, **LONG_RUN).rows[
        0
    ]
    assert row["si_sdr"] is not None
    assert row["rhat_max"] is None
    assert row["reason"].startswith("no ESS: Later: the log density")


def test_adaptation_where_it_can_be(clip: Clip, a_vae: AVAE) -> None:
    """`adapt` changes what a random walk draws in the scheme, and leaves elliptical slice sampling as it is."""
    kernels = {"random_walk": RandomWalk(1.0), "elliptical_slice": EllipticalSlice()}
    settings = {**LONG_RUN, "draws": 0}
    plain, adapted = (
        compare([clip], a_vae, {"vem": SCHEMES["vem"]}, kernels, adapt=on, **settings).rows
        for on in (False, True)
    )
    assert plain[0]["si_sdr"] != adapted[0]["si_sdr"]
    assert plain[1]["si_sdr"] == adapted[1]["si_sdr"]


def test_several_clips_have_means_and_intervals(clip: Clip, a_vae: AVAE) -> None:
    """Means, Student's intervals and counts over three clips, one of them without a reference; the worst R-hat."""
    clips = [clip, Clip("two", *sound(1)), Clip("three", sound(2)[0])]
    found = compare(clips, a_vae, {"vem": SCHEMES["vem"]}, **LONG_RUN)
    row, trials = found.rows[0], [trial.row for trial in found.trials]
    assert [trial["clip"] for trial in trials] == ["one", "two", "three"]
    scores = [trial["si_sdr"] for trial in trials[:2]]
    assert row["si_sdr"] == pytest.approx(np.mean(scores))
    half = 12.7062 * abs(scores[0] - scores[1]) / 2  # t of 97.5 % with 1 degree of freedom
    assert row["intervals"]["si_sdr"] == pytest.approx(
        [row["si_sdr"] - half, row["si_sdr"] + half], rel=1e-4
    )
    assert row["counts"]["si_sdr"] == 2
    assert row["counts"]["seconds"] == 3
    assert row["rhat_max"] == max(trial["rhat_max"] for trial in trials)
    assert row["reason"] == "no scores: no reference"
    text = dict(zip(COLUMNS, cells(row, 3)[2:], strict=True))
    assert text["si_sdr"] == f"{row['si_sdr']:.1f} ± {half:.1f} (n=2/3)"
    assert [trial.enhanced is None for trial in found.trials] == [False, True, True]
    json.dumps(found.as_dict(), allow_nan=False)
    assert comparison_page(found)


def test_a_reference_of_another_clip_is_refused(clip: Clip, a_vae: AVAE) -> None:
    with pytest.raises(InputError, match=r"lasts 0\.900 s, the recording 0\.600 s"):
        compare([replace(clip, clean=sound(0, 0.9)[1])], a_vae, SCHEMES)


def test_the_page_stands_alone(two_kernels: Comparison) -> None:
    """Sounds and pictures are inside, decodable and of the clip; nothing outside is named; names are escaped."""
    clip = replace(two_kernels.clips[0], name="<script>one</script>")
    page = comparison_page(replace(two_kernels, clips=[clip])).decode()
    sources = re.findall(r'src="([^"]*)"', page)
    assert all(source.startswith("data:") for source in sources)
    bare = re.sub(r'"data:[^"]*"', "", page)
    for outside in ("http", "href", "url(", "@import", "<script", "<link"):
        assert outside not in bare
    assert "&lt;script&gt;" in bare
    assert html.table(["<b>"], [["<b>"]]).count("&lt;b&gt;") == 2
    data = [base64.b64decode(source.partition(",")[2]) for source in sources]
    sounds = [soundfile.read(io.BytesIO(d))[0] for d in data[:6]]
    np.testing.assert_allclose(sounds[0], clip.mixture.waveform, atol=1 / 32000)
    for heard, trial in zip(sounds[2:], two_kernels.trials, strict=True):
        assert trial.enhanced is not None
        np.testing.assert_allclose(heard, trial.enhanced.speech_16k.clip(-1, 1), atol=1 / 32000)
    assert len(data) == 9  # noisy, clean, four results; spectrograms, objectives, ESS
    for picture in data[6:]:
        assert np.ptp(imread(io.BytesIO(picture))) > 0.5
    for text in (*input_cells(two_kernels), *cells(two_kernels.rows[0], 1)):
        assert f"<td>{text}</td>" in bare


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    a_vae: AVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """run("compare", ...): exit code, stdout, stderr, in a folder with noisy.wav, clean.wav and a_vae.safetensors."""
    monkeypatch.chdir(tmp_path)
    save_prior(tmp_path / "a_vae.safetensors", a_vae, STFT())
    for name, audio in zip(("noisy", "clean"), sound(0), strict=True):
        soundfile.write(f"{name}.wav", audio.waveform, 16000, subtype="FLOAT")

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
    assert all(row.keys() >= WANTED for row in found["rows"])


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


def test_enhance_with_another_kernel(run: Run) -> None:
    """--kernel and --adapt change what is written."""
    written = []
    for options in ((), ("--kernel", "mala"), ("--kernel", "mala", "--adapt")):
        assert run("enhance", "noisy.wav", *MODEL, "-o", "x.wav", *options)[0] == 0
        written.append(Path("x.wav").read_bytes())
    assert len(set(written)) == 3
