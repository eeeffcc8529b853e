"""The demonstration: a bundled clip in bundled noise, enhanced by A-VAE and MIN-VAE, scored, written and drawn.

The clip is the synthetic talker's: a voice, a face and a sentence that no bundled weights were trained on. The noise is
non-stationary, a workshop's. `python -m pyro_avse.enhancement.demo` makes both anew.
"""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import Audio, audio_from_array, load_audio
from pyro_avse.data.media.saving import check_writable, save_audio
from pyro_avse.data.noise import mix_at_snr, pink_noise
from pyro_avse.defaults import DEFAULT_INFERENCE, SAMPLE_RATE
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.find import find_scheme
from pyro_avse.enhancement.measure import measure
from pyro_avse.files import make_folder, write_atomically
from pyro_avse.typing import JSON
from pyro_avse.weights.checkpoint import load_prior

MODELS = ("a_vae", "min_vae_v2")
SNR_DB = 0.0
CLIPS = Path(str(files("pyro_avse.enhancement") / "clips"))
LIPS = CLIPS / "talker.npz"


def run_demo(
    out: Path, *, seed: int = 0, device: str = "auto", report: Callable[[str], None]
) -> list[JSON]:
    """Write sounds, lips.npz and demo.png into `out`; a row of scores a model.

    The sounds: noisy.wav, clean.wav, an enhanced one a model, and the noise that the last model found.

    Raises:
        InputError: `out` cannot be made or written to; no such device.
    """
    from pyro_avse.enhancement.figure import demo_figure  # matplotlib takes a second to load

    make_folder(out)
    check_writable(out / "noisy.wav")
    mixture, clean = mix_clip()
    lips = load_lips(LIPS)
    save_audio(out / "noisy.wav", mixture.peak * mixture.waveform, SAMPLE_RATE)
    save_audio(out / "clean.wav", 0.9 * clean.waveform, SAMPLE_RATE)
    write_atomically(out / "lips.npz", LIPS.read_bytes())

    rows, results = [], {}
    for name in MODELS:
        report(
            f"{len(clean.waveform) / SAMPLE_RATE:.1f} s of speech in a workshop's noise at 0 dB: {name}"
        )
        prior, stft = load_prior(name)
        enhancer = Enhancer(prior, find_scheme(DEFAULT_INFERENCE), stft=stft, device=device)
        recording = enhancer.prepare(mixture, lips)
        result, row = measure(enhancer, recording, name, DEFAULT_INFERENCE, clean, seed)
        path = out / f"enhanced_{name}.wav"
        save_audio(path, result.speech, result.sample_rate)
        row["files"] = {
            "speech": str(path),
            "noisy": str(out / "noisy.wav"),
            "clean": str(out / "clean.wav"),
            "figure": str(out / "demo.png"),
        }
        rows.append(row)
        results[name] = result
    listened, looked = (results[name].speech_16k for name in MODELS)
    noise = mixture.waveform - looked
    save_audio(out / "noise.wav", mixture.peak * noise, SAMPLE_RATE)
    waveforms = {
        "noisy": mixture.waveform,
        f"the noise that {MODELS[1]} found": noise,
        f"enhanced by {MODELS[1]}, which listens and looks": looked,
        f"enhanced by {MODELS[0]}, which listens": listened,
    }
    demo_figure(waveforms, results, out / "demo.png")
    report(f"listen to the wavs and look at demo.png in {out}")
    return rows


def mix_clip() -> tuple[Audio, Audio]:
    """The clip in its noise at `SNR_DB`, and its clean speech; the lips are in the file `LIPS`."""
    clean, noise = (load_audio(CLIPS / f"{name}.flac") for name in ("talker", "workshop"))
    mixed, _ = mix_at_snr(clean.waveform, noise.waveform[: len(clean.waveform)], SNR_DB)
    return audio_from_array(0.9 * mixed / np.abs(mixed).max(), SAMPLE_RATE), clean


def make_clips(folder: Path = CLIPS) -> None:
    """Make the demonstration's clip and its noise anew; needs the extra `synth`."""
    from pyro_avse.data.talker.synth import draw_speaker, synthesise_utterance

    seed = 20_000  # speakers of this seed are in no training corpus: those have small seeds
    talker = synthesise_utterance(
        draw_speaker(1, seed),
        "A quiet voice can travel far across the frozen lake tonight.",
        seed=seed,
    )
    peak = np.abs(talker.waveform).max()
    save_audio(folder / "talker.flac", talker.waveform / peak * 0.9, SAMPLE_RATE)
    np.savez_compressed(folder / "talker.npz", lips=talker.lips, fps=talker.fps)
    noise = workshop(len(talker.waveform), np.random.default_rng(seed))
    save_audio(folder / "workshop.flac", 0.9 * noise / np.abs(noise).max(), SAMPLE_RATE)


def workshop(num_samples: int, rng: np.random.Generator) -> Float[np.ndarray, " sample"]:
    """Non-stationary noise: air that blows in gusts, and metal struck now and then."""
    knots = np.arange(0, num_samples + 4000, 4000)  # a gust changes every quarter of a second
    strength = 0.1 + np.abs(rng.standard_normal(len(knots)))
    air = np.interp(np.arange(num_samples), knots, strength) * pink_noise(num_samples, rng)
    metal = np.zeros(num_samples + 8000)
    seconds = np.arange(8000) / SAMPLE_RATE
    start = int(rng.uniform(0, 6500))
    while start < num_samples:
        partials = rng.uniform(600, 5000, 6)[:, None]  # Hz
        phases = rng.uniform(0, 2 * np.pi, (6, 1))
        ring = np.sin(2 * np.pi * partials * seconds + phases).sum(0) * np.exp(-30 * seconds)
        metal[start : start + 8000] += rng.uniform(0.5, 1) * ring
        start += int(rng.uniform(2500, 6500))
    metal = metal[:num_samples]
    return air / np.std(air) + 0.5 * metal / np.std(metal)


if __name__ == "__main__":
    make_clips()
