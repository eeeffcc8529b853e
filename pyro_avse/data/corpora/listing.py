"""A folder with a CSV that lists its clips: the first .csv whose header has a column `file`.

    file,speaker,split,lips,fps,transcript
    talks/anna1.mp4,anna,train,,,good morning
    talks/ben1.wav,ben,test,lips/ben1.npy,25,

Only `file` is needed; paths start at the folder. Without `lips`, those of the video itself, or lip frames beside the
sound, are taken. Clips without a split are divided by `spread`. Other columns are left alone.
"""

import csv
from collections import Counter
from pathlib import Path

from pyro_avse.data.corpora.utterance import SPLIT_FOLDERS, Corpus, Problem, Utterance, spread
from pyro_avse.files import LIPS, kind_of
from pyro_avse.typing import InputError


def read_listing(root: Path) -> Corpus | None:
    """The clips that a CSV in `root` lists; None where none has a column `file`.

    Raises InputError for a CSV that cannot be read.
    """
    for path in sorted(root.glob("*.csv")):
        try:
            with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
                rows = csv.DictReader(file, skipinitialspace=True)
                if "file" in (rows.fieldnames or ()):
                    return _corpus(path, list(rows))
        except (OSError, csv.Error) as error:
            raise InputError(
                f"{path} cannot be read as a listing ({error}): mend it, or move it elsewhere"
            ) from None
    return None


def _corpus(listing: Path, rows: list[dict[str, str]]) -> Corpus:
    utterances: dict[Path, Utterance] = {}
    problems: list[Problem] = []
    for number, row in enumerate(rows, start=2):
        try:
            utterance = _utterance(listing.parent, row)
            if utterance.audio in utterances:
                raise ValueError(f"{row['file']} is listed twice: keep one")
            utterances[utterance.audio] = utterance
        except ValueError as error:
            problems.append(Problem(listing, f"line {number}: {error}"))
    placed = [u for u in utterances.values() if u.split is not None]
    placed += spread([u for u in utterances.values() if u.split is None])
    names = Counter((u.split, u.speaker, u.name) for u in placed)
    for split, speaker, name in (key for key, count in names.items() if count > 1):
        called = "/".join(filter(None, (speaker, name)))
        problems.append(Problem(listing, f"two clips are called {called}: rename one", split))
    placed.sort(key=lambda u: (u.speaker or "", u.name))
    return Corpus("a listed folder", placed, problems)


def _utterance(root: Path, row: dict[str, str]) -> Utterance:
    """The clip of one line; ValueError says what is wrong with it."""
    cell = {key: (row.get(key) or "").strip() for key in ("file", "speaker", "split", "lips")}
    audio = root / cell["file"]
    if kind_of(audio) not in {"sound", "video"}:
        raise ValueError(f"file is {cell['file']!r}: name a sound or video file")
    if not audio.is_file():
        raise ValueError(f"{cell['file']} is not there: mend the listing")
    if cell["split"] and cell["split"] not in SPLIT_FOLDERS:
        raise ValueError(f"split is {cell['split']!r}: give train, valid or test")
    lips: Path | None = root / cell["lips"]
    if not cell["lips"]:
        beside = [audio.with_suffix(suffix) for suffix in sorted(LIPS)]
        seen = audio if kind_of(audio) == "video" else None
        lips = next((path for path in beside if path.is_file()), seen)
    elif not (root / cell["lips"]).is_file():
        raise ValueError(f"{cell['lips']} is not there: mend the listing")
    rate = (row.get("fps") or "").strip()
    try:
        fps = float(rate) if rate else None
    except ValueError:
        raise ValueError(f"fps is {rate!r}: give one positive number, such as 25") from None
    return Utterance(
        name=str(Path(cell["file"]).with_suffix("").as_posix()),
        speaker=cell["speaker"] or None,
        split=SPLIT_FOLDERS[cell["split"]] if cell["split"] else None,
        audio=audio,
        lips=lips,
        fps=fps,
        words=(row.get("transcript") or "").strip() or None,
    )
