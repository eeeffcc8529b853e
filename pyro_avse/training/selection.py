"""Epochs told apart by what their prior is for: the SI-SDR that a few noisy validation clips gain by it.

A prior with a better bound can be a worse enhancer (docs/RESULTS.md, "What makes a prior generalise"). The mixtures are
fixed: noise is drawn (white, pink) or made of other validation clips (babble), at 0 dB. MCEM is run with few steps, the
same for every epoch: what counts is which epoch is better.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyro_avse.data.corpora.corpus import Utterance
from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import Waveform, babble, mix_at_snr, pink_noise, white_noise
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.inference import SCHEMES
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError

CLIPS, SECONDS, VOICES = 9, 3, 4
SETTINGS = {"iterations": 20, "warmup": 10, "draws": 5, "final_warmup": 25, "final_draws": 25}


@dataclass(frozen=True)
class _Mixture:
    clean: Waveform
    noisy: Waveform
    lips: Lips | None


class EnhancementScore:
    """The mean SI-SDR improvement, in dB, of up to `CLIPS` clips of 3 s, spread over the utterances given.

    Where `with_lips`, clips without them are only voices of the babble. Raises InputError for fewer than 2 clips:
    babble needs another.
    """

    def __init__(
        self, utterances: Sequence[Utterance], stft: STFT, *, with_lips: bool, seed: int
    ) -> None:
        usable = [u for u in utterances if u.lips is not None or not with_lips]
        if len(usable) < 2:
            raise InputError(
                f'select = "enhancement" needs 2 valid clips or more, the data has {len(usable)}: add some, or '
                'select by "elbo"'
            )
        self.stft, self.seed = stft, seed
        rng = np.random.default_rng(seed)
        count = min(CLIPS, len(usable))
        chosen = [usable[place * len(usable) // count] for place in range(count)]
        self.mixtures = [
            _mix(utterance, utterances, kind, rng)
            for utterance, kind in zip(chosen, 3 * ("white", "pink", "babble"), strict=False)
        ]

    def __call__(self, prior: Any) -> float:
        """The same for the same prior; it is copied, and stays as it is."""
        from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

        scheme = SCHEMES["mcem"](**SETTINGS)
        device = prior.mixing_weight.device
        enhancer = Enhancer(copy.deepcopy(prior), scheme, stft=self.stft, device=device)
        gains = []
        for mixture in self.mixtures:
            speech = enhancer(mixture.noisy, mixture.lips, seed=self.seed).speech
            before, after = (
                si_sdr(torch.from_numpy(x.astype(np.float64)), torch.from_numpy(mixture.clean))
                for x in (mixture.noisy, speech)
            )
            gains.append(float(after - before))
        return math.fsum(gains) / len(gains)


def _mix(
    utterance: Utterance, others: Sequence[Utterance], kind: str, rng: np.random.Generator
) -> _Mixture:
    """The first seconds of one clip, at 0 dB in noise."""
    clean = load_audio(utterance.audio).waveform[: SECONDS * SAMPLE_RATE].astype(np.float64)
    if kind == "babble":
        voices = [
            u for u in others if u.name != utterance.name and u.speaker != utterance.speaker
        ] or [u for u in others if u.name != utterance.name]
        picked = rng.choice(len(voices), size=min(VOICES, len(voices)), replace=False)
        sounds = [load_audio(voices[int(i)].audio).waveform for i in picked]
        noise = babble(sounds, len(clean), [int(rng.integers(len(s))) for s in sounds])
    else:
        noise = (white_noise if kind == "white" else pink_noise)(len(clean), rng)
    noisy, _ = mix_at_snr(clean, noise.astype(np.float64), 0.0)
    if utterance.lips is None:
        return _Mixture(clean, noisy, None)
    lips = load_lips(utterance.lips, fps=utterance.fps)
    shown = math.ceil(len(clean) / SAMPLE_RATE * lips.fps)
    return _Mixture(clean, noisy, Lips(lips.frames[:shown], lips.fps))
