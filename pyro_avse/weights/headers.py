"""The STFT that a weight file's header says, checked: a header may be anyone's."""

from pathlib import Path
from typing import Any

from pyro_avse.stft import STFT
from pyro_avse.typing import InputError

MOST_OVERLAP = 16
"""Windows over a sample: with more, every step of inference takes as many times longer and hears nothing new."""


def read_stft(path: Path, said: Any, what: str) -> STFT:
    """Of a header's {"n_fft", "hop"}. Raises InputError for what is none, or that no recording could be put through."""
    if not isinstance(said, dict) or said.keys() != {"n_fft", "hop"}:
        raise InputError(
            f"{path}: its header fits no {what} of this version (stft is {said!r:.80})"
        )
    n_fft, hop = said["n_fft"], said["hop"]
    if type(n_fft) is not int or type(hop) is not int:
        raise InputError(
            f"{path}: its header fits no {what} of this version (stft is {said!r:.80})"
        )
    try:
        return checked_stft(n_fft, hop)
    except InputError as error:
        raise InputError(f"{path}: its header fits no {what} of this version ({error})") from None


def checked_stft(n_fft: int, hop: int) -> STFT:
    """The STFT of a trained prior. Raises InputError as `STFT`, and for a hop far from half of the window."""
    stft = STFT(n_fft, hop)
    if hop * MOST_OVERLAP < n_fft:
        raise InputError(
            f"hop {hop} with n_fft {n_fft} is {16000 / hop:.0f} frames a second: take {-(-n_fft // MOST_OVERLAP)} or "
            "more, about half of the window"
        )
    return stft
