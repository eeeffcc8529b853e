"""The sound of a container on the recording's own time line: gaps, late starts, priming, and what cannot be."""

from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.signal import correlate

from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.copying import check_video, copy_pictures
from pyro_avse.data.media.sound import decode_sound, place_blocks
from pyro_avse.typing import InputError

Make = Callable[..., Path]
RATE = 16000
VOICE = np.random.default_rng(0).standard_normal(3 * RATE) * 0.1
PICTURES = np.random.default_rng(1).integers(0, 256, (75, 48, 64), dtype=np.uint8)


def drop_sound(source: Path, target: Path, dropped: Callable[[int, float], bool]) -> Path:
    """Copy all packets but those of the sound for which dropped(number, seconds)."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        number = 0
        for packet in old.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                number += 1
                if dropped(number, float(packet.pts * packet.time_base)):
                    continue
            packet.stream = streams[packet.stream.index]
            new.mux(packet)
    return target


def lag(heard: np.ndarray, meant: np.ndarray) -> float:
    """Milliseconds by which `heard` comes later than `meant`."""
    n = min(len(heard), len(meant))
    return (int(correlate(heard[:n], meant[:n], method="fft").argmax()) - (n - 1)) / RATE * 1000


@pytest.fixture
def whole(tmp_path: Path, make_video: Make) -> Path:
    return make_video(tmp_path / "whole.mp4", PICTURES, sound=VOICE)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("every", [0, 6])
def test_gaps_are_silence_and_the_rest_keeps_its_time(
    tmp_path: Path, whole: Path, suffix: str, every: int
) -> None:
    """A fifth of a second lost, or every 6th packet: each tenth of a second stays where it was, and a line says it."""
    path = drop_sound(
        whole,
        tmp_path / f"gap{suffix}",
        (lambda n, t: n % every == 0) if every else (lambda n, t: 1.0 <= t < 1.2),
    )
    audio = load_audio(path)
    heard = (audio.waveform * audio.peak)[round(-audio.delay * RATE) :]  # from the first picture
    assert len(heard) == pytest.approx(len(VOICE), abs=1100)
    for start in (0.1, 1.5, 2.2):
        span = slice(round(start * RATE), round((start + 0.6) * RATE))
        assert abs(lag(heard[span], VOICE[span])) <= 1.0
    (note,) = audio.notes
    assert "\n" not in note
    assert ("times more" in note) == bool(every)
    if not every:
        assert (heard[round(1.1 * RATE) : round(1.15 * RATE)] == 0).all()
        assert "no sound at 1." in note


def test_whole_sound_has_no_gap(whole: Path, tmp_path: Path, make_video: Make) -> None:
    """Neither rounded stamps nor an encoder's delay is one, in any container."""
    for suffix, codec in (
        (".mp4", "mpeg4"),
        (".mkv", "mpeg4"),
        (".avi", "mpeg4"),
        (".ts", "mpeg2video"),
    ):
        path = tmp_path / f"a{suffix}"
        make_video(path, PICTURES[:25], sound=VOICE[:RATE], codec=codec)
        assert decode_sound(path).notes == ()
    assert decode_sound(whole).notes == ()


def test_sound_after_a_gap_is_written_in_its_place(tmp_path: Path, whole: Path) -> None:
    """Also when it is written under the pictures again."""
    path = drop_sound(whole, tmp_path / "gap.mp4", lambda n, t: 1.0 <= t < 1.2)
    sound = decode_sound(path)
    copy_pictures(tmp_path / "o.mp4", path, sound.samples[:, 0], sound.sample_rate)
    again = decode_sound(tmp_path / "o.mp4").samples[:, 0]
    assert lag(again[24000:40000], VOICE[24000:40000]) == 0


def test_blocks_are_placed_by_their_stamps() -> None:
    """By hand: rounding is none, lost blocks are zeros, what comes twice is taken once, stamps may be missing."""
    ones = np.ones((1, 100), np.float32)
    rate, path = 1000, Path("a.mkv")

    def placed(*times: float | None) -> tuple[list[int], list[tuple[float, float]]]:
        gaps: list[tuple[float, float]] = []
        blocks = list(place_blocks([(t, ones) for t in times], rate, path, gaps))
        row = np.concatenate(blocks, axis=1)[0]
        return [len(row), int(row.sum())], gaps

    assert placed(5.0, 5.1, 5.2) == ([300, 300], [])
    assert placed(5.0, 5.104, 5.197, 5.305) == ([400, 400], [])
    size, gaps = placed(5.0, 5.1, 5.5)
    assert (size, gaps) == ([600, 300], [(0.2, 0.5)])
    assert placed(0.0, 0.1, 0.15) == ([250, 250], [])  # 50 ms twice
    assert placed(None, None, None) == ([300, 300], [])
    assert placed(None, 0.1, None) == ([300, 300], [])
    drifting = [
        k * 0.101 for k in range(100)
    ]  # a clock 1 % slow: mended as soon as it is 10 ms off
    size, gaps = placed(*drifting)
    assert size[0] == pytest.approx(100 * 101, abs=11)
    assert len(gaps) == 9
    for times in ((0.0, 0.1, 700.0), (5.0, 5.1, 4.0)):
        with pytest.raises(InputError, match=r"a.mkv is damaged at .*the sound jumps to"):
            placed(*times)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_late_sound_stays_late(tmp_path: Path, make_video: Make, suffix: str) -> None:
    """0.7 s after the pictures: the delay is known, and a copy keeps it."""
    path = make_video(tmp_path / f"late{suffix}", PICTURES, sound=VOICE, sound_at=0.7)
    sound = decode_sound(path)
    assert sound.delay == pytest.approx(0.7, abs=0.07)  # with the encoder's delay
    meant = np.concatenate([np.zeros(round(0.7 * RATE)), VOICE])
    copy_pictures(tmp_path / f"o{suffix}", path, sound.samples[:, 0], RATE)
    for heard in (sound, decode_sound(tmp_path / f"o{suffix}")):
        placed = np.concatenate([np.zeros(round(heard.delay * RATE)), heard.samples[:, 0]])
        assert abs(lag(placed, meant)) <= 1.1  # Matroska counts milliseconds


def test_a_track_is_chosen(tmp_path: Path) -> None:
    """Of two sounds the first unless another is asked for, said in a line; a third there is not."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("flac", rate=RATE, layout="mono") for _ in range(2)]
        for k, stream in enumerate(streams):
            samples = (VOICE * 2 ** (15 - k)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux([*stream.encode(frame), *stream.encode(None)])
    first, second = (load_audio(path, track=k) for k in (0, 1))
    assert first.peak == pytest.approx(2 * second.peak, rel=1e-3)
    assert first.notes == (f"{path} has 2 sound tracks (0 und, 1 und): 0 is taken",)
    with pytest.raises(InputError, match="has 2 sound track"):
        load_audio(path, track=2)


def test_wrong_stamps_take_no_memory() -> None:
    """Ten minutes between any two blocks: refused before a day of silence is made."""
    block = np.ones((1, 100), np.float32)
    timed = ((599.0 * k, block) for k in range(1000))
    with pytest.raises(InputError, match="its sound is nearly nothing but gaps"):
        deque(place_blocks(timed, 1000, Path("a.mkv"), []), maxlen=0)


def test_what_else_a_video_carries_comes_along(tmp_path: Path, make_video: Make) -> None:
    """Title, chapters, a second sound, subtitles; what a container does not take is said before the work."""
    base = make_video(tmp_path / "base.mp4", PICTURES, sound=VOICE)
    source = tmp_path / "a.mp4"
    with av.open(str(base)) as old, av.open(str(source), "w") as new:
        new.metadata["title"] = "A talk"
        new.set_chapters(
            [
                {
                    "id": 1,
                    "start": 0,
                    "end": 1500,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": "one"},
                }
            ]
        )
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        second = new.add_stream("aac", rate=RATE, layout="mono")
        second.metadata["language"] = "deu"
        words = new.add_stream("mov_text")
        words.codec_context.subtitle_header = b"[Script Info]"
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
        frame = av.AudioFrame.from_ndarray(VOICE[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        new.mux([*second.encode(frame), *second.encode(None)])
        packet = av.Packet(b"\x00\x05hello")
        packet.stream, packet.pts, packet.dts, packet.duration = words, 0, 0, 2000
        packet.time_base = Fraction(1, 1000)
        new.mux(packet)
    assert check_video(tmp_path / "o.mp4", source) == []
    for track, loud in ((0, 1), (1, 0)):  # each sound stays where it was
        copy_pictures(tmp_path / "o.mp4", source, 0 * VOICE, RATE, track)
        with av.open(str(tmp_path / "o.mp4")) as made:
            assert [s.type for s in made.streams][:3] == ["video", "audio", "audio"]
            assert made.streams.audio[1].language == "deu"
        assert [decode_sound(tmp_path / "o.mp4", k).samples.any() for k in (0, 1)] == [
            loud == 0,
            loud == 1,
        ]
    (left,) = check_video(tmp_path / "o.mkv", source)
    assert left.endswith("left out, as .mkv does not take it: subtitle (mov_text)")
    copy_pictures(tmp_path / "o.mp4", source, VOICE / 2, RATE)
    with av.open(str(tmp_path / "o.mp4")) as new:
        kinds = sorted(s.type for s in new.streams if s.type != "data")
        assert kinds == ["audio", "audio", "subtitle", "video"]
        assert new.metadata["title"] == "A talk"
        assert [c["metadata"]["title"] for c in new.chapters()] == ["one"]
        assert "deu" in [s.language for s in new.streams.audio]
