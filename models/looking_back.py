"""Dynamical priors that look back at the speech before, s_<n, or at a summary w of all of it."""

from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Independent
from torch import Tensor, nn

from pyro_avse.distributions import Path
from pyro_avse.models.dynamical import Dynamical
from pyro_avse.models.nets import diagonal_normal, standard_normal
from pyro_avse.models.over_time import Move, Recurrence, join, loudness
from pyro_avse.typing import Power


class Remembering(Dynamical):
    """A prior that looks at s_<n: h_n = LSTM(s_<n) is in the context of every frame.

    Args:
        unheard: the share of the frames in s_<n that in training are what the model decodes there itself, else it
            learns to copy the last frame (scheduled sampling, in parallel).
    """

    uses_past = True

    def __init__(
        self,
        num_freqs: int,
        latent_dim: int,
        hidden: int,
        unheard: float,
        features: int,
        embedding: int,
    ) -> None:
        super().__init__(num_freqs, latent_dim, hidden, features, embedding)
        self.options["unheard"] = self.unheard = unheard
        self.spectrum = nn.Linear(num_freqs, hidden)
        self.memory = Recurrence(hidden, hidden, "forwards")
        self.context_dim += hidden

    def context(self, lips: Tensor | None, num_frames: int) -> Tensor:
        """v_n and h_n; where nothing is known of s_<n, it was silence."""
        past = self.past
        if past is None:
            past = self.spectrum.weight.new_zeros(num_frames, self.num_freqs)
        y = torch.tanh(self.spectrum(loudness(past)))
        h = self.memory(nn.functional.pad(y[..., :-1, :], (0, 0, 1, 0)))
        return join(super().context(lips, num_frames), h)

    def told(self, power: Power, lips: Tensor | None) -> Any:
        """Of s_<n."""
        return self.within(past=own_past(self, power, lips, self.unheard))

    def encoder_path(self, power: Power, lips: Tensor | None) -> Path:
        """q(z_1:N | s_1:N, v), which knows s_<n if nobody else does."""
        known = self if self.past is not None else self.within(past=power)
        return Dynamical.encoder_path(known, power, lips)


class Summarised(Dynamical):
    """A prior with w ~ N(0, I), once an utterance, in the context of every frame; q(w | s_1:N) in the guide.

    At test time w is the mean of q(w | s_1:N) at E|s_n|^2 (`past`), as good as known; without it, 0.
    """

    uses_past = True
    w: Float[Tensor, "*utterance latent"] | None = None

    def __init__(
        self, num_freqs: int, latent_dim: int, hidden: int, features: int, embedding: int
    ) -> None:
        super().__init__(num_freqs, latent_dim, hidden, features, embedding)
        self.spectrum = nn.Linear(num_freqs, hidden)
        self.listen = Recurrence(hidden, hidden, "both")
        self.summary = Move(2 * hidden, hidden, latent_dim)
        self.context_dim += latent_dim

    def summarise(self, power: Power) -> Independent:
        """q(w | s_1:N): batch (...), event (latent,)."""
        h = self.listen(torch.tanh(self.spectrum(loudness(power))), self.mask)
        if self.mask is None:
            mean = h.mean(-2)
        else:
            total = torch.where(self.mask[..., None], h, 0).sum(-2)
            mean = total / self.mask.sum(-1, keepdim=True)
        mean, log_variance = self.summary(mean)
        return diagonal_normal(mean, log_variance)

    def knowing(self, w: Tensor) -> Any:
        """The same prior given w."""
        view = self.within()
        view.w = w
        return view

    def context(self, lips: Tensor | None, num_frames: int) -> Tensor:
        """v_n and w."""
        w = self.w
        if w is None and self.past is not None:
            w = self.summarise(self.past).mean
        if w is None:
            w = self.spectrum.weight.new_zeros(self.latent_dim)
        every = w[..., None, :].expand(*w.shape[:-1], num_frames, self.latent_dim)
        return join(super().context(lips, num_frames), every)

    def told(self, power: Power, lips: Tensor | None) -> Any:
        """Of w, which is drawn here."""
        normal = standard_normal(self.latent_dim, power)
        return self.knowing(pyro.sample("w", normal.expand(power.shape[:-2])))

    def believing(self, power: Power, lips: Tensor | None) -> Any:
        """In a w."""
        return self.knowing(pyro.sample("w", self.summarise(power)))

    def encoder_path(self, power: Power, lips: Tensor | None) -> Path:
        """q(z_1:N | w, s_1:N, v)."""
        known = self if self.w is not None else self.knowing(self.summarise(power).mean)
        return Dynamical.encoder_path(known, power, lips)


@torch.no_grad()
def own_past(prior: Dynamical, power: Power, lips: Tensor | None, share: float) -> Power:
    """|s_n|^2 as later frames are told of it in training: in a share of the frames, what the prior itself decodes."""
    if not (prior.training and share):
        return power
    known = prior.within(past=power)
    own = known.log_variance(known.initial_codes(power, lips), lips)[0].exp()
    unheard = torch.rand(*power.shape[:-1], 1, device=power.device) < share
    return torch.where(unheard, own, power)
