"""The level of speech: while it is spoken, by ITU-T P.56, method B; and of a recording, by its speech band.

A clip's mean power falls as its pauses grow; an SNR over active speech does not. The envelope q is |x| smoothed twice
(30 ms); a threshold c is passed where q >= c now or within the last 0.2 s, in a(c) samples. Speech is active over the
threshold that lies 15.9 dB under the level it gives:

    10 log10(sum x^2 / a(c)) - 20 log10 c = 15.9 dB

P.56 interpolates between thresholds 6 dB apart, and so may differ by some tenths of a dB; here the envelope of every
sample is one. When to use it: clips with long pauses, or pauses of different length.

`speech_level` is what a recording's waveform is divided by before anything is inferred: the loud moments of what lies
between 150 and 4000 Hz. One click is no 5 % of a recording, and a car's rumble lies below.
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


BAND = 150.0, 4000.0
"""Hz: where speech is loud, and rumble is not."""
LOUD = 0.95
"""The quantile of the moments' RMS."""
QUIET = 1e-3
"""Of the loudest moment's RMS: 60 dB below it is silence, with what a filter leaves in it."""
CREST = 4.5
"""So many times their RMS is the peak of clean speech: 11.6 to 15.5 dB, by the corpus."""
MOMENT = 512
"""Samples at 16 kHz: 32 ms."""


def speech_level(waveform: Float[np.ndarray, "sample"]) -> float:
    """The level of a 16 kHz recording at which clean speech peaks at about 1; the peak where the band is silent."""
    return level_of_moments(moments(waveform)) or float(np.abs(waveform).max())


def moments(waveform: Float[np.ndarray, "sample"]) -> Float[np.ndarray, "moment"]:
    """RMS of each 32 ms between 150 and 4000 Hz; of a long recording, block by block."""
    from scipy.signal import butter, sosfilt

    band = sosfilt(butter(2, BAND, "bandpass", fs=16000, output="sos"), waveform.astype(np.float64))
    whole = max(1, len(band) // MOMENT)
    return np.array([np.sqrt(np.mean(part**2)) for part in np.array_split(band, whole)])


def level_of_moments(rms: Float[np.ndarray, "moment"]) -> float:
    """`speech_level` of all moments of a recording; where nearly all are silent, as around one word, of the others."""
    loud, most = float(np.quantile(rms, LOUD)), float(rms.max())
    if loud < QUIET * most:
        loud = float(np.quantile(rms[rms >= QUIET * most], LOUD))
    return CREST * loud
