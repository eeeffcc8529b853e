"""What dynamical priors share: networks over time, and the Pyro pair of an utterance. [Girin2021]

Generative story of an utterance with the lips' embedding v_1:N, where the prior has lips:

    z_n | z_<n, ... ~ N(mu, diag sigma)          n = 1, ..., N: a `Path`, z_0 = 0
    s_n | z_1:N, ... ~ N_c(0, diag sigma(...))

and the guide is a path too, q(z_n | z_<n, s_1:N). A prior is a subclass that says, in a file of its own, what stands
for the dots: its networks, `next_code`, `decode` and `infer`, each of all frames at once or of one after the other.

Some look at the speech before, s_<n, or at a summary w of all of it, which nobody knows at test time. |s_n|^2 is then
E|s_n|^2 under the posterior so far (`past`), as good as known: a choice of ours. (models/looking_back.py)

[Girin2021] L. Girin et al., *Dynamical Variational Autoencoders: A Comprehensive Review*, Foundations and Trends in
Machine Learning 15, 2021.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal, Path, unchecked_normal
from pyro_avse.models.markov import utterance_plates
from pyro_avse.models.nets import LipsEmbedding
from pyro_avse.models.over_time import Recurrence, ToldEncoder, join, loudness
from pyro_avse.typing import Codes, FrameMask, Power

Step = Callable[[Tensor, Any, Any], tuple[Tensor, Tensor, Any]]
"""(previous, given, memory) -> mean, log-variance, memory; `given` are the frames' rows of what is known besides."""


class Dynamical(nn.Module, ABC):
    """A speech prior whose frames are coupled; a `SequencePrior`.

    Args of all subclasses:
        num_freqs: F, frequencies of a frame.
        latent_dim: L.
        hidden: units of every layer, and of an LSTM in each direction.
        features, embedding: units of the lips' embedding, where the prior has lips.
    """

    couples_frames = True
    num_components = 1
    uses_lips = requires_lips = False
    mixing_weight: Tensor
    spectrum: nn.Linear
    """What the LSTMs hear of a spectrum."""
    ear: Recurrence
    """The encoder's LSTM over the spectra."""
    encoder: ToldEncoder
    uses_past = False  # whether it looks at s_<n or w
    mask: FrameMask | None = None
    past: Power | None = None
    """Of the utterances that it is `within`."""

    def __init__(
        self, num_freqs: int, latent_dim: int, hidden: int, features: int, embedding: int
    ) -> None:
        super().__init__()
        self.num_freqs, self.latent_dim = num_freqs, latent_dim
        self.options: dict[str, Any] = {
            "num_freqs": num_freqs,
            "latent_dim": latent_dim,
            "hidden": hidden,
        }
        self.context_dim = 0
        if self.uses_lips:
            self.options |= {"features": features, "embedding": embedding}
            self.context_dim = embedding
            self.embedding = LipsEmbedding(features, embedding)
        self.register_buffer("mixing_weight", torch.ones(1))

    @property
    def components_see(self) -> tuple[bool, ...]:
        return (self.uses_lips,)

    def next_code(
        self, previous: Codes, context: Tensor | None, memory: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """Mean and log-variance of p(z_n | z_<n, ...); unless a prior says otherwise, N(0, I)."""
        return torch.zeros_like(previous), torch.zeros_like(previous), None

    @abstractmethod
    def decode(self, z: Codes, context: Tensor | None) -> Float[Tensor, "*batch frame freq"]:
        """log sigma of every frame of a path."""

    def hear(self, power: Power, context: Tensor | None) -> Float[Tensor, "*utterance frame heard"]:
        """What the encoder makes of the spectra, before it knows any code: s_n itself, and what `ear` hears."""
        y = torch.tanh(self.spectrum(loudness(power)))
        g = self.ear(join(y, context), self.mask)
        return join(self.encoder.hidden(power), g)

    def infer(self, previous: Codes, heard: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """Mean and log-variance of q(z_n | z_<n, s_1:N); unless a prior says otherwise, q(z_n | s_1:N)."""
        y, told = heard.tensor_split([self.encoder.hidden.out_features], -1)
        return *self.encoder(y, told), None

    def context(
        self, lips: Tensor | None, num_frames: int
    ) -> Float[Tensor, "*utterance frame context"] | None:
        """What frames are told besides codes, `context_dim` numbers: v_n; None: nothing."""
        return self.visual_features(lips) if self.uses_lips else None

    def told(self, power: Power, lips: Tensor | None) -> Any:
        """Within `model`: the prior given what the story draws before the codes, and s_<n as training has it."""
        return self

    def believing(self, power: Power, lips: Tensor | None) -> Any:
        """The same within `guide`."""
        return self

    def model(
        self,
        power: Float[Tensor, "*utterance frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        with utterance_plates(power.shape[:-2]):
            prior = self.told(power, lips)
            z = pyro.sample("z", prior.latent_path(power.shape[:-1], lips))
            s = ComplexNormal(0, prior.log_variance(z, lips)[0]).to_event(2)
            pyro.sample("s", s, obs=power.sqrt())  # N_c(0, .) sees |s| alone

    def guide(
        self,
        power: Float[Tensor, "*utterance frame freq"],
        lips: Tensor | None = None,
        *,
        encoder_power: Tensor | None = None,
        responsibilities: Tensor | None = None,
    ) -> None:
        with utterance_plates(power.shape[:-2]):
            heard = power if encoder_power is None else encoder_power
            pyro.sample("z", self.believing(heard, lips).encoder_path(heard, lips))

    def within(self, *, mask: FrameMask | None = None, past: Power | None = None) -> Any:
        """As `SequencePrior.within`."""
        view = copy.copy(self)
        view.mask = self.mask if mask is None else mask
        view.past = self.past if past is None else past
        return view

    def visual_features(self, lips: Tensor | None) -> Tensor | None:
        """v_n, (..., frame, embedding); without lips what was given."""
        if not self.uses_lips:
            return lips
        embedded: Tensor = self.embedding(lips)
        return embedded

    def latent_path(self, frames: tuple[int, ...], lips: Tensor | None) -> Path:
        """p(z_1:N | v)."""
        return self._path(self.next_code, self.context(lips, frames[-1]), frames)

    def encoder_path(self, power: Power, lips: Tensor | None) -> Path:
        """q(z_1:N | s_1:N, v)."""
        heard = self.hear(power, self.context(lips, power.shape[-2]))
        return self._path(self.infer, heard, power.shape[:-1])

    def log_prior(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "1 *batch frame"]:
        """log p(z_n | z_<n, v)."""
        return self.latent_path(z.shape[:-1], lips).frames_log_prob(z)[None]

    def log_variance(self, z: Codes, lips: Tensor | None) -> Float[Tensor, "1 *batch frame freq"]:
        return self.decode(z, self.context(lips, z.shape[-2]))[None]

    def draw_codes(
        self, power: Power, lips: Tensor | None, noise: Codes
    ) -> tuple[Codes, Float[Tensor, "*batch frame"]]:
        """As `SequencePrior.draw_codes`."""
        z, mean, scale = self.encoder_path(power, lips).of_noise(noise)
        return z, unchecked_normal(mean, scale).log_prob(z)

    def encode(self, power: Power, lips: Tensor | None) -> Independent:
        """q(z_n | z_<n, s_1:N) with z_<n at their means: batch (1, ..., frame)."""
        silent = power.new_zeros(*power.shape[:-1], self.latent_dim)
        _, mean, scale = self.encoder_path(power, lips).of_noise(silent)
        return unchecked_normal(mean[None], scale[None])

    def initial_codes(self, power: Power, lips: Tensor | None) -> Codes:
        """The encoder's means given the noisy power."""
        mean: Tensor = self.encode(power, lips).mean[0]
        return mean

    def _path(self, step: Step, given: Tensor | None, frames: tuple[int, ...]) -> Path:
        def conditional(previous: Tensor, first: int, memory: Any) -> tuple[Tensor, Tensor, Any]:
            last = first + previous.shape[-2]
            rows = None if given is None else given[..., first:last, :]
            mean, log_variance, memory = step(previous, rows, memory)
            return mean, torch.exp(0.5 * log_variance), memory

        return Path(conditional, frames, self.latent_dim, self.mixing_weight, self.mask)
