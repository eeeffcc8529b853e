"""Lip frames: read from a file, checked, and held onto the frames of the sound.

A frame is a grey 67 x 67 picture of the mouth, upright: (frame, row, column), uint8 in 0..255 or
float32 in [0, 1].
"""

import math
import zipfile
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
MOST_BYTES = 8 * 2**30
"""Of lips in memory: five hours as uint8 at 100 frames a second."""
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


def read_lips(path: Path, *, fps: float | None = None, longest: float | None = None) -> Lips:
    """Lip frames of .npz, .npy or .mat, as `load_lips` of pyro_avse.data.lips.open says. Raises InputError likewise."""
    size = Limit(path, fps, longest)
    arrays = _read_mat(path, size) if path.suffix.lower() == ".mat" else _read(path, size)
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


@dataclass(frozen=True)
class Limit:
    """How large an array of lips may be: told its shape, as a file's header says it, before its numbers are read."""

    path: Path
    fps: float | None
    longest: float | None
    """Seconds of the sound that they go with; None: not known."""

    def __call__(self, shape: tuple[int, ...], dtype: np.dtype, fps: float | None) -> None:
        """Raises InputError for another shape or kind, lips longer than the sound, and more than `MOST_BYTES`."""
        columns = len(shape) == 2 and shape[0] == SIDE * SIDE
        if not columns:
            _check_kind(shape, dtype, self.path)
        count, rate = shape[columns], self.fps or fps or (PAPER_FPS if columns else None)
        if self.longest is not None and rate and 0 < rate < np.inf:
            check_longest(count, rate, self.longest)
        if math.prod(shape) * dtype.itemsize > MOST_BYTES:
            raise InputError(
                f"{self.path}: lips of shape {shape} take {math.prod(shape) * dtype.itemsize / 1e9:.0f} GB: cut the "
                "recording into shorter ones"
            )


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


def check_longest(num_frames: int, fps: float, duration: float) -> None:
    """Refuse lips that go on for more than 0.25 s after the sound."""
    if num_frames / fps > duration + TOLERANCE + 1e-9:
        check_length(num_frames, fps, duration)


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


def _read_mat(path: Path, limit: Limit) -> dict[str, np.ndarray]:
    """Grey levels from NTCD-TIMIT's coefficients: each row an orthonormal 2-D DCT, column by column."""
    from scipy.fft import idctn

    def read(data: Any) -> np.ndarray:
        limit(data.shape[::-1], np.dtype(float), None)
        return data[()]

    rows: np.ndarray = _mat_data(path, read)
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
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as err:
        if isinstance(err, InputError):
            raise
        raise InputError(
            f"{path} cannot be read as MATLAB 7.3 (HDF5): save it again with -v7.3, or the lips as .npz"
        ) from err


def _read(path: Path, limit: Limit) -> dict[str, np.ndarray]:
    """The file's `lips` and `fps`; the array of a .npy as `lips`. Sizes are looked at before numbers are read."""
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                mapped = np.load(path, mmap_mode="r", allow_pickle=False)
                limit(mapped.shape, mapped.dtype, None)
                return {"lips": np.array(mapped)}
            with zipfile.ZipFile(file) as archive:
                return _read_archive(path, archive, limit)
    except InputError:
        raise
    except Exception as err:  # what numpy and zipfile stumble on in broken bytes can be anything
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise InputError(
            f"{path} cannot be read as .npz or .npy ({reason}): save the lips with numpy.savez"
        ) from err


def _read_archive(path: Path, archive: zipfile.ZipFile, limit: Limit) -> dict[str, np.ndarray]:
    keys = [name.removesuffix(".npy") for name in archive.namelist()]
    if "lips" not in keys:
        raise InputError(f"{path} has keys {sorted(keys)}, not 'lips': name the frames 'lips'")
    found: dict[str, np.ndarray] = {}
    for key in ("fps", "lips"):
        if key not in keys:
            continue
        name = f"{key}.npy" if f"{key}.npy" in archive.namelist() else key
        with archive.open(name) as member:
            shape, dtype = _header(member)
        if key == "lips":
            rate = found.get("fps")
            known = rate is not None and rate.size == 1 and rate.dtype.kind in "fiu"
            limit(shape, dtype, float(rate.item()) if known and rate is not None else None)
        elif math.prod(shape) > 1000:
            raise InputError(f"{path}: fps has shape {shape}: give one positive number, such as 25")
        with archive.open(name) as member:
            found[key] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array in numpy's format. Raises ValueError for another."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format
    header = read.read_array_header_1_0 if version == (1, 0) else read.read_array_header_2_0
    shape, _, dtype = header(file)
    return shape, dtype


def _check_kind(shape: tuple[int, ...], dtype: np.dtype, path: Path | str) -> None:
    if len(shape) != 3 or shape[1:] != (SIDE, SIDE):
        raise InputError(
            f"{path}: lips has shape {shape}: give (frame, 67, 67), or (4489, frame) with each column a picture "
            "flattened column by column"
        )
    if shape[0] == 0:
        raise InputError(f"{path}: lips has no frames: give at least one")
    if dtype.kind not in "fiu":
        raise InputError(f"{path}: lips is {dtype}: give uint8, or floating point in [0, 1]")


def _checked(frames: np.ndarray, path: Path | str) -> Shaped[np.ndarray, "frame 67 67"]:
    """Contiguous uint8 or float32 frames in range, or InputError."""
    _check_kind(frames.shape, frames.dtype, path)
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
