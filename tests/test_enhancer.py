"""The enhancer: one recording in, speech and noise of its rate, length and level out, by any prior."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_avse
from pyro_avse.data.lips.lips import Lips, lips_from_array
from pyro_avse.data.media.audio import audio_from_array
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.enhancement.enhancer import Enhancer, enhance
from pyro_avse.enhancement.find import find_device, find_kernel, find_scheme
from pyro_avse.inference import VEM
from pyro_avse.models import MODELS
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError, couples_frames
from pyro_avse.weights.checkpoint import save_prior

QUICK = VEM(iterations=3, warmup=2, draws=2, noise=NoiseModel(3))


@pytest.fixture
def tiny(tiny_prior: Any) -> Any:
    """tiny(name): a random prior, the same at each call."""

    def build(name: str) -> Any:
        torch.manual_seed(1)
        return tiny_prior(name).requires_grad_(False)

    return build


def noisy(sample_rate: int = 16000, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """A hum that comes and goes, in noise; its peak is 0.5."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    sound = np.sin(2 * np.pi * 440 * time) * np.sin(2 * np.pi * 3 * time) ** 2 + 0.2 * noise
    return 0.5 * sound / np.abs(sound).max()


FRAMEWISE = [name for name, kind in MODELS.items() if not couples_frames(kind)]


def mouths(frames: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, 67, 67), dtype=np.uint8)


@pytest.fixture
def enhancer(tiny: Any) -> Enhancer:
    return Enhancer(tiny("min_vae_v2"), QUICK, device="cpu")


@pytest.mark.parametrize("name", FRAMEWISE)
def test_what_comes_out(name: str, tiny: Any) -> None:
    """Speech and noise are float32, as long as the mixture, and sum to it; times and responsibilities fit the STFT."""
    mixture = noisy()
    result = Enhancer(tiny(name), QUICK, device="cpu")(mixture, mouths(), 30.0)
    assert isinstance(result, Enhanced)
    frames, K = STFT().num_frames(len(mixture)), tiny(name).num_components
    for part in (result.speech, result.noise):
        assert part.dtype == np.float32
        assert part.shape == mixture.shape
        assert np.isfinite(part).all()
    np.testing.assert_allclose(result.speech + result.noise, mixture, atol=1e-6)
    assert 0 < np.abs(result.speech).max() < 2 * np.abs(mixture).max()
    assert np.abs(result.speech_16k).max() == pytest.approx(
        2 * np.abs(result.speech).max(), rel=1e-4
    )
    assert result.responsibilities.shape == (K, frames)
    np.testing.assert_allclose(result.responsibilities.sum(0), 1, atol=1e-6)
    assert result.frame_times.shape == (frames,)
    assert result.frame_times[1] == 533 / 16000
    assert result.objective.shape == (3,)
    assert result.separation.speech.shape == (frames, 513)


def test_the_level_is_the_mixtures(enhancer: Enhancer) -> None:
    """A mixture 40 dB quieter gives the same speech 40 dB quieter."""
    loud, quiet = (enhancer(scale * noisy(), mouths(), 30.0).speech for scale in (1.0, 0.01))
    assert np.abs(quiet - 0.01 * loud).max() < 1e-4 * np.abs(0.01 * loud).max()


@pytest.mark.parametrize("sample_rate", [8000, 44100, 48000])
def test_other_sample_rates(sample_rate: int, enhancer: Enhancer) -> None:
    """The result is at the mixture's own rate and length, and the hum is in its parts; what resampling drops is not."""
    mixture = noisy(sample_rate, 0.7301)
    result = enhancer(mixture, mouths(22), 30.0, sample_rate=sample_rate)
    assert result.sample_rate == sample_rate
    assert result.speech.shape == result.noise.shape == mixture.shape
    time = np.arange(len(mixture)) / sample_rate
    hum = np.sin(2 * np.pi * 440 * time)
    both = result.speech.astype(np.float64) + result.noise
    assert hum @ both == pytest.approx(hum @ mixture, abs=0.02 * np.abs(hum) @ np.abs(mixture))


def test_the_seed_decides(enhancer: Enhancer) -> None:
    """The same seed gives the same speech to the last bit, wherever the global generator stands; another does not."""
    first = enhancer(noisy(), mouths(), 30.0, seed=4).speech
    torch.manual_seed(99)
    assert np.array_equal(first, enhancer(noisy(), mouths(), 30.0, seed=4).speech)
    assert not np.array_equal(first, enhancer(noisy(), mouths(), 30.0, seed=5).speech)


def test_the_global_generator_is_not_touched(enhancer: Enhancer) -> None:
    """Nothing is drawn from torch's or numpy's global generators."""
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    enhancer(noisy(), mouths(), 30.0)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_lips_matter_only_where_they_are_seen(tiny: Any) -> None:
    """MIN-VAE's speech changes with the lips; A-VAE's does not."""
    for name, same in (("a_vae", True), ("min_vae_v2", False)):
        enhancer = Enhancer(tiny(name), QUICK, device="cpu")
        with_lips, without = enhancer(noisy(), mouths(), 30.0), enhancer(noisy())
        assert np.array_equal(with_lips.speech, without.speech) == same


@pytest.mark.parametrize("name", FRAMEWISE)
def test_missing_lips(name: str, tiny: Any) -> None:
    """V-VAE, AV-VAE and MIN-VAE v1 refuse; VAE-MM is its A-VAE; the others start from what they hear."""
    enhancer = Enhancer(tiny(name), QUICK, device="cpu")
    if name in ("v_vae", "av_vae", "min_vae_v1"):
        with pytest.raises(InputError, match=r"VAE\w* needs the lips: give --lips \(lips=\)"):
            enhancer(noisy())
        return
    speech = enhancer(noisy()).speech
    assert np.isfinite(speech).all()
    if name == "vae_mm":
        alone = Enhancer(enhancer.prior.audio, QUICK, device="cpu")
        np.testing.assert_array_equal(speech, alone(noisy()).speech)


def test_lips_that_cannot_be_used(enhancer: Enhancer) -> None:
    """Too few, too many, without a frame rate, of another shape or range: refused with the numbers."""
    refused: list[tuple[Any, Any, str]] = [
        (mouths(20), 30.0, r"lips has 20 frames at 30 fps \(0.67 s\), the sound lasts 1.00 s"),
        (mouths(60), 30.0, r"lips has 60 frames at 30 fps \(2.00 s\)"),
        (mouths(), None, "lips without their frame rate: give fps"),
        (mouths(), 0.0, "fps is 0.0"),
        (mouths()[:, :60], 30.0, r"lips has shape \(30, 60, 67\)"),
        (mouths().astype(np.float32), 30.0, r"not within \[0, 1\]: divide grey levels by 255"),
        (mouths()[:0], 30.0, "lips has no frames"),
    ]
    for lips, fps, message in refused:
        with pytest.raises(InputError, match=message):
            enhancer(noisy(), lips, fps)


def test_a_video_of_another_rate_serves(enhancer: Enhancer) -> None:
    """25 fps are held onto the STFT's frames; uint8 and floating-point lips of the same grey agree."""
    lips = mouths(25)
    whole = enhancer(noisy(), lips, 25.0)
    scaled = enhancer(noisy(), lips.astype(np.float32) / 255, 25.0)
    np.testing.assert_allclose(whole.speech, scaled.speech, atol=1e-4)
    prepared = enhancer.prepare(noisy(), lips, 25.0)
    assert prepared.lips is not None
    assert prepared.lips.shape == (STFT().num_frames(16000), 67, 67)


def test_loaded_recordings_serve_as_arrays_do(enhancer: Enhancer) -> None:
    """What `load_audio` and `load_lips` return goes in as it is."""
    loaded = enhancer(audio_from_array(noisy(), 16000), lips_from_array(mouths(), 30.0))
    assert np.array_equal(loaded.speech, enhancer(noisy(), mouths(), 30.0).speech)
    assert isinstance(lips_from_array(mouths(), 30.0), Lips)


def test_sound_that_cannot_be_used(enhancer: Enhancer) -> None:
    """Silence, NaN, two channels, too short, integers without sign: refused."""
    nan = noisy()
    nan[8000] = np.nan
    refused = [
        (np.zeros(16000), "is silent"),
        (nan, "NaN or infinite samples, the first at 0.500 s"),
        (np.zeros((16000, 2)), r"shape \(16000, 2\): give one channel"),
        (noisy()[:1000], "lasts 0.0625 s: give at least 0.064 s"),
        (np.zeros(0), "is empty"),
        (np.ones(16000, np.uint8), "is uint8"),
    ]
    for mixture, message in refused:
        with pytest.raises(InputError, match=message):
            enhancer(mixture)


def test_enhance_loads_a_weight_file(tmp_path: Path, enhancer: Enhancer, tiny: Any) -> None:
    """`enhance` with a weight file and a scheme is the enhancer with that prior, its STFT included."""
    stft = STFT(hop=400)
    save_prior(tmp_path / "w.safetensors", tiny("min_vae_v2"), stft)
    options: dict[str, Any] = {"model": tmp_path / "w.safetensors", "inference": QUICK, "seed": 2}
    found = enhance(noisy(), mouths(), 30.0, device="cpu", **options)
    expected = Enhancer(tiny("min_vae_v2"), QUICK, stft=stft, device="cpu")(
        noisy(), mouths(), 30.0, seed=2
    )
    assert np.array_equal(found.speech, expected.speech)
    assert found.separation.speech.shape == (stft.num_frames(16000), 513)
    assert pyro_avse.enhance is enhance


def test_unknown_names_are_refused() -> None:
    """A model, scheme, kernel, setting or device that there is not is refused with what there is."""
    with pytest.raises(InputError, match="unknown model 'nothing'"):
        enhance(noisy(), model="nothing")
    with pytest.raises(InputError, match="unknown inference scheme 'vme': known are vem"):
        find_scheme("vme")
    with pytest.raises(InputError, match="vem has no setting 'foo': known are kernel"):
        find_scheme("vem", foo=1)
    for name in ("hcm", "gibbs:hcm"):
        with pytest.raises(InputError, match="unknown kernel 'hcm': known are random_walk"):
            find_kernel(name)
    with pytest.raises(InputError, match="hmc has no setting 'foo': known are step_size"):
        find_kernel("hmc", foo=1)
    assert find_kernel("gibbs:pcn") == find_kernel("gibbs", inner=find_kernel("pcn"))
    for device in ("abacus", "cuda:99", "mps:7"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
            find_device(device)
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda")
    assert find_scheme("vem", iterations=7) == VEM(iterations=7)


def test_the_prior_is_frozen() -> None:
    """An enhancer asks for no gradients of the prior that it was given."""
    prior = MODELS["a_vae"](latent_dim=3, hidden=8)
    Enhancer(prior, QUICK, device="cpu")
    assert not any(p.requires_grad for p in prior.parameters())
