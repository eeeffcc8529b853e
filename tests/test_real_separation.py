"""The bundled guide tells GRID's speakers apart by their lips. It heard them in other sentences."""

import itertools
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from pyro_avse import separate
from pyro_avse.cli import main
from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.metrics import score

SPEAKERS = ("s1", "s26", "s4")
Voice = tuple[np.ndarray, Lips]


@pytest.fixture
def voices(shared_data: Callable[[str], Path]) -> dict[str, Voice]:
    """A clip of each speaker that nothing learned from, as loud as the others."""
    found = {}
    for utterance in find_utterances(shared_data("grid"), "valid"):
        sound = load_audio(utterance.audio).waveform[:47000]
        lips = load_lips(utterance.lips, fps=utterance.fps)
        found.setdefault(str(utterance.speaker), (0.05 * sound / sound.std(), lips))
    return found


def test_each_voice_comes_with_its_lips(voices: dict[str, Voice]) -> None:
    """By over 2 dB on average; lips exchanged exchange the voices."""
    gains = []
    for one, other in itertools.combinations(SPEAKERS, 2):
        sounds, lips = zip(voices[one], voices[other], strict=True)
        found = separate(sum(sounds), list(lips)).speech
        for j in (0, 1):
            own, wrong = (score(found[j], sounds[k], only=("si_sdr",)).si_sdr for k in (j, 1 - j))
            assert own > wrong, (one, other)
            gains.append(own - score(sum(sounds), sounds[j], only=("si_sdr",)).si_sdr)
    assert np.mean(gains) > 2


def test_a_face_that_does_not_speak_gets_silence(voices: dict[str, Voice]) -> None:
    """Its lips stand still; the other's voice stays with the other."""
    for speaking, silent in itertools.permutations(SPEAKERS, 2):
        sound, lips = voices[speaking]
        face = voices[silent][1]
        still = Lips(np.repeat(face.frames[:1], len(face.frames), 0), face.fps)
        own, nobody = separate(sound, [lips, still]).speech
        assert np.mean(nobody**2) < 0.1 * np.mean(own**2), (speaking, silent)


@pytest.mark.slow
def test_a_video_of_two(
    shared_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two films side by side, each face with its own voice: files are from left to right."""
    videos = shared_data("grid/video")
    films = [videos / "s26_pbbg5p.mpg", videos / "s1_bgia3s.mpg"]
    sounds = [load_audio(film).waveform[:44000] for film in films]
    sounds = [0.05 * sound / sound.std() for sound in sounds]
    with av.open(str(tmp_path / "two.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 288, "yuv420p"
        stream.bit_rate = 8_000_000
        heard = container.add_stream("aac", rate=16000, layout="mono")
        readers = [av.open(str(film)).decode(video=0) for film in films]
        for pair in itertools.islice(zip(*readers, strict=False), 69):
            picture = np.hstack([frame.to_ndarray(format="rgb24") for frame in pair])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
        samples = sum(sounds).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(heard.encode(frame))
        container.mux(heard.encode(None))
    argv = ["pyro-avse", "separate", str(tmp_path / "two.mp4"), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    for j in (0, 1):
        found = soundfile.read(tmp_path / "out" / f"speaker_{j + 1}.wav")[0][:44000]
        own, wrong = (score(found, sounds[k], only=("si_sdr",)).si_sdr for k in (j, 1 - j))
        assert own > wrong + 3
