"""GRID as its authors distribute it: clips in folders of speakers, names that are sentences, word times."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_avse.data.corpora.corpus import find_corpus, find_utterances
from pyro_avse.data.corpora.grid import sentence
from pyro_avse.data.media.audio import load_audio
from pyro_avse.typing import InputError

NAMES = ("bbaf2n", "lwar7s", "pgizzp", "sriz9a")


def grid_tree(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for name in NAMES:
            (root / folder / f"{name}.mpg").touch()
    return root


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bbaf2n", "bin blue at f two now"),
        ("lwbzzs", "lay white by z zero soon"),
        ("pgiq1a", "place green in q one again"),
        ("srwh9p", "set red with h nine please"),
        ("srww9p", None),  # no letter w in GRID
        ("srwh0p", None),
        ("bbaf2", None),
        ("bbaf2nn", None),
        ("", None),
    ],
)
def test_names_are_sentences(name: str, words: str | None) -> None:
    """[Cooke et al. 2006], table 1."""
    assert sentence(name) == words


@pytest.mark.parametrize("form", ["s{}", "s{}/video/mpg_6000", "video/mpg_6000/s{}"])
def test_speakers_are_found_in_every_form(tmp_path: Path, form: str) -> None:
    """34 speakers, three for valid and three for test, in natural order."""
    grid_tree(tmp_path, *(form.format(k) for k in range(1, 35)))
    (tmp_path / "readme.avi").touch()
    corpus = find_corpus(tmp_path)
    assert corpus.kind == "GRID"
    assert len(corpus.utterances) == 34 * len(NAMES)
    assert {u.speaker for u in find_utterances(tmp_path, "valid")} == {"s29", "s30", "s31"}
    assert {u.speaker for u in find_utterances(tmp_path, "test")} == {"s32", "s33", "s34"}
    first = corpus.utterances[0]
    assert (first.name, first.speaker, first.transcript) == (
        "bbaf2n",
        "s1",
        "bin blue at f two now",
    )
    assert first.audio == first.lips
    assert corpus.missing == [
        f"{tmp_path / 'readme.avi'} has no GRID name and speaker, and is left out"
    ]


def test_sound_and_word_times_may_stand_elsewhere(tmp_path: Path) -> None:
    """Trees of audio and alignments beside the videos', and a clip whose video is missing."""
    grid_tree(tmp_path, "video/s1")
    for folder, name in (
        ("audio_25k/s1", "bbaf2n.wav"),
        ("align/s1", "bbaf2n.align"),
        ("audio_25k/s2", "lwar7s.wav"),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).touch()
    (tmp_path / "align/s1/bbaf2n.align").write_text(
        "0 23750 sil\n23750 29500 bin\n29500 34000 sil\n"
    )
    corpus = find_corpus(tmp_path)
    first = corpus.utterances[0]
    assert first.audio == tmp_path / "audio_25k/s1/bbaf2n.wav"
    assert first.lips == tmp_path / "video/s1/bbaf2n.mpg"
    assert first.transcript == "bin"
    assert corpus.missing == [f"{tmp_path / 'audio_25k/s2/lwar7s.wav'} has no video"]


def test_a_clip_in_two_qualities_is_refused(tmp_path: Path) -> None:
    grid_tree(tmp_path, "s1/mpg_6000", "s1/mpg_vcd")
    with pytest.raises(
        InputError, match=r"mpg_vcd/bbaf2n.mpg is the same utterance as .*mpg_6000.*: keep one"
    ):
        find_utterances(tmp_path, "train")


def test_real_clips(shared_data: Callable[[str], Path]) -> None:
    """Five clips whose names begin with the speaker."""
    corpus = find_corpus(shared_data("grid/video"))
    assert corpus.kind == "GRID"
    assert [(u.speaker, u.name) for u in corpus.utterances] == [
        ("s1", "bgaa7s"),
        ("s1", "bgia3s"),
        ("s1", "bginzn"),
        ("s26", "pbbg5p"),
        ("s26", "swbm3n"),
    ]
    assert corpus.utterances[3].transcript == "place blue by g five please"
    assert len(load_audio(corpus.utterances[3].audio).waveform) == pytest.approx(
        2.978 * 16000, abs=20
    )
