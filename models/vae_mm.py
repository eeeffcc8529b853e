"""VAE-MM: a mixture of a trained A-VAE and a trained AV-VAE. Slides S21-S27

Generative story, for each frame n:

    alpha_n ~ Cat(pi, 1 - pi)                                   component 0 is audio: alpha_n = 1 of S21
    z_n | alpha_n ~ N(0, I) or N(mu(v_n), diag sigma(v_n))      A-VAE's prior (2), or its learned one; AV-VAE's (8)
    s_n | z_n, alpha_n ~ N_c(0, diag sigma_k(z_n, v_n))         A-VAE's decoder (1), AV-VAE's (7): S21

Each component keeps its own decoder, so where the lips are bad r(alpha_n) leaves the audio-visual one. Nothing is
trained here: both networks come from weight files, pi is even, and enhancement learns it for each recording. `model`
and `guide` are a Pyro pair all the same, alpha_n enumerated, with r(alpha_n) as in MIN-VAE.
"""

from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Independent, Normal
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal
from pyro_avse.models.a_vae import AVAE
from pyro_avse.models.av_vae import AVVAE
from pyro_avse.models.mixture import (
    component_negative_elbo,
    select_component,
    update_responsibilities,
)
from pyro_avse.typing import Codes, InputError, Power


class VAEMM(nn.Module):
    """The mixture of an A-VAE and an AV-VAE: S21 as `model`, their encoders as `guide`.

    Args:
        audio: options of the `AVAE`.
        audio_visual: options of the `AVVAE`.

    Raises:
        InputError: the two differ in frequencies or in the size of z.
    """

    num_components = 2
    uses_lips = True
    requires_lips = False
    components_see: tuple[bool, ...] = (False, True)
    mixing_weight: Tensor

    def __init__(
        self, *, audio: dict[str, Any] | None = None, audio_visual: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.audio, self.audio_visual = AVAE(**(audio or {})), AVVAE(**(audio_visual or {}))
        for size in ("num_freqs", "latent_dim"):
            a, v = getattr(self.audio, size), getattr(self.audio_visual, size)
            if a != v:
                raise InputError(f"{size} is {a} in audio and {v} in audio_visual: take one size")
        self.num_freqs, self.latent_dim = self.audio.num_freqs, self.audio.latent_dim
        self.options = {"audio": self.audio.options, "audio_visual": self.audio_visual.options}
        self.register_buffer("mixing_weight", torch.full((2,), 0.5))

    @property
    def without_lips(self) -> AVAE:
        """What enhances where there are no lips at all: r(alpha_n) held at audio."""
        return self.audio

    def model(
        self,
        power: Float[Tensor, "frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        v = self.visual_features(lips)
        prior = self.latent_prior(v)
        with pyro.plate("frame", len(power)):
            alpha = pyro.sample("alpha", Categorical(self.mixing_weight))
            mean, scale = (select_component(p, alpha) for p in (prior.mean, prior.base_dist.scale))
            z = pyro.sample("z", Normal(mean, scale).to_event(1))  # (2), (8)
            log_variance = select_component(self.log_variance(z, v), alpha)
            s = ComplexNormal(0, log_variance).to_event(1)  # (1), (7)
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
            mean, scale = (select_component(p, alpha) for p in (q.mean, q.base_dist.scale))
            pyro.sample("z", Normal(mean, scale).to_event(1))  # (3), S14

    def visual_features(self, lips: Tensor | None) -> Tensor:
        """AV-VAE's v_n, (..., frame, embedding), which every method takes in place of the pictures."""
        return self.audio_visual.visual_features(lips)

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """A-VAE's prior and p(z_n | v_n): batch (2, ..., frame)."""
        return stacked(self.audio.latent_prior(None), self.audio_visual.latent_prior(lips))

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """q(z_n | s_n) and q(z_n | s_n, v_n): batch (2, ..., frame)."""
        return stacked(self.audio.encode(power, None), self.audio_visual.encode(power, lips))

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """Each component's own start, weighted by pi."""
        codes = self.audio.initial_codes(power, None), self.audio_visual.initial_codes(power, lips)
        return torch.tensordot(self.mixing_weight, torch.stack(codes), 1)

    def log_variance(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "2 *batch frame freq"]:
        a, v = self.audio.log_variance(z, None), self.audio_visual.log_variance(z, lips)
        return torch.cat([a, v])


def stacked(*parts: Independent) -> Independent:
    """Gaussians of batch (1, ..., frame), or broadcasting to it, as the components of one: (component, ..., frame)."""
    means = torch.broadcast_tensors(*(part.mean[0] for part in parts))
    scales = torch.broadcast_tensors(*(part.base_dist.scale[0] for part in parts))
    return Normal(torch.stack(means), torch.stack(scales)).to_event(1)
