"""Sound files that libsndfile does not write: .m4a (AAC) and .opus, through PyAV, piece by piece."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import soxr
from jaxtyping import Float

from pyro_avse.typing import InputError

ENCODED = {".m4a": ("ipod", "aac"), ".opus": ("opus", "libopus")}
"""FFmpeg's names of the container and of the codec."""


LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1")
"""FFmpeg's names of 1 to 8 channels, as its encoders know them."""


def layout_of(channels: int) -> str:
    """Raises InputError for more than eight."""
    if channels > len(LAYOUTS):
        raise InputError(f"AAC and Opus have no {channels} channels: write .wav or .flac")
    return LAYOUTS[channels - 1]


class EncodedFile:
    """A file that is written to as soundfile's are; the name's suffix is one of `ENCODED`.

    A rate that the codec does not have becomes 48 kHz. What the encoder runs ahead is said in the file, so that readers
    give back the samples from the first on.
    """

    def __init__(self, part: Path, suffix: str, sample_rate: int, channels: int = 1) -> None:
        form, codec = ENCODED[suffix]
        known = av.codec.Codec(codec, "w").audio_rates
        self.rate = sample_rate if known is None or sample_rate in known else 48000
        self.resample = (
            None
            if self.rate == sample_rate
            else soxr.ResampleStream(sample_rate, self.rate, channels, dtype="float32")
        )
        self.container: Any = av.open(str(part), "w", format=form)
        self.stream: Any = self.container.add_stream(
            codec,
            rate=self.rate,
            layout=layout_of(channels),
            bit_rate=channels * min(192_000, 4 * self.rate),
        )
        self.channels, self.written = channels, 0

    def __enter__(self) -> "EncodedFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self.resample is not None:
                    nothing = np.zeros((0, self.channels), np.float32)
                    self._encode(self.resample.resample_chunk(nothing, last=True))
                self.container.mux(self.stream.encode(None))
        finally:
            self.container.close()

    def write(self, piece: Float[np.ndarray, "sample *channel"]) -> None:
        """The next samples, (sample,) or (sample, channel)."""
        samples = np.asarray(piece, np.float32).reshape(len(piece), self.channels)
        self._encode(samples if self.resample is None else self.resample.resample_chunk(samples))

    def _encode(self, samples: Float[np.ndarray, "sample channel"]) -> None:
        if len(samples) == 0:
            return
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples).reshape(1, -1), "flt", layout_of(self.channels)
        )
        frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
        frame.pts = self.written
        self.written += len(samples)
        self.container.mux(self.stream.encode(frame))
