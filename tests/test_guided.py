"""Langevin EM from a guide: where it starts, whose filter it ends with, and what it is without one."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from pyro.distributions import Independent, Normal

from pyro_avse.enhancement.find import build_scheme
from pyro_avse.inference.em import observe
from pyro_avse.inference.guess import guessed_gain, guessed_level
from pyro_avse.inference.guided import Guided
from pyro_avse.inference.ldem import LDEM
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.models.nmf_noise import NoiseModel, response_basis
from pyro_avse.typing import Guess, InputError

pytestmark = pytest.mark.usefixtures("float64")
FRAMES = 5


@pytest.fixture
def seen(small_prior: Any, random_power: Any, random_lips: Any) -> Any:
    """A posterior, and what an untrained guide believes."""

    def build(name: str) -> tuple[CollapsedTarget, Guess]:
        prior = small_prior(name).requires_grad_(False)
        power, lips = random_power(FRAMES, 7), random_lips(FRAMES)
        v = prior.visual_features(lips)
        target = CollapsedTarget(prior, v, power, torch.rand(FRAMES, 7) + 0.1, prior.mixing_weight)
        guide = NoisyGuide(prior, hidden=6, layers=1).double().requires_grad_(False)
        return target, guide.guess(power, lips)

    return build


def test_without_a_guide_it_is_ldem_with_the_settings_that_were_given(seen: Any) -> None:
    """Those that are as its own defaults, too; `otherwise` has the last word."""
    target, _ = seen("a_vae")
    x = torch.randn(20, 7, dtype=torch.complex128)
    found = Guided()(target.prior, x, seed=3)
    assert torch.equal(found.speech, LDEM()(target.prior, x, seed=3).speech)
    settings = {"iterations": 4, "noise": {"rank": 3}, "kernel": "mala", "filter_share": 0.5}
    same = LDEM(iterations=4, noise=NoiseModel(rank=3), kernel=MALA())
    assert build_scheme("guided", settings).otherwise == same
    assert build_scheme("guided", {}, 4, "paper").otherwise == build_scheme("ldem", {}, 4, "paper")
    own = build_scheme("guided", settings | {"otherwise": {"iterations": 9}})
    assert (own.iterations, own.otherwise) == (4, replace(same, iterations=9))
    assert len(own(target.prior, x).objective) == 9


def test_with_the_models_filter_it_is_ldem_from_the_guide(seen: Any) -> None:
    target, _ = seen("a_vae")
    prior, x = target.prior, torch.randn(20, 7, dtype=torch.complex128)
    guide = NoisyGuide(prior, hidden=6, layers=1).double().requires_grad_(False)
    settings = Guided(filter_share=0.0, clear_share=0.0)
    names = [field.name for field in fields(LDEM)]
    same = LDEM(**{name: getattr(settings, name) for name in names})
    found, expected = (scheme(prior, x, guide=guide, seed=2) for scheme in (settings, same))
    assert torch.equal(found.speech, expected.speech)
    assert isinstance(found.target, CollapsedTarget)  # what is diagnosed is the model's posterior


def test_it_is_its_steps_in_a_row(seen: Any) -> None:
    """`guided(...)`, to the last bit."""
    target, _ = seen("a_vae")
    prior, x = target.prior, torch.randn(20, 7, dtype=torch.complex128)
    guide = NoisyGuide(prior, hidden=6, layers=1).double().requires_grad_(False)
    scheme, seen_by_it = Guided(), observe(prior, x, guide=guide)
    rng = torch.Generator().manual_seed(5)
    state = scheme.init(seen_by_it, rng=rng)
    for _ in range(scheme.iterations):
        state = scheme.step(seen_by_it, state, rng=rng)
    found = scheme.finish(seen_by_it, state, rng=rng).speech
    assert torch.equal(found, scheme(prior, x, guide=guide, seed=5).speech)


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v1", "two_decoders"])
def test_speech_is_between_two_filters(name: str, seen: Any) -> None:
    """The guide's by hand, component by component; in decibels the gain is between both; 0 and 1 are the two."""
    target, guess = seen(name)
    prior, v = target.prior, target.lips
    by_hand = torch.zeros(FRAMES, 7)
    a = guess.log_gain.mean + guess.response.mean @ response_basis(4, 7, target.power)[1:]
    for k in range(prior.num_components):
        decoded = prior.log_variance(guess.codes.mean[k][None], v)
        S = (decoded[k if len(decoded) > 1 else 0, 0] + a).exp()
        by_hand += guess.responsibilities[k][:, None] * S / (S + guess.log_noise.mean.exp())
    assert torch.allclose(guessed_gain(guess, prior, v), by_hand)

    class Known:
        def guess(self, *given: Any, **options: Any) -> Guess:
            return guess

    x = torch.randn(FRAMES, 7, dtype=torch.complex128)
    lips = torch.rand(FRAMES, 67, 67)
    gains = [
        Guided(filter_share=noisy, clear_share=clear)(prior, x, lips, guide=Known()).speech / x
        for noisy, clear in ((0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (1.0, 0.5))
    ]
    model, quarter, guide, mixed = gains
    assert torch.allclose(quarter.log(), 0.75 * model.log() + 0.25 * guide.log())
    assert torch.allclose(guide.real, guessed_gain(guess, prior, prior.visual_features(lips)))
    speech, noise = ((g * x).abs().square().sum() for g in (guide, 1 - guide))
    share = (noise + 0.5 * speech) / (noise + speech)
    assert torch.allclose(mixed.log(), (1 - share) * model.log() + share * guide.log())


def test_speech_starts_no_louder_than_in_training(seen: Any) -> None:
    _, guess = seen("a_vae")
    for log_g, expected in ((-1.2, -1.2), (0.8, 0.0)):
        heard = Independent(Normal(torch.tensor([log_g]), torch.ones(1)), 1)
        assert guessed_level(replace(guess, log_gain=heard)).log() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "share"), [("filter_share", -0.1), ("clear_share", 1.5)])
def test_a_share_is_between_0_and_1(name: str, share: float) -> None:
    with pytest.raises(InputError, match=f"{name} is {share}: give 0"):
        Guided(**{name: share})  # type: ignore[arg-type]
