"""What the kernels sample where several speak: the posterior of all their codes z_1n, ..., z_Jn together. [Nguyen2021]

    p(z_1n, ..., z_Jn | x_n)  ~  sum_k1 ... sum_kJ prod_j pi_jk p(z_jn | k_j, v_jn)
                                 N_c(x_n; 0, diag(sum_j g_jn c_j sigma_k(z_jn, v_jn) + (W H)_n))

speech and alpha of every speaker integrated out. It is a sum of K^J terms, one for each *combination* (k_1, ..., k_J):
speakers and components have axes of their own (`combine`, `of_speaker` lead from these to combinations and back). Where
all components share a decoder the likelihood does not depend on them, and is computed once.

To a kernel the codes of a frame are one vector, z_1n, ..., z_Jn in a row (`joined`), so that any kernel moves all of
them at once, and accepts or rejects them together. With one speaker it is `CollapsedTarget`. Equal to what Pyro makes
of models/noisy_speech.py; the tests show it.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.distributions import align_components
from pyro_avse.inference.target import (
    Quadratic,
    gradient_in_codes,
    log_sum_of_components,
    zero_where_idle,
)
from pyro_avse.typing import Power, SpeechPrior

Joined = Float[Tensor, "*batch frame speaker_times_latent"]
"""The codes of all speakers of a frame in a row."""
SpeakersCodes = Float[Tensor, "*batch speaker frame latent"]
OfSpeaker = Float[Tensor, "component *batch speaker frame event"]
"""Of each speaker and component; component axis 1 where it is the same for all."""
OfCombination = Float[Tensor, "combination *batch frame event"]
"""Of all speakers together; the last one's component changes fastest."""


def joined(z: SpeakersCodes) -> Joined:
    """(..., speaker, frame, latent) as (..., frame, speaker x latent)."""
    return z.transpose(-3, -2).flatten(-2)


def apart(z: Joined, speakers: int) -> SpeakersCodes:
    """The inverse of `joined`."""
    return z.unflatten(-1, (speakers, -1)).transpose(-3, -2)


def combine(terms: OfSpeaker) -> OfCombination:
    """sum_j terms_j,k_j of every combination."""
    first, *others = terms.unbind(-3)
    total = first
    for term in others:
        total = (total[:, None] + term[None]).flatten(0, 1)
    return total


def of_combination(terms: OfSpeaker, speaker: int) -> OfCombination:
    """terms_j,k_j of one speaker j, for every combination."""
    own = terms.select(-3, speaker)
    components, speakers = len(own), terms.shape[-3]
    before, after = components**speaker, components ** (speakers - 1 - speaker)
    return own.repeat_interleave(after, 0).repeat(before, *[1] * (own.dim() - 1))


def of_speaker(terms: OfCombination, speakers: int, components: int) -> OfSpeaker:
    """For each speaker and component of his, the sum over the combinations with it: `combine`'s transpose."""
    if len(terms) == 1:
        return terms[..., None, :, :]
    each = terms.unflatten(0, (components,) * speakers)
    sums = []
    for j in range(speakers):
        others = tuple(i for i in range(speakers) if i != j)
        sums.append(each.sum(others) if others else each)
    return torch.stack(sums, -3)


@dataclass(frozen=True)
class SpeakersTarget:
    """log p(x_n, z_1n, ..., z_Jn) at noise and levels as they are.

    Attributes:
        prior: of every speaker.
        lips: their pictures or visual features, (..., speaker, frame, ...), or None.
        power: |x|^2.
        noise_variance: W H.
        mixing_weight: pi_j, (component, ..., speaker, frame).
        gain: g_j.
        log_response: log c_j; None is 0.
    """

    prior: SpeechPrior
    lips: Tensor | None
    power: Power
    noise_variance: Power
    mixing_weight: Float[Tensor, "component *utterance speaker frame"]
    gain: Float[Tensor, "*utterance speaker frame"]
    log_response: Float[Tensor, "*utterance speaker freq"] | None = None
    event_dim: int = 1

    @property
    def speakers(self) -> int:
        """J."""
        return self.gain.shape[-2]

    @cached_property
    def component_prior(self) -> Quadratic:
        """pi_jk p(z_jn | k), (component, chain, ..., speaker, frame)."""
        normal = align_components(self.prior.latent_prior(self.lips), self.gain.dim() + 2)
        return Quadratic.of(normal, self.mixing_weight)

    def log_density(self, z: Joined) -> Float[Tensor, "*batch frame"]:
        """For codes (chain, ..., frame, speaker x latent)."""
        return log_sum_of_components(self.log_joint(z)[0])

    def log_joint(
        self, z: Joined, log_variance: Tensor | None = None
    ) -> tuple[Float[Tensor, "combination *batch frame"], OfSpeaker, OfCombination]:
        """log of every term of the sum; E|s_j|^2, and E|x|^2 = V. `log_variance` saves decoding z again."""
        codes = apart(z, self.speakers)
        if log_variance is None:
            log_variance = self.prior.log_variance(codes, self.lips)
        S = self.speech_variance(log_variance)
        V = combine(S) + self.noise_variance
        log_likelihood = -torch.addcdiv(V.log(), self.power, V).sum(-1)
        log_prior = combine(self.component_prior.log_prob(codes)[..., None])[..., 0]
        return log_prior + log_likelihood - V.shape[-1] * math.log(math.pi), S, V

    def value_and_grad(self, z: Joined) -> tuple[Float[Tensor, "*batch frame"], Joined]:
        """The log density and its gradient, with one pass back through the decoders.

        With rho a combination's share of the sum, the gradient in z_j is the prior's score by rho summed over the
        combinations with k_j, and d log sigma_k / dz_j times (g c sigma) summed likewise over rho (|x|^2 / V - 1) / V.
        """
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            codes = apart(z, self.speakers)
            decoded = self.prior.log_variance(codes, self.lips)
        with torch.no_grad():
            log_joint, S, V = self.log_joint(z, decoded)
            value = log_sum_of_components(log_joint)
            rho = (log_joint - value).exp()[..., None]
            slope = (self.power / V - 1).div_(V)
            if len(slope) > 1:
                slope = torch.where(rho > 0, rho * slope, 0)
            components = len(self.component_prior.mean)
            slope = S * of_speaker(slope, self.speakers, components)
            score = of_speaker(rho, self.speakers, components) * self.component_prior.score(codes)
        return value, gradient_in_codes(z, decoded, slope) + joined(score.sum(0))

    def speech_variance(self, log_variance: OfSpeaker) -> OfSpeaker:
        """E|s_jn|^2 = g_jn c_j sigma_k(z_jn)."""
        log_variance = zero_where_idle(log_variance, self.mixing_weight)
        level = self.gain.log()[..., None]
        if self.log_response is not None:
            level = level + self.log_response[..., None, :]
        return (log_variance + level).exp()
