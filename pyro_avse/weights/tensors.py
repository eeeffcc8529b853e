"""Tensors and a JSON header in one safetensors file: what priors, guides and checkpoints are kept in.

The header stands under one key, "pyro_avse": the order of several is not reproducible. It may be anyone's: what it
says is compared with the file's own list of shapes before a tensor is read or a network is built (`build`), so that a
file takes no more memory than its bytes are worth.

Most matrices may be stored as whole numbers from -127 to 127 (int8), a quarter of float32's size. The row i of NAME is
then NAME:scale_i times those of the file: no number is off by more than half of its scale, 1/254 of the row's largest.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pyro_avse.files import write_atomically
from pyro_avse.typing import JSON, InputError

HEADER = "pyro_avse"
SCALE = ":scale"
HEARS_POWER = "encoder.hidden.weight"
"""How names of matrices end that see |s|^2 itself: its frequencies differ by a million, int8 is too coarse for them."""
Shapes = dict[str, tuple[int, ...]]
Module = TypeVar("Module", bound=nn.Module)


def save_tensors(path: Path, tensors: dict[str, Tensor], header: JSON) -> None:
    """Write tensors and a JSON header, beside and then renamed: a reader sees the old file or the new one."""
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
        metadata={HEADER: json.dumps(header)},
    )
    write_atomically(path, data)


def load_tensors(
    path: Path, check: Callable[[JSON, Shapes], None] = lambda header, shapes: None
) -> tuple[dict[str, Tensor], JSON]:
    """The tensors, on the CPU, and the JSON header of a file of `save_tensors`.

    Args:
        check: told the header and the tensors' shapes before a tensor is read; refuses by InputError.

    Raises:
        InputError: no such file; not safetensors, or cut short; or not one of ours.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such weight file")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            header = _header(path, file.metadata() or {})
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            scales = _scales(path, shapes)
            check(header, {name: shapes[name] for name in names if name not in scales})
            tensors = {name: file.get_tensor(name) for name in names}
            for scale in scales:
                name = scale.removesuffix(SCALE)
                if tensors[name].dtype != torch.int8:
                    raise InputError(f"{path}: {name} has a scale and is no int8: copy it again")
                tensors[name] = tensors[name].float() * tensors.pop(scale)[:, None]
            return tensors, header
    except InputError:
        raise
    except (SafetensorError, OSError, UnicodeEncodeError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}): copy it again, or train anew"
        ) from None


def stored(tensors: dict[str, Tensor], *, half: bool, quarter: bool) -> dict[str, Tensor]:
    """Weights as they go into a file: as they are, as float16, or `in_quarters`."""
    if quarter:
        return in_quarters(tensors)
    return {name: tensor.half() for name, tensor in tensors.items()} if half else tensors


def in_quarters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 with a scale a row; those of `HEARS_POWER`, and all else, as float16."""
    packed = {}
    for name, tensor in tensors.items():
        packed[name] = tensor.half()
        if tensor.dim() == 2 and not name.endswith(HEARS_POWER):
            scale = tensor.float().abs().amax(1) / 127
            rows = tensor.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
            packed |= {name: rows.round().to(torch.int8), name + SCALE: scale}
    return packed


def _scales(path: Path, shapes: Shapes) -> set[str]:
    """Names of the scales, each beside a matrix of as many rows. Raises InputError for others."""
    scales = {name for name in shapes if name.endswith(SCALE)}
    for name in scales:
        matrix = shapes.get(name.removesuffix(SCALE), ())
        if len(matrix) != 2 or shapes[name] != matrix[:1]:
            raise InputError(
                f"{path}: {name} is {shapes[name]}, its matrix is {matrix}: copy it again"
            )
    return scales


def _header(path: Path, metadata: dict[str, str]) -> JSON:
    if HEADER not in metadata:
        raise InputError(f"{path}: safetensors, but without pyro_avse's header: not our weights")
    try:
        header = json.loads(metadata[HEADER])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise InputError(f"{path}: its header is no JSON object: copy it again, or train anew")
    return header


def build(
    make: Callable[[], Module], options: JSON, shapes: Shapes, path: Path, what: str
) -> Module:
    """The network that a header's options describe, once its shapes, made without numbers, are those of the file.

    Raises:
        InputError: options that make no such network; missing, unknown, misshapen or empty tensors, by name.
    """
    largest = max([len(shapes), *(size for shape in shapes.values() for size in shape)])
    try:
        for name, size in _sizes(options):
            if size > largest:
                raise InputError(f"{name} is {size:.6g}, no tensor of the file is as large")
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in make().state_dict().items()}
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = f"{str(error) or type(error).__name__:.200}".splitlines()[0]
        raise InputError(f"{path}: its header fits no {what} of this version ({reason})") from None
    compare_shapes(expected, shapes, path)
    return make()


def _sizes(options: JSON) -> Iterator[tuple[str, int]]:
    """Every whole number of the options, and its name."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _sizes(value)
        elif isinstance(value, int):
            yield name, value


def compare_shapes(expected: Shapes, found: Shapes, path: Path) -> None:
    """Refuse missing, unknown, misshapen and empty tensors by name."""
    for name in sorted(expected.keys() ^ found.keys()):
        known = "lacks" if name in expected else "has an unknown tensor"
        raise InputError(f"{path}: {known} {name!r}: weights of another model or version")
    for name, shape in found.items():
        if shape != expected[name]:
            raise InputError(f"{path}: {name} is {shape}, this model's is {expected[name]}")
        if 0 in shape:
            raise InputError(f"{path}: {name} is {shape}, without numbers: no trained weights")


def load_state(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy tensors into a module's state, refusing missing, unknown and misshapen ones, and no numbers, by name."""
    state = module.state_dict()
    compare_shapes(
        {name: tuple(t.shape) for name, t in state.items()},
        {name: tuple(t.shape) for name, t in tensors.items()},
        path,
    )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != state[name].is_floating_point() or tensor.is_complex():
            kinds = f"{tensor.dtype}, this model's is {state[name].dtype}".replace("torch.", "")
            raise InputError(f"{path}: {name} is {kinds}: save it again")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinity: copy it again, or train anew")
        state[name].copy_(tensor)
