"""V-VAE: speech inferred from the lips. [Sadeghi2021] (1), (2), (6); slides S13

Generative story, for each frame n:

    z_n ~ N(0, I)                                (2)    or N(mu, sigma I), learned, as in (10)
    s_n | z_n ~ N_c(0, diag sigma(z_n))          (1)

as for A-VAE, but the guide is the visual encoder (6), which sees the lips v_n and not the sound: whatever the lips do
not tell about a frame stays in its posterior's variance. One component; nothing is enumerated.
"""

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal
from pyro_avse.models.nets import Decoder, IsotropicPrior, VisualEncoder, standard_normal
from pyro_avse.typing import Codes, Power


class VVAE(nn.Module):
    """The video-only VAE: (1) and (2) as `model`, (6) as `guide`; S13.

    Args:
        num_freqs: F, frequencies of a frame.
        latent_dim: L.
        hidden: units of the encoder's last and of the decoder's hidden layer.
        features: units of the visual encoder's first layer.
        learned_prior: whether z's prior is a learned N(mu_v, sigma_v I) (10), as the paper's fair comparison asks.
    """

    num_components = 1
    uses_lips = True
    requires_lips = True
    components_see: tuple[bool, ...] = (False,)
    mixing_weight: Tensor

    def __init__(
        self,
        *,
        num_freqs: int = 513,
        latent_dim: int = 32,
        hidden: int = 128,
        features: int = 512,
        learned_prior: bool = False,
    ) -> None:
        super().__init__()
        self.num_freqs, self.latent_dim = num_freqs, latent_dim
        self.options = {
            "num_freqs": num_freqs,
            "latent_dim": latent_dim,
            "hidden": hidden,
            "features": features,
            "learned_prior": learned_prior,
        }
        self.visual_prior = IsotropicPrior(latent_dim) if learned_prior else None
        self.visual_encoder = VisualEncoder(features, hidden, latent_dim)
        self.decoder = Decoder(latent_dim, hidden, num_freqs)
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
            z = pyro.sample("z", self._prior())  # (2)
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
        with pyro.plate("frame", len(power)):
            pyro.sample("z", self.visual_encoder(lips))  # (6)

    def _prior(self) -> Independent:
        if self.visual_prior is None:
            return standard_normal(self.latent_dim, self.mixing_weight)
        return self.visual_prior()

    def visual_features(self, lips: Tensor | None) -> Tensor | None:
        """The lips as they are: prior and decoder do not look at them."""
        return lips

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """N(0, I) (2) or the learned prior: batch (1, 1), for any frame."""
        return self._prior().expand((1, 1))

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """q(z_n | v_n) (6): batch (1, ..., frame)."""
        return self.visual_encoder(None if lips is None else lips[None])

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """The visual encoder's mean: the lips carry no acoustic noise."""
        return self.visual_encoder(lips).mean

    def log_variance(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "1 *batch frame freq"]:
        return self.decoder(z)[None]
