"""The papers' networks: encoders of sound and lips, priors and decoders.

Each is small on purpose. Sizes are those of [Sadeghi2021] Sec. IV-A: F = 513, L = 32, hidden layers of 128, lips
67 x 67 = 4489 pixels into 512 and 128 units. Where a network sees both sound (or z) and lips, each has its own linear
map into the hidden layer and their sum goes through tanh: one linear layer of the two, concatenated.
"""

import torch
from jaxtyping import Float
from pyro.distributions import Independent, Normal
from torch import Tensor, nn

from pyro_avse.typing import Codes, InputError, Lips, Power


def diagonal_normal(
    mean: Float[Tensor, "*batch latent"], log_variance: Float[Tensor, "*batch latent"]
) -> Independent:
    """N(mean, diag exp(log_variance)) with event (latent,); a draw is mean + sqrt(variance) eps (S9)."""
    return Normal(mean, torch.exp(0.5 * log_variance)).to_event(1)


def standard_normal(latent_dim: int, like: Tensor) -> Independent:
    """N(0, I) of `latent_dim` dimensions, in `like`'s dtype and on its device. [Sadeghi2021] (2)"""
    zero = like.new_zeros(latent_dim)
    return diagonal_normal(zero, zero)


class AudioEncoder(nn.Module):
    """q(z_n | s_n) = N(mu(|s_n|^2), diag sigma(|s_n|^2)): tanh layer, two linear heads. [Sadeghi2021] (3)

    The input is the power spectrum itself, as in the papers, not its logarithm.
    """

    def __init__(self, num_freqs: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_freqs, hidden)
        self.mean = nn.Linear(hidden, latent_dim)
        self.log_variance = nn.Linear(hidden, latent_dim)

    def forward(self, power: Power) -> Independent:
        h = torch.tanh(self.hidden(power))
        return diagonal_normal(self.mean(h), self.log_variance(h))


class VisualEncoder(nn.Module):
    """q(z_n | v_n) = N(mu(v_n), diag sigma(v_n)): pixels, ReLU, tanh, two linear heads. [Sadeghi2021] (6)

    `lips` is uint8 in 0..255 or floating point in [0, 1], shape (..., frame, 67, 67).
    """

    def __init__(self, features: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.features = nn.Linear(67 * 67, features)
        self.hidden = nn.Linear(features, hidden)
        self.mean = nn.Linear(hidden, latent_dim)
        self.log_variance = nn.Linear(hidden, latent_dim)

    def forward(self, lips: Lips | None) -> Independent:
        h = torch.relu(self.features(pixels(lips, self.features.weight.dtype)))
        h = torch.tanh(self.hidden(h))
        return diagonal_normal(self.mean(h), self.log_variance(h))


def pixels(lips: Lips | None, dtype: torch.dtype) -> Float[Tensor, "*utterance frame pixel"]:
    """Grey levels in [0, 1], a row a frame. Raises InputError where there are no lips."""
    if lips is None:
        raise InputError("this model sees no lips: give them, or take a model that needs none")
    flat = lips.flatten(-2).to(dtype)
    return flat if lips.is_floating_point() else flat.div_(255)


class LipsEmbedding(nn.Module):
    """The embedding v_n of the lips that prior, encoder and decoder share in S14: two ReLU layers, 512 and M = 128.

    What it returns may be given to it again in place of the pictures, and comes back as it is: a sampler that asks for
    p(z_n | v_n) or sigma(z_n, v_n) a thousand times computes the embedding once.
    """

    def __init__(self, features: int, embedding: int) -> None:
        super().__init__()
        if embedding == 67:
            raise InputError("embedding is 67: a picture is told by its 67 x 67, take another size")
        self.features = nn.Linear(67 * 67, features)
        self.hidden = nn.Linear(features, embedding)

    def forward(self, lips: Tensor | None) -> Float[Tensor, "*utterance frame embedding"]:
        if lips is not None and lips.shape[-2:] != (67, 67):
            return lips
        h = torch.relu(self.features(pixels(lips, self.features.weight.dtype)))
        return torch.relu(self.hidden(h))


class LipsPrior(nn.Module):
    """p(z_n | v_n) = N(mu(v_n), diag sigma(v_n)): ReLU layer, two linear heads. [Sadeghi2021] (8)"""

    def __init__(self, embedding: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(embedding, hidden)
        self.mean = nn.Linear(hidden, latent_dim)
        self.log_variance = nn.Linear(hidden, latent_dim)

    def forward(self, v: Float[Tensor, "*utterance frame embedding"]) -> Independent:
        h = torch.relu(self.hidden(v))
        return diagonal_normal(self.mean(h), self.log_variance(h))


class AudioVisualEncoder(nn.Module):
    """q(z_n | s_n, v_n): an audio encoder whose hidden layer sees the lips' embedding too. S14"""

    def __init__(self, num_freqs: int, embedding: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_freqs, hidden)
        self.lips = nn.Linear(embedding, hidden, bias=False)
        self.mean = nn.Linear(hidden, latent_dim)
        self.log_variance = nn.Linear(hidden, latent_dim)

    def forward(self, power: Power, v: Float[Tensor, "*utterance frame embedding"]) -> Independent:
        h = torch.tanh(self.hidden(power) + self.lips(v))
        return diagonal_normal(self.mean(h), self.log_variance(h))


class Decoder(nn.Module):
    """log sigma_s(z_n): tanh layer, linear layer; its exponential is the variance. [Sadeghi2021] (1)"""

    def __init__(self, latent_dim: int, hidden: int, num_freqs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(latent_dim, hidden)
        self.log_variance = nn.Linear(hidden, num_freqs)

    def forward(self, z: Codes) -> Float[Tensor, "*batch frame freq"]:
        return self.log_variance(torch.tanh(self.hidden(z)))


class AudioVisualDecoder(nn.Module):
    """log sigma_s(z_n, v_n): a decoder whose hidden layer sees the lips' embedding too. [Sadeghi2021] (7), (9)"""

    def __init__(self, latent_dim: int, embedding: int, hidden: int, num_freqs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(latent_dim, hidden)
        self.lips = nn.Linear(embedding, hidden, bias=False)
        self.log_variance = nn.Linear(hidden, num_freqs)

    def forward(
        self, z: Codes, v: Float[Tensor, "*utterance frame embedding"]
    ) -> Float[Tensor, "*batch frame freq"]:
        return self.log_variance(torch.tanh(self.hidden(z) + self.lips(v)))


class IsotropicPrior(nn.Module):
    """N(mu, sigma I) with learned mean and one learned variance. [Sadeghi2021] (10)

    The variance is kept positive as the exponential of a parameter; both start at N(0, I).
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(1))

    def forward(self) -> Independent:
        return diagonal_normal(self.mean, self.log_variance.expand_as(self.mean))
