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

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.adaptation import Adaptation
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.nmf import FACTOR_FLOOR, Activations, Dictionary, normalise
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import (
    run_chains,
    starting_codes,
    stop_unless_finite,
    sum_of_frames,
    unchecked,
)
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.vem import initial_mixing_weight, update_mixing_weight
from pyro_avse.models.nmf_noise import initial_factors, nmf_noise_variance
from pyro_avse.typing import (
    FrameMask,
    Kernel,
    Power,
    Separation,
    Spectrum,
    SpeechPrior,
)

Draws = Float[Tensor, "component draw *utterance frame freq"]
Weights = Float[Tensor, "component draw *utterance frame"]
Gain = Float[Tensor, "*utterance frame"]

GAIN_FLOOR = 1e-6
"""A frame's gain stays above this, -60 dB: at zero a multiplicative update could never raise it again."""


@dataclass(frozen=True)
class MCEM:
    """Settings of Monte Carlo EM: S7, S18.

    Attributes:
        kernel: what moves z.
        iterations: EM iterations.
        warmup, draws: steps thrown away and kept in each E-step, for each chain.
        first_warmup: of the first E-step, in which chains come from afar; None: as in the others. With few steps an
            iteration it decides: what the chains cannot explain yet, the noise model takes for good.
        final_warmup, final_draws: of the last E-step, from which speech is estimated.
        chains: chains for each frame, started as `starting_codes` says.
        rank: spectra in the noise dictionary W.
        adapt, mixing_weight: as in `VEM`.
        learn_gain: update g_n; else it stays at 1.
        exponent: of the updates S19, in (0, 1]; 1/2 never lowers Q.
    """

    kernel: Kernel = field(default_factory=RandomWalk)
    iterations: int = 100
    warmup: int = 30
    draws: int = 10
    first_warmup: int | None = None
    final_warmup: int = 75
    final_draws: int = 25
    chains: int = 1
    rank: int = 10
    adapt: Adaptation | None = None
    mixing_weight: tuple[float, ...] | None = None
    learn_gain: bool = True
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)

    @unchecked
    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        seed: int = 0,
        dictionary: Dictionary | None = None,
    ) -> Separation:
        """Separate x (..., frame, freq); `objective` is Q (S18) by `monte_carlo_q`: log p(x | z) averaged
        by the weights, up to a constant, per iteration and utterance. `dictionary`: as in `VEM`.
        """
        x = mixture
        power = x.real.square() + x.imag.square()
        rng = torch.Generator(device=x.device).manual_seed(seed)

        W, H = initial_factors(power, self.rank, mask=mask, rng=rng)
        if dictionary is not None:
            W = dictionary.expand_as(W)
        g = torch.ones_like(power[..., 0])
        pi = initial_mixing_weight(prior, power, self.mixing_weight)
        r = pi[..., None].expand(*pi.shape, power.shape[-2])
        z, kernel = starting_codes(prior, power, lips, self.chains), self.kernel
        v = prior.visual_features(lips)
        speech_power = power
        objective: list[Tensor] = []

        first_warmup = self.warmup if self.first_warmup is None else self.first_warmup
        warmups = [first_warmup, *[self.warmup] * (self.iterations - 1), self.final_warmup]
        for iteration, warmup in enumerate(warmups):
            final = iteration == self.iterations
            # E-step: draws of p(z | x), and rho
            proposal = guide_proposal(kernel, prior, speech_power / g[..., None], lips, r)
            noise = nmf_noise_variance(W, H)
            target = CollapsedTarget(prior, v, power, noise, pi, g, proposal=proposal)
            chains = run_chains(
                kernel,
                target,
                z,
                draws=self.final_draws if final else self.draws,
                warmup=warmup,
                adapt=self.adapt,
                seed=rng,
                where=f"mcem, iteration {iteration + 1}",
            )
            z, kernel = chains.state.z, chains.kernel
            sigma, w = weighted_draws(target, chains.draws.flatten(0, 1))
            r = w.sum(1)
            if final:
                break
            if proposal is not None:
                speech_power = monte_carlo_speech_power(power, sigma, w, W, H, g)
            # M-step: S19, V refreshed between the updates
            W, H, g = m_step(power, sigma, w, W, H, g, self.exponent, self.learn_gain, mask)
            if self.mixing_weight is None:
                pi = update_mixing_weight(r, mask)
            objective.append(monte_carlo_q(power, sigma, w, W, H, g, mask))
            stop_unless_finite(objective, chains, "mcem")

        return Separation(
            speech=monte_carlo_wiener(x, sigma, w, W, H, g),
            responsibilities=r,
            mixing_weight=pi,
            dictionary=W,
            activations=H,
            objective=torch.stack(objective),
            z=z,
            target=target,
            chains=chains,
            gain=g if self.learn_gain else None,
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
    exponent: float,
    learn_gain: bool,
    mask: FrameMask | None,
) -> tuple[Dictionary, Activations, Gain]:
    """One update each of H, W and, if it is learned, g; W's rows then sum to one. Slides S19"""
    H = mcem_update_H(power, sigma, weights, W, H, gain, exponent=exponent)
    W = mcem_update_W(power, sigma, weights, W, H, gain, exponent=exponent, mask=mask)
    W, H = normalise(W, H)
    if learn_gain:
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
