"""MIN-VAE: a mixture of an audio and a visual inference network. [Sadeghi2021] (9)-(14)

Generative story, for each frame n:

    alpha_n ~ Cat(pi, 1 - pi)                        (11)   component 0 is audio: the paper's alpha_n = 1
    z_n | alpha_n ~ N(mu_k, sigma_k I)               (10)   k = a or v, learned
    s_n | z_n ~ N_c(0, diag sigma(z_n, v_n))         (9)    v1: one decoder for both components
    s_n | z_n ~ N_c(0, diag sigma(z_n))                     v2: the same without the lips

The guide is q(z_n | s_n, alpha_n; v_n) r(alpha_n) (14): alpha_n chooses the audio encoder or the visual one (13), and
r(alpha_n) is in closed form (22), or held at a table of responsibilities. alpha_n is enumerated, never sampled.

v2 also enhances without lips, since its posterior of z_n does not contain them. v1's visual encoder and its decoder's
embedding of the lips are networks of their own, so that one can start from a V-VAE and the other from an AV-VAE.
"""

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Independent, Normal
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal
from pyro_avse.models.mixture import (
    component_negative_elbo,
    select_component,
    update_responsibilities,
)
from pyro_avse.models.nets import (
    AudioEncoder,
    AudioVisualDecoder,
    Decoder,
    IsotropicPrior,
    LipsEmbedding,
    VisualEncoder,
    diagonal_normal,
)
from pyro_avse.typing import Codes, Power


class MINVAEv2(nn.Module):
    """MIN-VAE v2, whose decoder does not see the lips: (9)-(11) as `model`, (13)-(14) as `guide`; S28.

    The ELBO of the pair, alpha_n enumerated, is (17).

    Args:
        num_freqs: F, frequencies of a frame.
        latent_dim: L.
        hidden: units of the hidden layers next to z.
        features: units of the visual encoder's first layer.
    """

    num_components = 2
    uses_lips = True
    requires_lips = False
    components_see: tuple[bool, ...] = (False, False)
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
        self.audio_prior = IsotropicPrior(latent_dim)
        self.visual_prior = IsotropicPrior(latent_dim)
        self.decoder: nn.Module = Decoder(latent_dim, hidden, num_freqs)
        self.audio_encoder = AudioEncoder(num_freqs, hidden, latent_dim)
        self.visual_encoder = VisualEncoder(features, hidden, latent_dim)
        self.register_buffer("mixing_weight", torch.full((2,), 0.5))

    def model(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        prior = self.latent_prior(lips)
        with pyro.plate("frame", len(power)):
            alpha = pyro.sample("alpha", Categorical(self.mixing_weight))  # (11)
            mean, scale = (select_component(p, alpha) for p in (prior.mean, prior.base_dist.scale))
            z = pyro.sample("z", Normal(mean, scale).to_event(1))  # (10)
            s = ComplexNormal(0, self.log_variance(z, lips)[0]).to_event(1)  # (9)
            pyro.sample("s", s, obs=power.sqrt())  # N_c(0, .) sees |s| alone

    def guide(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        q = self.encode(power if encoder_power is None else encoder_power, lips)
        if responsibilities is None:
            with torch.no_grad():
                J = component_negative_elbo(self, power, lips, encoder_power=encoder_power)
                responsibilities = update_responsibilities(J, self.mixing_weight)  # (22)
        r = Categorical(responsibilities.detach().movedim(0, -1))
        with pyro.plate("frame", len(power)):
            alpha = pyro.sample("alpha", r, infer={"enumerate": "parallel"})
            mean, scale = (select_component(p, alpha) for p in (q.mean, q.base_dist.scale))  # (13)
            pyro.sample("z", Normal(mean, scale).to_event(1))  # (14)

    def visual_features(self, lips: Tensor | None) -> Tensor | None:
        """The lips as they are: prior and decoder do not look at them."""
        return lips

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """N(mu_a, sigma_a I) and N(mu_v, sigma_v I) (10): batch (2, 1), for any frame."""
        a, v = self.audio_prior, self.visual_prior
        mean = torch.stack([a.mean, v.mean])[:, None]
        return diagonal_normal(mean, torch.stack([a.log_variance, v.log_variance])[:, None])

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """q(z_n | s_n) and q(z_n | v_n) (13): batch (2, ..., frame)."""
        a, v = self.audio_encoder(power), self.visual_encoder(lips)
        mean = torch.stack([a.mean, v.mean])
        scale = torch.stack([a.base_dist.scale, v.base_dist.scale])
        return Normal(mean, scale).to_event(1)

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """The visual encoder's mean, since lips carry no acoustic noise; without lips the audio encoder's."""
        if lips is None:
            return self.audio_encoder(power).mean
        return self.visual_encoder(lips).mean

    def log_variance(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "1 *batch frame freq"]:
        return self.decoder(z)[None]


class MINVAEv1(MINVAEv2):
    """MIN-VAE v1: v2 with a decoder that sees the lips, through an embedding as AV-VAE's; (9), S28.

    Args:
        num_freqs, latent_dim, hidden, features: as in v2; `features` of the embedding too.
        embedding: M, numbers in v_n, the decoder's view of the lips.

    Raises:
        InputError: an embedding of 67.
    """

    requires_lips = True
    components_see: tuple[bool, ...] = (True, True)

    def __init__(
        self,
        *,
        num_freqs: int = 513,
        latent_dim: int = 32,
        hidden: int = 128,
        features: int = 512,
        embedding: int = 128,
    ) -> None:
        super().__init__(
            num_freqs=num_freqs, latent_dim=latent_dim, hidden=hidden, features=features
        )
        self.options["embedding"] = embedding
        self.embedding = LipsEmbedding(features, embedding)
        self.decoder = AudioVisualDecoder(latent_dim, embedding, hidden, num_freqs)

    def visual_features(self, lips: Tensor | None) -> Tensor:
        """v_n, (..., frame, embedding), which `log_variance` takes in place of the pictures."""
        return self.embedding(lips)

    def log_variance(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "1 *batch frame freq"]:
        return self.decoder(z, self.embedding(lips))[None]
