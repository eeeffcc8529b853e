"""What the kernels sample: the posterior of z, up to a constant, for all chains, utterances and frames at once.

Here is what the targets share, alpha_n summed out of any likelihood (`Collapsed`), and

    CollapsedTarget   p(z_n | x_n): s_n integrated out too. Slides S17, S18

The variational schemes' targets, under r(s), are in mean_field.py. All are equal to what Pyro makes of
`models/noisy_speech.py`; the tests show it. Where the prior couples frames (`SequencePrior`) sums are an
utterance's.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Protocol

import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.distributions import align_components, unchecked_normal
from pyro_avse.inference.run import sum_of_frames
from pyro_avse.models.markov import smooth
from pyro_avse.typing import (
    Codes,
    FrameMask,
    InputError,
    MixingWeight,
    Power,
    SpeechPrior,
    Target,
    couples_frames,
    switches,
)

LogVariance = Float[Tensor, "component *batch frame freq"]
PerComponent = Float[Tensor, "component *batch frame"]


class HasPrior(Protocol):
    """A target of some prior's codes, with the lips that its decoder may look at."""

    @property
    def prior(self) -> SpeechPrior: ...
    @property
    def lips(self) -> Tensor | None: ...


class Collapsed(ABC):
    """log sum_k pi_k p(z_n|k) l_k(z_n): alpha_n summed out of any likelihood l_k of what is heard.

    A subclass is a frozen dataclass that says what l_k is: `component_log_likelihood`, and `with_slope`, its derivative
    in log sigma_k besides. `mixing_weight`, pi, may have a frame axis, (component, ..., frame).

    Where the prior couples frames, p(z_n|k) is p(z_n | z_<n, k), and the utterance is one event: densities are sums
    over the frames that `mask` keeps. Where alpha_1:N is a Markov chain, all its paths are summed over, by the forward
    recursion; pi is then of alpha_1, and says besides which components are out of the question (pi_k = 0).
    """

    prior: SpeechPrior
    lips: Tensor | None
    mixing_weight: MixingWeight
    mask: FrameMask | None

    @property
    def event_dim(self) -> int:
        return 2 if couples_frames(self.prior) else 1

    @property
    @abstractmethod
    def heard(self) -> Power:
        """The power whose likelihood it is, (..., frame, freq)."""

    @abstractmethod
    def component_log_likelihood(self, log_variance: LogVariance) -> PerComponent:
        """log l_k at log sigma_k."""

    @abstractmethod
    def with_slope(self, log_variance: LogVariance) -> tuple[PerComponent, LogVariance]:
        """The same, and its derivative in log sigma_k."""

    @cached_property
    def components(self) -> Independent:
        """p(z_n | k), batch (component, 1, ..., frame | 1): the 1 is for chains."""
        return align_components(self.prior.latent_prior(self.lips), self.heard.dim() + 1)

    @cached_property
    def component_prior(self) -> "Quadratic":
        """pi_k p(z_n | k)."""
        return Quadratic.of(self.components, self.mixing_weight)

    @cached_property
    def gaussian(self) -> Independent | None:
        """p(z_n) where the prior has one component and is no process in time; else None."""
        return single_component(self.components) if hasattr(self.prior, "latent_prior") else None

    def log_density(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """For codes (chain, ..., frame, latent): (chain, ..., frame), or (chain, ...) where frames are coupled."""
        return self.of_event(self.frames_log_density(z))

    def frames_log_density(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """Every frame's part of it; of a path, of log p(x_1:N, z_1:N), D12."""
        return self.over_components(self.component_log_joint(z))[0]

    def over_components(
        self, log_joint: PerComponent
    ) -> tuple[Float[Tensor, "*batch frame"], PerComponent]:
        """Every frame's part of the log density, alpha summed out, and rho_nk = p(alpha_n = k | z)."""
        if not switches(self.prior):
            frames = log_sum_of_components(log_joint)
            return frames, (log_joint - frames).exp()
        return smooth_frames(self.prior, log_joint, self.mixing_weight, self.mask)

    def of_event(self, frames: Float[Tensor, "*batch frame"]) -> Float[Tensor, "*batch frame"]:
        """What frames have, summed where the utterance is one event."""
        return frames if self.event_dim == 1 else sum_of_frames(frames, self.mask)

    def log_likelihood(self, z: Codes) -> Float[Tensor, "*batch frame"]:
        """log l(z_n) where the prior has one component. Raises InputError for a mixture."""
        require(self, "gaussian", kernel="log_likelihood")
        log_variance = self.prior.log_variance(z, self.lips)
        return self.of_event(self.component_log_likelihood(log_variance)[0])

    def component_log_prior(self, z: Codes) -> PerComponent:
        """log pi_k p(z_n | k); of a Markov chain log p(z_n | alpha_n = k), without the chain."""
        if self.event_dim == 1:
            return self.component_prior.log_prob(z)
        prior: Any = self.prior
        log_prior: Tensor = prior.log_prior(z, self.lips)
        if switches(self.prior):
            return log_prior
        return log_prior + _align_weight(self.mixing_weight, log_prior.dim()).log()

    def component_log_joint(self, z: Codes, log_variance: Tensor | None = None) -> PerComponent:
        """log of the k-th term of the sum; `log_variance` saves decoding z again."""
        if log_variance is None:
            log_variance = self.prior.log_variance(z, self.lips)
        log_variance = zero_where_idle(log_variance, self.mixing_weight)
        log_likelihood = self.component_log_likelihood(log_variance)
        return self.component_log_prior(z) + log_likelihood

    def value_and_grad(self, z: Codes) -> tuple[Float[Tensor, "*batch frame"], Codes]:
        """log sum_k exp J_k(z), J_k the k-th log joint, and its gradient, with one pass back through the decoders.

        The gradient is sum_k rho_k dJ_k/dz, rho = softmax_k J_k, and dJ_k/dz is the prior's score plus
        (d log sigma_k/dz) slope_k.
        """
        if self.event_dim == 2:
            return self._value_and_grad_of_paths(z)
        z, decoded = decode_with_graph(self, z)
        with torch.no_grad():
            log_variance = zero_where_idle(decoded.detach(), self.mixing_weight)
            log_likelihood, slope = self.with_slope(log_variance)
            log_joint = self.component_prior.log_prob(z) + log_likelihood
            value, score = log_sum_of_components(log_joint), self.component_prior.score(z)
            if len(log_joint) > 1:
                rho = (log_joint - value).exp()[..., None]
                score = rho * score
                if len(slope) > 1:
                    slope = torch.where(rho > 0, rho * slope, 0)
            score = score.sum(0)
        return value, gradient_in_codes(z, decoded, slope) + score

    def _value_and_grad_of_paths(self, z: Codes) -> tuple[Float[Tensor, "*batch"], Codes]:
        """The same where frames are coupled: sum_n sum_k rho_nk dJ_nk/dz, through prior and decoders."""
        z, decoded = decode_with_graph(self, z)
        with torch.enable_grad():
            log_prior = self.component_log_prior(z)
        with torch.no_grad():
            log_variance = zero_where_idle(decoded.detach(), self.mixing_weight)
            log_likelihood, slope = self.with_slope(log_variance)
            log_joint = log_prior + log_likelihood
            frames, rho = self.over_components(log_joint)
            if self.mask is not None:
                rho = torch.where(self.mask, rho, 0)
            weight = rho if len(slope) > 1 else rho.sum(0, keepdim=True)
            slope = torch.where(weight[..., None] > 0, weight[..., None] * slope, 0)
        with torch.enable_grad():
            inner = torch.dot(slope.flatten(), decoded.flatten())
            inner = inner + torch.where(rho > 0, rho * log_prior, 0).sum()
        return self.of_event(frames), torch.autograd.grad(inner, z)[0]


@dataclass(frozen=True)
class CollapsedTarget(Collapsed):
    """log p(x_n, z_n) = log sum_k pi_k p(z_n|k) N_c(x_n; 0, g_n sigma_k(z_n) + W H): s, alpha integrated out, S17.

    Attributes:
        power: |x|^2.
        noise_variance: W H.
        mixing_weight: pi.
        gain: g_n > 0, by which speech's variance is louder than in training; None is 1.
        log_response: log c_f, a microphone's response unlike those of training: sigma_k becomes c sigma_k; None is 0.
        proposal: as in `MeanFieldTarget`.
        mask: (..., frame), False where padding is; needed only where the prior couples frames.
    """

    prior: SpeechPrior
    lips: Tensor | None
    power: Power
    noise_variance: Power
    mixing_weight: MixingWeight
    gain: Float[Tensor, "*utterance frame"] | None = None
    log_response: Float[Tensor, "*utterance freq"] | None = None
    proposal: Independent | None = None
    mask: FrameMask | None = None

    @property
    def heard(self) -> Power:
        return self.power

    def component_log_likelihood(
        self, log_variance: LogVariance, gain: Tensor | None = None
    ) -> PerComponent:
        """log N_c(x_n; 0, g_n sigma_k(z_n) + W H), its constants included; `gain` in place of the target's g."""
        V = self.mixture_variance(log_variance, gain)
        return -torch.addcdiv(V.log(), self.power, V).sum(-1) - V.shape[-1] * math.log(math.pi)

    def with_slope(self, log_variance: LogVariance) -> tuple[PerComponent, LogVariance]:
        """The same, and (g sigma / V) (|x|^2 / V - 1)."""
        speech = self.speech_variance(log_variance)
        V = speech + self.noise_variance
        ratio = self.power / V
        value = -(V.log() + ratio).sum(-1) - V.shape[-1] * math.log(math.pi)
        # in place: memory is what these passes wait for
        return value, speech.div_(V).mul_(ratio.sub_(1))

    def mixture_variance(
        self, log_variance: LogVariance, gain: Tensor | None = None
    ) -> LogVariance:
        """E|x|^2 = g_n sigma_k(z_n) + W H; `gain`, (chain, ..., frame) too, in place of the target's g."""
        return self.speech_variance(log_variance, gain) + self.noise_variance

    def speech_variance(self, log_variance: LogVariance, gain: Tensor | None = None) -> LogVariance:
        """E|s|^2 = g_n c_f sigma_k(z_n)."""
        speech, g = self.through_microphone(log_variance).exp(), self.gain if gain is None else gain
        return speech if g is None else g[..., None] * speech

    def through_microphone(self, log_variance: LogVariance) -> LogVariance:
        """log c_f sigma_k(z_n)."""
        c = self.log_response
        return log_variance if c is None else log_variance + c[..., None, :]


@dataclass(frozen=True)
class Quadratic:
    """log pi_k + log p(z_n | k) of (10), (11) as a chain's steps want it, its constants computed once."""

    mean: Float[Tensor, "*components_and_batch frame latent"]
    precision: Float[Tensor, "*components_and_batch frame latent"]
    constant: Float[Tensor, "*components_and_batch frame"]

    @classmethod
    def of(cls, normal: Independent, weight: Tensor | None = None) -> "Quadratic":
        """Of a diagonal Normal, or of a batch (component, ...) of them with their weights pi, (component, ...)."""
        scale = normal.stddev
        constant = -scale.log().sum(-1) - 0.5 * scale.shape[-1] * math.log(2 * math.pi)
        if weight is not None:
            constant = constant + _align_weight(weight, constant.dim()).log()
        return cls(normal.mean, scale.square().reciprocal(), constant)

    def log_prob(self, z: Codes) -> Float[Tensor, "*components_and_batch frame"]:
        """The logarithm at z, which broadcasts."""
        return self.constant - 0.5 * (self.precision * (z - self.mean).square()).sum(-1)

    def score(self, z: Codes) -> Float[Tensor, "*components_and_batch frame latent"]:
        """Its gradient in z."""
        return self.precision * (self.mean - z)


def decode_with_graph(target: "HasPrior", z: Codes) -> tuple[Codes, LogVariance]:
    """z as a leaf, and log sigma_k(z) with the graph that leads back to it."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return z, target.prior.log_variance(z, target.lips)


def gradient_in_codes(z: Codes, decoded: Tensor, slope: Tensor) -> Codes:
    """sum_kf slope_kf d log sigma_kf / dz, `decoded` and `slope` (component, ..., frame, freq): of their inner product.

    (To hand autograd the slope as `grad_outputs` would be the same, and import sympy: half a second of a short clip.)
    """
    with torch.enable_grad():
        inner = torch.dot(slope.flatten(), decoded.flatten())
    return torch.autograd.grad(inner, z)[0]


def smooth_frames(
    prior: Any,
    evidence: Float[Tensor, "component chain *utterance frame"],
    mixing_weight: MixingWeight,
    mask: FrameMask | None,
) -> tuple[Float[Tensor, "chain *utterance frame"], PerComponent]:
    """D17, by `smooth`: pi is of alpha_1, and where pi_k is 0, in a frame or all, alpha_n is not k."""
    pi = _align_weight(mixing_weight, evidence.dim())
    evidence = torch.where(pi > 0, evidence, -torch.inf)
    if mask is not None:
        evidence = torch.where(mask, evidence, 0)
    return smooth(evidence, pi[..., 0], prior.transition)


def log_sum_of_components(
    log_joint: Float[Tensor, "component *batch frame"],
) -> Float[Tensor, "*batch frame"]:
    """log sum_k exp J_k."""
    return reduce(torch.logaddexp, log_joint.unbind())


def zero_where_idle(
    log_variance: Float[Tensor, "component *batch frame freq"], mixing_weight: Tensor
) -> Float[Tensor, "component *batch frame freq"]:
    """log sigma_k, but 0 where pi_k = 0: what an idle decoder says may overflow, and 0 times infinity is NaN."""
    if len(log_variance) == 1:  # one decoder for all components
        return log_variance
    return torch.where(_align_weight(mixing_weight, log_variance.dim()) > 0, log_variance, 0)


def _align_weight(mixing_weight: Tensor, dim: int) -> Tensor:
    """pi (component, ...) as (component, 1, ..., 1) of `dim` axes: the first 1 is for chains."""
    pi = mixing_weight
    return pi.reshape(len(pi), 1, *pi.shape[1:], *[1] * (dim - 1 - pi.dim()))


def single_component(components: Independent) -> Independent | None:
    """The only one of `components` (component, 1, ..., frame | 1), or None where there are more."""
    if len(components.mean) > 1:
        return None
    return unchecked_normal(components.mean[0], components.stddev[0])


CURES = {
    "gaussian": "run it inside Gibbs, as Gibbs(EllipticalSlice()), or take random_walk or mala",
    "log_likelihood": "run it inside Gibbs, as Gibbs(EllipticalSlice()), or take random_walk or mala",
    "component_log_joint": "take the scheme collapsed_vem or mcem, or another kernel",
    "proposal": "give it one, or take random_walk or mala",
}


def require(target: Target, capability: str, *, kernel: str) -> Any:
    """`target.<capability>`, which not every target has and `kernel` cannot do without.

    Raises:
        InputError: where the target has none, saying what to take instead.
    """
    found = getattr(target, capability, None)
    if found is not None:
        return found
    name = type(target).__name__
    components = getattr(target, "components", None)
    if capability == "gaussian" and components is not None:
        name += f", a mixture of {len(components.mean)} components,"
    raise InputError(
        f"{kernel} needs a target with `{capability}`, and {name} has none: {CURES[capability]}"
    )
