"""Tensors and a JSON header in one safetensors file: what priors, guides and checkpoints are kept in.

The header stands under one key, "pyro_avse": the order of several is not reproducible.
"""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pyro_avse.files import write_atomically
from pyro_avse.typing import JSON, InputError

HEADER = "pyro_avse"


def save_tensors(path: Path, tensors: dict[str, Tensor], header: JSON) -> None:
    """Write tensors and a JSON header, beside and then renamed: a reader sees the old file or the new one."""
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
        metadata={HEADER: json.dumps(header)},
    )
    write_atomically(path, data)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], JSON]:
    """The tensors, on the CPU, and the JSON header of a file of `save_tensors`.

    Raises:
        InputError: no such file; not safetensors, or cut short; or not one of ours.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such weight file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}): copy it again, or train anew"
        ) from None
    if HEADER not in metadata:
        raise InputError(f"{path}: safetensors, but without pyro_avse's header: not our weights")
    try:
        header = json.loads(metadata[HEADER])
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise InputError(f"{path}: its header is no JSON object: copy it again, or train anew")
    return tensors, header


def load_state(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy tensors into a module's state, refusing missing, unknown and misshapen ones by name."""
    state = module.state_dict()
    for name in sorted(state.keys() ^ tensors.keys()):
        what = "lacks" if name in state else "has an unknown tensor"
        raise InputError(f"{path}: {what} {name!r}: weights of another model or version")
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            raise InputError(
                f"{path}: {name} is {tuple(tensor.shape)}, this model's is {tuple(state[name].shape)}"
            )
        state[name].copy_(tensor)
