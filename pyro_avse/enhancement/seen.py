"""The lips that go with a recording: given, or those of the face that its video shows; and where they say nothing.

A model that can do without lips hears the sound alone wherever there is no face, no picture or none that moves; each is
a note with its seconds. A model that cannot is refused before anything slow.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pyro_avse.data.lips.lips import Lips, check_length, fit_lips
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.lips.stillness import leave_out_still, say_stretches
from pyro_avse.data.media import TOLERANCE
from pyro_avse.files import kind_of
from pyro_avse.typing import InputError

Progress = Callable[[float, str], None]
Waveform = Float32[np.ndarray, "sample"]
ALONE = "enhanced by its sound alone"


def find_lips(
    noisy: Path,
    lips: Path | None,
    fps: float | None,
    prior: Any,
    duration: float,
    delay: float = 0.0,
    *,
    face: str = "auto",
    track: int = 0,
    sound: Callable[[float], Waveform] | None = None,
    progress: Progress = lambda done, text: None,
) -> tuple[Lips | None, list[str]]:
    """The lips of a recording of `duration` seconds, and what to say of them, a line each.

    Args:
        lips: .npz, .npy, .mat or a video; None: those of `noisy`, if it is a video and the prior looks.
        fps: of `lips`, where its file does not say.
        delay: seconds by which its sound starts after its pictures; notes count from the pictures.
        face: of several, as `watch` says.
        track: the sound of `noisy` that is enhanced.
        sound: gives so many seconds of it, as of `watch`; None: it is decoded again, if it is needed.
        progress: told the fraction of the lips that are cut, and a text.

    Raises:
        InputError: as `load_lips` and `watch`; arrays of lips that are not as long as the sound; a prior that cannot do
            without, where there are none or none for a while.
    """
    own = lips is None
    source = noisy if lips is None else lips
    watched = prior.uses_lips and kind_of(source) in ("video", None) and _is_video(source)
    if face != "auto" and not watched:
        raise InputError(
            f"--face {face} is of the lips in a video, at which nothing looks here: leave it out"
        )
    if not prior.uses_lips:
        if lips is not None and kind_of(lips) != "video":
            check_length(*_count(load_lips(lips, fps=fps, longest=duration)), duration)
        return None, []
    if own and not watched:
        return None, _no_pictures(noisy)
    if watched:
        seen, notes = _watched(
            source,
            fps,
            duration,
            max(0.0, delay) * own,
            face,
            track * own,
            sound if own else None,
            progress,
        )
    else:
        seen, notes = load_lips(source, fps=fps, longest=duration), []
        check_length(*_count(seen), duration)
    if seen is not None:
        left, said = leave_out_still(seen)
        if said is not None:
            notes.append(f"{source}: {said}")
        if left is not None or not prior.requires_lips:
            seen = left
    if seen is None and prior.requires_lips:
        why = notes[-1] if notes else f"{source} shows none"
        raise InputError(f"{_name(prior)} needs the lips, but {why}: take min_vae_v2, or a_vae")
    if seen is not None and seen.mask is not None and prior.requires_lips:
        missing = say_stretches(~seen.mask, seen.fps)
        raise InputError(
            f"{source}: no lips at {missing}, which {_name(prior)} needs: take min_vae_v2, or a_vae"
        )
    if seen is None and notes:
        notes[-1] += f"; {ALONE}"
    return seen, notes


def _watched(
    source: Path,
    fps: float | None,
    duration: float,
    delay: float,
    face: str,
    track: int,
    sound: Callable[[float], Waveform] | None,
    progress: Progress,
) -> tuple[Lips | None, list[str]]:
    """The lips of a video as far as its sound goes; None without any face."""
    from pyro_avse.data.lips.watch import watch  # OpenCV takes a while to load

    more: Any = {"sound": sound, "until": duration, "progress": progress}
    watched = watch(source, face=face, track=track, whole=False, **more)
    found, notes = watched.lips, list(watched.notes)
    if found.mask is not None and not found.mask.any():
        if not any("no face" in note for note in notes):
            notes.append(f"{source}: its pictures end before its sound begins")
        return None, notes
    rate = found.fps if fps is None else fps
    before = 0 if found.mask is None else int(found.mask.argmax())
    if before and not any("no face" in note for note in notes):
        notes.append(f"{source}: no pictures before {before / rate:.2f} s: without lips there")
    pictures = len(found.frames) / rate
    if duration - pictures > TOLERANCE and len(found.frames) > 1:
        notes.append(
            f"{source}: no pictures at {delay + pictures:.2f}-{delay + duration:.2f} s: without lips there"
        )
    if len(found.frames) == 1:
        return Lips(found.frames, rate, found.mask), notes
    return fit_lips(Lips(found.frames, rate, found.mask), duration), notes


def _is_video(path: Path) -> bool:
    """By what is in it: a .mp4 may be sound alone, or sound with a cover."""
    if kind_of(path) not in ("video", None):
        return False
    from pyro_avse.data.media.container import has_pictures  # PyAV takes a while to load

    return has_pictures(path)


def _no_pictures(path: Path) -> list[str]:
    return [f"{path} has no pictures: {ALONE}"] if kind_of(path) == "video" else []


def _count(lips: Lips) -> tuple[int, float]:
    return len(lips.frames), lips.fps


def _name(prior: Any) -> str:
    return type(prior).__name__
