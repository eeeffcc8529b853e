"""Several recordings, one after the other, each into a folder under its own name.

What cannot be used is said and left out; the others are enhanced all the same.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyro_avse.data.media.saving import ENCODED
from pyro_avse.enhancement.file import enhance_file
from pyro_avse.files import kind_of, make_folder
from pyro_avse.typing import JSON, InputError

KEPT = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", *ENCODED}
"""Formats of sound that are written as they came; others become .wav."""


def output_names(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Where each recording's result goes: its name, with another suffix where that format cannot be written.

    Raises InputError for two that would be one file, and a folder that cannot be made or holds the recordings.
    """
    names = [folder / f"{path.stem}{_suffix(path)}" for path in paths]
    for k, name in enumerate(names):
        if name in names[:k]:
            other = paths[names.index(name)]
            raise InputError(f"{other} and {paths[k]} would both be {name}: enhance them apart")
    make_folder(folder)
    return names


def enhance_many(
    paths: Sequence[Path],
    folder: Path,
    *,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[float, str], None] = lambda done, text: None,
    **options: Any,
) -> tuple[list[JSON], list[str]]:
    """Enhance recordings into a folder; the row of each that could be, as of `enhance_file`, and what was refused.

    `options` are those of `enhance_file`, but for `output` and what belongs to one recording alone (`lips`,
    `reference`, `noise_out`). `progress` is told the fraction of all that is done.
    Raises InputError as `output_names`.
    """
    rows: list[JSON] = []
    refused: list[str] = []
    outputs = output_names(paths, folder)
    for index, (path, output) in enumerate(zip(paths, outputs, strict=True)):
        told = f"{index + 1} of {len(paths)}: {path.name}"

        def part(done: float, text: str, index: int = index, told: str = told) -> None:
            progress((index + done) / len(paths), f"{told}, {text}")

        progress(index / len(paths), told)
        try:
            rows.append(enhance_file(path, output, report=report, progress=part, **options))
        except InputError as refusal:
            refused.append(str(refusal))
    progress(1.0, f"{len(rows)} of {len(paths)} enhanced")
    return rows, refused


def _suffix(path: Path) -> str:
    """Of the result. Pictures go into a container that takes nearly all of them."""
    suffix = path.suffix.lower()
    if suffix in KEPT:
        return path.suffix
    if kind_of(path) != "video":
        return ".wav"
    from pyro_avse.data.media.container import has_pictures  # PyAV takes a while to load
    from pyro_avse.data.media.copying import CODECS, fitting

    if not has_pictures(path):
        return ".wav"
    return fitting(path, path.suffix if suffix in CODECS else ".mkv")
