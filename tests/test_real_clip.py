"""A real talking face in real noise: what the library is for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyro_avse import Enhancer
from pyro_avse.checkpoint import load_prior
from pyro_avse.data.audio import audio_from_array, load_audio
from pyro_avse.data.corpus import find_utterances
from pyro_avse.data.lips import load_lips
from pyro_avse.data.noise import mix_at_snr, take_noise
from pyro_avse.inference import VEM
from pyro_avse.measure import measure


@pytest.mark.parametrize("model", ["a_vae", "v_vae", "min_vae_v2"])
def test_bundled_weights_enhance_a_real_clip(
    model: str, shared_data: Callable[[str], Path]
) -> None:
    """In a kitchen at 0 dB a clip of GRID's test split gains 3 dB SI-SDR, by its own lips or by sound."""
    clip = find_utterances(shared_data("grid"), "test")[0]
    assert clip.lips is not None
    clean = load_audio(clip.audio)
    kitchen = load_audio(shared_data("noise/kitchen.flac")).waveform
    noise, _ = take_noise(kitchen, len(clean.waveform), np.random.default_rng(0))
    mixture, _ = mix_at_snr(clean.waveform, noise, 0.0)
    prior, stft = load_prior(model)
    enhancer = Enhancer(prior, VEM(iterations=60), stft=stft, device="cpu")
    recording = enhancer.prepare(audio_from_array(mixture, 16000), load_lips(clip.lips))
    _, row = measure(enhancer, recording, model, "vem", clean, seed=0)
    assert row["output"]["si_sdr"] - row["input"]["si_sdr"] > 3
