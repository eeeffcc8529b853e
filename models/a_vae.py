"""A-VAE: speech alone. [Sadeghi2021] (1)-(5); slides S2, S12

Generative story, for each frame n:

    z_n ~ N(0, I)                                (2)
    s_n | z_n ~ N_c(0, diag sigma(z_n))          (1)

and the audio encoder (3) is the guide. One component; nothing is enumerated.
"""

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal
from pyro_avse.models.nets import AudioEncoder, Decoder, standard_normal
from pyro_avse.typing import Codes, Power


class AVAE(nn.Module):
    """The audio-only VAE: the generative story of (1) and (2), S2, as `model` and (3) as `guide`; S12.

    Args:
        num_freqs: F, frequencies of a frame.
        latent_dim: L.
        hidden: units of the encoder's and the decoder's hidden layer.
    """

    num_components = 1
    uses_lips = False
    requires_lips = False
    mixing_weight: Tensor

    def __init__(self, *, num_freqs: int = 513, latent_dim: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.num_freqs, self.latent_dim = num_freqs, latent_dim
        self.options = {"num_freqs": num_freqs, "latent_dim": latent_dim, "hidden": hidden}
        self.audio_encoder = AudioEncoder(num_freqs, hidden, latent_dim)
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
            z = pyro.sample("z", standard_normal(self.latent_dim, power))  # (2)
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
            pyro.sample("z", self.audio_encoder(heard))  # (3)

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """N(0, I) (2): batch (1, 1), for any frame."""
        return standard_normal(self.latent_dim, self.mixing_weight).expand((1, 1))

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """q(z_n | s_n) (3): batch (1, ..., frame)."""
        return self.audio_encoder(power[None])

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """The audio encoder's mean given the noisy power."""
        return self.audio_encoder(power).mean

    def log_variance(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "1 *batch frame freq"]:
        return self.decoder(z)[None]
