"""Variational EM with an encoder in its E-step, fine-tuned on the noisy clip itself. [Sadeghi2021] (14), (17), (22); S6

The posterior of x = s + b, s integrated out, is approximated by the prior's own guide, fed with the noisy power,

    q(z_n, alpha_n) = q_psi(z_n | |x_n|^2, v_n, alpha_n) r(alpha_n)                                    (14)

and F = E_q log p(x, z, alpha) - E_q log q(z, alpha) <= log p(x), with p of S17, is raised in turn in

    psi       some steps of Adam on a Pyro ELBO, alpha enumerated, one draw of z each: the encoders learn this clip
    r         its maximum: proportional to pi_k exp E_{q_k} [log p(x, z | k) - log q_k(z)], as (22), by draws of q
    W, H, g   one update each of MCEM's (S19), with the same draws, which weigh r_k / R
    pi        the mean of r

The decoders, and the prior that is passed in, stay as they are: copies of its encoders learn, one for each utterance.
Speech is the posterior mean (S20) over draws of q. When to use it: as the dynamical VAEs' papers do, for the encoder's
smoothness over frames; and as a baseline, since q is a Gaussian a component where chains sample the posterior itself.
"""

import copy
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, ClassVar, cast

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Categorical, Independent, Normal
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.inference.em import EM, Observation, heard_where_unseen
from pyro_avse.inference.monte_carlo import (
    Drawn,
    MCState,
    finite_where_idle,
    initial_theta,
    maximise,
    posterior,
    separation,
)
from pyro_avse.inference.nuts import WithoutIdle, pyro_session
from pyro_avse.inference.run import sum_of_frames, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.wiener import Draws
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import Power, Responsibilities, Separation, SpeechPrior


@dataclass(frozen=True, kw_only=True)
class AmortisedState(MCState):
    """theta and psi; `z` is the mean of q."""

    encoders: "Encoders"


@dataclass(frozen=True)
class AmortisedVEM(EM):
    """Settings. `objective` is F after every E-step.

    Attributes:
        iterations: a quarter of the others': with more, the noise model takes speech ("Time to quality" in RESULTS.md).
        steps: of Adam, on the encoders, in each; 0 leaves them as they were trained.
        learning_rate: of Adam.
        draws, final_draws: of q, for r and the M-step, and in the end for speech.
        noise, mixing_weight, exponent: as in `MCEM`.
    """

    name: ClassVar[str] = "amortised_vem"
    cure: ClassVar[str] = "lower learning_rate"
    iterations: int = 25
    steps: int = 3
    learning_rate: float = 3e-3
    draws: int = 10
    final_draws: int = 25
    noise: NoiseModel = field(default_factory=NoiseModel)
    mixing_weight: tuple[float, ...] | None = None
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)

    @unchecked
    def init(self, observation: Observation, *, rng: torch.Generator) -> AmortisedState:
        """The encoders as they were trained. Raises InputError where one needs lips and there are none."""
        prior, power, lips = observation.prior, observation.power, observation.lips
        # refuses in one line where lips are missing; inside a trace Pyro adds its own
        z = prior.encode(power, lips).mean
        encoders = Encoders(prior, power, lips, self.learning_rate)
        return AmortisedState(
            **initial_theta(self, observation, rng),
            z=z[:1].expand(1, *power.shape[:-1], prior.latent_dim),
            encoders=encoders,
        )

    @unchecked
    def step(
        self, observation: Observation, state: AmortisedState, *, rng: torch.Generator
    ) -> AmortisedState:
        """Some steps of Adam on psi, then r, and one update each of H, W, g and pi."""
        state = replace(state, encoders=self.learn(observation, state, rng))
        return maximise(self, observation, *self.e_step(observation, state, self.draws, rng))

    def learn(
        self, observation: Observation, state: AmortisedState, rng: torch.Generator
    ) -> "Encoders":
        """psi: a copy of the encoders, moved on."""
        encoders, device = copy.deepcopy(state.encoders), observation.x.device
        target = posterior(observation, state)
        number = torch.randint(2**62, (), generator=rng, device=device)
        with pyro_session(int(number), device=device):
            for _ in range(self.steps):
                loss = encoders.loss(observation, target, state.responsibilities)
                encoders.step(loss)
        return encoders

    def e_step(
        self,
        observation: Observation,
        state: AmortisedState,
        draws: int,
        rng: torch.Generator,
    ) -> tuple[AmortisedState, Drawn]:
        """r by draws of q, and F."""
        target, q = posterior(observation, state), state.encoders()
        if observation.lips_mask is not None:
            q = heard_where_unseen(observation, q)
        z, sigma, log_weight = draw_components(target, q, draws, rng)
        r = torch.softmax(log_weight, 0)
        w = (r / sigma.shape[1])[:, None].expand(sigma.shape[:-1])
        bound = torch.logsumexp(log_weight, 0)
        state = replace(
            state,
            z=(r[..., None] * q.mean).sum(0)[None],
            responsibilities=r,
            objective=sum_of_frames(bound, observation.mask),
            partial=z,
        )
        return state, Drawn(target, finite_where_idle(sigma, w), w)

    @unchecked
    def finish(
        self, observation: Observation, state: AmortisedState, *, rng: torch.Generator
    ) -> Separation:
        """S20 by draws of q, its encoders as they are."""
        drawn = self.e_step(observation, state, self.final_draws, rng)
        return separation(self, observation, *drawn)


class Encoders:
    """A copy of the prior for each utterance, of which the encoders learn.

    Called, it is q(z_n | |x_n|^2, v_n, alpha_n) (14): batch (component, ..., frame). Adam leaves whatever no encoder
    uses as it is, for want of a gradient.
    """

    def __init__(
        self, prior: SpeechPrior, power: Power, lips: Tensor | None, learning_rate: float
    ) -> None:
        self.power, self.lips = power, lips
        self.utterances = list(product(*map(range, power.shape[:-2])))
        self.copies: list[Any] = [copy.deepcopy(prior) for _ in self.utterances]
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

    @torch.enable_grad()
    def loss(
        self, observation: Observation, target: CollapsedTarget, responsibilities: Responsibilities
    ) -> Tensor:
        """Minus the ELBO of `noisy_speech` and this guide, summed over the utterances, by one draw a component."""
        frames, mask = observation.x.shape[:-1], observation.mask

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
