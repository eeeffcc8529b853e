"""Drawn noise as a recording would have it: as a sound. (28)

A recording's noise is a sound, and frames of sound overlap: neighbours in time and frequency are alike, as those of
speech are, while the b_nf of models/drawn_noise.py are independent. A guide that is trained long enough hears that,
takes what is unlike its neighbours for noise, and real noise for speech. So what is drawn is turned into sound and
back, and its variance with it.
"""

from functools import lru_cache

import torch
from torch import Tensor

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.distributions import squared_magnitude
from pyro_avse.models.drawn_noise import DrawnNoise, drawn_noise, with_voices
from pyro_avse.stft import STFT
from pyro_avse.typing import Power, Spectrum

REACH = 8
"""Frequencies on either side that a coefficient reaches as sound: beyond lies a ten-thousandth of it."""


def sounded_noise(
    num_frames: int,
    stft: STFT,
    *,
    utterances: int = 1,
    voices: Spectrum | None = None,
    device: torch.device | str = "cpu",
) -> DrawnNoise:
    """Draws of `drawn_noise` as sound, and `voices` among them (`with_voices`)."""
    drawn = drawn_noise(
        num_frames + 2 * overlap(stft),
        stft.n_fft // 2 + 1,
        utterances=utterances,
        frames_per_second=SAMPLE_RATE / stft.hop,
        device=device,
    )
    drawn = DrawnNoise(*sounded(drawn.noise, drawn.variance, stft))
    return drawn if voices is None else with_voices(drawn, voices)


def sounded(b: Spectrum, variance: Power, stft: STFT) -> tuple[Spectrum, Power]:
    """The spectrum of the sound that is nearest to b ~ N_c(0, variance), at the same power, and its variance.

    Analysis of synthesis is a projection P, the same at all frames and frequencies but for phases:
    E |(P b)_nf|^2 = sum_ml |P_ml|^2 variance_n-m,f-l. Both are divided by sum_ml |P_ml|^2. The first and the last
    frames, which reach beyond the sound, are left out (`overlap` of them).
    """
    kernel = _reach(stft).to(variance)
    share, edge = kernel.sum(), overlap(stft)
    heard = stft.analyse(stft.synthesise(b, (b.shape[-2] - 1) * stft.hop)) / share.sqrt()
    wide = torch.nn.functional.pad(variance, (REACH, REACH), mode="replicate")
    spread = torch.nn.functional.conv2d(wide[:, None], (kernel / share)[None, None])[:, 0]
    return heard[:, edge : heard.shape[1] - edge], spread


def overlap(stft: STFT) -> int:
    """Frames on either side that share samples with one."""
    return -(-stft.n_fft // stft.hop) - 1


@lru_cache
def _reach(stft: STFT) -> Tensor:
    """|P_ml|^2: what one coefficient leaves in the frames and frequencies around it."""
    edge, middle = overlap(stft), stft.n_fft // 4
    one = torch.zeros(4 * edge + 1, stft.n_fft // 2 + 1, dtype=torch.complex128)
    one[2 * edge, middle] = 1
    left = squared_magnitude(stft.analyse(stft.synthesise(one, 4 * edge * stft.hop)))
    return left[edge : 3 * edge + 1, middle - REACH : middle + REACH + 1]
