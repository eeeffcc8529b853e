"""The channel with the voice is taken, and said; what cancels or is silent is noticed."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.media.blocks import open_blocks
from pyro_avse.data.media.channels import Choice, choose
from pyro_avse.typing import InputError

RNG = np.random.default_rng(0)
VOICE = 0.1 * RNG.standard_normal(32000)
HISS = 1e-4 * RNG.standard_normal(32000)
OTHER = 0.1 * RNG.standard_normal(32000)


def write(path: Path, *channels: np.ndarray) -> Path:
    soundfile.write(path, np.stack(channels, axis=1), 16000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("channels", "taken", "note"),
    [
        ((VOICE, VOICE), VOICE, None),
        ((0 * VOICE, VOICE), VOICE, "channel 0 of 2 is silent: channel 1 is taken"),
        (
            (HISS, VOICE),
            VOICE,
            "channel 0 of 2 is 60 dB fainter than channel 1: channel 1 is taken",
        ),
        ((VOICE, 0 * VOICE), VOICE, "has 2 channels: channel 0 is taken"),
        ((VOICE, OTHER), VOICE, "has 2 channels: channel 0 is taken"),
        ((VOICE, -VOICE), VOICE, "has 2 channels: channel 0 is taken"),
        ((0 * VOICE, HISS, VOICE), VOICE, "channel 0 of 3 is silent: channel 2 is taken"),
    ],
)
def test_the_live_channel_is_taken(
    tmp_path: Path, channels: tuple[np.ndarray, ...], taken: np.ndarray, note: str | None
) -> None:
    """From a file as from its blocks."""
    path = write(tmp_path / "a.wav", *channels)
    whole, blocks = load_audio(path), open_blocks(path, seconds=1.5, overlap=0.1)
    assert np.allclose(whole.waveform * whole.peak, taken, atol=1e-6)
    assert np.allclose(next(blocks.read()).original, taken[: blocks.spans[0][1]], atol=1e-6)
    assert blocks.notes == whole.notes
    if note is None:
        assert whole.notes == ()
    else:
        assert len(whole.notes) == 1
        assert note in whole.notes[0]


def test_what_is_asked_for_is_taken_and_told_of(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", HISS, VOICE, 0 * VOICE)
    asked = load_audio(path, channel=0)
    assert np.allclose(asked.waveform * asked.peak, HISS, atol=1e-8)
    assert "is 60 dB fainter than channel 1: is it the one with the voice?" in asked.notes[0]
    assert load_audio(path, channel=1).notes == ()
    with pytest.raises(InputError, match="channel 2 of 3 is silent: give --channel 1, or auto"):
        load_audio(path, channel="2")
    with pytest.raises(InputError, match=r"has 3 channel\(s\), not 'left': take 'auto', 'first'"):
        load_audio(path, channel="left")


def test_channels_that_cancel_have_no_mean(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", VOICE, -0.98 * VOICE)
    audio = load_audio(path, channel="mean")
    assert np.allclose(audio.waveform * audio.peak, VOICE, atol=1e-6)
    assert "its 2 channels cancel each other in their mean: channel 0 is taken" in audio.notes[0]
    fine = load_audio(write(tmp_path / "b.wav", VOICE, OTHER), channel="mean")
    assert fine.notes == ()
    assert np.allclose(fine.waveform * fine.peak, (VOICE + OTHER) / 2, atol=1e-6)


def test_all_silent_is_silent(tmp_path: Path) -> None:
    for channel in ("auto", "mean", "first", 1):
        with pytest.raises(InputError, match="is silent, all 32000 samples are 0"):
            load_audio(write(tmp_path / "a.wav", 0 * VOICE, 0 * VOICE), channel=channel)


def test_a_films_centre_is_taken(tmp_path: Path) -> None:
    """Even under louder music, but not where it is nearly silent."""
    names = ("FL", "FR", "FC", "LFE", "BL", "BR")
    film = np.stack([3 * OTHER, 3 * OTHER, VOICE, HISS, HISS, HISS], axis=1)
    assert choose([film], 16000, 6, "auto", "a.mkv", names) == Choice(
        2, "a.mkv has 6 channels: the centre, channel 2, is taken"
    )
    film[:, 2] *= 1e-3
    assert choose([film], 16000, 6, "auto", "a.mkv", names).channel == 0
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16000, layout="5.1")
        samples = np.zeros((1, 6 * 32000), np.int16)
        samples[0, 2::6] = 2**15 * VOICE
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="5.1")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    audio = load_audio(path)
    assert np.allclose(audio.waveform * audio.peak, VOICE, atol=1e-4)
    assert "the centre, channel 2" in audio.notes[0]


@pytest.mark.parametrize(("suffix", "codec"), [(".mka", "aac"), (".aac", "aac"), (".m4a", "aac")])
def test_what_libsndfile_does_not_read_pyav_does(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w", format={".m4a": "mp4"}.get(suffix)) as container:
        stream = container.add_stream(codec, rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(VOICE[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert len(load_audio(path).waveform) == pytest.approx(len(VOICE), abs=3000)
