"""Unsupervised audio-visual speech enhancement as probabilistic programs.

    enhanced = pyro_avse.enhance(mixture, lips, fps)        # a noisy recording in, speech and noise out
    pyro_avse.enhance_file("noisy.wav", "speech.wav")       # the same of files
    prior, stft = pyro_avse.load("min_vae_v2")              # a trained speech prior and the STFT it was trained on
    pyro_avse.train(recipe, data=[folder], out=folder)      # a speech prior from clean speech

Start reading at `pyro_avse.typing`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_avse.citing import cite as cite
    from pyro_avse.enhancement.enhanced import Enhanced as Enhanced
    from pyro_avse.enhancement.enhancer import Enhancer as Enhancer
    from pyro_avse.enhancement.enhancer import enhance as enhance
    from pyro_avse.enhancement.file import enhance_file as enhance_file
    from pyro_avse.enhancement.separate import Separated as Separated
    from pyro_avse.enhancement.separate import Separator as Separator
    from pyro_avse.enhancement.separate import separate as separate
    from pyro_avse.enhancement.separate_file import separate_file as separate_file
    from pyro_avse.errors import InputError as InputError
    from pyro_avse.training.recipe import load_recipe as load_recipe
    from pyro_avse.training.stages import train as train
    from pyro_avse.weights.checkpoint import load_prior as load

__version__ = "0.1.0"

_HOME = {
    "Enhanced": ("enhancement.enhanced", "Enhanced"),
    "Enhancer": ("enhancement.enhancer", "Enhancer"),
    "InputError": ("errors", "InputError"),
    "Separated": ("enhancement.separate", "Separated"),
    "Separator": ("enhancement.separate", "Separator"),
    "cite": ("citing", "cite"),
    "enhance": ("enhancement.enhancer", "enhance"),
    "enhance_file": ("enhancement.file", "enhance_file"),
    "load": ("weights.checkpoint", "load_prior"),
    "load_recipe": ("training.recipe", "load_recipe"),
    "separate": ("enhancement.separate", "separate"),
    "separate_file": ("enhancement.separate_file", "separate_file"),
    "train": ("training.stages", "train"),
}
__all__ = [
    "Enhanced",
    "Enhancer",
    "InputError",
    "Separated",
    "Separator",
    "cite",
    "enhance",
    "enhance_file",
    "load",
    "load_recipe",
    "separate",
    "separate_file",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load torch only once something needs it: `pyro-avse --help` does not."""
    if name not in _HOME:
        raise AttributeError(f"module 'pyro_avse' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOME[name]
    return getattr(import_module(f"pyro_avse.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
