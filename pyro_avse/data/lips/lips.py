"""Lip frames: read from a file, checked, and held onto the frames of the sound.

A frame is a grey 67 x 67 picture of the mouth, upright: (frame, row, column), uint8 in 0..255 or
float32 in [0, 1].
"""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from pyro_avse.data.media import TOLERANCE
from pyro_avse.typing import InputError

SIDE = 67
"""Rows, and columns, of a picture."""
PAPER_FPS = 30.0
"""Frame rate of the papers' column-major files, which do not say one."""


@dataclass(frozen=True)
class Lips:
    """A video of the mouth; frame k covers the seconds k/fps to (k+1)/fps."""

    frames: Shaped[np.ndarray, "frame 67 67"]
    """uint8 in 0..255, or float32 in [0, 1]."""
    fps: float
    """Frames a second."""
    mask: Bool[np.ndarray, "frame"] | None = None
    """False for frames that show no mouth; None: all do."""


def read_lips(path: Path, *, fps: float | None = None) -> Lips:
    """Lip frames of .npz, .npy or .mat, as `load_lips` of pyro_avse.data.lips.open says. Raises InputError likewise."""
    arrays = _read_mat(path) if path.suffix.lower() == ".mat" else _read(path)
    if "lips" not in arrays:
        raise InputError(f"{path} has keys {sorted(arrays)}, not 'lips': name the frames 'lips'")
    frames = arrays["lips"]
    if frames.ndim == 2 and frames.shape[0] == SIDE * SIDE:
        frames = frames.T.reshape(-1, SIDE, SIDE).swapaxes(1, 2)
        arrays.setdefault("fps", np.array(PAPER_FPS))
    frames = _checked(frames, path)
    rate = arrays.get("fps") if fps is None else np.array(fps)
    if rate is None:
        raise InputError(f"{path} does not say its frame rate: give --fps")
    if rate.size != 1 or rate.dtype.kind not in "fiu" or not 0 < rate.item() < np.inf:
        raise InputError(f"{path}: fps is {rate.tolist()}: give one positive number, such as 25")
    return Lips(frames, float(rate.item()))


def lips_from_array(
    frames: Shaped[np.ndarray, "..."],
    fps: float,
    mask: Shaped[np.ndarray, "frame"] | None = None,
) -> Lips:
    """The same for frames in memory, (frame, 67, 67), and which of them show a mouth. Raises InputError likewise."""
    if not 0 < fps < np.inf:
        raise InputError(f"lips: fps is {fps}: give one positive number, such as 25")
    frames = _checked(frames, "lips=")
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != (len(frames),) or mask.dtype != bool:
            raise InputError(
                f"lips_mask is {mask.dtype} of shape {mask.shape}, the lips have {len(frames)} frames: give True or "
                "False for each"
            )
    return Lips(frames, float(fps), mask)


def lips_on_grid(
    lips: Lips, times: Float[np.ndarray, "frame"], duration: float
) -> Shaped[np.ndarray, "frame 67 67"]:
    """The picture that shows at each of `times` (seconds): one for every frame of the sound.

    A zero-order hold: no blending, and the dtype stays. Where the video ends up to 0.25 s before
    `duration` (of the sound, in seconds) its last picture is held; up to 0.25 s after is dropped.
    Raises InputError for a larger difference.
    """
    check_length(len(lips.frames), lips.fps, duration)
    return lips.frames[_shown(lips, times)]


def mask_on_grid(lips: Lips, times: Float[np.ndarray, "frame"]) -> Bool[np.ndarray, "frame"] | None:
    """Whether the picture at each of `times` shows a mouth; None where all do."""
    if lips.mask is None:
        return None
    held: np.ndarray = lips.mask[_shown(lips, times)]
    return None if held.all() else held


def _shown(lips: Lips, times: Float[np.ndarray, "frame"]) -> Int[np.ndarray, "frame"]:
    # A time on the border of two pictures, k/fps, may fall short of it by rounding.
    shown = np.floor(times * lips.fps + 1e-6).astype(np.int64)
    return np.clip(shown, 0, len(lips.frames) - 1)


def check_length(num_frames: int, fps: float, duration: float) -> None:
    """Refuse lips that are not as long as the sound, up to 0.25 s."""
    seconds = num_frames / fps
    if abs(seconds - duration) > TOLERANCE + 1e-9:
        raise InputError(
            f"lips has {num_frames} frames at {fps:g} fps ({seconds:.2f} s), the sound lasts"
            f" {duration:.2f} s: give --fps or trim"
        )


def count_mat_frames(path: Path) -> int:
    """The frames of an NTCD-TIMIT .mat, from its header. Raises InputError for another file or shape."""
    return int(_mat_data(path, lambda data: data.shape[0]))


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    """Grey levels from NTCD-TIMIT's coefficients: each row an orthonormal 2-D DCT, column by column."""
    from scipy.fft import idctn

    rows: np.ndarray = _mat_data(path, lambda data: data[()])
    grey = idctn(rows.reshape(-1, SIDE, SIDE).swapaxes(1, 2), axes=(1, 2), norm="ortho").round()
    if len(grey) and not (grey.min() >= 0 and grey.max() <= 255):  # also true for NaN
        raise InputError(
            f"{path}: its inverse DCT reaches from {grey.min():g} to {grey.max():g}, not within 0..255:"
            " give orthonormal 2-D DCTs of grey levels"
        )
    return {"lips": grey.astype(np.uint8), "fps": np.array(PAPER_FPS)}


def _mat_data(path: Path, use: Callable[[Any], Any]) -> Any:
    """`use` of the HDF5 dataset `data` (frame, 4489)."""
    import h5py

    try:
        with h5py.File(path) as file:
            data = file.get("data")
            if not isinstance(data, h5py.Dataset):
                raise InputError(
                    f"{path} has keys {sorted(file)}, no dataset 'data': is it NTCD-TIMIT's?"
                )
            if data.ndim != 2 or data.shape[1] != SIDE * SIDE or data.dtype.kind not in "fiu":
                raise InputError(
                    f"{path}: data is {data.dtype} of shape {data.shape}: give (frame, 4489), each row the DCT"
                    " of a 67x67 picture"
                )
            return use(data)
    except OSError as err:
        raise InputError(
            f"{path} cannot be read as MATLAB 7.3 (HDF5): save it again with -v7.3, or the lips as .npz"
        ) from err


def _read(path: Path) -> dict[str, np.ndarray]:
    """The file's arrays by key; those of a .npy under 'lips'."""
    try:
        with path.open("rb") as file:  # np.load would leave a broken archive open
            loaded = np.load(file, allow_pickle=False)
            return {"lips": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as err:
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise InputError(
            f"{path} cannot be read as .npz or .npy ({reason}): save the lips with numpy.savez"
        ) from err


def _checked(frames: np.ndarray, path: Path | str) -> Shaped[np.ndarray, "frame 67 67"]:
    """Contiguous uint8 or float32 frames in range, or InputError."""
    if frames.ndim != 3 or frames.shape[1:] != (SIDE, SIDE):
        raise InputError(
            f"{path}: lips has shape {frames.shape}: give (frame, 67, 67), or (4489, frame) with"
            " each column a picture flattened column by column"
        )
    if len(frames) == 0:
        raise InputError(f"{path}: lips has no frames: give at least one")
    if frames.dtype.kind not in "fiu":
        raise InputError(f"{path}: lips is {frames.dtype}: give uint8, or floating point in [0, 1]")
    low, high = frames.min(), frames.max()
    if frames.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise InputError(
                f"{path}: floating-point lips reach from {low:g} to {high:g}, not within [0, 1]:"
                " divide grey levels by 255"
            )
        return np.ascontiguousarray(frames, dtype=np.float32)
    if low < 0 or high > 255:
        raise InputError(
            f"{path}: integer lips reach from {low} to {high}, not within 0..255: rescale them"
        )
    return np.ascontiguousarray(frames, dtype=np.uint8)


def fit_lips(lips: Lips, duration: float) -> Lips:
    """Lips of a video, as long as its sound of `duration` seconds.

    Pictures after the sound are dropped. Where they end over 0.25 s before it, frames without a mouth follow; up to
    that the last one is held, as `lips_on_grid` does.
    """
    wanted = max(1, round(duration * lips.fps))
    frames, mask = lips.frames[:wanted], None if lips.mask is None else lips.mask[:wanted]
    missing = wanted - len(frames)
    if missing > TOLERANCE * lips.fps:
        mask = np.ones(len(frames), bool) if mask is None else mask
        mask = np.concatenate([mask, np.zeros(missing, bool)])
        nothing = np.zeros((missing, SIDE, SIDE), frames.dtype)
        frames = np.concatenate([frames, nothing])
    return Lips(frames, lips.fps, None if mask is None or mask.all() else mask)
