"""Options of a recipe: the KL's weight, what the best epoch is the best in, the clips' level, changed lips."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.media.level import speech_level
from pyro_avse.models import VVAE
from pyro_avse.stft import STFT
from pyro_avse.training import svi
from pyro_avse.training.frames import Frames, load_frames
from pyro_avse.training.recipe import Data, Recipe, Training
from pyro_avse.training.selection import EnhancementScore
from pyro_avse.training.stages import train
from pyro_avse.training.svi import ScaledCodes, Trainer, enumerated_negative_elbo, seeded
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior

SIZES = {"hidden": 8, "latent_dim": 3}


def test_kl_weight_scales_the_divergence_alone(
    small_prior: Callable[..., Any], random_power: Callable[..., Tensor], float64: None
) -> None:
    """At weight b the loss is larger by (b - 1) times torch's own KL of the two Gaussians, draws being the same."""
    prior, power = small_prior("a_vae"), random_power(5, 7)
    frames = Frames(power, None)

    def loss(weight: float) -> Tensor:
        recipe = Recipe("a_vae", training=Training(kl_weight=weight))
        trainer = Trainer(prior, recipe, frames, frames)
        with seeded(0), ScaledCodes(weight):
            return trainer._loss(power, None, power, torch.arange(5))[0]

    q = prior.audio_encoder(power).base_dist
    kl = kl_divergence(q, torch.distributions.Normal(torch.zeros(2), torch.ones(2))).sum()
    torch.testing.assert_close(loss(3.0) - loss(1.0), 2 * kl)
    torch.testing.assert_close(loss(0.5) - loss(1.0), -kl / 2)


def test_kl_weight_reaches_the_mixtures_loss(
    small_prior: Callable[..., Any],
    random_power: Callable[..., Tensor],
    random_lips: Callable[..., Tensor],
    float64: None,
) -> None:
    """At weight 0, J_k of the enumerated trace is -log p(s | z_k): Gaussians' normalisers have gone."""
    prior, power, lips = small_prior("min_vae_v2"), random_power(4, 7), random_lips(4)
    with seeded(0), ScaledCodes(0.0):
        J = enumerated_negative_elbo(prior, power, lips)
    with seeded(0):
        z = prior.encode(power, lips).rsample()
    variance = prior.log_variance(z, lips)[0].exp()
    torch.testing.assert_close(J, (torch.log(torch.pi * variance) + power / variance).sum(-1))


def test_kl_weight_is_trained_with(tiny_corpus: Path, tmp_path: Path) -> None:
    """A run with a heavy weight ends at a smaller divergence, and validation still reports the bound itself."""
    kl = {}
    for weight in (0.1, 30.0):
        training = Training(epochs=6, batch_size=16, learning_rate=3e-2, kl_weight=weight)
        out = tmp_path / f"{weight}"
        train(Recipe("a_vae", options=SIZES, training=training), tiny_corpus, out)
        row = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
        kl[weight] = row["valid_kl"]
        assert row["valid_elbo"] == pytest.approx(row["valid_reconstruction"] - row["valid_kl"])
    assert kl[30.0] < 0.5 * kl[0.1]


def test_the_epoch_that_enhances_best_is_kept(tiny_corpus: Path, tmp_path: Path) -> None:
    """With select = "enhancement" the weights kept are those whose `valid_si_sdr` is the highest of the log."""
    training = Training(epochs=3, batch_size=16, learning_rate=3e-2, select="enhancement")
    recipe = Recipe("a_vae", options=SIZES, training=training)
    weights = train(recipe, tiny_corpus, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = [row["valid_si_sdr"] for row in log]
    assert len(set(scores)) == len(scores)
    score = EnhancementScore(find_utterances(tiny_corpus, "valid"), STFT(), with_lips=False, seed=0)
    assert score(load_prior(weights)[0]) == pytest.approx(max(scores), abs=1e-3)


def test_the_scheme_is_shown_lips_where_the_prior_looks(tiny_corpus: Path) -> None:
    """A V-VAE is scored with its clips' lips; the prior that was given keeps its gradients; one clip is too few."""
    clips = find_utterances(tiny_corpus, "valid")
    prior = VVAE(**SIZES, features=8)
    score = EnhancementScore(clips, STFT(), with_lips=True, seed=0)
    assert all(mixture.lips is not None for mixture in score.mixtures)
    assert score(prior) == score(prior)
    assert all(parameter.requires_grad for parameter in prior.parameters())
    with pytest.raises(InputError, match="needs 2 valid clips"):
        EnhancementScore(clips[:1], STFT(), with_lips=False, seed=0)


def test_clips_are_brought_to_the_level_of_test_time(tmp_path: Path, tiny_corpus: Path) -> None:
    """`level = "speech"`: frames depend neither on a clip's level nor on its offset, nor much on one click."""
    clip = find_utterances(tiny_corpus, "valid")[0]
    sound, rate = soundfile.read(clip.audio)
    click = sound.copy()
    click[8000] = 4 * abs(sound).max()  # another peak, the same speech
    powers = {}
    for name, samples in {"speech": sound, "click": click / 8, "offset": sound / 4 + 0.5}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
        utterance = replace(clip, audio=tmp_path / f"{name}.wav", name=name)
        for level in ("peak", "speech"):
            frames = load_frames(
                [utterance], STFT(), with_lips=False, noise_floor_db=None, seed=0, level=level
            )
            powers[name, level] = frames.power.double().mean()
    assert powers["click", "speech"] == pytest.approx(float(powers["speech", "speech"]), rel=0.05)
    assert powers["click", "peak"] < 0.1 * powers["speech", "peak"]
    centred = sound - sound.mean()
    gain = abs(centred).max() / speech_level(centred)
    ratio = powers["speech", "speech"] / powers["speech", "peak"]
    assert float(ratio) == pytest.approx(gain**2, rel=1e-4)
    assert powers["offset", "speech"] == pytest.approx(float(powers["speech", "speech"]), rel=1e-4)


def test_lips_are_changed_in_training_and_not_in_validation(
    small_prior: Callable[..., Any],
    random_power: Callable[..., Tensor],
    random_lips: Callable[..., Tensor],
) -> None:
    """A step sees other pictures than those of the data, by the epoch's seed; the data stays as it is."""
    frames = Frames(random_power(6, 7).float(), random_lips(6))
    assert frames.lips is not None
    before = frames.lips.clone()
    prior = small_prior("v_vae").float()
    recipe = Recipe("v_vae", data=Data(augment_lips=1.0))
    trainer = Trainer(prior, recipe, frames, frames)
    with seeded(3):
        _, seen, _ = trainer._batch(torch.arange(6))
    with seeded(3):
        _, again, _ = trainer._batch(torch.arange(6))
    assert seen is not None
    assert again is not None
    assert torch.equal(seen, again)
    assert (seen - before / 255).abs().mean() > 0.01
    assert torch.equal(frames.lips, before)
    trainer.run_epoch()


def test_validation_takes_r_by_draws_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two alike components with noisy J_k the bound is minus KL(r | pi), below log p = 0; by one draw it is above.

    J_k are N(0, 3^2), 20,000 frames: the mean's standard error is 0.02.
    """

    def noisy(prior: Any, power: Tensor, lips: Tensor | None) -> Tensor:
        return 3 * torch.randn(2, len(power))

    def terms(*given: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros(()), -noisy(*given)

    prior = SimpleNamespace(mixing_weight=torch.tensor([0.5, 0.5]))
    frames = Frames(torch.ones(20_000, 3), None)
    monkeypatch.setattr(svi, "component_negative_elbo", noisy)
    monkeypatch.setattr(svi, "component_elbo_terms", terms)
    found = svi.validate(prior, frames, seed=0)["valid_elbo"]
    r = torch.softmax(-noisy(prior, frames.power, None), 0)
    divergence = float((r * (2 * r).clamp_min(1e-30).log()).sum(0).mean())
    assert found == pytest.approx(-divergence, abs=0.1)
    J = noisy(prior, frames.power, None)
    by_one_draw = float(torch.logsumexp(-J - math.log(2), 0).mean())
    assert by_one_draw > 1 > 0 > found
