"""RVAE, the recurrent VAE: independent codes, a decoder with memory. [Leglaive2020]

Generative story of an utterance:

    z_n ~ N(0, I)
    s_n | z_1:N ~ N_c(0, diag sigma(h_n)),   h_1:N = LSTM(z_1:N)

h_n is of the past z_1:n (`causal`) or, both ways, of all codes. The guide follows the posterior's own structure:

    q(z_n | z_<n, s_n:N) causal,   q(z_n | z_<n, s_1:N) both ways:   an LSTM over the codes before, one over the spectra

In `AVRVAE` every network sees the lips' embedding v_n besides.

[Leglaive2020] S. Leglaive, X. Alameda-Pineda, L. Girin, R. Horaud, *A recurrent variational autoencoder for speech
enhancement*, ICASSP 2020.
"""

from typing import Any

from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor, nn

from pyro_avse.models.dynamical import Dynamical
from pyro_avse.models.nets import standard_normal
from pyro_avse.models.over_time import Recurrence, ToldDecoder, ToldEncoder, join
from pyro_avse.typing import Codes, Power


class RVAE(Dynamical):
    """The recurrent VAE, D2: independent codes, and a decoder with memory.

    Args:
        causal: whether the decoder hears the past of z alone.
        num_freqs, latent_dim, hidden: as of `Dynamical`; hidden // 2 units remember the codes.
    """

    def __init__(
        self,
        *,
        num_freqs: int = 513,
        latent_dim: int = 32,
        hidden: int = 128,
        causal: bool = False,
        features: int = 128,
        embedding: int = 64,
    ) -> None:
        super().__init__(num_freqs, latent_dim, hidden, features, embedding)
        self.options["causal"] = causal
        C = self.context_dim
        self.time = Recurrence(latent_dim + C, hidden, "forwards" if causal else "both")
        self.decoder = ToldDecoder(latent_dim, self.time.size + C, hidden, num_freqs)
        self.spectrum = nn.Linear(num_freqs, hidden)
        self.ear = Recurrence(hidden + C, hidden, "backwards" if causal else "both")
        self.codes = Recurrence(latent_dim, hidden // 2, "forwards")
        told = self.codes.size + self.ear.size + C
        self.encoder = ToldEncoder(num_freqs, told, hidden, latent_dim)

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """N(0, I): batch (1, 1), for any frame."""
        return standard_normal(self.latent_dim, self.mixing_weight).expand((1, 1))

    def decode(self, z: Codes, context: Tensor | None) -> Float[Tensor, "*batch frame freq"]:
        """log sigma(h_n); the decoder sees z_n itself too."""
        h = self.time(join(z, context), self.mask)
        log_variance: Tensor = self.decoder(z, join(h, context))
        return log_variance

    def hear(self, power: Power, context: Tensor | None) -> Float[Tensor, "*utterance frame heard"]:
        """As `Dynamical`, and the lips."""
        return join(super().hear(power, context), context)

    def infer(self, previous: Codes, heard: Tensor, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """q(z_n | z_<n, ...): D3."""
        d, memory = self.codes.carry_on(previous, memory)
        y, told = heard.tensor_split([self.encoder.hidden.out_features], -1)
        return *self.encoder(y, join(d, told)), memory


class AVRVAE(RVAE):
    """RVAE with lips: v_n beside z_n in the decoder, and beside s_n in the guide.

    Args:
        features, embedding: units of the embedding's layers; v_n has `embedding` numbers.
    """

    uses_lips = requires_lips = True
