"""The reader of lips, the separating guide, and what it learns from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.inference.guess import guessed_filters
from pyro_avse.models import separating_guide
from pyro_avse.models.lip_reader import BANDS, band_energies, faceless, small_pictures
from pyro_avse.models.separating_guide import SeparatingGuide
from pyro_avse.stft import STFT
from pyro_avse.training.pairs import PAUSE_FRAMES
from pyro_avse.training.recipe import GuideRecipe, GuideTraining
from pyro_avse.training.separate import (
    SeparationAmortiser,
    reader_loss,
    separation_loss,
    told_to,
)
from pyro_avse.training.speakers import Mixtures, draw_mixtures, load_voices

SMALL = STFT(n_fft=64, hop=32)


def guide_of(prior: Any, hidden: int = 6) -> SeparatingGuide:
    """It has learned nothing, and no number of it is at its default."""
    guide = SeparatingGuide(prior, hidden=hidden).to(prior.mixing_weight.dtype)
    for parameter in guide.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return guide.eval().requires_grad_(False)


# --- the reader ----------------------------------------------------------------------------------------------------


def test_a_face_is_what_moves_in_it() -> None:
    """The lamp's brightness and contrast, and what the face looks like, are taken out; a still one is nothing."""
    pictures = torch.rand(2, 9, 169)
    y = faceless(pictures)
    torch.testing.assert_close(faceless(0.5 * pictures + 0.2), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.mean(-2), torch.zeros(2, 169), rtol=0, atol=1e-5)
    assert (faceless(pictures[:, :1].expand(2, 9, 169)).abs() < 1e-4).all()
    shown = torch.arange(9).expand(2, 9) < 6
    hidden = torch.where(shown[..., None], pictures, 7.0)
    torch.testing.assert_close(faceless(hidden, shown)[:, :6], faceless(pictures[:, :6]))
    assert (faceless(hidden, shown)[:, 6:] == 0).all()
    assert (faceless(hidden, shown & False) == 0).all()


def test_pictures_of_either_kind_are_read_alike() -> None:
    lips = torch.randint(0, 256, (3, 67, 67), dtype=torch.uint8)
    found = small_pictures(lips)
    torch.testing.assert_close(found, small_pictures(lips.float() / 255))
    torch.testing.assert_close(found[0, 0], lips[0, :5, :5].float().mean() / 255)


def test_bands_are_sums_of_power() -> None:
    power = torch.empty(4, 513).exponential_()
    found = band_energies(power)
    assert found.shape == (4, BANDS)
    expected = (power[:, 6:20].sum(-1).log() - 2.0) / 2.5  # 100 to 300 Hz
    torch.testing.assert_close(found[:, 0], expected)
    assert (band_energies(0 * power) == (-1 - 2) / 2.5).all()


# --- the guide -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a_vae", "vae_mm"])
@pytest.mark.usefixtures("float64")
def test_to_exchange_lips_exchanges_what_is_believed(
    name: str, small_prior: Callable[..., Any]
) -> None:
    """Of three speakers; noise is believed alike."""
    guide = guide_of(small_prior(name))
    power, lips = torch.empty(2, 5, 7).exponential_(), torch.rand(2, 3, 5, 67, 67)
    order = [2, 0, 1]
    one, other = guide.guess(power, lips), guide.guess(power, lips[:, order])
    torch.testing.assert_close(other.codes.mean, one.codes.mean[:, :, order])
    torch.testing.assert_close(other.responsibilities, one.responsibilities[:, :, order])
    torch.testing.assert_close(other.log_gain.mean, one.log_gain.mean[:, order])
    torch.testing.assert_close(other.log_noise.mean, one.log_noise.mean)
    assert not torch.allclose(one.codes.mean[:, :, 0], one.codes.mean[:, :, 1])


@pytest.mark.usefixtures("float64")
def test_without_lips_speakers_are_the_same(small_prior: Callable[..., Any]) -> None:
    """So they are where every frame is without a picture; where only one's are, his lips say nothing."""
    guide, power = guide_of(small_prior("a_vae")), torch.empty(5, 7).exponential_()
    alone = guide.guess(power, speakers=2).codes.mean
    torch.testing.assert_close(alone[:, 0], alone[:, 1])
    lips = torch.rand(2, 5, 67, 67)
    blind = guide.guess(power, lips, lips_mask=torch.zeros(2, 5, dtype=torch.bool)).codes.mean
    torch.testing.assert_close(blind, alone)
    half = torch.tensor([True, False])[:, None].expand(2, 5)
    first = guide.guess(power, lips, lips_mask=half).codes.mean
    changed = guide.guess(power, torch.stack([lips[0], lips[0]]), lips_mask=half).codes.mean
    torch.testing.assert_close(first, changed)
    assert not torch.allclose(first[:, 0], first[:, 1])


@pytest.mark.usefixtures("float64")
def test_padding_is_not_heard(small_prior: Callable[..., Any]) -> None:
    guide = guide_of(small_prior("a_vae"))
    power, lips = torch.empty(2, 6, 7).exponential_(), torch.rand(2, 2, 6, 67, 67)
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    padded, cut = guide.guess(power, lips, mask=mask), guide.guess(power[1, :4], lips[1, :, :4])
    torch.testing.assert_close(padded.codes.mean[:, 1, :, :4], cut.codes.mean)
    torch.testing.assert_close(padded.log_gain.mean[1], cut.log_gain.mean)
    torch.testing.assert_close(padded.log_noise.mean[1, :4], cut.log_noise.mean)


def test_it_starts_as_the_guide_of_one_speaker(
    small_prior: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what it minds of the others, every speaker without lips is believed what that guide believes of one."""
    from pyro_avse.models.guide import NoisyGuide

    monkeypatch.setattr(separating_guide, "START", 0.0)
    prior = small_prior("vae_mm")
    one, guide = NoisyGuide(prior, hidden=6, layers=2), SeparatingGuide(prior, hidden=6)
    if one.ear.absent is not None:
        one.ear.absent.data.zero_()
    guide.start_from(one.state_dict())
    power = torch.empty(5, 7).exponential_()
    expected, found = one.guess(power), guide.guess(power, speakers=2)
    for j in (0, 1):
        torch.testing.assert_close(found.codes.mean[:, j], expected.codes.mean)
    torch.testing.assert_close(found.log_noise.mean, expected.log_noise.mean)


@pytest.mark.usefixtures("float64")
def test_its_filters_sum_to_one(small_prior: Callable[..., Any]) -> None:
    """Speakers' and noise's; of one speaker and component the first is the filter of `guided`."""
    from pyro_avse.inference.guess import guessed_gain

    prior = small_prior("a_vae")
    guide, power = guide_of(prior), torch.empty(5, 7).exponential_()
    filters = guessed_filters(guide.guess(power, torch.rand(3, 5, 67, 67)), prior, None)
    assert filters.shape == (4, 5, 7)
    torch.testing.assert_close(filters.sum(0), torch.ones(5, 7))
    guess = guide.guess(power, torch.rand(1, 5, 67, 67))
    torch.testing.assert_close(
        guessed_filters(guess, prior, None)[0],
        guessed_gain(replace(guess, responsibilities=torch.ones(1, 1, 5)), prior, None)[0],
    )


# --- what it learns from -------------------------------------------------------------------------------------------


@pytest.fixture
def voices_of(tiny_corpus: Path, tiny_prior: Callable[..., Any]) -> Callable[[str], Any]:
    """voices_of(name): a small guide, and the corpus once with its lips and once more as sound alone."""

    def build(name: str) -> Any:
        prior = tiny_prior(name, num_freqs=33).requires_grad_(False)
        own = find_utterances(tiny_corpus, "train")
        blind = [replace(u, lips=None) for u in own]
        return SeparatingGuide(prior, hidden=8), load_voices([own, blind], prior, SMALL)

    return build


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v2", "vae_mm"])
def test_a_mixture_is_the_sum_of_what_was_drawn(name: str, voices_of: Any) -> None:
    guide, voices = voices_of(name)
    drawn = draw_mixtures(voices, utterances=60, num_frames=30, stft=SMALL)
    torch.testing.assert_close(drawn.power, drawn.mixture.abs().square())
    noise = drawn.mixture - drawn.speech.sum(1)
    # noise is Gaussian with the variance that is said: its mean ratio is 1, within 4 standard errors of one in 10^4
    ratio = (noise.abs().square() / drawn.log_noise.exp()).mean()
    assert 0.3 < ratio < 1.1
    assert drawn.known.any(1).all()
    assert not (drawn.seen & ~drawn.known).any()
    assert drawn.seen.any()
    assert (drawn.known & ~drawn.seen).any()
    assert (drawn.told[drawn.seen] == 0).all()
    assert (drawn.pictures[~drawn.seen] == 0).all()
    assert drawn.pictures[drawn.seen].abs().sum() > 0
    loud = drawn.speech.abs().square().mean((-2, -1))
    mute = loud < 0.02 * loud.max(1, keepdim=True).values
    assert 0 < mute.sum() < 20  # a tenth of sixty recordings
    K, L = guide.num_components, guide.latent_dim
    assert drawn.codes.shape == (K, 60, 2, 30, L)
    torch.testing.assert_close(drawn.responsibilities.sum(0), torch.ones(60, 2, 30))
    assert len(voices.spectrum) - voices.starts[-1] == PAUSE_FRAMES


def test_drawn_lips_say_something_of_the_sound(voices_of: Any) -> None:
    """They correlate with the loudness that they tell, by 0.2 to 0.95; with another's they do not."""
    drawn = draw_mixtures(voices_of("a_vae")[1], utterances=100, num_frames=30, stft=SMALL)
    blind = drawn.known & ~drawn.seen
    said, true = drawn.told[blind][..., 2], drawn.bands[blind][..., 2]
    own = torch.corrcoef(torch.stack([said.flatten(), true.flatten()]))[0, 1]
    other = torch.corrcoef(torch.stack([said.flatten(), true.roll(1, 0).flatten()]))[0, 1]
    assert 0.2 < own < 0.95
    assert other < 0.15


def some_mixtures(voices: Any) -> Mixtures:
    return draw_mixtures(voices, utterances=4, num_frames=12, stft=SMALL)


@pytest.mark.parametrize("name", ["a_vae", "vae_mm"])
def test_the_loss_is_least_for_who_knows(name: str, voices_of: Any) -> None:
    """A q at the codes, levels and noise that were drawn has less of it than one of other speakers' codes."""
    from pyro_avse.distributions import unchecked_normal
    from pyro_avse.typing import Guess

    guide, voices = voices_of(name)
    pairs = some_mixtures(voices)

    def loss(speakers: list[int]) -> Tensor:
        q = Guess(
            codes=unchecked_normal(pairs.codes[:, :, speakers], torch.full_like(pairs.codes, 0.1)),
            responsibilities=pairs.responsibilities[:, :, speakers].clamp(1e-3, 1),
            log_gain=unchecked_normal(pairs.log_gain[..., None], torch.ones(4, 2, 1)),
            response=unchecked_normal(pairs.response, torch.ones(4, 2, 4)),
            log_noise=unchecked_normal(pairs.log_noise, torch.ones_like(pairs.log_noise)),
        )
        return separation_loss(guide, q, pairs, 0.05, 20.0)

    assert loss([0, 1]) < loss([1, 0])


def test_only_its_own_loss_trains_the_reader(voices_of: Any) -> None:
    guide, voices = voices_of("vae_mm")
    pairs = some_mixtures(voices)
    read = guide.reader(pairs.pictures)
    q = guide.read(*guide.hear(pairs.power, told_to(read.mean.detach(), pairs)))
    separation_loss(guide, q, pairs, 0.05, 20.0).backward()
    for name, parameter in guide.named_parameters():
        assert (parameter.grad is None) == name.startswith("reader"), name
    guide.zero_grad()
    reader_loss(read, pairs).backward()
    assert all(
        (p.grad is not None and p.grad.abs().sum() > 0) == n.startswith("reader")
        for n, p in guide.named_parameters()
    )


@pytest.mark.long
def test_training_teaches_it_to_tell_voices_apart(voices_of: Any) -> None:
    """On other draws the loss falls."""
    guide, voices = voices_of("a_vae")
    training = GuideTraining(rounds=3, steps=30, batch_size=16, frames=30)
    recipe = GuideRecipe("none", separates=True, training=training)
    run = SeparationAmortiser(guide, recipe, voices, voices, SMALL)
    before = run.validate()["valid_objective"]
    for _ in range(3):
        row = run.run_round()
    assert row["valid_objective"] > before + 2
