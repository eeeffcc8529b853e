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
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.distributions import squared_magnitude, unchecked_normal, update_mixing_weight
from pyro_avse.errors import Divergence
from pyro_avse.inference.adaptation import Adaptation
from pyro_avse.inference.guess import first_component, guessed_codes, guessed_factors
from pyro_avse.inference.nmf import Activations, Dictionary, initial_factors
from pyro_avse.inference.run import run_chains, unchecked
from pyro_avse.inference.settings import check_prior
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import (
    Chains,
    FrameMask,
    Guess,
    GuideForNoise,
    InputError,
    MixingWeight,
    Power,
    Responsibilities,
    Separation,
    SequencePrior,
    Spectrum,
    SpeechPrior,
    Target,
    couples_frames,
    switches,
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
    lips_mask: FrameMask | None = None
    """False where a frame has no picture: it is enhanced by its sound alone."""
    dictionary: Dictionary | None = None
    """Where W starts, as another recording of the same noise left it; None: as the noise model says."""
    guess: Guess | None = None
    """What a guide for noisy speech believes; None: there is none."""

    @property
    def informed(self) -> FrameMask | None:
        """The frames whose r(alpha_n) says something of pi: not padding, nor, where components look at the lips, those
        without a picture.
        """
        if self.lips_mask is None or not any(self.prior.components_see):
            return self.mask
        return self.lips_mask if self.mask is None else self.lips_mask & self.mask


@unchecked
def observe(
    prior: SpeechPrior,
    mixture: Spectrum,
    lips: Tensor | None = None,
    *,
    mask: FrameMask | None = None,
    lips_mask: FrameMask | None = None,
    dictionary: Dictionary | None = None,
    guide: GuideForNoise | None = None,
) -> Observation:
    """A mixture x (..., frame, freq) and its lips, with what is computed of them once, a guide's beliefs among it.

    Raises InputError for frames without a picture under a prior that cannot do without.
    """
    power = squared_magnitude(mixture)
    if lips is None or not prior.uses_lips:
        lips_mask = None
    if lips_mask is not None and prior.requires_lips:
        missing = int((~lips_mask if mask is None else ~lips_mask & mask).sum())
        if missing:
            raise InputError(
                f"lips_mask leaves {missing} frames without a picture, and this model needs one in each: take "
                "a_vae, min_vae_v2, min_vae_v3 or vae_mm, or give the lips there"
            )
        lips_mask = None  # every frame of sound has one
    v = prior.visual_features(lips)
    if couples_frames(prior):
        prior = cast(SequencePrior, prior).within(mask=mask)
    guess = None
    if guide is not None:
        guess = guide.guess(power, lips, mask=mask, lips_mask=lips_mask)
        if len(guess.responsibilities) > prior.num_components:  # a mixture without its lips
            guess = first_component(guess)
    return Observation(prior, mixture, power, lips, v, mask, lips_mask, dictionary, guess)


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


class RunsChains(Protocol):
    """A scheme whose E-step runs chains."""

    name: ClassVar[str]

    @property
    def adapt(self) -> Adaptation | None: ...


ChainState = TypeVar("ChainState", bound=Any)
"""A subclass of `EMState` with `kernel`."""


class EM(ABC):
    """A scheme of E- and M-steps: subclasses are frozen dataclasses with `init`, `step`, `finish` and `iterations`."""

    name: ClassVar[str]
    """In `SCHEMES`."""
    cure: ClassVar[str] = "take a smaller step size, or a kernel that can reject"
    """What a Divergence tells to do."""
    has_draws: ClassVar[bool] = True
    """Whether it ends with a posterior of speech (`Separation.posterior`)."""
    of_paths: ClassVar[bool] = False
    """Whether it can do without independent frames, as priors that couple them ask."""
    of_switching: ClassVar[bool] = False
    """Whether it can do with an alpha_1:N that is a Markov chain."""
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
        lips_mask: FrameMask | None = None,
        seed: int = 0,
        dictionary: Dictionary | None = None,
        guide: GuideForNoise | None = None,
        progress: Callable[[Any, int], None] | None = None,
    ) -> Separation:
        """Separate x (..., frame, freq) into speech and noise.

        Args:
            mask: (..., frame), False where padding is.
            lips_mask: (..., frame), False where a frame has no picture.
            seed: of every draw.
            dictionary: where W starts, (rank, freq) or with utterance axes.
            guide: for noisy speech, of this prior: codes, noise and level start at what it believes.
            progress: called after every step with the state, and how many steps there are at most.

        Raises:
            Divergence: an objective or a chain's log density became NaN or infinite.
            InputError: lips or settings that do not suit the prior, or a prior that couples frames where each is taken
                on its own.
        """
        check_prior(self, prior)
        observation = observe(
            prior,
            mixture,
            lips,
            mask=mask,
            lips_mask=lips_mask,
            dictionary=dictionary,
            guide=guide,
        )
        rng = torch.Generator(device=mixture.device).manual_seed(seed)
        return run(self.given(observation), observation, rng=rng, progress=progress)

    def given(self, observation: Observation) -> "EM":
        """The scheme that suits what is given."""
        return self


def run(
    scheme: EM,
    observation: Observation,
    *,
    rng: torch.Generator,
    progress: Callable[[Any, int], None] | None = None,
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
            progress(state, scheme.iterations)
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
) -> dict[str, Any]:
    """What every scheme starts with, by the names of `EMState`: W, H, pi, r(alpha_n) = pi, no objective yet."""
    power = observation.power
    W, H = initial_factors(power, noise, mask=observation.mask, rng=rng)
    if observation.guess is not None and noise.start == "guide":
        W, H = guessed_factors(observation.guess, noise, W, H, mask=observation.mask)
    if observation.dictionary is not None:
        W = observation.dictionary.expand_as(W)
    pi = initial_mixing_weight(observation.prior, power, mixing_weight)
    r = frame_weight(observation, pi)
    if r.dim() == pi.dim():
        r = pi[..., None]
    r = r.expand(*pi.shape, power.shape[-2])
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
            f"mixing_weight is {held}: give {K} numbers of 0 or more that sum to 1, one a component"
        )
    utterances = power.shape[:-2]
    return power.new_tensor(pi).reshape(K, *[1] * len(utterances)).expand(K, *utterances)


def next_weight(scheme: Any, observation: Observation, state: EMState) -> MixingWeight:
    """(44), where pi is not held; where alpha_1:N is a chain pi is of alpha_1, and one frame is too few to learn it."""
    if scheme.mixing_weight is not None or switches(observation.prior):
        return state.mixing_weight
    return update_mixing_weight(state.responsibilities, observation.informed)


def frame_weight(
    observation: Observation, mixing_weight: MixingWeight
) -> MixingWeight | Responsibilities:
    """pi as a frame has it: without a picture, the components that look at the lips have none of it.

    (component, ...) where all frames have one, else (component, ..., frame).
    """
    sees = observation.prior.components_see
    if observation.lips_mask is None or not any(sees):
        return mixing_weight
    blind = mixing_weight.new_tensor([not see for see in sees])
    blind = blind.reshape(-1, *[1] * (mixing_weight.dim() - 1)) * mixing_weight
    blind = blind / blind.sum(0).clamp_min(torch.finfo(blind.dtype).tiny)
    return torch.where(observation.lips_mask, mixing_weight[..., None], blind[..., None])


def encode(observation: Observation, power: Power) -> Independent:
    """q(z_n | s_n, v_n, alpha_n = k) at speech of that power; without a picture, of all components that which hears.

    Where there is a guide for noisy speech, what it believes in their place.
    """
    if observation.guess is not None:
        return observation.guess.codes
    q = observation.prior.encode(power, observation.lips)
    return q if observation.lips_mask is None else heard_where_unseen(observation, q)


def heard_where_unseen(observation: Observation, q: Independent) -> Independent:
    """q with component 0's, which is audio, in all frames without a picture."""
    seen = observation.lips_mask
    assert seen is not None
    mean, scale = (torch.where(seen[..., None], p, p[:1]) for p in (q.mean, q.stddev))
    return unchecked_normal(mean, scale)


def move_chains(
    scheme: "RunsChains",
    state: ChainState,
    target: Target,
    *,
    warmup: int,
    draws: int,
    rng: torch.Generator,
) -> tuple[ChainState, Chains]:
    """The chains of a state, moved on by its kernel; the state where they then stand."""
    chains = run_chains(
        state.kernel,
        target,
        state.z,
        draws=draws,
        warmup=warmup,
        adapt=scheme.adapt,
        seed=rng,
        where=f"{scheme.name}, iteration {state.iteration + 1}",
    )
    return replace(state, z=chains.state.z, kernel=chains.kernel, partial=chains), chains


def starting_codes(
    observation: Observation, chains: int
) -> Float[Tensor, "chain *utterance frame latent"]:
    """Where chains start: one at `initial_codes`, more of them overdispersed [Gelman and Rubin 1992].

    That is, at the means of the mixture's encoders in turn, the last component's first. With one component, or without
    the lips that one of them looks at, all start at `initial_codes`; and in frames without a picture where they would
    if there were no lips at all. Where alpha_1:N is a chain every component has as many, at its own encoder's mean. A
    guide for noisy speech says it better than any encoder (`guessed_codes`).
    """
    if observation.guess is not None:
        return guessed_codes(observation.guess, chains)
    prior, power, lips = observation.prior, observation.power, observation.lips
    if switches(prior):
        means = prior.encode(power, lips).mean
        start = means.repeat_interleave(-(-chains // len(means)), 0)
    elif chains == 1 or prior.num_components == 1 or (prior.uses_lips and lips is None):
        start = prior.initial_codes(power, lips)
        start = start.expand(chains, *start.shape)
    else:
        means = prior.encode(power, lips).mean
        start = torch.stack([means[-1 - chain % len(means)] for chain in range(chains)])
    if observation.lips_mask is None:
        return start
    alone = getattr(prior, "without_lips", prior).initial_codes(power, None)
    return torch.where(observation.lips_mask[..., None], start, alone)
