"""Sound and pictures of videos on one clock; damage is refused with its second; pictures are copied as they are."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from scipy.signal import correlate

from pyro_avse.data.lips.watch import watch
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.video import copy_pictures, read_pictures, read_sound, read_timing
from pyro_avse.typing import InputError

Make = Callable[..., Path]
CHIRP = 0.5 * np.sin(2 * np.pi * (200 + 300 * np.arange(32000) / 16000) * np.arange(32000) / 16000)


def bars(n: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Picture k has its left 4 + k columns bright."""
    return np.stack(
        [np.tile(np.where(np.arange(width) < 4 + k, 220, 30), (height, 1)) for k in range(n)]
    ).astype(np.uint8)


def lag(heard: np.ndarray, meant: np.ndarray) -> int:
    """Samples by which `heard` comes later than `meant`."""
    n = min(len(heard), len(meant))
    return int(correlate(heard[:n], meant[:n]).argmax()) - (n - 1)


def pictures_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def test_sound_and_pictures_share_a_clock(tmp_path: Path, make_video: Make) -> None:
    """Pictures 25 times a second from 0, each itself; the sound without the encoder's delay."""
    path = make_video(tmp_path / "a.mp4", bars(50), sound=CHIRP)
    samples, rate = read_sound(path)
    assert (rate, samples.shape[1], samples.dtype) == (16000, 1, np.float64)
    assert len(samples) == len(CHIRP)
    assert lag(samples[:, 0], CHIRP) == 0
    shown = [(time, grey()) for time, grey in read_pictures(path)]
    assert [time for time, _ in shown] == pytest.approx([k / 25 for k in range(50)])
    widths = [int((picture[20] > 125).sum()) for _, picture in shown]
    assert widths == [4 + k for k in range(50)]
    timing = read_timing(path)
    assert (timing.fps, timing.note, timing.shown.tolist()) == (25.0, None, list(range(50)))
    assert len(load_audio(path).waveform) == len(samples)


@pytest.mark.parametrize("fps", [24000 / 1001, 29.97, 30.0])
def test_time_stamps_rounded_to_milliseconds_are_a_constant_rate(
    tmp_path: Path, make_video: Make, fps: float
) -> None:
    """Matroska rounds 33.3 ms to 33 or 34: every picture is still one frame, at the rate they come at."""
    times = np.arange(40) / fps
    timing = read_timing(make_video(tmp_path / "a.mkv", bars(40), times))
    assert timing.shown.tolist() == list(range(40))
    assert timing.note is None
    assert len(timing.times) / timing.fps == pytest.approx(40 / fps, abs=0.03)


def test_a_variable_rate_is_held_by_its_time_stamps(tmp_path: Path, make_video: Make) -> None:
    """Every frame of the constant rate is the picture that shows then, by a search of its own."""
    steps = np.array([0.04] * 10 + [0.2] + [0.04] * 10 + [0.08] * 4 + [0.04] * 15)
    times = np.concatenate([[0.0], np.cumsum(steps)])
    timing = read_timing(make_video(tmp_path / "a.mkv", bars(len(times)), times))
    assert timing.fps == pytest.approx(25.0)
    assert len(timing.shown) == round((times[-1] + 0.04) * 25)
    for k, picture in enumerate(timing.shown):
        assert picture == max(i for i, t in enumerate(times) if t <= k * 0.04 + 1e-9)
    assert timing.note is not None
    assert "varies from 5 to 25 fps" in timing.note


def test_streams_that_start_apart_are_aligned(tmp_path: Path, make_video: Make) -> None:
    """Sound that starts 0.12 s after the pictures: the first three are dropped; 0.5 s before them has none there."""
    late = make_video(tmp_path / "late.mkv", bars(50), sound=CHIRP, sound_at=0.12)
    timing = read_timing(late)
    assert timing.times[0] == pytest.approx(
        -0.12, abs=0.065
    )  # the encoder's delay is in the stamps
    first = int(np.searchsorted(timing.times, 1e-6)) - 1
    assert timing.shown.tolist() == list(range(first, 50))
    assert first in (1, 2, 3)
    assert "apart" in (timing.note or "")
    times = 0.5 + np.arange(40) / 25
    early = make_video(tmp_path / "early.mkv", bars(40), times, sound=CHIRP)
    timing = read_timing(early)
    first = int(np.ceil(timing.times[0] * 25 - 1e-6))
    assert timing.mask is not None
    assert timing.mask.tolist() == [False] * first + [True] * (len(timing.shown) - first)
    assert timing.shown[first:].tolist() == list(range(40))


def test_pictures_stand_upright(tmp_path: Path, make_video: Make) -> None:
    """A telephone's pictures lie on their side and say by how much a player is to turn them."""
    pictures = bars(2)
    pictures[:, :10] = 128  # a grey stripe along the upper edge
    for rotation, turned in (
        (0, pictures[0]),
        (90, np.rot90(pictures[0])),
        (-90, np.rot90(pictures[0], -1)),
    ):
        path = make_video(tmp_path / f"{rotation}.mp4", pictures, rotation=rotation)
        grey = next(grey for _, grey in read_pictures(path))()
        assert grey.shape == turned.shape
        assert np.abs(grey.astype(int) - turned).mean() < 4


def test_missing_streams_are_refused(tmp_path: Path, make_video: Make) -> None:
    """A video without sound, sound without pictures, a folder, nothing, and text."""
    silent = make_video(tmp_path / "silent.mp4", bars(5))
    heard = tmp_path / "heard.mkv"
    with av.open(str(heard), "w") as container:
        stream = container.add_stream("flac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((CHIRP[None] * 2**15).astype(np.int16), layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (tmp_path / "text.mp4").write_text("this is no video\n" * 99)
    (tmp_path / "folder.mp4").mkdir()
    for read, name, message in [
        (read_sound, silent, "silent.mp4 has no sound: give"),
        (read_timing, heard, "heard.mkv has no pictures: give"),
        (read_timing, "text.mp4", "cannot be read as a video .*whole"),
        (read_sound, "absent.mp4", "cannot be read as a video .*check the path"),
        (load_audio, "folder.mp4", "is a folder"),
    ]:
        with pytest.raises(InputError, match=message) as refusal:
            read(tmp_path / name)  # type: ignore[operator]
        assert "\n" not in str(refusal.value)
    assert len(read_sound(heard)[0]) == len(CHIRP)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_damage_is_refused_with_its_second(tmp_path: Path, make_video: Make, suffix: str) -> None:
    """Bytes overwritten half-way, and a file that breaks off: no half a clip is taken for a whole one."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 96, 128), dtype=np.uint8)
    path = make_video(tmp_path / f"whole{suffix}", noise, sound=CHIRP)
    whole = path.read_bytes()
    assert len(read_timing(path).times) == 50
    n = len(whole)
    damaged = whole[: n // 2] + np.random.default_rng(1).bytes(n // 4) + whole[3 * n // 4 :]
    for name, content in (("damaged", damaged), ("cut", whole[: n // 2])):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"damaged at \d\.\d\d s|cannot be read as a video"
        ) as refusal:
            read_timing(path)
        assert "\n" not in str(refusal.value)


def test_real_damage(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    """An MPEG-1 clip of GRID overwritten half-way is enhanced without what is lost, at its time; one cut is refused.

    Where all is asked for, as for training, the first is refused too.
    """
    clip = read_sound(shared_data("grid/video/s1_bgaa7s.mpg"))[0]
    whole = shared_data("grid/video/s1_bgaa7s.mpg").read_bytes()
    n = len(whole)
    for name, content in (
        (
            "random",
            whole[: n // 2] + np.random.default_rng(0).bytes(20000) + whole[n // 2 + 20000 :],
        ),
        ("zeros", whole[: n // 2] + bytes(60000) + whole[n // 2 + 60000 :]),
        ("cut", whole[: n // 2]),
    ):
        (tmp_path / f"{name}.mpg").write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}.mpg is damaged at 1\.[45]\d s"):
            read_timing(tmp_path / f"{name}.mpg")
        if name == "cut":
            with pytest.raises(InputError, match=r"cut.mpg is damaged at 1\.[45]\d s"):
                watch(tmp_path / "cut.mpg", whole=False)
            continue
        sound = load_audio(tmp_path / f"{name}.mpg")
        assert "no sound at 1.46-1." in sound.notes[0]
        assert sound.notes[1].endswith(": 1 packet(s) of its sound cannot be decoded")
        assert sound.original[-40000:] == pytest.approx(clip[-40000:, 0], abs=1e-3)
        seen = watch(tmp_path / f"{name}.mpg", whole=False)
        assert seen.lips.frames.shape[0] == 75
        assert any("cannot be decoded, the first at 1.4" in note for note in seen.notes)


def test_real_sound_agrees_with_the_stored_one(shared_data: Callable[[str], Path]) -> None:
    """GRID's FLAC files were resampled from the same clips: no sample's delay, and a correlation of 0.999."""
    for clip in sorted(shared_data("grid/video").glob("*.mpg")):
        speaker, name = clip.stem.split("_")
        stored, _ = soundfile.read(next(shared_data("grid").glob(f"*/{speaker}/{name}.flac")))
        heard = load_audio(clip).waveform
        n = min(len(heard), len(stored))
        assert abs(len(heard) - len(stored)) <= 1
        assert lag(heard, stored) == 0
        assert np.corrcoef(heard[:n], stored[:n])[0, 1] > 0.999


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_pictures_are_copied_and_the_sound_replaced(
    tmp_path: Path, make_video: Make, suffix: str
) -> None:
    """Every decoded picture is the same to the bit, at the same time; the new sound is in step, also at 11 kHz."""
    source = make_video(tmp_path / "a.mp4", bars(50), sound=CHIRP, rotation=90)
    out = tmp_path / f"b{suffix}"
    rate = 11000  # none that AAC has
    spoken = (
        np.sin(2 * np.pi * (100 + 150 * np.arange(2 * rate) / rate) * np.arange(2 * rate) / rate)
        / 3
    )
    copy_pictures(out, source, spoken, rate)
    assert [p.tobytes() for p in pictures_of(out)] == [p.tobytes() for p in pictures_of(source)]
    assert read_timing(out).times == pytest.approx(read_timing(source).times, abs=1.1e-3)
    assert next(read_pictures(out))[1]().shape == (64, 48)  # still turned
    samples, written = read_sound(out)
    assert written == 48000
    meant = np.interp(np.arange(2 * 48000) / 48000, np.arange(2 * rate) / rate, spoken)
    assert abs(lag(samples[:, 0], meant)) <= 1
    assert np.corrcoef(samples[: len(meant), 0], meant)[0, 1] > 0.99
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", out.name]


def test_mpeg_of_grid_is_copied(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    """MPEG-1 pictures in .mp4 and .mkv, whose first two time stamps are the same in the .mpg."""
    source = shared_data("grid/video/s1_bgaa7s.mpg")
    samples, rate = read_sound(source)
    for name in ("a.mp4", "a.mkv"):
        copy_pictures(tmp_path / name, source, samples[:, 0], rate)
        assert [p.tobytes() for p in pictures_of(tmp_path / name)] == [
            p.tobytes() for p in pictures_of(source)
        ]
        timing = read_timing(tmp_path / name)
        assert (timing.fps, len(timing.shown), timing.note) == (25.0, 75, None)
        assert lag(read_sound(tmp_path / name)[0][:, 0], samples[:, 0]) == 0


def test_sound_that_starts_late_is_replaced_in_its_place(tmp_path: Path, make_video: Make) -> None:
    """The sound's place against the pictures is the source's."""
    source = make_video(tmp_path / "a.mkv", bars(50), sound=CHIRP, sound_at=0.2)
    copy_pictures(tmp_path / "b.mkv", source, read_sound(source)[0][:, 0], 16000)
    before, after = read_timing(source).times[0], read_timing(tmp_path / "b.mkv").times[0]
    assert before < -0.1
    assert after == pytest.approx(before, abs=0.002)


def test_a_copy_that_fails_leaves_the_old_file(tmp_path: Path, make_video: Make) -> None:
    """A container that cannot hold the pictures, or no container: one line, nothing written or lost."""
    source = make_video(tmp_path / "a.mp4", bars(5))
    (tmp_path / "b.webm").write_text("old")
    for path, message in [
        (tmp_path / "b.webm", r"b.webm cannot hold the pictures of .*a.mp4 .*: end it in .mkv"),
        (tmp_path / "b.avi", r"b.avi: pictures are copied into .mp4, .*: end it in one of these"),
        (tmp_path / "none" / "b.mp4", "make the folder"),
    ]:
        with pytest.raises(InputError, match=message):
            copy_pictures(path, source, CHIRP, 16000)
    assert (tmp_path / "b.webm").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.webm"]
