"""Commands about data, and videos through `enhance`: what they write and print, and refusals in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pyro_avse.cli import main
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.video import read_pictures, read_sound
from pyro_avse.models import MODELS
from pyro_avse.stft import STFT
from pyro_avse.weights.checkpoint import save_prior

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., Path]
GRID = "grid/video/s1_bgaa7s.mpg"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("lips", "x.mp4") in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYRO_AVSE_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pyro-avse", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small untrained models."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name in ("a_vae", "min_vae_v2"):
        sizes = {"hidden": 8, "latent_dim": 3, **({} if name == "a_vae" else {"features": 8})}
        save_prior(folder / f"{name}.safetensors", MODELS[name](**sizes), STFT())
    return folder


def noise(n: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 96, 128), dtype=np.uint8)


def voice(seconds: float = 1.2) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(int(16000 * seconds))


def refused(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("pyro-avse: error: ")
    assert message in err


@pytest.mark.parametrize("command", ["lips", "data info", "data synth"])
def test_help(command: str, run: Run) -> None:
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: pyro-avse {command}")


def test_lips_of_a_real_video(run: Run, tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    """Lips that `load_lips` reads and a preview; stdout stays empty."""
    code, out, err = run("lips", shared_data(GRID), "-o", "lips.npz", "--preview", "p.png")
    assert (code, out) == (0, "")
    assert "75 frames at 25 fps" in err
    assert load_lips(tmp_path / "lips.npz").frames.shape == (75, 67, 67)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lips.npz", "p.png"]


def test_lips_are_refused_in_one_line(run: Run, tmp_path: Path, make_video: Make) -> None:
    """No face (with the seconds), wrong names and boxes: nothing is written."""
    make_video(tmp_path / "a.mkv", noise())
    (tmp_path / "boxes.csv").write_text("seconds,x,y\n")
    for arguments, message in [
        ("a.mkv -o l.npz", "a.mkv: no face at 0.0-1.2 s of 1.2 s"),
        ("a.mkv -o l.npy", "l.npy is no .npz"),
        ("a.mkv -o none/l.npz", "make the folder none first"),
        ("a.mkv -o l.npz --preview p.doc", "p.doc names no picture"),
        (
            "a.mkv -o l.npz --boxes boxes.csv",
            "boxes.csv has no rows of frame or seconds, x, y, w, h",
        ),
        ("absent.mkv -o l.npz", "absent.mkv cannot be read as a video"),
    ]:
        refused(run("lips", *arguments.split()), message)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "boxes.csv"]
    (tmp_path / "boxes.csv").write_text("frame,x,y,w,h\n0,30,20,60,60\n")
    assert run("lips", "a.mkv", "-o", "l.npz", "--boxes", "boxes.csv")[0] == 0


@pytest.mark.parametrize("output", ["clean.wav", "clean.mp4", "clean.mkv"])
def test_a_video_is_enhanced(
    output: str, run: Run, weights: Path, tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    """Sound and lips from one file; the same speech in a sound file, or under the same pictures."""
    clip = shared_data(GRID)
    model = weights / "min_vae_v2.safetensors"
    code, out, _ = run("enhance", clip, "--model", model, "--iterations", 2, "-o", output, "--json")
    assert code == 0
    assert json.loads(out)["files"] == {"speech": output}
    assert [p.name for p in tmp_path.iterdir()] == [output]
    sound, rate = (
        soundfile.read(output, always_2d=True)
        if output.endswith(".wav")
        else read_sound(tmp_path / output)
    )
    original = load_audio(clip)
    assert rate == original.sample_rate == 44100
    padding = len(sound) - original.num_samples
    assert (
        0 <= padding < 1024 if output == "clean.mkv" else padding == 0
    )  # its AAC ends with a whole block
    if not output.endswith(".wav"):
        pairs = zip(read_pictures(tmp_path / output), read_pictures(clip), strict=True)
        assert all(abs(a - b) < 1e-3 and np.array_equal(x(), y()) for (a, x), (b, y) in pairs)
        run("enhance", clip, "--model", model, "--iterations", 2, "-o", "same.wav")
        same, _ = soundfile.read("same.wav")
        assert np.corrcoef(sound[: len(same), 0], same)[0, 1] > 0.95


def test_videos_that_cannot_be_enhanced(
    run: Run, weights: Path, tmp_path: Path, make_video: Make
) -> None:
    """No sound, another length of sound and lips, no container: one line with the cure. No face: by sound, a note."""
    sees, hears = weights / "min_vae_v2.safetensors", weights / "a_vae.safetensors"
    make_video(tmp_path / "silent.mkv", noise())
    make_video(tmp_path / "faceless.mkv", noise(), sound=voice())
    make_video(tmp_path / "long.mkv", noise(), sound=voice(2.0))
    soundfile.write(tmp_path / "a.wav", voice(), 16000)
    (tmp_path / "boxes.csv").write_text("frame,x,y,w,h\n0,30,20,60,60\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    for file, output, message in [
        ("silent.mkv", "o.wav", "silent.mkv has no sound"),
        ("faceless.mkv", "o.avi", "o.avi: pictures are copied into .mp4"),
        ("faceless.mkv", "faceless.mkv", "faceless.mkv is the recording itself"),
        ("a.wav", "o.mp4", "a.wav has no pictures to copy into o.mp4: end it in .wav"),
    ]:
        refused(run("enhance", file, "--model", sees, "-o", output), message)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert run("lips", "long.mkv", "-o", "l.npz", "--boxes", "boxes.csv")[0] == 0
    refused(
        run("enhance", "long.mkv", "--lips", "l.npz", "--model", sees, "-o", "o.mp4"),
        "lips has 30 frames at 25 fps (1.20 s), the sound lasts 2.0",
    )
    for model in (hears, sees):
        code, _, said = run(
            "enhance", "faceless.mkv", "--model", model, "-o", "o.mp4", "--iterations", 2
        )
        assert code == 0
        assert ("no face" in said) == (model == sees)  # a model that does not look needs none
    assert (tmp_path / "o.mp4").is_file()
    refused(run("enhance", "a.wav", "--fps", 25, "--model", hears), "--fps is of --lips")


def test_gaps_of_a_video_given_as_lips_are_said(
    run: Run, weights: Path, tmp_path: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its lips are in the cache."""
    monkeypatch.setattr("pyro_avse.data.lips.watch.FaceFinder", HalfSeen)
    make_video(tmp_path / "talk.mkv", noise(), sound=voice())
    soundfile.write(tmp_path / "a.wav", voice(), 16000)
    model = weights / "min_vae_v2.safetensors"
    load_lips(tmp_path / "talk.mkv")
    code, _, err = run(
        "enhance", "a.wav", "--lips", "talk.mkv", "--model", model, "--iterations", 1
    )
    assert code == 0
    assert "talk.mkv: no face at 0.8-1.2 s: its place was interpolated" in err


class HalfSeen:
    """A face in each of the first four pictures that are looked at."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        self.looks += 1
        return np.array([[30.0, 20, 60, 60, 0]] if self.looks <= 4 else []).reshape(-1, 5)


def test_a_sweep_has_one_scheduler(run: Run, tmp_path: Path) -> None:
    sweep = "evaluate --data x --noise white --snr 0 --models a_vae --out o --cluster --scheduler y"
    refused(run(*sweep.split()), "--cluster starts dask, --scheduler names one that runs: give one")
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_is_described(run: Run, tmp_path: Path, tiny_corpus: Path) -> None:
    """--json: one object with the counts; without: a table by split on stdout, prose on stderr."""
    code, out, _ = run("data", "info", tiny_corpus, "--json")
    assert code == 0
    assert json.loads(out) == {
        "speakers": 2,
        "utterances": 6,
        "with_lips": 6,
        "noisy": 0,
        "minutes": 0.1,
        "broken": [],
    }
    code, out, err = run("data", "info", tiny_corpus)
    assert code == 0
    rows = {line.split()[1]: line.split()[3::2][:4] for line in out.splitlines() if "│" in line}
    assert rows == {
        "train": ["2", "4", "4", "0"],
        "valid": ["2", "2", "2", "0"],
        "all": ["2", "6", "6", "0"],
    }
    assert "0 broken, 0 missing" in err


def test_what_is_broken_is_named(run: Run, tmp_path: Path, make_video: Make) -> None:
    """Unreadable, silent and doubled files, lips of another length, damaged videos: listed, and no crash."""
    root = tmp_path / "corpus"
    (root / "s1").mkdir(parents=True)
    for name in ("good", "bare", "doubled"):
        soundfile.write(root / f"s1/{name}.wav", voice(), 16000)
    lips = np.zeros((30, 67, 67), np.uint8)
    np.savez(root / "s1/good.npz", lips=lips, fps=25.0)
    soundfile.write(root / "s1/doubled.flac", voice(), 16000)
    soundfile.write(root / "s1/zeros.wav", 0 * voice(), 16000)
    (root / "s1/text.wav").write_text("no sound")
    soundfile.write(root / "s1/short.wav", voice(), 16000)
    np.savez(root / "s1/short.npz", lips=lips[:10], fps=25.0)
    np.savez(root / "s1/alone.npz", lips=lips, fps=25.0)
    make_video(root / "s1/silent.mkv", noise())
    make_video(root / "s1/whole.mkv", noise(), sound=voice())
    whole = (root / "s1/whole.mkv").read_bytes()
    (root / "s1/cut.mkv").write_bytes(whole[: len(whole) // 2])
    code, out, err = run("data", "info", root, "--json")
    assert code == 0
    found = json.loads(out)
    reasons = {Path(item["file"]).name: item["reason"] for item in found["broken"]}
    expected = {
        "doubled.wav": "same utterance as doubled.flac",
        "zeros.wav": "silent",
        "text.wav": "cannot be read as sound",
        "short.npz": "the sound lasts 1.20 s",
        "silent.mkv": "has no sound",
        "cut.mkv": "damaged at",
        "whole.mkv": "no face at 0.0-1.2 s",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
        assert f"{name}: " in err
    assert (found["speakers"], found["utterances"], found["with_lips"]) == (1, 9, 5)
    assert "alone.npz has no sound beside it" in err
    for k in range(25):
        (root / f"s1/{k}.wav").write_text("no sound")
    assert "more" in run("data", "info", root)[2]
    code, _, err = run("data", "info", root, "--json")
    assert (code, err.count("cannot be read as sound")) == (0, 26)
    assert "bare.wav has no lips" in err
    refused(run("data", "info", tmp_path / "none"), "none is no folder: a corpus is")
    (tmp_path / "empty").mkdir()
    refused(run("data", "info", tmp_path / "empty"), "empty holds no utterances: a corpus is")
