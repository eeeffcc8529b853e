"""Test-time inference: one file, one algorithm.

To add a kernel or a scheme, write its file and its line here; the keys are the names on the command line.
"""

if __name__ != "pyro_avse.inference":
    raise ImportError("inference/ is the package pyro_avse.inference: import it under that name")

from collections.abc import Callable

from pyro_avse.inference.adaptation import DualAveraging, RobbinsMonro
from pyro_avse.inference.amortised_vem import AmortisedVEM
from pyro_avse.inference.auto_normal import AutoNormal
from pyro_avse.inference.blocks import Blocks
from pyro_avse.inference.bnmf import BNMF
from pyro_avse.inference.collapsed_vem import CollapsedVEM
from pyro_avse.inference.elliptical_slice import EllipticalSlice
from pyro_avse.inference.gibbs import Gibbs
from pyro_avse.inference.gpeem import GPEEM
from pyro_avse.inference.guided import Guided
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.importance import Importance
from pyro_avse.inference.independence import Independence
from pyro_avse.inference.ldem import LDEM
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.mcem import MCEM
from pyro_avse.inference.nuts import NUTS
from pyro_avse.inference.pcn import PCN
from pyro_avse.inference.peem import PEEM
from pyro_avse.inference.pyro_kernel import PyroKernel
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import run_chains
from pyro_avse.inference.ula import ULA
from pyro_avse.inference.vem import VEM
from pyro_avse.typing import Kernel, Scheme

KERNELS: dict[str, Callable[..., Kernel]] = {
    "random_walk": RandomWalk,
    "pcn": PCN,
    "elliptical_slice": EllipticalSlice,
    "mala": MALA,
    "ula": ULA,
    "hmc": HMC,
    "independence": Independence,
    "gibbs": Gibbs,
    "blocks": Blocks,
}
SCHEMES: dict[str, Callable[..., Scheme]] = {
    "vem": VEM,
    "collapsed_vem": CollapsedVEM,
    "mcem": MCEM,
    "peem": PEEM,
    "gpeem": GPEEM,
    "ldem": LDEM,
    "guided": Guided,
    "bnmf": BNMF,
    "amortised_vem": AmortisedVEM,
    "importance": Importance,
    "nuts": NUTS,
    "auto_normal": AutoNormal,
}

__all__ = [
    "BNMF",
    "GPEEM",
    "HMC",
    "KERNELS",
    "LDEM",
    "MALA",
    "MCEM",
    "NUTS",
    "PCN",
    "PEEM",
    "SCHEMES",
    "ULA",
    "VEM",
    "AmortisedVEM",
    "AutoNormal",
    "Blocks",
    "CollapsedVEM",
    "DualAveraging",
    "EllipticalSlice",
    "Gibbs",
    "Guided",
    "Importance",
    "Independence",
    "PyroKernel",
    "RandomWalk",
    "RobbinsMonro",
    "run_chains",
]
