"""Lips of any file: arrays, or the mouth of the face that a video shows."""

import os
from pathlib import Path

from pyro_avse.data.lips.lips import Lips, lips_from_array, read_lips
from pyro_avse.files import VIDEOS
from pyro_avse.typing import InputError


def load_lips(
    path: str | os.PathLike[str], *, fps: float | None = None, longest: float | None = None
) -> Lips:
    """Read lip frames from .npz, .npy, .mat or a video; `fps` overrides what the file says.

    `longest`: seconds of the sound that they go with; arrays that are longer are refused by their header, unread.

    .npz: keys `lips` (frame, 67, 67) and `fps`. .npy: (frame, 67, 67), where `fps` must be given,
    or the papers' (4489, frame), each column a picture flattened column by column, at 30 fps.
    .mat: NTCD-TIMIT's HDF5, `data` (frame, 4489), at 30 fps. A video: the mouth of the face in it
    (`pyro_avse.data.lips.watch`), kept in a cache.
    Raises InputError, in one line that names the file: missing or not such a file, a key or the
    frame rate missing, another shape, no frames, grey levels that are neither 0..255 in an integer
    type nor [0, 1] in floating point, a frame rate that is not positive and finite.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise InputError(f"{path} is no file: name a .npz, .npy, .mat or video of the lips")
    if path.suffix.lower() in VIDEOS:
        from pyro_avse.data.lips.watch import watch_cached  # PyAV and OpenCV take a while to load

        seen = watch_cached(path)
        return seen if fps is None else lips_from_array(seen.frames, fps)
    return read_lips(path, fps=fps, longest=longest)
