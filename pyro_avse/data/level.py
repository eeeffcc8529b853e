"""The level of speech while it is spoken: ITU-T P.56, method B.

A clip's mean power falls as its pauses grow; an SNR over active speech does not. The envelope q is |x| smoothed twice
(30 ms); a threshold c is passed where q >= c now or within the last 0.2 s, in a(c) samples. Speech is active over the
threshold that lies 15.9 dB under the level it gives:

    10 log10(sum x^2 / a(c)) - 20 log10 c = 15.9 dB

P.56 interpolates between thresholds 6 dB apart, and so may differ by some tenths of a dB; here the envelope of every
sample is one. When to use it: clips with long pauses, or pauses of different length.
"""

import numpy as np
from jaxtyping import Float

SMOOTHING = 0.03
"""Seconds: time constant of each of the two exponential averages."""
HANGOVER = 0.2
"""Seconds for which speech still counts after the envelope has fallen."""
MARGIN = 15.9
"""dB from the active level down to the threshold."""


def active_power(waveform: Float[np.ndarray, "sample"], sample_rate: int = 16000) -> float:
    """Mean square over the active samples of (sample,), in the waveform's unit squared.

    A sound too short for any threshold (a click) has no activity: its power is that of the whole clip.
    """
    from scipy.ndimage import maximum_filter1d  # a second to load
    from scipy.signal import lfilter

    squares = np.square(waveform, dtype=np.float64)
    decay = np.exp(-1 / (SMOOTHING * sample_rate))
    smooth = ([1 - decay], [1, -decay])
    envelope = lfilter(*smooth, lfilter(*smooth, np.sqrt(squares)))
    hangover = int(np.ceil(HANGOVER * sample_rate))
    # Trailing: the window of sample n is n - hangover + 1 .. n.
    held = maximum_filter1d(envelope, hangover, origin=(hangover - 1) // 2, mode="constant")
    thresholds = np.sort(held)[::-1]
    counts = np.arange(1, len(thresholds) + 1)  # samples at or over each threshold
    within_margin = counts * thresholds**2 >= squares.sum() * 10 ** (-MARGIN / 10)
    active = counts[within_margin][-1] if within_margin.any() else len(squares)
    return float(squares.sum() / active)
