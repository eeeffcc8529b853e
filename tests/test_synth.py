"""The synthetic talker: repeatable, laid out as a corpus, its lips in step with its sound."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")

from pyro_avse.data.talker.espeak import speak
from pyro_avse.data.talker.mouth import articulate, draw_face, render
from pyro_avse.data.talker.sentences import draw_sentence
from pyro_avse.data.talker.synth import draw_speaker, synthesise_corpus, synthesise_utterance
from pyro_avse.typing import InputError

TEXT = "My mother bought five blue shoes, and the old farmer waited."


def test_speech_does_not_depend_on_what_was_spoken_before():
    voices = ["en-us", "en-us+f5", "en-us+klatt4", "en-gb-scotland+Alicia", "en-029+m3"]
    first = {voice: speak(TEXT, voice=voice) for voice in voices}
    for voice in reversed(voices):
        speak("Something else altogether.", voice=voice, pitch=70, rate=120)
        again = speak(TEXT, voice=voice)
        np.testing.assert_array_equal(again.waveform, first[voice].waveform)
        assert again.phonemes == first[voice].phonemes


def test_speech_is_the_same_in_another_process():
    code = (
        "import hashlib; from pyro_avse.data.talker.espeak import speak;"
        f"print(hashlib.sha256(speak({TEXT!r}, voice='en+f2').waveform.tobytes()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(hashes) == 1


def test_phonemes_lie_in_order_within_the_sound():
    for rate in (120, 175, 240):
        speech = speak(TEXT, rate=rate)
        starts = np.array([start for _, start in speech.phonemes])
        assert len(starts) > 35
        assert (np.diff(starts) > 0).all()
        assert starts[0] >= 0
        assert starts[-1] <= len(speech.waveform) / speech.sample_rate
        assert {"m", "b", "ʃ"} <= {name for name, _ in speech.phonemes}


def test_phonemes_are_heard_when_they_are_said_to_be():
    """Stressed vowels are louder than pauses, by the events' own times."""
    speech = speak(TEXT)
    ends = [start for _, start in speech.phonemes[1:]] + [speech.phonemes[-1][1]]
    vowels, pauses = [], []
    for (name, start), end in zip(speech.phonemes, ends, strict=True):
        part = speech.waveform[round(start * 22050) : round(end * 22050)]
        if "ˈ" in name:
            vowels.append(np.sqrt(np.mean(part**2)))
        elif name == "" and end - start > 0.1:
            pauses.append(np.sqrt(np.mean(part**2)))
    assert len(vowels) > 6
    assert pauses
    assert min(vowels) > 5 * max(pauses)


def test_mouth_opens_on_vowels_and_closes_on_bilabials_and_pauses():
    phonemes = [
        ("", 0.0),
        ("m", 0.4),
        ("ˈɑː", 0.5),
        ("b", 0.7),
        ("ˈuː", 0.8),
        ("p", 1.0),
        ("", 1.1),
    ]
    moves = articulate(phonemes, 1.6, lead=0.0)
    assert moves.opening.shape == (48,)

    def at(seconds):
        return int(seconds * 30)

    closed = moves.opening[[at(0.2), at(0.45), at(0.75), at(1.05), at(1.5)]]
    assert closed.max() < 0.1
    assert moves.opening[at(0.6)] > 0.6
    assert moves.rounding[at(0.9)] > 0.7 > 0.3 > moves.rounding[at(0.6)]
    assert articulate([], 1.0).opening.max() == 0


def test_mouth_opens_on_vowels_in_speech():
    speech = speak("Papa bought my mother a bamboo map of Alabama.", rate=150)
    seconds = len(speech.waveform) / speech.sample_rate
    moves = articulate(speech.phonemes, seconds, lead=0.0)
    ends = [start for _, start in speech.phonemes[1:]] + [seconds]
    opening = {"bilabial": [], "vowel": []}
    for (name, start), end in zip(speech.phonemes, ends, strict=True):
        frame = min(int((start + end) / 2 * 30), len(moves.opening) - 1)
        kind = "bilabial" if name in {"m", "b", "p"} else "vowel" if "ˈ" in name else None
        if kind:
            opening[kind].append(moves.opening[frame])
    assert len(opening["bilabial"]) >= 7
    assert np.mean(opening["vowel"]) > 0.35
    assert np.mean(opening["bilabial"]) < 0.05


def test_an_open_mouth_is_seen():
    """Pixels about the mouth's middle darken as it opens; without noise a still mouth is still."""
    face = draw_face(np.random.default_rng(3), bearded=0.0)
    moves = articulate([("h", 0.0), ("ˈɒ", 0.5)], 1.0)
    lips = render(moves, face, np.random.default_rng(0)).astype(float)
    assert lips.shape == (30, 67, 67)
    middle = lips[:, round(face.mouth_y) + 1 : round(face.mouth_y) + 5, 29:38].mean((1, 2))
    assert np.corrcoef(middle, moves.opening)[0, 1] < -0.3


def test_utterance_is_repeatable_and_has_no_digital_silence():
    speaker = draw_speaker(3, 0)
    first = synthesise_utterance(speaker, TEXT, seed=5)
    again = synthesise_utterance(speaker, TEXT, seed=5)
    np.testing.assert_array_equal(first.waveform, again.waveform)
    np.testing.assert_array_equal(first.lips, again.lips)
    other = synthesise_utterance(speaker, TEXT, seed=6)
    assert other.lips.shape != first.lips.shape or (other.lips != first.lips).any()

    assert first.transcript == TEXT
    assert first.waveform.dtype == np.float32
    assert first.lips.dtype == np.uint8
    assert first.fps == 30.0
    assert len(first.waveform) * 30 == len(first.lips) * 16000
    assert np.abs(first.waveform).max() <= 1
    quiet = np.sqrt(np.mean(first.waveform[:1600] ** 2))
    assert 33 < 20 * np.log10(np.abs(first.waveform).max() / quiet) < 47
    pairs = (first.waveform[1:] == 0) & (first.waveform[:-1] == 0)
    assert not pairs.any()


def test_a_hundred_speakers_differ():
    speakers = [draw_speaker(index, 0) for index in range(100)]
    assert len({speaker.voice for speaker in speakers}) == 100
    assert len({speaker.face for speaker in speakers}) == 100
    assert speakers[7] == draw_speaker(7, 0) != draw_speaker(7, 1)
    assert any(speaker.face.beard > 0 for speaker in speakers[::2])
    assert not any(speaker.face.beard > 0 for speaker in speakers[1::2])


def test_every_variant_speaks():
    used = {draw_speaker(index, 0).voice.partition("+")[2] for index in range(100)}
    accents = {draw_speaker(index, 0).voice.partition("+")[0] for index in range(100)}
    for variant in sorted(used):
        assert len(speak("Yes.", voice=f"en-us+{variant}").waveform) > 2000
    for accent in sorted(accents):
        assert len(speak("Yes.", voice=accent).waveform) > 2000


def test_sentences_hardly_repeat():
    rng = np.random.default_rng(0)
    sentences = [draw_sentence(rng) for _ in range(3000)]
    assert len(set(sentences)) > 2950
    assert all(5 <= len(sentence.split()) <= 18 for sentence in sentences)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_corpus_layout_and_resumption(tmp_path):
    fractions = []
    settings = {"speakers": 3, "minutes": 0.2, "seed": 1}
    synthesise_corpus(tmp_path / "one", **settings, progress=fractions.append)
    made = contents(tmp_path / "one")
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {name.split("/")[0] for name in made} == {"corpus.json", "train", "valid", "test"}
    seconds = 0.0
    for name in made:
        if not name.endswith(".flac"):
            continue
        path = tmp_path / "one" / name
        waveform, rate = soundfile.read(path)
        assert rate == 16000
        assert waveform.ndim == 1
        assert 2 <= len(waveform) / rate <= 6
        seconds += len(waveform) / rate
        with np.load(path.with_suffix(".npz")) as video:
            assert video["lips"].shape == (len(waveform) * 30 // 16000, 67, 67)
            assert video["lips"].dtype == np.uint8
            assert float(video["fps"]) == 30.0
            assert str(video["transcript"])
    assert seconds >= 12

    (tmp_path / "one" / "train" / "talker000" / "0000.flac").unlink()  # as if interrupted
    kept = tmp_path / "one" / "test" / "talker002" / "0000.flac"
    written = kept.stat().st_mtime_ns
    synthesise_corpus(tmp_path / "one", **settings)
    assert contents(tmp_path / "one") == made
    assert kept.stat().st_mtime_ns == written
    synthesise_corpus(tmp_path / "two", **settings)
    assert contents(tmp_path / "two") == made
    with pytest.raises(InputError, match="other settings"):
        synthesise_corpus(tmp_path / "one", speakers=3, minutes=0.2, seed=2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: speak(" "), "empty"),
        (lambda: speak("..."), "nothing to say"),
        (lambda: speak("hello", voice="xx"), "no voice 'xx'"),
        (lambda: speak("hello", voice="en-us+nobody"), "no voice variant 'nobody'"),
        (lambda: speak("hello", pitch=120), "pitch is 120"),
        (lambda: speak("hello", rate=10), "rate is 10"),
        (lambda: draw_speaker(-1, 0), "0 or more"),
        (lambda: synthesise_utterance(draw_speaker(0, 0), "hello", seed=-1), "negative"),
        (lambda: synthesise_corpus(Path("/x"), speakers=2, minutes=1, seed=0), "3 or more"),
        (lambda: synthesise_corpus(Path("/x"), speakers=3, minutes=0, seed=0), "positive"),
        (lambda: synthesise_corpus(Path("/x"), speakers=3, minutes=1, seed=-1), "negative"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call, says):
    with pytest.raises(InputError, match=says) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r'pip install "pyro_avse\[synth\]"'):
        speak("hello")
