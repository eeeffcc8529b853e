"""The mean-field factors and parameters of VEM each maximise the bound. (31)-(45), S6, S22-S26

The bound is written out by enumeration: s on a grid of the complex plane, z on a grid, alpha over
its values, and the joint (31) from a Pyro trace of `noisy_speech`. No closed form enters it.
"""

import itertools
import math
from collections.abc import Iterator

import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import Independent, Normal
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from pyro_avse.distributions import ComplexNormal, update_mixing_weight
from pyro_avse.inference.mean_field import MeanFieldTarget, latent_responsibilities, vem_objective
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.wiener import average_speech_variance, wiener_posterior
from pyro_avse.models import MINVAEv2
from pyro_avse.models.nets import Decoder
from pyro_avse.models.nmf_noise import nmf_noise_variance
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import SpeechPrior

SIZES = {"num_freqs": 7, "latent_dim": 3, "hidden": 5}


@pytest.fixture(autouse=True)
def _float64_and_a_seed() -> Iterator[None]:
    """Networks in float64, from the same weights in every test; the caller's settings return."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(before)


class TwoDecoders(nn.Module):
    """A prior of two components, each with its own Gaussian and its own decoder, as VAE-MM."""

    num_components = 2
    requires_lips = False

    def __init__(self, num_freqs: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.num_freqs, self.latent_dim = num_freqs, latent_dim
        self.decoders = nn.ModuleList(Decoder(latent_dim, hidden, num_freqs) for _ in range(2))
        self.mean = 0.7 * torch.randn(2, 1, latent_dim)
        self.scale = torch.exp(0.3 * torch.randn(2, 1, latent_dim))
        self.mixing_weight = torch.full((2,), 0.5)

    def latent_prior(self, lips: Tensor | None) -> Independent:
        return Normal(self.mean, self.scale).to_event(1)

    def initial_codes(self, power: Tensor, lips: Tensor | None) -> Tensor:
        return torch.zeros(*power.shape[:-1], self.latent_dim)

    def log_variance(self, z: Tensor, lips: Tensor | None) -> Tensor:
        return torch.stack([decoder(z) for decoder in self.decoders])


def min_vae(num_freqs: int = 7, latent_dim: int = 3, hidden: int = 5) -> MINVAEv2:
    """MIN-VAE v2 whose two priors differ in mean and in width."""
    prior = MINVAEv2(num_freqs=num_freqs, latent_dim=latent_dim, hidden=hidden, features=6)
    prior.audio_prior.mean.copy_(0.5 * torch.randn(latent_dim))
    prior.visual_prior.mean.copy_(0.5 * torch.randn(latent_dim))
    prior.visual_prior.log_variance.fill_(0.8)
    return prior


MIXTURES = {"one decoder": min_vae, "two decoders": TwoDecoders}
every_mixture = pytest.mark.parametrize("kind", sorted(MIXTURES))


def complex_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


# One frame, one frequency, one latent dimension: everything enumerated.

S_AXIS = torch.linspace(-7, 7, 57, dtype=torch.float64)
S = torch.complex(S_AXIS[:, None], S_AXIS[None, :]).flatten()
Z = torch.linspace(-6, 6, 61, dtype=torch.float64)
X, NOISE = torch.tensor([[1.2 - 0.9j]], dtype=torch.complex128), torch.tensor([[0.8]]).double()
PI, R = torch.tensor([0.3, 0.7]).double(), torch.tensor([[0.6], [0.4]]).double()


def traced_log_joint(
    prior: SpeechPrior,
    x: Tensor,
    noise_variance: Tensor,
    pi: Tensor,
    *,
    s: Tensor,
    z: Tensor,
    alpha: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """log p(x, s, z, alpha) of every frame, from a Pyro trace."""
    program = poutine.condition(noisy_speech, data={"s": s, "z": z, "alpha": alpha})
    trace = poutine.trace(program).get_trace(
        prior, x, None, noise_variance, mixing_weight=pi, speech_latent=True, mask=mask
    )
    trace.compute_log_prob()
    return sum(trace.nodes[name]["log_prob"] for name in ("alpha", "z", "s", "x"))


def joint_table(prior: SpeechPrior, z: Tensor = Z) -> Tensor:
    """log p(x, s, z, alpha) on the whole grid, (s, z, alpha): its points are Pyro's frames."""
    size = (len(S), len(z), 2)
    count = math.prod(size)
    alpha = torch.arange(2).expand(size).flatten()
    log_joint = traced_log_joint(
        prior,
        X.expand(count, 1),
        NOISE.expand(count, 1),
        PI,
        s=S[:, None, None].expand(size).reshape(count, 1),
        z=z[None, :, None].expand(size).reshape(count, 1),
        alpha=alpha,
    )
    return log_joint.reshape(size)


def bound(table: Tensor, log_s: Tensor, log_z: Tensor, log_alpha: Tensor) -> Tensor:
    """E log p(x, s, z, alpha) - E log r(s) r(z) r(alpha) over the grid: (4) of the model (31)."""
    log_r = log_s[:, None, None] + log_z[None, :, None] + log_alpha
    return (log_r.exp() * (table - log_r)).sum()


def speech_on_grid(m: Tensor, nu: Tensor) -> Tensor:
    return torch.log_softmax(ComplexNormal(m, nu.log()).log_prob(S), 0)


def uniform(draws: int) -> Tensor:
    return torch.full((draws,), -math.log(draws), dtype=torch.float64)


def assert_maximal(table: Tensor, factors: list[Tensor], index: int) -> None:
    """No change of one factor alone raises the bound: zero gradient, and lower wherever one looks."""

    def moved(logits: Tensor) -> Tensor:
        changed = list(factors)
        changed[index] = torch.log_softmax(logits, 0)
        return bound(table, *changed)

    with torch.enable_grad():
        logits = factors[index].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(moved(logits), logits)
    assert gradient.abs().max() < 1e-8
    best = bound(table, *factors)
    for _ in range(10):
        assert moved(factors[index] + 0.3 * torch.randn_like(factors[index])) < best


def mean_field_problem(kind: str) -> tuple[SpeechPrior, Tensor, Tensor, Tensor]:
    """A prior, an arbitrary r(s) (mean, variance), and draws standing for an arbitrary r(z)."""
    prior = MIXTURES[kind](num_freqs=1, latent_dim=1, hidden=5)
    m, nu = torch.tensor([[0.7 - 0.2j]]), torch.tensor([[0.6]])
    return prior, m, nu, torch.randn(6)


@every_mixture
def test_the_factor_of_z_maximises_the_bound(kind: str) -> None:
    """(36), S24: with r(s), r(alpha) held, exp of the target, normalised, maximises the bound."""
    prior, m, nu, _ = mean_field_problem(kind)
    second_moment = m.abs().square() + nu
    target = MeanFieldTarget(prior, None, second_moment, R)
    log_z = torch.log_softmax(target.log_density(Z[:, None, None])[:, 0], 0)
    factors = [speech_on_grid(m[0, 0], nu[0, 0]), log_z, R[:, 0].log()]
    assert_maximal(joint_table(prior), factors, index=1)

    # The mixture of the two priors is not what (36) asks for.
    components = prior.latent_prior(None).log_prob(Z[:, None])  # (component, grid)
    mixture = torch.logsumexp(R.log() + components, 0)
    twin = torch.log_softmax(log_z - target.gaussian.log_prob(Z[:, None, None])[:, 0] + mixture, 0)
    with pytest.raises(AssertionError):
        assert_maximal(joint_table(prior), [factors[0], twin, factors[2]], index=1)


@every_mixture
def test_the_factor_of_s_maximises_the_bound(kind: str) -> None:
    """(33)-(35), S23: with r(z), r(alpha) held, the Wiener posterior maximises the bound."""
    prior, _, _, z = mean_field_problem(kind)
    gamma = average_speech_variance(prior.log_variance(z[:, None, None], None), R)
    m, nu = wiener_posterior(X, gamma, NOISE)
    factors = [speech_on_grid(m[0, 0], nu[0, 0]), uniform(len(z)), R[:, 0].log()]
    assert_maximal(joint_table(prior, z), factors, index=0)

    m, nu = wiener_posterior(X, 1.05 * gamma, NOISE)
    twin = speech_on_grid(m[0, 0], nu[0, 0])
    with pytest.raises(AssertionError):
        assert_maximal(joint_table(prior, z), [twin, *factors[1:]], index=0)


@every_mixture
def test_the_factor_of_alpha_maximises_the_bound(kind: str) -> None:
    """(39), (40), S25: with r(s), r(z) held, the responsibilities maximise the bound."""
    prior, m, nu, z = mean_field_problem(kind)
    draws, second_moment = z[:, None, None], m.abs().square() + nu
    log_variance = prior.log_variance(draws, None)
    r = latent_responsibilities(prior, draws, None, log_variance, second_moment, PI)
    factors = [speech_on_grid(m[0, 0], nu[0, 0]), uniform(len(z)), r[:, 0].log()]
    assert_maximal(joint_table(prior, z), factors, index=2)

    # Published code counts the Gaussians' normalisers twice.
    log_scale = prior.latent_prior(None).stddev.log().sum(-1)
    twin = torch.log_softmax(r[:, 0].log() - log_scale[:, 0], 0)
    with pytest.raises(AssertionError):
        assert_maximal(joint_table(prior, z), [*factors[:2], twin], index=2)


@every_mixture
def test_the_bound_misses_the_evidence_by_the_divergence(kind: str) -> None:
    """(31), (32), S5: log p(x) = bound + KL(r(s) r(z) r(alpha) || posterior), and KL > 0."""
    prior, m, nu, _ = mean_field_problem(kind)
    table = joint_table(prior)
    evidence = torch.logsumexp(table.flatten(), 0)
    log_posterior = table - evidence
    target = MeanFieldTarget(prior, None, m.abs().square() + nu, R)
    log_z = torch.log_softmax(target.log_density(Z[:, None, None])[:, 0], 0)
    factors = [speech_on_grid(m[0, 0], nu[0, 0]), log_z, R[:, 0].log()]
    log_r = factors[0][:, None, None] + factors[1][None, :, None] + factors[2]
    divergence = (log_r.exp() * (log_r - log_posterior)).sum()
    torch.testing.assert_close(bound(table, *factors) + divergence, evidence)
    assert divergence > 0

    # The same evidence with s and alpha integrated out: the grid's cell in s is dropped from it.
    collapsed = CollapsedTarget(prior, None, X.abs().square(), NOISE, PI)
    cell = (S_AXIS[1] - S_AXIS[0]).square().log()
    integrated = torch.logsumexp(collapsed.log_density(Z[:, None, None]), 0)[0]
    torch.testing.assert_close(evidence + cell, integrated, rtol=0, atol=1e-6)


def test_responsibilities_of_a_shared_decoder_by_loops() -> None:
    """(40): sigmoid(E log p(z|1) / p(z|0) + log pi / (1 - pi)), the normalisers counted once."""
    prior, utterances, frames = min_vae(), 2, 4
    z = torch.randn(5, utterances, frames, 3)
    pi = torch.tensor([[0.2, 0.6], [0.8, 0.4]])
    r = latent_responsibilities(
        prior, z, None, prior.log_variance(z, None), torch.rand(utterances, frames, 7), pi
    )
    p = prior.latent_prior(None)
    for u, n in itertools.product(range(utterances), range(frames)):
        log_odds = {"once": 0.0, "twice": 0.0}
        for d, l in itertools.product(range(5), range(3)):
            for sign, k in ((1, 0), (-1, 1)):
                mean, variance = p.mean[k, 0, l].item(), p.variance[k, 0, l].item()
                square = (z[d, u, n, l].item() - mean) ** 2 / (2 * variance)
                log_odds["once"] -= sign * (square + math.log(variance) / 2) / 5
                log_odds["twice"] -= sign * (square + math.log(variance)) / 5
        prior_odds = math.log(pi[0, u] / pi[1, u])
        exact, published = (1 / (1 + math.exp(-o - prior_odds)) for o in log_odds.values())
        assert r[0, u, n].item() == pytest.approx(exact, rel=1e-10)
        assert abs(published - exact) > 1e-3


@every_mixture
def test_certain_responsibilities_and_weights(kind: str) -> None:
    """(36), (40): r or pi exactly 0 or 1 leaves one component's target, and no NaN."""
    prior, z = MIXTURES[kind](**SIZES), torch.randn(5, 4, 3)
    second_moment, certain = torch.rand(4, 7), torch.tensor([0.0, 1.0])
    target = MeanFieldTarget(prior, None, second_moment, certain[:, None].expand(2, 4))
    log_variance = prior.log_variance(z, None)
    speech = ComplexNormal(0, log_variance[-1]).log_prob(second_moment.sqrt()).sum(-1)
    visual = Normal(prior.latent_prior(None).mean[1], prior.latent_prior(None).stddev[1])
    expected = visual.log_prob(z).sum(-1) + speech + 7 * math.log(math.pi)
    torch.testing.assert_close(target.log_density(z), expected)
    r = latent_responsibilities(prior, z, None, log_variance, second_moment, certain)
    assert torch.equal(r, certain[:, None].expand(2, 4))


def test_the_mixing_weight_maximises_the_objective() -> None:
    """(44): the mean responsibility is where a numerical optimiser of (41) ends, padding out."""
    r = torch.softmax(2 * torch.randn(2, 9), 0)
    mask = torch.arange(9) < 6
    V, W, H = torch.rand(9, 7), torch.rand(2, 7), torch.rand(9, 2)
    for kept in (None, mask):
        found = minimize_scalar(
            lambda p, kept=kept: -vem_objective(V, W, H, r, torch.tensor([p, 1 - p]), kept).item(),
            bounds=(1e-6, 1 - 1e-6),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert update_mixing_weight(r, kept)[0].item() == pytest.approx(found.x, abs=1e-6)


@every_mixture
def test_the_objective_is_the_expected_complete_log_likelihood(kind: str) -> None:
    """(41): E_{r(s) r(z) r(alpha)} log p(x, s, z, alpha) by enumeration, up to a constant."""
    prior, frames, rank = MIXTURES[kind](**SIZES), 4, 2
    x, m, nu = complex_normal(frames, 7), complex_normal(frames, 7), torch.rand(frames, 7)
    z, r = torch.randn(3, frames, 3), torch.softmax(torch.randn(2, frames), 0)
    mask = torch.tensor([True, True, False, True])
    V = (x - m).abs().square() + nu

    def expected(W: Tensor, H: Tensor, pi: Tensor) -> Tensor:
        total = torch.zeros(())
        corners = [complex(a, b) for a, b in itertools.product((1, -1), repeat=2)]
        for corner, d, k in itertools.product(corners, range(len(z)), range(2)):
            s = m + (nu / 2).sqrt() * corner  # four points with r(s)'s first two moments: exact
            log_joint = traced_log_joint(
                prior, x, nmf_noise_variance(W, H), pi, s=s, z=z[d],
                alpha=torch.full((frames,), k), mask=mask,
            )  # fmt: skip
            total = total + (r[k] * log_joint).sum() / (len(corners) * len(z))
        return total

    def parameters() -> tuple[Tensor, Tensor, Tensor]:
        return torch.rand(rank, 7), torch.rand(frames, rank), torch.softmax(torch.randn(2), 0)

    (W1, H1, pi1), (W2, H2, pi2) = parameters(), parameters()
    torch.testing.assert_close(
        vem_objective(V, W1, H1, r, pi1, mask) - vem_objective(V, W2, H2, r, pi2, mask),
        expected(W1, H1, pi1) - expected(W2, H2, pi2),
    )
