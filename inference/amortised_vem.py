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
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from pyro_avse.inference.em import EM, Observation, heard_where_unseen
from pyro_avse.inference.encoders import Encoders, draw_components
from pyro_avse.inference.monte_carlo import (
    Drawn,
    MCState,
    finite_where_idle,
    initial_theta,
    maximise,
    posterior,
    separation,
    weighted_draws,
)
from pyro_avse.inference.nuts import pyro_session
from pyro_avse.inference.run import sum_of_frames, unchecked
from pyro_avse.inference.settings import check_settings
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import Codes, Separation, couples_frames


@dataclass(frozen=True, kw_only=True)
class AmortisedState(MCState):
    """theta and psi; `z` is the mean of q."""

    encoders: Encoders


@dataclass(frozen=True)
class AmortisedVEM(EM):
    """Settings. `objective` is F after every E-step.

    Attributes:
        iterations: with more, the noise model takes speech ("Time to quality" in docs/RESULTS.md).
        steps: of Adam, on the encoders, in each; 0 leaves them as they were trained.
        learning_rate: of Adam.
        draws, final_draws: of q, for r and the M-step, and in the end for speech.
        noise, mixing_weight, exponent: as in `MCEM`.
    """

    name: ClassVar[str] = "amortised_vem"
    of_paths: ClassVar[bool] = True
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
        encoders = Encoders(prior, power, lips, self.learning_rate, observation.mask)
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
    ) -> Encoders:
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
        if couples_frames(observation.prior):
            return self._e_step_of_paths(observation, state, target, q.mean, draws, rng)
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

    def _e_step_of_paths(
        self,
        observation: Observation,
        state: AmortisedState,
        target: CollapsedTarget,
        mean: Codes,
        draws: int,
        rng: torch.Generator,
    ) -> tuple[AmortisedState, Drawn]:
        """The same where frames are coupled, by paths of q(z_n | z_<n, x_1:N); one component."""
        shape = (draws, *mean.shape[1:])
        noise = torch.randn(shape, generator=rng, dtype=mean.dtype, device=mean.device)
        z, log_q = state.encoders.paths(noise)
        sigma, w = weighted_draws(target, z)
        bound = (target.frames_log_density(z) - log_q).mean(0)
        objective = sum_of_frames(bound, observation.mask)
        state = replace(state, z=mean, objective=objective, partial=z)
        return state, Drawn(target, sigma, w)

    @unchecked
    def finish(
        self, observation: Observation, state: AmortisedState, *, rng: torch.Generator
    ) -> Separation:
        """S20 by draws of q, its encoders as they are."""
        drawn = self.e_step(observation, state, self.final_draws, rng)
        return separation(self, observation, *drawn)
