"""The proper complex Gaussian N_c(m, diag sigma) of (1) as a Pyro distribution.

A complex coefficient s with real and imaginary parts independent and of variance sigma/2 each has the density

    N_c(s; m, sigma) = 1 / (pi sigma) exp(-|s - m|^2 / sigma)                     [Sadeghi2021] (1), (28)

For m = 0 it depends on |s|^2 alone, and is an Exponential density of |s|^2 with mean sigma, divided by pi. That is why
programs over speech may observe the magnitude |s| in place of s: a real tensor is a complex one without imaginary part.

`Path` is a process of codes in time, as dynamical priors have it. `LogStep` is how the logarithm of a noise's power
moves from frame to frame.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from pyro.distributions import Independent, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import identity_transform

from pyro_avse.typing import Codes, FrameMask, MixingWeight, Responsibilities


class _Complex(constraints.Constraint):
    """Complex numbers, real ones among them; not NaN."""

    def check(self, value: Tensor) -> Tensor:
        return value == value


complex_plane = _Complex()


@biject_to.register(_Complex)  # type: ignore[untyped-decorator]
@transform_to.register(_Complex)  # type: ignore[untyped-decorator]
def _identity(constraint: _Complex) -> Any:
    return identity_transform


def squared_magnitude(x: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """|x|^2, without the root of `abs`: a fifth of its time."""
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def complex_normal_log_prob(
    deviation: Shaped[Tensor, "*batch"], log_variance: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """log N_c(m + deviation; m, exp(log_variance)), elementwise: the likelihood (1)."""
    squared = squared_magnitude(deviation)
    return -math.log(math.pi) - log_variance - squared * torch.exp(-log_variance)


class ComplexNormal(TorchDistribution):  # type: ignore[misc]
    """Proper complex Gaussian with mean `loc` and variance exp(`log_variance`), elementwise (1).

    Args:
        loc: mean, complex or real, broadcasting with `log_variance`; kept as given, so that |s - loc|^2 is computed
            once for all that share it.
        log_variance: log E|s - loc|^2, real. `Decoder` returns it as it is.

    `.to_event(1)` makes a frame of F coefficients one event. Sampling is reparametrised:
    s = loc + sqrt(sigma) eps with eps ~ N_c(0, 1).
    """

    arg_constraints = {"loc": complex_plane, "log_variance": constraints.real}  # noqa: RUF012
    support = complex_plane
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | complex,
        log_variance: Float[Tensor, "*batch"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(loc, Tensor):
            dtype = (
                log_variance.dtype.to_complex() if isinstance(loc, complex) else log_variance.dtype
            )
            loc = torch.tensor(loc, dtype=dtype, device=log_variance.device)
        self.loc, self.log_variance = loc, torch.broadcast_tensors(loc, log_variance)[1]
        super().__init__(self.log_variance.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ComplexNormal":
        new = self._get_checked_instance(ComplexNormal, _instance)
        new.loc = self.loc
        new.log_variance = self.log_variance.expand(batch_shape)
        super(ComplexNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """E s = loc."""
        return self.loc.expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """E |s - loc|^2, real."""
        return self.log_variance.exp()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Complex draws of shape sample_shape + batch_shape."""
        shape = self._extended_shape(torch.Size(sample_shape))
        eps = torch.randn(
            shape, dtype=self.log_variance.dtype.to_complex(), device=self.log_variance.device
        )  # E|eps|^2 = 1
        return self.loc + torch.exp(0.5 * self.log_variance) * eps

    def log_prob(self, value: Tensor) -> Tensor:
        """log N_c(value; loc, sigma); a real `value` counts as complex without imaginary part."""
        if self._validate_args:
            self._validate_sample(value)
        return complex_normal_log_prob(value - self.loc, self.log_variance)

    def entropy(self) -> Tensor:
        """-E log N_c = 1 + log pi + log sigma."""
        return 1 + math.log(math.pi) + self.log_variance


Conditional = Callable[[Tensor, int, Any], tuple[Tensor, Tensor, Any]]
"""(previous, first, memory) -> mean, scale, memory: of frames first, first + 1, ..., given the codes (..., frame,
latent) of the frame before each (0 before the first of all), and what is remembered of earlier ones (None: nothing)."""


class Path(TorchDistribution):  # type: ignore[misc]
    """A process in time, p(z_1:N) = prod_n N(z_n; mean_n(z_<n), diag scale_n(z_<n)^2): the codes of an utterance. D1

    Batch (...), event (frame, latent). Densities take all frames at once; a draw goes from frame to frame.

    Args:
        conditional: what a frame's Normal is given the frames before.
        frames: utterances and frames, (..., frame).
        latent_dim: L.
        like: a tensor of the dtype and on the device wanted.
        mask: (..., frame), False where padding adds nothing to the density.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        conditional: Conditional,
        frames: Sequence[int],
        latent_dim: int,
        like: Tensor,
        mask: FrameMask | None = None,
    ) -> None:
        self.conditional, self.like, self.mask = conditional, like, mask
        *batch, num_frames = frames
        super().__init__(torch.Size(batch), torch.Size((num_frames, latent_dim)))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Path":
        """To the batch shape that it has, as Pyro's plates ask; another is refused."""
        if tuple(batch_shape) != tuple(self.batch_shape):
            raise ValueError(f"a path of utterances {tuple(self.batch_shape)} is no {batch_shape}")
        return self

    def given(self, z: Codes) -> tuple[Tensor, Tensor]:
        """Mean and scale of every frame given those before in z, (..., frame, latent)."""
        previous = torch.nn.functional.pad(z[..., :-1, :], (0, 0, 1, 0))
        mean, scale, _ = self.conditional(previous, 0, None)
        return mean.expand_as(z), scale.expand_as(z)

    def frames_log_prob(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """log p(z_n | z_<n)."""
        return unchecked_normal(*self.given(z)).log_prob(z)

    def log_prob(self, z: Codes) -> Float[Tensor, "*batch"]:
        """log p(z_1:N), padding left out."""
        frames = self.frames_log_prob(z)
        return (frames if self.mask is None else torch.where(self.mask, frames, 0)).sum(-1)

    def of_noise(self, noise: Codes) -> tuple[Codes, Tensor, Tensor]:
        """The path that standard normal `noise` (..., frame, latent) gives, z = mean + scale noise, mean and scale."""
        z, memory, drawn = torch.zeros_like(noise[..., :1, :]), None, []
        for n, e in enumerate(noise.split(1, -2)):
            mean, scale, memory = self.conditional(z, n, memory)
            z = mean + scale * e
            drawn.append((z, mean.expand_as(z), scale.expand_as(z)))
        z, mean, scale = (torch.cat(part, -2) for part in zip(*drawn, strict=True))
        return z, mean, scale

    def rsample(self, sample_shape: Any = ()) -> Codes:
        """Draws of shape sample_shape + (..., frame, latent), by the global generator."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.of_noise(torch.randn(shape, dtype=self.like.dtype, device=self.like.device))[0]


class LogStep(TorchDistribution):  # type: ignore[misc]
    """A step of a random walk of log power, p(d) = exp(-2 lambda cosh d) / (2 K_0(2 lambda)), elementwise.

    exp(d), the ratio of two neighbours, is then generalised inverse Gaussian and as likely as its inverse. Small steps
    are Gaussian with variance 1 / (2 lambda); the tails fall faster than any Gaussian's.

    Args:
        smoothness: lambda > 0.
    """

    arg_constraints = {"smoothness": constraints.positive}  # noqa: RUF012
    support = constraints.real

    def __init__(
        self, smoothness: Float[Tensor, "*batch"], *, validate_args: bool | None = None
    ) -> None:
        self.smoothness = smoothness
        super().__init__(smoothness.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogStep":
        new = self._get_checked_instance(LogStep, _instance)
        new.smoothness = self.smoothness.expand(batch_shape)
        super(LogStep, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of shape sample_shape + batch_shape, by rejection.

        cosh d - 1 is d^2 / 2 or more, so the density lies below that of N(0, 1 / (2 lambda)), and a Gaussian draw is
        kept with probability exp(-2 lambda (cosh d - 1 - d^2 / 2)).
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        twice = (2 * self.smoothness).expand(shape)
        d, missing = torch.zeros_like(twice), torch.ones_like(twice, dtype=torch.bool)
        while missing.any():
            proposal = torch.randn_like(twice) * twice.rsqrt()
            over = twice * (torch.cosh(proposal) - 1 - 0.5 * proposal.square())
            kept = missing & (torch.rand_like(twice).log() < -over)
            d, missing = torch.where(kept, proposal, d), missing & ~kept
        return d

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value)."""
        if self._validate_args:
            self._validate_sample(value)
        twice = 2 * self.smoothness
        log_bessel = torch.special.scaled_modified_bessel_k0(
            twice
        ).log()  # log K_0(2 lambda) + 2 lambda
        return -twice * (torch.cosh(value) - 1) - math.log(2) - log_bessel


def align_components(normal: Independent, batch_dims: int) -> Independent:
    """A (component, ..., frame) batch of Gaussians with axes of length 1 put after the component axis.

    The result has `batch_dims` batch axes, so that it broadcasts against codes (chain, ..., frame, latent).
    """

    def align(parameter: Tensor) -> Tensor:
        missing = batch_dims + 1 - parameter.dim()
        return parameter.reshape(len(parameter), *[1] * missing, *parameter.shape[1:])

    scale = align(normal.base_dist.scale)
    return unchecked_normal(align(normal.mean), scale)


def unchecked_normal(
    mean: Float[Tensor, "*batch latent"], scale: Float[Tensor, "*batch latent"]
) -> Independent:
    """N(mean, diag scale^2) with event (latent,), whose values nobody checks: on a GPU to look at one is to wait."""
    return Independent(Normal(mean, scale, validate_args=False), 1)


def update_mixing_weight(
    responsibilities: Responsibilities, mask: FrameMask | None = None
) -> MixingWeight:
    """pi = mean over the frames that `mask` keeps of r(alpha_n); even if it keeps none. [Sadeghi2021] (25), (44)"""
    if mask is None:
        return responsibilities.mean(-1)
    count = mask.sum(-1)
    mean = torch.where(mask, responsibilities, 0).sum(-1) / count.clamp_min(1)
    return torch.where(count > 0, mean, 1 / len(responsibilities))
