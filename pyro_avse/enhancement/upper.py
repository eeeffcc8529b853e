"""What lies above 8 kHz in a recording of 44.1 or 48 kHz: kept, under the gain of the highest band that is seen.

Inference sees 16 kHz, and so nothing above 8 kHz. There speech is breath and sibilants, loud when it is loud just
below, and noise goes on upwards. The gain of a frame between 6 and 8 kHz,

    g_n^2 = sum_f |S_nf|^2 / sum_f |X_nf|^2,   at most 1

linear in time between the frames' centres, is what the rest above is multiplied by. Where a click was taken off it
is 0: a click has all frequencies.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64

from pyro_avse.data.media.audio import Audio, restore
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.typing import Spectrum

FROM = 6000.0
"""Hz: the lower edge of the band whose gain carries on."""
AROUND_CLICK = 0.005
"""Seconds on each side of a click that are silent above 8 kHz."""


def upper_speech(
    audio: Audio,
    gain: Float64[np.ndarray, "frame"],
    times: Float[np.ndarray, "frame"],
    clicks: Float[np.ndarray, "sample"],
) -> Float32[np.ndarray, "original_sample"]:
    """The speech of a recording above 8 kHz, at its rate, length and level; zeros up to 16 kHz.

    Args:
        gain: `top_gain`, at `times` in seconds.
        clicks: (sample,) at 16 kHz, what was taken off as clicks; zero elsewhere.
    """
    if audio.sample_rate <= SAMPLE_RATE:
        return np.zeros(audio.num_samples, np.float32)
    above = audio.original - restore(audio.waveform, audio)
    at = np.arange(audio.num_samples) / audio.sample_rate
    held = np.interp(at, times, gain)
    for click in np.flatnonzero(clicks) / SAMPLE_RATE:
        first, last = np.searchsorted(at, (click - AROUND_CLICK, click + AROUND_CLICK))
        held[first:last] = 0
    return (held * above).astype(np.float32)


def top_gain(speech: Spectrum, mixture: Spectrum) -> Float64[np.ndarray, "frame"]:
    """g_n of the STFTs of speech and recording, (frame, freq) from 0 to 8 kHz; 0 in silence."""
    first = round(FROM / SAMPLE_RATE * 2 * (mixture.shape[-1] - 1))
    s, x = (part[:, first:].abs().square().sum(-1).double().cpu() for part in (speech, mixture))
    ratio = np.divide(s.numpy(), x.numpy(), out=np.zeros(len(x)), where=x.numpy() > 0)
    return np.sqrt(ratio.clip(0, 1))
