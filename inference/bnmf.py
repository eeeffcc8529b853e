"""Speech and noise by draws alone: nothing is optimised. (28), (31), S17, S20; [Bando et al. 2018]

EM schemes take the noise for known once it is fitted, and with more iterations the fit takes speech ("Time to quality"
in docs/RESULTS.md). Here W, H, g, c and pi have priors (`noise_draws`, models/nmf_noise.py) and are drawn like z:

    z | W, H, g, c, pi     some steps of a kernel that rejects, on `CollapsedTarget`: s and alpha integrated out
    alpha | z, ...         exactly, its softmax; then pi | alpha, a Dirichlet with a flat prior
    H, then W | z, alpha   `noise_draws`
    log g, a | z, alpha    random-walk steps, the recording's level and its microphone

Every conditional leaves the joint posterior as it is, so that a longer run is only a better one. The first half of the
iterations finds step sizes and is thrown away. Of the second half `draws` are kept, evenly, each with the noise that it
came with, and speech is the mean of their Wiener filters (S20). The chains are apart in everything.

When to use it: where noise itself is in doubt, and to see what EM's estimate hides: its bands know of the noise. It
takes ten times `ldem`'s time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_avse.inference.adaptation import acceptance_error, can_adapt, step_size_of, with_step_size
from pyro_avse.inference.em import EM, Observation, starting_codes
from pyro_avse.inference.gibbs import draw_component
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.monte_carlo import (
    MCState,
    chains_disagree,
    finite_where_idle,
    initial_theta,
    posterior,
)
from pyro_avse.inference.nmf import normalise, stationary_spectrum
from pyro_avse.inference.noise_draws import (
    LevelTarget,
    draw_factor,
    draw_mixing_weight,
    draw_parts,
    draw_rate,
    log_likelihood,
    walk,
)
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import sum_of_frames, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.wiener import average
from pyro_avse.models.nmf_noise import NoiseModel, nmf_noise_variance
from pyro_avse.typing import (
    Chains,
    Codes,
    InputError,
    Kernel,
    Power,
    Separation,
    SpeechPosterior,
    State,
    Target,
)


@dataclass(frozen=True)
class Kept:
    """Of one draw of everything what speech and diagnostics need; chains are an utterance axis, the first."""

    state: State
    """Of z, (1, chain, ..., frame, latent)."""
    accepted: Bool[Tensor, "1 chain *utterance frame"]
    rho: Float[Tensor, "component 1 chain *utterance frame"]
    speech_variance: Float[Tensor, "component 1 chain *utterance frame freq"]
    noise_variance: Float[Tensor, "chain *utterance frame freq"]


@dataclass(frozen=True, kw_only=True)
class BNMFState(MCState):
    """A draw of all there is to draw; chains are an utterance axis, the first, and z has one chain of each."""

    kernel: Kernel
    level_kernel: Kernel
    steps: tuple[Tensor, Tensor]
    """Of log H (..., frame, rank) and of log W (..., freq, rank)."""
    rate: Float[Tensor, "chain *utterance 1 rank"]
    """beta."""
    spectrum: Float[Tensor, "chain *utterance freq"]
    """m_f."""
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True)
class BNMF(EM):
    """Settings of Gibbs sampling over speech and noise.

    `objective` is log p(x | z, alpha, W, H, g, c) but for its constant, the chains' mean.

    Attributes:
        kernel: what moves z; exact, with a step size that its acceptance tells of.
        iterations: sweeps; the first half is thrown away.
        moves: steps of the kernel in a sweep.
        draws: at most so many are kept, of each chain.
        chains: of everything.
        noise: its rank, gain ("recording" or "none"), response and start; its smoothness is not looked at.
        spectrum_shape, activation_shape: a and b.
        explicit: draw speech, noise and its parts before W and H, in place of integrating them out.
        mixing_weight: pi, held at this; None: drawn.

    Raises:
        InputError: a kernel that cannot be adapted, a gain a frame, shapes of 0 and below.
    """

    name: ClassVar[str] = "bnmf"
    cure: ClassVar[str] = "start W and H elsewhere, by another noise model"
    kernel: Kernel = field(default_factory=lambda: HMC(steps=3))
    iterations: int = 200
    moves: int = 2
    draws: int = 20
    chains: int = 2
    noise: NoiseModel = field(default_factory=NoiseModel)
    spectrum_shape: float = 1.0
    activation_shape: float = 2.0
    explicit: bool = False
    mixing_weight: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_settings(self, moves=1)
        kind = type(self.kernel).__name__
        if not can_adapt(self.kernel):
            raise InputError(
                f"bnmf needs an exact kernel whose step size it can find, and {kind} has none: take hmc, mala or "
                "random_walk"
            )
        if self.noise.gain == "frame":
            raise InputError(
                "bnmf draws one gain a recording: take a noise model whose gain is recording or none"
            )
        if not (self.spectrum_shape > 0 and self.activation_shape > 0):
            raise InputError(
                f"spectrum_shape is {self.spectrum_shape}, activation_shape {self.activation_shape}: give numbers "
                "above 0"
            )

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> BNMFState:
        """Where `mcem` starts, in every chain; W of mean 1."""
        theta = initial_theta(self, observation, rng)  # type: ignore[arg-type]
        frames, freqs = observation.power.shape[-2:]
        theta["dictionary"], theta["activations"] = (
            theta["dictionary"] * freqs,
            theta["activations"] / freqs,
        )
        m = stationary_spectrum(observation.power, observation.mask)
        rank, level = self.noise.rank, m.mean(-1)[..., None, None]
        rate = (self.activation_shape * rank / level).expand(*level.shape[:-1], rank)
        for name in ("dictionary", "activations", "gain", "response"):
            theta[name] = in_chains(theta[name], self.chains)
        for name in ("mixing_weight", "responsibilities"):  # the component axis comes first
            theta[name] = torch.stack([in_chains(of_k, self.chains) for of_k in theta[name]])
        shape = theta["dictionary"].shape[:-2]
        step = m.new_full((), 0.2)
        return BNMFState(
            **theta,
            z=starting_codes(observation, self.chains)[None],
            kernel=self.kernel,
            level_kernel=RandomWalk(step_size=0.05),
            steps=(step.expand(*shape, frames, rank), step.expand(*shape, freqs, rank)),
            rate=in_chains(rate, self.chains),
            spectrum=in_chains(m, self.chains),
        )

    @unchecked
    def step(
        self, observation: Observation, state: BNMFState, *, rng: torch.Generator
    ) -> BNMFState:
        """z, alpha and pi, level, H and W, each given all others."""
        every, t = of_chains(observation, self.chains), state.iteration + 1
        learning = t**-0.6 if t <= self.iterations // 2 else 0.0
        state = replace(state, iteration=t)
        # z, alpha and pi
        target = posterior(every, state)
        z, kernel, accepted = moved(state.kernel, target, state.z, self.moves, learning, rng)
        log_variance = target.prior.log_variance(z, target.lips)
        alpha = draw_component(target.component_log_joint(z, log_variance), rng=rng)[0]
        state = replace(state, z=z, kernel=kernel)
        if self.mixing_weight is None:
            counted = one_hot(alpha, target.prior.num_components).movedim(-1, 0).to(z.dtype)
            pi = draw_mixing_weight(counted, every.informed, rng=rng)
            state = replace(state, mixing_weight=pi)
        own = log_variance[0, 0]
        if len(log_variance) > 1:
            own = log_variance[:, 0].gather(0, alpha[None, ..., None].expand(1, *own.shape))[0]
        state = self.move_level(every, state, own, learning, rng)
        state = self.move_noise(every, state, own, learning, rng)
        V = self.speech(state, own) + nmf_noise_variance(state.dictionary, state.activations)
        fit = sum_of_frames(log_likelihood(every.power, V), every.mask).mean(0)
        state = replace(state, objective=fit, partial=z)
        burned, kept = t - self.iterations // 2, self.iterations - self.iterations // 2
        if burned < 1 or burned * self.draws // kept == (burned - 1) * self.draws // kept:
            return state
        return replace(state, kept=(*state.kept, keep(every, state, log_variance, accepted)))

    def speech(self, state: BNMFState, log_variance: Tensor) -> Power:
        """g c sigma of the drawn components."""
        log_c = state.log_response
        sigma = (log_variance if log_c is None else log_variance + log_c[..., None, :]).exp()
        return state.gain[..., None] * sigma

    def move_level(
        self,
        every: Observation,
        state: BNMFState,
        own: Tensor,
        learning: float,
        rng: torch.Generator,
    ) -> BNMFState:
        """log g and a."""
        if self.noise.gain == "none":
            return state
        noise = nmf_noise_variance(state.dictionary, state.activations)
        u = state.gain[..., :1].log()
        if state.response is not None:
            u = torch.cat([u, state.response], -1)
        target = LevelTarget(every.power, own.exp(), noise, every.mask)
        start = u[None, ..., None, :]
        u, kernel, _ = moved(state.level_kernel, target, start, self.moves, learning, rng)
        u = u[0, ..., 0, :]
        gain = u[..., :1].exp().expand_as(state.gain)
        response = None if state.response is None else u[..., 1:]
        return replace(state, gain=gain, response=response, level_kernel=kernel)

    def move_noise(
        self,
        every: Observation,
        state: BNMFState,
        own: Tensor,
        learning: float,
        rng: torch.Generator,
    ) -> BNMFState:
        """H, W and beta."""
        a, b = self.spectrum_shape, self.activation_shape
        W, H, V_s, mask = state.dictionary, state.activations, self.speech(state, own), every.mask
        level = state.spectrum.mean(-1)
        w_rate = a * (level[..., None] / state.spectrum)[..., None]
        kept = None if mask is None else mask[..., None, :]
        step_H, step_W = state.steps
        if self.explicit:
            C = draw_parts(every.x, V_s, W, H, rng)
            by_W = torch.stack([(c / W[..., k, None, :]).sum(-1) for k, c in enumerate(C)], -1)
            H = draw_factor(H, by_W, W.shape[-1], b, state.rate, rng=rng)
            C = C if mask is None else torch.where(mask[..., None], C, 0)
            by_H = torch.stack([(c / H[..., k, None]).sum(-2) for k, c in enumerate(C)], -1)
            count = H.shape[-2] if mask is None else mask.sum(-1)[..., None, None]
            W = draw_factor(W.mT, by_H, count, a, w_rate, rng=rng).mT
        else:
            tuned: Any = {"learning": learning, "rng": rng}
            H, step_H = walk(every.power, V_s, H, W, step_H, b, state.rate, **tuned)
            own_W, step_W = walk(
                every.power.mT, V_s.mT, W.mT, H.mT, step_W, a, w_rate, kept=kept, **tuned
            )
            W = own_W.mT
        rate = draw_rate(H, b, level, mask, rng=rng)
        return replace(state, dictionary=W, activations=H, steps=(step_H, step_W), rate=rate)

    @unchecked
    def finish(
        self, observation: Observation, state: BNMFState, *, rng: torch.Generator
    ) -> Separation:
        """S20, by all draws that were kept.

        `target` has their mean noise, and level and pi of the first chain's last draw, as W and H are.
        """
        kept = state.kept
        speech, noise, rho = (
            torch.cat([getattr(k, name) for k in kept], dim)
            for name, dim in (("speech_variance", 2), ("noise_variance", 0), ("rho", 2))
        )  # draws of all chains in a row
        speech, rho = speech[:, 0], rho[:, 0] / noise.shape[0]
        gain = average(speech / (speech + noise), rho)
        chains = chains_of(kept, self.kernel)
        W, H = normalise(state.dictionary[0], state.activations[0])
        every = of_chains(observation, self.chains)
        target = replace(
            posterior(every, state),
            lips=observation.v,
            power=observation.power,
            noise_variance=noise.mean(0),
            mixing_weight=state.mixing_weight[:, 0],
            gain=state.gain[0],
            log_response=None if state.log_response is None else state.log_response[0],
        )
        return Separation(
            speech=gain * observation.x,
            responsibilities=rho.sum(1),
            mixing_weight=state.mixing_weight.mean(1),
            dictionary=W,
            activations=H,
            objective=state.objective[None],
            z=state.z[0],
            target=target,
            chains=chains,
            gain=None if self.noise.gain == "none" else state.gain[0],
            log_response=target.log_response,
            chains_disagree=chains_disagree(chains),
            posterior=SpeechPosterior(observation.x, speech, noise[None], rho, of_recording=True),
        )


def keep(every: Observation, state: BNMFState, log_variance: Tensor, accepted: Tensor) -> Kept:
    """The draw that a state is, alpha summed out: rho at what it ended with."""
    target = posterior(every, state)
    joint = target.component_log_joint(state.z, log_variance)
    rho = torch.softmax(joint, 0)
    speech = target.speech_variance(log_variance)
    density = State(state.z, torch.logsumexp(joint, 0))
    noise = target.noise_variance
    return Kept(density, accepted, rho, finite_where_idle(speech, rho), noise)


def chains_of(kept: Sequence[Kept], kernel: Kernel) -> Chains:
    """The kept draws of z, as other schemes return them."""
    draws, density, accepted = (
        torch.stack([part[0] for part in parts], 1)
        for parts in (
            [k.state.z for k in kept],
            [k.state.log_density for k in kept],
            [k.accepted for k in kept],
        )
    )
    last = State(draws[:, -1], density[:, -1])
    rate = accepted.to(density.dtype).mean(1)
    return Chains(draws, density, accepted, None, rate, last, kernel)


def moved(
    kernel: Kernel, target: Target, z: Codes, steps: int, learning: float, rng: torch.Generator
) -> tuple[Codes, Kernel, Tensor]:
    """Some steps of a kernel, whose own step size follows the acceptance where `learning` is above 0."""
    state = kernel.init(target, z)
    for _ in range(steps):
        state, info = kernel.step(target, state, rng=rng)
        if learning:
            size = step_size_of(kernel, state.log_density)
            kernel = with_step_size(
                kernel, size * (-learning * acceptance_error(kernel, info)).exp()
            )
    return state.z, kernel, info.accepted


def of_chains(observation: Observation, chains: int) -> Observation:
    """The same recording in every chain."""
    names = ("x", "power", "v", "mask", "lips_mask")
    return replace(
        observation, **{name: in_chains(getattr(observation, name), chains) for name in names}
    )


def in_chains(tensor: Any, chains: int) -> Any:
    """A tensor with an axis of chains in front; None stays."""
    return None if tensor is None else tensor.expand(chains, *tensor.shape)
