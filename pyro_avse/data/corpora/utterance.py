"""The contract of corpora: what every reader (layout, listing, GRID, NTCD-TIMIT) returns, and what they share.

Nothing is decoded here. `audio` and `lips` are paths that `load_audio` and `load_lips` open when asked, whatever they
are: a sound file or the sound of a video; .npz, .npy or .mat of lips, or the video that shows them.
"""

import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pyro_avse.files import kind_of

Split = Literal["train", "valid", "test"]
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "valid": "valid",
    "dev": "valid",
    "val": "valid",
    "test": "test",
}
"""The folders that say a split."""


MOST_VISITS = 16
"""To one folder, by links to it."""


@dataclass(frozen=True)
class Mixture:
    """A noisy recording of an utterance that comes with the corpus."""

    noise: str
    snr: float
    """In dB, as the corpus says it."""
    audio: Path


@dataclass(frozen=True)
class Utterance:
    """One clip of a corpus, named, not yet read."""

    name: str
    speaker: str | None
    """None where the corpus does not say."""
    split: Split | None
    """None where the corpus has splits and this clip is in none."""
    audio: Path
    """A sound file, or a video with sound."""
    lips: Path | None
    """Lip frames, or a video of the face; None for a clip without either."""
    fps: float | None = None
    """Of the lips, where the corpus says it and not their file."""
    words: str | Path | None = None
    """The transcript, or the file (.align, .txt) that holds it."""
    noisy: tuple[Mixture, ...] = ()

    @property
    def transcript(self) -> str | None:
        """What is said; None where the corpus does not say. Read when asked, also from the lips' .npz."""
        if isinstance(self.words, str):
            return self.words
        if self.words is not None:
            text = self.words.read_text(encoding="utf-8", errors="replace")
            if self.words.suffix.lower() != ".align":
                return text.strip()
            said = [line.split()[-1] for line in text.splitlines() if line.strip()]
            return " ".join(word for word in said if word not in {"sil", "sp"})
        if self.lips is None or self.lips.suffix.lower() != ".npz":
            return None
        try:
            with np.load(self.lips, allow_pickle=False) as arrays:
                return str(arrays["transcript"]) if "transcript" in arrays else None
        except (
            Exception
        ):  # broken bytes can be anything: `load_lips` says what is wrong with the file
            return None


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, and why, with the cure."""

    file: Path
    reason: str
    split: Split | None = None
    """None: it concerns all."""


@dataclass(frozen=True)
class Corpus:
    """What a folder holds."""

    kind: str
    utterances: list[Utterance]
    """Sorted by split, speaker and name."""
    problems: list[Problem] = field(default_factory=list)
    """What makes the corpus ambiguous, as two files of one utterance; using that split is refused."""
    missing: list[str] = field(default_factory=list)
    """What is not there, by name, and does no harm."""


def walk(root: Path) -> Iterator[Path]:
    """Every file below `root`, sorted within folders; what is hidden, and what is no file (a pipe), is left out."""
    for folder, _, files in walk_folders(root):
        for name in files:
            if not name.startswith(".") and os.path.isfile(path := os.path.join(folder, name)):
                yield Path(path)


def walk_folders(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder below `root`, the names of its folders and of its files, sorted; links are followed, not round and
    round."""
    visits: Counter[str] = Counter()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(folder)
        visits[real] += 1
        within = os.path.realpath(os.path.dirname(folder)) + os.sep
        round_again = within.startswith(real + os.sep) and folder != str(root)
        if round_again or visits[real] > MOST_VISITS:
            folders.clear()
            continue
        yield folder, folders, sorted(files)


@dataclass
class Parts:
    """The files of one utterance, by kind, as a reader comes upon them."""

    files: dict[str, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: Path, split: Split | None) -> None:
        """Sort a file in; a second one of its kind is a problem."""
        kind = kind_of(path)
        if kind is None:
            return
        if kind in self.files:
            first = self.files[kind]
            same = first if first.parent != path.parent else first.name
            self.problems.append(Problem(path, f"is the same utterance as {same}: keep one", split))
        else:
            self.files[kind] = path

    def utterance(
        self, name: str, speaker: str | None, split: Split | None, words: str | None
    ) -> Utterance | None:
        """The sound file before the video's sound, lip frames before the video; None without sound."""
        audio = self.files.get("sound", self.files.get("video"))
        lips = self.files.get("lips", self.files.get("video"))
        if audio is None:
            return None
        return Utterance(name, speaker, split, audio, lips, words=self.files.get("words", words))


def collect(
    kind: str,
    found: dict[tuple[Split | None, str | None, str], Parts],
    sentence: dict[str, str] | None = None,
) -> Corpus:
    """The corpus of the files of each (split, speaker, name); `sentence` is what a name says."""
    corpus = Corpus(kind, [])
    for key in sorted(found, key=lambda key: [part or "" for part in key]):
        split, speaker, name = key
        parts = found[key]
        corpus.problems.extend(parts.problems)
        utterance = parts.utterance(name, speaker, split, (sentence or {}).get(name))
        if utterance is not None:
            corpus.utterances.append(utterance)
        elif "lips" in parts.files:
            corpus.missing.append(f"{parts.files['lips']} has no sound beside it")
    return corpus


def spread(utterances: list[Utterance]) -> list[Utterance]:
    """Splits for a corpus that has none of its own.

    Of three speakers or more, in natural order, the last tenth (at least one) is for test, the tenth before it for
    valid. Of fewer, or unknown ones, the clips are so divided, in the order of a checksum of their names.
    """
    speakers = sorted({u.speaker or "" for u in utterances}, key=natural)
    by_speaker = len(speakers) >= 3
    names = sorted({u.name for u in utterances}, key=lambda name: (zlib.crc32(name.encode()), name))
    order = speakers if by_speaker else names
    held = max(1, round(len(order) / 10)) if len(order) >= 3 else 0
    first_valid, first_test = len(order) - 2 * held, len(order) - held
    split_of: dict[str, Split] = {
        key: "train" if k < first_valid else "valid" if k < first_test else "test"
        for k, key in enumerate(order)
    }
    return [
        replace(u, split=split_of[(u.speaker or "") if by_speaker else u.name]) for u in utterances
    ]


def natural(name: str) -> list[tuple[str, int]]:
    """A key that sorts s2 before s10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
