"""The papers' networks: encoders of sound and lips, and the decoder.

Each is small on purpose. Sizes are those of [Sadeghi2021] Sec. IV-A: F = 513, L = 32, hidden layers of 128, lips
67 x 67 = 4489 pixels into 512 and 128 units.
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
        if lips is None:
            raise InputError(
                "the visual encoder sees no lips: give them, or take a model without it"
            )
        pixels = lips.flatten(-2).to(self.features.weight.dtype)
        if not lips.is_floating_point():
            pixels = pixels / 255
        h = torch.tanh(self.hidden(torch.relu(self.features(pixels))))
        return diagonal_normal(self.mean(h), self.log_variance(h))


class Decoder(nn.Module):
    """log sigma_s(z_n): tanh layer, linear layer; its exponential is the variance. [Sadeghi2021] (1)"""

    def __init__(self, latent_dim: int, hidden: int, num_freqs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(latent_dim, hidden)
        self.log_variance = nn.Linear(hidden, num_freqs)

    def forward(self, z: Codes) -> Float[Tensor, "*batch frame freq"]:
        return self.log_variance(torch.tanh(self.hidden(z)))


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
