"""The mixture variable alpha_n: closed forms of training. [Sadeghi2021] Sec. III-B, III-C and Appendix A

With q(z|alpha) from component alpha's encoder and r(alpha) free, minus the evidence lower bound (17) of one frame is
the *free energy* (19)

    F_n = sum_k r_k (log r_k / pi_k + J_k),
    J_k = KL(q_k || p_k) - E_{q_k} log p(s | z)                                                     (20)

Minimised over r under sum_k r_k = 1:  r_k proportional to pi_k exp(-J_k)                           (22)
where F_n becomes -log sum_k pi_k exp(-J_k); and over pi: the mean of r over the frames             (25).

With K = 2 and pi = (pi, 1 - pi), softmax is the paper's sigmoid of J_n(0) - J_n(1) + log pi / (1 - pi).
"""

import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch import Tensor

from pyro_avse.distributions import align_components, complex_normal_log_prob
from pyro_avse.typing import MixingWeight, Power, Responsibilities, SpeechPrior


def gaussian_kl(q: Independent, p: Independent) -> Float[Tensor, "*batch"]:
    """KL(q || p) of two diagonal Gaussians, in nats. [Sadeghi2021] (29), (30)

    1/2 sum_l (log s2/s1 - 1 + s1/s2 + (m2 - m1)^2 / s2), s the variances. (30) is the case of an isotropic p; the sign
    printed there before the trace term must be +.
    """
    m1, s1, m2, s2 = q.mean, q.variance, p.mean, p.variance
    return 0.5 * (torch.log(s2 / s1) - 1 + s1 / s2 + (m2 - m1).square() / s2).sum(-1)


def component_elbo_terms(
    prior: SpeechPrior,
    power: Power,
    lips: Tensor | None,
    *,
    encoder_power: Tensor | None = None,
) -> tuple[
    Float[Tensor, "component *utterance frame"], Float[Tensor, "component *utterance frame"]
]:
    """KL(q_k || p_k) and, by one draw z_n^k ~ q_k, E_{q_k} log p(s_n | z_n): the parts of (5) and (20).

    Differentiable through the draw, z = mu + sqrt(sigma) eps (S9).
    """
    q = prior.encode(power if encoder_power is None else encoder_power, lips)
    v = prior.visual_features(lips)
    kl = gaussian_kl(q, align_components(prior.latent_prior(v), len(q.batch_shape)))
    z = q.rsample()  # (component, ..., frame, latent): a chain for each component
    decoded = prior.log_variance(z, v)  # (component | 1, component, ..., frame, freq)
    own = decoded[0] if len(decoded) == 1 else torch.diagonal(decoded).movedim(-1, 0)
    return kl, complex_normal_log_prob(power.sqrt(), own).sum(-1)


def component_negative_elbo(
    prior: SpeechPrior,
    power: Power,
    lips: Tensor | None,
    *,
    encoder_power: Tensor | None = None,
) -> Float[Tensor, "component *utterance frame"]:
    """J_n(alpha_n) of (20), the expectation by one draw a component: (21); minus the ELBO (5), S8, if K = 1.

    J_k = KL(q_k || p_k) - log p(s_n | z_n^k), z_n^k ~ q_k.
    """
    kl, log_likelihood = component_elbo_terms(prior, power, lips, encoder_power=encoder_power)
    return kl - log_likelihood


def update_responsibilities(
    negative_elbo: Float[Tensor, "component *utterance frame"], mixing_weight: MixingWeight
) -> Responsibilities:
    """r(alpha_n = k) proportional to pi_k exp(-J_k), the minimiser of (19). [Sadeghi2021] (22)

    At test time `negative_elbo` is minus the expected log joint, and this is (40).
    """
    return torch.softmax(mixing_weight.log()[..., None] - negative_elbo, dim=0)


def mixture_free_energy(
    responsibilities: Responsibilities,
    negative_elbo: Float[Tensor, "component *utterance frame"],
    mixing_weight: MixingWeight,
) -> Float[Tensor, "*utterance frame"]:
    """sum_k r_k (log r_k / pi_k + J_k) of every frame; its sum is minus the bound (17). [Sadeghi2021] (19), (23)

    A component held at r_k = 0 contributes nothing, whatever its J_k.
    """
    J = torch.where(responsibilities > 0, negative_elbo, 0)
    return bernoulli_kl(responsibilities, mixing_weight) + (responsibilities * J).sum(0)


def bernoulli_kl(
    responsibilities: Responsibilities, mixing_weight: MixingWeight
) -> Float[Tensor, "*utterance frame"]:
    """KL(r(alpha_n) || p(alpha_n)) = sum_k r_k log r_k / pi_k, with 0 log 0 = 0. [Sadeghi2021] (24)

    The second denominator is 1 - pi; the paper prints pi.
    """
    r, pi = responsibilities, mixing_weight[..., None]
    return (torch.xlogy(r, r) - torch.xlogy(r, pi)).sum(0)


def mixture_posterior(q: Independent, responsibilities: Responsibilities) -> MixtureSameFamily:
    """q(z_n) = sum_k r_k N(mu_k, diag sigma_k), alpha_n summed out: batch (..., frame). [Sadeghi2021] (26)"""
    weights = Categorical(responsibilities.movedim(0, -1))
    components = Normal(q.mean.movedim(0, -2), q.stddev.movedim(0, -2)).to_event(1)
    return MixtureSameFamily(weights, components)


def select_component(components: Tensor, alpha: Tensor) -> Tensor:
    """components[alpha_n, ..., n] for every frame n: the choice that alpha_n makes in (10) and (13).

    Args:
        components: (component, ..., frame | 1, event).
        alpha: (..., frame), or (component, 1, ..., 1) when Pyro enumerates it, with an axis of one more for every
            variable that it enumerated before.

    Returns:
        (..., frame, event), or (component, ..., frame, event).
    """
    before = alpha.dim() - components.dim() + 1
    if before >= 0:  # enumerated
        chosen = components.index_select(0, alpha.flatten())
        return chosen.reshape(len(chosen), *[1] * before, *chosen.shape[1:])
    return torch.take_along_dim(components, alpha[None, ..., None], dim=0)[0]
