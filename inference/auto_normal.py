"""Mean-field variational inference by Pyro's AutoNormal on the posterior of z, with the noise held. Slides S17, S5

MCEM runs first, and its W, H, g and pi stay, as for `nuts`. Then q(z_n) = N(mu_n, diag s_n^2), free numbers for every
frame and no encoder, is fitted by Adam to

    ELBO = E_q log p(x, z) - E_q log q(z) <= log p(x),

p being `noisy_speech` with s integrated out and alpha summed by TraceEnum_ELBO, one draw of z a step. Speech is the
posterior mean (S20) over draws of q.

When to use it: to see what a Gaussian per frame misses. Cheaper than chains where one draw a step is enough, and blind
to a posterior of two modes: it fits one of them, and its variance is then too small.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal as Guide
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyro_avse.errors import Divergence
from pyro_avse.inference.mcem import MCEM
from pyro_avse.inference.monte_carlo import weighted_draws
from pyro_avse.inference.nuts import held_filter, held_programs, pyro_session
from pyro_avse.inference.settings import check_prior, check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.typing import FrameMask, GuideForNoise, Separation, Spectrum, SpeechPrior


@dataclass(frozen=True)
class AutoNormal:
    """Settings of AutoNormal on `noisy_speech` (S17).

    Attributes:
        mcem: what finds W, H, g and pi.
        steps: of Adam.
        learning_rate: of Adam; it falls to a hundredth of this over the steps.
        draws: of q, from which speech is estimated.
        init_scale: q's standard deviation at first; its mean is where MCEM's first chain stands.
    """

    name: ClassVar[str] = "auto_normal"
    mcem: MCEM = field(default_factory=MCEM)
    steps: int = 500
    learning_rate: float = 0.02
    draws: int = 100
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        check_settings(self, steps=1)

    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        lips_mask: FrameMask | None = None,
        seed: int = 0,
        guide: GuideForNoise | None = None,
    ) -> Separation:
        """Separate x (..., frame, freq); `objective` is the ELBO of every step by its one draw, `z` the mean of q.

        Raises:
            Divergence: the ELBO became NaN or infinite; its `partial` holds MCEM's chains.
        """
        check_prior(self, prior)
        held = self.mcem(
            prior, mixture, lips, mask=mask, lips_mask=lips_mask, seed=seed, guide=guide
        )
        z = held.z[:1].clone()
        draws = z.repeat(self.draws, *[1] * (z.dim() - 1))
        utterances = mixture.shape[:-2]
        objective = held.objective.new_zeros(self.steps, *utterances)
        for utterance, frames, program in held_programs(mixture, held, mask):
            with pyro_session(seed, *utterance, device=mixture.device):
                elbo, mean, drawn = self._fit(program, z[0][utterance][frames], held)
            z[0][utterance][frames] = mean
            draws[(slice(None), *utterance)][:, frames] = drawn
            objective[(slice(None), *utterance)] = elbo

        with torch.no_grad():
            sigma, w = weighted_draws(cast(CollapsedTarget, held.target), draws)
            return replace(
                held,
                **held_filter(mixture, held, sigma, w),
                responsibilities=w.sum(1),
                objective=objective,
                z=z,
                chains=None,
                chains_disagree=None,
            )

    def _fit(
        self, model: Callable[[], None], start: Tensor, held: Separation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ELBO of every step, the guide's mean (frame, latent), and draws of it (draw, frame, latent)."""
        elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        rise = []
        # The guide's numbers are parameters of a module of its own, never of the param store.
        with pyro.settings.context(module_local_params=True), torch.enable_grad():
            guide = Guide(
                poutine.block(model, hide=["alpha"]),
                init_loc_fn=init_to_value(values={"z": start}),
                init_scale=self.init_scale,
            )
            guide()
            parameters = list(guide.parameters())
            adam = torch.optim.Adam(parameters, lr=self.learning_rate)
            decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.01 ** (1 / self.steps))
            for step in range(self.steps):
                adam.zero_grad()
                loss = elbo.differentiable_loss(model, guide)
                if not loss.isfinite():
                    raise Divergence(
                        f"auto_normal: the ELBO is not finite in step {step + 1}: lower learning_rate",
                        held.chains,
                    )
                loss.backward(inputs=parameters)
                adam.step()
                decay.step()
                rise.append(-loss.detach())
            with torch.no_grad():
                drawn = torch.stack([guide()["z"] for _ in range(self.draws)])
                mean = guide.median()["z"]
        return torch.stack(rise), mean, drawn
