"""Frames without a picture: what can do without lips hears them alone, what cannot says so; and a strength."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_avse.data.lips.lips import lips_from_array, mask_on_grid
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.inference import LDEM, MCEM, SCHEMES
from pyro_avse.inference.em import frame_weight, observe, starting_codes
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import InputError

WITHOUT = ["min_vae_v2", "min_vae_v3", "vae_mm", "vae_mm+three"]
SHORT = LDEM(iterations=3, first_warmup=3, final_draws=5, noise=NoiseModel(2))


@pytest.fixture
def seen(random_lips: Callable[..., Tensor]) -> Tensor:
    """Lips of twelve frames."""
    return random_lips(12).double()


def x_of(frames: int = 12) -> Tensor:
    return torch.randn(frames, 7, dtype=torch.complex128)


@pytest.mark.parametrize("name", WITHOUT)
def test_no_picture_anywhere_is_as_without_lips(
    name: str, small_prior: Callable[..., Any], seen: Tensor
) -> None:
    """Whatever the pictures show there; and components that see the lips have no part in those frames."""
    prior, x = small_prior(name), x_of()
    nothing = torch.zeros(12, dtype=torch.bool)
    one = SHORT(prior, x, seen, lips_mask=nothing, seed=1)
    other = SHORT(prior, x, 1 - seen, lips_mask=nothing, seed=1)
    torch.testing.assert_close(one.speech, other.speech)
    for k, sees in enumerate(prior.components_see):
        if sees:
            assert (one.responsibilities[k] == 0).all()
    if not any(prior.components_see):  # v2's and v3's parts differ by their encoders alone
        alone = SHORT(getattr(prior, "without_lips", prior), x, None, seed=1)
        assert one.speech.shape == alone.speech.shape


@pytest.mark.parametrize("name", WITHOUT)
def test_the_pictures_of_other_frames_still_count(
    name: str, small_prior: Callable[..., Any], seen: Tensor
) -> None:
    """What hidden frames show changes nothing, what the others show does."""
    prior, x = small_prior(name), x_of()
    mask = torch.arange(12) < 6
    hidden, shown = seen.clone(), seen.clone()
    hidden[6:], shown[:6] = 1 - seen[6:], 1 - seen[:6]
    base, same, other = (
        SHORT(prior, x, v, lips_mask=mask, seed=1).speech for v in (seen, hidden, shown)
    )
    torch.testing.assert_close(base, same)
    assert not torch.allclose(base, other)
    everything = torch.ones(12, dtype=torch.bool)
    torch.testing.assert_close(
        SHORT(prior, x, seen, lips_mask=everything, seed=1).speech,
        SHORT(prior, x, seen, seed=1).speech,
    )


@pytest.mark.parametrize("name", ["v_vae", "av_vae", "min_vae_v1"])
def test_models_that_need_lips_refuse_gaps(
    name: str, small_prior: Callable[..., Any], seen: Tensor
) -> None:
    prior, mask = small_prior(name), torch.arange(12) < 9
    with pytest.raises(InputError, match="lips_mask leaves 3 frames without a picture"):
        SHORT(prior, x_of(), seen, lips_mask=mask)
    full = torch.arange(12) < 12
    assert SHORT(prior, x_of(), seen, lips_mask=full).speech.isfinite().all()
    padded = SHORT(prior, x_of(), seen, mask=mask, lips_mask=mask)  # padding needs no picture
    assert padded.speech[:9].isfinite().all()


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_every_scheme_takes_a_mask(
    name: str, small_prior: Callable[..., Any], seen: Tensor
) -> None:
    """Two frames of VAE-MM without a picture belong to sound alone."""
    inner = MCEM(
        iterations=1, warmup=1, draws=2, final_warmup=1, final_draws=2, noise=NoiseModel(2)
    )
    settings: dict[str, Any] = (
        {"mcem": inner} if name in ("nuts", "auto_normal") else {"iterations": 2}
    )
    settings |= {"warmup": 2, "draws": 2} if name == "nuts" else {}
    settings |= {"steps": 2} if name == "auto_normal" else {}
    mask = torch.arange(12) < 10
    out = SCHEMES[name](**settings)(small_prior("vae_mm"), x_of(), seen, lips_mask=mask)
    assert out.speech.isfinite().all()
    assert (out.responsibilities[1, 10:] == 0).all()
    assert (out.responsibilities[1, :10] > 0).any()


def test_pi_and_starts_where_there_is_no_picture(
    small_prior: Callable[..., Any], seen: Tensor
) -> None:
    """VAE-MM's audio-visual part has pi 0 there, and chains start where they would without any lips."""
    prior, x, mask = small_prior("vae_mm"), x_of(), torch.arange(12) < 7
    observation = observe(prior, x, seen, lips_mask=mask)
    pi = frame_weight(observation, torch.tensor([0.3, 0.7], dtype=torch.float64))
    torch.testing.assert_close(pi[:, 0], torch.tensor([0.3, 0.7], dtype=torch.float64))
    torch.testing.assert_close(pi[:, 9], torch.tensor([1.0, 0.0], dtype=torch.float64))
    starts = starting_codes(observation, 2)
    alone = prior.without_lips.initial_codes(observation.power, None)
    torch.testing.assert_close(starts[:, 7:], alone[7:].expand(2, 5, 2))
    assert not torch.allclose(starts[0, :7], alone[:7])
    assert torch.equal(observation.informed, mask)
    v2 = observe(small_prior("min_vae_v2"), x, seen, lips_mask=mask)
    assert v2.informed is None or any(v2.prior.components_see)


def test_a_mask_lies_on_the_videos_clock() -> None:
    """The frame that is shown at a moment decides."""
    lips = lips_from_array(
        np.zeros((4, 67, 67), np.uint8), 25.0, np.array([True, False, True, True])
    )
    times = np.array([0.0, 0.039, 0.041, 0.079, 0.081])
    assert mask_on_grid(lips, times).tolist() == [True, True, False, False, True]
    assert mask_on_grid(lips_from_array(np.zeros((4, 67, 67), np.uint8), 25.0), times) is None
    for bad in (np.ones(3, bool), np.ones(4)):
        with pytest.raises(InputError, match="the lips have 4 frames"):
            lips_from_array(np.zeros((4, 67, 67), np.uint8), 25.0, bad)


def test_the_enhancer_hands_the_mask_on(tiny_prior: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    mixture, mouths = rng.standard_normal(16000), rng.integers(0, 255, (25, 67, 67), np.uint8)
    enhancer = Enhancer(tiny_prior("vae_mm"), SHORT, device="cpu")
    shown = np.arange(25) < 12
    out = enhancer(mixture, mouths, 25.0, lips_mask=shown)
    late = out.frame_times > 0.5
    assert (out.responsibilities[1, late] == 0).all()
    assert (out.responsibilities[1, ~late] > 0).any()
    recording = enhancer.prepare(mixture, mouths, 25.0, lips_mask=shown)
    plain = enhancer.prepare(mixture, mouths, 25.0)
    first, second = enhancer.batch([recording, plain])
    assert (first.responsibilities[1, late] == 0).all()
    assert (second.responsibilities[1, late] > 0).any()


def test_a_strength_mixes(tiny_prior: Callable[..., Any]) -> None:
    """0 is the recording and 1 the speech, to the last bit; between them it is linear; noise and speech sum up."""
    mixture = np.random.default_rng(0).standard_normal(16000).astype(np.float32) + np.float32(0.2)
    out = Enhancer(tiny_prior("a_vae"), SHORT, device="cpu")(mixture)
    assert np.array_equal(out.mix(0), mixture)
    assert np.array_equal(out.mix(1), out.speech)
    np.testing.assert_allclose(out.mix(0.25), 0.75 * mixture + 0.25 * out.speech, atol=1e-6)
    np.testing.assert_allclose(out.speech + out.noise, mixture, atol=1e-6)
    for wrong in (-0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"strength is .*: give a number from 0"):
            out.mix(wrong)
