"""MIN-VAE v3: an A-VAE and a V-VAE that share a decoder, trained in turn. [Sadeghi2021] Sec. IV-A, Table I

Generative story, for each frame n:

    z_n ~ N(mu, sigma I)                         learned, as one component of (10)
    s_n | z_n ~ N_c(0, diag sigma(z_n))          (1)

and the guide is the audio encoder (3) or the visual one (6), by epochs in turn: the paper's baseline that shares as
MIN-VAE does and mixes nothing. No alpha_n and no pi: `active_encoder` says whose turn it is, and whoever trains sets
it. At test time the visual encoder starts the chain, and the posterior of z_n contains no lips.
"""

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal
from pyro_avse.models.nets import AudioEncoder, Decoder, IsotropicPrior, VisualEncoder
from pyro_avse.typing import Codes, Power


class MINVAEv3(nn.Module):
    """MIN-VAE v3: (1) under one learned prior as `model`, (3) or (6) as `guide`.

    Args:
        num_freqs: F, frequencies of a frame.
        latent_dim: L.
        hidden: units of the hidden layers next to z.
        features: units of the visual encoder's first layer.

    Attributes:
        active_encoder: the one of `alternate` that `guide` and `encode` use, and that therefore learns.
    """

    num_components = 1
    uses_lips = True
    requires_lips = False
    components_see: tuple[bool, ...] = (False,)
    alternate = ("audio_encoder", "visual_encoder")
    mixing_weight: Tensor

    def __init__(
        self,
        *,
        num_freqs: int = 513,
        latent_dim: int = 32,
        hidden: int = 128,
        features: int = 512,
    ) -> None:
        super().__init__()
        self.num_freqs, self.latent_dim = num_freqs, latent_dim
        self.options = {
            "num_freqs": num_freqs,
            "latent_dim": latent_dim,
            "hidden": hidden,
            "features": features,
        }
        self.active_encoder = self.alternate[0]
        self.prior = IsotropicPrior(latent_dim)
        self.decoder = Decoder(latent_dim, hidden, num_freqs)
        self.audio_encoder = AudioEncoder(num_freqs, hidden, latent_dim)
        self.visual_encoder = VisualEncoder(features, hidden, latent_dim)
        self.register_buffer("mixing_weight", torch.ones(1))

    def model(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        with pyro.plate("frame", len(power)):
            z = pyro.sample("z", self.prior())  # (10), one component
            s = ComplexNormal(0, self.decoder(z)).to_event(1)  # (1)
            pyro.sample("s", s, obs=power.sqrt())  # N_c(0, .) sees |s| alone

    def guide(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        heard = power if encoder_power is None else encoder_power
        with pyro.plate("frame", len(power)):
            pyro.sample("z", self._active(heard, lips))  # (3) or (6)

    def _active(self, power: Power, lips: Tensor | None) -> Independent:
        if self.active_encoder == "visual_encoder":
            return self.visual_encoder(lips)
        return self.audio_encoder(power)

    def visual_features(self, lips: Tensor | None) -> Tensor | None:
        """The lips as they are: prior and decoder do not look at them."""
        return lips

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """N(mu, sigma I): batch (1, 1), for any frame."""
        return self.prior().expand((1, 1))

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """The active encoder's q(z_n | s_n) or q(z_n | v_n): batch (1, ..., frame)."""
        return self._active(power[None], None if lips is None else lips[None])

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """The visual encoder's mean, since lips carry no acoustic noise; without lips the audio encoder's."""
        if lips is None:
            return self.audio_encoder(power).mean
        return self.visual_encoder(lips).mean

    def log_variance(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "1 *batch frame freq"]:
        return self.decoder(z)[None]
