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
from dataclasses import dataclass
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
from pyro_avse.inference.mcem import Draws, finite_where_idle, m_step, monte_carlo_wiener
from pyro_avse.inference.nuts import WithoutIdle, pyro_session
from pyro_avse.inference.run import stop_unless_finite, sum_of_frames
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.vem import initial_mixing_weight, update_mixing_weight
from pyro_avse.models.nmf_noise import initial_factors, nmf_noise_variance
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import (
    FrameMask,
    MixingWeight,
    Power,
    Responsibilities,
    Separation,
    Spectrum,
    SpeechPrior,
)


@dataclass(frozen=True)
class AmortisedVEM:
    """Settings.

    Attributes:
        iterations: a quarter of the others': with more, the noise model takes speech ("Time to quality" in RESULTS.md).
        steps: of Adam, on the encoders, in each; 0 leaves them as they were trained.
        learning_rate: of Adam.
        draws, final_draws: of q, for r and the M-step, and in the end for speech.
        rank: spectra in the noise dictionary W.
        mixing_weight, learn_gain, exponent: as in `MCEM`.
    """

    iterations: int = 25
    steps: int = 3
    learning_rate: float = 3e-3
    draws: int = 10
    final_draws: int = 25
    rank: int = 10
    mixing_weight: tuple[float, ...] | None = None
    learn_gain: bool = True
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        seed: int = 0,
    ) -> Separation:
        """Separate x (..., frame, freq); `objective` is F after every E-step, per utterance; `z` the mean of q.

        Raises:
            Divergence: the objective became NaN or infinite; its `partial` holds the last draws of z.
            InputError: a component's encoder needs lips and there are none.
        """
        with pyro_session(seed, device=mixture.device), torch.no_grad():
            return self._separate(prior, mixture, lips, mask, seed)

    def _separate(
        self,
        prior: SpeechPrior,
        x: Spectrum,
        lips: Tensor | None,
        mask: FrameMask | None,
        seed: int,
    ) -> Separation:
        power = x.real.square() + x.imag.square()
        rng = torch.Generator(device=x.device).manual_seed(seed)
        W, H = initial_factors(power, self.rank, mask=mask, rng=rng)
        g = torch.ones_like(power[..., 0])
        pi = initial_mixing_weight(prior, power, self.mixing_weight)
        v = prior.visual_features(lips)
        prior.encode(
            power, lips
        )  # refuses in one line where lips are missing; inside a trace Pyro adds its own
        encoders = Encoders(prior, power, lips, self.learning_rate)
        r = pi[..., None].expand(*pi.shape, power.shape[-2])
        objective: list[Tensor] = []

        for iteration in range(self.iterations + 1):
            final = iteration == self.iterations
            # E-step: psi, then r
            noise = nmf_noise_variance(W, H)
            if not final:
                in_units_of_g = (x / g.sqrt()[..., None], v, noise / g[..., None])
                for _ in range(self.steps):
                    encoders.step(encoders.loss(prior, *in_units_of_g, pi, r, mask))
            target = CollapsedTarget(prior, v, power, noise, pi, g)
            q = encoders()
            z, sigma, log_weight = draw_components(
                target, q, self.final_draws if final else self.draws, rng
            )
            r = torch.softmax(log_weight, 0)
            w = (r / sigma.shape[1])[:, None].expand(sigma.shape[:-1])
            sigma = finite_where_idle(sigma, w)
            if final:
                break
            bound = torch.logsumexp(log_weight, 0)
            objective.append(sum_of_frames(bound, mask))
            stop_unless_finite(objective, z, "amortised_vem", "lower learning_rate")
            # M-step
            W, H, g = m_step(power, sigma, w, W, H, g, self.exponent, self.learn_gain, mask)
            if self.mixing_weight is None:
                pi = update_mixing_weight(r, mask)

        return Separation(
            speech=monte_carlo_wiener(x, sigma, w, W, H, g),
            responsibilities=r,
            mixing_weight=pi,
            dictionary=W,
            activations=H,
            objective=torch.stack(objective),
            z=(r[..., None] * q.mean).sum(0)[None],
            target=target,
            gain=g if self.learn_gain else None,
        )


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
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None,
        noise_variance: Power,
        mixing_weight: MixingWeight,
        responsibilities: Responsibilities,
        mask: FrameMask | None,
    ) -> Tensor:
        """Minus the ELBO of `noisy_speech` and this guide, summed over the utterances, by one draw a component."""
        frames, heard = mixture.shape[:-1], cast(SpeechPrior, WithoutIdle(prior, mixing_weight))

        def model() -> None:
            noisy_speech(
                heard, mixture, lips, noise_variance, mixing_weight=mixing_weight, mask=mask
            )

        def guide() -> None:
            q = self()
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
        if prior.num_components > 1:
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
