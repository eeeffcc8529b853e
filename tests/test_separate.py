"""Voices taken apart by lips: recordings and files, in Python and on the command line."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from pyro_avse import InputError, Separated, separate
from pyro_avse.cli import main
from pyro_avse.data.media.audio import audio_from_array
from pyro_avse.data.media.blocks import cut_blocks
from pyro_avse.enhancement.separate import Separator, separate_blocks
from pyro_avse.inference.speakers import SpeakersEM
from pyro_avse.stft import STFT
from pyro_avse.training.recipe import GuideRecipe, GuideTraining, load_recipe
from pyro_avse.training.stages import train
from pyro_avse.weights.checkpoint import load_prior, save_prior
from pyro_avse.weights.guides import load_guide, load_separating_guide, save_guide

QUICK = SpeakersEM(iterations=1, first_warmup=1, warmup=1, final_warmup=1, final_draws=1)


# --- files of guides, recipes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_prior: Callable[..., Any]
) -> Path:
    """A folder with a prior and, beside it, a separating guide that `train` made in two steps."""
    tmp_path = tmp_path_factory.mktemp("taught")
    save_prior(tmp_path / "model.safetensors", tiny_prior("a_vae"), STFT())
    training = GuideTraining(rounds=1, steps=2, batch_size=4, frames=10)
    recipe = GuideRecipe(
        str(tmp_path / "model.safetensors"),
        separates=True,
        options={"hidden": 6},
        training=training,
    )
    weights = train(recipe, tiny_corpus, tmp_path / "run", device="cpu")
    weights.rename(tmp_path / "separate.safetensors")
    return tmp_path


def test_a_trained_guide_comes_back(taught: Path, tmp_path: Path) -> None:
    prior, stft = load_prior(taught / "model.safetensors", guide=None)
    guide = load_separating_guide(taught / "model.safetensors", "own", prior, stft)
    assert guide is not None
    assert guide.options == {"hidden": 6}
    assert not guide.training
    with pytest.raises(InputError, match=r"separate.safetensors: this guide separates speakers"):
        load_guide(taught / "separate.safetensors", prior, stft)
    with pytest.raises(InputError, match="came without a guide that separates speakers"):
        load_separating_guide("v_vae", "own", prior, stft)
    assert load_separating_guide("v_vae", None, prior, stft) is None
    again = tmp_path / "again.safetensors"
    save_guide(again, guide, stft)
    other = load_separating_guide("v_vae", again, prior, stft)
    assert other is not None
    torch.testing.assert_close(other.state_dict(), guide.state_dict())


def test_the_bundled_recipe_names_a_separating_guide() -> None:
    recipe = load_recipe("default/separate_a_vae")
    assert isinstance(recipe, GuideRecipe)
    assert recipe.separates


# --- recordings -----------------------------------------------------------------------------------------------------


def two_faces(seconds: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (round(25 * seconds), 67, 67), dtype=np.uint8) for _ in (0, 1)]


def two_voices(rate: int = 16000, seconds: float = 1.0) -> np.ndarray:
    t = np.arange(round(rate * seconds)) / rate
    voices = [sum(np.sin(2 * np.pi * k * f * t) / k for k in range(1, 9)) for f in (110, 190)]
    return 0.1 * np.sum(voices, 0) * (1.2 + np.sin(2 * np.pi * 3 * t))


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_parts_have_the_mixtures_length_and_sum_to_it(rate: int, taught: Path) -> None:
    mixture = two_voices(rate)
    found = separate(
        mixture, two_faces(), 25, sample_rate=rate, model=taught / "model.safetensors", scheme=QUICK
    )
    assert isinstance(found, Separated)
    assert found.speech.shape == (2, len(mixture))
    assert found.speech.dtype == np.float32
    np.testing.assert_allclose(found.speech.sum(0) + found.noise, mixture, atol=1e-6)
    assert len(repr(found).splitlines()) == 4


def test_voices_come_in_the_order_of_the_lips(taught: Path) -> None:
    """By the guide's filter alone, in which nothing is drawn: exchanged lips exchange the voices."""
    lips, model = two_faces(), taught / "model.safetensors"
    scheme = replace(QUICK, filter_share=1.0)
    one, other = (
        separate(two_voices(), each, 25, model=model, scheme=scheme) for each in (lips, lips[::-1])
    )
    np.testing.assert_allclose(other.speech[::-1], one.speech, atol=1e-6)
    assert np.abs(one.speech[0] - one.speech[1]).max() > 1e-5


def test_a_speaker_may_be_out_of_sight(taught: Path) -> None:
    lips, model = two_faces(), taught / "model.safetensors"
    found = separate(two_voices(), [lips[0], None], 25, model=model, scheme=QUICK)
    assert found.speech.shape == (2, 16000)
    nobody = separate(
        two_voices(), [None, None], model=model, scheme=replace(QUICK, filter_share=1.0)
    )
    np.testing.assert_allclose(nobody.speech[0], nobody.speech[1], atol=1e-6)


def test_blocks_join(taught: Path) -> None:
    """Of a long recording the parts sum to it, whatever the blocks; silence is silent."""
    mixture = np.concatenate([two_voices(seconds=5.0), np.zeros(32000)])
    prior, stft = load_prior(taught / "model.safetensors", guide=None)
    guide = load_separating_guide(taught / "model.safetensors", "own", prior, stft)
    separator = Separator(prior, QUICK, stft=stft, guide=guide, device="cpu")
    audio = audio_from_array(mixture, 16000)
    pieces = list(
        separate_blocks(separator, cut_blocks(audio, seconds=3, overlap=1.0), [None, None])
    )
    assert len(pieces) > 1
    speech = np.concatenate([piece[0] for piece in pieces], 1)
    assert speech.shape == (2, len(mixture))
    np.testing.assert_allclose(np.concatenate([piece[1] for piece in pieces]), mixture, atol=1e-6)
    assert np.abs(speech[:, -8000:]).max() < 1e-3


def test_lips_are_checked(taught: Path) -> None:
    lips, model = two_faces(), taught / "model.safetensors"
    with pytest.raises(InputError, match="lips of speaker 1 and lips of speaker 2 show the same"):
        separate(two_voices(), [lips[0], lips[0]], 25, model=model)
    with pytest.raises(InputError, match="1 speaker to separate: give two or more, or enhance"):
        separate(two_voices(), lips[:1], 25, model=model)
    with pytest.raises(InputError, match="without their frame rate: give fps"):
        separate(two_voices(), lips, model=model)
    prior, stft = load_prior(model, guide=None)
    with pytest.raises(InputError, match="lips of 1 speaker for 2: give one pair of lips for each"):
        Separator(prior, stft=stft, device="cpu")(two_voices(), lips[:1], 25)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """run("mix.wav", ...) in a folder with mix.wav, a.npz, b.npz, short.npz: exit code, stderr."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("mix.wav", two_voices(), 16000, subtype="FLOAT")
    for name, lips in zip(("a", "b"), two_faces(), strict=True):
        np.savez(f"{name}.npz", lips=lips, fps=25.0)
    np.savez("again.npz", lips=two_faces()[0], fps=25.0)
    np.savez("short.npz", lips=two_faces()[0][:10], fps=25.0)

    def call(line: str) -> tuple[int, str]:
        model = ["--model", str(taught / "model.safetensors")]
        monkeypatch.setattr(sys, "argv", ["pyro-avse", "separate", *line.split(), *model])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return end.value.code, capsys.readouterr().err

    return call


def test_a_folder_of_voices(run: Any) -> None:
    code, said = run("mix.wav --lips a.npz --lips b.npz -o out")
    assert code == 0, said
    parts = [soundfile.read(f"out/{n}.wav")[0] for n in ("speaker_1", "speaker_2", "noise")]
    np.testing.assert_allclose(sum(parts), two_voices(), atol=1e-6)
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "noise.wav",
        "speaker_1.wav",
        "speaker_2.wav",
    ]


REFUSED = {
    "mix.wav --lips a.npz -o out": "one pair of lips, a.npz: give --lips once for every speaker",
    "mix.wav -o out": "mix.wav is no video: give --lips once for every speaker",
    "mix.wav --lips a.npz --lips short.npz -o out": "short.npz: lips has 10 frames at 25 fps",
    "mix.wav --lips a.npz --lips ./a.npz -o out": "is given twice: give each speaker his own lips",
    "mix.wav --lips a.npz --lips again.npz -o out": "a.npz and again.npz show the same face",
    "mix.wav --lips a.npz --lips no.npz -o out": "no.npz is no file",
    "mix.wav --lips a.npz --lips b.npz -o mix.wav": "mix.wav",
    "no.wav --lips a.npz --lips b.npz -o out": "no.wav does not exist",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_separated_is_refused_in_a_line(run: Any, line: str) -> None:
    code, said = run(line)
    assert code == 2
    assert REFUSED[line] in said
    assert len(said.strip().splitlines()) == 1
    assert not Path("out").exists()
