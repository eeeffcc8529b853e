"""The densities of the library, each written once, in what torch and jax.numpy have in common.

    frames   z_n ~ sum_k pi_k N(mean_kn, stddev_kn^2 I),  x_n | z_n, k ~ N_c(0, sigma_k(z_n) + noise_n)          S17
    line     z_1 ~ N(0, I), z_n = rho z_{n-1} + sqrt(1 - rho^2) e_n: frames are coupled;  y_n = z_n C + scale e'_n is
             real, and the posterior a Gaussian that is known
    noise    z_n ~ N(0, I),  noise_n = H_n W unknown too: W_rf ~ Gamma(a, a / mean_rf), H_nr ~ Gamma(b, b)

log sigma_k(z) = tanh(z A_k + a_k) B_k + b_k is a decoder of the papers. Codes are (..., frame, latent). `frames` and
`noise` return a number a frame, `line` one a path. `noise` has one event: (1, D), D numbers that are z, log W and log H
in turn. Constants are included: densities are of (x, z), normalised in both.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

Draw = tuple[Tensor, dict[str, Tensor]]
"""Codes of a story, and the data that they made, by the names of its arrays."""
LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Story(ABC):
    """A posterior's numbers, and its arrays in the library `xp`: torch, or jax.numpy."""

    xp: Any
    arrays: Mapping[str, Any]
    event_dim: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(frame, latent) of the codes."""
        return len(self.arrays["power"]), self.arrays["A"].shape[-2]

    @abstractmethod
    def log_density(self, z: Any) -> Any:
        """log p(x, z)."""

    @abstractmethod
    def draw(self, rng: torch.Generator) -> Draw:
        """z, x ~ p(x, z): z is then an exact draw of p(z | x). In torch alone."""

    def log_variance(self, z: Any) -> Any:
        """log sigma_k(z): (decoder, ..., frame, freq)."""
        A, a, B, b = (self.arrays[name] for name in ("A", "a", "B", "b"))
        batch = (1,) * (z.ndim - 2)
        A, B = (M.reshape(len(M), *batch, *M.shape[1:]) for M in (A, B))
        a, b = (c.reshape(len(c), *batch, 1, c.shape[1]) for c in (a, b))
        return self.xp.tanh(z @ A + a) @ B + b

    def log_likelihood(self, V: Any) -> Any:
        """log N_c(x_n; 0, V_n): (..., frame)."""
        power = self.arrays["power"]
        return -(self.xp.log(V) + power / V).sum(-1) - power.shape[-1] * math.log(math.pi)


class Frames(Story):
    """Independent frames, alpha_n summed out."""

    def log_density(self, z: Any) -> Any:
        mean, stddev, pi, noise = (
            self.arrays[name] for name in ("mean", "stddev", "pi", "noise_variance")
        )
        batch, (K, N, L) = (1,) * (z.ndim - 2), mean.shape
        mean, stddev = mean.reshape(K, *batch, N, L), stddev.reshape(K, *batch, N)
        pi = pi.reshape(K, *batch, 1)
        away = ((z[None] - mean) / stddev[..., None]) ** 2
        log_prior = (
            self.xp.log(pi) - 0.5 * away.sum(-1) - L * (self.xp.log(stddev) + LOG_TWO_PI / 2)
        )
        log_joint = log_prior + self.log_likelihood(self.xp.exp(self.log_variance(z)) + noise)
        return reduce(self.xp.logaddexp, list(log_joint))

    def draw(self, rng: torch.Generator) -> Draw:
        mean, stddev, pi = (self.arrays[name] for name in ("mean", "stddev", "pi"))
        n = torch.arange(mean.shape[1])
        alpha = torch.multinomial(pi, len(n), replacement=True, generator=rng)
        z = mean[alpha, n] + stddev[alpha, n, None] * normal(mean.shape[1:], rng)
        sigma = self.log_variance(z).exp()
        V = sigma[alpha % len(sigma), n] + self.arrays["noise_variance"]
        return z, {"power": V * exponential(V.shape, rng)}


class Line(Story):
    """A linear-Gaussian path."""

    event_dim = 2

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.arrays["y"]), len(self.arrays["C"])

    def log_density(self, z: Any) -> Any:
        C, y, scale = (self.arrays[name] for name in ("C", "y", "scale"))
        constant = y.shape[0] * y.shape[1] * math.log(scale)
        likelihood = standard_normal((y - z @ C) / scale).sum(-1) - constant
        return autoregression(z, self.arrays["rho"]) + likelihood

    def draw(self, rng: torch.Generator) -> Draw:
        C, scale = self.arrays["C"], self.arrays["scale"]
        z = walk(self.shape, self.arrays["rho"], rng)
        return z, {"y": z @ C + scale * normal((len(z), C.shape[1]), rng)}

    def posterior(self) -> torch.distributions.MultivariateNormal:
        """p(z | y), of z flattened (frame, latent)."""
        C, y, scale, rho = (self.arrays[name] for name in ("C", "y", "scale", "rho"))
        frames, latent = self.shape
        chain = torch.eye(frames, dtype=y.dtype) * (1 + rho**2)
        chain[0, 0] = chain[-1, -1] = 1
        chain.diagonal(1).fill_(-rho)
        chain.diagonal(-1).fill_(-rho)
        identity = torch.eye(latent, dtype=y.dtype)
        precision = torch.kron(chain / (1 - rho**2), identity)
        precision += torch.kron(torch.eye(frames, dtype=y.dtype), C @ C.T / scale**2)
        heard = (y @ C.T / scale**2).flatten()
        mean = torch.linalg.solve(precision, heard)
        return torch.distributions.MultivariateNormal(mean, precision_matrix=precision)


class Noise(Story):
    """Speech and its noise, both unknown, all frames at once."""

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Frames, latents, rank, frequencies."""
        (rank, freqs), (frames, latent) = self.arrays["W_mean"].shape, super().shape
        return frames, latent, rank, freqs

    @property
    def shape(self) -> tuple[int, int]:
        frames, latent, rank, freqs = self.sizes
        return 1, frames * (latent + rank) + rank * freqs

    def parts(self, all_of_it: Any) -> tuple[Any, Any, Any]:
        """z (..., frame, latent), log W (..., rank, freq), log H (..., frame, rank) of (..., 1, D)."""
        frames, latent, rank, freqs = self.sizes
        flat = all_of_it[..., 0, :]
        batch, first, second = flat.shape[:-1], frames * latent, frames * latent + rank * freqs
        return (
            flat[..., :first].reshape(*batch, frames, latent),
            flat[..., first:second].reshape(*batch, rank, freqs),
            flat[..., second:].reshape(*batch, frames, rank),
        )

    def variance(self, z: Any, log_W: Any, log_H: Any) -> Any:
        return self.xp.exp(self.log_variance(z)[0]) + self.xp.exp(log_H) @ self.xp.exp(log_W)

    def log_density(self, z: Any) -> Any:
        z, log_W, log_H = self.parts(z)
        W_shape, H_shape = self.arrays["W_shape"], self.arrays["H_shape"]
        prior_of_W = log_gamma(self.xp, log_W - self.xp.log(self.arrays["W_mean"]), W_shape)
        prior = prior_of_W + log_gamma(self.xp, log_H, H_shape) + standard_normal(z).sum(-1)
        likelihood = self.log_likelihood(self.variance(z, log_W, log_H)).sum(-1)
        return (prior + likelihood)[..., None]

    def draw(self, rng: torch.Generator) -> Draw:
        frames, latent, rank, freqs = self.sizes
        z = normal((frames, latent), rng)
        W = self.arrays["W_mean"] * gamma(self.arrays["W_shape"], (rank, freqs), rng)
        H = gamma(self.arrays["H_shape"], (frames, rank), rng)
        V = self.variance(z, W.log(), H.log())
        drawn = torch.cat([z.flatten(), W.log().flatten(), H.log().flatten()])[None]
        return drawn, {"power": V * exponential(V.shape, rng)}


STORIES: dict[str, type[Story]] = {
    "frames": Frames,
    "line": Line,
    "noise": Noise,
}


def standard_normal(z: Any) -> Any:
    """log N(z; 0, I), over the last axis."""
    return -0.5 * (z**2).sum(-1) - z.shape[-1] * LOG_TWO_PI / 2


def autoregression(z: Any, rho: Any) -> Any:
    """log p of a path that starts in, and keeps, N(0, I)."""
    variance = 1 - rho**2
    steps = standard_normal((z[..., 1:, :] - rho * z[..., :-1, :]) / variance**0.5)
    per_step = math.log(variance) * z.shape[-1] / 2
    return standard_normal(z[..., 0, :]) + (steps - per_step).sum(-1)


def log_gamma(xp: Any, u: Any, a: float) -> Any:
    """log density of u = log(w / mean), w ~ Gamma(a, a / mean), summed over the last two axes."""
    constant = a * math.log(a) - math.lgamma(a)
    return (a * (u - xp.exp(u)) + constant).sum((-2, -1))


def normal(shape: Any, rng: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=rng, dtype=torch.float64)


def exponential(shape: Any, rng: torch.Generator) -> Tensor:
    """|N_c(0, 1)|^2."""
    return torch.empty(tuple(shape), dtype=torch.float64).exponential_(generator=rng)


def gamma(a: float, shape: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Gamma(a, a), whose mean is 1."""
    return torch._standard_gamma(torch.full(shape, a, dtype=torch.float64), generator=rng) / a


def walk(shape: tuple[int, int], rho: float, rng: torch.Generator) -> Tensor:
    """A path (frame, latent) of the autoregression."""
    e = normal(shape, rng)
    z: list[Tensor] = []
    for n in range(len(e)):
        z.append(e[n] if n == 0 else rho * z[-1] + (1 - rho**2) ** 0.5 * e[n])
    return torch.stack(z)
