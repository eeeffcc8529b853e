"""Further kinds of files: eight channels, broadcasts that change on the way, glued sounds, names that are wrong."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from scipy.signal import correlate

from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.copying import check_video, copy_pictures
from pyro_avse.data.media.saving import save_together
from pyro_avse.data.media.sound import decode_sound
from pyro_avse.data.media.video import read_timing
from pyro_avse.enhancement.long import open_sound
from pyro_avse.typing import InputError

RATE = 48000
VOICE = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE)
PICTURES = np.random.default_rng(1).integers(0, 256, (75, 48, 64), dtype=np.uint8)


def write(
    path: Path,
    sound: np.ndarray,
    layout: str,
    codec: str,
    rate: int = RATE,
    at: float = 0.0,
    seen_as: str = "mpeg2video",
) -> Path:
    """Three seconds of pictures and a sound (channel, sample), both from `at` seconds on."""
    options = {"avoid_negative_ts": "disabled"} if at < 0 else {}
    with av.open(str(path), "w", options=options) as media:
        seen: Any = media.add_stream(seen_as, rate=25)
        seen.width, seen.height, seen.pix_fmt, seen.gop_size = 64, 48, "yuv420p", 5
        heard: Any = media.add_stream(codec, rate=rate, layout=layout)
        for number, picture in enumerate(PICTURES):
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = number + round(25 * at), Fraction(1, 25)
            media.mux(seen.encode(frame))
        media.mux(seen.encode(None))
        interleaved = np.ascontiguousarray(sound.T, np.float32).reshape(1, -1)
        samples = av.AudioFrame.from_ndarray(interleaved, "flt", layout)
        samples.sample_rate, samples.time_base = rate, Fraction(1, rate)
        samples.pts = round(at * rate)
        media.mux([*heard.encode(samples), *(p for p in heard.encode(None) if p.size)])
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.m4a", "a.opus"])
def test_eight_channels(tmp_path: Path, name: str) -> None:
    """PyAV reads and writes beyond the eighth where each channel lies on its own; a film's centre is taken."""
    eight = np.zeros((8, len(VOICE)))
    eight[2] = VOICE
    path = write(tmp_path / "film.mkv", eight, "7.1", "flac")
    audio = load_audio(path)
    assert audio.original == pytest.approx(VOICE, abs=1e-3)
    assert audio.notes == (f"{path} has 8 channels: the centre, channel 2, is taken",)
    pictures = (path, 0) if name.endswith(("mkv", "mp4")) else None
    save_together([tmp_path / name], [(eight.T,)], RATE, 8, pictures)
    loud = np.abs(decode_sound(tmp_path / name).samples[: 2 * RATE]).max(axis=0)
    assert loud.argmax() == 2
    assert np.sort(loud)[-2] < 0.1 * loud.max()


@pytest.mark.parametrize(
    ("before", "after", "rates"),
    [
        ("stereo", "5.1", (48000, 48000)),
        ("5.1", "stereo", (48000, 48000)),
        ("stereo", "stereo", (44100, 48000)),
    ],
)
def test_a_broadcast_that_changes_on_the_way(
    tmp_path: Path, before: str, after: str, rates: tuple[int, int]
) -> None:
    """Another programme, with other channels or another rate, is turned into what came first, at its time."""
    parts = []
    for k, (layout, rate) in enumerate(zip((before, after), rates, strict=True)):
        voice = VOICE[: 3 * rate]
        sound = np.stack([voice] * (2 if layout == "stereo" else 6))
        path = write(tmp_path / f"{k}.ts", sound, layout, "ac3", rate, at=3 * k)
        parts.append(path.read_bytes())
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    audio = load_audio(path)
    (note,) = [note for note in audio.notes if "change" in note]
    assert re.search(r"channels or sample rate change at (2\.9|3\.0)\d s: turned into", note)
    seconds = len(audio.original) / audio.sample_rate
    assert seconds == pytest.approx(6, abs=0.1)
    loud = [np.abs(audio.original[s * audio.sample_rate :][:8000]).max() for s in (1, 4)]
    assert 0.3 < loud[1] / loud[0] < 3
    for suffix in (".mkv", ".mp4"):  # some of their pictures have the same stamps
        assert check_video(tmp_path / f"o{suffix}", path) == []
        copy_pictures(tmp_path / f"o{suffix}", path, audio.original, audio.sample_rate)
        with av.open(str(tmp_path / f"o{suffix}")) as made:
            assert sum(1 for packet in made.demux(video=0) if packet.size) == 150


@pytest.mark.parametrize("block", [0, 3])
def test_a_video_named_mp3(tmp_path: Path, block: float) -> None:
    """libmpg123 would find silence in it; a .mp3 with something before its beginning is one."""
    path = write(tmp_path / "a.mkv", np.tile(VOICE, 2)[None], "mono", "flac")
    named = path.rename(tmp_path / "a.mp3")
    assert open_sound(named, block=block).num_samples == 2 * len(VOICE)
    soundfile.write(tmp_path / "b.mp3", VOICE, RATE)
    (tmp_path / "c.mp3").write_bytes(bytes(1000) + (tmp_path / "b.mp3").read_bytes())
    for name in ("b.mp3", "c.mp3"):
        assert load_audio(tmp_path / name).num_samples == pytest.approx(len(VOICE), abs=3000)


@pytest.mark.parametrize("block", [0, 3])
def test_an_ogg_of_several(tmp_path: Path, block: float) -> None:
    """As recorded radio is: each counts from 0, and one follows the other."""
    soundfile.write(tmp_path / "a.ogg", VOICE, RATE)
    (tmp_path / "two.ogg").write_bytes(2 * (tmp_path / "a.ogg").read_bytes())
    audio = open_sound(tmp_path / "two.ogg", block=block)
    assert audio.num_samples == pytest.approx(2 * len(VOICE), abs=3000)
    assert audio.notes == ()


@pytest.mark.parametrize("block", [0, 3])
def test_what_libsndfile_breaks_off(
    tmp_path: Path, block: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does some .opus in their midst: PyAV reads it."""

    class Breaks(soundfile.SoundFile):  # type: ignore[misc]
        def read(self, *arguments: Any, **options: Any) -> np.ndarray:
            raise soundfile.LibsndfileError(3)

    save_together([tmp_path / "a.opus"], [(np.tile(VOICE, 2),)], RATE)
    monkeypatch.setattr(soundfile, "SoundFile", Breaks)
    audio = open_sound(tmp_path / "a.opus", block=block)
    assert audio.num_samples == pytest.approx(2 * len(VOICE), abs=1000)


@pytest.mark.parametrize("block", [0, 3])
def test_packets_that_cannot_be_decoded(tmp_path: Path, block: float) -> None:
    """Players go on after a few: silence stands there, in time. Sound of which most is spoilt is refused."""
    whole = write(tmp_path / "whole.mp4", np.tile(VOICE, 2)[None], "mono", "aac")
    heard = decode_sound(whole).samples[:, 0]
    spoil(whole, tmp_path / "few.mp4", range(70, 73))
    audio = open_sound(tmp_path / "few.mp4", block=block)
    assert audio.num_samples == len(heard)
    found = decode_sound(tmp_path / "few.mp4").samples[:, 0]
    assert np.all(found[71 * 1024 : 72 * 1024] == 0)
    assert found[: 68 * 1024] == pytest.approx(heard[: 68 * 1024])
    alike = np.corrcoef(found[-60 * 1024 :], heard[-60 * 1024 :])[0, 1]  # AAC makes some noise up
    assert alike > 0.98
    assert f"{tmp_path / 'few.mp4'}: 3 packet(s) of its sound cannot be decoded" in audio.notes
    for number, spoilt in enumerate((range(1, 100), range(20, 120))):
        path = spoil(whole, tmp_path / f"{number}.mp4", spoilt)
        with pytest.raises(InputError, match=r"mp4 is damaged at [0-9.]+ s"):
            open_sound(path, block=block)


def spoil(whole: Path, path: Path, numbers: range) -> Path:
    """The same video, some of whose packets of sound are overwritten."""
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        into = {s.index: new.add_stream_from_template(s) for s in old.streams}
        count = 0
        for packet in old.demux():
            if not packet.size:
                continue
            index = packet.stream.index
            if packet.stream.type == "audio" and (count := count + 1) - 1 in numbers:
                spoilt = av.Packet(b"\xff" * packet.size)
                spoilt.pts, spoilt.dts, spoilt.duration = packet.pts, packet.dts, packet.duration
                spoilt.time_base = packet.time_base
                packet = spoilt
            packet.stream = into[index]
            new.mux(packet)
    return path


def test_pictures_before_time_0(tmp_path: Path) -> None:
    """H.264's in Matroska have no time stamps for a reader: it is said before any work that they cannot be copied."""
    path = tmp_path / "early.mkv"
    write(path, VOICE[None], "mono", "flac", at=-0.5, seen_as="libx264")
    for suffix in (".mkv", ".mp4"):
        with pytest.raises(InputError, match=r"have no time stamps: end it in \.wav"):
            check_video(tmp_path / f"o{suffix}", path)
    assert load_audio(path).num_samples == pytest.approx(len(VOICE), abs=5000)


@pytest.mark.parametrize("name", ["a.ts", "a.mpg"])
def test_two_recordings_joined(tmp_path: Path, name: str) -> None:
    """Each counts from its own beginning: the second follows the first, its pictures and its sound alike."""
    one = write(tmp_path / f"one_{name}", VOICE[None], "mono", "mp2")
    path = tmp_path / name
    path.write_bytes(2 * one.read_bytes())
    alone = load_audio(one).original
    both = load_audio(path).original
    second = RATE + np.argmax(correlate(both[RATE:], alone[: RATE // 2], mode="valid"))
    times = read_timing(path).times
    assert len(times) == 150
    assert times[75] - times[0] == pytest.approx(second / RATE, abs=0.03)
    assert check_video(tmp_path / "o.mp4", path) == []
    copy_pictures(tmp_path / "o.mp4", path, both, RATE)
    assert read_timing(tmp_path / "o.mp4").times == pytest.approx(times, abs=0.03)
