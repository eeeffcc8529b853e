"""Langevin EM: Monte Carlo EM by unadjusted Langevin chains, smooth in time if asked. Slides S17-S20

E-step: several chains for each frame follow the gradient of `CollapsedTarget` and a random push,

    z' = z + eps^2/2 grad log p(z | x) + eps xi,    xi ~ N(0, I)

and nothing is rejected. Draws of all chains count alike, each with its rho_k, in the M-step and the filter of `mcem`.
Frames are independent there, though speech is smooth. With `total_variation` lambda > 0 the codes of an utterance are
one event with the log density

    sum_n log p(x_n, z_n) - lambda sum_n |z_n - z_{n-1}|_1

that is, neighbours differ by Laplace variables: each number of z costs lambda for its way through time. The sums leave
padding out. The penalty's normaliser depends on pi alone among the parameters; (44) ignores it.

A microphone that is darker or brighter than those of training makes all of speech unlikely, and the noise model takes
what the prior cannot say. So with `learn_tilt` the speech variance is c_f sigma_f(z), log c_f = t u_f + const with u_f
falling from 1 to -1 along the mel scale, and the M-step has a scalar more, t (`tilt_update`): from `TILT_START` on,
when the noise model has settled. What is constant in f is the gain's business.

The start: noise that lies low, or is faint, leaves most of speech as it was, and W H as loud as the mixture at all
frequencies, the papers' start, takes weak speech there, and keeps it. So W H starts as the noise that is always there
(`stationary_spectrum`). Under noise so quiet the target is too narrow for chains that come from afar, as from the
lips' codes: the first E-step still sees noise as loud as the mixture. Of a MIN-VAE's two chains one starts at the code
of the lips, the other at that of the sound (`starting_codes`): the former is the better in loud noise, the latter in
faint noise, and a short run does not always find from one to the other.

The schedule is short: chains go on from one iteration to the next, so that four steps do for thirty, provided that the
first E-step is long enough for them to arrive; and a long run of EM lets the noise model take weak speech for noise.
With exponent 3/4 the updates go further than to the minimum of their majoriser, at 1/2, and not so far as to where it
is as high again, at 1: Q does not fall, and from noise that is nearly right 12 iterations do.

When to use it: it is the default of `enhance`, a tenth of the time of `mcem` with its 40 random-walk steps and better
(docs/RESULTS.md). It is biased, by ULA's law (`ula`), more for larger eps; `kernel=MALA()` is exact, but stays where
the gradient is steep.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.em import Observation
from pyro_avse.inference.mcem import (
    MCEM,
    Draws,
    Gain,
    MCEMState,
    Weights,
    average,
)
from pyro_avse.inference.nmf import Activations, Dictionary
from pyro_avse.inference.run import sum_of_frames, unchecked
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.models.nmf_noise import NoiseModel, mixture_level, nmf_noise_variance
from pyro_avse.typing import Codes, FrameMask, InputError, Kernel, Power, Target

TILT_START = 4
"""The EM iteration, from 0, in which the tilt is first fitted."""


@dataclass(frozen=True, kw_only=True)
class LDEMState(MCEMState):
    log_c: Tensor


@dataclass(frozen=True)
class LDEM(MCEM):
    """Settings."""

    name: ClassVar[str] = "ldem"
    kernel: Kernel = field(default_factory=ULA)
    iterations: int = 12
    warmup: int = 2
    draws: int = 2
    first_warmup: int | None = 30
    final_warmup: int = 10
    final_draws: int = 10
    chains: int = 2
    noise: NoiseModel = field(default_factory=lambda: NoiseModel(rank=8, stationary=True))
    learn_tilt: bool = True
    total_variation: float = 0.0
    exponent: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.total_variation >= 0:
            raise InputError(f"total_variation is {self.total_variation}: give 0 or more")

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> LDEMState:
        state = super().init(observation, rng=rng)
        from dataclasses import fields

        return LDEMState(
            **{f.name: getattr(state, f.name) for f in fields(state)},
            log_c=torch.zeros_like(observation.power[..., 0, :]),
        )

    def collapsed(self, observation, state):
        target = super().collapsed(observation, state)
        noise = target.noise_variance
        if self.noise.stationary and state.iteration == 0:
            noise = mixture_level(observation.power, observation.mask)[..., None, None].expand_as(
                noise
            )
        return replace(target, log_response=state.log_c, noise_variance=noise)

    def sampled(self, observation, target):
        if self.total_variation:
            return SmoothTarget(target, self.total_variation, observation.mask)
        return target

    def m_step(self, observation, state, drawn):
        new = super().m_step(observation, state, drawn)
        from pyro_avse.inference.mcem import monte_carlo_q

        if self.learn_tilt and state.iteration >= TILT_START:
            change = tilt_update(
                observation.power,
                drawn.sigma,
                drawn.weights,
                new.dictionary,
                new.activations,
                new.gain,
                exponent=self.exponent,
                mask=observation.mask,
            )
            sigma = drawn.sigma * change[..., None, :].exp()
            new = replace(
                new,
                log_c=state.log_c + change,
                objective=monte_carlo_q(
                    observation.power,
                    sigma,
                    drawn.weights,
                    new.dictionary,
                    new.activations,
                    new.gain,
                    observation.mask,
                ),
            )
        return new


def tilt_update(
    power: Power,
    sigma: Draws,
    weights: Weights,
    W: Dictionary,
    H: Activations,
    gain: Gain,
    *,
    exponent: float = 0.5,
    mask: FrameMask | None = None,
) -> Float[Tensor, "*utterance freq"]:
    """What to add to log c_f: the update that S19 gives g_n, here of every frequency, brought to the form t u_f.

    c_f <- c_f [sum_n |x|^2 sum_rk w sigma V^-2 / sum_n sum_rk w sigma V^-1]^exponent would fit every frequency on its
    own; t is the slope of its logarithm along u, each frequency weighted by that denominator, its share of speech. u is
    taken from its mean under these weights: the level is the gain's. `sigma` is c sigma_k(z_r), c as it stands.
    """
    speech = gain[..., None] * sigma
    V = speech + nmf_noise_variance(W, H)
    share = speech / V
    up, down = power * average(share / V, weights), average(share, weights)
    up, down = (
        sum_of_frames(term.mT, None if mask is None else mask[..., None, :]) for term in (up, down)
    )
    weight = down / down.sum(-1, keepdim=True)
    u = mel_tilt(power.shape[-1], power)
    u = u - (weight * u).sum(-1, keepdim=True)
    t = (weight * u * (up / down).log()).sum(-1) / (weight * u.square()).sum(-1)
    return exponent * t[..., None] * u


def mel_tilt(num_freqs: int, like: Tensor) -> Float[Tensor, "freq"]:
    """u_f: half a cosine along the mel scale, from 1 at 0 Hz to -1 at 8 kHz."""
    hertz = torch.linspace(0, 8000, num_freqs, dtype=like.dtype, device=like.device)
    mel = torch.log1p(hertz / 700)
    return torch.cos(math.pi * mel / mel[-1])


@dataclass(frozen=True)
class SmoothTarget:
    """An utterance's log density under the penalty: sum_n log p(x_n, z_n) - lambda sum_n |z_n - z_{n-1}|_1.

    Its event is all of an utterance, so a kernel that rejects rejects all frames at once. `mask` leaves out padding:
    its frames, and the steps to it.
    """

    collapsed: CollapsedTarget
    weight: float
    mask: FrameMask | None = None
    event_dim: int = 2

    def log_density(self, z: Codes) -> Float[Tensor, "*batch"]:
        """For codes (chain, ..., frame, latent): (chain, ...)."""
        mask = self.mask
        both = None if mask is None else mask[..., 1:] & mask[..., :-1]
        variation = z.diff(dim=-2).abs().sum(-1)
        density = sum_of_frames(self.collapsed.log_density(z), mask)
        return density - self.weight * sum_of_frames(variation, both)
