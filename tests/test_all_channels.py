"""`--channel all`: every channel is enhanced on its own, and as many come out as went in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pyro_avse.data.media.sound import decode_sound
from pyro_avse.enhancement.file import enhance_file
from pyro_avse.inference import VEM
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import save_prior

RNG = np.random.default_rng(0)
VOICES = 0.1 * RNG.standard_normal((48000, 3)) * [1.0, 0.0, 0.01]
"""The second channel is silent, the third 40 dB down."""


@pytest.fixture
def run(tmp_path: Path, tiny_prior: Callable[..., Any]) -> Callable[..., Any]:
    save_prior(tmp_path / "a.safetensors", tiny_prior("a_vae"), STFT())
    scheme = VEM(iterations=1, warmup=1, draws=1, noise=NoiseModel(2))

    def enhance(path: Path, output: str, **options: Any) -> Any:
        model = str(tmp_path / "a.safetensors")
        return enhance_file(path, tmp_path / output, model=model, inference=scheme, **options)

    return enhance


@pytest.mark.parametrize("block", [0, 3.0])
def test_each_channel_is_as_it_were_alone(tmp_path: Path, run: Any, block: float) -> None:
    soundfile.write(tmp_path / "a.wav", VOICES, 16000, subtype="FLOAT")
    row = run(tmp_path / "a.wav", "o.wav", channel="all", block=block, noise_out=tmp_path / "n.wav")
    speech, _ = soundfile.read(tmp_path / "o.wav")
    noise, _ = soundfile.read(tmp_path / "n.wav")
    assert row["channels"] == 3
    assert speech + noise == pytest.approx(VOICES, abs=1e-6)
    assert not speech[:, 1].any()
    for channel in (0, 2):
        run(tmp_path / "a.wav", "one.wav", channel=channel, block=block)
        assert speech[:, channel] == pytest.approx(soundfile.read(tmp_path / "one.wav")[0])
        assert speech[:, channel].any()


@pytest.mark.parametrize("suffix", [".flac", ".m4a", ".opus"])
def test_every_format_has_as_many(tmp_path: Path, run: Any, suffix: str) -> None:
    soundfile.write(tmp_path / "a.wav", VOICES[:, [0, 2]], 16000, subtype="FLOAT")
    run(tmp_path / "a.wav", f"o{suffix}", channel="all")
    sound = decode_sound(tmp_path / f"o{suffix}").samples
    assert sound.shape[1] == 2
    assert sound[:, 0].std() > 10 * sound[:, 1].std()


def test_a_film_keeps_its_channels(
    tmp_path: Path, run: Any, make_video: Callable[..., Path]
) -> None:
    video = make_video(tmp_path / "a.mp4", np.zeros((75, 48, 64), np.uint8), sound=VOICES[:, 0])
    run(video, "two.mp4", channel="all")
    assert decode_sound(tmp_path / "two.mp4").samples.shape[1] == 1
    six = tmp_path / "six.wav"
    soundfile.write(six, VOICES[:, [0, 0, 1, 1, 2, 0]], 16000)
    run(six, "six.m4a", channel="all")
    assert decode_sound(tmp_path / "six.m4a").channels == ("FL", "FR", "FC", "LFE", "BL", "BR")


def test_what_cannot_be(tmp_path: Path, run: Any) -> None:
    soundfile.write(tmp_path / "a.wav", VOICES, 16000)
    soundfile.write(tmp_path / "nine.wav", np.repeat(VOICES[:, :1], 9, axis=1), 16000)
    soundfile.write(tmp_path / "zeros.wav", 0 * VOICES, 16000)
    for name, output, options, message in [
        ("a.wav", "o.wav", {"reference": tmp_path / "a.wav"}, "are of one channel, not of all"),
        ("zeros.wav", "o.wav", {}, "zeros.wav is silent"),
        ("nine.wav", "o.m4a", {}, "no 9 channels: write .wav"),
        ("absent.wav", "o.wav", {}, "absent.wav"),
    ]:
        with pytest.raises(InputError, match=message):
            run(tmp_path / name, output, channel="all", **options)
        assert not (tmp_path / output).exists()
