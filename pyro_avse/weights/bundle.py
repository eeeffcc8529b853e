"""Put trained weights into the bundle: python -m pyro_avse.weights.bundle NAME FILE.

A model that its card assembles from others keeps what it learned itself; of any other the file is copied as it is.
"""

import sys
from pathlib import Path

from pyro_avse.files import write_atomically
from pyro_avse.weights.cards import FOLDER
from pyro_avse.weights.checkpoint import bundled_parts
from pyro_avse.weights.tensors import load_tensors, save_tensors


def bundle(name: str, weights: Path, folder: Path = FOLDER) -> None:
    """Write the bundled weights of a model that has a card, from those of its training."""
    path, parts = folder / f"{name}.safetensors", bundled_parts(name)
    if not parts:
        write_atomically(path, weights.read_bytes())
        return
    tensors, header = load_tensors(weights)
    of_parts = tuple(f"{part}." for part in parts)
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(of_parts)}
    save_tensors(path, own, header)


if __name__ == "__main__":
    bundle(sys.argv[1], Path(sys.argv[2]))
