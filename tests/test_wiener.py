"""The Wiener filter that speech's posterior is: (33)-(35), (45)."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_avse.distributions import ComplexNormal
from pyro_avse.inference.wiener import (
    average_speech_variance,
    averaged_wiener_filter,
    wiener_posterior,
)


def complex_plane(centre: complex, reach: float, points: int = 401) -> Tensor:
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return centre + torch.complex(axis[:, None], axis[None, :])


cases = pytest.mark.parametrize(
    ("x", "gamma", "noise"),
    [(1.0 + 0.5j, 0.7, 0.3), (-2.0 + 0.1j, 0.05, 1.0), (0.3 - 3.0j, 4.0, 0.2), (0j, 1.0, 1.0)],
)


@cases
def test_mean_and_variance_by_quadrature(x: complex, gamma: float, noise: float) -> None:
    """(33), (35): exp(-|x - s|^2 / WH - |s|^2 / gamma) over the plane has mean m, variance nu."""
    s = complex_plane(x / 2, abs(x) + 4)
    weight = torch.exp(-(x - s).abs().square() / noise - s.abs().square() / gamma)
    weight = weight / weight.sum()
    mean = (weight * s).sum()
    variance = (weight * (s - mean).abs().square()).sum()

    spectrum = torch.tensor([[x]], dtype=torch.complex128)
    V_s, V_b = torch.tensor([[gamma]]).double(), torch.tensor([[noise]]).double()
    m, nu = wiener_posterior(spectrum, V_s, V_b)
    torch.testing.assert_close(m[0, 0], mean)
    torch.testing.assert_close(nu[0, 0], variance)


@cases
def test_the_estimate_is_the_posterior_mean(x: complex, gamma: float, noise: float) -> None:
    """(45): with the true speech variance, it is E[s | x] of x = s + b, by quadrature of Bayes."""
    s = complex_plane(x / 2, abs(x) + 4)
    V_s, V_b = torch.tensor([[gamma]]).double(), torch.tensor([[noise]]).double()
    spectrum = torch.tensor([[x]], dtype=torch.complex128)
    likelihood = ComplexNormal(s, V_b.log()).log_prob(spectrum)
    joint = ComplexNormal(0, V_s.log()).log_prob(s) + likelihood
    posterior = torch.softmax(joint.flatten(), 0).reshape(s.shape)
    estimate = averaged_wiener_filter(spectrum, V_s, V_b)[0, 0]
    torch.testing.assert_close(estimate, (posterior * s).sum())


@pytest.mark.parametrize("decoders", [1, 2])
def test_speech_sees_the_codes_through_their_mean_precision(decoders: int) -> None:
    """(33), (34), S23: E_{r(z) r(alpha)} log p(x, s, z, alpha), summed out, is quadratic in s."""
    torch_rng = torch.Generator().manual_seed(0)
    draws, frames, freqs = 5, 3, 7

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch_rng, dtype=torch.float64)

    log_variance = normal(decoders, draws, frames, freqs)
    r = torch.softmax(normal(2, frames), 0)
    x, noise = torch.complex(normal(frames, freqs), normal(frames, freqs)), normal(frames, freqs)

    def expected_log_joint(s: Tensor) -> Tensor:  # what (33) exponentiates, up to a constant
        total = ComplexNormal(s, noise).log_prob(x)
        for k, d in itertools.product(range(2), range(draws)):
            speech = ComplexNormal(0, log_variance[min(k, decoders - 1), d])
            total = total + r[k][:, None] / draws * speech.log_prob(s)
        return total

    gamma = average_speech_variance(log_variance, r)
    m, nu = wiener_posterior(x, gamma, noise.exp())
    r_s = ComplexNormal(m, nu.log())  # the claim: the exponent of (33), normalised
    one, other = (torch.complex(normal(frames, freqs), normal(frames, freqs)) for _ in range(2))
    torch.testing.assert_close(
        expected_log_joint(one) - expected_log_joint(other),
        r_s.log_prob(one) - r_s.log_prob(other),
    )


def test_a_component_without_weight_has_no_say() -> None:
    """(34), S23: at r = 0 a decoder adds nothing, not even where its precision is infinite."""
    log_variance = torch.zeros(2, 4, 3, 5).double()
    log_variance[0] = -torch.inf
    r = torch.tensor([[0.0], [1.0]]).double().expand(2, 3)
    assert average_speech_variance(log_variance, r).eq(1).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    log_variance=st.lists(st.floats(-12, 12), min_size=1, max_size=8),
    log_noise=st.floats(-12, 12),
)
def test_the_mean_field_gain_is_never_above_the_mean_gain(
    log_variance: list[float], log_noise: float
) -> None:
    """(45) against S20: gamma / (gamma + b) <= E[sigma / (sigma + b)], equal for one draw."""
    draws = torch.tensor(log_variance).double()
    noise = torch.tensor([[log_noise]]).double().exp()
    gamma = average_speech_variance(draws[None, :, None, None], torch.ones(1, 1).double())
    gain = averaged_wiener_filter(torch.ones(1, 1, dtype=torch.complex128), gamma, noise).real
    mean_gain = (draws.exp() / (draws.exp() + noise)).mean()
    assert gain <= mean_gain * (1 + 1e-9)
    if len(draws) == 1:
        torch.testing.assert_close(gain[0, 0], mean_gain)
