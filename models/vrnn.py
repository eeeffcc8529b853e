"""VRNN, the variational recurrent network: one memory of sound and codes. [Chung2015]

Generative story of an utterance:

    h_n = LSTM(s_<n, z_<n)
    z_n | h_n ~ N(mu(h_n), diag sigma(h_n))
    s_n | z_n, h_n ~ N_c(0, diag sigma(z_n, h_n))

The guide is q(z_n | h_n, s_n). s_<n in training and at test time: as in SRNN (`Remembering`), whose LSTM over s_<n
alone is what the memory here hears.

In `AVVRNN` every network sees the lips' embedding v_n besides.

[Chung2015] J. Chung et al., *A recurrent latent variable model for sequential data*, NeurIPS 2015.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pyro_avse.models.looking_back import Remembering
from pyro_avse.models.over_time import Move, Recurrence, ToldDecoder, ToldEncoder, join
from pyro_avse.typing import Codes, Power


class VRNN(Remembering):
    """The variational recurrent network: D7.

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
        self.move = Move(hidden, hidden, latent_dim)
        self.decoder = ToldDecoder(latent_dim, hidden, hidden, num_freqs)
        self.encoder = ToldEncoder(num_freqs, hidden, hidden, latent_dim)

    def next_code(
        self, previous: Codes, context: Tensor | None, memory: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """p(z_n | h_n)."""
        h, memory = self.time.carry_on(join(previous, context), memory)
        return *self.move(h), memory

    def decode(self, z: Codes, context: Tensor | None) -> Float[Tensor, "*batch frame freq"]:
        """log sigma(z_n, h_n)."""
        previous = nn.functional.pad(z[..., :-1, :], (0, 0, 1, 0))
        log_variance: Tensor = self.decoder(z, self.time(join(previous, context)))
        return log_variance

    def hear(self, power: Power, context: Tensor | None) -> Float[Tensor, "*utterance frame heard"]:
        """s_n, and the context for h_n."""
        return join(self.encoder.hidden(power), context)

    def infer(self, previous: Codes, heard: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """q(z_n | h_n, s_n)."""
        y, context = heard.tensor_split([self.encoder.hidden.out_features], -1)
        h, memory = self.time.carry_on(join(previous, context), memory)
        return *self.encoder(y, h), memory


class AVVRNN(VRNN):
    """VRNN with lips: v_n in the memory.

    Args:
        features, embedding: units of the embedding's layers; v_n has `embedding` numbers.
    """

    uses_lips = requires_lips = True
