"""What the variational schemes factorise: r(z_n) as kernels sample it, r(alpha_n), and their bound.

[Sadeghi2021] (36), (39)-(41); slides S24-S26

MeanFieldTarget            r(z_n) of (36): exp of the expected log joint under r(s) r(alpha). For K components with
                           decoders of their own (VAE-MM, S24) the likelihood is averaged over them as the prior is
CollapsedMeanFieldTarget   r(z_n) of r(s) r(z, alpha): alpha_n summed out, exactly
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.distributions import align_components, squared_magnitude, unchecked_normal
from pyro_avse.inference.em import EMState, Observation
from pyro_avse.inference.monte_carlo import chains_disagree
from pyro_avse.inference.nmf import is_nmf_cost
from pyro_avse.inference.run import sum_of_frames
from pyro_avse.inference.target import (
    Collapsed,
    LogVariance,
    PerComponent,
    Quadratic,
    decode_with_graph,
    gradient_in_codes,
    smooth_frames,
)
from pyro_avse.inference.wiener import averaged_wiener_filter
from pyro_avse.models.nmf_noise import nmf_noise_variance
from pyro_avse.typing import (
    Chains,
    Codes,
    FrameMask,
    Kernel,
    MixingWeight,
    Power,
    Responsibilities,
    Separation,
    Spectrum,
    SpeechPosterior,
    SpeechPrior,
    switches,
)


@dataclass(frozen=True)
class MeanFieldTarget:
    """log r(z_n) = sum_k r_k [log p(z_n|k) + sum_f -log sigma_k - (|m|^2 + nu) / sigma_k] + const: (36), S24.

    Attributes:
        second_moment: E|s|^2 = |m|^2 + nu under r(s), in |STFT|^2.
        responsibilities: r(alpha_n).
        proposal: what `independence` proposes from, a Normal over z that broadcasts to (chain, ..., frame).
    """

    prior: SpeechPrior
    lips: Tensor | None
    second_moment: Power
    responsibilities: Responsibilities
    event_dim: int = 1
    proposal: Independent | None = None

    def log_density(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """(36) for codes (chain, ..., frame, latent)."""
        return self._prior.log_prob(z) + self.log_likelihood(z)

    @cached_property
    def components(self) -> Independent:
        """p(z_n | k), batch (component, 1, ..., frame | 1): the 1 is for chains."""
        return align_components(self.prior.latent_prior(self.lips), self.responsibilities.dim() + 1)

    @cached_property
    def gaussian(self) -> Independent:
        """prod_k p(z_n|k)^r_k, normalised: a geometric mixture of Gaussians is one Gaussian.

        Its precision is sum_k r_k / sigma_k, its mean the precision-weighted mean of the components'.
        """
        r = self.responsibilities[:, None, ..., None]
        weight = r / self.components.variance
        precision = weight.sum(0)
        mean = (weight * self.components.mean).sum(0) / precision
        return unchecked_normal(mean, precision.rsqrt())

    @cached_property
    def _prior(self) -> "Quadratic":
        return Quadratic.of(self.gaussian)

    def log_likelihood(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """sum_k r_k sum_f -log sigma_k(z_n) - (|m|^2 + nu) / sigma_k(z_n)."""
        terms = expected_log_likelihood(self.prior.log_variance(z, self.lips), self.second_moment)
        if len(terms) == 1:  # one decoder, and the r_k sum to one
            return terms[0]
        r = self.responsibilities[:, None]
        return (r * torch.where(r > 0, terms, 0)).sum(0)

    def value_and_grad(self, z: Codes) -> tuple[Float[Tensor, "*batch frame"], Codes]:
        """(36) and its gradient in z, with one pass back through the decoder and none through what stands after it.

        d log r / d log sigma_k = r_k (E|s|^2 / sigma_k - 1) is known, and so is the Gaussian's score.
        """
        z, decoded = decode_with_graph(self, z)
        with torch.no_grad():
            value, slope = expected_log_likelihood_and_slope(decoded.detach(), self.second_moment)
            if len(value) > 1:
                r = self.responsibilities[:, None]
                value = r * torch.where(r > 0, value, 0)
                slope = r[..., None] * torch.where(r[..., None] > 0, slope, 0)
            value = value.sum(0) + self._prior.log_prob(z)
            score = self._prior.score(z)
        return value, gradient_in_codes(z, decoded, slope) + score


def expected_log_likelihood(log_variance: LogVariance, second_moment: Power) -> PerComponent:
    """E_{r(s)} log N_c(s; 0, sigma) + F log pi = sum_f -log sigma - (|m|^2 + nu) / sigma, as in (36)."""
    return -torch.addcmul(log_variance, second_moment, torch.exp(-log_variance)).sum(-1)


def expected_log_likelihood_and_slope(
    log_variance: LogVariance, second_moment: Power
) -> tuple[PerComponent, LogVariance]:
    """The same, and its derivative in log sigma: (|m|^2 + nu) / sigma - 1."""
    ratio = second_moment * torch.exp(-log_variance)
    return -(log_variance + ratio).sum(-1), ratio.sub_(1)


@dataclass(frozen=True)
class CollapsedMeanFieldTarget(Collapsed):
    """log r(z_n) = log sum_k pi_k p(z_n|k) exp(sum_f -log sigma_k - (|m|^2 + nu) / sigma_k) + const.

    The factor of z when r factorises as r(s) r(z, alpha) instead of (32): alpha is summed out of r(z, alpha), exactly.
    """

    prior: SpeechPrior
    lips: Tensor | None
    second_moment: Power
    mixing_weight: MixingWeight
    proposal: Independent | None = None
    mask: FrameMask | None = None

    @property
    def heard(self) -> Power:
        return self.second_moment

    def component_log_likelihood(self, log_variance: LogVariance) -> PerComponent:
        """sum_f -log sigma_k - (|m|^2 + nu) / sigma_k."""
        return expected_log_likelihood(log_variance, self.second_moment)

    def with_slope(self, log_variance: LogVariance) -> tuple[PerComponent, LogVariance]:
        """The same, and (|m|^2 + nu) / sigma_k - 1."""
        return expected_log_likelihood_and_slope(log_variance, self.second_moment)


@dataclass(frozen=True, kw_only=True)
class VEMState(EMState):
    """r(s), r(z), r(alpha) and theta = {W, H, pi}."""

    kernel: Kernel
    """With the step sizes that adaptation found."""
    m: Spectrum
    """Mean of r(s)."""
    nu: Power
    """Variance of r(s)."""
    gamma: Power
    """Speech's variance, averaged over draws (34)."""
    target: Any = None
    """r(z), as the last E-step sampled it."""
    chains: Chains | None = None

    @property
    def second_moment(self) -> Power:
        """E|s|^2 = |m|^2 + nu under r(s)."""
        return squared_magnitude(self.m) + self.nu


def mean_field_separation(observation: Observation, state: VEMState) -> Separation:
    """(45), by the draws of the last E-step; the posterior of speech is r(s), one Gaussian (35)."""
    W, H = state.dictionary, state.activations
    noise, sure = nmf_noise_variance(W, H), torch.ones_like(observation.power[..., 0])
    disagree = getattr(state.target, "disagree", chains_disagree)
    return Separation(
        speech=averaged_wiener_filter(observation.x, state.gamma, noise),
        responsibilities=state.responsibilities,
        mixing_weight=state.mixing_weight,
        dictionary=W,
        activations=H,
        objective=state.objective[None],
        z=state.z,
        target=state.target,
        chains=state.chains,
        chains_disagree=None if state.chains is None else disagree(state.chains),
        posterior=SpeechPosterior(
            observation.x, state.gamma[None, None], noise[None, None], sure[None, None]
        ),
    )


def latent_responsibilities(
    prior: SpeechPrior,
    z: Codes,
    lips: Tensor | None,
    log_variance: Float[Tensor, "component *batch frame freq"],
    second_moment: Power,
    mixing_weight: MixingWeight,
    mask: FrameMask | None = None,
) -> Responsibilities:
    """r(alpha_n = k) = softmax_k(log pi_k + E_{r(s) r(z)} log p(s, z | k)). [Sadeghi2021] (39), (40); S25

    `z` (draw, ..., frame, latent) are draws of r(z), `log_variance` what the decoders make of them. Gaussian
    normalisers are included; decoders enter only where the components have their own. Where alpha_1:N is a Markov
    chain it is by forward-backward over the frames of `mask`, at the prior's temperature.
    """
    log_joint = align_components(prior.latent_prior(lips), z.dim()).log_prob(z)
    if len(log_variance) > 1:
        log_joint = log_joint + expected_log_likelihood(log_variance, second_moment)
    if switches(prior):
        evidence = log_joint.mean(1, keepdim=True) / cast(Any, prior).temperature
        return smooth_frames(prior, evidence, mixing_weight, mask)[1][:, 0]
    framewise = mixing_weight.dim() == second_moment.dim()
    log_pi = mixing_weight.log() if framewise else mixing_weight.log()[..., None]
    log_joint = torch.where(
        log_pi > -torch.inf, log_joint.mean(1), 0
    )  # held at 0: whatever it decodes
    return torch.softmax(log_pi + log_joint, dim=0)


def vem_objective(
    V: Power,
    W: Tensor,
    H: Tensor,
    responsibilities: Responsibilities,
    mixing_weight: MixingWeight,
    mask: FrameMask | None = None,
    *,
    chain: bool = False,
) -> Float[Tensor, "*utterance"]:
    """sum_fn -V / (W H) - log (W H) + sum_n sum_k r_k log pi_k: what the M-step raises. [Sadeghi2021] (41), S26

    The terms in pi belong to the sum over n alone; the paper prints them under the sum over f, n. Where alpha_1:N is a
    Markov `chain` pi is of alpha_1, and theta is in the first frame's term alone.
    """
    pi = mixing_weight.clamp_min(
        torch.finfo(mixing_weight.dtype).tiny
    )  # may underflow before r does
    prior_terms = torch.xlogy(responsibilities, pi[..., None]).sum(0)
    of_pi = prior_terms[..., 0] if chain else sum_of_frames(prior_terms, mask)
    return of_pi - is_nmf_cost(V, W, H, mask)
