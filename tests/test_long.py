"""Long recordings in blocks: joins that nobody hears, a noise dictionary that runs on, memory that does not grow."""

import json
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from pyro_avse.cli import main
from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.media.audio import Audio, audio_from_array, load_audio
from pyro_avse.data.media.blocks import Blocks, _spans, cut_blocks, open_blocks
from pyro_avse.data.media.saving import save_audio, save_pieces
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.long import OVERLAP, enhance_blocks, fade_in, open_sound
from pyro_avse.inference import LDEM, MCEM, VEM
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError, Separation
from pyro_avse.weights.checkpoint import save_prior

QUICK = VEM(iterations=3, warmup=2, draws=2, noise=NoiseModel(3))
BLOCK = 3.0
"""Seconds: the shortest that are taken."""


@dataclass
class Scaled:
    """A scheme whose speech is the mixture times a factor, the next one for every call; what it saw is kept."""

    factors: list[float]

    def __post_init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor | None, int]] = []

    def __call__(
        self, prior: Any, mixture: Tensor, lips: Any = None, *, mask: Any = None, seed: int = 0
    ) -> Separation:
        factor = self.factors[len(self.seen) % len(self.factors)]
        self.seen.append((mixture, lips, seed))
        return nothing_but(factor * mixture)


def nothing_but(speech: Tensor) -> Separation:
    """A separation of nothing but speech."""
    frames, none = len(speech), torch.ones(1)
    named = {"mixing_weight": none, "dictionary": none, "activations": none, "z": none}
    return Separation(
        speech=speech,
        responsibilities=torch.ones(1, frames),
        objective=torch.zeros(1),
        target=None,  # type: ignore[arg-type]
        **named,
    )


def sound(seconds: float, sample_rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Noise under 4 kHz at a level of its own, not 1."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal(round(8000 * seconds) + 1)
    at = np.arange(round(seconds * sample_rate)) * 8000 / sample_rate
    return 0.03 * np.interp(at, np.arange(len(coarse)), coarse)


def written(path: Path, samples: np.ndarray, sample_rate: int = 16000) -> Path:
    soundfile.write(path, samples, sample_rate, subtype="FLOAT")
    return path


def speech_of(enhancer: Enhancer, blocks: Blocks, **options: Any) -> np.ndarray:
    return np.concatenate([piece.speech for piece in enhance_blocks(enhancer, blocks, **options)])


@pytest.fixture
def deaf(tiny_prior: Any) -> Callable[..., Enhancer]:
    """deaf(1.0): an enhancer that returns the mixture times the factors."""
    return lambda *factors: Enhancer(tiny_prior("a_vae"), Scaled(list(factors)), device="cpu")


@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.5, 2.99, 3.0, 3.01, 5.0, 11.3, 64.27])
def test_blocks_cover_the_recording(seconds: float, sample_rate: int) -> None:
    """Each begins where the one before has a second to go, none is too long or much shorter than the others, and
    borders are whole samples at both rates."""
    num_samples = round(seconds * sample_rate)
    spans = _spans(num_samples, sample_rate, BLOCK, OVERLAP)
    assert spans[0][0] == 0
    assert spans[-1][1] == num_samples
    lengths = [stop - start for start, stop in spans]
    assert max(lengths) <= BLOCK * sample_rate
    assert max(lengths) - min(lengths) <= 2 * sample_rate / np.gcd(sample_rate, 16000)
    for (_, stop), (start, _) in pairwise(spans):
        assert OVERLAP * sample_rate <= stop - start < 1.05 * sample_rate
        assert start * 16000 % sample_rate == stop * 16000 % sample_rate == 0
    assert all(spans[k + 2][0] >= spans[k][1] for k in range(len(spans) - 2))


@pytest.mark.parametrize("seconds", [2.0, 7.123])
def test_what_is_left_as_it_is_comes_out_as_it_was(
    seconds: float, deaf: Callable[..., Enhancer], tmp_path: Path
) -> None:
    """A mask of 1 gives the file back but for each block's mean, from a file as from memory, level and length kept."""
    mixture = sound(seconds)
    path = written(tmp_path / "a.wav", mixture)
    for blocks in (
        open_blocks(path, seconds=BLOCK, overlap=OVERLAP),
        cut_blocks(load_audio(path), seconds=BLOCK, overlap=OVERLAP),
    ):
        speech = speech_of(deaf(1.0), blocks)
        assert speech.dtype == np.float32
        assert speech.shape == mixture.shape
        assert np.abs(speech - mixture).max() < 4e-3 * np.abs(mixture).max()


@pytest.mark.parametrize("sample_rate", [8000, 44100])
def test_other_rates_lose_nothing_at_the_joins(
    sample_rate: int, deaf: Callable[..., Enhancer], tmp_path: Path
) -> None:
    """Blocks give what the whole does: resampling's edges are where no weight is."""
    mixture = sound(7.3, sample_rate)
    path = written(tmp_path / "a.wav", mixture, sample_rate)
    speech = speech_of(deaf(1.0), open_blocks(path, seconds=BLOCK, overlap=OVERLAP))
    whole = deaf(1.0)(load_audio(path)).speech
    assert speech.shape == mixture.shape
    assert np.abs(speech - whole).max() < 4e-3 * np.abs(mixture).max()


def test_joins_fade(deaf: Callable[..., Enhancer]) -> None:
    """Blocks of other loudness pass into each other without a step; without the fade there is one."""
    phase, factors = np.arange(16000 * 7) * 0.3, [0.2, 1.0, 0.5]
    parts = []
    for wave in (np.sin(phase), np.cos(phase)):
        blocks = cut_blocks(audio_from_array(wave, 16000), seconds=BLOCK, overlap=OVERLAP)
        parts.append(speech_of(deaf(*factors), blocks))
    gain = np.hypot(*parts)
    steepest = np.pi / 2 / (OVERLAP / 2 * 16000)  # of sin^2 over half of the shared second
    assert np.abs(np.diff(gain[4000:-4000])).max() < 1.2 * steepest * 0.8
    middles = [(start + stop) // 2 for start, stop in blocks.spans]
    assert gain[middles] == pytest.approx(factors, rel=1e-3)
    hard = np.concatenate(
        [
            np.full(stop - start, f)
            for f, (start, stop) in zip(factors, [(0, 40000), (40000, 112000)], strict=False)
        ]
    )
    assert np.abs(np.diff(hard)).max() > 100 * steepest


def test_the_fade_sums_to_one() -> None:
    """Also with nothing shared; it rises from 0 to 1, flat in the outer quarters."""
    assert fade_in(0).shape == (0,)
    weight = fade_in(16000)
    assert (np.diff(weight) >= 0).all()
    assert (weight[:4000] == 0).all()
    assert weight[12000:] == pytest.approx(1)
    assert weight + weight[::-1] == pytest.approx(1)


def test_one_block_is_a_single_run(tiny_prior: Any, tmp_path: Path) -> None:
    """What is not longer than a block comes out as `Enhancer` gives it, but for rounding."""
    path = written(tmp_path / "a.wav", sound(2.0))
    enhancer = Enhancer(tiny_prior("a_vae"), QUICK, device="cpu")
    (piece,) = enhance_blocks(enhancer, open_blocks(path, seconds=BLOCK, overlap=OVERLAP), seed=5)
    assert piece.block is not None
    np.testing.assert_allclose(piece.speech, enhancer(load_audio(path), seed=5).speech, atol=1e-5)
    assert np.array_equal(piece.block.speech, piece.speech)


def test_every_block_sees_its_own_lips_and_seed(tiny_prior: Any) -> None:
    """The pictures of the whole recording's grid, those of the block's seconds; too few are refused at once."""
    mouths = np.zeros((175, 67, 67), np.uint8)
    mouths[:] = np.arange(175, dtype=np.uint8)[:, None, None]  # 25 a second, each of its own grey
    scheme = Scaled([1.0])
    enhancer = Enhancer(tiny_prior("min_vae_v2"), scheme, device="cpu")
    blocks = cut_blocks(audio_from_array(sound(7.0), 16000), seconds=BLOCK, overlap=OVERLAP)
    speech_of(enhancer, blocks, lips=Lips(mouths, 25.0), seed=8)
    assert [seed for _, _, seed in scheme.seen] == [8, 9, 10]
    for (start, _), (mixture, lips, _) in zip(blocks.spans, scheme.seen, strict=True):
        assert lips is not None
        assert len(lips) == len(mixture)
        seconds = start / 16000 + np.arange(len(mixture)) * 533 / 16000
        shown = np.minimum(np.floor(seconds * 25 + 1e-6), 174)
        assert lips[:, 0, 0].tolist() == shown.tolist()
    with pytest.raises(
        InputError, match=r"lips has 50 frames at 25 fps \(2.00 s\), the sound lasts 7"
    ):
        speech_of(enhancer, blocks, lips=Lips(mouths[:50], 25.0))


def test_silence_is_no_work(deaf: Callable[..., Enhancer]) -> None:
    """A block of digital silence stays so, and the scheme is not asked."""
    mixture = sound(9.0)
    mixture[16000 * 2 : 16000 * 7] = 0
    enhancer = deaf(1.0)
    blocks = cut_blocks(audio_from_array(mixture, 16000), seconds=BLOCK, overlap=OVERLAP)
    speech = speech_of(enhancer, blocks)
    assert np.abs(speech - mixture).max() < 4e-3 * np.abs(mixture).max()
    assert (speech[16000 * 3 : 16000 * 6] == 0).all()
    assert (len(enhancer.inference.seen), len(blocks.spans)) == (2, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", [VEM, MCEM, partial(LDEM, exponent=0.5)])
def test_the_dictionary_runs_on(scheme: Any, tiny_prior: Any) -> None:
    """W starts near where the last block left it: after one iteration it explains the same noise better than by chance.

    The noise is two tones and little else, so that a random dictionary is far away.
    """
    mixture = np.sin(np.arange(16000 * 7) * 0.2) + np.sin(np.arange(16000 * 7) * 0.9)
    mixture += 0.05 * sound(7.0)
    blocks = cut_blocks(audio_from_array(mixture, 16000), seconds=BLOCK, overlap=OVERLAP)
    built = scheme(iterations=4, warmup=3, draws=3, noise=NoiseModel.paper(3))
    enhancer = Enhancer(tiny_prior("a_vae"), built, device="cpu")
    carried = [piece.block for piece in enhance_blocks(enhancer, blocks)]
    anew = [
        enhancer.separate(enhancer.place(audio, None, 0.0, 7.0), seed=k)
        for k, audio in enumerate(blocks.read())
    ]
    assert carried[0] is not None
    assert np.array_equal(carried[0].objective, anew[0].objective)
    for one, other in zip(carried[1:], anew[1:], strict=True):
        assert one is not None
        assert one.objective[0] > other.objective[0] + 1000


@pytest.mark.parametrize("name", ["rvae", "srnn"])
def test_priors_with_memory_begin_anew_in_every_block(name: str, tiny_prior: Any) -> None:
    """Each block is what it would be on its own with the noise of the last one, and nothing else is carried on."""
    built = LDEM(iterations=2, first_warmup=2, draws=1, final_draws=1, final_warmup=1, chains=1)
    enhancer = Enhancer(tiny_prior(name).eval(), built, device="cpu")
    blocks = cut_blocks(audio_from_array(sound(7.0), 16000), seconds=BLOCK, overlap=OVERLAP)
    pieces = list(enhance_blocks(enhancer, blocks, seed=5))
    dictionary = None
    for number, (audio, piece) in enumerate(zip(blocks.read(), pieces, strict=True)):
        place = enhancer.place(audio, None, blocks.spans[number][0] / 16000, 7.0)
        alone = enhancer.separate(place, seed=5 + number, dictionary=dictionary)
        assert piece.block is not None
        np.testing.assert_array_equal(piece.block.speech, alone.speech)
        dictionary = 0.9 * alone.separation.dictionary + 0.1 / 513


def test_a_start_is_taken_as_it_is(tiny_prior: Any) -> None:
    """A dictionary given to a scheme is its W_0: without updates' exponent nothing else could make it stay."""
    prior, x = tiny_prior("a_vae", num_freqs=7), torch.randn(6, 7, dtype=torch.complex64)
    W = torch.zeros(2, 7).index_put((torch.tensor([0, 1]), torch.tensor([1, 4])), torch.tensor(1.0))
    for scheme in (
        VEM(iterations=2, warmup=1, draws=1, noise=NoiseModel(2)),
        MCEM(iterations=2, noise=NoiseModel(2)),
        LDEM(iterations=2, noise=NoiseModel(2)),
    ):
        out = scheme(prior, x, dictionary=W)  # multiplied, zeros stay
        assert out.dictionary[0].argmax() == 1
        assert out.dictionary[1].argmax() == 4
        assert out.dictionary.sum() - out.dictionary[0, 1] - out.dictionary[1, 4] < 1e-4


def test_files_that_cannot_be_cut(tmp_path: Path) -> None:
    """What `load_audio` refuses is refused with the same words; too short blocks; a file that was cut short."""
    nan = sound(7.0)
    nan[16000 * 6] = np.nan
    stereo = np.stack([sound(7.0)] * 2, axis=1)
    bad = {"nan": nan, "zeros": np.zeros(16000 * 7), "empty": np.zeros(0), "brief": sound(0.05)}
    refused = [(written(tmp_path / f"{name}.wav", bad[name]), "first") for name in bad]
    refused += [(tmp_path / "missing.wav", "first")]
    refused += [(written(tmp_path / "stereo.wav", stereo), "2")]
    for path, channel in refused[:4] + refused[5:]:
        with pytest.raises(InputError) as whole:
            load_audio(path, channel=channel)
        with pytest.raises(InputError) as cut:
            open_blocks(path, seconds=BLOCK, overlap=OVERLAP, channel=channel)
        assert str(cut.value) == str(whole.value)
    with pytest.raises(InputError, match=r"missing\.wav does not exist"):
        open_sound(tmp_path / "missing.wav", block=60)
    good = written(tmp_path / "good.wav", sound(7.0))
    with pytest.raises(InputError, match="blocks of 2 s that share 1 s: give 3 s or more"):
        open_blocks(good, seconds=2, overlap=1)
    for block in (2, -1, float("nan")):
        with pytest.raises(InputError, match=f"blocks of {block:g} s: give 3 or more, or 0"):
            open_sound(good, block=block)
    blocks = open_blocks(good, seconds=BLOCK, overlap=OVERLAP)
    written(good, sound(4.0))
    with pytest.raises(InputError, match=r"good\.wav ends early, at 4\.00 s: copy it again"):
        list(blocks.read())


def test_short_sound_is_whole_and_long_sound_blocks(tmp_path: Path) -> None:
    """By its length, whatever the channel; 0 is no limit."""
    path = written(tmp_path / "a.wav", np.stack([sound(7.0), sound(7.0, seed=1)], axis=1))
    for block in (0, 7, 60):
        whole = open_sound(path, channel="mean", block=block)
        assert not isinstance(whole, Blocks)
    cut = open_sound(path, channel="1", block=3)
    assert isinstance(cut, Blocks)
    first = next(cut.read())
    heard = load_audio(path, channel="1")
    assert np.array_equal(first.waveform, heard.waveform[: len(first.waveform)])
    assert (first.peak, cut.num_samples) == (heard.peak, 16000 * 7)


def test_pieces_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """As `save_audio` writes; NaN, a full disk or a failure in between leave the old file and nothing beside it."""
    path, wave = tmp_path / "a.wav", sound(3.0).astype(np.float32)
    save_pieces(path, iter(np.split(wave, 3)), 16000)
    assert np.array_equal(soundfile.read(path, dtype="float32")[0], wave)
    assert soundfile.info(path).subtype == "FLOAT"

    def breaks() -> Any:
        yield wave
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        save_pieces(path, breaks(), 16000)
    with pytest.raises(InputError, match=r"a\.wav not written: the waveform holds NaN"):
        save_pieces(path, [wave, wave * np.nan], 16000)
    with pytest.raises(InputError, match=r"cannot hold 96000 Hz in 1 channel"):
        save_pieces(tmp_path / "a.mp3", [wave], 96000)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
    assert np.array_equal(soundfile.read(path, dtype="float32")[0], wave)


def test_the_same_speech_is_the_same_bytes(tmp_path: Path) -> None:
    """Whenever it is written, in pieces or as a whole."""
    wave = sound(1.0).astype(np.float32)
    save_pieces(tmp_path / "a.wav", np.split(wave, 2), 16000)
    save_audio(tmp_path / "b.wav", wave, 16000)
    time.sleep(1.1)  # libsndfile's clock counts seconds
    save_pieces(tmp_path / "c.wav", np.split(wave, 2), 16000)
    save_audio(tmp_path / "d.wav", wave, 16000)
    a, b, c, d = ((tmp_path / f"{name}.wav").read_bytes() for name in "abcd")
    assert a == b == c == d
    assert np.array_equal(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], wave)


def test_blocks_are_read_as_they_are_needed(deaf: Callable[..., Enhancer]) -> None:
    """A piece comes before the next block is read, and of those before no more than the last is kept."""
    blocks = cut_blocks(audio_from_array(sound(20.0), 16000), seconds=BLOCK, overlap=OVERLAP)
    made: list[weakref.ref[Audio]] = []

    def read() -> Iterator[Audio]:
        for audio in blocks.read():
            made.append(weakref.ref(audio))
            yield audio

    pieces = enhance_blocks(deaf(1.0), replace(blocks, read=read))
    for count, _ in enumerate(pieces, 1):
        assert len(made) == count
        assert sum(one() is not None for one in made) <= 2
    assert len(made) == len(blocks.spans) == 10


@pytest.mark.parametrize(("model", "scheme"), [("a_vae", "vem"), ("rvae", "ldem")])
def test_the_command_line_cuts_what_is_long(
    model: str,
    scheme: str,
    tiny_prior: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`enhance --block 3` of 7 s: three blocks, the recording's length; with --reference it is refused."""
    monkeypatch.chdir(tmp_path)
    save_prior(Path("w.safetensors"), tiny_prior(model), STFT())
    written(Path("noisy.wav"), sound(7.0))

    def run(*options: str) -> tuple[object, str, str]:
        command = "pyro-avse enhance noisy.wav --model w.safetensors --iterations 2 --inference"
        monkeypatch.setattr(sys, "argv", [*command.split(), scheme, *options])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    code, out, err = run("--block", "3", "--json", "-o", "out.flac")
    row = json.loads(out)
    assert code == 0, err
    assert (row["blocks"], row["iterations"], row["inference"]) == (3, 2, scheme)
    assert row["real_time_factor"] == pytest.approx(row["seconds"] / 7)
    assert row["files"] == {"speech": "out.flac"}
    assert soundfile.info("out.flac").frames == 7 * 16000
    code, out, err = run("--block", "3", "--reference", "noisy.wav")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--reference with blocks, into which more than 3 s of sound is cut: add --block 0" in err
    code, out, _ = run("--reference", "noisy.wav", "--json")
    assert "blocks" not in json.loads(out)
