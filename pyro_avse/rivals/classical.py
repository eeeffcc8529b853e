"""Three rivals of before neural networks: spectral subtraction, log-MMSE, NMF with a dictionary of speech.

    x = s + b,   |x|^2 (frame, freq) of windows of 32 ms every 16 ms

    minimum_statistics     E|b|^2: the least of the smoothed |x|^2 of the last 1.5 s, times what makes that
                           unbiased [Martin 2001, "Noise power spectral density estimation ..."]
    spectral_subtraction   |s|^2 = max(|x|^2 - a E|b|^2, 0.002 E|b|^2), a from 6 down to 1 as frames get
                           louder [Boll 1979; Berouti, Schwartz & Makhoul 1979]
    log_mmse               the estimate of log |s| with the least squared error [Ephraim & Malah 1985]
    supervised_nmf         |x|^2 ~ H_s W_s + H_b W_b, W_s learned from clean speech and held [Smaragdis 2007],
                           by the Itakura-Saito updates of (42), (43)

The first three take the noisy phase, the last is a Wiener filter.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy.special import exp1
from torch import Tensor

from pyro_avse.inference.nmf import is_nmf_update_H, is_nmf_update_W
from pyro_avse.models.nmf_noise import nmf_noise_variance
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError, Power
from pyro_avse.weights.tensors import load_tensors, save_tensors

Samples = Float32[np.ndarray, "sample"]
WINDOWS = STFT(n_fft=512, hop=256)
REMEMBERED = 94
"""Frames, 1.5 s, in which speech pauses at least once in every band."""
DICTIONARY = Path("runs/supervised_nmf/weights.safetensors")
"""Where the name `supervised_nmf` finds its dictionary, from the working folder: none is bundled."""


def spectral_subtraction(samples: Samples, sample_rate: int) -> Samples:
    x = _analysed(samples)
    X, N = np.abs(x) ** 2, minimum_statistics(np.abs(x) ** 2)
    snr = 10 * np.log10(X.sum(1, keepdims=True) / N.sum(1, keepdims=True))
    over = np.clip(4 - 0.15 * snr, 1, 6)
    S = np.maximum(X - over * N, 0.002 * N)
    return _synthesised(np.sqrt(np.minimum(S / X, 1)) * x, samples)


def log_mmse(samples: Samples, sample_rate: int) -> Samples:
    x = _analysed(samples)
    snr = np.clip(np.abs(x) ** 2 / minimum_statistics(np.abs(x) ** 2), 1e-3, 1e3)
    gain = np.empty_like(snr)
    before = np.ones_like(snr[0])  # |s|^2 over noise, of the frame before
    for n, seen in enumerate(snr):
        xi = np.maximum(0.98 * before + 0.02 * np.maximum(seen - 1, 0), 10**-2.5)
        v = xi / (1 + xi) * seen
        gain[n] = xi / (1 + xi) * np.exp(0.5 * exp1(v))
        before = gain[n] ** 2 * seen
    return _synthesised(np.minimum(gain, 1) * x, samples)


def minimum_statistics(power: Float[np.ndarray, "frame freq"]) -> Float[np.ndarray, "frame freq"]:
    """E|b|^2 of every frame, from those before it. [Martin 2001] (11) to (23), with every frame a window's end."""
    D, M = REMEMBERED, 0.874  # M(D) of its table
    P = noise = power[1:6].mean(0)  # half of the first window is empty
    mean, square = P, P**2
    corrected, least, found = 1.0, np.full((D, power.shape[1]), np.inf), np.empty_like(power)
    for n, X in enumerate(power):
        jump = 1 / (1 + (P.sum() / X.sum() - 1) ** 2)
        corrected = 0.7 * corrected + 0.3 * max(jump, 0.7)
        smooth = np.clip(0.96 * corrected / (1 + (P / noise - 1) ** 2), 0.3, 0.96)
        P = smooth * P + (1 - smooth) * X
        beta = np.minimum(smooth**2, 0.8)
        mean, square = beta * mean + (1 - beta) * P, beta * square + (1 - beta) * P**2
        spread = np.clip((square - mean**2) / (2 * noise**2), 1e-3, 0.5)  # 1 / Q
        freedom = (1 / spread - 2 * M) / (1 - M)
        bias = (1 + (D - 1) * 2 / freedom) * (1 + 2.12 * np.sqrt(spread.mean()))
        least[n % D] = P * bias
        noise = np.maximum(least.min(0), 1e-12)
        found[n] = noise
    return found


def supervised_nmf(
    samples: Samples, sample_rate: int, *, weights: Path = DICTIONARY, rank: int = 10
) -> Samples:
    """By the dictionary of `pyro-avse train default/supervised_nmf`; `rank` spectra of noise are fitted as it is heard.

    Raises InputError where `weights` are not there, or another's.
    """
    x = WINDOWS.analyse(torch.from_numpy(samples))
    X = x.abs().square() + 1e-8
    speech = _dictionary(weights)
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(rank, X.shape[1], generator=rng) * X.mean(0)
    W = torch.cat([speech, noise / noise.sum(1, keepdim=True)])
    H = X.sum(1, keepdim=True).expand(-1, len(W)) / len(W)
    for _ in range(50):
        H = is_nmf_update_H(X, W, H, exponent=0.5)
        fitted = is_nmf_update_W(X, W, H, exponent=0.5)
        W = torch.cat([speech, fitted[len(speech) :]])
    S = nmf_noise_variance(speech, H[:, : len(speech)])
    return WINDOWS.synthesise(S / nmf_noise_variance(W, H) * x, len(samples)).numpy()


def learn_dictionary(
    power: Power, rank: int, *, iterations: int, rng: torch.Generator
) -> Float[Tensor, "rank freq"]:
    """W_s: the spectra, each of sum 1, that add up to frames of clean speech; starts at frames of it."""
    loud = power[power.sum(1) > power.sum(1).mean() * 1e-2]
    W = loud[torch.randperm(len(loud), generator=rng)[:rank]]
    W = W / W.sum(1, keepdim=True)
    H = loud.sum(1, keepdim=True).expand(-1, rank) / rank
    for _ in range(iterations):
        H = is_nmf_update_H(loud, W, H, exponent=0.5)
        W = is_nmf_update_W(loud, W, H, exponent=0.5)
        W = W / W.sum(1, keepdim=True)
    return W


def save_dictionary(path: Path, dictionary: Float[Tensor, "rank freq"]) -> None:
    save_tensors(path, {"dictionary": dictionary}, {"rival": "supervised_nmf"})


@lru_cache(maxsize=2)
def _dictionary(path: Path) -> Float[Tensor, "rank freq"]:
    if not path.is_file():
        raise InputError(
            f"no {path}: train it, pyro-avse train default/supervised_nmf --out {path.parent}, or give NAME=FILE"
        )
    tensors, header = load_tensors(path)
    found = tensors.get("dictionary")
    freqs = WINDOWS.n_fft // 2 + 1
    if header.get("rival") != "supervised_nmf" or found is None or found.shape[1:] != (freqs,):
        raise InputError(f"{path}: no dictionary of supervised_nmf: train it anew")
    return found


def _analysed(samples: Samples) -> np.ndarray:
    """In float64, with a floor where it is silent."""
    x = WINDOWS.analyse(torch.from_numpy(samples.astype(np.float64))).numpy()
    return np.where(np.abs(x) < 1e-4, 1e-4, x)


def _synthesised(spectrum: np.ndarray, like: Samples) -> Samples:
    found = WINDOWS.synthesise(torch.from_numpy(spectrum), len(like)).numpy()
    return found.astype(np.float32)
