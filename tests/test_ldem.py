"""Langevin EM: what it estimates against quadrature, and smooth chains against the penalty's own law. S17-S20"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_avse.inference.adaptation import RobbinsMonro
from pyro_avse.inference.gradient import GradientState, gradient_state, value_and_grad
from pyro_avse.inference.independence import Independence
from pyro_avse.inference.ldem import LDEM, SmoothTarget
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.mcem import MCEM
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.run import run_chains
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import Info, InputError, Target

pytestmark = pytest.mark.usefixtures("float64")
SmallPrior = Callable[..., Any]
SHORT = {"iterations": 4, "first_warmup": 5, "warmup": 2, "draws": 3, "noise": NoiseModel.paper(2)}
SHORT |= {"final_warmup": 2, "final_draws": 3, "exponent": 0.75}


def complex_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
def test_without_a_penalty_it_is_monte_carlo_em_by_langevin_moves(
    name: str, small_prior: SmallPrior
) -> None:
    """S17-S20: bit for bit `mcem` with the kernel `ula`."""
    prior, x, lips = small_prior(name), complex_normal(6, 7), torch.rand(6, 67, 67)
    one = LDEM(chains=3, **SHORT)(prior, x, lips, seed=2)
    kernel = ULA(longest_drift=1.0)
    other = MCEM(kernel=kernel, chains=3, temperature=20.0, **SHORT)(prior, x, lips, seed=2)
    assert torch.equal(one.speech, other.speech)
    assert torch.equal(one.objective, other.objective)


def test_step_sizes_adapt_from_one_e_step_to_the_next(small_prior: SmallPrior) -> None:
    """As in `mcem`, bit for bit; under a penalty an utterance has one; ULA, which rejects nothing, has none."""
    prior, x, adapt = small_prior("a_vae"), complex_normal(6, 7), RobbinsMonro()
    settings = {**SHORT, "kernel": MALA(), "adapt": adapt, "chains": 3, "temperature": 5.0}
    one, other = LDEM(**settings)(prior, x), MCEM(**settings)(prior, x)
    assert torch.equal(one.chains.kernel.step_size, other.chains.kernel.step_size)
    assert torch.equal(one.speech, other.speech)
    smooth = LDEM(total_variation=1.0, **settings)(prior, x)
    assert smooth.chains.kernel.step_size.shape == (3,)
    with pytest.raises(InputError, match="ULA has no step size to adapt"):
        LDEM(adapt=adapt)(prior, x)


def exact_filter(target: CollapsedTarget) -> tuple[Tensor, Tensor]:
    """E[G | x] and its posterior standard deviation, G of S20, by quadrature over z of one dimension: (frame, freq)."""
    z = torch.linspace(-8, 8, 4001)[:, None, None].expand(-1, target.power.shape[0], 1)
    log_variance = target.prior.log_variance(z, None)
    posterior = torch.softmax(target.component_log_joint(z, log_variance).flatten(0, 1), 0)
    V = target.mixture_variance(log_variance)
    G = (1 - target.noise_variance / V).expand(target.prior.num_components, *V.shape[1:])
    G, p = G.flatten(0, 1), posterior[..., None]
    mean = (p * G).sum(0)
    return mean, (p * (G - mean).square()).sum(0).sqrt()


@dataclass(frozen=True)
class WithoutPush(ULA):
    """Goes uphill and stops at the mode."""

    def step(
        self, target: Target, state: GradientState, *, rng: torch.Generator
    ) -> tuple[GradientState, Info]:
        proposal = gradient_state(target, state.z + 0.5 * self.step_size**2 * state.gradient)
        always = torch.full_like(proposal.log_density, torch.inf)
        return accept_or_reject(state, proposal, always, rng=rng)


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v2", "two_decoders"])
def test_speech_is_the_posterior_mean_but_for_chance(name: str, small_prior: SmallPrior) -> None:
    """S20: the filter of 1000 chains against quadrature, in standard errors; hill climbing fails.

    At eps = 0.25 ULA's variance is too large by about eps^2 / 4 = 1.6 %, which moves means by less than a standard
    error, 3 % of a deviation. 21 coefficients: |z| > 4.5 by chance has probability 7e-6 each, one in 7000 seeds.
    """
    prior, x = small_prior(name, latent_dim=1), complex_normal(3, 7)

    def max_z(kernel: ULA) -> float:
        scheme = LDEM(
            kernel,
            2,
            warmup=20,
            draws=1,
            final_warmup=300,
            final_draws=1,
            chains=1000,
            noise=NoiseModel.paper(2),
        )
        out = scheme(prior, x, torch.rand(3, 67, 67))
        mean, deviation = exact_filter(out.target)
        error = (out.speech / x).real - mean.detach()
        return float((error / deviation.detach()).abs().max() * 1000**0.5)

    assert max_z(ULA(0.25)) < 4.5
    assert max_z(WithoutPush(0.25)) > 4.5


@pytest.fixture
def smooth(small_prior: SmallPrior) -> Callable[..., SmoothTarget]:
    """smooth(weight, *utterances, frames=, mask=): a mixture of two decoders, its code one number."""

    def build(
        weight: float, *utterances: int, frames: int = 2, mask: Tensor | None = None
    ) -> SmoothTarget:
        prior = small_prior("two_decoders", latent_dim=1)
        power = complex_normal(*utterances, frames, 7).abs().square()
        pi = torch.tensor([0.3, 0.7])
        noise = torch.rand(*utterances, frames, 7) + 0.1
        return SmoothTarget(CollapsedTarget(prior, None, power, noise, pi), weight, mask)

    return build


def test_the_penalty_and_its_slope(smooth: Callable[..., SmoothTarget]) -> None:
    """The density by loops over sound neighbours, its gradient by differences; padding feels nothing."""
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    target, z, h = smooth(2.0, 2, frames=5, mask=mask), torch.randn(3, 2, 5, 1), 1e-6
    value, gradient = value_and_grad(target, z)
    frames = target.collapsed.log_density(z).detach()
    for chain in range(3):
        for utterance, length in enumerate((5, 3)):
            expected = frames[chain, utterance, :length].sum()
            for n in range(1, length):
                step = z[chain, utterance, n] - z[chain, utterance, n - 1]
                expected = expected - 2.0 * step.abs().sum()
            torch.testing.assert_close(value[chain, utterance], expected)
    for n in range(5):
        e = torch.zeros(5, 1)
        e[n] = h
        slope = (target.log_density(z + e) - target.log_density(z - e)).detach() / (2 * h)
        torch.testing.assert_close(gradient[..., n, 0], slope, rtol=1e-5, atol=1e-6)
    assert (gradient[:, 1, 3:] == 0).all()


def test_smooth_chains_have_the_penaltys_law(smooth: Callable[..., SmoothTarget]) -> None:
    """E|z_2 - z_1| of 4000 exact chains of whole utterances against quadrature over the plane; |z| < 4.5.

    By chance it fails once in 150,000 seeds. Against the law without the penalty the same draws fail.
    """
    target = smooth(2.0)
    axis = torch.linspace(-6, 6, 601)
    plane = torch.cartesian_prod(axis, axis)[..., None]  # a chain for every (z_1, z_2)

    def law(of: SmoothTarget) -> tuple[Tensor, Tensor]:
        p = torch.softmax(of.log_density(plane).detach().flatten(), 0)
        step = plane.diff(dim=-2).abs().flatten()
        mean = (p * step).sum()
        return mean, (p * (step - mean).square()).sum().sqrt()

    chains = run_chains(MALA(0.5), target, torch.zeros(4000, 2, 1), draws=1, warmup=150, seed=1)
    assert chains.log_density.shape == (4000, 1)  # one density for all frames
    found = chains.state.z.diff(dim=-2).abs().mean()

    def z_score(of: SmoothTarget) -> float:
        mean, deviation = law(of)
        return float((found - mean).abs() / deviation * 4000**0.5)

    assert z_score(target) < 4.5
    assert z_score(SmoothTarget(target.collapsed, 0.0)) > 4.5


def test_a_heavier_penalty_makes_smoother_codes(small_prior: SmallPrior) -> None:
    """The whole scheme: mean steps of z through time fall with lambda; shapes are those of events of an utterance."""
    prior, x = small_prior("a_vae"), complex_normal(2, 12, 7)

    def roughness(weight: float) -> float:
        out = LDEM(total_variation=weight, chains=5, **(SHORT | {"final_warmup": 300}))(prior, x)
        assert out.chains.draws.shape == (5, 3, 2, 12, 2)
        assert out.target.event_dim == (2 if weight else 1)
        return float(out.chains.draws.diff(dim=-2).abs().mean())

    rough, smooth, smoother = (roughness(weight) for weight in (0.0, 2.0, 20.0))
    assert smoother < 0.6 * smooth < 0.4 * rough


def test_what_makes_no_sense_is_refused(small_prior: SmallPrior) -> None:
    """A penalty that tears codes apart; a kernel that needs what the target has not."""
    with pytest.raises(InputError, match=r"total_variation is -1.0: give 0 or more"):
        LDEM(total_variation=-1.0)
    scheme = LDEM(kernel=Independence(), total_variation=1.0)
    with pytest.raises(InputError, match="independence needs a target with `proposal`"):
        scheme(small_prior("a_vae"), complex_normal(6, 7))
