"""Speech priors: one file, one probabilistic program.

To add a model, write its file and its line in `MODELS`, whose keys are the names on the command line.
"""

if __name__ != "pyro_avse.models":
    raise ImportError("models/ is the package pyro_avse.models: import it under that name")

from torch import nn

from pyro_avse.models.a_vae import AVAE
from pyro_avse.models.av_vae import AVVAE
from pyro_avse.models.dkf import AVDKF, DKF
from pyro_avse.models.dsae import AVDSAE, DSAE
from pyro_avse.models.hit_dvae import AVHiTDVAE, HiTDVAE
from pyro_avse.models.min_vae import MINVAEv1, MINVAEv2
from pyro_avse.models.min_vae_v3 import MINVAEv3
from pyro_avse.models.rvae import AVRVAE, RVAE
from pyro_avse.models.srnn import AVSRNN, SRNN
from pyro_avse.models.storn import AVSTORN, STORN
from pyro_avse.models.switching import Switching
from pyro_avse.models.v_vae import VVAE
from pyro_avse.models.vae_mm import VAEMM
from pyro_avse.models.vrnn import AVVRNN, VRNN

MODELS: dict[str, type[nn.Module]] = {
    "a_vae": AVAE,
    "v_vae": VVAE,
    "av_vae": AVVAE,
    "min_vae_v1": MINVAEv1,
    "min_vae_v2": MINVAEv2,
    "min_vae_v3": MINVAEv3,
    "vae_mm": VAEMM,
    "switching": Switching,
    "rvae": RVAE,
    "av_rvae": AVRVAE,
    "dkf": DKF,
    "av_dkf": AVDKF,
    "srnn": SRNN,
    "av_srnn": AVSRNN,
    "hit_dvae": HiTDVAE,
    "av_hit_dvae": AVHiTDVAE,
    "vrnn": VRNN,
    "av_vrnn": AVVRNN,
    "storn": STORN,
    "av_storn": AVSTORN,
    "dsae": DSAE,
    "av_dsae": AVDSAE,
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
