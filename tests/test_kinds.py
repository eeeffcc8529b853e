"""Kinds of files that people have, and that others make: enhanced where there is sound, else refused in one line."""

import os
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from pyro_avse.cli.app import say
from pyro_avse.data.media import container as containers
from pyro_avse.data.media.audio import count_channels, load_audio
from pyro_avse.data.media.blocks import open_blocks
from pyro_avse.data.media.copying import check_video, copy_pictures
from pyro_avse.data.media.level import speech_level
from pyro_avse.data.media.video import read_pictures
from pyro_avse.enhancement import file
from pyro_avse.enhancement.long import open_sound
from pyro_avse.enhancement.ports import open_source
from pyro_avse.files import SOUNDS, VIDEOS
from pyro_avse.typing import InputError

Make = Callable[..., Path]
VOICE = 0.1 * np.random.default_rng(0).standard_normal(16000)
PICTURES = np.random.default_rng(1).integers(0, 256, (10, 48, 64), dtype=np.uint8)


def encode(path: Path, codec: str, form: str) -> None:
    """VOICE by PyAV."""
    with av.open(str(path), "w", format=form) as media:
        stream: Any = media.add_stream(codec, rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(VOICE[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        media.mux([*stream.encode(frame), *stream.encode(None)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {"subtype": "PCM_U8"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "DOUBLE"}),
        ("a.wav", {"subtype": "ALAW"}),
        ("a.wav", {"subtype": "IMA_ADPCM"}),
        ("a.wav", {"format": "RF64"}),
        ("a.wav", {"format": "WAVEX"}),
        ("a.w64", {}),
        ("a.caf", {}),
        ("a.au", {}),
        ("a.mp3", {}),
        ("a.ogg", {}),
        ("UPPER.WAV", {}),
        ("new\nline.wav", {}),
        ("a:b%d*.flac", {}),
        ("-o.flac", {}),
        ("flac named.wav", {"format": "FLAC"}),
    ],
    ids=str,
)
def test_sound_of_any_format(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = tmp_path / name
    soundfile.write(path, VOICE, 16000, **options)
    audio = load_audio(path)
    assert audio.num_samples == pytest.approx(len(VOICE), abs=1024)
    assert np.corrcoef(audio.original[: len(VOICE)], VOICE[: audio.num_samples])[0, 1] > 0.8
    assert count_channels(path) == 1


@pytest.mark.parametrize("codec", ["GSM610", "G721_32"])
def test_sound_in_which_one_cannot_jump(tmp_path: Path, codec: str) -> None:
    """libsndfile reads some codecs from their beginning to their end alone."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(64000) / 16000)
    soundfile.write(tmp_path / "a.wav", tone, 16000, subtype=codec)
    whole = load_audio(tmp_path / "a.wav")
    assert whole.num_samples == pytest.approx(64000, abs=400)
    blocks = open_sound(tmp_path / "a.wav", block=3)
    assert blocks.num_samples == whole.num_samples
    source = open_source(str(tmp_path / "a.wav"), 16000)
    assert sum(len(block) for block in source.blocks) == whole.num_samples


def test_flac_out_of_a_pipe_does_not_say_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.tile(VOICE, 4), 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # "total samples", 36 bits of STREAMINFO
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert load_audio(path).original == pytest.approx(np.tile(VOICE, 4), abs=1e-4)
    assert len(open_sound(path, block=3).spans) == 2  # type: ignore[union-attr]
    with pytest.raises(InputError, match="does not say how long it is"):
        open_source(str(path), 16000)


def test_a_wav_may_hold_any_codec(tmp_path: Path) -> None:
    encode(tmp_path / "a.wav", "adpcm_yamaha", "wav")
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(tmp_path / "a.wav")
    assert load_audio(tmp_path / "a.wav").num_samples >= len(VOICE)
    encode(tmp_path / "b.wav", "libmp3lame", "wav")  # its header counts the encoder's delay
    assert load_audio(tmp_path / "b.wav").notes == ()


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (1e300 * VOICE, r"holds samples as large as \de\+299: scale it down"),
        (1e-310 * VOICE, "is silent"),
    ],
)
def test_what_no_format_of_sound_holds(tmp_path: Path, samples: np.ndarray, said: str) -> None:
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="DOUBLE")
    with pytest.raises(InputError, match=said):
        load_audio(tmp_path / "a.wav")
    with pytest.raises(InputError, match=said):
        open_blocks(tmp_path / "a.wav", seconds=0.5, overlap=0.1)


def test_rates_at_which_nothing_of_speech_is_left(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile(VOICE, 3), 1)
    with pytest.raises(InputError, match="sample rate of 1 Hz"):
        open_sound(tmp_path / "a.wav", block=30)


@pytest.mark.parametrize("suffix", sorted(SOUNDS | VIDEOS))
def test_a_file_of_no_bytes(tmp_path: Path, suffix: str) -> None:
    """FFmpeg opens some by their names, and says 0 Hz and no channels."""
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(InputError, match=r"cannot be read as sound \(0 bytes\)"):
        open_sound(tmp_path / f"a{suffix}", block=30)


def test_a_broken_mp3_is_enhanced_as_far_as_it_goes(tmp_path: Path, capfd: Any) -> None:
    """libmpg123 finds its way again and tells stderr of it; what is missing is said here."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, np.tile(VOICE, 5), 16000)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    path.write_bytes(data[:half])
    (note,) = load_audio(path).notes
    assert note.startswith(f"{path} is not whole: it says it lasts 5.00 s, there are 2.")
    assert load_audio(path, channel=0).num_samples > 30000
    assert open_sound(path, block=3).notes == (note,)
    data[half : half + 500] = bytes(500)
    path.write_bytes(data)
    assert load_audio(path).num_samples > 50000
    assert capfd.readouterr().err == ""


def test_a_hole_in_an_ogg_moves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.tile(VOICE, 3), 16000)
    whole = load_audio(path).original
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    path.write_bytes(data)
    assert load_audio(path).original[-8000:] == pytest.approx(whole[-8000:], abs=0.01)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_the_centre_of_a_sound_file(tmp_path: Path, name: str) -> None:
    """The header names the six channels of a film: music is in front, the voice between."""
    with av.open(str(tmp_path / name), "w") as media:
        codec = "pcm_s16le" if name == "a.wav" else "flac"
        stream: Any = media.add_stream(codec, rate=16000, layout="5.1")
        six = np.stack([VOICE, VOICE[::-1], 0.7 * np.roll(VOICE, 99), *[0 * VOICE] * 3])
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray((32767 * six).astype("<i2").T).reshape(1, -1), "s16", "5.1"
        )
        frame.sample_rate = 16000
        media.mux([*stream.encode(frame), *(p for p in stream.encode(None) if p.size)])
    for audio in (load_audio(tmp_path / name), open_sound(tmp_path / name, block=3)):
        (note,) = audio.notes
        assert "the centre, channel 2, is taken" in note


@pytest.mark.parametrize(
    ("output", "rate", "channels"),
    [("o.mp3", 12345, 1), ("o.m4a", 16000, 16), ("o.flac", 16000, 16), ("o.opus", 16000, 9)],
)
def test_what_a_format_does_not_hold_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, rate: int, channels: int
) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([VOICE] * channels, 1), rate)
    monkeypatch.setattr(file, "load_prior", lambda *_, **__: pytest.fail("the work began"))
    with pytest.raises(InputError, match=r"write \.wav"):
        file.enhance_file(tmp_path / "a.wav", tmp_path / output, channel="all")


def test_one_word_in_a_long_silence_has_its_level() -> None:
    """Not that of what a filter leaves in the silence."""
    word = np.concatenate([VOICE, np.zeros(60 * 16000)])
    assert speech_level(word) == pytest.approx(speech_level(VOICE), rel=0.1)
    assert speech_level(np.eye(1, 32000, 16000)[0]) > 1e-3


def test_a_silent_track_names_another(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams: Any = [container.add_stream("flac", rate=16000, layout="mono") for _ in range(2)]
        for stream, level in zip(streams, (0, 1), strict=True):
            samples = (level * 32767 * VOICE).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(InputError, match="its sound track 0 of 2 is silent: give --track 1"):
        load_audio(path)


def test_a_line_is_a_line_whatever_a_name_holds(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb\x1b[31m\udcff é.wav: 2.00 s")
    assert capsys.readouterr().err == "pyro-avse: a\\nb\\x1b[31m\\udcff é.wav: 2.00 s\n"


def test_flac_in_ogg(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.oga"), "w", format="oga") as media:
        stream: Any = media.add_stream("flac", rate=16000, layout="mono")
        for pcm in np.int16(32767 * VOICE).reshape(4, 1, 4000):
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate = 16000
            media.mux(stream.encode(frame))
        media.mux([packet for packet in stream.encode(None) if packet.size])
    assert load_audio(tmp_path / "a.oga").original == pytest.approx(VOICE, abs=1e-4)


@pytest.mark.parametrize("length", [0, 2**31, 2**32 - 1])
def test_a_wav_that_says_a_wrong_length(tmp_path: Path, length: int) -> None:
    """As recorders leave it that were switched off, and programs that write to a pipe."""
    soundfile.write(tmp_path / "a.wav", VOICE, 16000, subtype="PCM_16")
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.find(b"data") + 4
    data[at : at + 4] = length.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    assert load_audio(tmp_path / "a.wav").num_samples == len(VOICE)


@pytest.mark.parametrize("name", ["a.wav", "a.mp4", "a"])
@pytest.mark.parametrize("kind", ["empty", "text", "dangling", "folder", "pipe", "cut"])
def test_what_is_no_recording(tmp_path: Path, make_video: Make, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("hello\n" * 9)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        whole = make_video(tmp_path / "whole.mp4", PICTURES, sound=VOICE).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])  # its index is lost
    for read in (load_audio, partial(open_sound, block=30), count_channels):
        with pytest.raises(InputError, match=name) as refusal:
            read(path)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ],
    ids=["hls", "hls of an address", "concat", "sdp"],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.ffconcat", "a.sdp", "a.ts"])
def test_playlists_are_not_followed(tmp_path: Path, make_video: Make, text: str, name: str) -> None:
    """Neither to other files nor to addresses."""
    secret = make_video(tmp_path / "secret.ts", PICTURES, sound=VOICE)
    (tmp_path / name).write_text(text.format(secret.name))
    with pytest.raises(InputError, match=name):
        load_audio(tmp_path / name)


def test_giant_pictures_are_refused(
    tmp_path: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the file says, before any is decoded; long thin ones that are small are taken."""
    thin = make_video(tmp_path / "thin.mkv", np.zeros((3, 2, 8192), np.uint8), codec="ffv1")
    assert len(list(read_pictures(thin))) == 3
    small = make_video(tmp_path / "a.mp4", PICTURES, sound=VOICE)
    monkeypatch.setattr(containers, "MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(InputError, match=r"a.mp4 has pictures of 64 x 48 pixels: scale it down"):
        next(read_pictures(small))


def test_narrow_pixels_are_made_square(tmp_path: Path) -> None:
    """Of a picture that players show twice as wide as it is stored."""
    with av.open(str(tmp_path / "a.mp4"), "w") as media:
        stream: Any = media.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        stored = np.tile(np.arange(64, dtype=np.uint8) * 4, (96, 1))
        frame = av.VideoFrame.from_ndarray(stored, format="gray").reformat(format="yuv420p")
        frame.pts = 0
        media.mux([*stream.encode(frame), *stream.encode(None)])
    ((_, grey),) = read_pictures(tmp_path / "a.mp4")
    assert grey().shape == (96, 128)
    assert np.abs(grey()[:, 2:-2:2].astype(int) - stored[:, 1:-1]).max() < 12


@pytest.mark.parametrize("codec", ["libsvtav1", "libx265", "mpeg2video"])
def test_pictures_without_an_encoder_are_copied(
    tmp_path: Path, make_video: Make, codec: str
) -> None:
    """AV1 is decoded by a library that encodes nothing."""
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec}")
    pictures = np.random.default_rng(0).integers(0, 256, (10, 96, 128), dtype=np.uint8)
    source = make_video(tmp_path / "a.mkv", pictures, sound=VOICE, codec=codec)
    out = tmp_path / "o.mkv"
    assert check_video(out, source) == []
    copy_pictures(out, source, VOICE, 16000)
    pairs = zip(read_pictures(source), read_pictures(out), strict=True)
    assert all(np.array_equal(a(), b()) for (_, a), (_, b) in pairs)
