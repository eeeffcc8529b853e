"""Switching VAE: VAE-MM with a memory, alpha_1:N a Markov chain over whole trained models. [Sadeghi2021b]

Generative story of an utterance:

    alpha_1 ~ Cat(pi)
    alpha_n | alpha_n-1 ~ Cat(A[alpha_n-1])            n = 2, ..., N: lips are bad, and good, for a while
    z_n | alpha_n ~ N(mu_k, diag sigma_k)              each model's own prior, as in VAE-MM
    s_n | z_n, alpha_n ~ N_c(0, diag sigma_k(z_n, v_n))    its own decoder

Given alpha_1:N the frames are independent. So r(alpha_1:N) is a hidden Markov model's (`models/markov.py`), exact given
what each frame says of each component. What it says, log p(s_n | alpha_n = k), adds hundreds of coefficients that are
neither independent nor exactly Gaussian, and takes its word for far too much; so it counts 1/`temperature`.

The models stay as they were trained. What is learned is A, and pi: by the exact gradient of the forward recursion, the
evidence being each encoder's bound, on clean speech with lips some of which are bad (`[data] bad_lips`).

[Sadeghi2021b] M. Sadeghi, X. Alameda-Pineda, *Switching Variational Auto-Encoders for Noise-Agnostic Audio-visual
Speech Enhancement*, ICASSP 2021.
"""

from collections.abc import Iterator

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Normal
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal, align_components
from pyro_avse.models.markov import backward, forward, utterance_plates
from pyro_avse.models.mixture import component_negative_elbo
from pyro_avse.models.vae_mm import VAEMM
from pyro_avse.typing import JSON, Codes, FrameMask, InputError, Power

THREE = {"audio": "a_vae", "visual": "v_vae", "audio_visual": "av_vae"}
"""The components, unless others are named."""
STAY = 0.9
"""Before training alpha_n is alpha_n-1 so often."""


class Switching(VAEMM):
    """A mixture of trained models with memory; a `SequencePrior`. D14

    Args:
        components: as of `VAEMM`; None: an A-VAE, a V-VAE and an AV-VAE.
        temperature: what a frame's evidence is divided by where alpha_1:N is inferred.

    Raises:
        InputError: as `VAEMM`; a temperature that is not positive.
    """

    couples_frames = True
    switches = True

    def __init__(
        self, components: dict[str, JSON] | None = None, *, temperature: float = 100.0
    ) -> None:
        if components is None:
            components = {name: {"model": model} for name, model in THREE.items()}
        super().__init__(components)
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}: give a number above 0")
        options = {
            n: {"model": t["model"], **getattr(self, n).options} for n, t in components.items()
        }
        self.options: JSON = {"components": options, "temperature": temperature}
        self.temperature, K = temperature, self.num_components
        leave = torch.full((K, K), (1 - STAY) / (K - 1))
        self.requires_grad_(False)
        self.transition_logits = nn.Parameter(leave.fill_diagonal_(STAY).log())

    @property
    def transition(self) -> Float[Tensor, "component component"]:
        """A, a row for each alpha_n-1."""
        return torch.softmax(self.transition_logits, 1)

    def model(
        self,
        power: Float[Tensor, "*utterance frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        with utterance_plates(power.shape[:-2]):
            for n, log_variance in self.frames(power.shape[:-1], self.visual_features(lips)):
                s = ComplexNormal(0, log_variance).to_event(1)  # (1), (7)
                pyro.sample(f"s_{n}", s, obs=power[..., n, :].sqrt())  # N_c(0, .) sees |s| alone

    def frames(
        self,
        frames: tuple[int, ...],
        v: Tensor | None,
        start: Tensor | None = None,
        mask: FrameMask | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """alpha_n and z_n of one frame after the other, as Pyro's sites, and log sigma at them; alpha_1:N enumerated.

        `frames` are utterances and frames, (..., frame); `start` (..., component) stands for pi; z_n adds nothing where
        `mask` is False.
        """
        *utterances, num_frames = frames
        latent = align_components(self.latent_prior(v), 1 + len(frames))
        mean, scale = (
            t.expand(-1, *utterances, num_frames, -1) for t in (latent.mean, latent.stddev)
        )
        weights = self.mixing_weight if start is None else start
        for n in pyro.markov(range(num_frames)):
            chain = Categorical(weights)
            alpha = pyro.sample(f"alpha_{n}", chain, infer={"enumerate": "parallel"})
            here = (choose(t[..., n, :], alpha) for t in (mean, scale))
            sound = True if mask is None else mask[..., n]
            z = pyro.sample(f"z_{n}", Normal(*here).to_event(1).mask(sound))  # (2), (8)
            seen = v[..., n : n + 1, :] if v is not None and any(self.components_see) else None
            decoded = self.log_variance(z[..., None, :], seen)[..., 0, :]
            yield n, choose(decoded, alpha)
            weights = self.transition[alpha]

    def guide(
        self,
        power: Float[Tensor, "*utterance frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        """r(alpha_n | alpha_n-1) by the frames from n on, and each component's encoder; tightest at temperature 1."""
        q = self.encode(power if encoder_power is None else encoder_power, lips)
        with torch.no_grad():
            e = self.evidence(power, lips, encoder_power=encoder_power)
            later = backward(e, self.transition)
            first = forward(e[..., :1], self.start(e), self.transition)[..., 0] + later[..., 0]
        with utterance_plates(power.shape[:-2]):
            weights = first.movedim(0, -1)
            for n in pyro.markov(range(power.shape[-2])):
                chain = Categorical(logits=weights)
                alpha = pyro.sample(f"alpha_{n}", chain, infer={"enumerate": "parallel"})
                mean, scale = (choose(t[..., n, :], alpha) for t in (q.mean, q.stddev))
                pyro.sample(f"z_{n}", Normal(mean, scale).to_event(1))
                if n + 1 < power.shape[-2]:
                    heard = (e + later)[..., n + 1].movedim(0, -1)
                    weights = self.transition.detach().log()[alpha] + heard

    def evidence(
        self, power: Power, lips: Tensor | None, *, encoder_power: Tensor | None = None
    ) -> Float[Tensor, "component *utterance frame"]:
        """What clean frames say of alpha_n: each component's bound (5) by one draw, over the temperature."""
        J = component_negative_elbo(self, power, lips, encoder_power=encoder_power)
        return -J / self.temperature

    def start(self, evidence: Tensor) -> Float[Tensor, "component *one"]:
        """pi, to stand beside the evidence of a frame."""
        return self.mixing_weight.reshape(-1, *[1] * (evidence.dim() - 2))

    # --- the contract of priors that couple frames ---------------------------------------------------------------

    def within(self, *, mask: FrameMask | None = None, past: Power | None = None) -> "Switching":
        """The prior itself: targets leave padding out, and nothing here looks at the past."""
        return self

    def log_prior(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "component *batch frame"]:
        """log p(z_n | alpha_n = k, v_n); the frames before say nothing besides."""
        log_prior: Tensor = align_components(self.latent_prior(lips), z.dim()).log_prob(z)
        return log_prior


def choose(components: Tensor, alpha: Tensor) -> Tensor:
    """components[alpha, ...] of (component, ..., event); alpha broadcasts against (...)."""
    batch = torch.broadcast_shapes(alpha.shape, components.shape[1:-1])
    missing = [1] * (len(batch) - components.dim() + 2)
    components = components.reshape(len(components), *missing, *components.shape[1:])
    index = alpha.expand(batch)[None, ..., None].expand(1, *batch, components.shape[-1])
    return components.expand(-1, *batch, -1).gather(0, index)[0]
