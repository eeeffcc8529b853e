"""Corpora as folders: which utterances there are, without decoding any.

With speakers, and with lips where the second file is there:

    ROOT/{train,valid,test}/SPEAKER/UTTERANCE.flac + UTTERANCE.npz

and audio only, speakers unknown:

    ROOT/{train,valid,test}/UTTERANCE.flac

`.wav` serves as well as `.flac`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyro_avse.typing import InputError

Split = Literal["train", "valid", "test"]
LAYOUT = "{train,valid,test}/[SPEAKER/]UTTERANCE.flac or .wav, and UTTERANCE.npz for its lips"


@dataclass(frozen=True)
class Utterance:
    """One clip of a corpus, named, not yet read."""

    name: str
    speaker: str | None
    """None where the corpus does not say."""
    split: Split
    audio: Path
    lips: Path | None
    """None for a clip without video."""


def find_utterances(root: str | os.PathLike[str], split: Split) -> list[Utterance]:
    """The utterances of one split, sorted by speaker and name.

    Raises InputError where `root` has no such split, or the split no utterances, and where one
    utterance is there as both .flac and .wav.
    """
    folder = Path(root) / split
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: a corpus is laid out as {root}/{LAYOUT}")
    sounds = [
        path
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.suffix.lower() in {".flac", ".wav"} and not path.name.startswith(".")
    ]
    if not sounds:
        raise InputError(f"{folder} holds no utterances: a corpus is laid out as {root}/{LAYOUT}")
    found: dict[tuple[str, str], Utterance] = {}
    for path in sounds:
        speaker = None if path.parent == folder else path.parent.name
        lips = path.with_suffix(".npz")
        key = (speaker or "", path.stem)
        if key in found:
            raise InputError(f"{path} and {found[key].audio.name} are one utterance: keep one")
        found[key] = Utterance(path.stem, speaker, split, path, lips if lips.is_file() else None)
    return [found[key] for key in sorted(found)]
