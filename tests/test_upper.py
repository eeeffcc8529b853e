"""Above 8 kHz: what is there goes the way of the highest band that inference sees."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_avse.data.media.audio import audio_from_array
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.upper import top_gain, upper_speech
from pyro_avse.typing import Separation

RATE = 48000
TIME = np.arange(RATE) / RATE


@dataclass
class Masked:
    """A scheme whose speech is the mixture times a mask (frame, freq)."""

    mask: Any

    def __call__(self, prior: Any, mixture: Tensor, lips: Any = None, **_: Any) -> Separation:
        none = torch.ones(1)
        return Separation(
            speech=mixture * self.mask(mixture),
            responsibilities=torch.ones(1, len(mixture)),
            objective=torch.zeros(1),
            target=None,  # type: ignore[arg-type]
            mixing_weight=none,
            dictionary=none,
            activations=none,
            z=none,
        )


def level(x: np.ndarray, hertz: float, span: slice = slice(None)) -> float:
    """Amplitude of a tone."""
    return 2 * abs(np.mean((x * np.exp(-2j * np.pi * hertz * TIME))[span]))


def recording() -> np.ndarray:
    """Tones at 1, 7 and 12 kHz."""
    return sum(0.2 * np.sin(2 * np.pi * f * TIME) for f in (1000, 7000, 12000))


def enhanced(mask: Any, tiny_prior: Any, mixture: np.ndarray) -> np.ndarray:
    enhancer = Enhancer(tiny_prior("a_vae"), Masked(mask), device="cpu")
    return enhancer(mixture, sample_rate=RATE).speech


def test_what_is_kept_below_is_kept_above(tiny_prior: Any) -> None:
    """The gain of 6 to 8 kHz counts, whatever is done further down."""
    mixture = recording()
    whole = enhanced(torch.ones_like, tiny_prior, mixture)
    assert np.abs(whole - mixture)[2000:-2000].max() < 4e-3
    quarter = enhanced(lambda x: torch.full_like(x, 0.25), tiny_prior, mixture)
    assert level(quarter, 12000) == pytest.approx(0.05, rel=0.05)

    def below(x: Tensor) -> Tensor:
        return (torch.arange(x.shape[1]) < 300).float()

    dark = enhanced(below, tiny_prior, mixture)
    assert level(dark, 1000) == pytest.approx(0.2, rel=0.05)
    assert level(dark, 12000) < 2e-3


def test_the_gain_follows_the_frames(tiny_prior: Any) -> None:
    """Half a second off, half a second on."""

    def late(x: Tensor) -> Tensor:
        return (torch.arange(len(x)) >= len(x) / 2).float()[:, None]

    out = enhanced(late, tiny_prior, recording())
    assert level(out, 12000, slice(2000, 18000)) < 2e-3
    assert level(out, 12000, slice(30000, 46000)) == pytest.approx(0.2, rel=0.05)


def test_clicks_are_silent_above_too(tiny_prior: Any) -> None:
    mixture = recording()
    mixture[24000] += 20
    out = enhanced(torch.ones_like, tiny_prior, mixture)
    assert np.abs(out[23000:25000]).max() < 1.0


def test_gains_and_rates() -> None:
    """No gain over 1, none in silence; nothing is above 8 kHz at 16 kHz."""
    x = torch.ones(3, 9, dtype=torch.complex64)
    x[2] = 0
    speech = x * torch.tensor([2.0, 0.5, 1.0])[:, None]
    assert top_gain(speech, x).tolist() == pytest.approx([1, 0.5, 0])
    for rate in (8000, 16000):
        audio = audio_from_array(np.sin(np.arange(rate) * 0.3), rate)
        assert not upper_speech(audio, np.ones(2), np.array([0.0, 1.0]), np.zeros(0)).any()
