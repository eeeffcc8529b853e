"""The command line: results on stdout, prose on stderr, and every refusal one line with exit code 2."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from pyro_avse.cli import main
from pyro_avse.enhancement import demo
from pyro_avse.inference import VEM
from pyro_avse.models import MODELS
from pyro_avse.stft import STFT
from pyro_avse.weights.checkpoint import bundled_weights, load_prior, save_prior
from pyro_avse.weights.tensors import load_tensors

Run = Callable[..., tuple[int, str, str]]
SCORES = {"si_sdr", "sdr", "pesq_wb", "pesq_nb", "stoi", "estoi"}
RECIPE = """
model = "a_vae"
[options]
hidden = 8
latent_dim = 3
[training]
epochs = 2
batch_size = 64
learning_rate = 1e-2
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Any) -> Path:
    """A folder with usable files, and one of every kind that cannot be used."""
    root = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    clean = np.sin(2 * np.pi * 200 * np.arange(16000) / 16000) * np.hanning(16000)
    noisy = 0.5 * clean + 0.05 * rng.standard_normal(16000)
    nan = noisy.copy()
    nan[8000] = np.nan
    sounds = {
        "clean": clean,
        "noisy": noisy,
        "long": np.tile(noisy, 2),
        "samples0": noisy[:0],
        "zeros": np.zeros(16000),
        "nan": nan,
        "short": noisy[:1000],
    }
    for name, sound in sounds.items():
        soundfile.write(root / f"{name}.wav", sound, 16000, subtype="FLOAT")
    (root / "text.wav").write_text("this is no sound\n")
    (root / "empty.wav").touch()
    mouths = rng.integers(0, 256, (30, 67, 67), dtype=np.uint8)
    np.savez(root / "lips.npz", lips=mouths, fps=30.0)
    np.savez(root / "shape.npz", lips=mouths[:, :60], fps=30.0)
    np.savez(root / "range.npz", lips=mouths.astype(np.float64), fps=30.0)
    np.savez(root / "few.npz", lips=mouths[:10], fps=30.0)
    np.save(root / "rateless.npy", mouths)
    (root / "text.npz").write_text("these are no lips\n")

    torch.manual_seed(0)
    for name in MODELS:
        save_prior(root / f"{name}.safetensors", tiny_prior(name), STFT())
    whole = (root / "a_vae.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(whole[:-50])
    (root / "text.safetensors").write_text("these are no weights, whatever their name says\n" * 9)
    (root / "good.toml").write_text(RECIPE)
    (root / "typo.toml").write_text(RECIPE.replace("batch_size", "batchsize"))
    (root / "bad.toml").write_text("model: a_vae\n")
    return root


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("enhance", "x.wav") in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pyro-avse", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return call


ENHANCE = "enhance IN/noisy.wav --model IN/a_vae.safetensors"
MIN_VAE = "enhance IN/noisy.wav --model IN/min_vae_v2.safetensors"
TRAIN = "train IN/good.toml --data IN --out run"
REFUSED = {
    # sound
    "enhance IN/missing.wav": "missing.wav does not exist",
    "enhance IN": "is a folder",
    "enhance IN/text.wav": "text.wav cannot be read as sound",
    "enhance IN/empty.wav": "empty.wav cannot be read as sound",
    "enhance IN/samples0.wav": "samples0.wav is empty",
    "enhance IN/zeros.wav": "zeros.wav is silent",
    "enhance IN/nan.wav": "nan.wav holds NaN or infinite samples, the first at 0.500 s",
    "enhance IN/short.wav": "short.wav lasts 0.0625 s",
    f"{ENHANCE} --channel 1": "has 1 channel(s), not '1'",
    f"{ENHANCE} --channel left": "has 1 channel(s), not 'left'",
    # lips
    f"{MIN_VAE} --lips IN/missing.npz": "missing.npz is no file",
    f"{MIN_VAE} --lips IN/text.npz": "text.npz cannot be read",
    f"{MIN_VAE} --lips IN/shape.npz": "lips has shape (30, 60, 67)",
    f"{MIN_VAE} --lips IN/range.npz": "not within [0, 1]",
    f"{MIN_VAE} --lips IN/few.npz": "lips has 10 frames at 30 fps (0.33 s), the sound lasts 1.00 s",
    f"{MIN_VAE} --lips IN/rateless.npy": "give --fps",
    f"{MIN_VAE} --lips IN/lips.npz --fps 0": "fps is 0",
    "enhance IN/noisy.wav --model IN/v_vae.safetensors": "needs the lips",
    # model and scheme
    "enhance IN/noisy.wav --model nothing": "unknown model 'nothing'",
    "enhance IN/noisy.wav --model IN/missing.safetensors": "no such weight file",
    "enhance IN/noisy.wav --model IN/cut.safetensors": "not a whole safetensors file",
    "enhance IN/noisy.wav --model IN/text.safetensors": "not a whole safetensors file",
    f"{ENHANCE} --inference vme": "unknown inference scheme 'vme': known are vem",
    f"{ENHANCE} --kernel gibbs:hcm": "unknown kernel 'hcm': known are random_walk",
    f"{ENHANCE} --inference nuts --kernel hmc": "nuts has no setting 'kernel': known are mcem",
    f"{ENHANCE} --iterations 0": "'--iterations'",
    f"{ENHANCE} --device abacus": "device 'abacus' cannot be used",
    f"{ENHANCE} --seed -1": "'--seed'",
    f"{ENHANCE} --seed 99999999999999999999999": "'--seed'",
    # output and reference
    f"{ENHANCE} -o /proc/x.wav": "/proc/x.wav cannot be written",
    f"{ENHANCE} -o none/x.wav": "none/x.wav cannot be written: make the folder none first",
    f"{ENHANCE} -o x.mp5": "names no sound format ('.mp5')",
    f"{ENHANCE} -o IN": "names no sound format",
    f"{ENHANCE} --reference IN/long.wav": "lasts 2.000 s, the recording 1.000 s",
    f"{ENHANCE} --reference IN/missing.wav": "missing.wav does not exist",
    # training
    "train IN/typo.toml --data IN --out run": "did you mean 'batch_size'?",
    "train IN/bad.toml --data IN --out run": "not TOML",
    "train default/nothing --data IN --out run": "no recipe 'default/nothing'",
    TRAIN: "cannot be read as sound",  # a folder of clips, and the first broken one
    TRAIN.replace("--data IN", "--data none"): "none is no folder: a corpus is",
    TRAIN.replace("--out run", "--out /proc/run"): "choose another folder",
    f"{TRAIN} --device abacus": "device 'abacus' cannot be used",
    # demonstration and corpus
    "demo --out /proc/demo": "choose another folder",
    "data synth --out corpus --speakers 2": "give 3 or more",
    "data synth --out corpus --minutes -1": "-1.0 minutes",
    "data synth --out corpus --seed -1": "'--seed'",
    # usage
    "": "see pyro-avse --help",
    "data": "see pyro-avse --help",
    "enhence IN/noisy.wav": "No such command 'enhence'",
    "enhance": "Missing argument 'noisy'",
    f"{ENHANCE} --loud": "No such option: --loud",
    f"{ENHANCE} --iterations many": "Invalid value for '--iterations'",
    f"{ENHANCE} extra": "2 recordings: name a folder for them, as -o enhanced/",
    f"{ENHANCE} extra -o x/ --lips IN/lips.npz": "--lips is of one recording",
    "enhance - --json -o -": "would both be on stdout",
    "train IN/good.toml --out run": "Missing option '--data'",
}


def words(command: str, inputs: Path) -> list[str]:
    return [
        word.replace("IN", str(inputs), 1) if word.startswith("IN") else word
        for word in command.split()
    ]


@pytest.mark.parametrize("command", REFUSED)
def test_refusals_are_one_line(command: str, inputs: Path, run: Run, tmp_path: Path) -> None:
    """Wrong input or usage: one line on stderr before any progress, exit code 2, no output and no file."""
    before = sorted(os.listdir(inputs))
    code, out, err = run(*words(command, inputs))
    assert code == 2
    assert out == ""
    assert err.startswith("pyro-avse: error: ")
    assert err.count("\n") == 1, err
    assert REFUSED[command] in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(os.listdir(inputs)) == before


def as_process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from pyro_avse.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["enhance IN/text.wav", f"{MIN_VAE} --lips IN/few.npz", TRAIN])
def test_refusals_of_a_real_process(command: str, inputs: Path, tmp_path: Path) -> None:
    """The same from a process of its own: no warning or traceback of a library slips in."""
    done = as_process(*words(command, inputs), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pyro-avse: error: ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_help_is_quick(tmp_path: Path) -> None:
    """`pyro-avse --help` shows the commands without loading torch, numpy or any other heavy library."""
    code = (
        "import sys; from pyro_avse.cli import main\n"
        "sys.argv = ['pyro-avse', '--help']\n"
        "try: main()\n"
        "finally: print('loaded', *({'torch', 'pyro', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("enhance", "demo", "train", "data"))
    assert done.stdout.splitlines()[-1].strip() == "loaded"


@pytest.mark.parametrize("command", ["", "enhance", "demo", "train", "data", "data synth"])
def test_help_of_every_command(command: str, run: Run) -> None:
    """--help goes to stdout and says how the command is called."""
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: pyro-avse {command}".rstrip())


def test_enhance_writes_the_speech(inputs: Path, run: Run, tmp_path: Path) -> None:
    """The default output stands in the current folder, float32 as long as the input; stdout stays empty."""
    code, out, err = run(*words(f"{MIN_VAE} --lips IN/lips.npz --iterations 3", inputs))
    assert (code, out) == (0, "")
    assert os.listdir(tmp_path) == ["noisy_enhanced.wav"]
    assert "noisy_enhanced.wav" in err
    info = soundfile.info(tmp_path / "noisy_enhanced.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (16000, 16000, 1, "FLOAT")


def test_enhance_prints_one_json_object(inputs: Path, run: Run, tmp_path: Path) -> None:
    """--json: one object with the run's time, the scores where there is a reference, and the file written."""
    command = f"{ENHANCE} --iterations 3 --json --seed 3"
    code, out, _ = run(*words(f"{command} -o a.flac", inputs))
    row = json.loads(out)
    assert code == 0
    keys = "model inference iterations seconds real_time_factor input output files"
    assert row.keys() == set(keys.split())
    assert (row["input"], row["output"]) == (None, None)
    assert (row["inference"], row["iterations"]) == ("guided", 3)
    assert row["model"] == str(inputs / "a_vae.safetensors")
    assert row["files"] == {"speech": "a.flac"}
    assert 0 < row["seconds"] == pytest.approx(row["real_time_factor"] * 1.0)

    code, out, _ = run(*words(f"{command} --reference IN/clean.wav", inputs))
    row = json.loads(out)
    assert code == 0
    for scores in (row["input"], row["output"]):
        assert scores.keys() == SCORES | {"reasons"}
        missing = {name for name in SCORES if scores[name] is None}
        assert missing == scores["reasons"].keys()
        assert all(isinstance(scores[name], float) for name in SCORES - missing)
        assert scores["si_sdr"] is not None
    assert (tmp_path / "noisy_enhanced.wav").exists()


def test_a_missing_score_has_a_reason(inputs: Path, run: Run, tmp_path: Path) -> None:
    """PESQ and STOI of 0.2 s are null with a reason in JSON, a dash in the table with the reason on stderr."""
    for name in ("noisy", "clean"):
        sound, rate = soundfile.read(inputs / f"{name}.wav")
        soundfile.write(tmp_path / f"{name}.wav", sound[6000:9200], rate, subtype="FLOAT")
    command = f"{ENHANCE} --iterations 2 --reference clean.wav".replace("IN/noisy", "noisy")
    _, out, _ = run(*words(f"{command} --json", inputs))
    scores = json.loads(out)["output"]
    assert scores["pesq_wb"] is None
    assert scores["stoi"] is None
    assert scores["reasons"].keys() >= {"pesq_wb", "stoi"}
    code, out, err = run(*words(command, inputs))
    assert code == 0
    assert "SI-SDR" in out
    assert "no stoi: " in err


def test_the_same_seed_writes_the_same_file(inputs: Path, run: Run, tmp_path: Path) -> None:
    """--seed decides every draw."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(*words(f"{ENHANCE} --iterations 2 --seed {seed} -o {name}.wav", inputs))
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b != c


def test_a_failed_run_keeps_the_old_file(inputs: Path, run: Run, tmp_path: Path) -> None:
    """A refusal leaves an older output as it was."""
    (tmp_path / "x.wav").write_text("old")
    assert run(*words(f"{MIN_VAE} --lips IN/few.npz -o x.wav", inputs))[0] == 2
    assert (tmp_path / "x.wav").read_text() == "old"


def test_train_writes_weights_that_enhance(
    inputs: Path, tiny_corpus: Path, run: Run, tmp_path: Path
) -> None:
    """`train` leaves stdout empty and names its weights, which `enhance` takes; --resume is needed to go on."""
    arguments = ["train", inputs / "good.toml", "--data", tiny_corpus, tiny_corpus]
    arguments += ["--out", tmp_path / "run"]
    code, out, err = run(*arguments, "--device", "cpu")
    assert (code, out) == (0, "")
    weights = tmp_path / "run" / "weights.safetensors"
    assert str(weights) in "".join(err.split())
    code, _, err = run(*arguments)
    assert code == 2
    assert "go on with --resume" in err
    assert run(*arguments, "--resume", "--device", "cpu")[0] == 0
    code, out, _ = run(
        *words(f"enhance IN/noisy.wav --iterations 2 --json --model {weights}", inputs)
    )
    assert (code, json.loads(out)["model"]) == (0, str(weights))
    assert load_tensors(weights)[1]["model"] == "a_vae"


def test_synth_makes_a_corpus(run: Run, tmp_path: Path) -> None:
    """`data synth` writes the three splits, with lips, and says where."""
    pytest.importorskip("espeakng_loader")
    corpus = tmp_path / "corpus"
    code, out, err = run("data", "synth", "--out", corpus, "--speakers", 3, "--minutes", 0.05)
    assert (code, out) == (0, "")
    assert str(corpus) in "".join(err.split())
    for split in ("train", "valid", "test"):
        assert list((corpus / split).glob("*/*.flac"))
        assert len(list((corpus / split).glob("*/*.npz"))) == len(
            list((corpus / split).glob("*/*.flac"))
        )


def check_demonstration(rows: list[dict[str, Any]]) -> None:
    """A row a model, whose files are there, and a figure that shows something."""
    assert [row["model"] for row in rows] == ["a_vae", "min_vae_v2"]
    for row in rows:
        assert row["files"].keys() == {"speech", "noisy", "clean", "figure"}
        assert all(Path(file).stat().st_size > 1000 for file in row["files"].values())
        assert row["input"]["si_sdr"] == pytest.approx(0, abs=0.5)  # mixed at 0 dB SNR
        assert row["output"].keys() == SCORES | {"reasons"}
    folder = Path(rows[-1]["files"]["speech"]).parent
    names = ("enhanced_min_vae_v2", "noise", "noisy")
    speech, noise, noisy = (soundfile.read(folder / f"{name}.wav")[0] for name in names)
    np.testing.assert_allclose(speech + noise, noisy, atol=1e-6)
    assert (folder / "lips.npz").read_bytes() == demo.LIPS.read_bytes()
    picture = imread(rows[0]["files"]["figure"])
    assert min(picture.shape[:2]) > 500
    assert np.ptp(picture) > 0.5


def test_the_demonstration_runs_with_any_weights(
    inputs: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`demo` writes five sounds, lips and a figure, and prints its rows as JSON, or as a table without --json."""
    quick = VEM(iterations=2, warmup=1, draws=1)
    monkeypatch.setattr(demo, "load_prior", lambda name: load_prior(inputs / f"{name}.safetensors"))
    monkeypatch.setattr(demo, "find_scheme", lambda name: quick)
    code, out, _ = run("demo", "--json", "--device", "cpu")
    assert code == 0
    check_demonstration(json.loads(out)["rows"])
    assert len(os.listdir("demo")) == 7
    code, out, err = run("demo", "--device", "cpu")
    assert code == 0
    assert "SI-SDR" in out
    assert "min_vae_v2" in out
    assert "demo.png" in err


@pytest.mark.skipif(not {"a_vae", "min_vae_v2"} <= set(bundled_weights()), reason="no weights yet")
def test_the_demonstration_enhances(run: Run) -> None:
    """With the bundled weights both models gain at least 3 dB SI-SDR."""
    code, out, _ = run("demo", "--json", "--device", "cpu")
    assert code == 0
    rows = json.loads(out)["rows"]
    check_demonstration(rows)
    assert all(row["output"]["si_sdr"] - row["input"]["si_sdr"] >= 3 for row in rows)
