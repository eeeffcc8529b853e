"""The Wiener filter that speech's posterior is. [Sadeghi2021] (33)-(35), (45); slides S23

Given z, x = s + b is a sum of two Gaussians. Under the mean-field factorisation r(s) sees z through the average
*precision* 1/gamma, so gamma is the harmonic mean of the speech variance over draws:

    r(s) = N_c(m, nu),   m = gamma / (gamma + W H) x,   nu = gamma W H / (gamma + W H)

Where s is integrated out instead, the posterior mean averages the filters of the draws, with their weights (S20).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.nmf import Activations, Dictionary
from pyro_avse.models.nmf_noise import nmf_noise_variance
from pyro_avse.typing import Power, Responsibilities, Spectrum

Draws = Float[Tensor, "component draw *utterance frame freq"]
"""Speech's variance at the draws of z, c_f sigma_k(z_r); component axis 1 where all share a decoder."""
Weights = Float[Tensor, "component draw *utterance frame"]
"""What draw and component count; they sum to one."""
Gain = Float[Tensor, "*utterance frame"]


def average_speech_variance(
    log_variance: Float[Tensor, "component draw *utterance frame freq"],
    responsibilities: Responsibilities,
) -> Power:
    """gamma: 1/gamma = sum_k r_k mean_d 1/sigma_k(z_d). [Sadeghi2021] (34)

    With decoders of their own the components are weighted by r (S23); a shared one has component axis 1.
    """
    precision = (-log_variance).exp_().mean(1)
    if len(precision) > 1:
        r = responsibilities[..., None]
        precision = r * torch.where(r > 0, precision, 0)
    return precision.sum(0).reciprocal()


def wiener_posterior(
    mixture: Spectrum, speech_variance: Power, noise_variance: Power
) -> tuple[Spectrum, Power]:
    """Mean m and variance nu of r(s), the normalised (33). [Sadeghi2021] (35)"""
    gain = speech_variance / (speech_variance + noise_variance)
    return gain * mixture, gain * noise_variance


def averaged_wiener_filter(
    mixture: Spectrum, speech_variance: Power, noise_variance: Power
) -> Spectrum:
    """The speech estimate E_{r(s)} s = gamma / (gamma + W H) x. [Sadeghi2021] (45), S27"""
    return wiener_posterior(mixture, speech_variance, noise_variance)[0]


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


def average(terms: Draws, weights: Weights) -> Power:
    """sum_rk w_rk terms_rk. Where components share a decoder, terms come once, and their weights are summed first."""
    if len(terms) < len(weights):
        weights = weights.sum(0, keepdim=True)
    return (weights[..., None] * terms).sum((0, 1))
