"""Training of priors that couple frames: cuts, runs that are resumed, guides for them, and what they enhance."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.inference.guided import Guided
from pyro_avse.inference.ldem import LDEM
from pyro_avse.models import MODELS
from pyro_avse.models.looking_back import own_past
from pyro_avse.stft import STFT
from pyro_avse.training.recipe import Data, GuideRecipe, GuideTraining, Recipe, Training
from pyro_avse.training.sequences import draw_cuts
from pyro_avse.training.stages import train
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior, save_prior

SIZES = {"latent_dim": 3, "hidden": 8}
SHORT = LDEM(iterations=2, draws=1, first_warmup=1, final_warmup=1, final_draws=1, chains=2)


def test_cuts_lie_within_clips() -> None:
    """Every cut is frames in a row of one clip; none is seen twice; what is left over is at a clip's ends."""
    torch.manual_seed(0)
    ends, seen = (10, 13, 30), set()
    for _ in range(50):
        cuts = draw_cuts(ends, 4, at_random=True)
        assert cuts.shape == (2 + 0 + 4, 4)
        assert (cuts.diff(dim=1) == 1).all()
        assert len(cuts.unique()) == cuts.numel()
        clip = torch.searchsorted(torch.tensor(ends), cuts, right=True)
        assert (clip == clip[:, :1]).all()
        seen.add(int(cuts[0, 0]))
    assert seen == {0, 1, 2}
    assert draw_cuts(ends, 4, at_random=False)[0, 0] == 0
    with pytest.raises(InputError, match="no clip is as long as a cut of 18 frames: lower"):
        draw_cuts(ends, 18, at_random=True)


def test_a_share_of_the_past_is_what_the_prior_decodes(random_power: Any) -> None:
    """SRNN in training: some frames of s_<n are its own, whole ones; in evaluation, or at a share of 0, none."""
    torch.manual_seed(0)
    prior, power = MODELS["srnn"](num_freqs=7, **SIZES), random_power(5, 20, 7).float()
    heard = own_past(prior, power, None, 0.4)
    same = heard == power
    assert (same.all(-1) == same.any(-1)).all()
    assert 0.2 < 1 - same.float().mean() < 0.6
    assert torch.equal(own_past(prior, power, None, 0.0), power)
    assert torch.equal(own_past(prior.eval(), power, None, 0.4), power)


def tiny(name: str) -> Recipe:
    lips = {"features": 6, "embedding": 4} if name.startswith("av_") else {}
    data = Data(cut=0.3, augment_lips=1.0 if lips else 0.0, level_range_db=6.0, tilt_db=2.0)
    training = Training(epochs=2, batch_size=3, learning_rate=1e-2)
    return Recipe(name, options=SIZES | lips, data=data, training=training)


@pytest.mark.parametrize("name", ["rvae", "hit_dvae", "av_srnn"])
def test_a_run_that_was_killed_ends_in_the_same_bytes(
    name: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    """And the bound rises, and the weights come back with their class and options."""

    def stop(row: Any) -> None:
        raise KeyboardInterrupt

    rows: list[Any] = []
    whole = train(tiny(name), tiny_corpus, tmp_path / "whole", progress=rows.append)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(name), tiny_corpus, tmp_path / "stopped", progress=stop)
    again = train(tiny(name), tiny_corpus, tmp_path / "stopped", resume=True)
    assert again.read_bytes() == whole.read_bytes()
    assert rows[1]["valid_elbo"] > rows[0]["valid_elbo"]
    prior, stft = load_prior(whole)
    assert type(prior) is MODELS[name]
    assert prior.options == tiny(name).options | prior.options
    assert stft == STFT()


def test_a_guide_of_a_dynamical_prior(tiny_corpus: Path, tmp_path: Path) -> None:
    """Trained on draws, it learns; and `guided` starts from it, and hears it."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_prior(path, MODELS["rvae"](**SIZES), STFT())
    training = GuideTraining(rounds=2, steps=3, batch_size=2, frames=20)
    recipe = GuideRecipe(str(path), options={"hidden": 8, "layers": 1}, training=training)
    rows: list[Any] = []
    guide = train(recipe, tiny_corpus, tmp_path / "guide", progress=rows.append)
    assert rows[1]["valid_objective"] > rows[0]["valid_objective"]
    (tmp_path / "guide.safetensors").write_bytes(guide.read_bytes())
    prior, stft = load_prior(path)
    noisy = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    scheme = Guided(iterations=2, first_warmup=1, final_warmup=1, final_draws=1)
    heard, deaf = (
        Enhancer(prior, each, stft=stft, device="cpu")(noisy).speech
        for each in (scheme, replace(scheme, filter_share=0.0))
    )
    assert np.isfinite(heard).all()
    assert not np.array_equal(heard, deaf)


@pytest.mark.parametrize("name", ["av_rvae", "av_srnn"])
def test_guides_see_the_embedding(
    name: str, tiny_prior: Any, small_guide: Any, random_lips: Any, random_power: Any
) -> None:
    """What the prior is told of a picture is what its guide is shown, and believes: each picture, and their order."""
    torch.manual_seed(0)
    prior = tiny_prior(name).requires_grad_(False)
    guide, lips = small_guide(prior.double()), random_lips(12)
    power = random_power(12, prior.num_freqs)
    assert torch.equal(guide.seen(lips), prior.visual_features(lips))
    believed = guide.guess(power, lips).codes.mean
    other = lips.clone()
    other[4] = 255 - other[4]
    assert not torch.equal(believed, guide.guess(power, other).codes.mean)
    torch.testing.assert_close(guide.seen(lips.flip(0)), guide.seen(lips).flip(0))


@pytest.mark.parametrize("name", ["dkf", "srnn", "av_rvae"])
def test_recordings_and_batches(name: str, tiny_prior: Any) -> None:
    """A recording of any length, lips where they are seen; one of a batch does not hear the others."""
    torch.manual_seed(0)
    prior = tiny_prior(name).eval()
    enhancer = Enhancer(prior, SHORT, device="cpu")
    rng = np.random.default_rng(0)
    sounds = [rng.standard_normal(n).astype(np.float32) for n in (16000, 9000)]
    lips = [rng.integers(0, 256, (n, 67, 67), dtype=np.uint8) for n in (25, 14)]
    seen = [(s, v, 25.0) if prior.uses_lips else (s,) for s, v in zip(sounds, lips, strict=True)]
    alone = enhancer(*seen[0])  # type: ignore[misc]
    assert alone.speech.shape == sounds[0].shape
    assert np.isfinite(alone.speech).all()
    recordings = [enhancer.prepare(*each) for each in seen]  # type: ignore[misc]
    loud = replace(recordings[1], spectrum=10 * recordings[1].spectrum)
    one, other = (enhancer.batch([recordings[0], second])[0] for second in (recordings[1], loud))
    np.testing.assert_allclose(one.speech, other.speech, atol=1e-5)


def test_streams_refuse(tiny_prior: Any) -> None:
    """A prior of whole recordings cannot hear a block alone."""
    with pytest.raises(InputError, match="a stream comes in by frames, and RVAE looks at whole"):
        Enhancer(tiny_prior("rvae"), SHORT, device="cpu").stream()
