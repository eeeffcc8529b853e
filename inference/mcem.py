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

from pyro_avse.inference.nmf import FACTOR_FLOOR, Activations, Dictionary, normalise
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import run_chains
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.vem import update_mixing_weight
from pyro_avse.models.nmf_noise import initial_factors, nmf_noise_variance
from pyro_avse.typing import (
    Chains,
    FrameMask,
    Kernel,
    MixingWeight,
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
        final_warmup, final_draws: of the last E-step, from which speech is estimated.
        chains: chains for each frame.
        rank: spectra in the noise dictionary W.
        learn_gain: update g_n; else it stays at 1.
        exponent: of the updates S19, in (0, 1]; 1/2 never lowers Q.
    """

    kernel: Kernel = field(default_factory=RandomWalk)
    iterations: int = 100
    warmup: int = 30
    draws: int = 10
    final_warmup: int = 75
    final_draws: int = 25
    chains: int = 1
    rank: int = 10
    learn_gain: bool = True
    exponent: float = 0.5

    @torch.no_grad()
    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        seed: int = 0,
    ) -> Separation:
        """Separate x (..., frame, freq); `objective` is log p(x | z) under the weights, per iteration and utterance."""
        x = mixture
        power = x.real.square() + x.imag.square()
        rng = torch.Generator(device=x.device).manual_seed(seed)

        W, H = initial_factors(power, self.rank, mask=mask, rng=rng)
        K, utterances = prior.num_components, power.shape[:-2]
        g = torch.ones_like(power[..., 0])
        pi = power.new_full((K, *utterances), 1 / K)
        start = prior.initial_codes(power, lips)
        z = start.expand(self.chains, *start.shape)
        objective: list[Tensor] = []

        for _ in range(self.iterations):
            # E-step: draws of p(z | x), and rho
            chains, sigma, w = self._e_step(prior, lips, power, W, H, g, pi, z, rng=rng)
            z = chains.state.z
            # M-step: S19, V refreshed between the updates
            H = mcem_update_H(power, sigma, w, W, H, g, exponent=self.exponent)
            W = mcem_update_W(power, sigma, w, W, H, g, exponent=self.exponent, mask=mask)
            W, H = normalise(W, H)
            if self.learn_gain:
                g = mcem_update_gain(power, sigma, w, W, H, g, exponent=self.exponent)
            pi = update_mixing_weight(w.sum(1), mask)
            objective.append(monte_carlo_q(power, sigma, w, W, H, g, mask))

        chains, sigma, w = self._e_step(prior, lips, power, W, H, g, pi, z, rng=rng, final=True)
        return Separation(
            speech=monte_carlo_wiener(x, sigma, w, W, H, g),
            responsibilities=w.sum(1),
            mixing_weight=pi,
            dictionary=W,
            activations=H,
            objective=torch.stack(objective),
            chains=chains,
        )

    def _e_step(
        self,
        prior: SpeechPrior,
        lips: Tensor | None,
        power: Power,
        W: Dictionary,
        H: Activations,
        g: Gain,
        pi: MixingWeight,
        z: Tensor,
        *,
        rng: torch.Generator,
        final: bool = False,
    ) -> tuple[Chains, Draws, Weights]:
        """Chains on the collapsed target, speech variances sigma_k(z_r) of the draws, and weights w_rk."""
        target = CollapsedTarget(prior, lips, power, nmf_noise_variance(W, H), pi, g)
        warmup = self.final_warmup if final else self.warmup
        draws = self.final_draws if final else self.draws
        chains = run_chains(self.kernel, target, z, draws=draws, warmup=warmup, seed=rng)
        pooled = chains.draws.flatten(0, 1)
        log_variance = prior.log_variance(pooled, lips)
        rho = torch.softmax(target.component_log_joint(pooled, log_variance), dim=0)
        return chains, log_variance.exp(), rho / len(pooled)


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
    V = _mixture_variance(sigma, W, H, gain)
    w_sigma = weights[..., None] * sigma
    up = (power * (w_sigma / V.square()).sum((0, 1))).sum(-1)
    down = (w_sigma / V).sum((0, 1)).sum(-1)
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
    return (frames if mask is None else torch.where(mask, frames, 0)).sum(-1)


def monte_carlo_wiener(
    mixture: Spectrum, sigma: Draws, weights: Weights, W: Dictionary, H: Activations, gain: Gain
) -> Spectrum:
    """The posterior mean sum_rk w_rk g sigma_k(z_r) / V_rk of speech, times x. Slides S20"""
    speech = gain[..., None] * sigma
    ratio = speech / (speech + nmf_noise_variance(W, H))
    return (weights[..., None] * ratio).sum((0, 1)) * mixture


def _mixture_variance(sigma: Draws, W: Dictionary, H: Activations, gain: Gain) -> Draws:
    """V_rk = g_n sigma_k(z_r) + (W H)_n."""
    return gain[..., None] * sigma + nmf_noise_variance(W, H)


def _ratio_terms(
    power: Power, sigma: Draws, weights: Weights, W: Dictionary, H: Activations, gain: Gain
) -> tuple[Power, Power]:
    """|x|^2 sum_rk w V^-2 and sum_rk w V^-1: minus and plus the parts of -dQ/d(W H)."""
    inverse = _mixture_variance(sigma, W, H, gain).reciprocal()
    w = weights[..., None]
    return power * (w * inverse.square()).sum((0, 1)), (w * inverse).sum((0, 1))
