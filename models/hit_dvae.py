"""HiT-DVAE: a summary of the utterance, and codes that look back by attention. [Bie2022]

Generative story of an utterance:

    w ~ N(0, I)                                        once
    z_n | w, z_<n, s_<n ~ N(mu, diag sigma)            causal attention over (z_1, s_1), ..., (z_n-1, s_n-1), and w
    s_n | w, z_1:n, s_<n ~ N_c(0, diag sigma)          causal attention over (z_1, s_0), ..., (z_n, s_n-1), and w

The guide is q(w | s_1:N) q(z_n | w, s_1:N), LSTMs both ways. At test time w and s_<n are as good as known
(`Summarised`, `Remembering`); in training a share `unheard` of s_<n is what the model decodes itself.

In `AVHiTDVAE` every network sees the lips' embedding v_n besides.

[Bie2022] X. Bie et al., *HiT-DVAE: human motion generation via hierarchical transformer dynamical VAE*, 2022; and
*Unsupervised speech enhancement using dynamical variational autoencoders*, IEEE/ACM TASLP 2022.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_avse.distributions import Path
from pyro_avse.models.looking_back import Summarised, own_past
from pyro_avse.models.over_time import (
    CausalAttention,
    Move,
    Recurrence,
    ToldDecoder,
    ToldEncoder,
    join,
    loudness,
)
from pyro_avse.typing import Codes, Power


class HiTDVAE(Summarised):
    """The hierarchical transformer dynamical VAE: D10.

    Args:
        num_freqs, latent_dim, hidden: as of `Dynamical`; w has `latent_dim` numbers too.
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
        super().__init__(num_freqs, latent_dim, hidden, features, embedding)
        self.options["unheard"] = self.unheard = unheard
        self.context_dim += hidden
        C = self.context_dim
        self.token, self.look = nn.Linear(latent_dim + C, hidden), CausalAttention(hidden)
        self.move = Move(hidden, hidden, latent_dim)
        self.own_token, self.own_look = nn.Linear(latent_dim + C, hidden), CausalAttention(hidden)
        self.decoder = ToldDecoder(latent_dim, hidden, hidden, num_freqs)
        self.ear = Recurrence(hidden + C, hidden, "both")
        self.encoder = ToldEncoder(num_freqs, 2 * hidden, hidden, latent_dim)

    def context(self, lips: Tensor | None, num_frames: int) -> Tensor:
        """v_n, w and s_n-1."""
        past = self.past
        if past is None:
            past = self.spectrum.weight.new_zeros(num_frames, self.num_freqs)
        y = torch.tanh(self.spectrum(loudness(past)))
        before = nn.functional.pad(y[..., :-1, :], (0, 0, 1, 0))
        return join(super().context(lips, num_frames), before)

    def next_code(self, previous: Codes, context: Any, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """p(z_n | w, z_<n, s_<n)."""
        h, memory = self.look(self.token(join(previous, context)), memory)
        return *self.move(h), memory

    def decode(self, z: Codes, context: Any) -> Float[Tensor, "*batch frame freq"]:
        """log sigma(w, z_1:n, s_<n)."""
        log_variance: Tensor = self.decoder(z, self.own_look(self.own_token(join(z, context)))[0])
        return log_variance

    def told(self, power: Power, lips: Tensor | None) -> Any:
        """Of s_<n, and of w."""
        past = own_past(self, power, lips, self.unheard)
        return Summarised.told(self.within(past=past), power, lips)

    def encoder_path(self, power: Power, lips: Tensor | None) -> Path:
        """q(z_1:N | w, s_1:N, v)."""
        known = self if self.past is not None else self.within(past=power)
        return Summarised.encoder_path(known, power, lips)


class AVHiTDVAE(HiTDVAE):
    """HiT-DVAE with lips: v_n beside z_n and s_n.

    Args:
        features, embedding: units of the embedding's layers; v_n has `embedding` numbers.
    """

    uses_lips = requires_lips = True
