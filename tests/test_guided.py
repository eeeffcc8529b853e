"""Langevin EM under a guide: what its chains sample, and what it is without one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pyro.distributions import Independent, MixtureSameFamily, Normal
from torch import Tensor
from torch.distributions import Categorical

from pyro_avse.enhancement.find import build_scheme
from pyro_avse.inference import run_chains
from pyro_avse.inference.bridge import Bridge
from pyro_avse.inference.em import observe
from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.guess import guessed_gain
from pyro_avse.inference.guided import Guided
from pyro_avse.inference.ldem import LDEM
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.mcem import MCEM
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


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v1", "two_decoders"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_chains_sample_the_geometric_mean(name: str, share: float, seen: Any) -> None:
    """Its density by torch's mixture of Normals, its gradient by autograd; its ends are the posterior and the guide."""
    target, guess = seen(name)
    between = Bridge.guided(target, guess, 1 - share)
    z = torch.randn(4, FRAMES, 2)
    q = MixtureSameFamily(
        Categorical(guess.responsibilities.movedim(0, -1)),
        Independent(Normal(guess.codes.mean.movedim(0, -2), guess.codes.stddev.movedim(0, -2)), 1),
    )
    by_hand = (1 - share) * target.log_density(z) + share * q.log_prob(z)
    assert torch.allclose(between.log_density(z), by_hand)
    leaf = z.clone().requires_grad_()
    expected = torch.autograd.grad(between.log_density(leaf).sum(), leaf)[0]
    value, slope = value_and_grad(between, z)
    assert torch.allclose(value, by_hand)
    assert torch.allclose(slope, expected)


def test_of_two_gaussians_it_is_the_gaussian_between(seen: Any) -> None:
    """Exact chains on it: precisions add up by their shares. Means of 4000 draws, 5 standard errors: a false alarm in
    2e5; the twin with the shares changed over is far away.
    """
    _, guess = seen("a_vae")

    class Gaussian:
        event_dim = 1

        def log_density(self, z: Tensor) -> Tensor:
            return Normal(2.0, 0.5).log_prob(z).sum(-1)

    share = 0.2
    draws = {}
    for w in (share, 1 - share):
        between = Bridge.guided(Gaussian(), guess, 1 - w)
        start = torch.zeros(40, FRAMES, 2)
        draws[w] = run_chains(
            MALA(step_size=0.5), between, start, draws=200, warmup=100, thin=2
        ).draws
    m, s = guess.codes.mean[0], guess.codes.stddev[0]
    precision = (1 - share) / 0.25 + share / s.square()
    mean = ((1 - share) * 2 / 0.25 + share * m / s.square()) / precision
    away = {w: (d.mean((0, 1)) - mean).abs() * precision.sqrt() for w, d in draws.items()}
    assert away[share].max() < 0.08 < away[1 - share].max()


def test_without_a_guide_it_is_ldem_with_the_settings_that_were_given(seen: Any) -> None:
    """Those that are as its own defaults, too; `otherwise` has the last word."""
    target, _ = seen("a_vae")
    x = torch.randn(20, 7, dtype=torch.complex128)
    found = Guided()(target.prior, x, seed=3)
    assert torch.equal(found.speech, LDEM()(target.prior, x, seed=3).speech)
    settings = {"iterations": 4, "noise": {"rank": 3}, "kernel": "mala", "guide_share": 0.5}
    same = LDEM(iterations=4, noise=NoiseModel(rank=3), kernel=MALA())
    assert build_scheme("guided", settings).otherwise == same
    assert build_scheme("guided", {}, 4, "paper").otherwise == build_scheme("ldem", {}, 4, "paper")
    own = build_scheme("guided", settings | {"otherwise": {"iterations": 9}})
    assert (own.iterations, own.otherwise) == (4, replace(same, iterations=9))
    assert len(own(target.prior, x).objective) == 9


def test_the_guide_has_its_share(seen: Any) -> None:
    """With all of it, chains that move exactly stay at q's codes; with none of it they are mcem's own."""
    target, _ = seen("a_vae")
    prior = target.prior
    guide = NoisyGuide(prior, hidden=6, layers=1).double().requires_grad_(False)
    x = torch.randn(20, 7, dtype=torch.complex128)
    options = {"kernel": MALA(step_size=0.3), "final_warmup": 50, "final_draws": 300}
    alone = Guided(guide_share=1.0, **options)(prior, x, guide=guide)
    q = guide.guess(x.abs().square()).codes
    away = (alone.chains.draws.mean((0, 1)) - q.mean[0]).abs() / q.stddev[0]
    assert away.mean() < 0.2
    settings = Guided(guide_share=0.0, filter_share=0.0, temperature=float("inf"), exponent=0.5)
    exact = settings(prior, x, guide=guide)
    names = ("iterations", "warmup", "draws", "first_warmup", "final_warmup", "final_draws")
    same = MCEM(**{n: getattr(settings, n) for n in names}, chains=2, kernel=settings.kernel)
    assert torch.allclose(exact.speech, same(prior, x, guide=guide).speech)


def test_it_is_its_steps_in_a_row(seen: Any) -> None:
    """`guided(...)`, to the last bit; and it looks at the guide while it goes, not at its start alone."""
    target, _ = seen("a_vae")
    prior, x = target.prior, torch.randn(20, 7, dtype=torch.complex128)
    guide = NoisyGuide(prior, hidden=6, layers=1).double().requires_grad_(False)
    found = {}
    for share in (0.3, 0.6):
        scheme = Guided(guide_share=share)
        seen_by_it = observe(prior, x, guide=guide)
        rng = torch.Generator().manual_seed(5)
        state = scheme.init(seen_by_it, rng=rng)
        for _ in range(scheme.iterations):
            state = scheme.step(seen_by_it, state, rng=rng)
        found[share] = scheme.finish(seen_by_it, state, rng=rng).speech
        assert torch.equal(found[share], scheme(prior, x, guide=guide, seed=5).speech)
    assert not torch.allclose(found[0.3], found[0.6])


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v1", "two_decoders"])
def test_speech_is_between_two_filters(name: str, seen: Any) -> None:
    """The guide's by hand, component by component; in decibels the gain is the mean of both; 0 and 1 are the two."""
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
        Guided(filter_share=share)(prior, x, lips, guide=Known()).speech / x
        for share in (0.0, 0.25, 1.0)
    ]
    assert torch.allclose(gains[1].log(), 0.75 * gains[0].log() + 0.25 * gains[2].log())
    assert torch.allclose(gains[2].real, guessed_gain(guess, prior, prior.visual_features(lips)))


def test_refusals(seen: Any) -> None:
    with pytest.raises(InputError, match=r"guide_share is 1.5: give 0"):
        Guided(guide_share=1.5)
    with pytest.raises(InputError, match=r"filter_share is -0.1: give 0"):
        Guided(filter_share=-0.1)
    with pytest.raises(InputError, match="take ldem"):
        Guided(total_variation=1.0)
