"""What Monte Carlo EM and its relatives share: theta, draws and what they count, the estimate. Slides S17-S20

Chains that sit in different modes of a frame's posterior do not see how much of it each holds: counted alike they give
two modes of unequal size the same say. The exact share of a mode c is its evidence,

    log Z_c = E_c log p(x, z) + H_c          E_c and the entropy H_c under p(z | x) restricted to the mode

and from a chain that stays there both parts can be had: the mean of the log densities, and the entropy of a Gaussian
with the variances of its draws, sum_l log sd_cl + const. A softmax of log densities alone, or of their means, leaves
out how wide a mode is. So

    W_c = softmax_c (1/T) (mean_r log p(x, z_cr) + sum_l log sd_cl)

T = 1 is that rule; it takes the model at its word. Its likelihood is a product over hundreds of coefficients that are
neither independent nor exactly Gaussian, so that log densities of two chains differ by tens of nats where neither code
is right; T > 1 tempers them, as a power posterior does [Grünwald 2012]. The entropy is left out where a chain has fewer
than `FEWEST` draws. It is that of independent coordinates, which overstates modes that lie askew, and is too small
where draws are correlated: alike in all chains, which cancels.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.inference.em import (
    EMState,
    Observation,
    encode,
    frame_weight,
    next_weight,
    noise_and_weights,
)
from pyro_avse.inference.guess import guessed_gain, guessed_level
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.m_step import Response, m_step
from pyro_avse.inference.nmf import Activations, Dictionary
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.wiener import (
    Draws,
    Gain,
    Weights,
    monte_carlo_speech_power,
    monte_carlo_wiener,
)
from pyro_avse.models.nmf_noise import NoiseModel, nmf_noise_variance, response_basis
from pyro_avse.typing import (
    Chains,
    Kernel,
    Power,
    Separation,
    Spectrum,
    SpeechPosterior,
    Target,
    switches,
)

FEWEST = 5
"""Draws of a chain from which its entropy is estimated."""
GAP = 5.0
"""Nats between the mean log densities of a frame's chains beyond which they are said to disagree."""


@dataclass(frozen=True, kw_only=True)
class MCState(EMState):
    """theta = {W, H, g, c, pi} of (S18); of `mcem` and its relatives."""

    gain: Gain
    """g_n."""
    response: Response | None
    """a_1, a_2, ... of the microphone's log c_f; None where it is not fitted."""
    past: Power | None = None
    """E|s|^2 / g for priors that look at the speech before; None for others."""

    @property
    def log_response(self) -> Float[Tensor, "*utterance freq"] | None:
        """log c_f."""
        if self.response is None:
            return None
        basis = response_basis(self.response.shape[-1], self.dictionary.shape[-1], self.dictionary)
        return self.response @ basis[1:]

    def heard(self, sigma: Draws) -> Draws:
        """c_f sigma_k(z_r)."""
        log_c = self.log_response
        return sigma if log_c is None else sigma * log_c.exp()[..., None, :]


@dataclass(frozen=True, kw_only=True)
class MCEMState(MCState):
    """Where the chains stand besides."""

    kernel: Kernel
    """With the step sizes that adaptation found."""
    speech_power: Power
    """E|s|^2, which a kernel that proposes from the guide wants; at first |x|^2."""


class HasTheta(Protocol):
    """A scheme with the settings of the M-step."""

    @property
    def noise(self) -> NoiseModel: ...
    @property
    def exponent(self) -> float: ...
    @property
    def mixing_weight(self) -> tuple[float, ...] | None: ...


S = TypeVar("S", bound=MCState)


@dataclass(frozen=True)
class Drawn:
    """What an E-step found."""

    target: Target
    """What was sampled: the posterior of z, s and alpha integrated out, at the theta that it met."""
    sigma: Draws
    """sigma_k(z_r), as decoded."""
    weights: Weights
    """What each draw counts with each component; they sum to one."""
    chains: Chains | None = None


def initial_theta(
    scheme: HasTheta, observation: Observation, rng: torch.Generator
) -> dict[str, Any]:
    """By the names of `MCState`: as the noise model says; speech as in training, or fainter if a guide says so."""
    start = noise_and_weights(observation, scheme.noise, scheme.mixing_weight, rng)
    power, terms, guess = observation.power, scheme.noise.response, observation.guess
    gain = torch.ones_like(power[..., 0])
    response = power.new_zeros(*power.shape[:-2], terms) if terms else None
    if guess is not None and scheme.noise.gain != "none":
        gain = gain * guessed_level(guess)
    past = None
    if looks_back(observation.prior):
        past = power
        if guess is not None:
            past = guessed_gain(guess, observation.prior, observation.v).square() * power
    return {**start, "gain": gain, "response": response, "past": past}


def looks_back(prior: Any) -> bool:
    """Whether the prior looks at the speech before, which is as good as known: E|s|^2 of the last E-step."""
    return bool(getattr(prior, "uses_past", False))


def posterior(observation: Observation, state: MCState) -> CollapsedTarget:
    """p(z | x) at the present theta, up to a constant."""
    prior: Any = observation.prior
    if looks_back(prior):
        prior = prior.within(past=state.past)
    return CollapsedTarget(
        prior,
        observation.v,
        observation.power,
        nmf_noise_variance(state.dictionary, state.activations),
        frame_weight(observation, state.mixing_weight),
        state.gain,
        state.log_response,
        mask=observation.mask,
    )


def guided_posterior(observation: Observation, state: MCEMState) -> CollapsedTarget:
    """The same, with the guide at E|s|^2 / g as its `proposal`, for a kernel that wants one."""

    def guide() -> Independent:
        return encode(observation, state.speech_power / state.gain[..., None])

    proposal = guide_proposal(state.kernel, guide, state.responsibilities)
    return replace(posterior(observation, state), proposal=proposal)


def weighted_draws(
    target: CollapsedTarget, z: Float[Tensor, "draw *utterance frame latent"]
) -> tuple[Draws, Weights]:
    """sigma_k(z_r), and the weights w_rk = rho_rk / R of draws that count alike: the E-step of S18."""
    log_variance = target.prior.log_variance(z, target.lips)
    log_joint = target.component_log_joint(z, log_variance)
    chain = switches(target.prior)
    rho = target.over_components(log_joint)[1] if chain else torch.softmax(log_joint, dim=0)
    w = rho / len(z)
    return finite_where_idle(log_variance.exp(), w), w


def weighted_chains(
    target: CollapsedTarget, chains: Chains, temperature: float
) -> tuple[Draws, Weights]:
    """The same of chains' draws, W_c rho_rk / R where chains count by their evidence (`chain_weights`).

    They count alike at an infinite temperature, and where log densities are not the frames' own.
    """
    sigma, w = weighted_draws(target, chains.draws.flatten(0, 1))
    count, draws = chains.draws.shape[:2]
    if math.isfinite(temperature) and chains.log_density.dim() == chains.draws.dim() - 1:
        share = chain_weights(chains.log_density, chains.draws, temperature)
        w = w * (count * share).repeat_interleave(draws, 0)
    return sigma, w


def finite_where_idle(sigma: Draws, weights: Weights) -> Draws:
    """sigma_k, but 1 where its weight is 0, whatever is decoded there: 0 times infinity would be NaN."""
    if len(sigma) == 1:  # one decoder for all components
        return sigma
    return torch.where(weights[..., None] > 0, sigma, 1)


def chain_weights(
    log_density: Float[Tensor, "chain draw *utterance frame"],
    draws: Float[Tensor, "chain draw *utterance frame latent"],
    temperature: float,
) -> Float[Tensor, "chain *utterance frame"]:
    """W_c of every frame's chains, which sum to one: see above. `temperature` is T; infinity counts all alike."""
    return torch.softmax(chain_evidence(log_density, draws) / temperature, 0)


def chain_evidence(
    log_density: Float[Tensor, "chain draw *utterance frame"],
    draws: Float[Tensor, "chain draw *utterance frame latent"],
) -> Float[Tensor, "chain *utterance frame"]:
    """log Z_c up to a constant: see above."""
    evidence = log_density.mean(1)
    if draws.shape[1] >= FEWEST:
        spread = draws.std(1).clamp_min(
            torch.finfo(draws.dtype).tiny
        )  # of chains that never moved too
        evidence = evidence + spread.log().sum(-1)
    return evidence


def chains_disagree(chains: Chains) -> Bool[Tensor, "*utterance frame"] | None:
    """Where the chains' mean log densities lie over `GAP` nats apart; None for one chain, or without frames' own."""
    level = chains.log_density.mean(1)
    if len(level) < 2 or level.dim() < chains.draws.dim() - 2:
        return None
    return level.amax(0) - level.amin(0) > GAP


def maximise(scheme: HasTheta, observation: Observation, state: S, drawn: Drawn) -> S:
    """The M-step: one update each of H, W, g and c, and pi, the mean of rho, where it is not held. S19"""
    W, H, g, a = state.dictionary, state.activations, state.gain, state.response
    sigma, power = state.heard(drawn.sigma), observation.power
    if looks_back(observation.prior):
        past = monte_carlo_speech_power(power, sigma, drawn.weights, W, H, g)
        state = replace(state, past=past / g[..., None])
    W, H, g, a = m_step(
        power,
        sigma,
        drawn.weights,
        W,
        H,
        g,
        a,
        scheme.noise,
        scheme.exponent,
        observation.mask,
    )
    return replace(
        state,
        dictionary=W,
        activations=H,
        gain=g,
        response=a,
        mixing_weight=next_weight(scheme, observation, state),
        iteration=state.iteration + 1,
    )


def speech_posterior(
    mixture: Spectrum,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    *,
    of_recording: bool = False,
) -> SpeechPosterior:
    """The mixture whose mean is S20's estimate, noise held."""
    speech, noise = gain[..., None] * sigma, nmf_noise_variance(W, H)[None, None]
    return SpeechPosterior(mixture, speech, noise, weights, of_recording)


def separation(
    scheme: HasTheta, observation: Observation, state: MCState, drawn: Drawn
) -> Separation:
    """S20 at the draws, and theta, of a state."""
    disagree = getattr(drawn.target, "disagree", chains_disagree)
    W, H, g = state.dictionary, state.activations, state.gain
    heard = (observation.x, state.heard(drawn.sigma), drawn.weights, W, H, g)
    return Separation(
        speech=monte_carlo_wiener(*heard),
        responsibilities=state.responsibilities,
        mixing_weight=state.mixing_weight,
        dictionary=W,
        activations=H,
        objective=state.objective[None],
        z=state.z,
        target=drawn.target,
        chains=drawn.chains,
        gain=None if scheme.noise.gain == "none" else g,
        log_response=state.log_response,
        chains_disagree=None if drawn.chains is None else disagree(drawn.chains),
        posterior=(
            None
            if drawn.sigma.shape[1] == 1
            else speech_posterior(*heard, of_recording=drawn.target.event_dim == 2)
        ),
    )
