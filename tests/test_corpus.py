"""Utterances are found by their names alone, sorted and split; what is ambiguous is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyro_avse.data.corpora.corpus import Utterance, find_corpus, find_utterances
from pyro_avse.data.corpora.utterance import spread
from pyro_avse.typing import InputError


def touch(root: Path, *names: str) -> None:
    """Empty files: whatever decoded them would fail."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_speakers_and_lips_are_found_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "train/s2/b.flac", "train/s2/a.flac", "train/s2/a.npz", "train/s1/c.WAV")
    touch(tmp_path, "train/s1/._c.flac", "train/s1/notes.txt", "train/s1/d.npz", "test/s1/x.flac")
    train = tmp_path / "train"
    assert find_utterances(tmp_path, "train") == [
        Utterance("c", "s1", "train", train / "s1/c.WAV", None),
        Utterance("a", "s2", "train", train / "s2/a.flac", train / "s2/a.npz"),
        Utterance("b", "s2", "train", train / "s2/b.flac", None),
    ]
    assert [u.name for u in find_utterances(str(tmp_path), "test")] == ["x"]


def test_audio_without_speakers(tmp_path: Path) -> None:
    touch(tmp_path, "valid/b.flac", "valid/a.wav")
    found = find_utterances(tmp_path, "valid")
    assert [(u.name, u.speaker, u.lips) for u in found] == [("a", None, None), ("b", None, None)]


def test_names_may_hold_dots(tmp_path: Path) -> None:
    touch(tmp_path, "train/s1/take.1.flac", "train/s1/take.1.npz", "train/s1/take.2.flac")
    found = find_utterances(tmp_path, "train")
    assert [u.name for u in found] == ["take.1", "take.2"]
    assert found[0].lips == tmp_path / "train/s1/take.1.npz"
    assert found[1].lips is None


def test_folders_that_are_no_corpus_are_refused(tmp_path: Path) -> None:
    """No folder, nothing in it, a split that is not there: one line that says what a corpus is, or how to look."""
    touch(tmp_path, "one/train/s1/x.flac", "two/notes.txt", "two/lips.npz", "three/train/notes.txt")
    for root, split, message in [
        ("absent", "train", r"absent is no folder.*\{train,valid,test\}"),
        (
            "one",
            "test",
            r"one \(a folder of clips\) holds no test utterances: it has train \(1\); name such a split, or see",
        ),
        ("two", "train", "two holds no utterances"),
        ("three", "train", "three holds no utterances"),
    ]:
        with pytest.raises(InputError, match=message) as refusal:
            find_utterances(tmp_path / root, split)  # type: ignore[arg-type]
        assert "\n" not in str(refusal.value)


def test_doubled_utterances_are_refused(tmp_path: Path) -> None:
    """Two sounds, two lips or two videos of one name, in the split that is asked for."""
    touch(tmp_path, "train/s1/x.flac", "valid/s1/x.flac", "valid/s1/x.wav")
    assert len(find_utterances(tmp_path, "train")) == 1
    with pytest.raises(InputError, match=r"s1/x.wav is the same utterance as x.flac: keep one"):
        find_utterances(tmp_path, "valid")
    touch(tmp_path, "train/s1/x.npz", "train/s1/x.npy")
    with pytest.raises(InputError, match=r"s1/x.npz is the same utterance as x.npy: keep one"):
        find_utterances(tmp_path, "train")
    touch(tmp_path / "plain", "s1/y.mp4", "s1/y.mkv")
    with pytest.raises(InputError, match=r"s1/y.mp4 is the same utterance as y.mkv: keep one"):
        find_utterances(tmp_path / "plain", "train")


def test_videos_are_sound_and_lips(tmp_path: Path) -> None:
    """A sound file comes before the video's sound, lip frames before the video."""
    touch(
        tmp_path,
        "train/s1/a.mp4",
        "train/s1/b.MOV",
        "train/s1/b.wav",
        "train/s1/c.mkv",
        "train/s1/c.npz",
    )
    touch(tmp_path, "dev/s2/deep/d.mp4")
    folder = tmp_path / "train/s1"
    found = {u.name: (u.audio, u.lips) for u in find_utterances(tmp_path, "train")}
    assert found == {
        "a": (folder / "a.mp4", folder / "a.mp4"),
        "b": (folder / "b.wav", folder / "b.MOV"),
        "c": (folder / "c.mkv", folder / "c.npz"),
    }
    assert [(u.name, u.speaker) for u in find_utterances(tmp_path, "valid")] == [("deep/d", "s2")]


def test_folders_without_splits_are_divided(tmp_path: Path) -> None:
    """Three speakers or more: whole speakers; fewer: clips. Nothing is lost or in two splits, whatever the order."""
    touch(tmp_path, *(f"s{k}/{name}.wav" for k in range(1, 21) for name in "ab"), ".hidden/x.wav")
    speakers = {}
    for split in ("train", "valid", "test"):
        found = find_utterances(tmp_path, split)  # type: ignore[arg-type]
        assert all(u.split == split for u in found)
        speakers[split] = {u.speaker for u in found}
    assert (speakers["valid"], speakers["test"]) == ({"s17", "s18"}, {"s19", "s20"})
    assert len(speakers["train"]) == 16
    touch(tmp_path / "one", *(f"{k}.wav" for k in range(20)))
    utterances = find_corpus(tmp_path / "one").utterances
    assert [sum(u.split == split for u in utterances) for split in ("train", "valid", "test")] == [
        16,
        2,
        2,
    ]
    again = {u.name: u.split for u in spread(utterances[::-1])}
    assert again == {u.name: u.split for u in utterances}
    assert all(u.split == "train" for u in spread(utterances[:2]))


def test_transcripts_are_read_when_asked(tmp_path: Path) -> None:
    """From .txt or .align beside, a GRID name, or the lips' .npz."""
    touch(tmp_path, *(f"train/s1/{name}.wav" for name in ("a", "b", "bbaf2n", "c", "d", "e")))
    folder = tmp_path / "train/s1"
    (folder / "a.txt").write_text("good morning\n")
    (folder / "b.align").write_text(
        "0 9000 sil\n9000 15000 bin\n15000 20000 sp\n20000 30000 blue\n"
    )
    lips = np.zeros((3, 67, 67), np.uint8)
    np.savez(folder / "c.npz", lips=lips, fps=25.0, transcript=np.array("said here"))
    np.savez(folder / "d.npz", lips=lips, fps=25.0)
    (folder / "e.npz").write_text("damaged")
    said = {u.name: u.transcript for u in find_utterances(tmp_path, "train")}
    assert said == {
        "a": "good morning",
        "b": "bin blue",
        "bbaf2n": "bin blue at f two now",
        "c": "said here",
        "d": None,
        "e": None,
    }


def test_a_listing_says_what_is_what(tmp_path: Path) -> None:
    """A CSV with a column `file`: paths from its folder, splits given or divided, lips given or beside."""
    touch(
        tmp_path,
        "clips/a1.mp4",
        "clips/b1.wav",
        "clips/b1.npz",
        "clips/c1.flac",
        "lips/c.npy",
        "unlisted.wav",
    )
    (tmp_path / "other.csv").write_text("name,score\nx,1\n")
    (tmp_path / "list.csv").write_text(
        "file,speaker,split,lips,fps,transcript,mood\n"
        "clips/c1.flac, cleo, dev, lips/c.npy, 25,,glad\n"
        'clips/a1.mp4,anna,train,,,"well, yes",\n'
        "clips/b1.wav,ben,test\n"
    )
    corpus = find_corpus(tmp_path)
    clips = tmp_path / "clips"
    assert corpus.kind == "a listed folder"
    assert corpus.utterances == [
        Utterance(
            "clips/a1", "anna", "train", clips / "a1.mp4", clips / "a1.mp4", words="well, yes"
        ),
        Utterance("clips/b1", "ben", "test", clips / "b1.wav", clips / "b1.npz"),
        Utterance(
            "clips/c1", "cleo", "valid", clips / "c1.flac", tmp_path / "lips/c.npy", fps=25.0
        ),
    ]
    assert corpus.utterances[0].transcript == "well, yes"
    (tmp_path / "list.csv").write_text("file\nclips/a1.mp4\nclips/b1.wav\nclips/c1.flac\n")
    utterances = find_corpus(tmp_path).utterances
    assert sorted(str(u.split) for u in utterances) == ["test", "train", "valid"]


def test_a_wrong_listing_is_refused_with_its_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b.wav")
    for line, message in [
        ("c.wav,,,,", r"list.csv line 3: c.wav is not there: mend the listing"),
        ("a.wav,,,,", r"list.csv line 3: a.wav is listed twice: keep one"),
        ("b.wav,,exam,,", r"line 3: split is 'exam': give train, valid or test"),
        ("b.wav,,,b.npz,", r"line 3: b.npz is not there"),
        ("b.wav,,,,fast", r"line 3: fps is 'fast'"),
        ("notes.doc,,,,", r"line 3: file is 'notes.doc': name a sound or video file"),
    ]:
        (tmp_path / "list.csv").write_text(f"file,speaker,split,lips,fps\na.wav,,train,,\n{line}\n")
        with pytest.raises(InputError, match=message):
            find_utterances(tmp_path, "train")


def test_listings_that_cannot_be_read_or_name_clips_twice(tmp_path: Path) -> None:
    """A damaged CSV; a sound and a video of one name: one line."""
    touch(tmp_path, "a.wav", "a.mp4")
    (tmp_path / "list.csv").write_text("file\n" + 'a.wav,"' + 140000 * "x")
    with pytest.raises(InputError, match=r"list.csv cannot be read as a listing \(field larger"):
        find_corpus(tmp_path)
    (tmp_path / "list.csv").write_text("file,speaker,split\na.wav,s1,train\na.mp4,s1,train\n")
    with pytest.raises(InputError, match=r"list.csv two clips are called s1/a: rename one"):
        find_utterances(tmp_path, "train")
    (tmp_path / "list.csv").write_text("file,speaker,split\na.wav,s1,train\na.mp4,s1,test\n")
    assert len(find_utterances(tmp_path, "train")) == 1


def test_clips_beside_the_splits_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/s1/a.wav", "s2/b.wav", "c.mp4", "notes.txt")
    assert find_corpus(tmp_path).missing == [
        f"{tmp_path / name} is in none of the folders of splits, and is left out"
        for name in ("c.mp4", "s2/b.wav")
    ]


def test_real_corpora(shared_data: Callable[[str], Path]) -> None:
    grid = find_utterances(shared_data("grid"), "valid")
    assert {u.speaker for u in grid} == {"s1", "s4", "s26"}
    assert len(grid) == 16 + 5 + 2
    assert all(u.lips for u in grid)
    assert all(len(str(u.transcript).split()) == 6 for u in grid)
    assert len(find_utterances(shared_data("commands"), "valid")) == 30
