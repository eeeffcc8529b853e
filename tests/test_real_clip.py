"""Real talking faces in real noise: what the library is for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyro_avse import Enhancer
from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import audio_from_array, load_audio
from pyro_avse.data.noise import mix_at_snr, take_noise
from pyro_avse.defaults import DEFAULT_INFERENCE
from pyro_avse.enhancement.measure import measure
from pyro_avse.inference import SCHEMES
from pyro_avse.weights.checkpoint import load_prior


@pytest.mark.parametrize("model", ["a_vae", "v_vae", "min_vae_v2", "min_vae_v3"])
def test_bundled_weights_enhance_real_clips(model: str, shared_data: Callable[[str], Path]) -> None:
    """In a kitchen at 0 dB, a sentence of each of three speakers: by the default, +3 dB SI-SDR, and no STOI lost."""
    clips = find_utterances(shared_data("grid"), "valid")
    kitchen = load_audio(shared_data("noise/kitchen.flac")).waveform
    prior, stft = load_prior(model)
    enhancer = Enhancer(prior, SCHEMES[DEFAULT_INFERENCE](), stft=stft, device="cpu")
    gains = []
    for speaker in ("s1", "s4", "s26"):
        clip = next(clip for clip in clips if clip.speaker == speaker)
        assert clip.lips is not None
        clean = load_audio(clip.audio)
        noise, _ = take_noise(kitchen, len(clean.waveform), np.random.default_rng(0))
        mixture, _ = mix_at_snr(clean.waveform, noise, 0.0)
        recording = enhancer.prepare(audio_from_array(mixture, 16000), load_lips(clip.lips))
        _, row = measure(enhancer, recording, model, DEFAULT_INFERENCE, clean, seed=0)
        gains.append([row["output"][name] - row["input"][name] for name in ("si_sdr", "stoi")])
    si_sdr, stoi = np.mean(gains, 0)
    assert si_sdr > 3
    assert stoi > 0
