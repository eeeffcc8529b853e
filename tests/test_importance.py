"""Importance sampling: evidence, means and filter against quadrature; the proposal's law; what weights tell. S17-S20"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_avse.distributions import ComplexNormal
from pyro_avse.errors import Divergence
from pyro_avse.inference.em import observe
from pyro_avse.inference.importance import Importance, ImportanceSeparation
from pyro_avse.inference.proposal import GaussianMixture, guide_mixture, importance_weights
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.wiener import monte_carlo_wiener, wiener_posterior
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import InputError

pytestmark = pytest.mark.usefixtures("float64")
SmallPrior = Callable[..., Any]
SHORT = Importance(iterations=3, draws=5, final_draws=8, noise=NoiseModel.paper(2))
DRAWS = 20_000


def in_steps(scheme: Importance, prior: Any, x: Tensor, lips: Tensor) -> ImportanceSeparation:
    """As `scheme(...)`, but for `objective`: the evidence under the last theta, from the last draws."""
    observation, rng = observe(prior, x, lips), torch.Generator().manual_seed(0)
    state = scheme.init(observation, rng=rng)
    for _ in range(scheme.iterations):
        state = scheme.step(observation, state, rng=rng)
    out = scheme.finish(observation, state, rng=rng)
    assert torch.equal(out.speech, scheme(prior, x, lips).speech)
    return out


def complex_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
def test_evidence_and_means_are_those_of_quadrature(name: str, small_prior: SmallPrior) -> None:
    """log p(x_n), E z_n, E z_n^2 and p(alpha_n | x_n) of 3 frames, z of one dimension, in standard errors.

    At most 12 scores a model; |z| > 4.5 by chance has probability 7e-6 each, one in 10,000 seeds. Weights that forget
    the proposal's density, and a proposal that forgets its widening, fail.
    """
    prior, lips = small_prior(name, latent_dim=1), torch.rand(3, 67, 67)
    power, noise = complex_normal(3, 7).abs().square(), torch.rand(3, 7) + 0.1
    K = prior.num_components
    pi = torch.tensor([0.3, 0.7])[:K] / torch.tensor([0.3, 0.7])[:K].sum()
    target = CollapsedTarget(prior, None, power, noise, pi)

    grid = torch.linspace(-9, 9, 4001)
    joint = target.component_log_joint(grid[:, None, None].expand(-1, 3, 1)).detach()
    evidence = torch.logsumexp(joint, (0, 1)) + math.log(18 / 4000)
    p = torch.softmax(joint.flatten(0, 1), 0).reshape(joint.shape)
    exact = torch.stack([(p.sum(0) * grid[:, None] ** m).sum(0) for m in (1, 2)])
    exact = torch.stack([*exact, p[0].sum(0)])

    r = pi[:, None].expand(K, 3)
    q = guide_mixture(prior.encode(power, lips), prior, None, r, pi, 1.5, 0.1)
    z = q.sample(DRAWS, rng=generator(1)).detach()
    log_joint, log_q = target.component_log_joint(z).detach(), q.log_prob(z).detach()

    def max_z(log_q: Tensor) -> float:
        w, log_evidence = importance_weights(log_joint, log_q)
        omega = w.sum(0)  # (draw, frame)
        noise_of_evidence = (DRAWS * omega.square().sum(0) - 1).sqrt() / math.sqrt(DRAWS)
        scores = [(log_evidence - evidence) / noise_of_evidence]
        rho = w[0] / omega
        for value, mean in zip((z[..., 0], z[..., 0] ** 2, rho), exact, strict=True):
            error = (omega * value).sum(0) - mean
            deviation = (omega.square() * (value - mean).square()).sum(0).sqrt()
            scores.append(error / deviation.clamp_min(1e-6))
        return torch.stack(scores).abs().max().item()

    narrow = replace(q, stddev=torch.cat([q.stddev[:K] / 1.5, q.stddev[K:]]))
    assert max_z(log_q) < 4.5
    assert max_z(torch.zeros_like(log_q)) > 4.5
    assert max_z(narrow.log_prob(z).detach()) > 4.5


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v2", "two_decoders"])
def test_the_scheme_ends_at_the_posterior_mean(name: str, small_prior: SmallPrior) -> None:
    """S20: speech, codes and the last objective of the whole scheme against quadrature at its own W, H, g and pi."""
    prior, x = small_prior(name, latent_dim=1), complex_normal(3, 7)
    scheme = Importance(iterations=3, draws=50, final_draws=DRAWS, noise=NoiseModel.paper(2))
    out = in_steps(scheme, prior, x, torch.rand(3, 67, 67))
    grid = torch.linspace(-9, 9, 4001)
    z = grid[:, None, None].expand(-1, 3, 1)
    log_variance = prior.log_variance(z, None).detach()
    joint = out.target.component_log_joint(z).detach()
    p = torch.softmax(joint.flatten(0, 1), 0).reshape(joint.shape)
    factors = out.dictionary, out.activations, out.gain
    speech = monte_carlo_wiener(
        x, log_variance.exp(), p, *factors
    )  # the quadrature's nodes as draws
    evidence = torch.logsumexp(joint, (0, 1)) + math.log(18 / 4000)
    # 20,000 draws worth at least 2000: 6 standard errors are 0.13 of a posterior deviation
    assert out.effective_sample_size.min() > 2000
    assert (out.effective_sample_size <= DRAWS).all()
    assert ((out.speech - speech).abs() / x.abs()).max() < 0.02
    assert (out.z[0, :, 0] - (p.sum(0) * grid[:, None]).sum(0)).abs().max() < 0.13
    torch.testing.assert_close(out.objective[-1], evidence.sum(), rtol=0, atol=0.2)
    torch.testing.assert_close(out.responsibilities, p.sum(1), rtol=0, atol=0.07)


def test_a_proposal_that_is_the_posterior_has_equal_weights(small_prior: SmallPrior) -> None:
    """Where x tells nothing about z, the prior is the posterior: all R draws count, and the evidence is exact."""
    prior, x = small_prior("min_vae_v2"), complex_normal(6, 7)
    with torch.no_grad():
        prior.decoder.hidden.weight.zero_()
    scheme = replace(SHORT, defensive=1.0)
    out = in_steps(scheme, prior, x, torch.rand(6, 67, 67))
    torch.testing.assert_close(out.effective_sample_size, torch.full((6,), 8.0))
    speech = out.gain[:, None] * prior.log_variance(torch.zeros(6, 2), None)[0].detach().exp()
    marginal = ComplexNormal(0, torch.log(speech + out.activations @ out.dictionary))
    torch.testing.assert_close(out.objective[-1], marginal.log_prob(x).sum())
    guided = replace(scheme, defensive=0.1)(prior, x, torch.rand(6, 67, 67))
    assert (guided.effective_sample_size < 7.9).all()


def test_the_weights_are_bounded_by_the_share_of_the_prior(small_prior: SmallPrior) -> None:
    """u_r <= p(x | z_r) / d, however far the encoder is off."""
    prior, power = small_prior("two_decoders"), torch.rand(4, 7)
    pi, noise = torch.tensor([0.3, 0.7]), torch.rand(4, 7) + 0.1
    target = CollapsedTarget(prior, None, power, noise, pi)
    r = torch.full((2, 4), 0.5)
    q = guide_mixture(prior.encode(power, torch.rand(4, 67, 67)), prior, None, r, pi, 0.05, 0.2)
    z = 3 * torch.randn(500, 4, 2)
    log_prior = torch.logsumexp(
        prior.latent_prior(None).log_prob(z[:, None]) + pi.log()[:, None], 1
    )
    log_u = torch.logsumexp(target.component_log_joint(z), 0) - q.log_prob(z)
    log_likelihood = torch.logsumexp(target.component_log_joint(z), 0) - log_prior
    assert (log_u <= log_likelihood - math.log(0.2) + 1e-9).all()


@pytest.mark.parametrize("name", ["v_vae", "vae_mm", "min_vae_v1"])
def test_the_proposal_is_the_guide_and_the_prior(name: str, small_prior: SmallPrior) -> None:
    """q(z), term by term: r_k for the encoders, widened; pi_k for the priors; each utterance and frame its own."""
    prior, power, lips = small_prior(name), torch.rand(2, 4, 7), torch.rand(2, 4, 67, 67)
    K = prior.num_components
    r, pi = torch.softmax(torch.randn(K, 2, 4), 0), torch.softmax(torch.randn(K, 2), 0)
    z, v = torch.randn(2, 4, 2), prior.visual_features(lips)
    q = guide_mixture(prior.encode(power, lips), prior, v, r, pi, 1.5, 0.2)
    expected = torch.zeros(2, 4)
    for u, n in itertools.product(range(2), range(4)):
        at = slice(n, n + 1)
        encoder, latent = prior.encode(power[u, at], lips[u, at]), prior.latent_prior(lips[u, at])
        for k in range(K):
            wide = Normal(encoder.mean[k, 0], 1.5 * encoder.stddev[k, 0])
            narrow = Normal(latent.mean[k, 0], latent.stddev[k, 0])
            expected[u, n] += 0.8 * r[k, u, n] * wide.log_prob(z[u, n]).sum().exp()
            expected[u, n] += 0.2 * pi[k, u] * narrow.log_prob(z[u, n]).sum().exp()
    torch.testing.assert_close(q.log_prob(z[None])[0], expected.log())


def random_mixture(*shape: int) -> GaussianMixture:
    weights = torch.softmax(torch.randn(3, *shape[:-1]), 0)
    return GaussianMixture(weights.log(), 2 * torch.randn(3, *shape), 0.3 + torch.rand(3, *shape))


def test_the_mixtures_density_is_torchs() -> None:
    mixture, z = random_mixture(2, 4, 5), torch.randn(6, 2, 4, 5)
    parts = Normal(mixture.mean.movedim(0, -2), mixture.stddev.movedim(0, -2))
    weights = Categorical(logits=mixture.log_weights.movedim(0, -1))
    expected = MixtureSameFamily(weights, torch.distributions.Independent(parts, 1)).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(z), expected)


def test_draws_follow_the_mixture() -> None:
    """Kolmogorov-Smirnov on every frame; p < 1e-5 by chance once in 25,000 seeds. Parts picked evenly fail."""
    mixture = random_mixture(4, 1)

    def least_p(law: GaussianMixture) -> float:
        z = law.sample(5000, rng=generator(2))[..., 0]

        def cdf(n: int) -> Callable[[Any], Any]:
            parts = Normal(mixture.mean[:, n], mixture.stddev[:, n])
            weights = mixture.log_weights[:, n, None].exp()
            return lambda at: (weights * parts.cdf(torch.as_tensor(at))).sum(0).numpy()

        return min(kstest(z[:, n].numpy(), cdf(n)).pvalue for n in range(4))

    assert least_p(mixture) > 1e-5
    even = torch.full_like(mixture.log_weights, -math.log(3))
    assert least_p(replace(mixture, log_weights=even)) < 1e-5


def test_the_encoder_hears_speech_as_loud_as_in_training(
    small_prior: SmallPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the mixture's power, then E|s|^2 / g: by quadrature, the E-step before it, its gain the M-step's."""
    prior, x = small_prior("a_vae", latent_dim=1), complex_normal(3, 7)
    heard: list[Tensor] = []
    encode = prior.encode

    def listen(power: Tensor, lips: Tensor | None) -> Any:
        heard.append(power)
        return encode(power, lips)

    monkeypatch.setattr(prior, "encode", listen)
    scheme = Importance(draws=DRAWS, final_draws=DRAWS, noise=NoiseModel.paper(2))
    one, two = (replace(scheme, iterations=n)(prior, x) for n in (1, 2))
    torch.testing.assert_close(heard[0], x.abs().square())

    z = torch.linspace(-9, 9, 4001)[:, None, None].expand(-1, 3, 1)
    p = torch.softmax(one.target.log_density(z), 0)[
        ..., None
    ]  # the E-step before two's last M-step
    speech_variance = one.gain[:, None] * prior.log_variance(z, None)[0].exp()
    m, nu = wiener_posterior(x, speech_variance, one.target.noise_variance)
    second_moment = (p * (m.abs().square() + nu)).sum(0).detach()
    torch.testing.assert_close(heard[-1], second_moment / two.gain[:, None], rtol=0.03, atol=0.01)
    assert not torch.allclose(heard[-1], second_moment, rtol=0.1)


@pytest.mark.parametrize(
    "wrong", [{"defensive": 0.0}, {"defensive": 1.5}, {"widening": 0.0}, {"narrowing": 0.0}]
)
def test_a_proposal_that_misses_the_posterior_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="give a share above 0 and up to 1"):
        Importance(**wrong)


def test_draws_without_weight_stop_with_the_cure(small_prior: SmallPrior) -> None:
    """What was drawn is kept."""
    scheme = Importance(draws=2, widening=1e200, defensive=1e-9)
    with pytest.raises(
        Divergence, match=r"importance: .* in iteration 1: take a smaller widening"
    ) as stop:
        scheme(small_prior("a_vae"), complex_normal(6, 7))
    assert stop.value.partial.shape == (2, 6, 2)
