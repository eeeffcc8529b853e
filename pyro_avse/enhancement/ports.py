"""Where a stream's sound comes from and goes to: files, pipes of 16-bit samples, sound devices."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pyro_avse.data.media.reading import UNKNOWN
from pyro_avse.data.media.saving import check_writable, save_pieces
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.live import Stream, live_scheme
from pyro_avse.files import refuse_inputs
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.checkpoint import load_prior
from pyro_avse.weights.guides import load_guide, own_guide

SECONDS = 0.05
"""Of a block that is read."""
Sink = Callable[[Iterator[np.ndarray]], None]
"""Takes the enhanced blocks as they come."""


@dataclass(frozen=True)
class Source:
    """Blocks of one channel, floating point."""

    sample_rate: int
    blocks: Iterator[np.ndarray]
    endless: bool = True
    """Ctrl-C ends it, and what came is kept; of a file nothing is written then."""


def open_source(name: str, rate: int) -> Source:
    """A file (its first channel), "-" (stdin, 16-bit mono) or "device". Raises InputError for what cannot be read."""
    if name == "-":
        return Source(rate, _piped(rate))
    if name == "device":
        return Source(rate, _recorded(rate))
    if not os.path.isfile(name):
        raise InputError(f"{name} does not exist: name a sound file, - or device")
    try:
        info = soundfile.info(os.fsencode(name))
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = getattr(error, "error_string", "no sample rate")
        raise InputError(
            f"{name} cannot be read as sound ({reason}): convert it to .wav or .flac"
        ) from None
    if info.frames == 0:
        raise InputError(f"{name} is empty: give some sound")
    if info.frames >= UNKNOWN:
        raise InputError(f"{name} does not say how long it is: pipe its samples in, with -")
    return Source(info.samplerate, _read(name, info.samplerate), endless=False)


def _read(name: str, rate: int) -> Iterator[np.ndarray]:
    """Until nothing comes, whatever length its header says."""
    with soundfile.SoundFile(os.fsencode(name)) as file:
        size = max(1, round(SECONDS * rate))
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            yield block[:, 0]


def _piped(rate: int) -> Iterator[np.ndarray]:
    size, rest = 2 * max(1, round(SECONDS * rate)), b""
    while read := os.read(sys.stdin.fileno(), size):
        data = rest + read
        whole = len(data) // 2 * 2
        rest = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768


def _recorded(rate: int) -> Iterator[np.ndarray]:
    device = _sounddevice()
    size = round(SECONDS * rate)
    with device.InputStream(samplerate=rate, channels=1, blocksize=size) as stream:
        while True:
            samples, _ = stream.read(size)
            yield samples[:, 0]


@contextlib.contextmanager
def open_sink(name: str, rate: int, source: str) -> Iterator[Sink]:
    """A file, written whole or not at all, "-" (stdout, 16-bit mono) or "device".

    Raises InputError for a place that cannot be written to, or that is the source.
    """
    if name == "-":

        def pipe(blocks: Iterator[np.ndarray]) -> None:
            for block in blocks:
                samples = (np.clip(block, -1, 1) * 32767).round().astype("<i2")
                sys.stdout.buffer.write(samples.tobytes())
                sys.stdout.buffer.flush()

        yield pipe
    elif name == "device":
        with _sounddevice().OutputStream(samplerate=rate, channels=1) as stream:

            def play(blocks: Iterator[np.ndarray]) -> None:
                for block in blocks:
                    stream.write(np.ascontiguousarray(block[:, None]))

            yield play
    else:
        check_writable(name)
        refuse_inputs([Path(name)], {"the recording": Path(source)})
        yield lambda blocks: save_pieces(Path(name), blocks, rate)


def _sounddevice() -> Any:
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise InputError(
            f"no sound device can be used ({error}): pip install sounddevice, and PortAudio; or give files"
        ) from None
    return sounddevice


def load_stream(
    model: str | Path, guide: str | Path | None = None, *, sample_rate: int, seed: int = 0
) -> Stream:
    """A stream by a bundled model's own causal guide, or a file's.

    Raises InputError where the model has none, and as `load_guide`.
    """
    prior, stft = load_prior(model, guide=None)
    path = own_guide(model, causal=True) if guide is None else guide
    if path is None:
        raise InputError(
            f"{model} has no causal guide: take a_vae, or train one (causal = true under [options]) and name it with "
            "--guide"
        )
    found = load_guide(path, prior, stft, causal=True)
    enhancer = Enhancer(prior, live_scheme(), stft=stft, guide=None, device="cpu")
    return enhancer.stream(sample_rate, guide=found, seed=seed)


def run(stream: Stream, source: Source, sink: Sink) -> JSON:
    """All of a source through a stream into a sink; how many samples, and the seconds of work that they took."""
    samples, work = 0, 0.0

    def enhanced() -> Iterator[np.ndarray]:
        nonlocal samples, work
        with contextlib.suppress(*[KeyboardInterrupt] * source.endless):
            for block in source.blocks:
                start = time.perf_counter()
                done = stream.push(block)
                work += time.perf_counter() - start
                samples += len(done)
                yield done
        start = time.perf_counter()
        rest = stream.flush()
        work += time.perf_counter() - start
        samples += len(rest)
        yield rest

    sink(enhanced())
    seconds = max(samples, 1) / source.sample_rate
    return {"samples": samples, "seconds": work, "real_time_factor": work / seconds}
