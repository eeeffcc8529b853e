"""The GRID corpus as its authors distribute it. [Cooke, Barker, Cunningham & Shao 2006]

MPEG-1 clips of talking faces whose names say the sentence, anywhere below a folder that names the speaker:

    s1/bbaf2n.mpg     video/mpg_6000/s1/bbaf2n.mpg     s1_bbaf2n.mpg      bin blue at f two now

Word times may be there as `bbaf2n.align` and separate sound as `bbaf2n.wav`, in the same folder or in another tree.
The corpus has no splits: `spread` divides its speakers.
"""

import re
from collections import defaultdict
from pathlib import Path

from pyro_avse.data.corpora.utterance import Corpus, Parts, Split, collect, spread, walk
from pyro_avse.files import kind_of

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WORDS = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    dict(zip("z123456789", _DIGITS, strict=True)),
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)


def sentence(name: str) -> str | None:
    """What a GRID name says: command, colour, preposition, letter, digit, adverb; None for another name."""
    if len(name) != len(_WORDS) or any(
        c not in words for c, words in zip(name, _WORDS, strict=True)
    ):
        return None
    return " ".join(words[c] for c, words in zip(name, _WORDS, strict=True))


def read_grid(root: Path) -> Corpus | None:
    """The clips of a GRID tree; None where there is no video of a GRID name and speaker."""
    found: dict[tuple[Split | None, str | None, str], Parts] = defaultdict(Parts)
    others: list[str] = []
    for path in walk(root):
        prefix = re.fullmatch(r"(s\d+)_(.+)", path.stem)
        folders = [part for part in path.parent.parts if re.fullmatch(r"s\d+", part)]
        speaker = prefix[1] if prefix else folders[-1] if folders else None
        name = prefix[2] if prefix else path.stem
        if speaker and sentence(name):
            found[None, speaker, name].add(path, None)
        elif kind_of(path) in {"sound", "video"}:
            others.append(f"{path} has no GRID name and speaker, and is left out")
    if not any("video" in parts.files for parts in found.values()):
        return None
    corpus = collect("GRID", found, {name: sentence(name) or "" for _, _, name in found})
    missing = [f"{u.audio} has no video" for u in corpus.utterances if u.lips is None]
    return Corpus(
        corpus.kind, spread(corpus.utterances), corpus.problems, corpus.missing + missing + others
    )
