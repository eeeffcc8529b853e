"""Unadjusted Langevin: MALA that accepts everything. BIASED: it does not leave its target invariant.

    z' = z + D(z) + eps xi,    D = eps^2/2 grad log p(z),    xi ~ N(0, I)

On a Gaussian target N(0, s2) the chain is an autoregression with factor 1 - eps^2 / (2 s2), whose stationary variance

    s2 / (1 - eps^2 / (4 s2))

is too large, by 17 % at eps = 0.1, s2 = 0.13^2; from eps = 2 sqrt(s2) on the chain explodes.

With a `longest_drift` m it is tamed [Hutzenthaler, Jentzen and Kloeden 2012; Brosse et al. 2019]: D is shortened to
min(1, m / |D|) D. Then no chain explodes, whatever eps. The law of a chain on N(0, s2) is that of

    z' = z - clip(eps^2 z / (2 s2), -m, m) + eps xi

which is the untamed one where |z| <= 2 m s2 / eps^2 nearly always, and else a wider one: a chain outside the stable
region oscillates with steps of up to m. `tests/test_gradient.py` holds both against quadrature of that recursion.

When to use it: where the bias does not matter, as in moving away from a bad start, before an exact kernel takes over.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_avse.inference.adaptation import of_every_code
from pyro_avse.inference.gradient import GradientState, gradient_state
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.settings import check_settings
from pyro_avse.typing import Codes, Info, InputError, StepSize, Target


@dataclass(frozen=True)
class ULA:
    """Langevin moves with step size eps = `step_size`, always taken: biased, by the law above.

    `longest_drift` is m, of a frame's code, whatever the target's event; None: as long as the gradient says. Only
    a move to where the log density or its gradient is not finite is refused.
    """

    step_size: StepSize = 0.1
    longest_drift: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.longest_drift is not None and not self.longest_drift > 0:
            raise InputError(f"ULA: longest_drift is {self.longest_drift}: give a number above 0")

    def init(self, target: Target, z: Tensor) -> GradientState:
        """The chain at z (chain, ..., frame, latent), with its score."""
        return gradient_state(target, z)

    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        """One move of every chain and frame."""
        z = state.z
        eps = of_every_code(self.step_size, target)
        xi = torch.randn(z.shape, generator=rng, dtype=z.dtype, device=z.device)
        drift = tamed(0.5 * eps**2 * state.gradient, self.longest_drift)
        proposal = gradient_state(target, z + drift + eps * xi)
        slopes = proposal.gradient.flatten(-target.event_dim).sum(-1)
        finite = (proposal.log_density + slopes).isfinite()
        always = torch.full_like(proposal.log_density, math.inf)
        return accept_or_reject(state, proposal, torch.where(finite, always, -math.inf), rng=rng)


def tamed(drift: Codes, longest: float | None) -> Codes:
    """The drift, no frame's longer than `longest`."""
    if longest is None:
        return drift
    length = drift.square().sum(-1, keepdim=True).sqrt()
    return longest / length.clamp_min(longest) * drift
