"""DSAE, the disentangled sequential autoencoder: what stays of an utterance, and what moves. [Li2018]

Generative story of an utterance:

    w ~ N(0, I)                                        once: the voice, the room
    z_n | z_<n ~ N(mu(h_n), diag sigma(h_n)),   h_n = LSTM(z_<n)
    s_n | z_n, w ~ N_c(0, diag sigma(z_n, w))

The guide is q(w | s_1:N) q(z_n | w, s_1:N), LSTMs both ways. At test time w is as good as known (`Summarised`).

In `AVDSAE` every network sees the lips' embedding v_n besides.

[Li2018] Y. Li, S. Mandt, *Disentangled sequential autoencoder*, ICML 2018.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from pyro_avse.models.looking_back import Summarised
from pyro_avse.models.over_time import Move, Recurrence, ToldDecoder, ToldEncoder, join
from pyro_avse.typing import Codes


class DSAE(Summarised):
    """The disentangled sequential autoencoder: D9.

    Args:
        num_freqs, latent_dim, hidden: as of `Dynamical`; w has `latent_dim` numbers too.
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
        self.time = Recurrence(C, hidden, "forwards")  # z_<n and lips, in place of w and lips
        self.move = Move(hidden, hidden, latent_dim)
        self.decoder = ToldDecoder(latent_dim, C, hidden, num_freqs)
        self.ear = Recurrence(hidden + C, hidden, "both")
        self.encoder = ToldEncoder(num_freqs, 2 * hidden, hidden, latent_dim)

    def next_code(self, previous: Codes, context: Any, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """p(z_n | z_<n), which does not know w."""
        seen = context[..., : -self.latent_dim]
        h, memory = self.time.carry_on(join(previous, seen), memory)
        return *self.move(h), memory

    def decode(self, z: Codes, context: Any) -> Float[Tensor, "*batch frame freq"]:
        """log sigma(z_n, w)."""
        log_variance: Tensor = self.decoder(z, context)
        return log_variance


class AVDSAE(DSAE):
    """DSAE with lips: v_n beside z_n and s_n.

    Args:
        features, embedding: units of the embedding's layers; v_n has `embedding` numbers.
    """

    uses_lips = requires_lips = True
