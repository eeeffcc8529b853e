"""Streams: blocks in, blocks out, by a causal guide and a window that slides."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from pyro_avse.cli import main
from pyro_avse.enhancement import blocks, live, ports
from pyro_avse.enhancement.blocks import Overlap, Sound
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.front import split
from pyro_avse.enhancement.live import Stream, rescaled
from pyro_avse.inference import SCHEMES
from pyro_avse.inference.ldem import LDEM
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import save_prior
from pyro_avse.weights.guides import save_guide

QUICK = LDEM(
    iterations=1, first_warmup=0, warmup=0, draws=1, final_warmup=0, final_draws=1, chains=1
)


@pytest.fixture
def noisy() -> np.ndarray:
    """1.3 s of a tone that comes and goes in noise, with an offset and a rumble."""
    n = np.arange(20800)
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 300 * n / 16000) * (np.sin(2 * np.pi * 2 * n / 16000) > 0)
    rumble = np.sin(2 * np.pi * 20 * n / 16000)
    return 0.2 * tone + 0.05 * rng.standard_normal(len(n)) + 0.3 * rumble + 0.1


@pytest.fixture
def enhancer(tiny_prior: Callable[..., Any]) -> Enhancer:
    torch.manual_seed(0)
    prior = tiny_prior("a_vae")
    guide = NoisyGuide(prior, hidden=6, layers=1, causal=True, ahead=2).eval().requires_grad_(False)
    return Enhancer(prior, QUICK, guide=guide, device="cpu")


def pushed(stream: Stream, samples: np.ndarray, *sizes: int) -> np.ndarray:
    """All that comes out where blocks of these sizes go in, in turn."""
    out, at, turn = [], 0, 0
    while at < len(samples):
        size = sizes[turn % len(sizes)]
        out.append(stream.push(samples[at : at + size]))
        at, turn = at + size, turn + 1
    return np.concatenate([*out, stream.flush()])


@pytest.mark.parametrize("rate", [16000, 44100])
def test_blocks_of_any_sizes_give_the_same_samples(
    rate: int, enhancer: Enhancer, noisy: np.ndarray
) -> None:
    """As many as went in, and to the last bit what one block gives."""
    sounds = [
        pushed(enhancer.stream(rate, scheme=QUICK, seed=3), noisy, *sizes)
        for sizes in ((len(noisy),), (7, 333, 1), (5000, 16))
    ]
    for sound in sounds:
        assert sound.dtype == np.float32
        assert len(sound) == len(noisy)
        assert np.array_equal(sound, sounds[0])
    assert np.abs(sounds[0]).max() > 1e-3
    other = pushed(enhancer.stream(rate, scheme=QUICK, seed=4), noisy, 500)
    assert not np.array_equal(other, sounds[0])


@pytest.mark.parametrize("rate", [16000, 48000])
def test_a_sample_comes_out_within_the_delay_that_is_stated(
    rate: int, enhancer: Enhancer, noisy: np.ndarray
) -> None:
    stream = enhancer.stream(rate, scheme=QUICK)
    assert stream.delay <= 0.3
    given = most = 0
    for at in range(0, len(noisy), 160):
        given += len(stream.push(noisy[at : at + 160]))
        most = max(most, min(at + 160, len(noisy)) - given)
    assert most <= stream.delay * rate
    assert most > 0.5 * stream.delay * rate  # and it is no exaggeration


def test_memory_stays_as_it_is_however_long_it_goes_on(
    enhancer: Enhancer, noisy: np.ndarray
) -> None:
    stream = enhancer.stream(scheme=QUICK)

    def held() -> int:
        tails = (stream._sound.raw, stream._sound.forwards, stream._sound.heard, stream._out.speech)
        return sum(len(t.samples) for t in tails) + len(stream._waiting) + len(stream._spectra)

    sizes = []
    for _ in range(6):
        stream.push(noisy)
        sizes.append(held())
        assert stream.state is not None
        assert stream.state.activations.shape[0] <= live.WINDOW
    assert max(sizes[3:]) <= sizes[2] + live.BLOCK * 3 * 533  # by a block of each tail


@pytest.mark.parametrize("stft", [STFT(), STFT(hop=256), STFT(512, 384)])
def test_what_goes_through_the_front_alone_is_the_offline_front(
    stft: STFT, noisy: np.ndarray
) -> None:
    """Frames that nobody filters: the high-pass forwards and backwards, and a synthesis that gives back what it was."""
    sound, out, done = Sound(stft), Overlap(stft), []
    for block in np.array_split(np.concatenate([noisy, np.zeros(4000)]), 70):
        sound.add(block)
        while (frames := sound.take_frames(3)) is not None:
            done.append(out.add(frames))
    found = np.concatenate(done)[: len(noisy)]
    offline = split(noisy, 1.0).heard
    middle = slice(4000, -2500)  # at the ends the offline filter mirrors, this one cannot
    assert len(found) == len(noisy)
    assert np.abs(found[middle] - offline[middle]).max() < 2e-3 * np.abs(offline).max()
    low = sound.low(len(noisy) - 3000, len(noisy) - 2500)
    assert np.abs(low).max() > 0.2  # the rumble, without the offset
    assert abs(low.mean()) < 0.3


def test_silence_goes_through_and_sound_after_it_is_enhanced(
    enhancer: Enhancer, noisy: np.ndarray
) -> None:
    out = pushed(enhancer.stream(scheme=QUICK), np.concatenate([np.zeros(16000), noisy]), 1000)
    assert np.isfinite(out).all()
    assert np.abs(out[:12000]).max() == 0
    assert np.abs(out[20000:]).max() > 1e-3


def test_after_a_long_silence_it_begins_anew(
    enhancer: Enhancer, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The level is forgotten, and what the guide had heard; sound stays in its place."""
    monkeypatch.setattr(blocks, "LEVEL_MOMENTS", 50)
    stream = enhancer.stream(scheme=QUICK)
    sound = noisy[:8000] - noisy[:8000].mean()
    heard = pushed(stream, np.concatenate([sound, np.zeros(48000), sound]), 1600)
    assert np.abs(heard[:8000]).max() > 1e-3
    assert np.abs(heard[12000:54000]).max() < 1e-3
    assert np.abs(heard[56000:]).max() > 1e-3


def test_the_recordings_level_does_not_matter(enhancer: Enhancer, noisy: np.ndarray) -> None:
    """40 dB quieter in, 40 dB quieter out: W, H and the gain are carried on in the unit of the level."""
    loud, quiet = (
        pushed(enhancer.stream(scheme=QUICK), scale * noisy, 800) for scale in (1.0, 0.01)
    )
    assert np.abs(loud - 100 * quiet).max() < 0.02 * np.abs(loud).max()


def test_a_state_in_another_unit(enhancer: Enhancer, noisy: np.ndarray) -> None:
    stream = enhancer.stream(scheme=QUICK)
    stream.push(noisy)
    state = stream.state
    assert state is not None
    twice = rescaled(state, 4.0)
    assert torch.equal(twice.activations, 4 * state.activations)
    assert torch.equal(twice.gain, 4 * state.gain)
    assert torch.equal(twice.dictionary, state.dictionary)


def test_what_a_stream_refuses(
    enhancer: Enhancer, noisy: np.ndarray, tiny_prior: Callable[..., Any]
) -> None:
    stream = enhancer.stream(scheme=QUICK)
    for block, said in (
        (np.zeros(0), "an empty block"),
        (np.zeros((2, 8)), "one channel"),
        (np.zeros(8, np.int16), "floating-point"),
        (np.array([0.0, np.nan]), "NaN"),
    ):
        with pytest.raises(InputError, match=said):
            stream.push(block)
    with pytest.raises(InputError, match="44100 Hz in a stream of 16000 Hz"):
        stream.push(noisy, 44100)
    stream.push(noisy, 16000)
    stream.flush()
    for late in (stream.flush, lambda: stream.push(noisy)):
        with pytest.raises(InputError, match="begin another one"):
            late()
    ahead = NoisyGuide(enhancer.prior, hidden=6, layers=1)
    with pytest.raises(InputError, match="sees the past alone"):
        enhancer.stream(guide=ahead)
    with pytest.raises(InputError, match="take ldem or mcem"):
        enhancer.stream(scheme=SCHEMES["vem"]())
    with pytest.raises(InputError, match="8000 or more"):
        enhancer.stream(100)
    blind = Enhancer(tiny_prior("v_vae"), QUICK, guide=None, device="cpu")
    with pytest.raises(InputError, match="take a_vae"):
        blind.stream()


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, enhancer: Enhancer) -> list[str]:
    """A model and its causal guide in files, as options."""
    save_prior(tmp_path / "prior.safetensors", enhancer.prior, STFT())
    guide: Any = enhancer.guide
    save_guide(tmp_path / "live.safetensors", guide, STFT())
    return ["--model", str(tmp_path / "prior.safetensors")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "live_scheme", lambda: QUICK)
    monkeypatch.setattr(ports, "live_scheme", lambda: QUICK)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pyro-avse", "live", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_a_file_comes_out_as_long_as_it_was(
    tmp_path: Path, model: list[str], noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delay is taken out: a stereo file at 44.1 kHz, its first channel; and the same as by hand."""
    source = tmp_path / "in.wav"
    stereo = np.stack([noisy, 0 * noisy], 1).astype(np.float32)
    soundfile.write(source, stereo, 44100, subtype="FLOAT")
    out = tmp_path / "out.wav"
    assert run(monkeypatch, str(source), "-o", str(out), *model) == 0
    found, rate = soundfile.read(out, dtype="float32")
    assert rate == 44100
    assert len(found) == len(noisy)
    by_hand = ports.load_stream(model[1], sample_rate=44100)
    assert np.array_equal(found, pushed(by_hand, stereo[:, 0], 999))


def test_a_pipe_in_and_a_pipe_out(
    tmp_path: Path, model: list[str], noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16-bit samples; an odd byte at the end is no sample."""
    samples = (np.clip(noisy, -1, 1) * 32767).astype("<i2")
    piped = tmp_path / "in.raw"
    piped.write_bytes(samples.tobytes() + b"\0")

    class Out:
        buffer = io.BytesIO()

        def flush(self) -> None: ...

    with piped.open("rb") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", Out())
        assert run(monkeypatch, "-", "-o", "-", *model) == 0
    found = np.frombuffer(Out.buffer.getvalue(), "<i2")
    by_hand = ports.load_stream(model[1], sample_rate=16000)
    expected = pushed(by_hand, samples.astype(np.float32) / 32768, 800)
    assert len(found) == len(samples)
    assert np.abs(found / 32767 - np.clip(expected, -1, 1)).max() < 1e-4


def test_what_the_command_refuses(
    tmp_path: Path,
    model: list[str],
    noisy: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 2, and nothing is written."""
    source = tmp_path / "in.wav"
    soundfile.write(source, noisy, 16000)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(source.read_bytes()[:44])
    (tmp_path / "live.safetensors").rename(tmp_path / "away.safetensors")
    for arguments, said in (
        ((str(source), "-o", str(source), "--guide", str(tmp_path / "away.safetensors")), "itself"),
        ((str(tmp_path / "none.wav"), "-o", "x.wav"), "does not exist"),
        ((str(tmp_path / "text.wav"), "-o", "x.wav"), "cannot be read"),
        ((str(source), "-o", "x.wav"), "no causal guide"),
        ((str(source), "-o", str(tmp_path / "out.xyz")), ""),
    ):
        assert run(monkeypatch, *arguments, *model) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert said in line
    assert not Path("x.wav").exists()
