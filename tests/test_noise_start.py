"""Where the noise model starts: as what is always there, or as loud as the mixture; padding left out. (28), S16"""

import math

import pyro
import pytest
import torch

from pyro_avse.inference.nmf import initial_factors, mixture_level, stationary_spectrum
from pyro_avse.models.nmf_noise import NoiseModel, noise_prior

pytestmark = pytest.mark.usefixtures("float64")


def test_noise_starts_as_what_is_always_there() -> None:
    """At every frequency within 20 % of stationary noise's own variance, speech or none in half of the frames."""
    rng = torch.Generator().manual_seed(0)
    variance = torch.tensor([1.0, 0.3, 30.0, 2.0])
    power = variance * torch.empty(4000, 4).exponential_(generator=rng)
    power[::2, 1:] += 200  # speech, half of the time
    found = stationary_spectrum(power)
    assert abs(float(found[0] / variance[0]) - 1) < 0.2
    # with half of the frames loud, the quantile of 1/5 is the quiet frames' of 2/5
    expected = variance[1:] * math.log1p(-0.4) / math.log1p(-0.2)
    torch.testing.assert_close(found[1:], expected, rtol=0.2, atol=0)

    W, H = initial_factors(power, NoiseModel(rank=400), rng=rng)
    torch.testing.assert_close((H @ W).mean(0), found, rtol=0.1, atol=0)
    assert torch.equal(H, H[:1].expand_as(H))  # a smooth model starts the same in every frame
    torch.testing.assert_close(W.sum(-1), torch.ones(400))


def test_the_mixtures_level_leaves_padding_out() -> None:
    """Of two utterances of unequal length: the mean power of a coefficient of sound."""
    power = torch.rand(2, 6, 5)
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    expected = torch.stack([power[0].mean(), power[1, :4].mean()])
    torch.testing.assert_close(mixture_level(power, mask), expected)
    torch.testing.assert_close(mixture_level(power), power.mean((1, 2)))
    several = mixture_level(power[None].expand(3, 2, 6, 5), mask.expand(3, 2, 6))
    torch.testing.assert_close(several, expected.expand(3, 2))
    torch.testing.assert_close(mixture_level(power[1], mask[1]), expected[1])


def test_the_papers_noise_starts_as_loud_as_the_mixture() -> None:
    rng = torch.Generator().manual_seed(0)
    power = torch.empty(500, 40).exponential_(generator=rng) * 7
    W, H = initial_factors(power, NoiseModel.paper(50), rng=rng)
    assert float((H @ W).mean()) == pytest.approx(7, rel=0.1)
    assert not torch.equal(H, H[:1].expand_as(H))


def test_the_program_is_pyros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a condition it takes what is given: a person can fix a spectrum and draw the rest."""
    noise = NoiseModel(rank=2, response=0, gain="none")
    W = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    program = pyro.condition(noise_prior, {"W": W, "d": torch.zeros(4, 2)})
    drawn = program(noise, 5, 3)
    torch.testing.assert_close(drawn, drawn[:1].expand(5, 3))
