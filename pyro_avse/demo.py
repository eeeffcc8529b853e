"""The demonstration: a bundled clip in bundled noise, enhanced by A-VAE and MIN-VAE, scored, written and drawn.

The clip is the synthetic talker's: a voice, a face and a sentence that no bundled weights were trained on. The noise is
babble of other synthetic voices. `python -m pyro_avse.demo` makes both anew.
"""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

from pyro_avse.checkpoint import load_prior
from pyro_avse.data.audio import (
    SAMPLE_RATE,
    audio_from_array,
    check_writable,
    load_audio,
    save_audio,
)
from pyro_avse.data.lips import load_lips
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.enhancer import DEFAULT_INFERENCE, Enhancer, find_scheme
from pyro_avse.files import make_folder
from pyro_avse.measure import measure
from pyro_avse.typing import JSON

MODELS = ("a_vae", "min_vae_v2")
SNR_DB = 0.0
CLIPS = Path(str(files("pyro_avse") / "clips"))


def run_demo(
    out: Path, *, seed: int = 0, device: str = "auto", report: Callable[[str], None]
) -> list[JSON]:
    """Write noisy.wav, clean.wav, an enhanced wav a model and demo.png into `out`; a row of scores a model.

    Raises:
        InputError: `out` cannot be made or written to; no such device.
    """
    from pyro_avse.plots import demo_figure

    make_folder(out)
    check_writable(out / "noisy.wav")
    clean, noise = (load_audio(CLIPS / f"{name}.flac") for name in ("talker", "babble"))
    lips = load_lips(CLIPS / "talker.npz")
    mixed, _ = mix_at_snr(clean.waveform, noise.waveform[: len(clean.waveform)], SNR_DB)
    mixture = audio_from_array(0.9 * mixed / np.abs(mixed).max(), SAMPLE_RATE)
    save_audio(out / "noisy.wav", mixture.peak * mixture.waveform, SAMPLE_RATE)
    save_audio(out / "clean.wav", 0.9 * clean.waveform, SAMPLE_RATE)

    rows, results = [], {}
    for name in MODELS:
        report(f"{len(clean.waveform) / SAMPLE_RATE:.1f} s of speech in babble at 0 dB: {name}")
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
    waveforms = {"noisy": mixture.waveform, "clean": clean.waveform}
    waveforms[f"enhanced by {MODELS[-1]}"] = results[MODELS[-1]].speech_16k
    demo_figure(waveforms, results, out / "demo.png")
    report(f"listen to the wavs and look at demo.png in {out}")
    return rows


def make_clips(folder: Path = CLIPS) -> None:
    """Speak the demonstration's clip and its babble anew; needs the extra `synth`."""
    from pyro_avse.data.noise import babble
    from pyro_avse.data.synth import draw_speaker, synthesise_utterance

    seed = 20_000  # speakers of this seed are in no training corpus: those have small seeds
    talker = synthesise_utterance(
        draw_speaker(1, seed),
        "A quiet voice can travel far across the frozen lake tonight.",
        seed=seed,
    )
    peak = np.abs(talker.waveform).max()
    save_audio(folder / "talker.flac", talker.waveform / peak * 0.9, SAMPLE_RATE)
    np.savez_compressed(folder / "talker.npz", lips=talker.lips, fps=talker.fps)
    lines = (
        "Some of us were waiting for the second train, which never came at all.",
        "Please bring the yellow box of paper from the office down the hall.",
        "He said that nobody had ever asked him such a question before.",
        "Every summer the children build a small house in the old oak tree.",
        "There is enough bread, but we should buy some butter and cheese.",
        "When the music stopped the whole room was suddenly silent.",
    )
    voices = [
        synthesise_utterance(draw_speaker(index, seed), line, seed=(seed, index)).waveform
        for index, line in enumerate(lines, start=2)
    ]
    noise = babble(voices, len(talker.waveform), np.random.default_rng(seed))
    save_audio(folder / "babble.flac", 0.9 * noise / np.abs(noise).max(), SAMPLE_RATE)


if __name__ == "__main__":
    make_clips()
