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

from pyro_avse.data.media import container as containers
from pyro_avse.data.media.audio import count_channels, load_audio
from pyro_avse.data.media.copying import check_video, copy_pictures
from pyro_avse.data.media.video import read_pictures
from pyro_avse.enhancement.long import open_sound
from pyro_avse.typing import InputError

Make = Callable[..., Path]
VOICE = 0.1 * np.random.default_rng(0).standard_normal(16000)
PICTURES = np.random.default_rng(1).integers(0, 256, (10, 48, 64), dtype=np.uint8)


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


def test_flac_in_ogg(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.oga"), "w", format="oga") as file:
        stream: Any = file.add_stream("flac", rate=16000, layout="mono")
        for pcm in np.int16(32767 * VOICE).reshape(4, 1, 4000):
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate = 16000
            file.mux(stream.encode(frame))
        file.mux([packet for packet in stream.encode(None) if packet.size])
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
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream: Any = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        stored = np.tile(np.arange(64, dtype=np.uint8) * 4, (96, 1))
        frame = av.VideoFrame.from_ndarray(stored, format="gray").reformat(format="yuv420p")
        frame.pts = 0
        file.mux([*stream.encode(frame), *stream.encode(None)])
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
