"""Unsupervised audio-visual speech enhancement as probabilistic programs.

    enhanced = pyro_avse.enhance(mixture, lips, fps)       # a noisy recording in, speech and noise out
    pyro_avse.train(recipe, data=[folder], out=folder)     # a speech prior from clean speech

Start reading at `pyro_avse.typing`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_avse.enhancer import Enhanced as Enhanced
    from pyro_avse.enhancer import Enhancer as Enhancer
    from pyro_avse.enhancer import enhance as enhance
    from pyro_avse.errors import InputError as InputError
    from pyro_avse.recipe import load_recipe as load_recipe
    from pyro_avse.training import train as train

__version__ = "0.1.0"
__all__ = ["Enhanced", "Enhancer", "InputError", "enhance", "load_recipe", "train"]

_HOME = {
    "Enhanced": "enhancer",
    "Enhancer": "enhancer",
    "InputError": "errors",
    "enhance": "enhancer",
    "load_recipe": "recipe",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Load torch only once something needs it: `pyro-avse --help` does not."""
    if name not in _HOME:
        raise AttributeError(f"module 'pyro_avse' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"pyro_avse.{_HOME[name]}"), name)
