"""DKF, the deep Kalman filter: codes that move in time, a decoder without memory. [Krishnan2015]

Generative story of an utterance:

    z_n | z_n-1 ~ N(mu(z_n-1), diag sigma(z_n-1)),   mu = (1 - g) * linear(z_n-1) + g * network(z_n-1)
    s_n | z_n ~ N_c(0, diag sigma(z_n))

g = g(z_n-1) in (0, 1) is a gate between a linear move and any other [Krishnan2017]. Given the code before, the past
says nothing more of a code, so the guide is q(z_n | z_n-1, s_n:N): an LSTM that runs backwards over the spectra.

In `AVDKF` every network sees the lips' embedding v_n besides.

[Krishnan2015] R. Krishnan, U. Shalit, D. Sontag, *Deep Kalman filters*, 2015. [Krishnan2017] The same, *Structured
inference networks for nonlinear state space models*, AAAI 2017.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_avse.models.dynamical import Dynamical
from pyro_avse.models.over_time import (
    Move,
    Recurrence,
    ToldDecoder,
    ToldEncoder,
    join,
    silent,
)
from pyro_avse.typing import Codes


class DKF(Dynamical):
    """The deep Kalman filter.

    Args:
        num_freqs, latent_dim, hidden: as of `Dynamical`.
    """

    def __init__(
        self,
        *,
        num_freqs: int = 513,
        latent_dim: int = 32,
        hidden: int = 128,
        features: int = 128,
        embedding: int = 64,
    ) -> None:
        super().__init__(num_freqs, latent_dim, hidden, features, embedding)
        C = self.context_dim
        self.move = GatedTransition(latent_dim, C, hidden)
        self.decoder = ToldDecoder(latent_dim, C, hidden, num_freqs)
        self.spectrum = nn.Linear(num_freqs, hidden)
        self.ear = Recurrence(hidden + C, hidden, "backwards")
        self.encoder = ToldEncoder(num_freqs, latent_dim + hidden, hidden, latent_dim)

    def next_code(
        self, previous: Codes, context: Tensor | None, memory: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """p(z_n | z_n-1); the first code follows 0."""
        return *self.move(previous, context), None

    def decode(self, z: Codes, context: Tensor | None) -> Float[Tensor, "*batch frame freq"]:
        """log sigma(z_n)."""
        log_variance: Tensor = self.decoder(z, context)
        return log_variance

    def infer(self, previous: Codes, heard: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """q(z_n | z_n-1, s_n:N): D5."""
        y, told = heard.tensor_split([self.encoder.hidden.out_features], -1)
        return *self.encoder(y, join(previous, told)), None


class AVDKF(DKF):
    """DKF with lips: v_n in the transition, the decoder and the guide.

    Args:
        features, embedding: units of the embedding's layers; v_n has `embedding` numbers.
    """

    uses_lips = requires_lips = True


class GatedTransition(nn.Module):
    """N((1 - g) * linear(z) + g * network(z), diag sigma(z)); lips, where there are, enter gate and networks. D4

    As long as nothing is learned, N(0, I).
    """

    def __init__(self, latent_dim: int, context: int, hidden: int) -> None:
        super().__init__()
        self.linear = silent(nn.Linear(latent_dim, latent_dim))
        self.network = Move(latent_dim + context, hidden, latent_dim)
        self.gate_hidden = nn.Linear(latent_dim + context, hidden)
        self.gate = nn.Linear(hidden, latent_dim)

    def forward(self, z: Codes, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y = join(z, context)
        g = torch.sigmoid(self.gate(torch.relu(self.gate_hidden(y))))
        mean, log_variance = self.network(y)
        return (1 - g) * self.linear(z) + g * mean, log_variance
