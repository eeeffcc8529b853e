"""How sure an enhanced recording is, for a person and for a program: `--uncertainty FILE.npz`.

    doubt = enhanced.uncertainty              # mean, variance, sure, r(alpha) with its band
    doubt.save("doubt.npz")                   # arrays by these names; frames come first in all of them

What the numbers are stands in `inference/uncertainty.py`. Of a long recording the file is written block by block.
"""

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Float, Float32

from pyro_avse.files import beside, check_place, refused
from pyro_avse.inference.uncertainty import alpha_band, moments, sure
from pyro_avse.typing import InputError, Separation

COLUMNS = 2000
"""Frames that a figure shows at most: of a longer recording every so many-th."""


@dataclass(frozen=True)
class Uncertainty:
    """What is known of speech at 16 kHz in every frame and frequency, at the recording's level."""

    times: Float[np.ndarray, "frame"]
    """Frame centres, in seconds."""
    mean: Complex64[np.ndarray, "frame freq"]
    """E s: the STFT of the estimate, frequencies evenly from 0 to 8 kHz."""
    variance: Float32[np.ndarray, "frame freq"]
    """Var s, in |STFT|^2."""
    sure: Float32[np.ndarray, "frame"]
    """sum_f |E s|^2 / sum_f E|s|^2: 1, the speech is known; 0.5, the error is expected to be as loud as it."""
    r: Float32[np.ndarray, "frame component"]
    """r(alpha_n); component 0 is audio."""
    r_low: Float32[np.ndarray, "frame component"]
    """Of the draws' own r(alpha_n) 5 % lie below this."""
    r_high: Float32[np.ndarray, "frame component"]
    """And 5 % above this."""
    chains_disagree: Bool[np.ndarray, "frame"]
    """Where chains sat in different modes, so that the band of r says where they began."""

    def frames(self, which: Any) -> "Uncertainty":
        """Some of the frames."""
        return replace(self, **{f.name: getattr(self, f.name)[which] for f in fields(self)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz, whole or not at all. Raises InputError for another name, and a disk that refuses."""
        file = UncertaintyFile(Path(path), len(self.times))
        file.append(self)
        file.finish()


def uncertainty_of(
    separation: Separation, times: Float[np.ndarray, "frame"], unit: float
) -> Uncertainty:
    """Of what a scheme returned for one recording; spectra times `unit` are at its level.

    Raises InputError for a scheme without draws.
    """
    mean, variance = moments(separation)
    low, high = alpha_band(separation)
    apart = separation.chains_disagree
    return Uncertainty(
        times=times,
        mean=(unit * mean).to(torch.complex64).cpu().numpy(),
        variance=(unit**2 * variance).float().cpu().numpy(),
        sure=sure(mean, variance).float().cpu().numpy(),
        r=separation.responsibilities.T.float().cpu().numpy(),
        r_low=low.T.float().cpu().numpy(),
        r_high=high.T.float().cpu().numpy(),
        chains_disagree=np.zeros(len(times), bool) if apart is None else apart.cpu().numpy(),
    )


def of_silence(times: Float[np.ndarray, "frame"], freqs: int, components: int) -> Uncertainty:
    """Of digital silence, which is known."""
    nothing = np.zeros((len(times), freqs), np.float32)
    even = np.full((len(times), components), 1 / components, np.float32)
    return Uncertainty(
        times=times,
        mean=nothing.astype(np.complex64),
        variance=nothing,
        sure=np.ones(len(times), np.float32),
        r=even,
        r_low=even,
        r_high=even,
        chains_disagree=np.zeros(len(times), bool),
    )


def check_npz(path: Path) -> None:
    """Whether an uncertainty can be written there. Raises InputError for another suffix, or as `check_place`."""
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path} is to be an uncertainty's file: end it in .npz")
    check_place(path)


class UncertaintyFile:
    """An .npz that grows block by block, in unnamed files beside it, and appears when it is whole.

    Raises InputError as `check_npz`.
    """

    def __init__(self, path: Path, frames: int) -> None:
        check_npz(path)
        self.path, self.every = path, 1 + frames // COLUMNS
        self.shown: list[Uncertainty] = []
        """Of every block what a figure shows."""
        self._open: dict[str, IO[bytes]] = {}
        self._frames = 0
        self._like: Uncertainty | None = None

    def append(self, more: Uncertainty) -> None:
        """The next frames."""
        folder = Path(os.path.realpath(self.path)).parent
        for field in fields(more):
            if field.name not in self._open:
                self._open[field.name] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            try:
                self._open[field.name].write(np.ascontiguousarray(getattr(more, field.name)).data)
            except OSError as error:
                raise refused(self.path, error) from None
        self.shown.append(more.frames(slice(None, None, self.every)))
        self._frames += len(more.times)
        self._like = more.frames(slice(0))

    def finish(self) -> None:
        """All of them, under the names of `Uncertainty`."""
        beside(self.path, self._write)
        for file in self._open.values():
            file.close()

    def _write(self, part: Path) -> None:
        with zipfile.ZipFile(part, "w") as archive:
            for name, file in self._open.items():
                like = getattr(self._like, name)
                header = {
                    "descr": np.lib.format.dtype_to_descr(like.dtype),
                    "fortran_order": False,
                    "shape": (self._frames, *like.shape[1:]),
                }
                stamp = zipfile.ZipInfo(
                    f"{name}.npy"
                )  # without the time: the same frames, the same bytes
                with archive.open(stamp, "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, header)
                    file.seek(0)
                    shutil.copyfileobj(file, entry)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, os.path.realpath(self.path))
