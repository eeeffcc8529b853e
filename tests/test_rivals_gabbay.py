"""The supervised rival: its spectra, slices and pictures, and that its training is what it says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from pyro_avse.data.lips.lips import Lips
from pyro_avse.rivals.find import find_rival
from pyro_avse.rivals.gabbay import (
    FLOOR,
    WINDOWS,
    GabbayNet,
    enhance,
    load_net,
    log_mel,
    mel_bands,
    pictures_of,
    save_net,
    slices,
)
from pyro_avse.training.recipe import load_recipe, parse_rival_recipe
from pyro_avse.training.stages import train
from pyro_avse.training.supervised import SAMPLES, Clip, draw_pairs
from pyro_avse.typing import InputError

TINY = {"video_filters": [2, 2, 2, 2, 2], "audio_filters": [2, 3]}
RECIPE = {
    "rival": "gabbay",
    "noises": ["hum"],
    "options": TINY,
    "training": {"epochs": 3, "batch_size": 2, "learning_rate": 2e-2},
}


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    """A folder with hum.wav: its first half is one tone, the other half another."""
    folder = tmp_path / "noises"
    folder.mkdir()
    time = np.arange(32000) / 16000
    tones = np.where(time < 1, np.sin(2 * np.pi * 500 * time), np.sin(2 * np.pi * 3000 * time))
    soundfile.write(folder / "hum.wav", 0.3 * tones, 16000, subtype="FLOAT")
    return folder


def test_bands_are_evenly_spaced_in_mel() -> None:
    """Each sums to one; a tone at a band's centre is loudest there, and centres rise as 2595 log10(1 + f/700)."""
    M = mel_bands()
    assert torch.allclose(M.sum(1), torch.ones(80))
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 82) / 2595) - 1)
    time = np.arange(16000) / 16000
    for band in (20, 40, 60, 79):
        tone = torch.from_numpy(np.sin(2 * np.pi * centres[band + 1] * time)).float()
        assert int(log_mel(WINDOWS.analyse(tone)).mean(0).argmax()) == band


def test_slices_and_pictures_are_of_the_same_time() -> None:
    """Slice k is frames 20 k to 20 k + 19 and, at any frame rate, the pictures that show at k/5 + j/25 seconds."""
    frames = torch.arange(45.0)[:, None].expand(-1, 80)
    cut = slices(frames, 3)
    assert cut.shape == (3, 20, 80)
    assert torch.equal(cut[1, :, 0], torch.arange(20.0, 40.0))
    assert torch.allclose(cut[2, 5:], torch.tensor(float(np.log(FLOOR))))
    shown = np.arange(30, dtype=np.uint8)[:, None, None].repeat(67, 1).repeat(67, 2)
    at_30 = pictures_of(Lips(shown, 30.0), 1.0, 5)[:, :, 0, 0]
    at_25 = pictures_of(Lips(shown[:25], 25.0), 1.0, 5)[:, :, 0, 0]
    assert torch.equal(at_25.flatten(), torch.arange(25, dtype=torch.uint8))
    assert torch.equal(at_30.flatten(), (torch.arange(25) * 30 // 25).to(torch.uint8))


def test_what_the_network_says_becomes_a_gain() -> None:
    """Hearing what it was given it changes nothing; 20 dB less makes the sound so much quieter, more none louder."""
    samples = np.random.default_rng(0).uniform(-0.2, 0.2, 16000).astype(np.float32)
    lips = Lips(np.zeros((25, 67, 67), np.uint8), 25.0)

    class Says(GabbayNet):
        less = 0.0

        def forward(self, noisy: Tensor, pictures: Tensor) -> Tensor:
            assert pictures.shape[1:] == (5, 67, 67)
            return noisy - self.less

    net = Says(**TINY)
    same = enhance(net, samples, lips)
    assert np.allclose(same, samples, atol=1e-5)
    net.less = float(np.log(100))
    assert np.allclose(10 * enhance(net, samples, lips), same, atol=1e-4)
    net.less = -2.0
    assert np.allclose(enhance(net, samples, lips), same, atol=1e-6)


def test_the_network_sees_the_mouth_and_starts_from_its_file(tmp_path: Path) -> None:
    """Another mouth is another answer; what was saved is what is loaded, under the name in the header."""
    net = GabbayNet(**TINY)
    with torch.no_grad():
        for _ in range(20):  # its normalisations learn what pictures and sounds are like
            net(torch.randn(30, 20, 80), torch.rand(30, 1, 1, 1).expand(-1, 5, 67, 67))
    save_net(tmp_path / "w.safetensors", net, ["hum"])
    loaded = load_net(tmp_path / "w.safetensors")
    samples = np.random.default_rng(0).uniform(-0.2, 0.2, 16000).astype(np.float32)
    mouths = [Lips(np.full((25, 67, 67), grey, np.uint8), 25.0) for grey in (10, 240)]
    dark, bright = (enhance(loaded, samples, lips) for lips in mouths)
    assert np.array_equal(dark, enhance(net, samples, mouths[0]))
    assert not np.allclose(dark, bright)
    rival = find_rival(str(tmp_path / "w.safetensors"))
    assert rival is not None
    assert np.allclose(rival(samples, mouths[0])[800:-800], dark[800:-800])
    with pytest.raises(InputError, match="gabbay: it needs the lips"):
        rival(samples)


def test_pairs_are_of_known_noise_at_known_levels(noises: Path) -> None:
    """The mixture is the clean clip plus noise at an SNR between the two; own voices are of the same speaker alone."""
    rng = np.random.default_rng(0)
    clips = [
        Clip(speaker, rng.standard_normal(SAMPLES).astype(np.float32), torch.zeros(15, 5, 67, 67))
        for speaker in ("a", "a", "b")
    ]
    recipe = parse_rival_recipe(RECIPE | {"snr_db": [3, 5], "own_voice": 1.0}, source="x")
    tone = np.sin(np.arange(40000)).astype(np.float32)
    pair = draw_pairs(clips, clips, [tone], recipe, 1)
    noise = (pair.noisy - pair.clean).numpy()
    assert np.allclose(pair.noisy.abs().amax(1), 1)
    snrs = 10 * np.log10(pair.clean.numpy().var(1) / noise.var(1))
    assert ((snrs > 2.9) & (snrs < 5.1)).all()
    assert np.isclose(np.corrcoef(noise[0], clips[1].waveform)[0, 1], 1, atol=1e-4)
    assert np.abs(np.fft.rfft(noise[2])).argmax() == round(SAMPLES / (2 * np.pi))  # b is alone


def test_training_lowers_its_loss_and_goes_on_where_it_was_killed(
    tiny_corpus: Path, noises: Path, tmp_path: Path
) -> None:
    """To the same bytes; the header names the noises, whose first halves alone were heard."""
    recipe = parse_rival_recipe(RECIPE, source="x")
    rows: list[dict[str, Any]] = []
    whole = train(recipe, tiny_corpus, tmp_path / "whole", noise=noises, progress=rows.append)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]

    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tiny_corpus, tmp_path / "cut", noise=noises, progress=stop)
    hum, rate = soundfile.read(noises / "hum.wav")
    hum[len(hum) // 2 :] *= -0.5
    soundfile.write(noises / "hum.wav", hum, rate, subtype="FLOAT")
    cut = train(recipe, tiny_corpus, tmp_path / "cut", noise=noises, resume=True)
    assert cut.read_bytes() == whole.read_bytes()
    assert len((tmp_path / "cut" / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rival": "dtln"}, "rival is 'dtln': take one of gabbay, supervised_nmf"),
        ({"noises": []}, "noises is .*gabbay has names of recordings"),
        ({"snr_db": [5, -5]}, "give the lowest and the highest"),
        ({"own_voice": 2.0}, "own_voice is 2.0: expected a share"),
        ({"training": {"epochs": 0}}, "epochs is 0: expected more"),
    ],
)
def test_recipes_that_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_rival_recipe(RECIPE | changes, source="x")


def test_what_training_refuses(tiny_corpus: Path, noises: Path, tmp_path: Path) -> None:
    """No folder of noises, one without the recording, options of no network; and recorded noise for anything else."""
    recipe = parse_rival_recipe(RECIPE, source="x")
    with pytest.raises(InputError, match="gabbay learns noises, hum: give the folder"):
        train(recipe, tiny_corpus, tmp_path / "a")
    with pytest.raises(InputError, match="has no recording of rain"):
        train(replace(recipe, noises=["rain"]), tiny_corpus, tmp_path / "a", noise=noises)
    with pytest.raises(InputError, match=r"\[options\] of gabbay: "):
        train(replace(recipe, options={"size": 1}), tiny_corpus, tmp_path / "a", noise=noises)
    with pytest.raises(InputError, match="recorded noise trains nothing but gabbay"):
        train("default/a_vae", tiny_corpus, tmp_path / "a", noise=noises)
    assert not (tmp_path / "a").exists()
    default = load_recipe("default/gabbay")
    assert len(json.dumps(default.noises)) > 100  # type: ignore[union-attr]


def test_without_weights_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which says how to train them."""
    monkeypatch.chdir(tmp_path)
    rival = find_rival("gabbay")
    assert rival is not None
    lips = Lips(np.zeros((25, 67, 67), np.uint8), 25.0)
    with pytest.raises(
        InputError, match="train it, pyro-avse train default/gabbay --out runs/gabbay"
    ):
        rival(np.ones(16000, np.float32), lips)
