"""SRNN, the stochastic recurrent network: codes that move in time, told of the sound before. [Fraccaro2016]

Generative story of an utterance:

    h_n = LSTM(s_<n)
    z_n | z_n-1, s_<n ~ N(mu(z_n-1, h_n), diag sigma(z_n-1, h_n))
    s_n | z_n, s_<n ~ N_c(0, diag sigma(z_n, h_n))

The guide is q(z_n | z_n-1, g_n), g a backwards LSTM over (h_n, s_n). In training a share `unheard` of the frames in
s_<n is what the model itself decodes there, else it learns to copy the last frame (scheduled sampling). At test time
s_<n is E|s_<n|^2 under the posterior so far.

In `AVSRNN` every network sees the lips' embedding v_n besides.

[Fraccaro2016] M. Fraccaro et al., *Sequential neural models with stochastic layers*, NeurIPS 2016.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from pyro_avse.models.looking_back import Remembering
from pyro_avse.models.over_time import Move, Recurrence, ToldDecoder, ToldEncoder, join
from pyro_avse.typing import Codes


class SRNN(Remembering):
    """The stochastic recurrent network: D6.

    Args:
        num_freqs, latent_dim, hidden: as of `Dynamical`.
        unheard: as of `Remembering`.
    """

    def __init__(
        self,
        *,
        num_freqs: int = 513,
        latent_dim: int = 32,
        hidden: int = 128,
        unheard: float = 0.5,
        features: int = 128,
        embedding: int = 64,
    ) -> None:
        super().__init__(num_freqs, latent_dim, hidden, unheard, features, embedding)
        C = self.context_dim  # v_n and h_n
        self.move = Move(latent_dim + C, hidden, latent_dim)
        self.decoder = ToldDecoder(latent_dim, C, hidden, num_freqs)
        self.ear = Recurrence(hidden + C, hidden, "backwards")
        self.encoder = ToldEncoder(num_freqs, latent_dim + hidden, hidden, latent_dim)

    def next_code(
        self, previous: Codes, context: Tensor | None, memory: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """p(z_n | z_n-1, h_n)."""
        return *self.move(join(previous, context)), None

    def decode(self, z: Codes, context: Tensor | None) -> Float[Tensor, "*batch frame freq"]:
        """log sigma(z_n, h_n)."""
        log_variance: Tensor = self.decoder(z, context)
        return log_variance

    def infer(self, previous: Codes, heard: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """q(z_n | z_n-1, g_n)."""
        y, told = heard.tensor_split([self.encoder.hidden.out_features], -1)
        return *self.encoder(y, join(previous, told)), None


class AVSRNN(SRNN):
    """SRNN with lips: v_n beside h_n everywhere.

    Args:
        features, embedding: units of the embedding's layers; v_n has `embedding` numbers.
    """

    uses_lips = requires_lips = True
