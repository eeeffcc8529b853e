"""NTCD-TIMIT as its authors distribute it. [Abdelaziz 2017]

    Clean/volunteers/01M/straightcam/sa1.wav                        56 speakers, 16 kHz
    Clean/lipspeakers/Lipspkr1/.../sa1.wav                          sound only
    Noisy_TCDTIMIT/Babble/-5/volunteers/01M/straightcam/sa1.wav     six noises at six nominal SNRs in dB
    matlab_raw/train/01M/sa1.mat   or   .../train/01M/sa1Raw.npy    lips: 39 / 8 / 9 speakers in train / dev / test

The trees are found anywhere below the folder, whatever folders stand above or between them (the archives unpack to
u/drspeech/data/TCDTIMIT/...). A speaker's split is the folder that his lips are in; it may be empty. Speakers in none,
as the lipspeakers, have no split.
"""

import os
import re
from collections import defaultdict
from collections.abc import Set
from itertools import pairwise
from pathlib import Path

from pyro_avse.data.corpora.utterance import (
    SPLIT_FOLDERS,
    Corpus,
    Mixture,
    Problem,
    Split,
    Utterance,
    walk,
    walk_folders,
)
from pyro_avse.typing import InputError

_GROUPS = ("volunteers", "lipspeakers")
_NOISY = "Noisy_TCDTIMIT"
_Key = tuple[str, str]
"""Speaker and name."""
_Condition = tuple[str, float]
"""Noise and nominal SNR in dB."""


def read_ntcd(root: Path) -> Corpus | None:
    """The clips of an NTCD-TIMIT tree; None where there is no folder "volunteers" or "lipspeakers".

    Raises InputError for noisy mixtures without their clean sound.
    """
    problems: list[Problem] = []
    clean: dict[_Key, Path] = {}
    lips: dict[_Key, Path] = {}
    noisy: dict[_Key, dict[_Condition, Path]] = defaultdict(dict)
    groups: dict[str, str] = {}  # of speakers
    inside_noisy = _NOISY in root.resolve().parts
    for path in walk(root):
        parts = path.relative_to(root).parts
        place = max((parts.index(g) for g in _GROUPS if g in parts[:-2]), default=None)
        suffix = path.suffix.lower()
        if place is not None and suffix in {".wav", ".flac"}:
            key = parts[place + 1], path.stem
            groups.setdefault(parts[place + 1], parts[place])
            condition = _condition(parts[:place])
            inside_noisy &= "Clean" not in parts
            first = clean.get(key) if condition is None else noisy[key].get(condition)
            if first is not None:
                problems.append(Problem(path, f"is the same recording as {first}: keep one"))
            elif condition is None:
                clean[key] = path
            else:
                noisy[key][condition] = path
        elif suffix in {".mat", ".npy"} and len(parts) > 1:
            key = _speaker(parts), path.stem.removesuffix("Raw")
            first = lips.setdefault(key, path)
            if first != path and first.suffix == path.suffix:  # the two forms say the same
                problems.append(Problem(path, f"is of the same clip as {first}: keep one"))
    if not clean and not noisy:
        return None
    if inside_noisy or not clean:
        raise InputError(
            f"{root} holds NTCD-TIMIT's noisy mixtures without their Clean/: name the folder that holds both"
        )
    splits, doubled = _splits(root, groups.keys())
    utterances = [
        Utterance(
            name,
            speaker,
            splits.get(speaker),
            clean[speaker, name],
            lips.get((speaker, name)),
            noisy=tuple(
                Mixture(noise, snr, path)
                for (noise, snr), path in sorted(noisy[speaker, name].items())
            ),
        )
        for speaker, name in sorted(clean)
    ]
    missing = [f"{clean[key]} has no lips" for key in clean if key not in lips and key[0] in splits]
    missing += [f"{lips[key]} has no sound" for key in lips if key not in clean]
    missing += [
        f"{path} has no clean sound"
        for key in noisy
        if key not in clean
        for path in noisy[key].values()
    ]
    missing += [
        f"speaker {speaker} is in no split: "
        + (
            "lipspeakers have none"
            if groups[speaker] == "lipspeakers"
            else f"make a folder matlab_raw/{{train,dev,test}}/{speaker}, which may be empty"
        )
        for speaker in sorted({u.speaker or "" for u in utterances if u.split is None})
    ]
    return Corpus("NTCD-TIMIT", utterances, problems + doubled, missing)


def _condition(folders: tuple[str, ...]) -> _Condition | None:
    """(noise, SNR) of the folders above "volunteers", as in Noisy_TCDTIMIT/Babble/-5; None in a clean tree."""
    if "Clean" in folders:
        return None
    below = folders[folders.index(_NOISY) + 1 :] if _NOISY in folders else folders[-2:]
    for noise, snr in pairwise(below):
        if re.fullmatch(r"[+-]?\d+", snr):
            return noise, float(snr)
    return None


def _speaker(parts: tuple[str, ...]) -> str:
    """The folder below the split's, the last of such a name, else the one that the file is in."""
    below = [below for above, below in pairwise(parts[:-1]) if above in SPLIT_FOLDERS]
    return below[-1] if below else parts[-2]


def _splits(root: Path, known: Set[str]) -> tuple[dict[str, Split], list[Problem]]:
    """The split of every known speaker, from the folders {train,dev,test}/SPEAKER anywhere below."""
    splits: dict[str, Split] = {}
    problems = []
    for above, folders, _ in walk_folders(root):
        split = SPLIT_FOLDERS.get(os.path.basename(above))
        if split is None:
            continue
        for speaker in (name for name in folders if name in known):
            if splits.setdefault(speaker, split) != split:
                reason = f"is also a speaker of {splits[speaker]}: keep one"
                problems.append(Problem(Path(above, speaker), reason))
    return splits, problems
