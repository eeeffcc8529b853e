"""Point-estimate EM: the collapsed posterior's mode in place of draws from it. Slides S17-S20 with R = 1

E-step: the code at which the joint of `CollapsedTarget` is highest,

    z_n = argmax log p(x_n, z_n),   p(x_n, z_n) = sum_k pi_k p(z_n | k) N_c(x_n; 0, g_n sigma_k(z_n) + (W H)_n)

by a few steps of Adam up its gradient, from where the last E-step ended. The prior counts once: -1/2 |z - mu|^2 / sigma
beside -log V - |x|^2 / V. alpha_n given z_n keeps its exact posterior rho_k, so M-step and filter are those of `mcem`
with one draw of weights w_k = rho_k. Both steps raise the one objective log p(x, z; W, H, g, pi): at exponent 1/2 the
M-step never lowers it; Adam, whose step size is fixed, may.

When to use it: for speed, and for a result without chance but that of W's and H's start. A mode is no mean: it ignores
how much of the posterior lies beside it, so parameters and speech are surer of themselves than `mcem`'s.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.mcem import m_step, monte_carlo_wiener, weighted_draws
from pyro_avse.inference.run import stop_unless_finite, sum_of_frames, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.vem import initial_mixing_weight, update_mixing_weight
from pyro_avse.models.nmf_noise import initial_factors, nmf_noise_variance
from pyro_avse.typing import Codes, FrameMask, Separation, Spectrum, SpeechPrior, Target


@dataclass(frozen=True)
class PEEM:
    """Settings of point-estimate EM.

    Attributes:
        iterations: EM iterations.
        steps: of Adam in each E-step.
        learning_rate: of Adam, about the distance that a code moves in a step.
        rank, mixing_weight, learn_gain, exponent: as in `MCEM`.
    """

    iterations: int = 100
    steps: int = 10
    learning_rate: float = 0.05
    rank: int = 10
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
    ) -> Separation:
        """Separate x (..., frame, freq); `objective` is log p(x, z) after each M-step; `z` is the mode."""
        x = mixture
        power = x.real.square() + x.imag.square()
        rng = torch.Generator(device=x.device).manual_seed(seed)

        W, H = initial_factors(power, self.rank, mask=mask, rng=rng)
        g = torch.ones_like(power[..., 0])
        pi = initial_mixing_weight(prior, power, self.mixing_weight)
        z = prior.initial_codes(power, lips)[None].clone()
        v = prior.visual_features(lips)
        target = CollapsedTarget(prior, v, power, nmf_noise_variance(W, H), pi, g)
        optimiser = Adam([z], lr=self.learning_rate, fused=True, maximize=True)
        objective: list[Tensor] = []

        for iteration in range(self.iterations + 1):
            # E-step: the mode, and rho
            before = z.clone()
            climb(target, z, optimiser, self.steps)
            sigma, w = weighted_draws(target, z)
            r = w.sum(1)
            if iteration == self.iterations:
                break
            # M-step: S19
            W, H, g = m_step(power, sigma, w, W, H, g, self.exponent, self.learn_gain, mask)
            if self.mixing_weight is None:
                pi = update_mixing_weight(r, mask)
            target = CollapsedTarget(prior, v, power, nmf_noise_variance(W, H), pi, g)
            objective.append(sum_of_frames(target.log_density(z)[0], mask))
            stop_unless_finite(objective, before, "peem", "take a smaller learning_rate")

        return Separation(
            speech=monte_carlo_wiener(x, sigma, w, W, H, g),
            responsibilities=r,
            mixing_weight=pi,
            dictionary=W,
            activations=H,
            objective=torch.stack(objective),
            z=z,
            target=target,
            gain=g if self.learn_gain else None,
        )


def climb(target: Target, z: Codes, optimiser: Optimizer, steps: int) -> None:
    """Move z, in place, by `steps` steps of its optimiser up the gradient of the target's log density."""
    for _ in range(steps):
        _, z.grad = value_and_grad(target, z)
        optimiser.step()
