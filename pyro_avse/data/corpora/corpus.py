"""Corpora as folders: which utterances there are, without decoding any.

`find_corpus` recognises what a folder holds, and `find_utterances` is one split of it. In the order in which they are
tried:

    a listed folder       a CSV with a column `file`                                                   (listing.py)
    NTCD-TIMIT            Clean/volunteers/..., Noisy_TCDTIMIT/..., matlab_raw/{train,dev,test}/...    (ntcd.py)
    a folder of clips     {train,valid,test}/[SPEAKER/]UTTERANCE.flac and .npz, or videos              (layout.py)
    GRID                  s1/bbaf2n.mpg, ... with or without .align                                    (grid.py)
    a folder of clips     the same without splits: [SPEAKER/]UTTERANCE of any sound or video           (layout.py)
"""

import os
from collections import Counter
from pathlib import Path

from pyro_avse.data.corpora.grid import read_grid
from pyro_avse.data.corpora.layout import read_layout
from pyro_avse.data.corpora.listing import read_listing
from pyro_avse.data.corpora.ntcd import read_ntcd
from pyro_avse.data.corpora.utterance import SPLIT_FOLDERS, Corpus
from pyro_avse.data.corpora.utterance import Mixture as Mixture
from pyro_avse.data.corpora.utterance import Split as Split
from pyro_avse.data.corpora.utterance import Utterance as Utterance
from pyro_avse.typing import InputError

LAYOUT = (
    "{train,valid,test}/SPEAKER/UTTERANCE.flac and .npz of its lips, videos, GRID or NTCD-TIMIT"
)


def find_corpus(root: str | os.PathLike[str]) -> Corpus:
    """What a folder holds; nothing is decoded.

    Raises InputError for no folder, and one that holds no clips.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is no folder: a corpus is a folder of {LAYOUT}")
    corpus = read_listing(root) or read_ntcd(root)
    if corpus is None and not any((root / name).is_dir() for name in SPLIT_FOLDERS):
        corpus = read_grid(root)
    corpus = corpus or read_layout(root)
    if not corpus.utterances and not corpus.problems:
        raise InputError(f"{root} holds no utterances: a corpus is a folder of {LAYOUT}")
    return corpus


def find_utterances(root: str | os.PathLike[str], split: Split) -> list[Utterance]:
    """The utterances of one split, sorted by speaker and name.

    Raises InputError as `find_corpus` does, where the split has no utterances, and where it is ambiguous, as by two
    sound files of one utterance.
    """
    return choose_split(find_corpus(root), root, split)


def choose_split(corpus: Corpus, root: str | os.PathLike[str], split: Split) -> list[Utterance]:
    """The same of a corpus that was found in `root`. Raises InputError as `find_utterances`, but for the folder's."""
    for problem in corpus.problems:
        if problem.split in (None, split):
            raise InputError(f"{problem.file} {problem.reason}")
    found = [u for u in corpus.utterances if u.split == split]
    if not found:
        counts = Counter(u.split for u in corpus.utterances if u.split is not None)
        has = ", ".join(f"{name} ({count})" for name, count in counts.items())
        raise InputError(
            f"{root} ({corpus.kind}) holds no {split} utterances: "
            + (f"it has {has}; name such a split, or " if has else "")
            + f"see pyro-avse data info {root}"
        )
    return found
