"""What stands in the folder of a training run, and how a killed run is found again."""

import json
from pathlib import Path

from torch import Tensor

from pyro_avse.files import make_folder, write_atomically
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.tensors import load_tensors

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "weights.safetensors"
LOG, CURVES = "log.jsonl", "curves.png"


def find_checkpoint(
    out: Path, settings: JSON, resume: bool
) -> tuple[dict[str, Tensor], JSON] | None:
    """The checkpoint to go on from, if any; makes the folder.

    Raises InputError for one that is not to be resumed, or that a recipe with other settings made, and for weights of
    no run that stands there: they may be those to start from.
    """
    make_folder(out)
    path = out / CHECKPOINT
    if not path.exists():
        if (out / WEIGHTS).exists():
            raise InputError(
                f"{out / WEIGHTS}: holds weights, but not the run that made them: choose another --out"
            )
        return None
    if not resume:
        raise InputError(
            f"{out}: holds a training run: go on with --resume, or choose another --out"
        )
    tensors, header = load_tensors(path)
    if header.get("recipe") != settings:
        raise InputError(f"{path}: was trained by another recipe: choose another --out")
    return tensors, header


def write_log(path: Path, history: list[JSON]) -> None:
    """A line an epoch, as JSON."""
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(path, lines.encode())
