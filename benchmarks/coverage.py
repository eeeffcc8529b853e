"""How often the intervals of a scheme's posterior hold the truth, and how wide they are. docs/POSTERIOR.md.

    python benchmarks/coverage.py --data ../shared/data                        # both tables, a_vae
    python benchmarks/coverage.py --data ../shared/data --only real --models min_vae_v2 --schemes guided bnmf

    drawn   recordings drawn from the program of the bundled model, W H held at the truth: an exact kernel by long
            chains, which must be right; the unadjusted chains of ldem, as short as there; and one code a frame
    real    GRID's valid clips in recorded noise, clean speech known: whole schemes, W H found. On the first speakers
            one number is fitted, by which distances from the estimate are divided, so that intervals of 80 % hold
            80 %; coverage is that of the last speaker, before and after it

Of every coefficient's real and imaginary part: how many of the truths lie in the central 50, 80 and 95 %; how wide the
80 % are, over the standard deviation of the truths; and the error's power over what the posterior expects of it, in dB.
"Heard" are those whose expected power is within 30 dB of the recording's loudest.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyro.poutine as poutine
import torch
from torch import Tensor

from pyro_avse.data.media.audio import audio_from_array, load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.find import find_scheme
from pyro_avse.enhancement.front import split
from pyro_avse.inference import HMC, LDEM, run_chains
from pyro_avse.inference.adaptation import DualAveraging
from pyro_avse.inference.monte_carlo import speech_posterior, weighted_draws
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.uncertainty import cdf, interval, moments
from pyro_avse.inference.wiener import monte_carlo_wiener
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import Separation, Spectrum
from pyro_avse.weights.checkpoint import load_prior

SHARES = (0.5, 0.8, 0.95)
NOISES = ("kitchen", "street_tram", "machine_factory")
SNRS = (-5.0, 0.0, 5.0)
LOUD = 1e-3
"""30 dB."""
EVERY = 3
"""Of the frames so many-th are asked: neighbours tell the same."""


@dataclass(frozen=True)
class Known:
    """What a scheme said, and the truth, (frame, freq)."""

    found: Separation
    truth: Spectrum
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid and noise")
    parser.add_argument("--models", nargs="+", default=["a_vae"])
    parser.add_argument("--schemes", nargs="+", default=["guided", "ldem", "mcem", "vem", "bnmf"])
    parser.add_argument("--only", nargs="+", choices=["drawn", "real"], default=["drawn", "real"])
    parser.add_argument("--clips", type=int, default=1, help="a speaker, in each noise at each SNR")
    args = parser.parse_args()
    torch.set_num_threads(1)
    titles = ["", "of", "50 %", "80 %", "95 %", "width", "error dB"]
    for model in args.models:
        if "drawn" in args.only:
            print_row([f"drawn: {model}", *titles[1:]], first=True)
            with torch.no_grad():
                for name, known in drawn(model):
                    print_row([name, "all", *cells([known], heard=False)])
        if "real" in args.only:
            print_row(
                [f"real: {model}", *titles[1:], "after 50 %", "80 %", "95 %", "factor", "s"],
                first=True,
            )
            for name in args.schemes:
                fitted, held_out = real(args, model, name)
                for heard in (False, True):
                    factor = recalibrated(fitted, heard)
                    after = coverage(held_out, heard, factor)
                    seconds = np.mean([known.seconds for known in (*fitted, *held_out)])
                    row = [name, "heard" if heard else "all", *cells(held_out, heard)]
                    row += [*(f"{share:.0%}" for share in after), f"{factor:.2f}", f"{seconds:.1f}"]
                    print_row(row)


def print_row(row: Sequence[str], first: bool = False) -> None:
    print(("\n" if first else "") + f"| {' | '.join(row)} |", flush=True)
    if first:
        print("| --- " * len(row) + "|", flush=True)


def cells(many: Sequence[Known], heard: bool) -> list[str]:
    """Coverage, width and error of some recordings."""
    width = np.mean([width_of(known, heard) for known in many])
    error = np.mean([error_of(known, heard) for known in many])
    shares = [f"{share:.0%}" for share in coverage(many, heard)]
    return [*shares, f"{width:.2f}", f"{error:+.1f}"]


def where(known: Known, heard: bool) -> Tensor:
    """The coefficients that are asked, by what the posterior expects and not by the truth."""
    mean, variance = moments(known.found)
    power = mean.abs().square() + variance
    return power > LOUD * power.max() if heard else torch.ones_like(power).bool()


def coverage(many: Sequence[Known], heard: bool, factor: float = 1.0) -> list[float]:
    """Shares of truths in the central intervals, whose distances from the estimate are `factor` times as wide."""
    inside = []
    for known in many:
        mean = known.found.speech
        u = cdf(known.found, mean + (known.truth - mean) / factor)
        inside.append(((u - 0.5).abs() * 2)[:, where(known, heard)].flatten())
    far = torch.cat(inside)
    return [float((far <= share).double().mean()) for share in SHARES]


def recalibrated(many: Sequence[Known], heard: bool) -> float:
    """The factor at which 80 % holds 80 %."""
    low, high = 0.2, 10.0
    for _ in range(10):
        middle = (low * high) ** 0.5
        enough = coverage(many, heard, middle)[1] >= SHARES[1]
        low, high = (low, middle) if enough else (middle, high)
    return (low * high) ** 0.5


def width_of(known: Known, heard: bool) -> float:
    asked = where(known, heard)
    low, high = interval(known.found, SHARES[1])
    spread = known.truth[asked].abs().square().mean().sqrt() / 2**0.5  # of a part
    return float((high - low)[:, asked].mean() / spread)


def error_of(known: Known, heard: bool) -> float:
    asked = where(known, heard)
    mean, variance = moments(known.found)
    off = (known.truth - mean).abs().square()[asked].sum() / variance[asked].sum()
    return float(10 * off.log10())


# --- drawn from the program -----------------------------------------------------------------------------------------


def drawn(model: str, frames: int = 40) -> Iterator[tuple[str, Known]]:
    """Schemes' E-steps on the same draw."""
    prior: Any = load_prior(model, guide=None)[0]
    pi = prior.mixing_weight
    torch.manual_seed(0)
    F = prior.num_freqs
    level = 10 ** torch.linspace(0, -3, F)  # noise that falls by 30 dB
    noise = level * 10 ** torch.linspace(-1.5, 1.5, frames)[:, None]  # and rises by 30
    story = poutine.trace(poutine.uncondition(noisy_speech))
    empty = torch.zeros(frames, F, dtype=torch.complex64)
    sites = story.get_trace(prior, empty, None, noise, mixing_weight=pi, speech_latent=True).nodes
    s, x = sites["s"]["value"], sites["x"]["value"]
    target = CollapsedTarget(prior, None, x.abs().square(), noise, pi)
    start = prior.initial_codes(x.abs().square(), None)
    scheme = LDEM()
    for name, kernel, chains, options in (
        (
            "hmc, long chains",
            HMC(step_size=0.05, steps=8),
            4,
            {"warmup": 300, "draws": 25, "thin": 6, "adapt": DualAveraging()},
        ),
        (
            "ula, as in ldem",
            scheme.kernel,
            scheme.chains,
            {"warmup": 40, "draws": scheme.final_draws},
        ),
        ("one code", scheme.kernel, 1, {"warmup": 60, "draws": 1}),
    ):
        run = run_chains(kernel, target, start.expand(chains, *start.shape), seed=1, **options)
        sigma, w = weighted_draws(target, run.draws.flatten(0, 1))
        yield name, Known(known_noise(x, sigma, w, noise), s)


def known_noise(x: Spectrum, sigma: Tensor, weights: Tensor, noise: Tensor) -> Separation:
    """A separation of nothing but speech and its posterior; `noise` (frame, freq) is a W H of one spectrum a frame."""
    H, g = torch.eye(len(noise)), torch.ones(len(noise))
    heard = (x, sigma, weights, noise, H, g)
    names = (
        "responsibilities",
        "mixing_weight",
        "dictionary",
        "activations",
        "objective",
        "z",
        "target",
    )
    nothing: dict[str, Any] = dict.fromkeys(names)
    return Separation(
        speech=monte_carlo_wiener(*heard), posterior=speech_posterior(*heard), **nothing
    )


# --- real clips -----------------------------------------------------------------------------------------------------


def real(args: argparse.Namespace, model: str, scheme: str) -> tuple[list[Known], list[Known]]:
    """Of all speakers but the last, and of the last."""
    prior, stft = load_prior(model)
    enhancer = Enhancer(prior, find_scheme(scheme), stft=stft, device="cpu")
    if scheme not in ("guided",):
        enhancer.guide = None
    speakers = sorted(path for path in (args.data / "grid" / "valid").iterdir() if path.is_dir())
    every: list[list[Known]] = []
    for speaker in speakers:
        clips = sorted(speaker.glob("*.flac"))[: args.clips]
        every.append([known for clip in clips for known in of_clip(args, enhancer, clip)])
    return [known for some in every[:-1] for known in some], every[-1]


def of_clip(args: argparse.Namespace, enhancer: Enhancer, clip: Path) -> Iterator[Known]:
    """A clip in every noise, at the SNRs in turn."""
    clean = load_audio(clip).waveform
    for name, snr in zip(NOISES, SNRS, strict=True):
        noise = load_audio(args.data / "noise" / f"{name}.flac").waveform
        mixture, _ = mix_at_snr(clean, noise[80_000 : 80_000 + len(clean)], snr)
        audio = audio_from_array(mixture.astype(np.float32), 16_000)
        recording = enhancer.prepare(audio)
        began = time.process_time()
        found = enhancer.separate(recording).separation
        seconds = time.process_time() - began
        yield Known(in_every_frame(found), truth_of(clean, recording, enhancer), seconds)


def truth_of(clean: np.ndarray, recording: Recording, enhancer: Enhancer) -> Spectrum:
    """Clean speech as it is in what inference hears of a mixture, in every so many-th frame."""
    parts = split(clean / recording.audio.peak, recording.parts.level)
    return enhancer.stft.analyse(torch.from_numpy(parts.heard.astype(np.float32)))[::EVERY]


def in_every_frame(found: Separation) -> Separation:
    """Speech and its posterior in every so many-th frame; nothing else is asked here."""
    p = found.posterior
    assert p is not None
    p = replace(
        p,
        mixture=p.mixture[::EVERY],
        speech_variance=p.speech_variance[:, :, ::EVERY],
        noise_variance=p.noise_variance[:, :, ::EVERY],
        weights=p.weights[:, :, ::EVERY],
    )
    nothing: dict[str, Any] = {"chains": None, "target": None}
    return replace(found, speech=found.speech[::EVERY], posterior=p, **nothing)


if __name__ == "__main__":
    main()
