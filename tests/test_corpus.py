"""Utterances are found by layout alone, sorted; another layout is refused."""

from pathlib import Path

import pytest

from pyro_avse.data.corpus import Utterance, find_utterances
from pyro_avse.typing import InputError

DATA = Path(__file__).parents[2] / "shared" / "data"


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


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/s1/deep/x.flac", "valid/s1/x.flac", "valid/s1/x.wav")
    for root, split, message in [
        (tmp_path / "absent", "train", r"absent/train is no folder.*\{train,valid,test\}"),
        (tmp_path, "test", r"test is no folder.*UTTERANCE.flac"),
        (tmp_path, "train", "holds no utterances"),
        (tmp_path, "valid", "x.wav are one utterance|x.flac are one utterance"),
    ]:
        with pytest.raises(InputError, match=message):
            find_utterances(root, split)  # type: ignore[arg-type]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_real_corpora() -> None:
    grid = find_utterances(DATA / "grid", "valid")
    assert {u.speaker for u in grid} == {"s1", "s4", "s26"}
    assert len(grid) == 16 + 5 + 2
    assert all(u.lips for u in grid)
    assert len(find_utterances(DATA / "commands", "valid")) == 30
