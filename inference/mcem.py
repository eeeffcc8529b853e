"""Monte Carlo EM on the collapsed posterior: s and alpha integrated out. [Sadeghi2020]; slides S17-S20, S7

The observed mixture has, given the code z_n, the component k, and a gain g_n per frame,

    x_n | z_n, k ~ N_c(0, diag V_rk),   V_k = g_n sigma_k(z_n) + (W H)_n                              (S17)

E-step: draws z_r from p(z | x) (`CollapsedTarget`), and for each the exact posterior of alpha_n given it,

    rho_rk proportional to pi_k p(z_r | k) N_c(x_n; 0, V_rk),   sum_k rho_rk = 1

so that expectations over (z, alpha) are averages with weights w_rk = rho_rk / R. M-step: raise

    Q = sum_rk w_rk log p(x, z_r, k)                                                                   (S18)

in W, H and g by one multiplicative update each (S19), V computed anew between them; pi is the mean of rho. With
exponent 1/2 an update steps to the minimum of a majoriser of -Q, so Q never falls. Speech is the posterior mean

    s_n = x_n sum_rk w_rk g_n sigma_k(z_r) / V_rk                                                       (S20)

over a longer last run of the chains. When to use it: the soundest of the EM schemes, since it factorises nothing, for
about half as much again of VEM's time; the gain lets speech be quieter or louder than in training.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.adaptation import Adaptation
from pyro_avse.inference.em import EM, EMState, Observation, noise_and_weights
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.nmf import FACTOR_FLOOR, Activations, Dictionary, normalise
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import run_chains, starting_codes, sum_of_frames, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.mixture import update_mixing_weight
from pyro_avse.models.nmf_noise import NoiseModel, nmf_noise_variance
from pyro_avse.typing import (
    Chains,
    FrameMask,
    Kernel,
    Power,
    Separation,
    Spectrum,
    Target,
)

Draws = Float[Tensor, "component draw *utterance frame freq"]
Weights = Float[Tensor, "component draw *utterance frame"]
Gain = Float[Tensor, "*utterance frame"]

GAIN_FLOOR = 1e-6
"""A frame's gain stays above this, -60 dB: at zero a multiplicative update could never raise it again."""
S = TypeVar("S", bound="MCState")


@dataclass(frozen=True, kw_only=True)
class MCState(EMState):
    """theta = {W, H, g, pi} of (S18); of `mcem` and its relatives."""

    gain: Gain
    """g_n."""


@dataclass(frozen=True)
class Drawn:
    """What an E-step found."""

    target: CollapsedTarget
    """The posterior of z, s and alpha integrated out, at the theta that it met."""
    sigma: Draws
    """Speech's variances at the draws, as the microphone hears them."""
    weights: Weights
    """What each draw counts with each component; they sum to one."""
    chains: Chains | None = None


@dataclass(frozen=True, kw_only=True)
class MCEMState(MCState):
    """Where the chains stand besides."""

    kernel: Kernel
    """With the step sizes that adaptation found."""
    speech_power: Power
    """E|s|^2, which a kernel that proposes from the guide wants; at first |x|^2."""


@dataclass(frozen=True)
class MCEM(EM):
    """Settings of Monte Carlo EM: S7, S18. `objective` is Q by `monte_carlo_q`: log p(x | z) averaged by the weights.

    Attributes:
        kernel: what moves z.
        iterations: EM iterations.
        warmup, draws: steps thrown away and kept in each E-step, for each chain.
        first_warmup: of the first E-step, in which chains come from afar; None: as in the others. With few steps an
            iteration it decides: what the chains cannot explain yet, the noise model takes for good.
        final_warmup, final_draws: of the last E-step, from which speech is estimated.
        chains: chains for each frame, started as `starting_codes` says.
        noise: what is assumed of W, H and g.
        adapt, mixing_weight: as in `VEM`.
        exponent: of the updates S19, in (0, 1]; 1/2 never lowers Q.
    """

    name: ClassVar[str] = "mcem"
    kernel: Kernel = field(default_factory=RandomWalk)
    iterations: int = 100
    warmup: int = 30
    draws: int = 10
    first_warmup: int | None = None
    final_warmup: int = 75
    final_draws: int = 25
    chains: int = 1
    noise: NoiseModel = field(default_factory=NoiseModel)
    adapt: Adaptation | None = None
    mixing_weight: tuple[float, ...] | None = None
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> MCEMState:
        """Speech as loud as in training, and chains where the encoders say."""
        prior, power = observation.prior, observation.power
        return MCEMState(
            **noise_and_weights(observation, self.noise, self.mixing_weight, rng),
            gain=torch.ones_like(power[..., 0]),
            z=starting_codes(prior, power, observation.lips, self.chains),
            kernel=self.kernel,
            speech_power=power,
        )

    @unchecked
    def step(
        self, observation: Observation, state: MCEMState, *, rng: torch.Generator
    ) -> MCEMState:
        """Draws of p(z | x) with their weights, then one update each of H, W, g and pi."""
        first = self.warmup if self.first_warmup is None else self.first_warmup
        warmup = self.warmup if state.iteration else first
        state, drawn = self.e_step(observation, state, warmup, self.draws, rng)
        return self.m_step(observation, state, drawn)

    def e_step(
        self,
        observation: Observation,
        state: MCEMState,
        warmup: int,
        draws: int,
        rng: torch.Generator,
    ) -> tuple[MCEMState, Drawn]:
        """Draws of p(z | x), and rho."""
        target = self.collapsed(observation, state)
        chains = run_chains(
            state.kernel,
            self.sampled(observation, target),
            state.z,
            draws=draws,
            warmup=warmup,
            adapt=self.adapt,
            seed=rng,
            where=f"{self.name}, iteration {state.iteration + 1}",
        )
        sigma, w = weighted_draws(target, chains.draws.flatten(0, 1))
        state = replace(
            state,
            z=chains.state.z,
            kernel=chains.kernel,
            responsibilities=w.sum(1),
            partial=chains,
        )
        return state, Drawn(target, sigma, w, chains)

    def collapsed(self, observation: Observation, state: MCEMState) -> CollapsedTarget:
        """The posterior of z at the present theta."""
        prior, power = observation.prior, observation.power
        proposal = guide_proposal(
            state.kernel,
            prior,
            state.speech_power / state.gain[..., None],
            observation.lips,
            state.responsibilities,
        )
        noise = nmf_noise_variance(state.dictionary, state.activations)
        return CollapsedTarget(
            prior, observation.v, power, noise, state.mixing_weight, state.gain, proposal=proposal
        )

    def sampled(self, observation: Observation, target: CollapsedTarget) -> Target:
        """What the chains are to sample: that posterior."""
        return target

    def m_step(self, observation: Observation, state: MCEMState, drawn: Drawn) -> MCEMState:
        """S19; pi is the mean of rho."""
        power, mask, sigma, w = observation.power, observation.mask, drawn.sigma, drawn.weights
        if drawn.target.proposal is not None:
            W, H, g = state.dictionary, state.activations, state.gain
            heard = monte_carlo_speech_power(power, sigma, w, W, H, g)
            state = replace(state, speech_power=heard)
        state = maximise(self, observation, state, drawn)
        W, H, g = state.dictionary, state.activations, state.gain
        return replace(state, objective=monte_carlo_q(power, sigma, w, W, H, g, mask))

    @unchecked
    def finish(
        self, observation: Observation, state: MCEMState, *, rng: torch.Generator
    ) -> Separation:
        """S20, by a longer run of the chains."""
        state, drawn = self.e_step(observation, state, self.final_warmup, self.final_draws, rng)
        return separation(self, observation, state, drawn)


class HasTheta(Protocol):
    """A scheme with the settings of the M-step."""

    @property
    def noise(self) -> NoiseModel: ...
    @property
    def exponent(self) -> float: ...
    @property
    def mixing_weight(self) -> tuple[float, ...] | None: ...


def maximise(scheme: HasTheta, observation: Observation, state: S, drawn: Drawn) -> S:
    """The M-step: one update each of H, W and g (S19), and pi, the mean of rho, where it is not held."""
    power, mask = observation.power, observation.mask
    W, H, g = state.dictionary, state.activations, state.gain
    sigma, w = drawn.sigma, drawn.weights
    W, H, g = m_step(power, sigma, w, W, H, g, scheme.noise, scheme.exponent, mask)
    pi = state.mixing_weight
    if scheme.mixing_weight is None:
        pi = update_mixing_weight(state.responsibilities, mask)
    return replace(
        state,
        dictionary=W,
        activations=H,
        gain=g,
        mixing_weight=pi,
        iteration=state.iteration + 1,
    )


def separation(
    scheme: HasTheta, observation: Observation, state: MCState, drawn: Drawn
) -> Separation:
    """S20 at the draws, and theta, of a state."""
    W, H, g = state.dictionary, state.activations, state.gain
    return Separation(
        speech=monte_carlo_wiener(observation.x, drawn.sigma, drawn.weights, W, H, g),
        responsibilities=state.responsibilities,
        mixing_weight=state.mixing_weight,
        dictionary=W,
        activations=H,
        objective=state.objective[None],
        z=state.z,
        target=drawn.target,
        chains=drawn.chains,
        gain=None if scheme.noise.gain == "none" else g,
    )


def weighted_draws(
    target: CollapsedTarget, z: Float[Tensor, "draw *utterance frame latent"]
) -> tuple[Draws, Weights]:
    """sigma_k(z_r), as the target's microphone hears it, and the weights w_rk = rho_rk / R of draws that count alike:
    the E-step of S18.
    """
    log_variance = target.prior.log_variance(z, target.lips)
    rho = torch.softmax(target.component_log_joint(z, log_variance), dim=0)
    sigma = target.through_microphone(log_variance).exp()
    w = rho / len(z)
    return finite_where_idle(sigma, w), w


def finite_where_idle(sigma: Draws, weights: Weights) -> Draws:
    """sigma_k, but 1 where its weight is 0, whatever is decoded there: 0 times infinity would be NaN."""
    if len(sigma) == 1:  # one decoder for all components
        return sigma
    return torch.where(weights[..., None] > 0, sigma, 1)


def m_step(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    noise: NoiseModel,
    exponent: float,
    mask: FrameMask | None,
) -> tuple[Dictionary, Activations, Gain]:
    """One update each of H, W and, if it is learned, g; W's rows then sum to one. Slides S19"""
    H = mcem_update_H(power, sigma, weights, W, H, gain, exponent=exponent)
    W = mcem_update_W(power, sigma, weights, W, H, gain, exponent=exponent, mask=mask)
    W, H = normalise(W, H)
    if noise.gain != "none":
        gain = mcem_update_gain(power, sigma, weights, W, H, gain, exponent=exponent)
    return W, H, gain


def mcem_update_H(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    *,
    exponent: float = 0.5,
) -> Activations:
    """H <- H * [W^T (|x|^2 sum_rk w V^-2) / W^T (sum_rk w V^-1)]^exponent. Slides S19"""
    up, down = _ratio_terms(power, sigma, weights, W, H, gain)
    return (H * ((up @ W.mT) / (down @ W.mT)).pow(exponent)).clamp_min(FACTOR_FLOOR)


def mcem_update_W(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    *,
    exponent: float = 0.5,
    mask: FrameMask | None = None,
) -> Dictionary:
    """W <- W * [(|x|^2 sum_rk w V^-2) H^T / (sum_rk w V^-1) H^T]^exponent, over the frames that `mask` keeps. S19"""
    up, down = _ratio_terms(power, sigma, weights, W, H, gain)
    if mask is not None:
        up, down = (torch.where(mask[..., None], t, 0) for t in (up, down))
    return (W * ((H.mT @ up) / (H.mT @ down)).pow(exponent)).clamp_min(FACTOR_FLOOR)


def mcem_update_gain(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    *,
    exponent: float = 0.5,
) -> Gain:
    """g_n <- g_n * [sum_f |x|^2 sum_rk w sigma V^-2 / sum_f sum_rk w sigma V^-1]^exponent. Slides S19"""
    inverse = _mixture_variance(sigma, W, H, gain).reciprocal()
    share = sigma * inverse
    down = average(share, weights).sum(-1)
    up = (power * average(share.mul_(inverse), weights)).sum(-1)
    return (gain * (up / down).pow(exponent)).clamp_min(GAIN_FLOOR)


def monte_carlo_q(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    mask: FrameMask | None = None,
) -> Float[Tensor, "*utterance"]:
    """sum_n sum_rk w_rk sum_f -log V - |x|^2 / V: Q of S18 but for terms without W, H and g."""
    V = _mixture_variance(sigma, W, H, gain)
    frames = -(weights * (V.log() + power / V).sum(-1)).sum((0, 1))
    return sum_of_frames(frames, mask)


def monte_carlo_wiener(
    mixture: Spectrum, sigma: Draws, weights: Weights, W: Dictionary, H: Activations, gain: Gain
) -> Spectrum:
    """The posterior mean sum_rk w_rk g sigma_k(z_r) / V_rk of speech, times x. Slides S20"""
    speech = gain[..., None] * sigma
    ratio = speech / (speech + nmf_noise_variance(W, H))
    return average(ratio, weights) * mixture


def monte_carlo_speech_power(
    power: Power, sigma: Draws, weights: Weights, W: Dictionary, H: Activations, gain: Gain
) -> Power:
    """E|s|^2 = sum_rk w_rk (G^2 |x|^2 + G W H), G = g sigma_k(z_r) / V_rk: the second moment of S20's posterior."""
    speech, noise = gain[..., None] * sigma, nmf_noise_variance(W, H)
    ratio = speech / (speech + noise)
    return average(ratio.square() * power + ratio * noise, weights)


def _mixture_variance(sigma: Draws, W: Dictionary, H: Activations, gain: Gain) -> Draws:
    """V_rk = g_n sigma_k(z_r) + (W H)_n."""
    return gain[..., None] * sigma + nmf_noise_variance(W, H)


def _ratio_terms(
    power: Power, sigma: Draws, weights: Weights, W: Dictionary, H: Activations, gain: Gain
) -> tuple[Power, Power]:
    """|x|^2 sum_rk w V^-2 and sum_rk w V^-1: minus and plus the parts of -dQ/d(W H)."""
    inverse = _mixture_variance(sigma, W, H, gain).reciprocal_()
    down = average(inverse, weights)
    return power * average(inverse.square_(), weights), down


def average(terms: Draws, weights: Weights) -> Power:
    """sum_rk w_rk terms_rk. Where components share a decoder, terms come once, and their weights are summed first."""
    if len(terms) < len(weights):
        weights = weights.sum(0, keepdim=True)
    return (weights[..., None] * terms).sum((0, 1))
