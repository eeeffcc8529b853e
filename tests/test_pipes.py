"""Recordings through pipes, and several into a folder."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from pyro_avse.cli import main
from pyro_avse.enhancement.many import output_names
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import save_prior

VOICE = 0.1 * np.random.default_rng(0).standard_normal(16000)


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_prior: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[object, bytes, str]]:
    """run("a.wav", "-o", ..., stdin=): exit code, stdout as bytes, stderr."""
    monkeypatch.chdir(tmp_path)
    save_prior(tmp_path / "w.safetensors", tiny_prior("a_vae"), STFT())

    def call(*arguments: str, stdin: bytes = b"") -> tuple[object, bytes, str]:
        options = ["--model", "w.safetensors", "--inference", "vem", "--iterations", "1"]
        monkeypatch.setattr(sys, "argv", ["pyro-avse", "enhance", *arguments, *options])
        out = io.BytesIO()
        text = io.TextIOWrapper(out, write_through=True)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "stdout", text)
        with pytest.raises(SystemExit) as end:
            main()
        found = out.getvalue()
        return end.value.code, found, capsys.readouterr().err

    return call


def wav(samples: np.ndarray, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format=form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_from_stdin_to_stdout(run: Any, tmp_path: Path, form: str) -> None:
    """The sound alone on stdout; the notes call the pipes by their names, and no file is left."""
    code, out, err = run("-", "-o", "-", stdin=wav(VOICE, form))
    assert code == 0, err
    samples, rate = soundfile.read(io.BytesIO(out))
    assert (len(samples), rate) == (16000, 16000)
    assert "stdin: 1.00 s" in err
    assert "wrote stdout.wav" in err
    assert "tmp" not in err
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_pipe_at_one_end(run: Any) -> None:
    code, _, err = run("-", stdin=wav(VOICE))
    assert code == 0, err
    assert soundfile.info("stdin_enhanced.wav").frames == 16000
    code, out, _ = run("stdin_enhanced.wav", "-o", "-")
    assert (code, out[:4]) == (0, b"RIFF")
    for stdin, said in (
        (b"", "stdin is empty"),
        (b"no sound\n" * 9, "error: stdin cannot be read"),
    ):
        code, out, err = run("-", "-o", "-", stdin=stdin)
        assert (code, out, err.count("\n")) == (2, b"", 1)
        assert said in err


def test_several_go_into_a_folder(run: Any, tmp_path: Path) -> None:
    """Each under its name; what cannot be used is said, and the others are done."""
    for name in ("a.wav", "b.flac", "c.wav"):
        (tmp_path / name).write_bytes(wav(VOICE, name[2:].upper()))
    (tmp_path / "c.wav").write_text("no sound\n")
    code, out, err = run("a.wav", "b.flac", "c.wav", "-o", "out/", "--json")
    assert code == 2
    assert sorted(os.listdir("out")) == ["a.wav", "b.flac"]
    found = json.loads(out)
    assert [row["files"]["speech"] for row in found["rows"]] == ["out/a.wav", "out/b.flac"]
    assert len(found["refused"]) == 1
    assert "error: c.wav cannot be read as sound" in err
    assert "wrote 2 of 3 recordings into out" in err
    code, _, _ = run("a.wav", "b.flac", "-o", "out")  # a folder that is there
    assert code == 0


def test_names_in_the_folder(tmp_path: Path, make_video: Any) -> None:
    """Sound and videos keep their kind where it can be written; two of one name are refused."""
    video = make_video(tmp_path / "v.avi", np.zeros((5, 48, 64), np.uint8))
    kept = make_video(tmp_path / "w.mp4", np.zeros((5, 48, 64), np.uint8))
    paths = [Path("a.m4a"), Path("b.aac"), Path("C.WAV"), video, kept]
    names = [path.name for path in output_names(paths, tmp_path / "out")]
    assert names == ["a.m4a", "b.wav", "C.WAV", "v.mkv", "w.mp4"]
    with pytest.raises(InputError, match=r"x/a\.wav and y/a\.wav would both be"):
        output_names([Path("x/a.wav"), Path("y/a.wav")], tmp_path)
