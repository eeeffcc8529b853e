"""Training a separating guide: the sleep phase on draws of several speakers. (14), (31)

On draws of the program (pyro_avse.training.speakers) falls, for each recording, the sum over its speakers j of

    sleep      -sum_n sum_k r_jnk (log q(alpha_jn = k) + log q(z_jnk | k)) - log q(g_j) - log q(a_j), and once for
               the recording -w log q(log WH), as of a guide for one (pyro_avse.training.amortise)
    hearing    -sum_n sum_k r_jnk log N_c(s_j + r_j / 10; 0, S_jk + R / 100): what the codes' means decode to, S_j, is
               to be heard where all the rest, r_j, R its variance, is 20 dB fainter
    filter     log |s_j - G_j x|^2 over the frames, relative to |s_j|^2 or, where that is less, to |x|^2 / 100, with the
               Wiener filter G_j = S_j / (sum_i S_i + N) of the codes' means and the noise believed: what is asked for
               in the end, so that where codes cannot be told the mask can
    reader     -log q(d_j | lips), of speakers whose lips are seen: this trains the reader, and nothing else does
"""

from dataclasses import replace

import torch
from pyro.distributions import Independent
from torch import Tensor

from pyro_avse.inference.guess import guessed_filters, own_log_variance
from pyro_avse.models.nmf_noise import response_basis
from pyro_avse.models.separating_guide import SeparatingGuide
from pyro_avse.training.amortise import NOISE_WEIGHT, Amortiser
from pyro_avse.training.pairs import CLEARER
from pyro_avse.training.speakers import WORST, Mixtures, Voices, draw_mixtures, reading_error
from pyro_avse.typing import Guess

SILENCE = 0.01
"""Of |x|^2: speech fainter than this is none."""


class SeparationAmortiser(Amortiser):
    """One training run of a separating guide."""

    guide: SeparatingGuide

    def draw(self, speech: Voices, utterances: int, num_frames: int) -> Mixtures:
        """Half as many recordings as the recipe says, since each has two speakers."""
        drawn = draw_mixtures(
            speech,
            utterances=max(1, utterances // 2),
            num_frames=num_frames,
            stft=self.stft,
            unseen=self.recipe.lips_dropped,
        )
        return replace(
            drawn, **{name: t.to(self.device) for name, t in vars(drawn).items() if t is not None}
        )

    def believe(self, pairs: Mixtures) -> Guess:
        """The guide's q; what the reader says is part of it."""
        self.read = self.guide.reader(pairs.pictures)
        told = told_to(self.read.mean.detach(), pairs)
        return self.guide.read(*self.guide.hear(pairs.power, told))

    def loss(self, q: Guess, pairs: Mixtures) -> Tensor:
        """The sum of the above, in nats a frame and speaker."""
        options = self.recipe.training
        loss = separation_loss(self.guide, q, pairs, options.hearing, options.filter)
        return loss + reader_loss(self.read, pairs)


def told_to(said: Tensor, pairs: Mixtures) -> Tensor:
    """m_j as the guide is told: what the reader says, made worse, or what was drawn."""
    t = WORST * torch.rand(*said.shape[:-2], 1, 1, device=said.device)
    said = (said + t * reading_error(said)) / (1 + t.square())
    m = torch.where(pairs.seen[..., None, None], said, pairs.told)
    m = torch.nn.functional.pad(m, (0, 1), value=1.0)
    return torch.where(pairs.known[..., None, None], m, 0)


def separation_loss(
    guide: SeparatingGuide, q: Guess, pairs: Mixtures, hearing: float, filtering: float
) -> Tensor:
    """Sleep, hearing and filter, the last two with these weights."""
    r = pairs.responsibilities
    log_q = q.codes.log_prob(pairs.codes)
    if len(r) > 1:
        log_q = log_q + q.responsibilities.log()
    frames = (r * log_q).sum(0)
    count = frames.numel()
    level = q.log_gain.log_prob(pairs.log_gain[..., None]) + q.response.log_prob(pairs.response)
    noise = NOISE_WEIGHT * q.log_noise.log_prob(pairs.log_noise)
    sleep = -(frames.sum() + level.sum() + noise.sum()) / count

    own = own_log_variance(q, guide.prior, pairs.features)
    through = pairs.response @ response_basis(pairs.response.shape[-1], own.shape[-1], own)[1:]
    sigma = (own + (through + pairs.log_gain[..., None])[..., None, :]).exp()
    power, fainter = pairs.speech.abs().square(), 10 ** (-CLEARER / 10)
    N = pairs.log_noise.exp()
    rest = power.sum(-3, keepdim=True) - power + N[..., None, :, :]
    clear = (pairs.speech + fainter**0.5 * (pairs.mixture[:, None] - pairs.speech)).abs().square()
    V = sigma + fainter * rest
    heard = (r * (V.log() + clear / V).sum(-1)).sum() / count

    filters = guessed_filters(q, guide.prior, pairs.features)[..., :-1, :, :]
    missed = (pairs.speech - filters * pairs.mixture[:, None]).abs().square().mean((-2, -1))
    least = SILENCE * pairs.power.mean((-2, -1))[:, None]
    wanted = torch.maximum(power.mean((-2, -1)), least)
    filtered = ((missed + SILENCE * wanted) / wanted).log().mean()
    return sleep + hearing * heard + filtering * filtered


def reader_loss(read: Independent, pairs: Mixtures) -> Tensor:
    """Minus the likelihood of what lips tell about, a frame and speaker of those seen."""
    frames = torch.where(pairs.seen[..., None], read.log_prob(pairs.bands), 0)
    seen = pairs.seen.sum().clamp_min(1) * frames.shape[-1]
    return -frames.sum() / seen
