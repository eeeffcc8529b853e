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
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.adaptation import Adaptation
from pyro_avse.inference.mcem import (
    Draws,
    Gain,
    Weights,
    average,
    m_step,
    monte_carlo_q,
    monte_carlo_wiener,
    weighted_draws,
)
from pyro_avse.inference.nmf import Activations, Dictionary
from pyro_avse.inference.run import (
    run_chains,
    starting_codes,
    stop_unless_finite,
    sum_of_frames,
    unchecked,
)
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.inference.vem import initial_mixing_weight, update_mixing_weight
from pyro_avse.models.nmf_noise import initial_factors, mixture_level, nmf_noise_variance
from pyro_avse.typing import (
    Codes,
    FrameMask,
    InputError,
    Kernel,
    Power,
    Separation,
    Spectrum,
    SpeechPrior,
    Target,
)

TILT_START = 4
"""The EM iteration, from 0, in which the tilt is first fitted."""


@dataclass(frozen=True)
class LDEM:
    """Settings of Langevin EM. How the defaults were found: docs/RESULTS.md, "Time to quality".

    Attributes:
        kernel: what moves z, by gradients.
        iterations, warmup, draws, first_warmup, final_warmup, final_draws, chains, rank, adapt, mixing_weight,
            learn_gain, exponent: as in `MCEM`; `ula`, which rejects nothing, has nothing to adapt.
        learn_tilt: fit the microphone's tilt t; else it stays at 0.
        stationary_start: W H's start above; else that of `MCEM`.
        total_variation: lambda, the weight of the penalty on |z_n - z_{n-1}|_1; 0: none, and frames are independent.

    Raises:
        InputError: a negative lambda, under which codes would fly apart.
    """

    kernel: Kernel = field(default_factory=ULA)
    iterations: int = 12
    warmup: int = 2
    draws: int = 2
    first_warmup: int | None = 30
    final_warmup: int = 10
    final_draws: int = 10
    chains: int = 2
    rank: int = 8
    adapt: Adaptation | None = None
    mixing_weight: tuple[float, ...] | None = None
    learn_gain: bool = True
    learn_tilt: bool = True
    stationary_start: bool = True
    total_variation: float = 0.0
    exponent: float = 0.75

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.total_variation >= 0:
            raise InputError(f"total_variation is {self.total_variation}: give 0 or more")

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
        """Separate x (..., frame, freq); `objective` and `dictionary` as in `MCEM`.

        Under a penalty log densities have no frame axis.
        """
        x = mixture
        power = x.real.square() + x.imag.square()
        rng = torch.Generator(device=x.device).manual_seed(seed)

        W, H = initial_factors(
            power, self.rank, stationary=self.stationary_start, mask=mask, rng=rng
        )
        if dictionary is not None:
            W = dictionary.expand_as(W)
        g, log_c = torch.ones_like(power[..., 0]), torch.zeros_like(power[..., 0, :])
        pi = initial_mixing_weight(prior, power, self.mixing_weight)
        z, kernel = starting_codes(prior, power, lips, self.chains), self.kernel
        v = prior.visual_features(lips)
        objective: list[Tensor] = []

        first_warmup = self.warmup if self.first_warmup is None else self.first_warmup
        warmups = [first_warmup, *[self.warmup] * (self.iterations - 1), self.final_warmup]
        for iteration, warmup in enumerate(warmups):
            final = iteration == self.iterations
            # E-step: draws of p(z | x), smooth or not, and rho
            noise = nmf_noise_variance(W, H)
            if self.stationary_start and iteration == 0:
                noise = mixture_level(power, mask)[..., None, None].expand_as(noise)
            collapsed = CollapsedTarget(prior, v, power, noise, pi, g, log_c)
            target: Target = collapsed
            if self.total_variation:
                target = SmoothTarget(collapsed, self.total_variation, mask)
            chains = run_chains(
                kernel,
                target,
                z,
                draws=self.final_draws if final else self.draws,
                warmup=warmup,
                adapt=self.adapt,
                seed=rng,
                where=f"ldem, iteration {iteration + 1}",
            )
            z, kernel = chains.state.z, chains.kernel
            sigma, w = weighted_draws(collapsed, chains.draws.flatten(0, 1))
            r = w.sum(1)
            if final:
                break
            # M-step: S19, and the tilt
            W, H, g = m_step(power, sigma, w, W, H, g, self.exponent, self.learn_gain, mask)
            if self.learn_tilt and iteration >= TILT_START:
                tilt = tilt_update(power, sigma, w, W, H, g, exponent=self.exponent, mask=mask)
                log_c = log_c + tilt
            if self.mixing_weight is None:
                pi = update_mixing_weight(r, mask)
            objective.append(monte_carlo_q(power, sigma, w, W, H, g, mask))
            stop_unless_finite(objective, chains, "ldem")

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
