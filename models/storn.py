"""STORN, Bayer and Osendorfer's stochastic recurrent network: independent codes, a decoder that remembers. [Bayer2014]

Generative story of an utterance:

    z_n ~ N(0, I)
    s_n | z_1:n, s_<n ~ N_c(0, diag sigma(h_n)),   h_n = LSTM(s_<n, z_1:n)

The guide is q(z_n | s_1:N), an LSTM both ways. s_<n in training and at test time: as in SRNN (`Remembering`).

In `AVSTORN` every network sees the lips' embedding v_n besides.

[Bayer2014] J. Bayer, C. Osendorfer, *Learning stochastic recurrent networks*, 2014.
"""

from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.models.looking_back import Remembering
from pyro_avse.models.nets import standard_normal
from pyro_avse.models.over_time import Recurrence, ToldDecoder, ToldEncoder, join
from pyro_avse.typing import Codes


class STORN(Remembering):
    """The stochastic recurrent network: D8.

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
        C = self.context_dim
        self.time = Recurrence(latent_dim + C, hidden, "forwards")
        self.decoder = ToldDecoder(latent_dim, hidden, hidden, num_freqs)
        self.ear = Recurrence(hidden + C, hidden, "both")
        self.encoder = ToldEncoder(num_freqs, 2 * hidden, hidden, latent_dim)

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """N(0, I): batch (1, 1), for any frame."""
        return standard_normal(self.latent_dim, self.mixing_weight).expand((1, 1))

    def decode(self, z: Codes, context: Tensor | None) -> Float[Tensor, "*batch frame freq"]:
        """log sigma(h_n); the decoder sees z_n itself too."""
        log_variance: Tensor = self.decoder(z, self.time(join(z, context)))
        return log_variance


class AVSTORN(STORN):
    """STORN with lips: v_n in the memory and the guide.

    Args:
        features, embedding: units of the embedding's layers; v_n has `embedding` numbers.
    """

    uses_lips = requires_lips = True
