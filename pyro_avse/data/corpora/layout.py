"""A folder of clips whose names say what they are: our own layout, and any other folder of sound or video.

    ROOT/[SPLIT/][SPEAKER/]UTTERANCE.flac, .wav, ...   and beside it UTTERANCE.npz, .npy or .mat of its lips
    ROOT/[SPLIT/][SPEAKER/]UTTERANCE.mp4, .mpg, ...    sound and lips in one

SPLIT is train, valid (or dev, val) or test; where a root has such folders only they are read (clips beside them are
named as left out), where it has none the clips are divided by `spread`. Folders below SPEAKER become part of the name.
A transcript may stand beside as .txt or .align, or in the .npz under `transcript`; a name of the GRID corpus says its
sentence.
"""

from collections import defaultdict
from pathlib import Path

from pyro_avse.data.corpora.grid import sentence
from pyro_avse.data.corpora.utterance import (
    SPLIT_FOLDERS,
    Corpus,
    Parts,
    Split,
    collect,
    spread,
    walk,
)
from pyro_avse.files import kind_of


def read_layout(root: Path) -> Corpus:
    """The clips of a folder; none at all is an empty corpus."""
    splits = [root / name for name in sorted(SPLIT_FOLDERS) if (root / name).is_dir()]
    found: dict[tuple[Split | None, str | None, str], Parts] = defaultdict(Parts)
    for top in splits or [root]:
        split = SPLIT_FOLDERS[top.name] if splits else None
        for path in walk(top):
            *folders, _ = path.relative_to(top).parts
            speaker = folders[0] if folders else None
            name = "/".join([*folders[1:], path.stem])
            found[split, speaker, name].add(path, split)
    said = {name: words for _, _, name in found if (words := sentence(name))}
    corpus = collect("a folder of clips", found, said)
    if splits:
        beside = [p for p in walk(root) if p.relative_to(root).parts[0] not in SPLIT_FOLDERS]
        corpus.missing.extend(
            f"{path} is in none of the folders of splits, and is left out"
            for path in beside
            if kind_of(path) in {"sound", "video"}
        )
        return corpus
    return Corpus(corpus.kind, spread(corpus.utterances), corpus.problems, corpus.missing)
