"""What a corpus folder holds, and which of its files cannot be used: every clip is opened as training would open it.

Sound is decoded, and lips too; faces are looked for in videos, once (`watch_cached` keeps what was found). Of
NTCD-TIMIT's .mat and of noisy mixtures only the header is read.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import soundfile

from pyro_avse.data.corpora.corpus import find_corpus
from pyro_avse.data.corpora.utterance import Utterance
from pyro_avse.data.lips.lips import PAPER_FPS, check_length, count_mat_frames
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media import TOLERANCE
from pyro_avse.data.media.audio import load_audio
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.typing import JSON, InputError


@dataclass(frozen=True)
class Description:
    """What a folder holds."""

    kind: str
    total: JSON
    """speakers, utterances, with_lips (utterances that have lips), noisy (mixtures that come with them), minutes (of
    clean sound) and broken, a list of {"file", "reason"}; the counts are of what is there, broken or not."""
    splits: list[JSON]
    """For each split, "split" and the same counts."""
    missing: list[str]
    """What is not there, by name."""


def describe(root: Path, progress: Callable[[float], None] | None = None) -> Description:
    """Open every clip of a folder and say what it holds.

    Args:
        progress: called with the fraction done.

    Raises:
        InputError: no folder, or no clips in it.
    """
    corpus = find_corpus(root)
    broken = [{"file": str(p.file), "reason": p.reason} for p in corpus.problems]
    seconds: dict[str, float] = {}
    for number, utterance in enumerate(corpus.utterances, start=1):
        length, problems = _check(utterance)
        seconds[str(utterance.audio)] = length
        broken += [{"file": str(path), "reason": reason} for path, reason in problems]
        if progress is not None:
            progress(number / len(corpus.utterances))

    def count(utterances: list[Utterance]) -> JSON:
        return {
            "speakers": len({u.speaker for u in utterances} - {None}),
            "utterances": len(utterances),
            "with_lips": sum(u.lips is not None for u in utterances),
            "noisy": sum(len(u.noisy) for u in utterances),
            "minutes": round(sum(seconds[str(u.audio)] for u in utterances) / 60, 3),
        }

    splits = []
    for split in ("train", "valid", "test", None):
        if chosen := [u for u in corpus.utterances if u.split == split]:
            splits.append({"split": split or "none", **count(chosen)})
    missing = list(corpus.missing)
    if any(u.lips for u in corpus.utterances) and corpus.kind != "NTCD-TIMIT":
        missing += [f"{u.audio} has no lips" for u in corpus.utterances if u.lips is None]
    total = {**count(corpus.utterances), "broken": broken}
    return Description(corpus.kind, total, splits, missing)


def _check(utterance: Utterance) -> tuple[float, list[tuple[Path, str]]]:
    """Seconds of sound, and what is wrong with an utterance's files."""
    problems: list[tuple[Path, str]] = []
    seconds = 0.0
    try:
        seconds = len(load_audio(utterance.audio).waveform) / SAMPLE_RATE
    except InputError as error:
        problems.append((utterance.audio, _reason(error, utterance.audio)))
    if utterance.lips is not None:
        try:
            frames, fps = _lips_length(utterance.lips, utterance.fps)
            if seconds:
                check_length(frames, fps, seconds)
        except InputError as error:
            problems.append((utterance.lips, _reason(error, utterance.lips)))
    problems += _check_mixtures(utterance, seconds)
    return seconds, list(dict(reversed(problems)).items())  # a file's first


def _lips_length(path: Path, fps: float | None) -> tuple[int, float]:
    """Number of frames and their rate."""
    if path.suffix.lower() == ".mat":
        return count_mat_frames(path), PAPER_FPS if fps is None else fps
    lips = load_lips(path, fps=fps)
    return len(lips.frames), lips.fps


def _check_mixtures(utterance: Utterance, seconds: float) -> Iterator[tuple[Path, str]]:
    for mixture in utterance.noisy:
        try:
            lasts = soundfile.info(os.fsencode(mixture.audio)).duration
        except soundfile.LibsndfileError as error:
            yield mixture.audio, f"cannot be read as sound ({error.error_string}): copy it again"
            continue
        if seconds and abs(lasts - seconds) > TOLERANCE:
            yield (
                mixture.audio,
                f"lasts {lasts:.2f} s, its clean sound {seconds:.2f} s: copy it again",
            )


def _reason(error: InputError, path: Path) -> str:
    return str(error).removeprefix(str(path)).lstrip(": ")
