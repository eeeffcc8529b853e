"""EM and its relatives on models small enough to integrate: slides S1, S3-S7, S10."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy.optimize import minimize_scalar
from scipy.stats import binom
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyro_avse.distributions import ComplexNormal, complex_normal_log_prob, update_mixing_weight
from pyro_avse.inference import RandomWalk, run_chains
from pyro_avse.models import AVAE
from pyro_avse.models.mixture import (
    gaussian_kl,
    mixture_free_energy,
    update_responsibilities,
)
from pyro_avse.models.nets import Decoder


@pytest.fixture(autouse=True)
def _float64_and_a_seed() -> Iterator[None]:
    """Everything in float64, from the same seed; the caller's settings return."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(before)


def gauss_hermite(points: int = 100) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E f(z), z ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def test_maximum_likelihood_is_minimum_divergence() -> None:
    """S1: KL(p_data || p_theta) and the mean log-likelihood have one optimum; they sum to a constant."""
    outcomes = np.arange(5)
    data = np.random.default_rng(0).choice(5, size=300, p=[0.1, 0.4, 0.2, 0.05, 0.25])
    p_data = np.bincount(data, minlength=5) / len(data)

    def divergence(theta: float) -> float:
        return float(np.sum(p_data * np.log(p_data / binom.pmf(outcomes, 4, theta))))

    def mean_log_likelihood(theta: float) -> float:
        return float(np.mean(binom.logpmf(data, 4, theta)))

    options = {"bounds": (0.01, 0.99), "method": "bounded", "options": {"xatol": 1e-9}}
    closest = minimize_scalar(divergence, **options).x
    likeliest = minimize_scalar(lambda theta: -mean_log_likelihood(theta), **options).x
    assert closest == pytest.approx(likeliest, abs=1e-6)
    assert closest == pytest.approx(data.mean() / 4, abs=1e-6)
    entropy = -np.sum(p_data * np.log(p_data))
    for theta in (0.2, 0.5, 0.9):
        assert divergence(theta) + mean_log_likelihood(theta) == pytest.approx(-entropy)


def test_only_the_linear_gaussian_model_has_a_gaussian_marginal() -> None:
    """S3: N(mu, A A^T + sigma I) by quadrature over z; a decoder's marginal is no such Gaussian."""
    z, weights = gauss_hermite()
    A, mu, sigma = torch.tensor([0.8, -1.3]), torch.tensor([0.5, 0.1]), 0.4
    s = torch.randn(5, 2)
    given_z = Normal(A * z[:, None, None] + mu, math.sqrt(sigma)).log_prob(s).sum(-1)
    marginal = MultivariateNormal(mu, torch.outer(A, A) + sigma * torch.eye(2)).log_prob(s)
    torch.testing.assert_close((weights[:, None] * given_z.exp()).sum(0).log(), marginal)

    decoder = Decoder(1, 5, 2).requires_grad_(False)
    decoder.log_variance.weight *= 10
    log_variance = decoder(z[:, None])
    given_z = complex_normal_log_prob(s, log_variance[:, None]).sum(-1)
    marginal = (weights[:, None] * given_z.exp()).sum(0).log()
    same_variance = (weights[:, None] * log_variance.exp()).sum(0).log()
    gaussian = complex_normal_log_prob(s, same_variance).sum(-1)
    assert (marginal - gaussian).abs().max() > 0.1


def test_em_of_a_mixture_raises_the_likelihood_to_its_maximum() -> None:
    """S4: (22) as E-step and (25) as M-step climb to where a numerical optimiser ends."""
    log_likelihood = torch.randn(2, 30) * 2 - 5  # log p(s_n | k), fixed components
    pi = torch.tensor([0.95, 0.05])

    def total(pi: Tensor) -> Tensor:
        return torch.logsumexp(pi.log()[:, None] + log_likelihood, 0).sum()

    previous = total(pi)
    for _ in range(120):
        r = update_responsibilities(-log_likelihood, pi)
        bound = -mixture_free_energy(r, -log_likelihood, pi).sum()
        torch.testing.assert_close(bound, previous)  # the E-step closes the gap
        pi = update_mixing_weight(r)
        assert total(pi) >= previous - 1e-12
        previous = total(pi)
    found = minimize_scalar(
        lambda p: -total(torch.tensor([p, 1 - p])).item(),
        bounds=(1e-6, 1 - 1e-6),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert 0.05 < found.x < 0.9
    assert pi[0].item() == pytest.approx(found.x, abs=1e-6)


def test_em_of_the_linear_gaussian_model() -> None:
    """S4: log p(s) = E log p(s, z) - E log p(z | s); E- and M-step raise it to its maximum."""
    s = 1.7 * torch.randn(200)
    nodes, weights = gauss_hermite(40)
    a, variance = torch.tensor(0.3), torch.tensor(4.0)
    history = []
    for _ in range(200):
        marginal = Normal(0.0, (a**2 + variance).sqrt()).log_prob(s)
        posterior = Normal(a * s / (a**2 + variance), (variance / (a**2 + variance)).sqrt())
        z = posterior.mean + posterior.stddev * nodes[:, None]
        log_joint = Normal(0.0, 1.0).log_prob(z) + Normal(a * z, variance.sqrt()).log_prob(s)
        decomposed = (weights[:, None] * (log_joint - posterior.log_prob(z))).sum(0)
        torch.testing.assert_close(decomposed, marginal)
        history.append(marginal.sum())
        second_moment = (posterior.mean**2 + posterior.variance).sum()
        a = (s * posterior.mean).sum() / second_moment
        variance = (s**2 - a * s * posterior.mean).mean()
    assert torch.stack(history).diff().min() > -1e-9
    torch.testing.assert_close(a**2 + variance, (s**2).mean())  # the likeliest variance of s


def one_dimensional_vae() -> tuple[AVAE, Tensor]:
    """An A-VAE with one latent dimension and a lively decoder, and three frames of power."""
    prior = AVAE(num_freqs=7, latent_dim=1, hidden=5)
    with torch.no_grad():
        prior.decoder.hidden.weight *= 3
        prior.decoder.log_variance.weight *= 3
    return prior, torch.empty(3, 7).exponential_()


@torch.no_grad()
def test_the_vae_bound_misses_the_evidence_by_the_divergence() -> None:
    """S5: log p(s) - F(q) = KL(q || p(z | s)) >= 0, on A-VAE's own model and encoder."""
    prior, power = one_dimensional_vae()
    z = torch.linspace(-12, 12, 4001)
    step = z[1] - z[0]

    log_joint = torch.empty(len(power), len(z))
    for n in range(len(power)):  # the grid's points are Pyro's frames
        program = poutine.condition(prior.model, data={"z": z[:, None]})
        trace = poutine.trace(program).get_trace(power[n].expand(len(z), 7))
        trace.compute_log_prob()
        log_joint[n] = trace.nodes["z"]["log_prob"] + trace.nodes["s"]["log_prob"]
    evidence = torch.logsumexp(log_joint + step.log(), -1)

    q = prior.encode(power, None)
    log_q = q.log_prob(z[:, None, None])  # (grid, frame)
    reconstruction = complex_normal_log_prob(power[:, None].sqrt(), prior.decoder(z[:, None]))
    expected = (step * log_q.exp() * reconstruction.sum(-1).T).sum(0)
    bound = expected - gaussian_kl(q, prior.latent_prior(None))[0]  # (5)
    divergence = (step * log_q.exp() * (log_q - (log_joint - evidence[:, None]).T)).sum(0)
    torch.testing.assert_close(evidence - bound, divergence)
    assert (divergence > 0).all()


def test_variational_em_raises_the_bound() -> None:
    """S6: q and theta maximise the bound in turn: it rises, below log p(s), to a stationary point."""
    s, A = torch.randn(50, 3) + 1, torch.randn(3, 2)
    log_noise, m, log_v = torch.tensor(1.0), torch.zeros(50, 2), torch.zeros(2)

    def bound(log_noise: Tensor, m: Tensor, log_v: Tensor) -> Tensor:
        """F with q(z_n) = N(m_n, diag v): exact, as log p(s_n, z_n) is quadratic in z_n."""
        q = Normal(m, (0.5 * log_v).exp().expand_as(m))
        spread = (A**2 @ log_v.exp()).sum()  # E |A (z - m)|^2
        expected = Normal(m @ A.T, (0.5 * log_noise).exp()).log_prob(s).sum()
        divergence = kl_divergence(q, Normal(0.0, 1.0)).sum()
        return expected - 0.5 * len(s) * spread / log_noise.exp() - divergence

    def evidence(log_noise: Tensor) -> Tensor:
        covariance = A @ A.T + log_noise.exp() * torch.eye(3)
        return MultivariateNormal(torch.zeros(3), covariance).log_prob(s).sum()

    history = [bound(log_noise, m, log_v)]
    for _ in range(150):
        precision = A.T @ A / log_noise.exp() + torch.eye(2)
        for l in range(2):  # E-step, a coordinate at a time
            others = m @ precision[:, l] - m[:, l] * precision[l, l]
            m = m.clone()
            m[:, l] = (s @ A[:, l] / log_noise.exp() - others) / precision[l, l]
            history.append(bound(log_noise, m, log_v))
        log_v = -precision.diagonal().log()
        history.append(bound(log_noise, m, log_v))
        error = ((s - m @ A.T) ** 2).sum() + len(s) * (A**2 @ log_v.exp()).sum()
        log_noise = (error / s.numel()).log()  # M-step
        history.append(bound(log_noise, m, log_v))
        assert history[-1] < evidence(log_noise)
    assert torch.stack(history).diff().min() > -1e-9
    arguments = [value.detach().requires_grad_() for value in (log_noise, m, log_v)]
    for gradient in torch.autograd.grad(bound(*arguments), arguments):
        assert gradient.abs().max() < 1e-6


@dataclass(frozen=True)
class ShiftedCodes:
    """z_n ~ N(theta, 1), s_n | z_n ~ N(z_n, 1): the likeliest theta is the mean of s."""

    theta: Tensor
    s: Tensor  # (frame,)
    event_dim: int = 1

    def log_density(self, z: Tensor) -> Tensor:
        return Normal(self.theta, 1.0).log_prob(z[..., 0]) + Normal(self.s, 1.0).log_prob(z[..., 0])


@dataclass(frozen=True)
class PriorOnly(ShiftedCodes):
    """The broken twin: an E-step that does not see the data."""

    def log_density(self, z: Tensor) -> Tensor:
        return Normal(self.theta, 1.0).log_prob(z[..., 0])


def test_monte_carlo_em_ends_at_the_maximum_likelihood() -> None:
    """S7: with draws of a Markov chain in place of the posterior, EM still finds the maximum."""
    # A step halves the error and adds noise of variance at most v = (1/2) / (frames * chains),
    # the posterior's variance over independent chains. Were all steps' noise the same, the end
    # would be off by sqrt(v) / (1 - 1/2): 4.5 of these are a false alarm in 1e5 at most.
    frames, chains = 200, 20
    s = torch.randn(frames) * math.sqrt(2) + 2
    error = 2 * math.sqrt(0.5 / (frames * chains))

    def monte_carlo_em(model: type[ShiftedCodes]) -> float:
        theta, rng = torch.tensor(-1.0), torch.Generator().manual_seed(0)
        z = theta.expand(chains, frames, 1)
        for _ in range(25):
            run = run_chains(RandomWalk(1.5), model(theta, s), z, draws=5, warmup=3, seed=rng)
            theta, z = run.draws.mean(), run.state.z
        return abs(theta.item() - s.mean().item())

    assert monte_carlo_em(ShiftedCodes) < 4.5 * error
    assert monte_carlo_em(PriorOnly) > 4.5 * error


def test_a_stochastic_gradient_of_the_bound_is_unbiased() -> None:
    """S9, S10: the mean of one-draw gradients is the bound's, which quadrature gives exactly."""
    # 104 entries, each the mean of 80 batches, within 4.5 of its standard errors: Student's t of
    # 79 degrees of freedom makes that a false alarm in 400 seeds.
    prior, power = one_dimensional_vae()
    power = power[:1]
    parameters = list(prior.parameters())

    def gradient(bound: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(bound, parameters)])

    def bound(z: Tensor, weights: Tensor) -> Tensor:
        q = prior.audio_encoder(power)
        speech = ComplexNormal(0, prior.decoder(z)).log_prob(power.sqrt()).sum(-1)
        return (weights * speech).sum() - gaussian_kl(q, prior.latent_prior(None)).sum()

    def codes(eps: Tensor) -> Tensor:
        q = prior.audio_encoder(power)
        return q.mean + q.stddev * eps[:, None]

    def codes_without_the_square_root(eps: Tensor) -> Tensor:  # as S9 is printed
        q = prior.audio_encoder(power)
        return q.mean + q.variance * eps[:, None]

    nodes, weights = gauss_hermite()
    exact = gradient(bound(codes(nodes), weights))

    def max_z(draws: list[Tensor]) -> Tensor:
        gradients = torch.stack(draws)
        error = gradients.std(0) / math.sqrt(len(gradients))
        return ((gradients.mean(0) - exact).abs() / error.clamp_min(1e-12)).max()

    size, elbo = 200, Trace_ELBO()
    batch, equal = power.expand(size, -1), torch.full((size,), 1 / size)
    step = [
        gradient(-elbo.differentiable_loss(prior.model, prior.guide, batch) / size)
        for _ in range(80)
    ]
    twin = [
        gradient(bound(codes_without_the_square_root(torch.randn(size)), equal)) for _ in range(80)
    ]
    assert max_z(step) < 4.5
    assert max_z(twin) > 4.5
