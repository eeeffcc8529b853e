"""VAE-MM: a mixture of whole trained models; in the paper an A-VAE and an AV-VAE. Slides S21-S27

Generative story, for each frame n:

    alpha_n ~ Cat(pi)                              component 0 is audio: alpha_n = 1 of S21
    z_n | alpha_n ~ N(mu_k, diag sigma_k)          N(0, I) or learned (A-VAE, V-VAE): (2), (10); mu(v_n) of AV-VAE: (8)
    s_n | z_n, alpha_n ~ N_c(0, diag sigma_k(z_n, v_n))    each model's own decoder (1), (7): S21

Each component keeps its own decoder, so where the lips are bad r(alpha_n) leaves those that look at them. Nothing is
trained here: the networks come from weight files, pi is even, and enhancement learns it for each recording. `model`
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
from pyro_avse.models.min_vae_v3 import MINVAEv3
from pyro_avse.models.mixture import (
    component_negative_elbo,
    select_component,
    update_responsibilities,
)
from pyro_avse.models.v_vae import VVAE
from pyro_avse.typing import JSON, Codes, InputError, Power

PARTS: dict[str, type[nn.Module]] = {
    "a_vae": AVAE,
    "v_vae": VVAE,
    "av_vae": AVVAE,
    "min_vae_v3": MINVAEv3,
}
"""What a component may be, by its name in MODELS: the models of one component."""
PAIR = {"audio": "a_vae", "audio_visual": "av_vae"}
"""The paper's components."""


class VAEMM(nn.Module):
    """A mixture of trained models: S21 as `model`, their encoders as `guide`.

    Args:
        components: {name: {"model": a name of `PARTS`, and that model's options}}, in the order of alpha_n's values;
            None: an A-VAE named audio and an AV-VAE named audio_visual.
        audio: options of that A-VAE, where `components` is None.
        audio_visual: options of that AV-VAE.

    Raises:
        InputError: fewer than two components; names, models or options that are none; components that differ in
            frequencies or in the size of z; one that needs no lips behind one that does.
    """

    mixing_weight: Tensor

    def __init__(
        self,
        components: dict[str, JSON] | None = None,
        *,
        audio: JSON | None = None,
        audio_visual: JSON | None = None,
    ) -> None:
        super().__init__()
        if components is None:
            own = {"audio": audio or {}, "audio_visual": audio_visual or {}}
            components = {name: {"model": PAIR[name], **own[name]} for name in PAIR}
        elif audio or audio_visual:
            raise InputError("audio and audio_visual stand beside components: put them in there")
        if len(components) < 2:
            raise InputError(f"a mixture of {len(components)}: name two components or more")
        first, options = next(iter(components)), {}
        for name, table in components.items():
            if not name.isidentifier() or hasattr(self, name):
                raise InputError(f"a component is named {name!r}: take another word")
            part: Any = _part(name, table)
            self.add_module(name, part)
            options[name] = {"model": table["model"], **part.options}
            for size in ("num_freqs", "latent_dim"):
                a, v = getattr(self.parts[0], size), getattr(part, size)
                if a != v:
                    raise InputError(f"{size} is {a} in {first} and {v} in {name}: take one size")
            if self.parts[0].requires_lips and not part.requires_lips:
                raise InputError(f"{name} needs no lips and stands behind {first}: name it first")
        self.options: JSON = {"components": options}
        if {name: table["model"] for name, table in options.items()} == PAIR:
            self.options = {name: getattr(self, name).options for name in PAIR}
        parts = self.parts
        self.num_freqs, self.latent_dim = parts[0].num_freqs, parts[0].latent_dim
        self.num_components, self.requires_lips = len(parts), parts[0].requires_lips
        self.uses_lips = any(part.uses_lips for part in parts)
        self.components_see: tuple[bool, ...] = tuple(part.components_see[0] for part in parts)
        self.register_buffer("mixing_weight", torch.full((len(parts),), 1 / len(parts)))

    @property
    def parts(self) -> list[Any]:
        """The models, in the order of alpha_n's values."""
        return list(self.children())

    @property
    def without_lips(self) -> Any:
        """What enhances where there are no lips at all: r(alpha_n) held at component 0, which is audio."""
        return self.parts[0] if self.uses_lips and not self.requires_lips else self

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

    def visual_features(self, lips: Tensor | None) -> Tensor | None:
        """v_n of the components that look at the lips, side by side, (..., frame, feature).

        Every method takes it in place of the pictures, but for `encode` and `initial_codes` of what has a V-VAE in it.
        """
        looking = [part for part in self.parts if part.components_see[0]]
        return torch.cat([p.visual_features(lips) for p in looking], -1) if looking else lips

    def shown(self, lips: Tensor | None) -> list[Tensor | None]:
        """What each component is shown: the pictures, or its own of the features."""
        if lips is None or lips.shape[-2:] == (67, 67):
            return [lips] * len(self.parts)
        sizes = [p.options["embedding"] if p.components_see[0] else 0 for p in self.parts]
        return list(lips.split(sizes, -1))

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """p(z_n | k, v_n), each component's own: batch (component, ..., frame)."""
        own = zip(self.parts, self.shown(lips), strict=True)
        return stacked(*(part.latent_prior(v) for part, v in own))

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """q(z_n | s_n), q(z_n | v_n) or q(z_n | s_n, v_n): batch (component, ..., frame)."""
        own = zip(self.parts, self.shown(lips), strict=True)
        return stacked(*(part.encode(power, v) for part, v in own))

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """Each component's own start, weighted by pi."""
        own = zip(self.parts, self.shown(lips), strict=True)
        codes = torch.stack([part.initial_codes(power, v) for part, v in own])
        return torch.tensordot(self.mixing_weight, codes, 1)

    def log_variance(
        self, z: Codes, lips: Tensor | None
    ) -> Float[Tensor, "component *batch frame freq"]:
        own = zip(self.parts, self.shown(lips), strict=True)
        return torch.cat([part.log_variance(z, v) for part, v in own])


def _part(name: str, table: JSON) -> Any:
    """A component of `VAEMM`'s `components`, untrained."""
    model = table.get("model")
    if model not in PARTS:
        raise InputError(f"component {name} is a {model!r}: take one of {', '.join(PARTS)}")
    options = {key: value for key, value in table.items() if key != "model"}
    return PARTS[model](**options)


def stacked(*parts: Independent) -> Independent:
    """Gaussians of batch (1, ..., frame), or broadcasting to it, as the components of one: (component, ..., frame)."""
    means = torch.broadcast_tensors(*(part.mean[0] for part in parts))
    scales = torch.broadcast_tensors(*(part.base_dist.scale[0] for part in parts))
    return Normal(torch.stack(means), torch.stack(scales)).to_event(1)
