"""ComplexNormal is the density of two real Gaussians, by quadrature, by sampling and inside Pyro."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_avse.distributions import ComplexNormal, align_components, complex_normal_log_prob

pytestmark = pytest.mark.usefixtures("float64")

LOC = torch.tensor([0.0, 0.7 - 1.2j, 3.0 + 0.5j], dtype=torch.complex128)
LOG_VARIANCE = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64)


def plane(centre: complex, sigma: float, points: int = 241) -> tuple[Tensor, float]:
    """A grid on the complex plane out to 7 standard deviations, and the area of one cell."""
    axis = torch.linspace(-7, 7, points) * math.sqrt(sigma)
    return centre + torch.complex(*torch.meshgrid(axis, axis, indexing="ij")), float(
        (axis[1] - axis[0]) ** 2
    )


def test_density_is_that_of_two_real_gaussians() -> None:
    """(1): N_c(m, sigma) = a 2-D real Gaussian with covariance sigma / 2 I over (Re s, Im s)."""
    s = torch.randn(5, 3, dtype=torch.complex128)
    covariance = 0.5 * LOG_VARIANCE.exp()[:, None, None] * torch.eye(2)
    real = dist.MultivariateNormal(torch.view_as_real(LOC), covariance)
    expected = real.log_prob(torch.view_as_real(s))
    torch.testing.assert_close(ComplexNormal(LOC, LOG_VARIANCE).log_prob(s), expected)
    torch.testing.assert_close(complex_normal_log_prob(s - LOC, LOG_VARIANCE), expected)


def test_zero_mean_density_is_an_exponential_of_the_power() -> None:
    """(1): log N_c(s; 0, sigma) = log Exp(|s|^2; mean sigma) - log pi, so |s| may stand for s."""
    s = torch.randn(5, 3, dtype=torch.complex128)
    exponential = dist.Exponential((-LOG_VARIANCE).exp())
    expected = exponential.log_prob(s.abs().square()) - math.log(math.pi)
    speech = ComplexNormal(0, LOG_VARIANCE)
    torch.testing.assert_close(speech.log_prob(s), expected)
    torch.testing.assert_close(speech.log_prob(s.abs()), expected)
    torch.testing.assert_close(speech.log_prob(s.abs() + 0j), expected)


@pytest.mark.parametrize("i", range(3))
def test_moments_and_entropy_by_quadrature(i: int) -> None:
    """(1): integral 1, E s = m, E|s - m|^2 = sigma, E(s - m)^2 = 0 (proper), entropy, on a grid."""
    normal = ComplexNormal(LOC[i], LOG_VARIANCE[i])
    s, area = plane(complex(LOC[i]), float(LOG_VARIANCE[i].exp()))
    log_p = normal.log_prob(s)
    p = log_p.exp() * area
    assert p.sum().item() == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close((p * s).sum(), normal.mean)
    torch.testing.assert_close((p * (s - LOC[i]).abs().square()).sum(), normal.variance)
    assert (p * (s - LOC[i]).square()).sum().abs() < 1e-10
    torch.testing.assert_close(-(p * log_p).sum(), normal.entropy())


def max_z(draws: Tensor, normal: ComplexNormal) -> float:
    """The largest z-score of five sample moments of the standardised draws, over all elements."""
    u = (draws - normal.mean) / normal.variance.sqrt()
    moments = [
        u.real,
        u.imag,
        u.abs().square() - 1,
        u.square().real,
        u.square().imag,
    ]
    return max(float((m.mean(0).abs() / (m.std(0) / math.sqrt(len(m)))).max()) for m in moments)


def test_draws_have_the_moments() -> None:
    """(1): mean, variance and properness of 100 000 draws; forgetting the root or the 1/2 shows."""
    # 15 moments: P(max |z| > 5) < 15 * 5.8e-7 = 9e-6 for a sound sampler.
    normal = ComplexNormal(LOC, LOG_VARIANCE)
    eps = torch.randn(100_000, 3, dtype=torch.complex128)
    assert max_z(normal.rsample((100_000,)), normal) < 5
    assert max_z(LOC + normal.variance * eps, normal) > 5
    assert max_z(LOC + (2 * normal.variance).sqrt() * eps, normal) > 5
    assert max_z(LOC + normal.variance.sqrt() * eps.real, normal) > 5


def test_draws_are_reparametrised() -> None:
    """S9: the derivative of a draw in mean and log-variance is that of finite differences."""

    def draw(loc: Tensor, log_variance: Tensor) -> Tensor:
        torch.manual_seed(3)
        return torch.view_as_real(ComplexNormal(loc, log_variance).rsample((2,)))

    inputs = (LOC.clone().requires_grad_(), LOG_VARIANCE.clone().requires_grad_())
    assert torch.autograd.gradcheck(draw, inputs)


def test_batch_and_event_shapes() -> None:
    """A frame of coefficients is one event: to_event sums, expand repeats."""
    normal = ComplexNormal(LOC, LOG_VARIANCE)
    s = torch.randn(4, 3, dtype=torch.complex128)
    frames = normal.expand((4, 3)).to_event(1)
    assert frames.batch_shape == (4,)
    assert frames.event_shape == (3,)
    assert frames.has_rsample
    assert frames.rsample((2,)).shape == (2, 4, 3)
    torch.testing.assert_close(frames.log_prob(s), normal.log_prob(s).sum(-1))
    assert ComplexNormal(torch.zeros(4, 1), LOG_VARIANCE).batch_shape == (4, 3)


def test_a_python_mean_keeps_its_digits() -> None:
    """A complex number as mean is not rounded to the global default precision."""
    torch.set_default_dtype(torch.float32)
    normal = ComplexNormal(0.1 + 0.3j, LOG_VARIANCE)
    assert (normal.mean == torch.tensor(0.1 + 0.3j, dtype=torch.complex128)).all()


def test_nan_is_refused() -> None:
    """NaN as parameter or as value raises, on either part."""
    bad = torch.tensor(complex(0, math.nan))
    with pytest.raises(ValueError, match="loc"):
        ComplexNormal(bad, torch.zeros(2))
    with pytest.raises(ValueError, match="log_variance"):
        ComplexNormal(0, torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="support"):
        ComplexNormal(0, torch.zeros(2)).log_prob(bad)
    assert ComplexNormal(0, torch.zeros(2), validate_args=False).log_prob(bad).isnan().all()


def test_inside_a_pyro_program() -> None:
    """A plate repeats it, a mask drops frames, conditioning scores it."""
    s = torch.randn(4, 3, dtype=torch.complex128)
    mask = torch.tensor([True, False, True, True])

    def program() -> None:
        with pyro.plate("frame", 4), poutine.mask(mask=mask):
            pyro.sample("s", ComplexNormal(LOC, LOG_VARIANCE).to_event(1))

    assert poutine.trace(program).get_trace().nodes["s"]["value"].shape == (4, 3)
    trace = poutine.trace(pyro.condition(program, {"s": s})).get_trace()
    expected = ComplexNormal(LOC, LOG_VARIANCE).log_prob(s).sum(-1)[mask].sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


@pytest.mark.parametrize("frames", [(4,), (1,), (2, 4), (2, 1)])
def test_components_align_with_chains(frames: tuple[int, ...]) -> None:
    """Component k's parameters meet the codes of every chain, utterance and frame."""
    mean, scale = torch.randn(2, *frames, 3), torch.rand(2, *frames, 3) + 0.1
    z = torch.randn(5, *frames[:-1], 4, 3)
    aligned = align_components(Independent(Normal(mean, scale), 1), z.dim())
    assert len(aligned.batch_shape) == z.dim()
    for k in range(2):
        for chain in range(5):
            expected = Normal(mean[k], scale[k]).log_prob(z[chain]).sum(-1)
            torch.testing.assert_close(aligned.log_prob(z)[k, chain], expected)
