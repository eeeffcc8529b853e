"""Which of several faces speaks: the one whose mouth opens as the sound grows loud.

Two rates are correlated, frame by frame: how fast the lower half of the mouth moves away from the upper one, by the
optical flow between neighbouring pictures [Farneback2003], and how fast the level of the sound rises, in decibels, on
average over four bands of speech. The largest correlation counts of those in which the mouth is up to 0.04 s early or
0.08 s late. Both faces may talk: of pairs of GRID's clips of 3 s the right one is found in 93 of 100, in noise as loud
as the voice in 87 (benchmarks/faces.py).
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from scipy.signal import butter, sosfilt

from pyro_avse.data.lips.lips import Lips
from pyro_avse.defaults import SAMPLE_RATE

BANDS = (150, 500), (500, 1000), (1000, 2000), (2000, 4000)
"""In Hz."""
RANGE = 40.0
"""dB under a band's loudest frame below which it is silent."""
EARLY, LATE = 0.04, 0.08
"""Seconds."""
MOST = 1500
"""Pictures that are looked at."""
LISTENED = 60.0
"""Seconds of sound that they last at the usual 25 a second."""
SURE = 0.1
"""By which the largest agreement exceeds the next, or it is said that it does not."""


def choose_speaker(faces: list[Lips], sound: Float[np.ndarray, "sample"] | None) -> tuple[int, str]:
    """Which of the faces speaks in a sound (16 kHz) that starts with their pictures, and why it is taken.

    Without sound it is the one that is seen longest.
    """
    if sound is None:
        shown = [float(np.mean(lips.mask)) if lips.mask is not None else 1.0 for lips in faces]
        return int(np.argmax(shown)), "there is no sound to choose by"
    scores = [agreement(lips, sound) for lips in faces]
    order = np.argsort(scores)[::-1]
    most, other = (scores[k] for k in order[:2])
    sure = "" if most - other > SURE else "not surely: "
    return int(
        order[0]
    ), f"{sure}its lips go best with the sound ({most:.2f}, another's {other:.2f})"


def agreement(lips: Lips, sound: Float[np.ndarray, "sample"]) -> float:
    """The largest correlation of the mouth's opening with the rise of the sound (16 kHz), which start together."""
    count = min(len(lips.frames), MOST, int(len(sound) / SAMPLE_RATE * lips.fps))
    shown = np.ones(count, bool) if lips.mask is None else lips.mask[:count].copy()
    shown[1:] &= shown[:-1].copy()
    lags = range(-round(EARLY * lips.fps), round(LATE * lips.fps) + 1)
    if shown.sum() < 2 * len(lags):
        return 0.0
    opening = np.where(shown, opening_rate(lips.frames[:count]), 0.0)
    rising = rise(sound, lips.fps, count)
    return max(correlation(opening, rising, lag) for lag in lags)


def opening_rate(frames: UInt8[np.ndarray, "frame 67 67"]) -> Float[np.ndarray, "frame"]:
    """By how many pixels the lower half of the mouth went down more than the upper one since the last picture."""
    rates, flow = np.zeros(len(frames)), np.zeros((*frames.shape[1:], 2), np.float32)
    for k in range(1, len(frames)):  # two scales, windows of 13 pixels
        cv2.calcOpticalFlowFarneback(frames[k - 1], frames[k], flow, 0.5, 2, 13, 3, 5, 1.1, 0)
        down = flow[..., 1] - np.median(flow[..., 1])  # less the head's
        rates[k] = down[34:60, 18:49].mean() - down[20:34, 18:49].mean()
    return rates


def rise(sound: Float[np.ndarray, "sample"], fps: float, count: int) -> Float[np.ndarray, "frame"]:
    """How fast the level grows in every frame, in dB a frame, on average over `BANDS`."""
    starts = np.round(np.arange(count) / fps * SAMPLE_RATE).astype(int)
    length = round(SAMPLE_RATE * (1 / fps + 0.02))
    levels = []
    for band in BANDS:
        heard = sosfilt(butter(4, band, "band", fs=SAMPLE_RATE, output="sos"), sound)
        energy = np.concatenate([[0.0], np.cumsum(heard**2)])
        ends = np.minimum(starts + length, len(sound))
        power = energy[ends] - energy[np.maximum(0, starts - 160)]
        floor = power.max() * 10 ** (-RANGE / 10) + 1e-12
        levels.append(10 * np.log10(power + floor))
    return np.gradient(np.mean(levels, axis=0))


def correlation(
    mouth: Float[np.ndarray, "frame"], sound: Float[np.ndarray, "frame"], lag: int
) -> float:
    """Of the mouth `lag` frames later with the sound; 0 where one of them rests."""
    x, y = mouth[max(0, lag) :], sound[max(0, -lag) :]
    x, y = x[: len(y)] - x[: len(y)].mean(), y[: len(x)] - y[: len(x)].mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0
