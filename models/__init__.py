"""Speech priors: one file, one probabilistic program.

To add a model, write its file and its line in `MODELS`, whose keys are the names on the command line.
"""

if __name__ != "pyro_avse.models":
    raise ImportError("models/ is the package pyro_avse.models: import it under that name")

from torch import nn

from pyro_avse.models.a_vae import AVAE
from pyro_avse.models.min_vae import MINVAEv2
from pyro_avse.models.v_vae import VVAE

MODELS: dict[str, type[nn.Module]] = {
    "a_vae": AVAE,
    "v_vae": VVAE,
    "min_vae_v2": MINVAEv2,
}

__all__ = ["AVAE", "MODELS", "VVAE", "MINVAEv2"]
