"""Sound comes in at 16 kHz with peak 1 and goes out as it came; what cannot be used is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyro_avse.data.media import audio
from pyro_avse.data.media.audio import audio_from_array, load_audio, restore
from pyro_avse.data.media.saving import check_writable, save_audio, save_pieces
from pyro_avse.typing import InputError

DATA = Path(__file__).parents[2] / "shared" / "data"


def tone(sample_rate: int, seconds: float = 1.0, level: float = 0.3) -> np.ndarray:
    """Two partials under 3.5 kHz, fading in and out, so that any rate from 8 kHz up holds them."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    wave = np.sin(2 * np.pi * 440 * t) + 0.5 * np.sin(2 * np.pi * 3111 * t)
    return (level * wave * np.sin(np.pi * t / seconds) ** 2).astype(np.float32)


@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_any_rate_comes_in_as_the_same_sound(tmp_path: Path, sample_rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(sample_rate), sample_rate, subtype="FLOAT")
    loaded = load_audio(tmp_path / "a.wav")
    expected = tone(16000)
    assert loaded.waveform.dtype == np.float32
    assert np.abs(loaded.waveform).max() == 1.0
    assert loaded.waveform.shape == expected.shape
    assert np.abs(loaded.waveform * loaded.peak - expected).max() < 1e-3 * np.abs(expected).max()
    assert (loaded.sample_rate, loaded.path) == (sample_rate, tmp_path / "a.wav")


@pytest.mark.parametrize("sample_rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("extra", [0, 1, 7])
def test_restore_gives_rate_length_and_level_back(sample_rate: int, extra: int) -> None:
    wave = np.pad(tone(sample_rate, level=20.0), (0, extra))
    loaded = audio_from_array(wave, sample_rate)
    restored = restore(loaded.waveform, loaded)
    assert restored.shape == wave.shape
    assert restored.dtype == np.float32
    assert np.abs(restored - wave).max() < 2e-3 * np.abs(wave).max()
    half = restore(0.5 * loaded.waveform, loaded)
    assert np.allclose(half, 0.5 * restored, atol=1e-5)
    with pytest.raises(InputError, match="restore what was made from it"):
        restore(loaded.waveform[:-1], loaded)


def test_at_16_khz_nothing_changes_but_the_level() -> None:
    wave = tone(16000)
    loaded = audio_from_array(wave, 16000)
    assert loaded.peak == np.abs(wave).max()
    assert np.allclose(restore(loaded.waveform, loaded), wave, atol=1e-7)


@pytest.mark.parametrize("level", [1e-30, 1e-3, 1e30])
def test_no_level_overflows(level: float) -> None:
    wave = tone(44100).astype(np.float64) * level
    loaded = audio_from_array(wave, 44100)
    assert np.abs(loaded.waveform).max() == 1.0
    assert loaded.peak / np.abs(wave).max() == pytest.approx(1, abs=0.05)


def test_channels_are_chosen_by_name_or_index(tmp_path: Path) -> None:
    left, right = tone(16000), -0.5 * tone(16000)[::-1]
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")

    def heard(channel: str | int) -> np.ndarray:
        loaded = load_audio(tmp_path / "a.wav", channel=channel)
        return loaded.waveform * loaded.peak

    assert np.allclose(heard("first"), left, atol=1e-6)
    assert np.allclose(heard(0), left, atol=1e-6)
    assert np.allclose(heard(1), right, atol=1e-6)
    assert np.allclose(heard("1"), right, atol=1e-6)
    assert np.allclose(heard("mean"), (left + right) / 2, atol=1e-6)
    for wrong in (2, -1, "left", "2"):
        with pytest.raises(InputError, match=r"2 channel\(s\), not"):
            heard(wrong)


def test_files_that_are_no_sound_are_refused_in_one_line(tmp_path: Path) -> None:
    def write(name: str, samples: np.ndarray, sample_rate: int = 16000) -> None:
        soundfile.write(tmp_path / name, samples, sample_rate, subtype="FLOAT")

    good = tone(16000)
    broken = good.copy()
    broken[8 * 16] = np.nan
    infinite = good.copy()
    infinite[-1] = np.inf
    write("empty.wav", good[:0])
    write("nan.wav", broken)
    write("inf.wav", infinite)
    write("silent.wav", 0 * good)
    write("short.wav", good[:1023])
    write("ultrasonic.wav", np.sin(np.arange(96000) * 2.5) * np.hanning(96000), 96000)
    (tmp_path / "text.wav").write_text("this is no sound\nat all\n")
    (tmp_path / "nothing.wav").touch()
    (tmp_path / "bare.raw").write_bytes(bytes(9000))
    (tmp_path / "folder.wav").mkdir()
    for name, message in [
        ("missing.wav", "does not exist"),
        ("folder.wav", "is a folder"),
        ("text.wav", "cannot be read as sound"),
        ("nothing.wav", "cannot be read as sound"),
        ("bare.raw", "does not say its sample rate"),
        ("empty.wav", "is empty"),
        ("nan.wav", r"NaN or infinite samples, the first at 0.008 s"),
        ("inf.wav", "NaN or infinite"),
        ("silent.wav", "is silent, all 16000 samples"),
        ("short.wav", "lasts 0.0639 s: give at least 0.064 s"),
        ("ultrasonic.wav", "nothing under 8 kHz"),
        ("long" * 80 + ".wav", "does not exist"),
    ]:
        with pytest.raises(InputError, match=message) as refusal:
            load_audio(tmp_path / name)
        assert str(tmp_path / name) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    write("enough.wav", good[1000:2024])
    assert len(load_audio(tmp_path / "enough.wav").waveform) == 1024


def test_a_cut_flac_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-1, 1, 48000), 16000)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"a\.flac"):
        load_audio(tmp_path / "a.flac")


def test_arrays_that_are_no_mixture_are_refused() -> None:
    good = tone(16000)
    for mixture, sample_rate, message in [
        (np.stack([good, good]), 16000, r"mixture has shape \(2, 16000\)"),
        (good.astype(complex), 16000, "mixture is complex128"),
        (good > 0, 16000, "mixture is bool"),
        (good, 0, "sample rate 0"),
        (good * np.nan, 16000, "mixture holds NaN"),
        (good[:0], 16000, "mixture is empty"),
        (good * 0, 16000, "mixture is silent"),
        (good[:100], 16000, "mixture lasts"),
    ]:
        with pytest.raises(InputError, match=message):
            audio_from_array(mixture, sample_rate)
    integers = (good * 32767).astype(np.int16)
    assert audio_from_array(integers, 16000).peak == np.abs(integers).max()


@pytest.mark.parametrize(
    ("name", "subtype", "error"), [("a.wav", "FLOAT", 0.0), ("b.FLAC", "PCM_24", 2.0**-23)]
)
def test_what_is_saved_is_what_is_read(
    tmp_path: Path, name: str, subtype: str, error: float
) -> None:
    wave = tone(44100)
    save_audio(tmp_path / name, wave, 44100)
    assert soundfile.info(tmp_path / name).subtype == subtype
    read, sample_rate = soundfile.read(tmp_path / name, dtype="float32")
    assert sample_rate == 44100
    assert np.abs(read - wave).max() <= error
    assert [path.name for path in tmp_path.iterdir()] == [name]
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / name).stat().st_mode == plain.stat().st_mode, "the umask was ignored"


def test_other_formats_are_libsndfiles_default(tmp_path: Path) -> None:
    save_audio(tmp_path / "a.ogg", tone(16000), 16000)
    assert soundfile.info(tmp_path / "a.ogg").subtype == "VORBIS"


@pytest.mark.parametrize("suffix", [".m4a", ".opus"])
@pytest.mark.parametrize("sample_rate", [11000, 16000, 44100])
def test_sound_is_encoded_in_step(tmp_path: Path, suffix: str, sample_rate: int) -> None:
    """AAC and Opus, in pieces: the same sound at the same time, at a rate that the codec has."""
    wave = tone(sample_rate)
    path = tmp_path / f"a{suffix}"
    save_pieces(path, np.array_split(wave, 3), sample_rate)
    heard = load_audio(path)
    read, meant = heard.waveform * heard.peak, tone(16000)
    n = min(len(read), len(meant))
    assert abs(len(read) - len(meant)) < 1200
    assert abs(int(np.correlate(read[4000:12000], meant[4200:11800]).argmax()) - 200) <= 1
    assert np.corrcoef(read[:n], meant[:n])[0, 1] > 0.99
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_saving_replaces_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    save_audio(path, tone(16000), 16000)
    before = path.read_bytes()

    def disk_full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audio.os, "fsync", disk_full)
        with pytest.raises(InputError, match=r"a.wav cannot be written: No space left"):
            save_audio(path, tone(8000), 8000)
    with pytest.raises(InputError, match="NaN"):
        save_audio(path, tone(16000) * np.nan, 16000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    save_audio(path, tone(8000), 8000)
    assert soundfile.info(path).samplerate == 8000


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "store" / "a.wav")
    save_audio(tmp_path / "link.wav", tone(16000), 16000)
    assert (tmp_path / "link.wav").is_symlink()
    assert soundfile.info(tmp_path / "store" / "a.wav").frames == 16000


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    for name, message in [
        ("a.txt", "names no sound format"),
        ("a", "names no sound format"),
        ("a.raw", "names no sound format"),
        ("absent/a.wav", "make the folder .*absent first"),
        ("file/a.wav", "make the folder"),
        ("folder.wav", "it is a folder"),
        ("long" * 80 + ".wav", "File name too long"),
    ]:
        for refuse in (check_writable, lambda path: save_audio(path, tone(16000), 16000)):
            with pytest.raises(InputError, match=message) as refusal:
                refuse(tmp_path / name)
            assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="cannot hold 96000 Hz"):
        save_audio(tmp_path / "a.mp3", tone(96000), 96000)
    check_writable(tmp_path / "a.wav")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        check_writable(tmp_path / "a.wav")
    tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_folder_that_holds_no_files_is_refused() -> None:
    with pytest.raises(InputError, match=r"a\.wav cannot be written"):
        check_writable("/proc/a.wav")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_real_recordings_load() -> None:
    clip = load_audio(DATA / "grid/valid/s1/bbaf5a.flac")
    assert clip.sample_rate == 16000
    assert clip.num_samples == len(clip.waveform)
    assert 2.9 < clip.num_samples / 16000 < 3.1
