"""Files by another hand, and names of any kind: one line, and no more memory or time than they are worth."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import torch

from pyro_avse import html
from pyro_avse.cli import main
from pyro_avse.cli.app import print_table, read_settings
from pyro_avse.data.corpora.corpus import find_corpus
from pyro_avse.data.corpora.utterance import walk
from pyro_avse.data.lips import lips as lips_module
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.blocks import open_blocks
from pyro_avse.data.media.video import read_pictures
from pyro_avse.lab.comparison import compare
from pyro_avse.lab.diagnostics import diagnose, to_inference_data
from pyro_avse.sweep.protocol import read_protocol
from pyro_avse.sweep.results import load_results, write_row
from pyro_avse.training.recipe import load_recipe
from pyro_avse.typing import InputError

DEEP = "[" * 100_000
SOUND = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)


def npz(path: Path, arrays: dict[str, tuple[tuple[int, ...], str]], fps: float | None = 25) -> Path:
    """An archive whose arrays are headers alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, (shape, dtype) in arrays.items():
            packed = io.BytesIO()
            header = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(packed, header)
            archive.writestr(f"{key}.npy", packed.getvalue())
        if fps is not None:
            packed = io.BytesIO()
            np.save(packed, np.float64(fps))
            archive.writestr("fps.npy", packed.getvalue())
    return path


def test_an_array_is_judged_by_its_header(tmp_path: Path) -> None:
    """Lips far longer than the sound, of another kind, or beyond memory: nothing is unpacked."""
    path = tmp_path / "l.npz"
    longest = {"longest": 3.0}
    for shape, dtype, more, said in (
        ((900_000, 67, 67), "|u1", longest, r"900000 frames at 25 fps \(36000.00 s\), the sound"),
        ((10**15, 67, 67), "|u1", {}, "GB: cut the recording"),
        ((10**15, 67, 67), "|O", {}, "lips is object: give uint8"),
        ((10**15, 68, 67), "|u1", {}, r"give \(frame, 67, 67\)"),
        ((4489, 10**6), "|u1", longest | {"fps": 25.0}, "the sound lasts 3.00 s"),
        ((), "|u1", {}, "has shape"),
    ):
        with pytest.raises(InputError, match=said):
            load_lips(npz(path, {"lips": (shape, dtype)}), **more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fps has shape"):
        load_lips(npz(path, {"fps": ((10**15,), "<f8"), "lips": ((75, 67, 67), "|u1")}, None))
    with pytest.raises(InputError, match="keys"):
        load_lips(npz(path, {"other": ((10**15,), "<f8")}))
    path = path.with_suffix(".npy")
    np.save(path, np.zeros((300, 67, 67), np.uint8))
    with pytest.raises(InputError, match="300 frames"):
        load_lips(path, fps=25, longest=3.0)
    assert len(load_lips(path, fps=25, longest=12.0).frames) == 300


def test_what_lies_beside_the_lips_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "l.npz"
    np.savez(path, lips=np.zeros((75, 67, 67), np.uint8), fps=25.0, transcript="bin blue")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", bytes(100))
        archive.writestr("strange.txt", b"no array")
    assert len(load_lips(path, longest=3.0).frames) == 75


def test_a_header_that_breaks_off(tmp_path: Path) -> None:
    """Found by benchmarks/fuzz.py: numpy's reader of headers stumbles in ways of its own."""
    path = tmp_path / "l.npz"
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (75, 67, 67), \n"
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lips.npy", header)
    path.with_suffix(".npy").write_bytes(header + bytes(75 * 67 * 67))
    for broken in (path, path.with_suffix(".npy")):
        with pytest.raises(InputError, match=r"cannot be read as \.npz or \.npy"):
            load_lips(broken, fps=25)


def test_a_mat_of_holes(tmp_path: Path) -> None:
    """HDF5 keeps an array that nobody wrote in no space at all."""
    path = tmp_path / "l.mat"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (10**12, 4489), "f4", chunks=(1, 4489))
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match="GB: cut the recording"):
        load_lips(path)
    with pytest.raises(InputError, match=r"the sound lasts 3\.00 s"):
        load_lips(path, longest=3.0)
    assert lips_module.MOST_BYTES < 2**40


def test_a_sound_that_says_it_never_ends(tmp_path: Path) -> None:
    """FLAC's header may say any length: nothing is laid out for it, and what there is is read."""
    path = tmp_path / "s.flac"
    soundfile.write(path, SOUND, 16000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # 36 bits of "total samples" begin in the low half of this byte
    data[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert load_audio(path).num_samples == len(SOUND)
    data[18:21] = b"\x00\x00\x10"  # 1 Hz, mono
    path.write_bytes(data)
    with pytest.raises(InputError):
        open_blocks(path, seconds=30, overlap=1)


def test_recipes_settings_and_results_of_brackets(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f"a = {DEEP}")
    (tmp_path / "protocol.json").write_text(DEEP)
    for call in (
        lambda: load_recipe(tmp_path / "r.toml"),
        lambda: read_settings(DEEP),
        lambda: read_protocol(tmp_path),
    ):
        with pytest.raises(InputError):
            call()


def test_links_that_go_round(tmp_path: Path) -> None:
    """Folders within themselves, a ladder of links, a pipe: the corpus is what is there, once, soon."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    soundfile.write(tmp_path / "train" / "a" / "one.wav", SOUND, 16000)
    os.mkfifo(tmp_path / "train" / "a" / "two.wav")
    for k in range(3):
        (tmp_path / "train" / f"round{k}").symlink_to("..")
    assert [u.name for u in find_corpus(tmp_path).utterances] == ["one"]
    ladder = tmp_path / "ladder"
    ladder.mkdir()
    for k in range(30):
        (ladder / f"{k}").mkdir()
        for side in "ab":
            (ladder / f"{k}" / side).symlink_to(f"../{k + 1}")
    assert list(walk(ladder)) == []


ODD = [b"caf\xc3\xa9.wav", b"odd\xff.wav", b"a%s%03d.wav", b"talk:one.wav", b"[red][bad.wav"]


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_names_of_any_bytes(
    name: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In and out; said on screen, in tables and pages."""
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    with open(path, "wb") as file:
        soundfile.write(file, SOUND, 16000, format="WAV")
    out = path.with_suffix(".flac")
    command = ["enhance", str(path), "--model", "a_vae", "--iterations", "1", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", ["pyro-avse", *command])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert soundfile.info(os.fsencode(out)).frames == 16000
    capsys.readouterr()
    shown = str(path).encode(errors="backslashreplace").decode()
    print_table(["", "[bold]"], [[shown, "[/]"]])
    printed = capsys.readouterr().out
    assert shown in printed
    assert "[bold]" in printed
    assert (
        "<script"
        not in html.page(f"<script>{path}", html.table([str(path)], [[str(path)]])).decode()
    )


@pytest.mark.parametrize("name", [b"odd\xff.mp4", b"talk:one.mp4", b"a%03d.mkv"], ids=repr)
def test_names_of_videos(name: bytes, tmp_path: Path, make_video, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A colon is no address, a percent sign no pattern."""
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    make_video(tmp_path / "v.mp4", np.zeros((5, 16, 16), np.uint8)).rename(path)
    assert len(list(read_pictures(path))) == 5


def test_an_ascii_locale(tmp_path: Path) -> None:
    """Python without UTF-8: a name beyond ASCII is read and said."""
    name = os.path.join(os.fsencode(tmp_path), b"caf\xc3\xa9.wav")
    with open(name, "wb") as file:
        soundfile.write(file, SOUND[:500], 16000, format="WAV")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "from pyro_avse.cli import main; main()"
    done = subprocess.run(
        [
            os.fsencode(sys.executable),
            b"-c",
            code.encode(),
            b"enhance",
            name,
            b"-o",
            name + b".wav",
        ],
        env=os.environ | plain,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"give at least 0.064 s" in done.stderr


def test_results_of_odd_names(tmp_path: Path) -> None:
    """A table holds text; bytes that are none are written as such."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "protocol.json").write_text("{}")
    row = {"key": "k", "clip": "odd\udcff", "noise_files": ["\udcfe.wav"], "failure": "x"}
    write_row(tmp_path, row)
    (found,) = load_results(tmp_path).to_dict("records")
    assert (found["clip"], list(found["noise_files"])) == ("odd\\udcff", ["\\udcfe.wav"])


def test_one_chain_and_three_draws(monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    """Too little for R-hat is said as such, before the work."""
    from pyro_avse.inference import KERNELS
    from pyro_avse.inference.run import run_chains
    from pyro_avse.typing import Chains

    class Plain:
        def log_density(self, z: torch.Tensor) -> torch.Tensor:
            return -0.5 * z.square().sum(-1)

    def drawn(chains: int, draws: int) -> Chains:
        return run_chains(KERNELS["random_walk"](), Plain(), torch.zeros(chains, 3, 2), draws=draws)  # type: ignore[arg-type]

    found = diagnose(to_inference_data(drawn(1, 50)))
    assert np.isnan(found.rhat).all()
    assert {reason.split(",")[0] for reason in found.failures().values()} == {"no R-hat: one chain"}
    with pytest.raises(InputError, match="3 draws a chain have no R-hat"):
        diagnose(to_inference_data(drawn(2, 3)))
    with pytest.raises(InputError, match="3 draws have no R-hat and no ESS"):
        compare([], None, {}, draws=3)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["pyro-avse", "compare", "none.wav", "--draws", "3"])
    with pytest.raises(SystemExit):
        main()
    assert "--draws 3: R-hat and ESS need at least 4, or give 0" in capsys.readouterr().err


def test_json_of_a_page_is_ascii() -> None:
    assert json.dumps({"file": "odd\udcff"}) == '{"file": "odd\\udcff"}'
