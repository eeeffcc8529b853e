"""Variational EM with a Markov chain in its E-step. [Sadeghi2021] Appendix B, (31)-(45); slides S6, S22-S27

The posterior of x = s + b is approximated by r(s_n) r(z_n) r(alpha_n) (32). Each iteration updates, in turn,

    r(z)      draws from (36), by any kernel, the chains going on from where they stood
    r(alpha)  (40): softmax of log pi_k + E_{r(s) r(z)} log p(s, z | k)
    r(s)      (34), (35): Wiener filter with the speech variance averaged over the draws
    W, H, pi  (42), (43), (44): one multiplicative update of each

over K components, so that A-VAE, V-VAE (K = 1) and the mixtures (K = 2) are the same lines. It starts with r(s) a point
at x, as if the mixture were speech, and r(alpha) even. When to use it: it is the paper's algorithm, and cheap. Its
weakness is (32): given x, s and z are anything but independent, so the Wiener filter of (35) attenuates too much.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.distributions import align_components
from pyro_avse.inference.adaptation import Adaptation
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.nmf import (
    Dictionary,
    is_nmf_cost,
    is_nmf_update_H,
    is_nmf_update_W,
    normalise,
)
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.run import (
    run_chains,
    starting_codes,
    stop_unless_finite,
    sum_of_frames,
    unchecked,
)
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import MeanFieldTarget, expected_log_likelihood
from pyro_avse.inference.wiener import (
    average_speech_variance,
    averaged_wiener_filter,
    wiener_posterior,
)
from pyro_avse.models.nmf_noise import initial_factors, nmf_noise_variance
from pyro_avse.typing import (
    Codes,
    FrameMask,
    InputError,
    Kernel,
    MixingWeight,
    Power,
    Responsibilities,
    Separation,
    Spectrum,
    SpeechPrior,
)


@dataclass(frozen=True)
class VEM:
    """Settings of the algorithm of Appendix B: (32), S6, S22.

    The defaults are the paper's and its authors' code's, but for `exponent`, where 1 is theirs and 1/2 ended better
    here (docs/RESULTS.md).

    Attributes:
        kernel: what moves z.
        iterations: EM iterations at most.
        warmup: steps thrown away in each E-step.
        draws: steps kept in each E-step, for each chain.
        chains: chains for each frame, started as `starting_codes` says.
        rank: spectra in the noise dictionary W.
        adapt: how each frame's step size is found in the warm-ups; None: the kernel's own stays.
        mixing_weight: pi, held at this, one number a component; None: it starts even and is learned (44).
        exponent: of (42) and (43), in (0, 1].
        tolerance: stop once no utterance's objective, per coefficient and averaged over ten iterations, gains this
            much over the ten before; None runs all iterations.
    """

    kernel: Kernel = field(default_factory=RandomWalk)
    iterations: int = 100
    warmup: int = 30
    draws: int = 10
    chains: int = 1
    rank: int = 10
    adapt: Adaptation | None = None
    mixing_weight: tuple[float, ...] | None = None
    exponent: float = 0.5
    tolerance: float | None = None

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
        """Separate x (..., frame, freq) into speech and noise; `objective` is (41) per iteration and utterance.

        `dictionary`: where W starts, as another recording of the same noise left it; None: at random.
        """
        x = mixture
        power = x.real.square() + x.imag.square()
        rng = torch.Generator(device=x.device).manual_seed(seed)

        W, H = initial_factors(power, self.rank, mask=mask, rng=rng)
        if dictionary is not None:
            W = dictionary.expand_as(W)
        pi = initial_mixing_weight(prior, power, self.mixing_weight)
        r = pi[..., None].expand(*pi.shape, power.shape[-2])
        m, nu = x, torch.zeros_like(power)
        z, kernel = starting_codes(prior, power, lips, self.chains), self.kernel
        v = prior.visual_features(lips)
        objective: list[Tensor] = []

        for iteration in range(self.iterations):
            # VE-z: (36)
            second_moment = m.real.square() + m.imag.square() + nu
            proposal = guide_proposal(kernel, prior, second_moment, lips, r)
            target = MeanFieldTarget(prior, v, second_moment, r, proposal=proposal)
            chains = run_chains(
                kernel,
                target,
                z,
                draws=self.draws,
                warmup=self.warmup,
                adapt=self.adapt,
                seed=rng,
                where=f"vem, iteration {iteration + 1}",
            )
            z, kernel = chains.state.z, chains.kernel
            pooled = chains.draws.flatten(0, 1)
            log_variance = prior.log_variance(pooled, v)
            # VE-alpha: (40)
            r = latent_responsibilities(prior, pooled, v, log_variance, second_moment, pi)
            # VE-s: (34), (35)
            gamma = average_speech_variance(log_variance, r)
            m, nu = wiener_posterior(x, gamma, nmf_noise_variance(W, H))
            # M: (42), (43), (44)
            b = x - m
            V = b.real.square() + b.imag.square() + nu
            H = is_nmf_update_H(V, W, H, exponent=self.exponent)
            W = is_nmf_update_W(V, W, H, exponent=self.exponent, mask=mask)
            W, H = normalise(W, H)
            if self.mixing_weight is None:
                pi = update_mixing_weight(r, mask)

            objective.append(vem_objective(V, W, H, r, pi, mask))
            stop_unless_finite(objective, chains, "vem")
            if self.tolerance is not None and converged(objective, self.tolerance, mask, power):
                break

        return Separation(
            speech=averaged_wiener_filter(x, gamma, nmf_noise_variance(W, H)),
            responsibilities=r,
            mixing_weight=pi,
            dictionary=W,
            activations=H,
            objective=torch.stack(objective),
            z=z,
            target=target,
            chains=chains,
        )


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


def latent_responsibilities(
    prior: SpeechPrior,
    z: Codes,
    lips: Tensor | None,
    log_variance: Float[Tensor, "component *batch frame freq"],
    second_moment: Power,
    mixing_weight: MixingWeight,
) -> Responsibilities:
    """r(alpha_n = k) = softmax_k(log pi_k + E_{r(s) r(z)} log p(s, z | k)). [Sadeghi2021] (39), (40); S25

    `z` (draw, ..., frame, latent) are draws of r(z), `log_variance` what the decoders make of them. Gaussian
    normalisers are included; decoders enter only where the components have their own.
    """
    log_joint = align_components(prior.latent_prior(lips), z.dim()).log_prob(z)
    if len(log_variance) > 1:
        log_joint = log_joint + expected_log_likelihood(log_variance, second_moment)
    log_pi = mixing_weight.log()[..., None]
    log_joint = torch.where(
        log_pi > -torch.inf, log_joint.mean(1), 0
    )  # held at 0: whatever it decodes
    return torch.softmax(log_pi + log_joint, dim=0)


def update_mixing_weight(
    responsibilities: Responsibilities, mask: FrameMask | None = None
) -> MixingWeight:
    """pi = mean over the frames of r(alpha_n), padding left out. [Sadeghi2021] (44)"""
    if mask is None:
        return responsibilities.mean(-1)
    return torch.where(mask, responsibilities, 0).sum(-1) / mask.sum(-1)


def vem_objective(
    V: Power,
    W: Tensor,
    H: Tensor,
    responsibilities: Responsibilities,
    mixing_weight: MixingWeight,
    mask: FrameMask | None = None,
) -> Float[Tensor, "*utterance"]:
    """sum_fn -V / (W H) - log (W H) + sum_n sum_k r_k log pi_k: what the M-step raises. [Sadeghi2021] (41), S26

    The terms in pi belong to the sum over n alone; the paper prints them under the sum over f, n.
    """
    pi = mixing_weight.clamp_min(
        torch.finfo(mixing_weight.dtype).tiny
    )  # may underflow before r does
    prior_terms = torch.xlogy(responsibilities, pi[..., None]).sum(0)
    return sum_of_frames(prior_terms, mask) - is_nmf_cost(V, W, H, mask)


def converged(
    objective: list[Float[Tensor, "*utterance"]],
    tolerance: float,
    mask: FrameMask | None,
    power: Power,
    window: int = 10,
) -> bool:
    """Whether no utterance's mean objective of the last `window` iterations gained `tolerance` a coefficient."""
    if len(objective) % window or len(objective) < 2 * window:
        return False
    frames = power.shape[-2] if mask is None else mask.sum(-1)
    recent = torch.stack(objective[-2 * window :]).unflatten(0, (2, window)).mean(1)
    gain = (recent[1] - recent[0]) / (frames * power.shape[-1])
    return bool((gain < tolerance).all())
