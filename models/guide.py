"""A guide that hears noise: q(z_1:N, alpha_1:N, g, a, noise | x_1:N, v_1:N), for any prior. (14), (31)

The priors' own encoders q(z | s) were trained on clean speech, and are lost in noise. This guide is for the test-time
program `noisy_speech` itself, and looks at a whole recording: h_1:N and the noise's floor f come from models/ear.py,

    q(log g) = N, q(a) = N              from the mean of h            speech's level and the microphone's response
    q(log (W H)_n) = N                  log f_n and, from h_n, a smooth correction: sum_j c_nj cos(pi j mel(f));
                                        its scale is as smooth
    q(alpha_n = k)                      from h_n                      enumerated, where the prior is a mixture
    q(z_n | alpha_n = k) = N            from h_n

It is trained on draws of the program (the sleep phase of wake-sleep [Hinton et al. 1995]; pyro_avse.training.amortise):
clean speech with the codes of its frames, and noise of models/drawn_noise.py, so that the forward divergence
KL(p(z, ... | x) || q) falls, averaged over x. Where the recording has no lips, or a frame no picture, an "absent" mark
stands in their place: one guide with and without.

Under a prior that couples frames q(z_1:N | x) is a product over the frames all the same, and what z decodes to is heard
of the whole path.

`causal` hears the past and some frames `ahead` alone (the first two as one), for sound that is still coming in:
`carry_on` goes on from block to block.
"""

from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Categorical, Independent, Normal
from torch import Tensor, nn

from pyro_avse.distributions import unchecked_normal
from pyro_avse.models.dynamical import Dynamical
from pyro_avse.models.ear import Ear, Heard, Memory
from pyro_avse.models.nmf_noise import response_basis
from pyro_avse.typing import FrameMask, Guess, Power

LEAST_SCALE = 1e-2
RESPONSE_TERMS = 4
"""a_1, ... of the microphone's response."""
NOISE_TERMS = 24
"""c_n1, ..., besides c_n0."""
SCALE_TERMS = 8
"""The same of the logarithm of its scale."""


class NoisyGuide(nn.Module):
    """The guide of one speech prior.

    Args:
        prior: any speech prior. It stays as it is, and is no part of the guide's weights.
        hidden, layers, causal, ahead: of the `Ear`.
    """

    def __init__(
        self,
        prior: Any,
        *,
        hidden: int = 128,
        layers: int = 2,
        causal: bool = False,
        ahead: int = 0,
    ) -> None:
        super().__init__()
        self.options = {"hidden": hidden, "layers": layers, "causal": causal, "ahead": ahead}
        self._prior = (prior,)  # in a tuple: no submodule
        K, L, F = prior.num_components, prior.latent_dim, prior.num_freqs
        self.num_components, self.latent_dim, self.num_freqs, self.causal = K, L, F, causal
        blank = prior.mixing_weight.new_zeros(1, 67, 67)
        self.sight = self.seen(blank).shape[-1] if prior.uses_lips else 0
        self.ear = Ear(F, self.sight, hidden=hidden, layers=layers, causal=causal, ahead=ahead)
        self.codes = nn.Linear(self.ear.size, 2 * K * L)
        self.component = nn.Linear(self.ear.size, K)
        self.level = nn.Linear(self.ear.size, 2 * (1 + RESPONSE_TERMS))
        self.noise = nn.Linear(self.ear.size, 2 + NOISE_TERMS + SCALE_TERMS)

    @property
    def prior(self) -> Any:
        return self._prior[0]

    def guess(
        self,
        power: Power,
        lips: Tensor | None = None,
        *,
        mask: FrameMask | None = None,
        lips_mask: FrameMask | None = None,
    ) -> Guess:
        """q of recordings |x|^2 (..., frame, freq), their lips (..., frame, 67, 67), `mask` False in padding."""
        looks = lips is not None and self.ear.lips is not None
        seen = self.seen(lips) if looks and lips is not None else None
        return self.read(self.ear(power, seen, mask=mask, lips_mask=lips_mask))

    @torch.no_grad()
    def seen(self, lips: Tensor) -> Float[Tensor, "*utterance frame seen"]:
        """What the prior makes of the lips, `sight` numbers a picture: the mean of its last encoder, which sees best,
        while it hears nothing. An encoder of whole utterances says half as much then, so of a `Dynamical` prior the
        embedding v_n itself is seen.
        """
        if isinstance(self.prior, Dynamical):
            embedded: Tensor = self.prior.embedding(lips)
            return embedded
        silence = self.prior.mixing_weight.new_zeros(*lips.shape[:-2], self.num_freqs)
        found: Tensor = self.prior.encode(silence, lips).mean[-1]
        return found

    def carry_on(self, power: Power, memory: Memory | None) -> tuple[Guess, Memory]:
        """A causal guide's q, from the next frames (frame, freq) of a recording, of those that lie `ahead` before them;
        and what it remembers of all so far.
        """
        heard, memory = self.ear.carry_on(power, memory)
        return self.read(heard), memory

    def read(self, heard: Heard) -> Guess:
        """q from what the ear makes of the recording."""
        K, L = self.num_components, self.latent_dim
        h = heard.h
        mean, scale = self.codes(h).unflatten(-1, (2, K, L)).movedim((-3, -2), (0, 1))
        level, level_scale = self.level(heard.summary).chunk(2, -1)
        level_scale = positive(level_scale)
        noise, noise_scale = (
            part @ response_basis(part.shape[-1] - 1, self.num_freqs, h)
            for part in self.noise(h).split((1 + NOISE_TERMS, 1 + SCALE_TERMS), -1)
        )
        return Guess(
            codes=unchecked_normal(mean, positive(scale)),
            responsibilities=torch.softmax(self.component(h), -1).movedim(-1, 0),
            log_gain=unchecked_normal(heard.level + level[..., :1], level_scale[..., :1]),
            response=unchecked_normal(level[..., 1:], level_scale[..., 1:]),
            log_noise=unchecked_normal(heard.log_floor + noise, positive(1 + noise_scale)),
        )

    def guide(
        self, power: Power, lips: Tensor | None = None, *, lips_mask: FrameMask | None = None
    ) -> None:
        """The same as a Pyro program over recordings (utterance, frame, freq): alpha enumerated in parallel."""
        self.sample_sites(self.guess(power, lips, lips_mask=lips_mask))

    def sample_sites(self, q: Guess) -> None:
        """The sample statements, in the order of the story above."""
        utterances, frames = q.log_noise.batch_shape
        with pyro.plate("utterance", utterances, dim=-2):
            with pyro.plate("recording", 1, dim=-1):
                pyro.sample("log_g", _apart(q.log_gain))
                pyro.sample("a", _apart(q.response))
            with pyro.plate("frame", frames, dim=-1):
                pyro.sample("log_noise", q.log_noise)
                mean, scale = q.codes.mean, q.codes.stddev
                if self.num_components == 1:
                    pyro.sample("z", Normal(mean[0], scale[0]).to_event(1))
                    return
                r = Categorical(q.responsibilities.movedim(0, -1))
                pyro.sample("alpha", r, infer={"enumerate": "parallel"})
                # alpha's axis is the one on the left, as q's components are: row k is alpha = k
                pyro.sample("z", Normal(mean, scale).to_event(1))


def _apart(normal: Independent) -> Independent:
    """Batch (utterance,) as (utterance, 1)."""
    return unchecked_normal(normal.mean[:, None], normal.stddev[:, None])


def positive(x: Tensor) -> Tensor:
    return nn.functional.softplus(x) + LEAST_SCALE
