"""The synthetic talker: a corpus of speech with lips, from nothing but a seed.

espeak-ng speaks sentences in many voices; its phonemes move a drawn mouth; a room, a microphone and
a noise floor make the sound like a recording. The noise floor matters: synthetic speech is exactly
zero between words, where log-variance would run to minus infinity, and a prior trained on that
suppresses real speech.

Every speaker is drawn from (seed, speaker), every utterance from (seed, speaker, utterance), so
that neither the order of work nor an interruption changes a file.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, UInt8

from pyro_avse.data.noise import add_noise_floor
from pyro_avse.data.talker.espeak import speak
from pyro_avse.data.talker.mouth import Face, articulate, draw_face, render
from pyro_avse.data.talker.sentences import draw_sentence
from pyro_avse.files import make_folder, write_atomically
from pyro_avse.typing import InputError

SAMPLE_RATE = 16000
FPS = 30.0
VERSION = 1
"""Of the recipe: files of two versions differ for the same seed."""
SHORTEST, LONGEST = 2.0, 6.0
"""Utterances' lengths in seconds."""
_ACCENTS = "en-us en en-gb-scotland en-029 en-gb-x-rp en-us-nyc en-gb-x-gbclan en-gb-x-gbcwmd"
_FEMALE = "f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda linda grandma steph shelby"
_MALE = (
    "m1 m2 m3 m4 m5 m6 m7 m8 Alex Andy Denis Lee Mario Michael Mike Nguyen adam benjamin boris "
    "david edward grandpa gustave john kaukovalta klatt3 klatt4 marcelo max norbert pedro quincy "
    "rob robert sandro travis victor"
)
_BANDS = (0.0, 150.0, 500.0, 1200.0, 2500.0, 4500.0, 8000.0)  # Hz, where responses are given


@dataclass(frozen=True)
class Speaker:
    """A voice, a recording place and a face."""

    voice: str
    """espeak-ng's accent and variant, as in "en-us+f3"."""
    pitch: int
    pitch_range: int
    """Both 0..99; 50 is the variant's own."""
    rate: int
    """Words a minute."""
    tract: float
    """Scales formants and pitch: above 1, a shorter vocal tract."""
    response: tuple[float, ...]
    """Gains of voice and microphone in dB at 0, 150, 500, 1200, 2500, 4500 and 8000 Hz."""
    reverberation: float
    """Seconds in which the room's sound decays by 60 dB."""
    distance_db: float
    """Level of the room's sound under the direct sound's."""
    room: int
    """Seed of the room's reflections."""
    loudness: float
    """The waveform's peak, 0 to 1."""
    noise_floor_db: float
    """Pink noise under the peak."""
    lead: float
    """Seconds by which the lips go ahead of the sound."""
    face: Face


class Utterance(NamedTuple):
    """A clip with its lips and words."""

    waveform: Float[np.ndarray, " sample"]
    """float32 at 16 kHz; its length is a whole number of video frames."""
    lips: UInt8[np.ndarray, "frame 67 67"]
    fps: float
    transcript: str


def draw_speaker(index: int, seed: int) -> Speaker:
    """Speaker number `index` of a seed: even ones men, odd ones women.

    Accent and variant pairs do not repeat among the first 240 speakers, and pitch, rate, vocal
    tract, room and microphone differ besides. Raises InputError for a negative index or seed.
    """
    if index < 0 or seed < 0:
        raise InputError(f"speaker {index} of seed {seed}: give both as 0 or more")
    order = np.random.default_rng((seed, 2**32 - 1))  # shared by the speakers of a seed
    accents = order.permutation(_ACCENTS.split())
    variants = order.permutation(_MALE.split()), order.permutation(_FEMALE.split())
    female, turn = bool(index % 2), index // 2
    names = variants[female]
    accent = accents[turn % len(accents)]  # 8 accents by 15 or 37 variants: coprime
    rng = np.random.default_rng((seed, index))
    u = rng.uniform
    tilt = u(-5, 4)
    response = rng.normal(0, 1.5, len(_BANDS)) + tilt * np.linspace(-0.5, 0.5, len(_BANDS))
    response[0] -= u(6, 20)  # no microphone hears 0 Hz
    return Speaker(
        voice=f"{accent}+{names[turn % len(names)]}",
        pitch=int(np.clip(rng.normal(50, 11), 25, 75)),
        pitch_range=int(rng.integers(30, 75)),
        rate=int(rng.integers(135, 195)),
        tract=u(0.98, 1.1) if female else u(0.92, 1.05),
        response=tuple(float(gain) for gain in response),
        reverberation=u(0.1, 0.4),
        distance_db=u(8, 24),
        room=int(rng.integers(2**31)),
        loudness=u(0.3, 0.9),
        noise_floor_db=u(38, 42),
        lead=u(0.0, 0.03),
        face=draw_face(rng, bearded=0.0 if female else 0.45),
    )


def synthesise_utterance(speaker: Speaker, text: str, *, seed: int | Sequence[int]) -> Utterance:
    """A speaker says a text; the same arguments give the same samples and pixels.

    The clip begins and ends with silence (0.15 to 0.45 s each) and lasts at least 2 s. Raises
    InputError where `speak` does, and for a negative seed.
    """
    if np.min(seed) < 0:
        raise InputError(f"the seed {seed} is negative: give 0 or more")
    rng = np.random.default_rng(seed)
    speech = speak(
        text,
        voice=speaker.voice,
        pitch=int(np.clip(speaker.pitch + rng.integers(-4, 5), 0, 99)),
        pitch_range=speaker.pitch_range,
        rate=int(np.clip(speaker.rate * rng.uniform(0.93, 1.07), 80, 450)),
        seed=int(rng.integers(2**31)),
    )
    rate = speech.sample_rate * speaker.tract
    voice = soxr.resample(speech.waveform, rate, SAMPLE_RATE, quality="HQ").astype(np.float32)
    before, after = rng.uniform(0.15, 0.45, 2)
    spoken = len(voice) / SAMPLE_RATE
    after = max(after, SHORTEST - before - spoken)
    tenths = int(np.ceil((before + spoken + after) * 10))  # 3 frames, 1600 samples
    first = round(before * SAMPLE_RATE)
    dry = np.zeros(tenths * SAMPLE_RATE // 10, np.float32)
    dry[first : first + len(voice)] = voice[: len(dry) - first]

    wet = _record(dry, speaker)
    peak = min(speaker.loudness * 10 ** (rng.uniform(-3, 3) / 20), 0.95)
    waveform = add_noise_floor(wet * (peak / np.abs(wet).max()), speaker.noise_floor_db, rng)

    seconds = tenths / 10
    phonemes = [(name, before + start / speaker.tract) for name, start in speech.phonemes]
    phonemes.append(("", before + spoken))
    level = np.sqrt(np.square(dry, dtype=np.float64).reshape(tenths, -1).mean(1))
    times = (np.arange(3 * tenths) + 0.5) / FPS
    level = np.interp(times, np.arange(tenths) * 0.1 + 0.05, level / level.max())
    moves = articulate(phonemes, seconds, fps=FPS, level=level, lead=speaker.lead)
    return Utterance(waveform.clip(-1, 1), render(moves, speaker.face, rng), FPS, text)


def _record(dry: Float[np.ndarray, " sample"], speaker: Speaker) -> Float[np.ndarray, " sample"]:
    """The sound in a mild room through a microphone; the direct sound is not delayed."""
    size = int(speaker.reverberation * SAMPLE_RATE)
    decay = 10 ** (-3 * np.arange(size) / size)
    echoes = np.random.default_rng(speaker.room).standard_normal(size) * decay
    echoes[: SAMPLE_RATE // 500] = 0  # the first wall is a third of a metre off
    echoes *= 10 ** (-speaker.distance_db / 20) / np.linalg.norm(echoes)
    echoes[0] = 1.0
    length = 2 ** int(np.ceil(np.log2(len(dry) + size)))
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    gains = 10 ** (np.interp(frequencies, _BANDS, speaker.response) / 20)
    spectrum = np.fft.rfft(dry, length) * np.fft.rfft(echoes, length) * gains
    return np.fft.irfft(spectrum, length)[: len(dry)].astype(np.float32)


def synthesise_corpus(
    out: Path,
    *,
    speakers: int,
    minutes: float,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write a corpus: out/{train,valid,test}/SPEAKER/UTTERANCE.flac and .npz, and out/corpus.json.

    About a tenth of the speakers are for validation and a tenth for the test; each speaks for
    minutes / speakers, in utterances of 2 to 6 s. The .npz holds `lips` uint8 (frame, 67, 67),
    `fps` and `transcript`. An interrupted run is taken up where it ended, and gives the same bytes.
    `progress` is called with the fraction done.

    Raises InputError for fewer than 3 speakers, minutes that are not positive, a negative seed, and
    a folder that holds a corpus of other settings.
    """
    if speakers < 3:
        raise InputError(f"{speakers} speakers cannot fill train, valid and test: give 3 or more")
    if not 0 < minutes < float("inf"):
        raise InputError(f"{minutes} minutes of speech: give a positive number")
    if seed < 0:
        raise InputError(f"the seed {seed} is negative: give 0 or more")
    cast = [draw_speaker(index, seed) for index in range(speakers)]
    splits = _splits(speakers)
    names = [f"talker{index:03d}" for index in range(speakers)]
    described = [
        {"name": name, "split": split, "voice": speaker.voice}
        for name, split, speaker in zip(names, splits, cast, strict=True)
    ]
    settings = {"seed": seed, "version": VERSION, "minutes": minutes, "speakers": described}
    _claim(out, settings)
    wanted = minutes * 60 / speakers
    for index, speaker in enumerate(cast):
        folder = out / splits[index] / names[index]
        folder.mkdir(parents=True, exist_ok=True)
        seconds, number = 0.0, 0
        while seconds < wanted:
            seconds += _finish(folder / f"{number:04d}", speaker, (seed, index, number))
            number += 1
            if progress is not None:
                progress((index + min(seconds / wanted, 1.0)) / speakers)


def _splits(speakers: int) -> list[str]:
    """Each speaker's split: the last two tenths, of at least one, are for valid and test."""
    held = max(1, round(speakers / 10))
    return ["train"] * (speakers - 2 * held) + ["valid"] * held + ["test"] * held


def _claim(out: Path, settings: dict[str, object]) -> None:
    """Write corpus.json, or check that the one there says the same."""
    path = out / "corpus.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{path} is no corpus.json of ours: choose an empty folder") from None
        if found != settings:
            raise InputError(f"{out} holds a corpus of other settings: choose an empty folder")
        return
    make_folder(out)
    write_atomically(path, (json.dumps(settings, indent=1) + "\n").encode())


def _finish(path: Path, speaker: Speaker, seed: tuple[int, int, int]) -> float:
    """Write an utterance's two files unless they are there; its seconds."""
    audio, video = path.with_suffix(".flac"), path.with_suffix(".npz")
    if audio.exists() and video.exists():
        return float(soundfile.info(audio).duration)
    rng = np.random.default_rng(seed)
    for attempt in range(20):  # a long sentence of a slow voice is drawn again
        utterance = synthesise_utterance(speaker, draw_sentence(rng), seed=(*seed, attempt))
        seconds = len(utterance.waveform) / SAMPLE_RATE
        if seconds <= LONGEST:
            break
    else:
        raise RuntimeError(f"{speaker.voice} at {speaker.rate} words a minute exceeds {LONGEST} s")
    packed, sound = BytesIO(), BytesIO()
    np.savez_compressed(
        packed,
        lips=utterance.lips,
        fps=np.float32(utterance.fps),
        transcript=np.array(utterance.transcript),
    )
    soundfile.write(sound, utterance.waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    write_atomically(video, packed.getvalue())
    write_atomically(audio, sound.getvalue())
    return seconds
