"""Sound files that libsndfile does not write: .m4a (AAC) and .opus, through PyAV, piece by piece."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import soxr
from jaxtyping import Float

ENCODED = {".m4a": ("ipod", "aac"), ".opus": ("opus", "libopus")}
"""FFmpeg's names of the container and of the codec."""


class EncodedFile:
    """A mono file that is written to as soundfile's are; the name's suffix is one of `ENCODED`.

    A rate that the codec does not have becomes 48 kHz. What the encoder runs ahead is said in the file, so that readers
    give back the samples from the first on.
    """

    def __init__(self, part: Path, suffix: str, sample_rate: int) -> None:
        form, codec = ENCODED[suffix]
        known = av.codec.Codec(codec, "w").audio_rates
        self.rate = sample_rate if known is None or sample_rate in known else 48000
        self.resample = (
            None
            if self.rate == sample_rate
            else soxr.ResampleStream(sample_rate, self.rate, 1, dtype="float32")
        )
        self.container: Any = av.open(str(part), "w", format=form)
        self.stream: Any = self.container.add_stream(
            codec, rate=self.rate, layout="mono", bit_rate=min(192_000, 4 * self.rate)
        )
        self.written = 0

    def __enter__(self) -> "EncodedFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self.resample is not None:
                    self._encode(self.resample.resample_chunk(np.zeros(0, np.float32), last=True))
                self.container.mux(self.stream.encode(None))
        finally:
            self.container.close()

    def write(self, piece: Float[np.ndarray, "sample"]) -> None:
        """The next samples."""
        samples = np.asarray(piece, np.float32)
        self._encode(samples if self.resample is None else self.resample.resample_chunk(samples))

    def _encode(self, samples: Float[np.ndarray, "sample"]) -> None:
        if len(samples) == 0:
            return
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples)[None], format="fltp", layout="mono"
        )
        frame.sample_rate, frame.time_base = self.rate, Fraction(1, self.rate)
        frame.pts = self.written
        self.written += len(samples)
        self.container.mux(self.stream.encode(frame))
