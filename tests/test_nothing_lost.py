"""Nothing is lost and nothing touched: full disks, signals, two runs to one file, and outputs that are inputs too."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from torch import nn

from pyro_avse.cli import main
from pyro_avse.cli.stopping import stopping
from pyro_avse.data.lips import watch as watching
from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.media import saving
from pyro_avse.data.media.saving import save_audio, save_pieces
from pyro_avse.data.media.video import copy_pictures
from pyro_avse.enhancement.file import enhance_file
from pyro_avse.enhancement.ports import Source, run
from pyro_avse.files import (
    PART,
    beside,
    check_place,
    make_folder,
    refuse_inputs,
    remove_litter,
    write_atomically,
)
from pyro_avse.stft import STFT
from pyro_avse.training.folder import find_checkpoint
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import save_prior
from pyro_avse.weights.import_weights import import_weights

NOISE = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """Ctrl-C is heard, as at a terminal; a shell's jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 20 kB: the disk says so where it is written, as a full one does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_full_disk_says_so(suffix: str, tmp_path: Path, full_disk: None) -> None:
    """The disk's own words, whatever the format makes of them; the old file stays, and nothing beside it."""
    path = tmp_path / f"s{suffix}"
    path.write_bytes(b"old")
    loud = np.random.default_rng(0).uniform(-1, 1, 160_000).astype(np.float32)
    for save in (
        lambda: save_audio(path, loud, 16000),
        lambda: save_pieces(path, np.split(loud, 10), 16000),
    ):
        with pytest.raises(InputError, match="File too large: make room, or write elsewhere"):
            save()
    assert path.read_bytes() == b"old"
    assert left(tmp_path) == [path.name]


def test_a_full_disk_of_a_video(
    tmp_path: Path, make_video: Callable[..., Path], full_disk: None
) -> None:
    """Not the container's fault."""
    pictures = np.random.default_rng(0).integers(0, 255, (8, 16, 16), dtype=np.uint8)
    source = make_video(tmp_path / "a.mp4", pictures, sound=NOISE[:5120])
    loud = np.random.default_rng(0).uniform(-1, 1, 160_000).astype(np.float32)
    with pytest.raises(InputError, match="File too large: make room"):
        copy_pictures(tmp_path / "b.mkv", source, loud, 16000)
    assert left(tmp_path) == ["a.mp4"]


def test_litter_is_known_by_its_lock(tmp_path: Path) -> None:
    """What a killed process left is removed by the next run; what another still writes, and all else, is not."""
    litter, mine = tmp_path / ".pyro_avse-0123456789abcdef.part", tmp_path / ".other.part"
    for path in (litter, mine):
        path.write_bytes(b"half")

    def write(part: Path) -> None:
        assert PART.fullmatch(part.name)
        remove_litter(tmp_path)
        assert left(tmp_path) == sorted([mine.name, part.name])
        part.write_bytes(b"new")
        part.replace(tmp_path / "w")

    beside(tmp_path / "w", write)
    assert (tmp_path / "w").read_bytes() == b"new"
    assert left(tmp_path) == [mine.name, "w"]
    for check in (lambda: make_folder(tmp_path), lambda: check_place(tmp_path / "w")):
        litter.write_bytes(b"half")
        check()
        assert left(tmp_path) == [mine.name, "w"]


def test_the_cache_of_lips_is_cleaned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next that is kept there."""
    seen = watching.Watched(Lips(np.zeros((9, 67, 67), np.uint8), 25.0), np.zeros((9, 5)), [], [])
    monkeypatch.setattr(watching, "watch", lambda path: seen)
    monkeypatch.setenv("PYRO_AVSE_CACHE", str(tmp_path))
    (tmp_path / "lips").mkdir()
    (tmp_path / "lips" / ".pyro_avse-0123456789abcdef.part").write_bytes(b"half")
    watching.watch_cached(tmp_path / "v.mp4")
    (kept,) = left(tmp_path / "lips")
    assert kept.endswith(".npz")


def test_two_at_once_to_one_file(tmp_path: Path) -> None:
    """Whoever comes last wins, whole; a link stays a link."""
    (tmp_path / "link").symlink_to("w")
    contents = [bytes([k]) * 100_000 for k in range(4)]

    def often(content: bytes) -> None:
        for _ in range(20):
            write_atomically(tmp_path / "link", content)
            assert (tmp_path / "w").read_bytes() in contents

    threads = [threading.Thread(target=often, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "w").read_bytes() in contents
    assert left(tmp_path) == ["link", "w"]
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_is_no_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.wav")
    with pytest.raises(InputError, match="it is a pipe or a device, name a file"):
        save_audio(tmp_path / "s.wav", NOISE, 16000)


def test_a_thread_writes_too(tmp_path: Path) -> None:
    """No handler of a signal can be set there; a server, as the page in the browser, works in threads."""
    failed: list[BaseException] = []

    def write() -> None:
        try:
            save_audio(tmp_path / "s.wav", NOISE, 16000)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert failed == []
    np.testing.assert_array_equal(soundfile.read(tmp_path / "s.wav", dtype="float32")[0], NOISE)


def test_signals_end_the_work_in_order() -> None:
    """Each as Ctrl-C does, once; handlers of before come back, and what is ignored stays ignored."""
    before = signal.getsignal(signal.SIGTERM)
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            assert stop.number == signal.SIGTERM
            signal.raise_signal(signal.SIGTERM)  # while it is cleaned up
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, was)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("at", ["open", "piece", "close"])
def test_a_signal_within_a_write_is_not_lost(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile calls Python to write, from where nothing can be raised: the work ends after the call, in order."""
    path = tmp_path / "s.wav"
    path.write_bytes(b"old")
    stage, write = ["open"], saving._Disk.write

    def signalled(disk: Any, data: bytes) -> int:
        if at == stage[0]:
            stage[0] = "signalled"
            signal.raise_signal(signal.SIGTERM)
        return write(disk, data)

    def pieces() -> Iterator[np.ndarray]:
        stage[0] = "piece" if stage[0] != "signalled" else stage[0]
        yield NOISE
        stage[0] = "close" if stage[0] != "signalled" else stage[0]

    monkeypatch.setattr(saving._Disk, "write", signalled)
    with stopping() as stop, pytest.raises(KeyboardInterrupt):
        save_pieces(path, pieces(), 16000)
    assert stop.number == signal.SIGTERM
    assert stage == ["signalled"]
    assert path.read_bytes() == b"old"
    assert left(tmp_path) == ["s.wav"]


SENT = {
    signal.SIGINT: "pyro-avse: interrupted\n",
    signal.SIGTERM: "pyro-avse: interrupted: told to end\n",
    signal.SIGHUP: "pyro-avse: interrupted: the terminal was closed\n",
}


@pytest.mark.parametrize("number", SENT)
def test_a_signal_leaves_no_litter(
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It comes while a long recording's speech is being written: one line, 128 + its number, the folder as it was."""
    noisy, out = tmp_path / "long.wav", tmp_path / "out"
    soundfile.write(noisy, np.tile(NOISE, 7), 16000)
    out.mkdir()
    (out / "s.wav").write_bytes(b"old")
    if signal.getsignal(number) is signal.SIG_IGN:  # the tests run under nohup, which we respect
        signal.signal(number, signal.SIG_DFL)

    def second_block(done: float, text: str) -> None:
        if done > 0.4:
            assert any(PART.fullmatch(name) for name in left(out))
            signal.raise_signal(number)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        return enhance_file(*arguments, **options | {"progress": second_block})

    monkeypatch.setattr("pyro_avse.enhancement.file.enhance_file", interrupted)
    command = ["enhance", str(noisy), "--model", "a_vae", "--iterations", "1", "--block", "3"]
    monkeypatch.setattr(sys, "argv", ["pyro-avse", *command, "-o", str(out / "s.wav")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 128 + number
    assert capsys.readouterr().err.endswith(SENT[number])
    assert left(out) == ["s.wav"]
    assert (out / "s.wav").read_bytes() == b"old"


def test_ctrl_c_keeps_what_a_microphone_heard_and_no_half_of_a_file() -> None:
    class Still:
        def push(self, block: np.ndarray) -> np.ndarray:
            return block

        def flush(self) -> np.ndarray:
            return np.zeros(0, np.float32)

    def blocks() -> Iterator[np.ndarray]:
        yield NOISE
        raise KeyboardInterrupt

    written: list[np.ndarray] = []
    run(Still(), Source(16000, blocks()), written.extend)  # type: ignore[arg-type]
    assert len(written[0]) == len(NOISE)
    with pytest.raises(KeyboardInterrupt):
        run(Still(), Source(16000, blocks(), endless=False), written.extend)  # type: ignore[arg-type]


@pytest.fixture
def inputs(
    tmp_path: Path, tiny_prior: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """All that one call may read, by enhance_file's names; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    for name in ("noisy.wav", "ref.flac"):
        soundfile.write(name, NOISE, 16000)
    np.savez("lips.npz", lips=np.zeros((25, 67, 67), np.uint8), fps=25.0)
    save_prior(Path("w.safetensors"), tiny_prior("a_vae"), STFT())
    return {"reference": "ref.flac", "lips": "lips.npz", "model": "w.safetensors"}


def test_an_output_that_is_an_input_is_refused(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever name: itself, a way round, a link, a hard link; before weights are loaded. All stay as they are."""
    monkeypatch.setattr(
        "pyro_avse.enhancement.file.load_prior", lambda *a, **k: pytest.fail("loaded")
    )
    names = ["noisy.wav", *inputs.values()]
    before = {name: Path(name).read_bytes() for name in names}
    other: list[str] = []
    for k, name in enumerate(names):
        os.symlink(name, f"soft{k}.wav")
        os.link(name, f"hard{k}.wav")
        other += [f"soft{k}.wav", f"hard{k}.wav", f"../{Path.cwd().name}/hard{k}.wav"]
    for output in ["noisy.wav", "ref.flac", *other]:
        with pytest.raises(InputError, match="itself: name another file"):
            enhance_file("noisy.wav", output, **inputs)
        with pytest.raises(InputError, match="itself: name another file"):
            enhance_file("noisy.wav", "s.wav", noise_out=output, **inputs)
    assert {name: Path(name).read_bytes() for name in names} == before
    assert not Path("s.wav").exists()


def test_other_commands_refuse_it_too(inputs: dict[str, Any], monkeypatch: Any) -> None:
    os.link("noisy.wav", "noisy.npz")
    os.link("w.safetensors", "theirs.safetensors")
    os.link("w.safetensors", "w.html")
    with pytest.raises(InputError, match="the file that is read itself"):
        import_weights("w.safetensors", "theirs.safetensors")
    for arguments in (
        ["lips", "noisy.wav", "-o", "noisy.npz"],
        ["compare", "noisy.wav", "--model", "w.safetensors", "--html", "w.html"],
        ["live", "noisy.wav", "-o", "noisy.wav"],
    ):
        monkeypatch.setattr(sys, "argv", ["pyro-avse", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
    with pytest.raises(InputError, match=r"new\.wav is the recording itself"):
        refuse_inputs([Path("new.wav")], {"the recording": Path("./new.wav"), "the lips": None})
    refuse_inputs([Path("new.wav"), None], {"the recording": Path("noisy.wav")})


def test_kill_9_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    """A process killed amid a write leaves its half; who writes there next removes it."""
    code = (
        "import sys, time; from pathlib import Path; from pyro_avse.files import beside\n"
        "def stay(part):\n part.write_bytes(b'half'); print('half', flush=True); time.sleep(60)\n"
        "beside(Path(sys.argv[1]), stay)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "w")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"half\n"
        check_place(tmp_path / "w")  # it is at work: left alone
        assert len(left(tmp_path)) == 1
        process.kill()
        process.wait()
    time.sleep(0.01)
    check_place(tmp_path / "w")
    assert left(tmp_path) == []


def test_weights_of_no_run_are_not_trained_over(tmp_path: Path) -> None:
    """They may be those that the recipe starts from; with a run beside them, --resume goes on."""
    assert find_checkpoint(tmp_path / "new", {}, resume=False) is None
    (tmp_path / "weights.safetensors").write_bytes(b"dear")
    for resume in (False, True):
        with pytest.raises(
            InputError, match=r"weights.safetensors: holds weights, but not the run"
        ):
            find_checkpoint(tmp_path, {}, resume=resume)
    assert (tmp_path / "weights.safetensors").read_bytes() == b"dear"


@pytest.mark.parametrize("option", ["--speech", "--voices"])
def test_noise_is_not_drawn_over_what_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, option: str
) -> None:
    kept = tmp_path / "noise_2.wav"
    soundfile.write(kept, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    before = kept.read_bytes()
    command = ["pyro-avse", "data", "draw-noise", "--out", str(tmp_path), option, str(kept)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        main()
    assert "noise_2.wav is the" in capsys.readouterr().err
    assert kept.read_bytes() == before
    assert list(tmp_path.iterdir()) == [kept]
