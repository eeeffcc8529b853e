"""Monte Carlo EM where several speak: x = s_1 + ... + s_J + b. [Nguyen2021]; slides S17-S20

It is `mcem` (inference/mcem.py) with the codes of all speakers moved together. E-step: draws of

    p(z_1n, ..., z_Jn | x_n)                                          `SpeakersTarget`, any kernel

and for each the exact posterior rho_rc of the components c = (k_1, ..., k_J). M-step: with
V_rc = sum_j g_j c_j sigma_k(z_jr) + W H, one update each of H, W and every speaker's g_j and c_j, the others'
as they are; each raises Q = sum_rc w_rc log p(x, z_r, c) + log p(W, H, g, c), as S19 does. pi_j is the mean of rho.
In the end every speaker's posterior mean is

    s_jn = x_n sum_rc w_rc g_j c_j sigma_k(z_jr) / V_rc                                                (S20)

and what is left is noise: the filters of speakers and noise sum to one, and so all parts to the mixture.

Where the chains start decides: two voices are in x, and which is whose only lips say. They start at a separating
guide's codes (models/separating_guide.py), q(z_j | x, v_1:J); as in `guided` the end lies between two filters, here
in proportion to G_guide^v G_model^(1-v) of each speaker and the noise. Without a guide chains start at the encoders',
which in mixed speech are lost: of a prior that does not look at lips all speakers start, and stay, alike.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_avse.distributions import update_mixing_weight
from pyro_avse.inference.em import (
    frame_weight,
    initial_mixing_weight,
    move_chains,
    run,
    starting_codes,
)
from pyro_avse.inference.guess import guessed_factors, guessed_filters, guessed_level
from pyro_avse.inference.m_step import monte_carlo_q
from pyro_avse.inference.mcem import MCEM
from pyro_avse.inference.monte_carlo import MCState, chain_weights, chains_disagree
from pyro_avse.inference.nmf import initial_factors
from pyro_avse.inference.run import unchecked
from pyro_avse.inference.speakers_m_step import (
    SpeakersObservation,
    observe_speakers,
    speakers_m_step,
    speech_of_each,
)
from pyro_avse.inference.speakers_target import SpeakersTarget, apart, combine, joined, of_speaker
from pyro_avse.inference.target import zero_where_idle
from pyro_avse.inference.ula import ULA
from pyro_avse.inference.wiener import Draws, Weights
from pyro_avse.models.nmf_noise import log_prior, nmf_noise_variance
from pyro_avse.typing import FrameMask, InputError, Kernel, Separation, Spectrum, SpeechPrior


@dataclass(frozen=True, kw_only=True)
class SpeakersState(MCState):
    """As of `mcem`, with a speaker axis before the frames; z is that of all speakers in a row (`joined`)."""

    kernel: Kernel


@dataclass(frozen=True)
class DrawnTogether:
    """What an E-step found."""

    sigma: Draws
    """sigma_k(z_jr), as decoded: (component | 1, draw, ..., speaker, frame, freq)."""
    weights: Weights
    """w_rc, (combination, draw, ..., frame)."""
    target: SpeakersTarget
    chains: Any


@dataclass(frozen=True)
class SpeakersEM(MCEM):
    """Settings of Monte Carlo EM of several speakers; the defaults are those of `Guided`, not chosen by measurement.

    Attributes:
        kernel: what moves all codes of a frame; `ULA` with few steps as `ldem`, or `RandomWalk` with more as `mcem`.
        iterations, first_warmup, warmup, draws, final_warmup, final_draws, chains, temperature, noise, adapt,
            mixing_weight, exponent: as in `MCEM`.
        filter_share: v, from 0, the model's filter, to 1, the guide's; of no account without a guide.

    Raises:
        InputError: another share.
    """

    name: ClassVar[str] = "speakers"
    kernel: Kernel = field(default_factory=lambda: ULA(longest_drift=1.0))
    iterations: int = 4
    warmup: int = 2
    draws: int = 1
    first_warmup: int | None = 4
    final_warmup: int = 4
    final_draws: int = 4
    chains: int = 2
    temperature: float = 20.0
    exponent: float = 1.0
    filter_share: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.filter_share <= 1:
            raise InputError(
                f"filter_share is {self.filter_share}: give 0, the model's filter, to 1, the guide's"
            )

    def separate(
        self,
        prior: SpeechPrior,
        mixture: Spectrum,
        lips: Tensor | None = None,
        *,
        speakers: int,
        mask: FrameMask | None = None,
        lips_mask: FrameMask | None = None,
        seed: int = 0,
        guide: Any = None,
    ) -> Separation:
        """The speech of J `speakers`, (..., speaker, frame, freq), of x (..., frame, freq); what is left is noise.

        Args:
            lips: (..., speaker, frame, 67, 67); None: none of them is seen.
            mask: (..., frame), False where padding is.
            lips_mask: (..., speaker, frame), False where a frame has no picture.
            guide: a separating guide of this prior.

        Raises as a call of `MCEM`.
        """
        observation = observe_speakers(
            prior, mixture, lips, speakers, mask=mask, lips_mask=lips_mask, guide=guide
        )
        rng = torch.Generator(device=mixture.device).manual_seed(seed)
        return run(self, observation, rng=rng)

    @unchecked
    def init(self, observation: SpeakersObservation, *, rng: torch.Generator) -> SpeakersState:  # type: ignore[override]
        """Speech as loud as in training or fainter, and chains where the guide says, or the encoders."""
        power, guess, noise = observation.power, observation.guess, self.noise
        each = observation.each
        ones = torch.ones_like(each.power[..., 0])
        W, H = initial_factors(power, noise, mask=observation.mask, rng=rng)
        response = ones.new_zeros(*ones.shape[:-1], noise.response) if noise.response else None
        gain = ones
        if guess is not None:
            if noise.start == "guide":
                W, H = guessed_factors(guess, noise, W, H, mask=observation.mask)
            if noise.gain != "none":
                gain = ones * guessed_level(guess)
        pi = initial_mixing_weight(observation.prior, each.power, self.mixing_weight)
        return SpeakersState(
            dictionary=W,
            activations=H,
            mixing_weight=pi,
            responsibilities=pi[..., None].expand(*pi.shape, power.shape[-2]),
            z=joined(starting_codes(each, self.chains)),
            objective=power.new_full(power.shape[:-2], torch.nan),
            gain=gain,
            response=response,
            kernel=self.kernel,
        )

    def e_step(  # type: ignore[override]
        self,
        observation: SpeakersObservation,
        state: SpeakersState,
        warmup: int,
        draws: int,
        rng: torch.Generator,
    ) -> tuple[SpeakersState, DrawnTogether]:
        """Draws of p(z_1, ..., z_J | x), and what they count."""
        target = posterior_of_speakers(observation, state)
        state, chains = move_chains(self, state, target, warmup=warmup, draws=draws, rng=rng)
        z = chains.draws.flatten(0, 1)
        log_variance = target.prior.log_variance(apart(z, target.speakers), target.lips)
        w = torch.softmax(target.log_joint(z, log_variance)[0], 0) / len(z)
        if math.isfinite(self.temperature):
            share = chain_weights(chains.log_density, chains.draws, self.temperature)
            w = w * (len(share) * share).repeat_interleave(draws, 0)
        r = of_speaker(w[..., None], target.speakers, len(state.mixing_weight))[..., 0].sum(1)
        r = r.expand(state.responsibilities.shape)
        sigma = zero_where_idle(log_variance, target.mixing_weight).exp()
        return replace(state, responsibilities=r), DrawnTogether(sigma, w, target, chains)

    def m_step(  # type: ignore[override]
        self, observation: SpeakersObservation, state: SpeakersState, drawn: DrawnTogether
    ) -> SpeakersState:
        """S19 of H, W and each speaker's level; pi_j is the mean of rho."""
        power, mask, noise, w = observation.power, observation.mask, self.noise, drawn.weights
        state = speakers_m_step(power, drawn.sigma, w, state, noise, self.exponent, mask)
        if self.mixing_weight is None:
            pi = update_mixing_weight(state.responsibilities, observation.informed)
            state = replace(state, mixing_weight=pi)
        H, total = state.activations, combine(speech_of_each(drawn.sigma, state))
        q = monte_carlo_q(
            power, total, w, state.dictionary, H, torch.ones_like(power[..., 0]), mask
        )
        level = log_prior(
            noise, H[..., None, :1, :], state.gain, state.response
        )  # no steps: of one frame
        objective = q + log_prior(noise, H, mask=mask) + level.sum(-1)
        return replace(state, objective=objective, iteration=state.iteration + 1)

    @unchecked
    def finish(  # type: ignore[override]
        self, observation: SpeakersObservation, state: SpeakersState, *, rng: torch.Generator
    ) -> Separation:
        """S20 by a longer run of the chains, and what the guide filters."""
        state, drawn = self.e_step(observation, state, self.final_warmup, self.final_draws, rng)
        S = speech_of_each(drawn.sigma, state)
        V = combine(S) + nmf_noise_variance(state.dictionary, state.activations)
        w = drawn.weights if len(V) > 1 else drawn.weights.sum(0, keepdim=True)
        share = of_speaker(w[..., None] / V, drawn.target.speakers, len(state.mixing_weight))
        filters = (S * share).sum((0, 1))
        if observation.guess is not None and self.filter_share:
            own = torch.cat([filters, 1 - filters.sum(-3, keepdim=True)], -3).clamp_min(1e-12)
            guide = guessed_filters(observation.guess, observation.prior, observation.v)
            pooled = guide.clamp_min(1e-12) ** self.filter_share * own ** (1 - self.filter_share)
            filters = (pooled / pooled.sum(-3, keepdim=True))[..., :-1, :, :]
        return Separation(
            speech=filters * observation.x[..., None, :, :],
            responsibilities=state.responsibilities,
            mixing_weight=state.mixing_weight,
            dictionary=state.dictionary,
            activations=state.activations,
            objective=state.objective[None],
            z=apart(state.z, drawn.target.speakers),
            target=drawn.target,
            chains=drawn.chains,
            gain=None if self.noise.gain == "none" else state.gain,
            log_response=state.log_response,
            chains_disagree=chains_disagree(drawn.chains),
        )


def posterior_of_speakers(observation: SpeakersObservation, state: SpeakersState) -> SpeakersTarget:
    """p(z_1, ..., z_J | x) at the present theta, up to a constant."""
    weight = frame_weight(observation, state.mixing_weight)
    if weight.dim() == state.mixing_weight.dim():
        weight = weight[..., None]
    frames = observation.power.shape[-2]
    return SpeakersTarget(
        observation.prior,
        observation.v,
        observation.power,
        nmf_noise_variance(state.dictionary, state.activations),
        weight.expand(*weight.shape[:-1], frames),
        state.gain,
        state.log_response,
    )
