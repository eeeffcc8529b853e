"""A recording that is still coming in, as frames behind the front's high-pass; and frames as samples once more.

What is kept is bounded: `Tail` forgets what is no longer asked for.
"""

import math
from collections import deque

import numpy as np
import torch
from jaxtyping import Float

from pyro_avse.data.media.level import BAND, MOMENT, level_of_moments
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.enhancement.front import high_pass
from pyro_avse.stft import STFT

AHEAD = 480
"""Samples at 16 kHz that the high-pass looks ahead: 30 ms."""
LEVEL_MOMENTS = 940
"""The last 30 s say how loud the recording is."""
SILENCE = 1e-4
"""80 dB under the loudest moment so far."""
LOW_CONTEXT = 2 * SAMPLE_RATE
"""Samples of the past that say how what is below the cutoff divides."""


class Tail:
    """The end of a signal that grows, its samples known by their place in the whole."""

    def __init__(self) -> None:
        self.start, self.samples = 0, np.zeros(0)

    @property
    def stop(self) -> int:
        return self.start + len(self.samples)

    def add(self, samples: np.ndarray) -> None:
        self.samples = np.concatenate([self.samples, samples])

    def get(self, start: int, stop: int) -> np.ndarray:
        """From one place to another; zeros before the signal began."""
        ahead = max(0, -start)
        return np.pad(self.samples[max(start, 0) - self.start : stop - self.start], (ahead, 0))

    def forget(self, before: int) -> None:
        cut = max(0, min(before, self.stop) - self.start)
        self.start, self.samples = self.start + cut, self.samples[cut:]


class Sound:
    """A recording at 16 kHz as it comes: its level so far, and its frames behind the high-pass."""

    def __init__(self, stft: STFT) -> None:
        from scipy.signal import butter

        self.stft = stft
        self.raw, self.forwards, self.heard = Tail(), Tail(), Tail()
        """As it came; through the high-pass once; and, where enough is known, back through it."""
        self._high_pass = high_pass()
        self._band = butter(2, BAND, "bandpass", fs=SAMPLE_RATE, output="sos")
        self._states: list[np.ndarray] = []
        self._moment = np.zeros(0)
        self._rms: deque[float] = deque(maxlen=LEVEL_MOMENTS)
        self._loudest = 0.0
        self._frame = 0
        self._sum = 0.0

    @property
    def level(self) -> float:
        """`speech_level` of the last 30 s; 0 of silence, which filters that still ring are."""
        level = level_of_moments(np.array(self._rms)) if self._rms else 0.0
        return level if level > SILENCE * self._loudest else 0.0

    def add(self, samples: Float[np.ndarray, "sample"]) -> None:
        """The next samples."""
        from scipy.signal import sosfilt, sosfilt_zi

        if not len(samples):
            return
        if not self._states:
            self._states = [sosfilt_zi(sos) * samples[0] for sos in (self._high_pass, self._band)]
        passed, self._states[0] = sosfilt(self._high_pass, samples, zi=self._states[0])
        band, self._states[1] = sosfilt(self._band, samples, zi=self._states[1])
        self.raw.add(samples)
        self.forwards.add(passed)
        self._sum += float(samples.sum())
        self._moment = np.concatenate([self._moment, band])
        while len(self._moment) >= MOMENT:
            moment, self._moment = np.split(self._moment, [MOMENT])
            self._rms.append(float(np.sqrt(np.mean(moment**2))))
            self._loudest = max(self._loudest, self._rms[-1])

    def low(self, start: int, stop: int) -> np.ndarray:
        """What the high-pass took off, but for the mean of all so far."""
        mean = self._sum / self.raw.stop
        return self.raw.get(start, stop) - mean - self.heard.get(start, stop)

    def take_frames(self, count: int) -> torch.Tensor | None:
        """The STFT of the next frames, (count, freq); None while too little is known."""
        from scipy.signal import sosfilt

        hop, half = self.stft.hop, self.stft.n_fft // 2
        needed = (self._frame + count - 1) * hop + half
        if self.forwards.stop < needed + AHEAD:
            return None
        ahead = self.forwards.get(self.heard.stop, needed + AHEAD)
        self.heard.add(sosfilt(self._high_pass, ahead[::-1])[::-1][:-AHEAD])
        self.forwards.forget(needed)
        start = (self._frame - self._before) * hop
        segment = torch.from_numpy(self.heard.get(start, needed).astype(np.float32))
        spectra = self.stft.analyse(segment)[self._before : self._before + count]
        self._frame += count
        return spectra

    @property
    def _before(self) -> int:
        """Frames before one whose centres its window reaches: analysed with it, they are incomplete."""
        reach = math.ceil(self.stft.n_fft / 2 / self.stft.hop)
        return min(self._frame, reach)

    def forget(self, before: int) -> None:
        """Of all that is no longer asked."""
        self.raw.forget(before)
        self.heard.forget(min(before, (self._frame - 2) * self.stft.hop - self.stft.n_fft))


class Overlap:
    """Frames in, the samples that they complete out: the STFT's synthesis, block by block."""

    def __init__(self, stft: STFT) -> None:
        self.stft = stft
        self.speech = Tail()
        self._last = torch.zeros(0, stft.n_fft // 2 + 1, dtype=torch.complex64)
        self._frames = 0

    def add(self, spectra: torch.Tensor) -> np.ndarray:
        """The samples that no later frame reaches."""
        hop, half = self.stft.hop, self.stft.n_fft // 2
        first = self._frames - len(self._last)
        frames = torch.cat([self._last, spectra])
        ending = torch.cat(
            [frames, torch.zeros_like(frames[:1])]
        )  # it reaches no sample that is kept
        waveform = self.stft.synthesise(ending, len(frames) * hop).numpy().astype(np.float64)
        self._frames += len(spectra)
        done = waveform[self.speech.stop - first * hop : len(frames) * hop - half]
        self.speech.add(done)
        self.speech.forget(self.speech.stop - LOW_CONTEXT - self.stft.n_fft)
        self._last = frames[-math.ceil(self.stft.n_fft / hop) :]
        return done
