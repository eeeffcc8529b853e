"""The whole algorithm of variational EM: its estimate, chains, stopping, and that it works. (31)-(45)"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_avse.distributions import ComplexNormal
from pyro_avse.inference import VEM, RandomWalk
from pyro_avse.inference.em import converged, observe
from pyro_avse.inference.mean_field import latent_responsibilities
from pyro_avse.models import AVAE, MINVAEv2
from pyro_avse.models.nmf_noise import NoiseModel, nmf_noise_variance
from pyro_avse.typing import Info, State, Target

pytestmark = pytest.mark.usefixtures("float64")
SIZES = {"num_freqs": 7, "latent_dim": 3, "hidden": 5}
SmallPrior = Callable[..., Any]


def complex_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


SHORT = VEM(iterations=5, warmup=2, draws=3, chains=2, noise=NoiseModel.paper(2))


def test_the_estimate_is_that_of_the_last_draws_and_factors(small_prior: SmallPrior) -> None:
    """(34), (45): speech is gamma / (gamma + WH) x, gamma harmonic over the returned draws."""
    prior, x = small_prior("two_decoders", **SIZES), complex_normal(6, 7)
    out = SHORT(prior, x, torch.rand(6, 67, 67))
    draws = out.chains.draws.flatten(0, 1)
    precision = torch.zeros(6, 7)
    for k, d in itertools.product(range(2), range(len(draws))):
        variance = prior.log_variance(draws[d], None)[k].detach().exp()
        precision += out.responsibilities[k][:, None] / variance / len(draws)
    WH = out.activations @ out.dictionary
    torch.testing.assert_close(out.speech, x / (1 + precision * WH))


@dataclass(frozen=True)
class Watched(RandomWalk):
    """A random walk that notes where each E-step starts and where each step ends."""

    starts: list[Tensor] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)

    def init(self, target: Target, z: Tensor) -> State:
        self.starts.append(z)
        return super().init(target, z)

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        state, info = super().step(target, state, rng=rng)
        self.ends.append(state.z)
        return state, info


def test_chains_go_on_from_iteration_to_iteration(small_prior: SmallPrior) -> None:
    """(36): the first E-step starts at the encoder's mean, each other where the last one ended."""
    x, prior, kernel = complex_normal(6, 7), small_prior("a_vae", **SIZES), Watched()
    replace(SHORT, kernel=kernel)(prior, x)
    steps = SHORT.warmup + SHORT.draws
    start = prior.audio_encoder(x.abs().square()).mean.detach()
    torch.testing.assert_close(kernel.starts[0], start.expand(2, 6, 3))
    assert len(kernel.starts) == 5
    for i in range(1, 5):
        assert torch.equal(kernel.starts[i], kernel.ends[i * steps - 1])


def test_tolerance_stops_early_and_none_does_not(small_prior: SmallPrior) -> None:
    """It stops once ten iterations gained less than `tolerance` a coefficient on the ten before."""
    x, prior = complex_normal(2, 6, 7), small_prior("a_vae", **SIZES)
    scheme = replace(SHORT, iterations=45)
    assert len(scheme(prior, x).objective) == 45
    stopped = replace(scheme, tolerance=1e6)(prior, x)
    assert len(stopped.objective) == 20
    never = replace(scheme, tolerance=-1e6)(prior, x)
    assert len(never.objective) == 45
    torch.testing.assert_close(stopped.objective, never.objective[:20])

    rising = [torch.tensor([float(i), 0.0]) for i in range(20)]  # one utterance gains 10 a window
    x = torch.ones(2, 5, 7, dtype=torch.complex128)
    whole = observe(prior, x)
    jumped = [
        torch.full((2,), -1e6)
    ] * 10 + rising  # what was before the last two windows is forgotten
    assert converged(jumped, 0.3, whole)
    assert not converged(jumped[:20], 0.3, whole)
    assert not converged(rising, 0.25, whole)  # 10 / 35 coefficients
    assert converged(rising, 0.3, whole)
    mask = torch.tensor([[True] * 2 + [False] * 3, [True] * 5])
    assert not converged(rising, 0.3, observe(prior, x, mask=mask))


def test_equal_components_leave_the_responsibilities_at_the_mixing_weight() -> None:
    """(40): where both priors are one Gaussian, z says nothing about alpha and r is pi."""
    prior, z = MINVAEv2(**SIZES), torch.randn(5, 6, 3)  # both N(0, I) before training
    pi, power = torch.tensor([0.3, 0.7]), torch.rand(6, 7)
    r = latent_responsibilities(prior, z, None, prior.log_variance(z, None), power, pi)
    torch.testing.assert_close(r.detach(), pi[:, None].expand(2, 6))
    out = SHORT(prior, complex_normal(6, 7), torch.rand(6, 67, 67))
    torch.testing.assert_close(out.mixing_weight, torch.tensor([0.5, 0.5]))


def known_mixture(seed: int) -> tuple[AVAE, Tensor, Tensor]:
    """A-VAE with a lively decoder, speech drawn from it, and the mixture with NMF noise at 0 dB."""
    torch.manual_seed(seed)
    prior = AVAE(num_freqs=17, latent_dim=2, hidden=8)
    torch.nn.init.normal_(prior.decoder.hidden.weight)
    torch.nn.init.normal_(prior.decoder.log_variance.weight)
    with torch.no_grad():
        s = pyro.sample("s", ComplexNormal(0, prior.decoder(torch.randn(40, 2))))
    W, H = torch.rand(1, 17) ** 4, 0.5 + torch.rand(40, 1)
    b = pyro.sample("b", ComplexNormal(0, nmf_noise_variance(W, H).log()))
    return prior, s, s + b * s.norm() / b.norm()


def si_sdr(estimate: Tensor, s: Tensor) -> float:
    """Scale-invariant SDR in dB: at 0 dB halving the mixture alone would gain 3 dB of plain SDR."""
    target = (estimate * s.conj()).sum() / s.norm() ** 2 * s
    return 20 * math.log10(target.norm() / (estimate - target).norm())


def test_vem_improves_speech_drawn_from_the_model() -> None:
    """(31)-(45): mixtures drawn from the model gain SDR; under another network they lose some."""
    # Over 24 seeds the gain was 5.4 dB on average, never below 2.5; with another decoder never
    # above -0.2. Lowest of four seeds against 1 dB: no false alarm seen.
    scheme = VEM(iterations=30, warmup=10, draws=5, noise=NoiseModel.paper(1))

    def gain(prior: AVAE, s: Tensor, x: Tensor) -> float:
        return si_sdr(scheme(prior, x).speech, s) - si_sdr(x, s)

    mixtures = [known_mixture(seed) for seed in range(4)]
    others = [prior for prior, _, _ in mixtures[1:] + mixtures[:1]]
    assert min(gain(*mixture) for mixture in mixtures) > 1
    assert max(gain(other, s, x) for other, (_, s, x) in zip(others, mixtures, strict=True)) < 0
