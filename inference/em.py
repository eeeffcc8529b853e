"""The one loop of all schemes that alternate an E-step and an M-step. Slides S4, S6, S7

A scheme is what a kernel is: a frozen dataclass of settings with pure functions,

    state = scheme.init(observation, rng=rng)            where it starts
    state = scheme.step(observation, state, rng=rng)     one E-step, one M-step
    scheme.finish(observation, state, rng=rng)           the last E-step, if it has one, and the estimate

so that one can stop after any step, look at the state, and go on; `scheme(prior, x, lips)` runs them all. The loop
holds what they share: the objective, when to stop, and what to say of a divergence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.errors import Divergence
from pyro_avse.inference.nmf import Activations, Dictionary
from pyro_avse.inference.run import unchecked
from pyro_avse.models.nmf_noise import NoiseModel, initial_factors
from pyro_avse.typing import (
    FrameMask,
    InputError,
    MixingWeight,
    Power,
    Responsibilities,
    Separation,
    Spectrum,
    SpeechPrior,
)


@dataclass(frozen=True)
class Observation:
    """What is given, and stays as it is while a scheme runs: `observe` makes one."""

    prior: SpeechPrior
    x: Spectrum
    """The mixture."""
    power: Power
    """|x|^2."""
    lips: Tensor | None
    """The pictures, for encoders."""
    v: Tensor | None
    """`prior.visual_features` of them, for prior and decoder."""
    mask: FrameMask | None = None
    dictionary: Dictionary | None = None
    """Where W starts, as another recording of the same noise left it; None: as the noise model says."""


@unchecked
def observe(
    prior: SpeechPrior,
    mixture: Spectrum,
    lips: Tensor | None = None,
    *,
    mask: FrameMask | None = None,
    dictionary: Dictionary | None = None,
) -> Observation:
    """A mixture x (..., frame, freq) and its lips, with what is computed of them once."""
    power = mixture.real.square() + mixture.imag.square()
    v = prior.visual_features(lips)
    return Observation(prior, mixture, power, lips, v, mask, dictionary)


@dataclass(frozen=True, kw_only=True)
class EMState:
    """The least that the next step needs, and what can be watched; every scheme has a subclass."""

    dictionary: Dictionary
    activations: Activations
    mixing_weight: MixingWeight
    responsibilities: Responsibilities
    z: Float[Tensor, "chain *utterance frame latent"]
    """Where the chains, or the estimate of z, stand."""
    iteration: int = 0
    """Steps behind it."""
    objective: Float[Tensor, "*utterance"]
    """After the last step, the scheme's own; NaN before the first."""
    partial: Any = None
    """What a Divergence in this step is to hold: its chains, or the codes before it."""


class EM(ABC):
    """A scheme of E- and M-steps: subclasses are frozen dataclasses with `init`, `step`, `finish` and `iterations`."""

    name: ClassVar[str]
    """In `SCHEMES`."""
    cure: ClassVar[str] = "take a smaller step size, or a kernel that can reject"
    """What a Divergence tells to do."""
    iterations: int
    tolerance: float | None = None

    @abstractmethod
    def init(self, observation: Observation, *, rng: torch.Generator) -> Any:
        """The state before the first step."""

    @abstractmethod
    def step(self, observation: Observation, state: Any, *, rng: torch.Generator) -> Any:
        """One E-step and one M-step; `state` stays as it is."""

    @abstractmethod
    def finish(self, observation: Observation, state: Any, *, rng: torch.Generator) -> Separation:
        """The estimate; its `objective` is the state's alone, in place of all iterations'."""

    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        seed: int = 0,
        dictionary: Dictionary | None = None,
        progress: Callable[[Any], None] | None = None,
    ) -> Separation:
        """Separate x (..., frame, freq) into speech and noise.

        Args:
            seed: of every draw.
            dictionary: where W starts, (rank, freq) or with utterance axes.
            progress: called with the state after every step.

        Raises:
            Divergence: an objective or a chain's log density became NaN or infinite.
            InputError: lips or settings that do not suit the prior.
        """
        observation = observe(prior, mixture, lips, mask=mask, dictionary=dictionary)
        rng = torch.Generator(device=mixture.device).manual_seed(seed)
        return run(self, observation, rng=rng, progress=progress)


def run(
    scheme: EM,
    observation: Observation,
    *,
    rng: torch.Generator,
    progress: Callable[[Any], None] | None = None,
) -> Separation:
    """All steps of a scheme, until it is done or has converged; `objective` is (iteration, ...). Raises Divergence."""
    state = scheme.init(observation, rng=rng)
    objective: list[Tensor] = []
    for _ in range(scheme.iterations):
        state = scheme.step(observation, state, rng=rng)
        objective.append(state.objective)
        if not state.objective.isfinite().all():
            raise Divergence(
                f"{scheme.name}: the objective is not finite in iteration {state.iteration}: {scheme.cure}",
                state.partial,
            )
        if progress is not None:
            progress(state)
        if scheme.tolerance is not None and converged(objective, scheme.tolerance, observation):
            break
    found = scheme.finish(observation, state, rng=rng)
    return replace(found, objective=torch.stack(objective))


def converged(
    objective: list[Float[Tensor, "*utterance"]],
    tolerance: float,
    observation: Observation,
    window: int = 10,
) -> bool:
    """Whether no utterance's mean objective of the last `window` iterations gained `tolerance` a coefficient."""
    if len(objective) % window or len(objective) < 2 * window:
        return False
    power, mask = observation.power, observation.mask
    frames = power.shape[-2] if mask is None else mask.sum(-1)
    recent = torch.stack(objective[-2 * window :]).unflatten(0, (2, window)).mean(1)
    gain = (recent[1] - recent[0]) / (frames * power.shape[-1])
    return bool((gain < tolerance).all())


def noise_and_weights(
    observation: Observation,
    noise: NoiseModel,
    mixing_weight: tuple[float, ...] | None,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """What every scheme starts with, by the names of `EMState`: W, H, pi, r(alpha_n) = pi, no objective yet."""
    power = observation.power
    W, H = initial_factors(power, noise, mask=observation.mask, rng=rng)
    if observation.dictionary is not None:
        W = observation.dictionary.expand_as(W)
    pi = initial_mixing_weight(observation.prior, power, mixing_weight)
    r = pi[..., None].expand(*pi.shape, power.shape[-2])
    none_yet = power.new_full(power.shape[:-2], torch.nan)
    return {
        "dictionary": W,
        "activations": H,
        "mixing_weight": pi,
        "responsibilities": r,
        "objective": none_yet,
    }


def initial_mixing_weight(
    prior: SpeechPrior, power: Power, held: tuple[float, ...] | None
) -> MixingWeight:
    """pi, (component, ...): even, or what it is held at. Raises InputError where that is no distribution."""
    K = prior.num_components
    pi = [1 / K] * K if held is None else list(held)
    if len(pi) != K or min(pi) < 0 or abs(sum(pi) - 1) > 1e-6:
        raise InputError(
            f"mixing_weight is {held}: give {K} numbers of 0 or more that sum to 1 for "
            f"{type(prior).__name__}"
        )
    utterances = power.shape[:-2]
    return power.new_tensor(pi).reshape(K, *[1] * len(utterances)).expand(K, *utterances)
