"""Long videos: their sound is read and written in blocks, on the same time line as if it were held whole."""

import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pyro_avse.data.media import blocks as reading
from pyro_avse.data.media.audio import Audio, count_channels, load_audio
from pyro_avse.data.media.blocks import Blocks, cut_blocks, decode_blocks
from pyro_avse.data.media.copying import copy_pictures
from pyro_avse.data.media.saving import save_together
from pyro_avse.data.media.sound import decode_sound
from pyro_avse.enhancement import long
from pyro_avse.enhancement.long import OVERLAP, open_sound
from pyro_avse.errors import Silence
from pyro_avse.typing import InputError

Make = Callable[..., Path]
RATE = 48000
VOICE = 0.1 * np.random.default_rng(0).standard_normal((2, 7 * RATE))
VOICE[1] *= 0.3
PICTURES = np.random.default_rng(1).integers(0, 256, (25, 48, 64), dtype=np.uint8)


def write_sound(
    path: Path,
    sound: np.ndarray,
    *,
    codec: str = "aac",
    form: str | None = None,
    pictures: int = 25,
    at: float = 0.0,
    tracks: int = 1,
    lost: tuple[float, float] = (0, 0),
    **options: str,
) -> Path:
    """Pictures, and from `at` seconds on a sound (channel, sample), but for what is `lost`; the first of two is 0."""
    with av.open(str(path), "w", format=form, options=options) as media:
        streams: list[Any] = []
        if pictures:
            seen: Any = media.add_stream("mpeg4" if path.suffix != ".webm" else "libvpx", rate=25)
            seen.width, seen.height, seen.pix_fmt = 64, 48, "yuv420p"
        layout = "mono" if len(sound) == 1 else "stereo"
        streams = [media.add_stream(codec, rate=RATE, layout=layout) for _ in range(tracks)]
        for k in range(pictures):
            frame = av.VideoFrame.from_ndarray(PICTURES[k % 25], format="gray")
            frame = frame.reformat(format="yuv420p")
            frame.pts = k
            media.mux(seen.encode(frame))
        if pictures:
            media.mux(seen.encode(None))
        for number, stream in enumerate(streams):
            packets = []
            for start in range(0, sound.shape[1], RATE):
                part = (number if tracks > 1 else 1) * sound[:, start : start + RATE]
                heard = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(part, np.float32), format="fltp", layout=layout
                )
                heard.sample_rate, heard.pts = RATE, round(at * RATE) + start
                heard.time_base = Fraction(1, RATE)
                packets += stream.encode(heard)
            for packet in (*packets, *stream.encode(None)):
                if packet.size and not lost[0] <= float(packet.pts * packet.time_base) < lost[1]:
                    media.mux(packet)
    return path


def joined(blocks: Blocks) -> np.ndarray:
    """The recording that blocks are of, each from where the one before ended."""
    whole = np.zeros(blocks.num_samples, np.float32)
    for (start, stop), block in zip(blocks.spans, blocks.read(), strict=True):
        whole[start:stop] = block.original
    return whole


@pytest.mark.parametrize(
    ("name", "channel", "options"),
    [
        ("a.mp4", "auto", {}),
        ("gap.mp4", "mean", {"lost": (4.0, 4.4)}),
        ("late.mkv", 1, {"at": 0.7}),
        ("mono.mov", "auto", {"sound": VOICE[:1]}),
        ("alone.m4a", "auto", {"pictures": 0, "form": "ipod"}),
        ("alone.mka", "mean", {"pictures": 0, "form": "matroska"}),
    ],
    ids=str,
)
def test_blocks_of_a_video_are_those_of_the_whole(
    tmp_path: Path, name: str, channel: str | int, options: dict[str, Any]
) -> None:
    """The same samples, delay, gaps and channel, whatever is between."""
    path = write_sound(tmp_path / name, **({"sound": VOICE} | options))
    whole = load_audio(path, channel=channel)
    blocks = open_sound(path, channel=channel, block=3)
    assert isinstance(blocks, Blocks)
    assert np.array_equal(joined(blocks), whole.original)
    assert (blocks.delay, blocks.notes) == (whole.delay, whole.notes)
    in_memory = cut_blocks(whole, seconds=3, overlap=OVERLAP)
    assert blocks.spans == in_memory.spans
    for one, other in zip(blocks.read(), in_memory.read(), strict=True):
        assert one.level == pytest.approx(other.level, rel=0.01)
        assert one.peak == pytest.approx(other.peak, rel=0.01)
        inner = slice(1000, -1000)  # resampling has its own edges
        apart = one.waveform * one.peak - other.waveform[: len(one.waveform)] * other.peak
        assert np.abs(apart[inner]).max() < 1e-4


def test_a_length_that_is_not_said_or_not_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Browsers record .webm without one; what is shorter than a block is whole, what says less than it has is cut."""
    path = write_sound(tmp_path / "a.webm", VOICE, codec="libopus", live="1")
    with av.open(str(path)) as container:
        assert container.duration is None
    monkeypatch.setattr(long, "cut_blocks", lambda *_, **__: pytest.fail("held whole"))
    assert isinstance(open_sound(path, block=3), Blocks)
    assert isinstance(open_sound(path, block=30), Audio)
    monkeypatch.undo()
    monkeypatch.setattr(reading, "_may_last", lambda path, seconds: False)
    assert isinstance(open_sound(path, block=3), Blocks)


def test_long_videos_are_refused_as_short_ones(tmp_path: Path) -> None:
    """Silence names another track, and damage its second."""
    path = write_sound(tmp_path / "a.mp4", VOICE, tracks=2)
    for block in (0, 3):
        with pytest.raises(Silence, match="track 0 of 2 is silent: give --track 1"):
            open_sound(path, block=block)
        assert open_sound(path, block=block, track=1).notes[0].endswith("1 is taken")
        with pytest.raises(InputError, match=r"has 2 sound track\(s\), not 2"):
            open_sound(path, block=block, track=2)
    assert count_channels(path) == 2
    silent = write_sound(tmp_path / "b.mp4", 0 * VOICE)
    with pytest.raises(Silence, match=r"b.mp4 is silent, all \d+ samples are 0"):
        open_sound(silent, block=3)
    whole = write_sound(tmp_path / "c.mkv", VOICE)
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut.mkv is damaged at"):
        open_sound(tmp_path / "cut.mkv", block=3)


def peak_memory(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_a_video(tmp_path: Path) -> None:
    """One of 7 s and one of 42 s are read and written in the same memory, where a whole one takes ever more."""
    paths = [
        write_sound(tmp_path / f"{n}.mkv", np.tile(VOICE[:1], n), codec="pcm_s16le") for n in (1, 6)
    ]

    def enhance(path: Path) -> None:
        blocks = decode_blocks(path, seconds=3, overlap=OVERLAP)

        def pieces() -> Iterator[list[np.ndarray]]:
            for block in blocks.read():
                yield [block.original]

        out = path.with_suffix(".mp4")
        save_together([out], pieces(), RATE, pictures=(path, 0))

    enhance(paths[0])  # imports
    short, longer = (peak_memory(partial(enhance, path)) for path in paths)
    assert longer < 1.3 * short
    assert peak_memory(lambda: load_audio(paths[1])) > 2 * longer


@pytest.mark.parametrize(
    ("suffix", "rate"), [(".mp4", 48000), (".mkv", 22050), (".mov", 12345), (".webm", 44100)]
)
def test_a_video_written_in_pieces_is_the_whole_one(tmp_path: Path, suffix: str, rate: int) -> None:
    """Together with sounds of the same pieces."""
    vp8 = {"codec": "libopus"} if suffix == ".webm" else {}
    source = write_sound(tmp_path / f"a{suffix}", VOICE, at=0.5, **vp8)
    sound = VOICE[0, : 5 * rate].astype(np.float32)
    copy_pictures(tmp_path / f"whole{suffix}", source, sound, rate)
    pieces = [[piece, piece] for piece in np.array_split(sound, 7)]
    parts = [tmp_path / f"parts{suffix}", tmp_path / "parts.wav"]
    save_together(parts, iter(pieces), rate, pictures=(source, 0))
    one, other = (decode_sound(tmp_path / f"{name}{suffix}") for name in ("whole", "parts"))
    assert one.delay == other.delay
    assert np.array_equal(one.samples, other.samples)
    assert load_audio(parts[1]).original == pytest.approx(sound)
    with av.open(str(parts[0])) as made, av.open(str(source)) as given:
        packets = [[bytes(p) for p in file.demux(video=0)] for file in (made, given)]
    assert packets[0] == packets[1]


def test_a_video_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither itself nor the sounds that are written beside it, and what failed is what is said."""
    source = write_sound(tmp_path / "a.mp4", VOICE)

    def breaks() -> Iterator[list[np.ndarray]]:
        yield [VOICE[0], VOICE[0]]
        raise RuntimeError("diverged")

    paths = [tmp_path / "o.mp4", tmp_path / "o.wav"]
    with pytest.raises(RuntimeError, match="diverged"):
        save_together(paths, breaks(), RATE, pictures=(source, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
