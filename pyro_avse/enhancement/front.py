"""What is taken off a recording before inference, and how what lies below speech comes back.

A recording, 16 kHz, is split exactly,

    recording = offset + clicks + low + level * heard

    offset   its mean
    clicks   lone samples far outside of what is around them, and as loud as speech; a straight line stands there
    low      what lies below `CUTOFF`: a car's rumble, wind, hum; and of speech hardly anything
    heard    the rest, at the level of training: what inference sees

A rumble 20 dB above speech leaks through the STFT's window into every frequency, and would set the level; both come to
an end once it is filtered off. The prior is told: its speech passed the same filter, `log_response`, and so has no
power there (`HeardThrough`). `level` is the speech band's (`pyro_avse.data.media.level.speech_level`).

Some recordings of clean speech do have power below the cutoff, and who compares with them wants it back: a breath on
the microphone below 25 Hz, and little above. A tram has the opposite. So the two `BANDS` of `low` are asked apart how
much of them is speech's, which is a small question with a small model. In dB, of a whole recording,

    s = power of speech in the band   ~ N(speech's power + `speech`, `speech_spread`^2)
    n = power of noise in the band    ~ N(as with the density of 70 to 110 Hz + `noise`, `noise_spread`^2)
    10^(s/10) + 10^(n/10) = the power that is there

`division` gives the posterior of how the power divides. Then every frame asks the same question again, around each s
and n that the recording may have with spreads of 6 and 4 dB, and its answers are the gains of a Wiener filter on the
band, one filter for each case. Of these and their mean those count most (`best_gain`) that make the logarithm of the
whole error,

    sum_case p(case) log (error above + error of the filter in that case),

small: what is counted in dB asks for a decision where the error above is small, and for the mean where it is large.
Where the noise above is faint the gain is close to 1.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from pyro_avse.models.noise_floor import CUTOFF, DEEPEST, ORDER
from pyro_avse.stft import STFT


@dataclass(frozen=True)
class Band:
    """What is expected of a band of `low`, in dB."""

    width: float
    """Hz."""
    speech: float
    """Speech's power there against all of it."""
    speech_spread: float
    noise: float
    """Noise's power against what it would be with the density of `NEXT`."""
    noise_spread: float


LOWEST = 25.0
"""Hz between the two bands."""
BANDS = (
    Band(LOWEST, speech=-18, speech_spread=7, noise=-4, noise_spread=15),
    Band(CUTOFF - LOWEST, speech=-28, speech_spread=6, noise=0, noise_spread=9),
)
"""Clean speech of GRID has -14 and -26 dB there, with spreads of 5 dB; LibriSpeech -31 and -29, with 12 and 8. The
thirty noises of the data folder have -11 and -2.5 dB, with 13 and 7; a little more is expected, as noise that is given
back costs more than speech that is not."""
NEXT = 70.0, 110.0
"""Hz, from where to where noise says most of what it is like below."""
FRAME_SPREADS = 6.0, 4.0
"""dB: of a frame's low speech and low noise around the recording's, about as recordings have them."""
SHARP = 14.0
"""By how many nats less a filter counts whose loss is a nat larger: the best alone would jump from case to case."""
LEAST_ERROR = 1e-5
"""Of what is heard, against speech: 50 dB."""
CLICK, LOUD_CLICK = 6.0, 0.5
"""How many times as far from the line between its neighbours a click is as any sample within `AROUND` of it; and that
at least, in units of the level: what is fainter does no harm, and may be a voice's pulse in a quiet moment."""
AROUND, HOLE = 320, 16
"""Samples at 16 kHz: 20 ms, and the 1 ms next to a click that is not asked."""

Waveform = Float[np.ndarray, "sample"]
Decibels = np.ndarray
"""Of any shape, also of one number."""


@dataclass(frozen=True)
class Parts:
    """A recording, split; all at its own unit but `heard`."""

    heard: Waveform
    """What inference sees, in the unit `level`."""
    low: Waveform
    level: float
    clicks: Waveform = field(default_factory=lambda: np.zeros(0))
    """What was taken off as clicks; zero elsewhere, and where the samples end."""

    def restore(self, heard: Waveform, low: Waveform) -> Waveform:
        """Speech in the recording's unit, from its two parts."""
        return self.level * heard + low


def split(waveform: Waveform, level: float) -> Parts:
    """A recording at 16 kHz without its mean and its clicks; `level` > 0 is `speech_level`'s, or of a longer one."""
    from scipy.signal import sosfiltfilt

    x = waveform.astype(np.float64)
    centred = x - x.mean()
    x = without_clicks(centred, level)
    heard = sosfiltfilt(high_pass(), x, padlen=min(len(x) - 1, AROUND * 10))
    return Parts(heard / level, x - heard, level, centred - x)


def log_response(frequencies: int, sample_rate: int = 16000) -> Float[np.ndarray, "freq"]:
    """log |H_f|^2 of the filter on the STFT's frequencies, in nats of power, no lower than `DEEPEST`."""
    from scipy.signal import sosfreqz

    hertz = np.linspace(0, sample_rate / 2, frequencies)
    _, h = sosfreqz(high_pass(), np.minimum(hertz, 0.999 * sample_rate / 2), fs=sample_rate)
    return np.maximum(4 * np.log(np.abs(h) + 1e-30), DEEPEST)  # power, forwards and backwards


def without_clicks(x: Waveform, level: float) -> Waveform:
    """The waveform with lone clicks replaced by lines across them.

    d_t = |x_t - (x_{t-1} + x_{t+1}) / 2| is far larger at a click than anywhere within 20 ms of it. The clap of a hand
    or a consonant's burst lasts longer than a millisecond, and has neighbours as large.
    """
    from scipy.ndimage import maximum_filter1d

    if len(x) < 2 * AROUND:
        return x
    d = np.zeros_like(x)
    d[1:-1] = np.abs(x[1:-1] - 0.5 * (x[:-2] + x[2:]))
    d[0], d[-1] = abs(x[0] - x[1]), abs(x[-1] - x[-2])
    loudest = maximum_filter1d(d, 2 * HOLE + 1)
    side = AROUND - HOLE  # the window before the hole, and the one after it
    padded, centre = maximum_filter1d(np.pad(d, AROUND), side), AROUND + np.arange(len(x))
    away = HOLE + 1 + side // 2
    beside = np.maximum(padded[centre - away], padded[centre + away])
    clicks = (d == loudest) & (d > CLICK * beside) & (d > LOUD_CLICK * level)
    if not clicks.any():
        return x
    bad = np.zeros(len(x), bool)
    for at in np.flatnonzero(clicks):
        first = max(0, int(at) - HOLE)
        large = first + np.flatnonzero(d[first : int(at) + HOLE + 1] > CLICK * beside[at])
        bad[max(0, int(large[0]) - 1) : int(large[-1]) + 2] = True
    kept = ~bad
    return np.where(bad, np.interp(np.arange(len(x)), np.flatnonzero(kept), x[kept]), x)


def low_speech(parts: Parts, heard_speech: Waveform, stft: STFT) -> Waveform:
    """What of `parts.low` is speech's, given what inference made of the rest: the Wiener filters above."""
    from scipy.signal import butter, sosfiltfilt

    power = _power(heard_speech)
    if power == 0:
        return np.zeros_like(parts.low)
    residual = parts.heard - heard_speech
    density = np.abs(np.fft.rfft(residual)) ** 2 * 2 / len(residual) ** 2
    hertz = np.fft.rfftfreq(len(residual), 1 / 16000)
    # 100 dB below speech: noise of no power has no logarithm
    above = (
        density[(hertz >= NEXT[0]) & (hertz < NEXT[1])].mean() * len(residual) / 16000
        + 1e-10 * power
    )
    # of a Wiener filter G: the mean of G (1 - G) |x|^2
    error = max(float(np.mean(heard_speech * residual)), LEAST_ERROR * power)
    below = butter(2, LOWEST, "low", fs=16000, output="sos")
    lowest = sosfiltfilt(below, parts.low, padlen=min(len(parts.low) - 1, 3 * 16000))
    deep, upper = (
        _speech_of(waveform, band, parts.level, power, above, error, stft)
        for waveform, band in zip((lowest, parts.low - lowest), BANDS, strict=True)
    )
    return deep + upper


def _speech_of(
    low: Waveform,
    band: Band,
    level: float,
    speech: float,
    density: float,
    error: float,
    stft: STFT,
) -> Waveform:
    """That of one band, by the power of speech, of noise in 1 Hz above, and of the error above, in the unit `level`."""
    below = _power(low / level)
    if below == 0:
        return np.zeros_like(low)
    s, n = _decibels(speech) + band.speech, _decibels(density * band.width) + band.noise
    _, p, s, n = division(_decibels(below), s, band.speech_spread, n, band.noise_spread, points=33)

    spectrum = stft.analyse(torch.from_numpy(low.astype(np.float32)))
    frames = (spectrum.abs().square().sum(-1).double().numpy()) + 1e-30
    frames = np.convolve(np.pad(frames, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    unit = _decibels(frames.mean()) - _decibels(below)
    share, of_frame, _, _ = division(
        _decibels(frames), s[:, None] + unit, FRAME_SPREADS[0], n[:, None] + unit, FRAME_SPREADS[1]
    )
    gain = best_gain(of_frame @ share, p, frames / frames.mean() * below, error)
    filtered = torch.from_numpy(gain.astype(np.float32))[:, None] * spectrum
    return stft.synthesise(filtered, len(low)).numpy().astype(np.float64)


def best_gain(
    gains: Float[np.ndarray, "case frame"],
    p: Float[np.ndarray, "case"],
    power: Float[np.ndarray, "frame"],
    error: float,
) -> Float[np.ndarray, "frame"]:
    """Of the cases' gains and their mean, the average of those that keep the expected log of the whole error least."""
    speech, noise = gains * power, (1 - gains) * power
    offered = np.concatenate([(p @ gains)[None], gains])
    own = (np.square(1 - offered) @ speech.T + np.square(offered) @ noise.T) / len(power)
    loss = np.log(error + own) @ p
    weight = np.exp(-SHARP * (loss - loss.min()))
    gain: np.ndarray = weight @ offered / weight.sum()
    return gain


def division(
    total: Decibels,
    speech: Decibels,
    speech_spread: float,
    noise: Decibels,
    noise_spread: float,
    points: int = 161,
) -> tuple[Decibels, Decibels, Decibels, Decibels]:
    """How powers s + n divide if both are log-normal with these means and spreads, in dB.

    On a grid of s / (s + n), even in its logit, as ds dn is along s + n = total: the grid's shares, their probabilities
    (..., point), and the s and n of each in dB. `total`, `speech` and `noise` broadcast against one another.
    """
    logit = np.linspace(-16, 16, points)
    total = np.asarray(total)[..., None]
    s, n = total - _decibels(1 + np.exp(-logit)), total - _decibels(1 + np.exp(logit))
    far = ((s - np.asarray(speech)[..., None]) / speech_spread) ** 2
    log_p = -0.5 * (far + ((n - np.asarray(noise)[..., None]) / noise_spread) ** 2)
    p = np.exp(log_p - log_p.max(-1, keepdims=True))
    return 1 / (1 + np.exp(-logit)), p / p.sum(-1, keepdims=True), s, n


def high_pass() -> np.ndarray:
    """Its second-order sections at 16 kHz, of one of its two passes."""
    from scipy.signal import butter

    return butter(ORDER, CUTOFF, "high", fs=16000, output="sos")


def _power(x: Waveform) -> float:
    return float(np.mean(np.square(x, dtype=np.float64)))


def _decibels(power: np.ndarray | float) -> np.ndarray:
    return np.asarray(10 * np.log10(power))
