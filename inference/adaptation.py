"""Step sizes found while warming up, one for every chain and frame, and then frozen.

A frame of loud speech has a narrow posterior and a frame of silence a wide one, so no single step suits a recording. An
adaptation watches the acceptance probability a_t = min(1, ratio) of every frame and steers it to the kernel's target:

    Robbins-Monro    log eps <- log eps + t^-kappa (a_t - target)                      [Robbins and Monro 1951]
    dual averaging   log eps from the running mean of target - a_t, shrunk to log 10 eps_0; a weighted mean of all
                     log eps is what is kept                                           [Hoffman and Gelman 2014]

A chain whose step depends on its past is not exactly invariant: draws count only after the steps are frozen, which
`run_chains` sees to. When to use which: Robbins-Monro for E-steps of a few dozen steps, each going on from the last
one's steps; dual averaging for one long run.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.typing import Info, InputError, Kernel, StepSize, Target

Frames = Float[Tensor, "*batch frame"]


class Adaptation(Protocol):
    """How step sizes follow acceptance; `update` is told the number t = 1, 2, ... of the step."""

    def init(self, step_size: Frames) -> Any: ...

    def update(self, tuning: Any, error: Frames, t: int) -> Any:
        """`error` is the target minus the acceptance probability."""

    def step_size(self, tuning: Any, *, final: bool) -> Frames:
        """What to try next, or, if `final`, what to keep."""


@dataclass(frozen=True)
class RobbinsMonro:
    """Stochastic approximation with gains t^-decay; `decay` in (1/2, 1]."""

    decay: float = 0.6

    def init(self, step_size: Frames) -> Frames:
        return step_size.log()

    def update(self, tuning: Frames, error: Frames, t: int) -> Frames:
        return tuning - t**-self.decay * error

    def step_size(self, tuning: Frames, *, final: bool) -> Frames:
        return tuning.exp()


class DualAverage(NamedTuple):
    """Where dual averaging stands: logarithms of step sizes, and the mean error."""

    centre: Tensor
    current: Tensor
    average: Tensor
    error: Tensor


@dataclass(frozen=True)
class DualAveraging:
    """Nesterov's scheme with NUTS's constants."""

    shrinkage: float = 0.05
    delay: float = 10.0
    decay: float = 0.75

    def init(self, step_size: Frames) -> DualAverage:
        log = step_size.log()
        return DualAverage((10 * step_size).log(), log, log, torch.zeros_like(log))

    def update(self, tuning: DualAverage, error: Frames, t: int) -> DualAverage:
        weight = 1 / (t + self.delay)
        mean = (1 - weight) * tuning.error + weight * error
        current = tuning.centre - t**0.5 / self.shrinkage * mean
        weight = t**-self.decay
        average = weight * current + (1 - weight) * tuning.average
        return DualAverage(tuning.centre, current, average, mean)

    def step_size(self, tuning: DualAverage, *, final: bool) -> Frames:
        return (tuning.average if final else tuning.current).exp()


def acceptance_error(kernel: Kernel, info: Info) -> Frames:
    """The kernel's target minus min(1, ratio), a NaN ratio counting as 0."""
    assert info.log_ratio is not None
    accepted = info.log_ratio.nan_to_num(nan=-torch.inf).clamp_max(0).exp()
    return _tuned(kernel).target_acceptance - accepted


def can_adapt(kernel: Kernel) -> bool:
    """Whether the kernel, or Gibbs's inner one, has a step size that its acceptance tells of."""
    return hasattr(_tuned(kernel), "target_acceptance")


def step_size_of(kernel: Kernel, like: Frames) -> Frames:
    """The kernel's step size, in the shape and on the device of `like`; of Gibbs, its inner kernel's.

    Raises:
        InputError: for a kernel that has none, or whose acceptance tells nothing about it.
    """
    tuned = _tuned(kernel)
    if not can_adapt(kernel):
        name = type(tuned).__name__
        raise InputError(f"{name} has no step size to adapt by its acceptance: leave adapt out")
    return torch.as_tensor(tuned.step_size, dtype=like.dtype, device=like.device).expand_as(like)


def with_step_size(kernel: Any, step_size: StepSize) -> Any:
    """The same kernel with that step size; of Gibbs, its inner kernel with it."""
    if hasattr(kernel, "inner"):
        return replace(kernel, inner=with_step_size(kernel.inner, step_size))
    return replace(kernel, step_size=step_size)


def of_every_code(step_size: StepSize, target: Target) -> StepSize:
    """A step size that multiplies codes: (chain, ..., frame, 1) where frames have their own."""
    if isinstance(step_size, Tensor) and step_size.dim():
        return step_size.reshape(*step_size.shape, *[1] * target.event_dim)
    return step_size


def _tuned(kernel: Any) -> Any:
    return _tuned(kernel.inner) if hasattr(kernel, "inner") else kernel
