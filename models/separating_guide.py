"""A guide that hears several speakers at once and sees their lips: q(z_j, alpha_j, g_j, a_j, noise | x, v_1:J).

It is for the program `noisy_speech` with J speakers, and looks at a whole recording. For each speaker j, h_j,1:N is

    m_j       what the lips say of his loudness, or a mark that there are none (models/lip_reader.py)
    y_j       log |x|^2, the same over the noise's floor, A m_j + mean_{i != j} B m_i
    h1_j      GRU(y_j), both ways
    h_j       GRU(h1_j + C tanh(D mean_{i != j} h1_i)), both ways

so that it knows what the others are believed to say. All speakers share all weights: to exchange two of them exchanges
what is believed of them, and no more. But for A, B and C it is the guide of one speaker, and starts as that. From h_j
come q(z_jn | alpha_jn), q(alpha_jn), q(log g_j) and q(a_j) as in models/guide.py; from the mean of h_j over the
speakers comes q(log (W H)_n). One speaker, or seven, may be there.

Trained on draws of the program (pyro_avse.training.separate). A face without a voice gets silence.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_avse.distributions import unchecked_normal
from pyro_avse.models.ear import run_gru
from pyro_avse.models.guide import NOISE_TERMS, RESPONSE_TERMS, SCALE_TERMS, positive
from pyro_avse.models.lip_reader import BANDS, LipReader, faceless, small_pictures
from pyro_avse.models.nmf_noise import response_basis
from pyro_avse.models.noise_floor import inner, log_heard, steady_floor
from pyro_avse.typing import FrameMask, Guess, Power

EXCHANGED = 48
"""Numbers by which one speaker's layer hears of the others."""
START = 0.1
"""What C is times, at first, in a guide that starts as that of one speaker."""
Told = Float[Tensor, "*utterance speaker frame band_and_one"]
"""m_j: what the lips say of every band, and 1; all 0 where there are none."""


class SeparatingGuide(nn.Module):
    """The guide of one speech prior, for any number of speakers.

    Args:
        prior: any frame-wise speech prior. It stays as it is, and is no part of the guide's weights.
        hidden: units of the first layer, and of each GRU in each direction.
    """

    def __init__(self, prior: Any, *, hidden: int = 128) -> None:
        super().__init__()
        self.options = {"hidden": hidden}
        self._prior = (prior,)  # in a tuple: no submodule
        K, L, F = prior.num_components, prior.latent_dim, prior.num_freqs
        self.num_components, self.latent_dim, self.num_freqs = K, L, F
        self.reader = LipReader()
        self.sound = nn.Linear(2 * F, hidden)
        self.own = nn.Linear(BANDS + 1, hidden, bias=False)
        self.others = nn.Linear(BANDS + 1, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.first = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.hear_others = nn.Linear(2 * hidden, EXCHANGED)
        self.mind_others = nn.Linear(EXCHANGED, 2 * hidden, bias=False)
        self.second = nn.GRU(2 * hidden, hidden, batch_first=True, bidirectional=True)
        self.codes = nn.Linear(2 * hidden, 2 * K * L)
        self.component = nn.Linear(2 * hidden, K)
        self.level = nn.Linear(2 * hidden, 2 * (1 + RESPONSE_TERMS))
        self.noise = nn.Linear(2 * hidden, 2 + NOISE_TERMS + SCALE_TERMS)

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
        speakers: int = 2,
    ) -> Guess:
        """q of recordings |x|^2 (..., frame, freq) whose speakers have lips (..., speaker, frame, 67, 67).

        `mask` (..., frame) is False in padding, `lips_mask` (..., speaker, frame) where a frame has no picture. Without
        any lips `speakers` are the same to it: there is nothing to tell them apart by.
        """
        if lips is None:
            told = power.new_zeros(*power.shape[:-2], speakers, power.shape[-2], BANDS + 1)
        else:
            told = self.told(lips, mask=mask, lips_mask=lips_mask)
        return self.read(*self.hear(power, told, mask=mask))

    def start_from(self, guide: dict[str, Tensor]) -> None:
        """Take over the networks of a `NoisyGuide` of two layers, by its tensors, where they fit."""
        places = {"ear.sound": "sound", "ear.norm": "norm", "ear.gru": "first"}
        own = self.state_dict()
        for name, tensor in guide.items():
            network, _, parameter = name.rpartition(".")
            if "_l1" in parameter:
                place = "second." + parameter.replace("_l1", "_l0")
            else:
                place = f"{places.get(network, network)}.{parameter}"
            if place in own and own[place].shape == tensor.shape:
                own[place].copy_(tensor)
        with torch.no_grad():
            self.mind_others.weight.mul_(START)

    def told(
        self,
        lips: Tensor,
        *,
        mask: FrameMask | None = None,
        lips_mask: FrameMask | None = None,
    ) -> Told:
        """m_j of pictures (..., speaker, frame, 67, 67)."""
        shown = None if mask is None else mask[..., None, :].expand(lips.shape[:-2])
        if lips_mask is not None:
            shown = lips_mask if shown is None else lips_mask & shown
        y = faceless(small_pictures(lips).to(self.noise.weight), shown)
        m = nn.functional.pad(self.reader(y, shown).mean, (0, 1), value=1.0)
        return m if shown is None else torch.where(shown[..., None], m, 0)

    def hear(
        self, power: Power, told: Told, *, mask: FrameMask | None = None
    ) -> tuple[Float[Tensor, "*utterance speaker frame out"], Tensor, Tensor]:
        """h_j, its mean over the frames, and the noise's floor."""
        log_power = log_heard(inner(power, mask))
        floor = steady_floor(log_power, mask)
        heard = self.sound(torch.cat([log_power, log_power - floor], -1) / 4)[..., None, :, :]
        y = heard + self.own(told) + _of_others(self.others(told))
        every = None if mask is None else mask[..., None, :].expand(y.shape[:-1])
        h1 = run_gru(self.first, torch.relu(self.norm(y)), every)
        minded = self.mind_others(torch.tanh(self.hear_others(_of_others(h1))))
        h = run_gru(self.second, h1 + minded, every)
        if every is None:
            return h, h.mean(-2), floor
        total = torch.where(every[..., None], h, 0).sum(-2)
        return h, total / every.sum(-1, keepdim=True), floor

    def read(
        self, h: Float[Tensor, "*utterance speaker frame out"], summary: Tensor, log_floor: Tensor
    ) -> Guess:
        """q from what is heard of every speaker."""
        K, L = self.num_components, self.latent_dim
        mean, scale = self.codes(h).unflatten(-1, (2, K, L)).movedim((-3, -2), (0, 1))
        level, level_scale = self.level(summary).chunk(2, -1)
        level_scale = positive(level_scale)
        noise, noise_scale = (
            part @ response_basis(part.shape[-1] - 1, self.num_freqs, h)
            for part in self.noise(h.mean(-3)).split((1 + NOISE_TERMS, 1 + SCALE_TERMS), -1)
        )
        return Guess(
            codes=unchecked_normal(mean, positive(scale)),
            responsibilities=torch.softmax(self.component(h), -1).movedim(-1, 0),
            log_gain=unchecked_normal(level[..., :1], level_scale[..., :1]),
            response=unchecked_normal(level[..., 1:], level_scale[..., 1:]),
            log_noise=unchecked_normal(log_floor + noise, positive(1 + noise_scale)),
        )


def _of_others(x: Float[Tensor, "*utterance speaker frame number"]) -> Tensor:
    """For each speaker the mean over the others; 0 where there are none."""
    return (x.sum(-3, keepdim=True) - x) / max(1, x.shape[-3] - 1)
