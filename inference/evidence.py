"""What a frame is worth to a model: log p(x_n | k), by tempering from a known start. [Neal 2001]; [Del Moral 2006]

The integral Z = int p(x, z) dz, W H held, is what r(alpha_n) should be made of, and what models are compared by:

    r_nk = pi_k p(x_n | k) / sum_j pi_j p(x_n | j),   log p(x_n) = log sum_k pi_k p(x_n | k)

(where W H was fitted to the same recording it is a plug-in likelihood, no evidence with the noise integrated out). From
a Gaussian q, the prior p(z | k) or a guide's, one goes to p(x, z) by way of

    log f_beta(z) = (1 - beta) log q(z) + beta log p(x, z),   0 = beta_0 < beta_1 < ... < beta_T = 1     `Bridge`

`tempered_smc`: particles are weighed by the increments (beta_t - beta_{t-1}) (log p(x, z) - log q(z)), drawn anew by
those weights, and moved by a kernel at beta_t. Each frame finds its own beta_t: the furthest at which the weights are
still worth a share `keep` of the particles; and its own step size, from the acceptance. log Z is the sum of the logs of
the mean weights. `annealed_importance`: the same path, frozen, particles never drawn anew; exp of the estimate is then
unbiased, so that E log Z_hat <= log Z. `reverse_annealed`: from an exact draw of the posterior, which simulated data
have, the path is gone backwards; E of that is >= log Z. Together they enclose it (bidirectional Monte Carlo [Grosse et
al. 2015]): what lies between them is how far both can be trusted.

Frames are independent given W H, so all go at once, each along its own path. Nothing here rejects by itself: kernels do
(`metropolis.py`), and one that never rejects (`ula`) has no place here.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.errors import InputError
from pyro_avse.inference.adaptation import (
    acceptance_error,
    can_adapt,
    step_size_of,
    with_step_size,
)
from pyro_avse.inference.gibbs import Gibbs
from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.independence import Independence
from pyro_avse.inference.run import unchecked
from pyro_avse.inference.target import CollapsedTarget, Quadratic
from pyro_avse.inference.ula import ULA
from pyro_avse.typing import Codes, Kernel, Responsibilities, Target

Frames = Float[Tensor, "*utterance frame"]
BISECTIONS, MOST_STEPS = 25, 200
"""Halvings in which a frame's next beta is found, and betas at most."""


UNTEMPERED: dict[type, str] = {
    ULA: "rejects nothing, so that it leaves no f_beta as it is",
    Gibbs: "moves alpha, which is summed out here",
    Independence: "proposes for the posterior alone",
}
"""Kernels that have no place here, and why."""


@dataclass(frozen=True)
class Bridge:
    """log f_beta, as a target that any kernel of a frame can move on; its `gaussian` is q, for those that want one."""

    target: Target
    start: Independent
    """q(z_n), batch (..., frame), event (latent,)."""
    beta: Frames
    event_dim: int = 1

    @property
    def gaussian(self) -> Independent:
        return self.start

    def rise(self, z: Codes) -> Float[Tensor, "particle *utterance frame"]:
        """log p(x, z) - log q(z)."""
        return self.target.log_density(z) - self._q.log_prob(z)

    def log_likelihood(self, z: Codes) -> Float[Tensor, "particle *utterance frame"]:
        """log f_beta - log q."""
        return self.beta * self.rise(z)

    def log_density(self, z: Codes) -> Float[Tensor, "particle *utterance frame"]:
        return self._q.log_prob(z) + self.log_likelihood(z)

    def value_and_grad(self, z: Codes) -> tuple[Tensor, Codes]:
        value, slope = value_and_grad(self.target, z)
        beta, q = self.beta, self._q
        slope = (1 - beta)[..., None] * q.score(z) + beta[..., None] * slope
        return (1 - beta) * q.log_prob(z) + beta * value, slope

    @cached_property
    def _q(self) -> Quadratic:
        return Quadratic.of(self.start)


@dataclass(frozen=True)
class Path:
    """A way from q to the posterior: what `tempered_smc` found, frozen for the others."""

    betas: Float[Tensor, "step *utterance frame"]
    """beta_1, ..., beta_T of every frame, which stay 1 once they are there."""
    kernels: tuple[Kernel, ...]
    """At each of them, with its step sizes."""


@dataclass(frozen=True)
class Tempered:
    """Where `tempered_smc` arrived."""

    log_evidence: Frames
    """log Z, Gaussian constants included."""
    z: Codes
    """Particles at beta = 1, (particle, ..., frame, latent), of equal weight."""
    path: Path


@unchecked
def tempered_smc(
    target: Target,
    start: Independent,
    *,
    kernel: Kernel | None = None,
    particles: int = 64,
    moves: int = 3,
    keep: float = 0.5,
    seed: int = 0,
) -> Tempered:
    """log Z of every frame by sequential Monte Carlo, and the path it took.

    Args:
        target: log p(x_n, z_n) of every frame, normalised in x.
        start: q(z_n), batch (..., frame), event (latent,).
        kernel: what moves the particles; None: HMC.
        moves: steps of it at each beta.
        keep: share of the particles that the weights at the next beta are to be worth, in (0, 1).

    Raises:
        InputError: counts below 2 and 1, another share; a target of whole utterances; a kernel that cannot be tempered,
            or rejects nothing.
    """
    check(target, kernel, particles, moves, keep)
    rng, z = _begin(start, particles, seed)
    beta = torch.zeros(z.shape[1:-1], dtype=z.dtype, device=z.device)
    moving: Any = HMC(step_size=0.5) if kernel is None else kernel
    step_size = step_size_of(moving, beta) if can_adapt(moving) else None
    total = torch.zeros_like(beta)
    betas: list[Frames] = []
    kernels: list[Kernel] = []
    while not bool((beta == 1).all()):
        if len(betas) == MOST_STEPS:
            raise InputError(
                f"{int((beta < 1).sum())} of {beta.numel()} frames are not at beta = 1 after {MOST_STEPS} steps: "
                "start closer to the posterior, or give more particles"
            )
        rise = Bridge(target, start, beta).rise(z)
        beta, before = _next_beta(rise, beta, keep), beta
        log_w = (beta - before) * rise
        total = total + log_mean(log_w)
        z = drawn_anew(z, log_w, rng)
        if step_size is not None:
            moving = with_step_size(moving, step_size)
        betas.append(beta)
        kernels.append(moving)
        z, error = _moved(moving, Bridge(target, start, beta), z, moves, rng)
        if step_size is not None and error is not None:
            step_size = step_size * (-error).exp()
    return Tempered(total, z, Path(torch.stack(betas), tuple(kernels)))


@unchecked
def annealed_importance(
    target: Target,
    start: Independent,
    path: Path,
    *,
    particles: int = 64,
    moves: int = 3,
    seed: int = 1,
) -> Frames:
    """log of an unbiased estimate of Z: below log Z on average. `path` must not depend on `seed`."""
    rng, z = _begin(start, particles, seed)
    before, log_w = torch.zeros_like(path.betas[0]), z.new_zeros(z.shape[:-1])
    for beta, kernel in zip(path.betas, path.kernels, strict=True):
        bridge = Bridge(target, start, beta)
        log_w = log_w + (beta - before) * bridge.rise(z)
        z, before = _moved(kernel, bridge, z, moves, rng)[0], beta
    return log_mean(log_w)


@unchecked
def reverse_annealed(
    target: Target,
    start: Independent,
    path: Path,
    exact: Float[Tensor, "*utterance frame latent"],
    *,
    particles: int = 64,
    moves: int = 3,
    seed: int = 2,
) -> Frames:
    """Minus the log of an unbiased estimate of 1/Z, from one exact draw of the posterior: above log Z on average."""
    rng = torch.Generator(device=exact.device).manual_seed(seed)
    z = exact.expand(particles, *exact.shape)
    log_w = z.new_zeros(z.shape[:-1])
    befores = [torch.zeros_like(path.betas[0]), *path.betas[:-1]]
    for beta, before, kernel in reversed(list(zip(path.betas, befores, path.kernels, strict=True))):
        bridge = Bridge(target, start, beta)
        z = _moved(kernel, bridge, z, moves, rng)[0]
        log_w = log_w + (beta - before) * bridge.rise(z)
    return -log_mean(-log_w)


@dataclass(frozen=True)
class ComponentEvidence:
    """What every component makes of every frame."""

    evidence: Float[Tensor, "component *utterance frame"]
    """log p(x_n | k), by `tempered_smc`."""
    lower: Float[Tensor, "component *utterance frame"] | None
    """The same by `annealed_importance` along the same path, if asked: lower on average."""
    mixing_weight: Float[Tensor, "component *ones_or_frame"]

    @property
    def responsibilities(self) -> Responsibilities:
        """r_nk: the honest alpha."""
        return torch.softmax(self.mixing_weight.log() + self.evidence, 0)

    def of_mixture(self, evidence: Tensor) -> Frames:
        """log sum_k pi_k p(x_n | k)."""
        return torch.logsumexp(self.mixing_weight.log() + evidence, 0)


@unchecked
def component_evidence(
    target: CollapsedTarget,
    *,
    guesses: Independent | None = None,
    annealed: bool = False,
    particles: int = 64,
    moves: int = 3,
    kernel: Kernel | None = None,
    seed: int = 0,
) -> ComponentEvidence:
    """log p(x_n | k) of every component.

    Args:
        target: the posterior at some W, H, g.
        guesses: q(z_n | k), batch (component, ..., frame), where tempering starts; None: the prior p(z_n | k).
        annealed: find `lower` too.
        particles, moves, kernel, seed: as of `tempered_smc`.
    """
    pi = target.mixing_weight
    options: Any = {"particles": particles, "moves": moves}
    evidence, lower = [], []
    for k in range(target.prior.num_components):
        own = torch.zeros_like(pi)
        own[k] = 1
        of_k, start = replace(target, mixing_weight=own), _start(target, k, guesses)
        smc = tempered_smc(of_k, start, kernel=kernel, seed=seed, **options)
        evidence.append(smc.log_evidence)
        if annealed:
            lower.append(annealed_importance(of_k, start, smc.path, seed=seed + 1, **options))
    pi = pi.reshape(*pi.shape, *[1] * (evidence[0].dim() + 1 - pi.dim()))
    return ComponentEvidence(torch.stack(evidence), torch.stack(lower) if annealed else None, pi)


def _start(target: CollapsedTarget, k: int, guesses: Independent | None) -> Independent:
    """q(z_n | k), a batch of all frames."""
    shape = (*target.power.shape[:-1], target.prior.latent_dim)
    mean, scale = (
        (guesses.mean[k], guesses.stddev[k])
        if guesses is not None
        else (target.components.mean[k, 0], target.components.stddev[k, 0])
    )
    return unchecked_normal(mean.expand(shape), scale.expand(shape))


def check(target: Target, kernel: Kernel | None, particles: int, moves: int, keep: float) -> None:
    """Refuse what cannot be tempered, in one line."""
    if particles < 2 or moves < 1 or not 0 < keep < 1:
        raise InputError(
            f"particles is {particles}, moves {moves}, keep {keep}: give 2 or more, 1 or more, and a share "
            "between 0 and 1"
        )
    if target.event_dim != 1:
        raise InputError(
            f"{type(target).__name__} has whole utterances for events: evidence is of frames, so leave "
            "total_variation at 0"
        )
    check_kernel(kernel)


def check_kernel(kernel: Kernel | None) -> None:
    """Refuse a kernel that cannot be tempered, in one line."""
    for kind, reason in UNTEMPERED.items():
        if isinstance(kernel, kind):
            raise InputError(
                f"{type(kernel).__name__} cannot be tempered, it {reason}: take hmc, mala or random_walk"
            )


def _begin(start: Independent, particles: int, seed: int) -> tuple[torch.Generator, Codes]:
    mean, scale = start.mean, start.stddev
    rng = torch.Generator(device=mean.device).manual_seed(seed)
    shape = (particles, *mean.shape)
    noise = torch.randn(shape, generator=rng, dtype=mean.dtype, device=mean.device)
    return rng, mean + scale * noise


def _moved(
    kernel: Any, bridge: Bridge, z: Codes, moves: int, rng: torch.Generator
) -> tuple[Codes, Frames | None]:
    """z after some steps, and by how much particles were accepted too seldom, where that says something."""
    state, errors = kernel.init(bridge, z), []
    for _ in range(moves):
        state, info = kernel.step(bridge, state, rng=rng)
        if can_adapt(kernel):
            errors.append(acceptance_error(kernel, info).mean(0))
    return state.z, torch.stack(errors).mean(0) if errors else None


def _next_beta(rise: Tensor, beta: Frames, keep: float) -> Frames:
    """The furthest beta up to 1 at which exp((beta' - beta) rise) is worth `keep` of the particles."""
    low, high = torch.zeros_like(beta), 1 - beta

    def enough(step: Frames) -> Tensor:
        return effective_share(step * rise) >= keep

    all_the_way = enough(high)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        fits = enough(middle)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return torch.where(all_the_way, torch.ones_like(beta), beta + low)


def effective_share(log_w: Float[Tensor, "particle *utterance frame"]) -> Frames:
    """(sum w)^2 / (R sum w^2), from 1/R to 1."""
    return (2 * log_mean(log_w) - log_mean(2 * log_w)).exp()


def log_mean(log_w: Float[Tensor, "particle *utterance frame"]) -> Frames:
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def drawn_anew(z: Codes, log_w: Tensor, rng: torch.Generator) -> Codes:
    """Particles drawn by their weights, frame by frame, one uniform number a frame: systematic resampling."""
    count = len(log_w)
    share = torch.softmax(log_w, 0).movedim(0, -1).cumsum(-1)
    u = torch.rand(share.shape[:-1], generator=rng, dtype=z.dtype, device=z.device)
    at = (torch.arange(count, dtype=z.dtype, device=z.device) + u[..., None]) / count
    index = torch.searchsorted(share.contiguous(), at).clamp_max(count - 1).movedim(-1, 0)
    return z.gather(0, index[..., None].expand(z.shape))
