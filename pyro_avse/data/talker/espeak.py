"""espeak-ng through ctypes: text in, a waveform and the phonemes with their times out.

The library and its voices come in the wheel `espeakng_loader` (extra `synth`); nothing needs to be
installed beside Python. Its synthesiser keeps state between sentences (the phase of its pitch
flutter, its filters, its echo, its random breath noise), so that a sentence would depend on what
was spoken before it. `speak` therefore loads the library afresh for every text and seeds its noise:
about 3 ms, for output that is the same in any order and in any process.
"""

import _ctypes
import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pyro_avse.typing import InputError

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples arrive by callback before espeak_Synth returns
_OPTIONS = 0x0001 | 0x0002 | 0x8000  # phoneme events, in IPA, an error code for exit()
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_LIST_END, _PHONEME = 0, 7  # espeak_EVENT_TYPE
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Speech:
    """What espeak-ng said."""

    waveform: Float[np.ndarray, " sample"]
    """float32 mono in [-1, 1], with stretches of exact zeros between words."""
    sample_rate: int
    """In Hz, 22050 for every voice but MBROLA's."""
    phonemes: list[tuple[str, float]]
    """IPA with stress and length marks, and start in seconds, increasing; "" is a pause."""


class _Name(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def speak(
    text: str,
    *,
    voice: str = "en-us",
    pitch: int = 50,
    pitch_range: int = 50,
    rate: int = 175,
    seed: int = 1,
) -> Speech:
    """Speak a text; the same arguments give the same samples, whatever was spoken before.

    `voice` is a language, optionally with a variant ("en-us", "en-gb-scotland+f3"); `pitch` and
    `pitch_range` are 0..99 with 50 the voice's own; `rate` is 80..450 words a minute; `seed` draws
    the voice's breath noise. Two limits: the variants "Reed" and "caleb" do not repeat, and nothing
    does while another package holds the same library loaded.

    Raises InputError where espeakng_loader is missing, the text is empty, the voice is unknown or a
    number is out of range.
    """
    if not text.strip():
        raise InputError("the text to speak is empty: give at least one word")
    for name, value, low, high in (
        ("pitch", pitch, 0, 99),
        ("pitch_range", pitch_range, 0, 99),
        ("rate", rate, 80, 450),
        ("seed", seed, 0, 2**31 - 1),
    ):
        if not low <= value <= high:
            raise InputError(f"{name} is {value}: espeak-ng takes {low} to {high}")
    chunks: list[Float[np.ndarray, " sample"]] = []
    events: list[tuple[int, str]] = []

    @_Callback
    def collect(samples, count, event):  # type: ignore[no-untyped-def]
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        index = 0
        while event[index].type != _LIST_END:
            if event[index].type == _PHONEME:
                events.append((event[index].sample, event[index].id.string.decode(errors="ignore")))
            index += 1
        return 0

    with _LOCK, _fresh_library(voice) as (library, sample_rate):
        library.espeak_SetSynthCallback(collect)
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(seed)
        letters = text.encode()
        library.espeak_Synth(letters, len(letters) + 1, 0, 1, 0, _UTF8, None, None)
    if not any(name for _, name in events):
        raise InputError(f"espeak-ng has nothing to say for {text!r}: give words")
    waveform = np.concatenate(chunks)
    # where two events share a sample, the former has no length: the latter is what is heard
    starts = dict(sorted(events, key=lambda event: event[0]))
    phonemes = [(name, n / sample_rate) for n, name in starts.items() if 0 <= n < len(waveform)]
    return Speech(waveform, sample_rate, phonemes)


@contextmanager
def _fresh_library(voice: str) -> Iterator[tuple[ctypes.CDLL, int]]:
    """The library as after a first load, set to a voice, and its sample rate in Hz."""
    try:
        import espeakng_loader
    except ImportError:
        raise InputError(
            'the synthetic talker needs espeak-ng: pip install "pyro_avse[synth]"'
        ) from None
    data = Path(espeakng_loader.get_data_path())
    variant = voice.partition("+")[2]
    if variant and not (data / "voices" / "!v" / variant).is_file():
        raise InputError(f"espeak-ng has no voice variant {variant!r}: try f1 to f5, m1 to m8, ...")
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        library.espeak_Initialize.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
        ]
        library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        library.espeak_SetParameter.argtypes = [ctypes.c_int] * 3
        library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        library.espeak_ng_SetRandSeed.restype = None
        library.espeak_SetSynthCallback.argtypes = [_Callback]
        library.espeak_SetSynthCallback.restype = None
        library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _OPTIONS)
        if sample_rate <= 0:
            raise InputError(f"espeak-ng finds no voices in {data}: reinstall espeakng-loader")
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"espeak-ng has no voice {voice!r}: try en-us, en-gb-scotland+m3, ...")
        yield library, sample_rate
        library.espeak_Terminate()
    finally:
        if sys.platform == "win32":
            _ctypes.FreeLibrary(library._handle)
        else:
            _ctypes.dlclose(library._handle)
