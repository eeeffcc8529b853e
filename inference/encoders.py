"""The prior's encoders as a guide of the noisy clip, and how they learn it. [Sadeghi2021] (14), (17)"""

import copy
from contextlib import ExitStack
from itertools import product
from typing import Any, cast

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Categorical, Independent, Normal
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.inference.em import Observation, heard_where_unseen
from pyro_avse.inference.nuts import WithoutIdle
from pyro_avse.inference.run import sum_of_frames
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.wiener import Draws
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import Codes, FrameMask, Power, Responsibilities, SpeechPrior, couples_frames


class Encoders:
    """A copy of the prior for each utterance, of which the encoders learn.

    Called, it is q(z_n | |x_n|^2, v_n, alpha_n) (14): batch (component, ..., frame). Adam leaves whatever no encoder
    uses as it is, for want of a gradient.
    """

    def __init__(
        self,
        prior: SpeechPrior,
        power: Power,
        lips: Tensor | None,
        learning_rate: float,
        mask: FrameMask | None = None,
    ) -> None:
        self.power, self.lips = power, lips
        self.utterances = list(product(*map(range, power.shape[:-2])))
        self.copies: list[Any] = [copy.deepcopy(prior) for _ in self.utterances]
        if couples_frames(prior) and mask is not None:
            self.copies = [
                one.within(mask=mask[utterance])
                for one, utterance in zip(self.copies, self.utterances, strict=True)
            ]
        self.parameters = [p for one in self.copies for p in one.requires_grad_().parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=learning_rate, fused=True)

    def __call__(self) -> Independent:
        means, scales = [], []
        for one, utterance in zip(self.copies, self.utterances, strict=True):
            q = one.encode(
                self.power[utterance], None if self.lips is None else self.lips[utterance]
            )
            means.append(q.mean)
            scales.append(q.stddev)
        shape = (len(means[0]), *self.power.shape[:-1], -1)
        mean, scale = (torch.stack(t, 1).reshape(shape) for t in (means, scales))
        return unchecked_normal(mean, scale)

    def paths(self, noise: Codes) -> tuple[Codes, Float[Tensor, "draw *utterance frame"]]:
        """Draws of a guide that couples frames, by `SequencePrior.draw_codes`: z and log q(z_n | z_<n)."""
        drawn = [
            one.draw_codes(
                self.power[utterance],
                None if self.lips is None else self.lips[utterance],
                noise.movedim(0, -1)[utterance].movedim(-1, 0),
            )
            for one, utterance in zip(self.copies, self.utterances, strict=True)
        ]
        shape = self.power.shape[:-2]
        z, log_q = (torch.stack(t, 1) for t in zip(*drawn, strict=True))
        return z.unflatten(1, shape) if shape else z[:, 0], (
            log_q.unflatten(1, shape) if shape else log_q[:, 0]
        )

    @torch.enable_grad()
    def loss(
        self, observation: Observation, target: CollapsedTarget, responsibilities: Responsibilities
    ) -> Tensor:
        """Minus the ELBO of `noisy_speech` and this guide, summed over the utterances, by one draw a component."""
        frames, mask = observation.x.shape[:-1], observation.mask
        if couples_frames(target.prior):
            noise = torch.randn(1, *frames, target.prior.latent_dim, device=observation.x.device)
            z, log_q = self.paths(noise.to(observation.power.dtype))
            return -sum_of_frames(target.frames_log_density(z) - log_q, mask).sum()

        def model() -> None:
            pi = target.mixing_weight
            framewise = pi.dim() == observation.x.dim()
            heard = cast(SpeechPrior, WithoutIdle(target.prior, pi, framewise))
            noisy_speech(
                heard,
                observation.x,
                target.lips,
                target.noise_variance,
                mixing_weight=target.mixing_weight,
                gain=target.gain,
                log_response=target.log_response,
                mask=mask,
            )

        def guide() -> None:
            q = self()
            if observation.lips_mask is not None:
                q = heard_where_unseen(observation, q)
            with ExitStack() as plates:
                for dim, size in enumerate(reversed(frames), start=1):
                    name = "frame" if dim == 1 else f"utterance_{dim - 1}"
                    plates.enter_context(pyro.plate(name, size, dim=-dim))
                if mask is not None:
                    plates.enter_context(poutine.mask(mask=mask))
                if len(q.mean) == 1:
                    pyro.sample("z", Normal(q.mean[0], q.stddev[0]).to_event(1))
                else:
                    r = Categorical(responsibilities.movedim(0, -1))
                    pyro.sample("alpha", r, infer={"enumerate": "parallel"})
                    # alpha's axis is the one on the left, as q's components are: row k is alpha = k
                    pyro.sample("z", Normal(q.mean, q.stddev).to_event(1))

        elbo = TraceMeanField_ELBO()
        if target.prior.num_components > 1:
            elbo = TraceEnum_ELBO(max_plate_nesting=len(frames))
        return elbo.differentiable_loss(model, guide)

    def step(self, loss: Tensor) -> None:
        """One of Adam's, downhill."""
        self.adam.zero_grad()
        loss.backward(inputs=self.parameters)  # nothing is left in the prior's own .grad
        self.adam.step()


def draw_components(
    target: CollapsedTarget, q: Independent, draws: int, rng: torch.Generator
) -> tuple[
    Float[Tensor, "component draw *utterance frame latent"],
    Draws,
    Float[Tensor, "component *utterance frame"],
]:
    """Draws z of each component's q_k, sigma_k at its own, and log pi_k + E_{q_k} [log p(x, z | k) - log q_k(z)]."""
    mean, scale = q.mean[:, None], q.stddev[:, None]
    shape = (len(mean), draws, *mean.shape[2:])
    z = mean + scale * torch.randn(shape, generator=rng, dtype=mean.dtype, device=mean.device)
    decoded = target.prior.log_variance(z.flatten(0, 1), target.lips)
    joint = target.component_log_joint(z.flatten(0, 1), decoded)
    log_q = unchecked_normal(mean, scale).log_prob(z)
    own_joint, own_decoded = (own_component(t, draws) for t in (joint, decoded))
    return z, own_decoded.exp(), (own_joint - log_q).mean(1)


def own_component(every: Tensor, draws: int) -> Tensor:
    """Component k of what component k drew, (component, draw, ...), from (component | 1, component * draw, ...)."""
    pairs = every.unflatten(1, (-1, draws))
    return pairs[0] if len(pairs) == 1 else pairs.diagonal(dim1=0, dim2=1).movedim(-1, 0)
