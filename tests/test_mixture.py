"""Training's closed forms over alpha: against optimisers, quadrature, enumeration and torch's own divergences."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from pyro_avse.distributions import update_mixing_weight
from pyro_avse.models import MODELS
from pyro_avse.models.mixture import (
    bernoulli_kl,
    component_elbo_terms,
    component_negative_elbo,
    gaussian_kl,
    mixture_free_energy,
    mixture_posterior,
    select_component,
    update_responsibilities,
)
from pyro_avse.typing import couples_frames

pytestmark = pytest.mark.usefixtures("float64")

FRAMEWISE = [name for name, kind in MODELS.items() if not couples_frames(kind)]
PRIORS = [*FRAMEWISE, "two_decoders", "vae_mm+three"]
MIXTURES = ["vae_mm+three", *(n for n in FRAMEWISE if MODELS[n]().num_components > 1)]


@pytest.mark.parametrize("components", [2, 3])
def test_responsibilities_minimise_the_free_energy(components: int) -> None:
    """(19), (22): a numerical minimiser over r ends at update_responsibilities; (22)'s sigmoid too."""
    J = 3 * torch.randn(components, 4)
    pi = torch.softmax(torch.randn(components), 0)

    def free_energy(logits: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(logits.reshape(components, 4), requires_grad=True)
        F = mixture_free_energy(torch.softmax(free, 0), J, pi).sum()
        F.backward()
        return F.item(), free.grad.numpy().ravel()

    start = np.zeros(components * 4)
    found = minimize(free_energy, start, jac=True, options={"gtol": 1e-9})
    r = update_responsibilities(J, pi)
    numerical = torch.softmax(torch.tensor(found.x.reshape(components, 4)), 0)
    torch.testing.assert_close(r, numerical, rtol=0, atol=1e-6)
    if components == 2:
        sigmoid = torch.sigmoid(J[1] - J[0] + torch.logit(pi[0]))
        torch.testing.assert_close(r[0], sigmoid)


def test_the_minimum_is_a_logsumexp() -> None:
    """(19) at (22) is -log sum_k pi_k exp(-J_k), for utterance axes and a pi of their own too."""
    for pi, J in [
        (torch.softmax(torch.randn(3), 0), 5 * torch.randn(3, 6)),
        (torch.softmax(torch.randn(2, 4), 0), 5 * torch.randn(2, 4, 6)),
    ]:
        F = mixture_free_energy(update_responsibilities(J, pi), J, pi)
        torch.testing.assert_close(F, -(pi[..., None] * torch.exp(-J)).sum(0).log())


def test_free_energy_is_divergence_plus_expectation() -> None:
    """(19), (23): KL(r || pi) of torch's Categoricals plus J enumerated under r, for any r."""
    r = torch.softmax(torch.randn(3, 5), 0)
    J, pi = torch.randn(3, 5), torch.softmax(torch.randn(3), 0)
    kl = kl_divergence(Categorical(r.T), Categorical(pi))
    expected = kl + torch.stack([Categorical(r.T).probs[:, k] * J[k] for k in range(3)]).sum(0)
    torch.testing.assert_close(mixture_free_energy(r, J, pi), expected)


def printed_bernoulli_kl(r: Tensor, pi: float) -> Tensor:
    """(24) as the paper prints it: pi under both fractions."""
    return r * torch.log(r / pi) + (1 - r) * torch.log((1 - r) / pi)


def test_bernoulli_divergence() -> None:
    """(24): torch's KL of two Bernoullis; the printed form differs from it."""
    r, pi = torch.rand(6), 0.3
    expected = kl_divergence(Bernoulli(r), Bernoulli(torch.tensor(pi)))
    both = bernoulli_kl(torch.stack([r, 1 - r]), torch.tensor([pi, 1 - pi]))
    torch.testing.assert_close(both, expected)
    assert (printed_bernoulli_kl(r, pi) - expected).abs().min() > 1e-3


def test_mixing_weight_minimises_the_divergence() -> None:
    """(25): the minimiser of sum_n (24) over pi is the mean of r; of the printed (24) it is pi = 1."""
    r = torch.rand(20)
    both = torch.stack([r, 1 - r])

    def minimiser(divergence: Callable[[float], Tensor]) -> float:
        return minimize_scalar(
            lambda pi: divergence(pi).sum().item(),
            bounds=(1e-6, 1 - 1e-6),
            method="bounded",
            options={"xatol": 1e-9},
        ).x

    right = minimiser(lambda pi: bernoulli_kl(both, torch.tensor([pi, 1 - pi])))
    assert update_mixing_weight(both)[0].item() == pytest.approx(right, abs=1e-6)
    assert minimiser(lambda pi: printed_bernoulli_kl(r, pi)) > 1 - 1e-4


def test_padding_has_no_say_in_the_mixing_weight() -> None:
    """(25): frames masked out do not enter the mean."""
    r = torch.softmax(torch.randn(2, 3, 5), 0)
    frames = torch.tensor([5, 3, 1])
    pi = update_mixing_weight(r, torch.arange(5) < frames[:, None])
    for i, n in enumerate(frames):
        torch.testing.assert_close(pi[:, i], update_mixing_weight(r[:, i, :n]))


def test_a_component_held_at_zero_costs_nothing() -> None:
    """(19), (24): 0 log 0 = 0, and an infinite J of a component without weight is ignored."""
    r = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    pi = torch.tensor([0.3, 0.7])
    torch.testing.assert_close(bernoulli_kl(r, pi), -pi.log())
    J = torch.tensor([[2.0, math.inf], [math.inf, 3.0]])
    torch.testing.assert_close(mixture_free_energy(r, J, pi), torch.tensor([2.0, 3.0]) - pi.log())
    torch.testing.assert_close(update_responsibilities(J, pi), r)


def diagonal(normal: Independent) -> MultivariateNormal:
    return MultivariateNormal(normal.mean, torch.diag_embed(normal.variance))


def test_gaussian_divergence() -> None:
    """(29): torch's KL of two multivariate normals, batch axes broadcasting."""
    q = Independent(Normal(torch.randn(3, 4, 5), torch.rand(3, 4, 5) + 0.1), 1)
    p = Independent(Normal(torch.randn(4, 5), torch.rand(4, 5) + 0.1), 1)
    torch.testing.assert_close(gaussian_kl(q, p), kl_divergence(diagonal(q), diagonal(p)))


def test_divergence_from_an_isotropic_gaussian() -> None:
    """(30): the closed form for N(mu_a, sigma_a I) with + before the trace; the printed - is wrong."""
    L, variance = 32, 1.7
    q = Independent(Normal(torch.randn(L), torch.rand(L) + 0.1), 1)
    p = Independent(Normal(torch.randn(L), torch.full((L,), math.sqrt(variance))), 1)
    log_ratio = 0.5 * (L * math.log(variance) - q.variance.log().sum())
    trace = (q.variance.sum() + (q.mean - p.mean).square().sum()) / (2 * variance)
    expected = kl_divergence(diagonal(q), diagonal(p))
    torch.testing.assert_close(gaussian_kl(q, p), expected)
    torch.testing.assert_close(log_ratio + trace - L / 2, expected)
    assert log_ratio - trace - L / 2 < expected - 1


def quadrature_negative_elbo(
    prior: nn.Module, power: Tensor, lips: Tensor, encoder_power: Tensor
) -> Tensor:
    """(20) before its KL is split off: E_q log q / p(s, z | k) by Gauss-Hermite, one k at a time."""
    x, w = map(torch.tensor, np.polynomial.hermite_e.hermegauss(24))
    nodes = torch.cartesian_prod(*[x] * prior.latent_dim)  # (node, latent)
    weights = torch.cartesian_prod(*[w / w.sum()] * prior.latent_dim).prod(-1)
    q, p, J = prior.encode(encoder_power, lips), prior.latent_prior(lips), []
    for k in range(prior.num_components):
        q_k = Normal(q.mean[k], q.stddev[k])
        z = q_k.mean + q_k.stddev * nodes[:, None]
        log_variance = prior.log_variance(z, lips)
        sigma = log_variance[k if len(log_variance) > 1 else 0].exp()
        log_s = (Exponential(1 / sigma).log_prob(power) - math.log(math.pi)).sum(-1)
        log_p = Normal(p.mean[k], p.stddev[k]).log_prob(z).sum(-1) + log_s
        J.append((weights[:, None] * (q_k.log_prob(z).sum(-1) - log_p)).sum(0))
    return torch.stack(J)


@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_negative_elbo_of_one_draw_is_unbiased(
    name, small_prior, random_power, random_lips
) -> None:
    """(5), (20), (21), S8: the mean of 2000 one-draw J_k is (20) by quadrature; without the KL it is not.

    The encoder hears noise on top of the speech that is scored.
    """
    # At most 4 statistics a model: P(max |z| > 5) < 3e-6 for a right J.
    prior = small_prior(name)
    power, lips = random_power(2, 7), random_lips(2)
    heard = power + random_power(2, 7)
    exact = quadrature_negative_elbo(prior, power, lips, heard)
    many = [x.expand(2000, *x.shape) for x in (power, lips, heard)]
    draws = component_negative_elbo(prior, *many[:2], encoder_power=many[2])
    assert draws.shape == (prior.num_components, 2000, 2)

    def max_z(J: Tensor) -> float:
        return ((J.mean(1) - exact).abs() / (J.std(1) / math.sqrt(2000))).max().item()

    kl, _ = component_elbo_terms(prior, power, lips, encoder_power=heard)
    assert max_z(draws) < 5
    assert max_z(draws - kl[:, None]) > 5
    q, p = prior.encode(heard, lips), prior.latent_prior(lips)
    torch.testing.assert_close(kl, kl_divergence(q.base_dist, p.base_dist).sum(-1))


def shrunk(q: Independent, scale: float) -> Independent:
    """The same means with next to no variance: draws that are known beforehand."""
    return Independent(Normal(q.mean, scale * torch.ones_like(q.mean)), 1)


@pytest.mark.parametrize("name", PRIORS)
def test_utterances_are_independent(name, small_prior, random_power, random_lips) -> None:
    """(21) of a (2, 3) batch of utterances is (21) of each."""
    prior = small_prior(name)
    power, lips = random_power(2, 3, 4, 7), random_lips(2, 3, 4)
    encode = prior.encode
    prior.encode = lambda *inputs: shrunk(encode(*inputs), 1e-12)
    batch = component_negative_elbo(prior, power, lips)
    assert batch.shape == (prior.num_components, 2, 3, 4)
    for i, j in itertools.product(range(2), range(3)):
        one = component_negative_elbo(prior, power[i, j], lips[i, j])
        torch.testing.assert_close(batch[:, i, j], one)


@pytest.mark.parametrize("name", MIXTURES)
def test_weighted_gradient_is_that_of_the_minimum(
    name, small_prior, random_power, random_lips
) -> None:
    """(23): its gradient at r held at (22) equals that of -log sum_k pi_k exp(-J_k)."""
    prior = small_prior(name)
    J = component_negative_elbo(prior, random_power(5, 7), random_lips(5))
    pi = torch.softmax(torch.randn(prior.num_components), 0)
    r = update_responsibilities(J, pi).detach()
    parameters = list(prior.parameters())
    held = torch.autograd.grad(mixture_free_energy(r, J, pi).sum(), parameters, retain_graph=True)
    minimum = -torch.logsumexp(pi.log()[:, None] - J, 0).sum()
    torch.testing.assert_close(held, torch.autograd.grad(minimum, parameters))
    assert all(g.abs().max() > 0 for g in held)


def test_posterior_is_the_guide_with_alpha_summed_out(
    small_prior, random_power, random_lips
) -> None:
    """(26): its density is that of the guide's Pyro trace, summed over alpha by enumeration."""
    prior = small_prior("min_vae_v2")
    power, lips, z = random_power(5, 7), random_lips(5), torch.randn(5, 2)
    r = torch.softmax(torch.randn(2, 5), 0)
    density = torch.zeros(5)
    for k in range(2):
        held = pyro.condition(prior.guide, {"alpha": torch.full((5,), k), "z": z})
        trace = poutine.trace(held).get_trace(power, lips, responsibilities=r)
        trace.compute_log_prob()
        density += (trace.nodes["alpha"]["log_prob"] + trace.nodes["z"]["log_prob"]).exp()
    posterior = mixture_posterior(prior.encode(power, lips), r)
    torch.testing.assert_close(posterior.log_prob(z).exp(), density)


def test_posterior_of_a_batch() -> None:
    """(26): batch (utterance, frame), integral one over z, mean sum_k r_k mu_k."""
    q = Independent(Normal(torch.randn(3, 2, 4, 1), torch.rand(3, 2, 4, 1) + 0.2), 1)
    r = torch.softmax(torch.randn(3, 2, 4), 0)
    posterior = mixture_posterior(q, r)
    assert posterior.batch_shape == (2, 4)
    z = torch.linspace(-15, 15, 3001).reshape(-1, 1, 1, 1)
    p = posterior.log_prob(z).exp() * 0.01
    torch.testing.assert_close(p.sum(0), torch.ones(2, 4))
    torch.testing.assert_close((p[..., None] * z).sum(0), posterior.mean)
    torch.testing.assert_close(posterior.mean, (r[..., None] * q.mean).sum(0))


@pytest.mark.parametrize("utterances", [(), (2,), (2, 3)])
def test_selected_components(utterances: tuple[int, ...]) -> None:
    """(13): frame n gets the row of component alpha_n, whether parameters vary by frame or not."""
    shape = (*utterances, 4)
    alpha = torch.randint(0, 3, shape)
    for varying in (True, False):
        components = torch.randn(3, *(shape if varying else (1,) * len(shape)), 2)
        chosen = select_component(components, alpha)
        full = components.expand(3, *shape, 2)
        assert chosen.shape == (*shape, 2)
        for index in np.ndindex(shape):
            assert (chosen[index] == full[(int(alpha[index]), *index)]).all()
        enumerated = torch.arange(3).reshape(3, *[1] * len(shape))
        every = select_component(components, enumerated)
        torch.testing.assert_close(every.expand_as(full), full)
