"""AV-VAE: speech conditioned on the lips throughout, a conditional VAE. [Sadeghi2021] (7), (8); slides S14, S15

Generative story, for each frame n, with the lips' embedding v_n:

    z_n | v_n ~ N(mu(v_n), diag sigma(v_n))              (8)
    s_n | z_n, v_n ~ N_c(0, diag sigma(z_n, v_n))        (7)

and the guide is an encoder that sees both, q(z_n | s_n, v_n). At test time z_n is moved by its prior, which the bound
alone never asks to make speech; so S15 gives a share `prior_weight` of the loss to codes drawn from the prior:

    prior_weight E_{p(z|v)} log p(s | z, v) + (1 - prior_weight) [E_q log p(s | z, v) - KL(q || p(z | v))]

It is the bound (17) of two components that share prior and decoder, with the "encoders" p(z | v) and q(z | s, v) and
r(alpha_n) = p(alpha_n) = (prior_weight, 1 - prior_weight) held: the first divergence and that of alpha vanish. So
alpha_n chooses where z_n is drawn in the guide, and chooses nothing in the model. At prior_weight 0 or 1 one term is
left, and no alpha_n.
"""

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Independent, Normal
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal
from pyro_avse.models.mixture import select_component
from pyro_avse.models.nets import (
    AudioVisualDecoder,
    AudioVisualEncoder,
    LipsEmbedding,
    LipsPrior,
)
from pyro_avse.typing import Codes, InputError, Power


class AVVAE(nn.Module):
    """The audio-visual VAE (CVAE): (7) and (8) as `model`, q(z | s, v) as `guide`; S14, trained by S15.

    Args:
        num_freqs: F, frequencies of a frame.
        latent_dim: L.
        hidden: units of the prior's, the encoder's and the decoder's hidden layer.
        features: units of the embedding's first layer.
        embedding: M, units of its second; v_n has so many numbers.
        prior_weight: alpha of S15, in [0, 1].

    Raises:
        InputError: `prior_weight` outside [0, 1], or an embedding of 67.
    """

    num_components = 1
    uses_lips = True
    requires_lips = True
    components_see: tuple[bool, ...] = (True,)
    mixing_weight: Tensor

    def __init__(
        self,
        *,
        num_freqs: int = 513,
        latent_dim: int = 32,
        hidden: int = 128,
        features: int = 512,
        embedding: int = 128,
        prior_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= prior_weight <= 1:
            raise InputError(f"prior_weight is {prior_weight}: give a share from 0 to 1")
        self.num_freqs, self.latent_dim, self.prior_weight = num_freqs, latent_dim, prior_weight
        self.options = {
            "num_freqs": num_freqs,
            "latent_dim": latent_dim,
            "hidden": hidden,
            "features": features,
            "embedding": embedding,
            "prior_weight": prior_weight,
        }
        self.embedding = LipsEmbedding(features, embedding)
        self.prior = LipsPrior(embedding, hidden, latent_dim)
        self.decoder = AudioVisualDecoder(latent_dim, embedding, hidden, num_freqs)
        self.encoder = AudioVisualEncoder(num_freqs, embedding, hidden, latent_dim)
        self.register_buffer("mixing_weight", torch.ones(1))

    def model(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        v = self.embedding(lips)
        with pyro.plate("frame", len(power)):
            if 0 < self.prior_weight < 1:
                pyro.sample(
                    "alpha", Categorical(self._weights(power))
                )  # S15; no site depends on it
            z = pyro.sample("z", self.prior(v))  # (8)
            s = ComplexNormal(0, self.decoder(z, v)).to_event(1)  # (7)
            pyro.sample("s", s, obs=power.sqrt())  # N_c(0, .) sees |s| alone

    def guide(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        v = self.embedding(lips)
        heard = power if encoder_power is None else encoder_power
        p, q = self.prior(v), self.encoder(heard, v)
        with pyro.plate("frame", len(power)):
            if 0 < self.prior_weight < 1:
                r = Categorical(self._weights(power))  # S15: held at p(alpha_n)
                alpha = pyro.sample("alpha", r, infer={"enumerate": "parallel"})
                mean = select_component(torch.stack([p.mean, q.mean]), alpha)
                scale = select_component(torch.stack([p.base_dist.scale, q.base_dist.scale]), alpha)
                pyro.sample("z", Normal(mean, scale).to_event(1))
            else:
                pyro.sample("z", p if self.prior_weight else q)

    def _weights(self, like: Tensor) -> Tensor:
        return like.new_tensor([self.prior_weight, 1 - self.prior_weight])

    def visual_features(self, lips: Tensor | None) -> Tensor:
        """v_n, (..., frame, embedding), which every method takes in place of the pictures."""
        return self.embedding(lips)

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """p(z_n | v_n) (8): batch (1, ..., frame)."""
        return self.prior(self.embedding(lips)[None])

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """q(z_n | s_n, v_n) of S14: batch (1, ..., frame)."""
        return self.encoder(power[None], self.embedding(lips))

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """The encoder's mean given the noisy power and the lips."""
        return self.encoder(power, self.embedding(lips)).mean

    def log_variance(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "1 *batch frame freq"]:
        return self.decoder(z, self.embedding(lips))[None]
