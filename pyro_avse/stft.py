"""Short-time Fourier analysis, and a synthesis that gives the waveform back exactly.

Frame n is the waveform under a window centred at sample n * hop, with zeros before its start and
after its end:

    X[n, f] = sum_t w[t] x[n hop + t - n_fft//2] exp(-2 pi i f t / n_fft)
    w[t] = sin(pi (t + 1/2) / n_fft)

The papers' setting is a 64 ms half-sample sine window (n_fft 1024 at 16 kHz) and a hop of 533
samples, 30.02 frames a second, so that one frame of 30 fps video belongs to one frame of sound. At
that hop the shifted squared windows do not sum to a constant, so synthesis (the same window,
overlap-add) divides by their sum.

There are 1 + ceil(num_samples / hop) frames, so that every sample lies between two frame centres,
where the squared windows sum to at least 0.93 at hop 533. The usual 1 + num_samples // hop can end
with up to 20 samples under a vanishing window tail, or under none: their division is ill-posed.

Time runs down: spectra are (..., frame, freq). Transposition happens in this file only.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor
from torch.nn.functional import fold, pad

from pyro_avse.typing import InputError


@dataclass(frozen=True)
class STFT:
    """Analysis and synthesis with one window length and hop, both in samples.

    Works in float32 or float64, on the device of what it is given, for any leading axes.
    Raises InputError for a hop that is not in 1 .. 3/4 n_fft.
    """

    n_fft: int = 1024
    hop: int = 533

    def __post_init__(self) -> None:
        if not 1 <= self.hop <= 0.75 * self.n_fft:
            raise InputError(
                f"hop {self.hop} with n_fft {self.n_fft}: take 1 to {self.n_fft * 3 // 4}; beyond"
                " 3/4 of the window the overlapping squared windows sum to under 0.29, towards 0 at"
                " hop = n_fft, and synthesis divides by that sum"
            )

    def analyse(
        self, waveform: Float[Tensor, "*utterance sample"]
    ) -> Complex[Tensor, "*utterance frame freq"]:
        """STFT coefficients of a waveform: num_frames(sample) frames, n_fft//2 + 1 frequencies.

        Raises InputError for no samples or a dtype other than float32 and float64.
        """
        if waveform.dtype not in (torch.float32, torch.float64):
            raise InputError(f"waveform is {waveform.dtype}: convert it to float32 or float64")
        num_samples = waveform.shape[-1]
        front = self.n_fft // 2
        back = self._padded(self.num_frames(num_samples)) - front - num_samples
        frames = pad(waveform, (front, back)).unfold(-1, self.n_fft, self.hop)
        return torch.fft.rfft(frames * self._window(waveform))

    def synthesise(
        self, spectrum: Complex[Tensor, "*utterance frame freq"], num_samples: int
    ) -> Float[Tensor, "*utterance sample"]:
        """The waveform whose windowed frames are nearest to the spectrum's, least squares.

        For a spectrum made by `analyse` that is the analysed waveform itself: within 1e-6 of its
        peak in float32 (at hops of n_fft/64 or more; more overlap adds up more rounding).
        Raises InputError where the spectrum's shape is not that of `num_samples` samples.
        """
        num_frames, num_freqs = self.num_frames(num_samples), self.n_fft // 2 + 1
        if spectrum.shape[-2:] != (num_frames, num_freqs):
            raise InputError(
                f"spectrum has (frame, freq) {tuple(spectrum.shape[-2:])}, {num_samples} samples"
                f" need {(num_frames, num_freqs)}: pass the num_samples that was analysed"
            )
        frames = torch.fft.irfft(spectrum, n=self.n_fft)
        window = self._window(frames)
        weights = self._overlap_add(window.square().expand(num_frames, self.n_fft))
        kept = slice(self.n_fft // 2, self.n_fft // 2 + num_samples)
        return self._overlap_add(frames * window)[..., kept] / weights[kept]

    def num_frames(self, num_samples: int) -> int:
        """1 + ceil(num_samples / hop). Raises InputError for fewer than 1 sample."""
        if num_samples < 1:
            raise InputError(f"a waveform of {num_samples} samples has no frames: give at least 1")
        return 1 - (-num_samples // self.hop)

    def frame_times(
        self, num_frames: int, sample_rate: int = 16000
    ) -> Float64[np.ndarray, "frame"]:
        """The frames' centres, in seconds."""
        return np.arange(num_frames) * (self.hop / sample_rate)

    def _window(self, like: Tensor) -> Tensor:
        n = torch.arange(self.n_fft, dtype=torch.float64)
        return torch.sin(torch.pi * (n + 0.5) / self.n_fft).to(like.dtype).to(like.device)

    def _padded(self, num_frames: int) -> int:
        """Samples that so many frames span, zeros in front and behind included."""
        return (num_frames - 1) * self.hop + self.n_fft

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(..., frame, n_fft) -> (..., padded sample): frame n added at n * hop."""
        *batch, num_frames, _ = frames.shape
        columns = frames.reshape(-1, num_frames, self.n_fft).mT
        size = (1, self._padded(num_frames))
        added = fold(columns, size, kernel_size=(1, self.n_fft), stride=(1, self.hop))
        return added.reshape(*batch, size[1])
