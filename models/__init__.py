"""Speech priors: one file, one probabilistic program.

To add a model, write its file and its line in `MODELS`, whose keys are the names on the command line.
"""

if __name__ != "pyro_avse.models":
    raise ImportError("models/ is the package pyro_avse.models: import it under that name")

from torch import nn

from pyro_avse.models.a_vae import AVAE
from pyro_avse.models.av_vae import AVVAE
from pyro_avse.models.min_vae import MINVAEv1, MINVAEv2
from pyro_avse.models.min_vae_v3 import MINVAEv3
from pyro_avse.models.switching import Switching
from pyro_avse.models.v_vae import VVAE
from pyro_avse.models.vae_mm import VAEMM

MODELS: dict[str, type[nn.Module]] = {
    "a_vae": AVAE,
    "v_vae": VVAE,
    "av_vae": AVVAE,
    "min_vae_v1": MINVAEv1,
    "min_vae_v2": MINVAEv2,
    "min_vae_v3": MINVAEv3,
    "vae_mm": VAEMM,
    "switching": Switching,
}

__all__ = [
    "AVAE",
    "AVVAE",
    "MODELS",
    "VAEMM",
    "VVAE",
    "MINVAEv1",
    "MINVAEv2",
    "MINVAEv3",
    "Switching",
]
