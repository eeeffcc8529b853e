"""The synthetic talker's lips tell about the sound: a visual encoder trained on them needs the right ones."""

from math import comb
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.models import VVAE
from pyro_avse.stft import STFT
from pyro_avse.training.frames import Frames, load_frames
from pyro_avse.training.recipe import Recipe, Training
from pyro_avse.training.stages import build_prior
from pyro_avse.training.svi import Trainer

pytest.importorskip("espeakng_loader", reason="needs the extra synth")

RECIPE = Recipe(
    "v_vae",
    options={"latent_dim": 8, "hidden": 64, "features": 64},
    training=Training(epochs=10, batch_size=64, learning_rate=1e-3, schedule="cosine"),
)
FALSE_ALARM = 1e-3


class Clip(NamedTuple):
    speaker: str | None
    frames: Frames


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Clip], list[Clip]]:
    """The clips of five talkers, every fourth held out."""
    from pyro_avse.data.talker.synth import synthesise_corpus

    root = tmp_path_factory.mktemp("talkers")
    synthesise_corpus(root, speakers=5, minutes=6, seed=3)
    clips = [
        Clip(u.speaker, load_frames([u], STFT(), with_lips=True, noise_floor_db=None, seed=0))
        for split in ("train", "valid", "test")
        for u in find_utterances(root, split)
    ]
    return [c for i, c in enumerate(clips) if i % 4], clips[::4]


@pytest.mark.slow
def test_a_visual_encoder_prefers_the_right_lips(corpus: tuple[list[Clip], list[Clip]]) -> None:
    """Sign test over held-out clips, false-alarm rate 1e-3; a twin trained on other clips' lips fails it."""
    train, held = corpus
    assert p_value(trained(train, own=True), held) < FALSE_ALARM
    assert p_value(trained(train, own=False), held) > FALSE_ALARM


def trained(clips: list[Clip], *, own: bool) -> VVAE:
    """A V-VAE trained on each clip's sound with its own lips, or with another's of the same talker."""
    power = torch.cat([c.frames.power for c in clips])
    lips = torch.cat([c.frames.lips if own else other_lips(clips, i) for i, c in enumerate(clips)])
    prior = build_prior(RECIPE)
    trainer = Trainer(prior, RECIPE, Frames(power, lips), Frames(power[:64], lips[:64]))
    while not trainer.finished:
        trainer.run_epoch()
    return prior.requires_grad_(False)


def p_value(prior: VVAE, clips: list[Clip]) -> float:
    """Chance of as many clips better explained by their own lips, if lips told nothing."""
    wins = sum(
        log_likelihood(prior, clip, clip.frames.lips)
        > log_likelihood(prior, clip, other_lips(clips, i))
        for i, clip in enumerate(clips)
    )
    n = len(clips)
    return sum(comb(n, k) for k in range(wins, n + 1)) / 2**n


def log_likelihood(prior: VVAE, clip: Clip, lips: Tensor) -> float:
    """Mean log p(s | z) at the code that the lips give."""
    power = clip.frames.power
    log_variance = prior.log_variance(prior.initial_codes(power, lips), lips)[0]
    return float(-(log_variance + power * torch.exp(-log_variance)).mean())


def other_lips(clips: list[Clip], index: int) -> Tensor:
    """The lips of the same talker's next clip, repeated or cut to this clip's length."""
    same = [i for i, c in enumerate(clips) if c.speaker == clips[index].speaker]
    lips = clips[same[(same.index(index) + 1) % len(same)]].frames.lips
    return lips[torch.arange(len(clips[index].frames)) % len(lips)]
