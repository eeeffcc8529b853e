"""What is assumed of the noise and of speech's level: its program, and M-steps that never lower Q and its log prior.

S16-S19
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Normal

from pyro_avse.distributions import LogStep
from pyro_avse.inference.m_step import (
    m_step,
    mcem_update_H,
    mcem_update_level,
    mcem_update_W,
    monte_carlo_q,
)
from pyro_avse.inference.nmf import (
    smooth_activations,
)
from pyro_avse.models.nmf_noise import (
    GAIN_SPREAD,
    NOISE_MODELS,
    RESPONSE_SPREAD,
    NoiseModel,
    log_prior,
    nmf_noise_variance,
    noise_prior,
    response_basis,
)
from pyro_avse.typing import InputError

pytestmark = pytest.mark.usefixtures("float64")


# --- the step of the walk -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothness", [0.1, 3.0, 300.0])
def test_a_step_is_a_density(smoothness: float) -> None:
    """It integrates to one, and is exp(-2 lambda (cosh d - 1)) but for a constant."""
    step = LogStep(torch.tensor(smoothness))
    width = 8 / math.sqrt(2 * smoothness)
    total = quad(lambda d: float(step.log_prob(torch.tensor(d)).exp()), -width, width)[0]
    assert total == pytest.approx(1, abs=1e-7)
    d = torch.tensor([0.0, 0.3, -1.2])
    expected = -2 * smoothness * (d.cosh() - 1)
    torch.testing.assert_close(step.log_prob(d) - step.log_prob(d[0]), expected)


@pytest.mark.parametrize("smoothness", [0.1, 3.0, 300.0])
def test_draws_of_a_step_have_its_variance(smoothness: float) -> None:
    """Of 200,000 draws, within 4.5 standard errors of quadrature's; a Gaussian's of the same curvature is off."""
    step = LogStep(torch.tensor(smoothness))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        d = step.expand((2, 100_000)).sample()
    assert d.shape == (2, 100_000)
    width = 8 / math.sqrt(2 * smoothness)

    def moment(power: int) -> float:
        return quad(
            lambda t: t**power * float(step.log_prob(torch.tensor(t)).exp()), -width, width
        )[0]

    error = math.sqrt((moment(4) - moment(2) ** 2) / d.numel())
    assert abs(float(d.square().mean()) - moment(2)) < 4.5 * error
    assert abs(float(d.mean())) < 4.5 * math.sqrt(moment(2) / d.numel())
    if smoothness < 1:
        assert abs(moment(2) - 1 / (2 * smoothness)) > 4.5 * error


# --- the program ----------------------------------------------------------------------------------------------------


def test_the_log_prior_is_the_programs_density() -> None:
    """Differences of `log_prior` between two draws are those of the program's sites; W and h_1 are flat."""
    noise = NoiseModel(rank=3, smoothness=2.0)
    values, sites = [], []
    for seed in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trace = poutine.trace(noise_prior).get_trace(noise, 6, 5, 2.0)
        trace.compute_log_prob()
        at = {name: site["value"] for name, site in trace.nodes.items() if "value" in site}
        H = torch.cat([at["log_h_1"][None], at["log_h_1"] + at["d"].cumsum(0)]).exp()
        torch.testing.assert_close(at["_RETURN"], nmf_noise_variance(at["W"], H))
        gain = at["log_g"].exp().expand(6)
        values.append(log_prior(noise, H, gain, at["a"]))
        sites.append(sum(trace.nodes[s]["log_prob_sum"] for s in ("d", "log_g", "a")))
    values, sites = torch.stack(values), torch.stack(sites)
    torch.testing.assert_close(values - values[0], sites - sites[0])
    assert (values - values[0])[1:].abs().min() > 0.1


def test_padding_has_no_prior_and_the_papers_model_none_at_all() -> None:
    H = torch.rand(2, 6, 3) + 0.1
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    noise = NoiseModel(rank=3)
    found = log_prior(noise, H, mask=mask)
    torch.testing.assert_close(found[1], log_prior(noise, H[1, :4]))
    assert not torch.isclose(found[1], log_prior(noise, H[1]))
    gain = torch.full((2, 6), 7.0)
    assert (log_prior(NOISE_MODELS["paper"], H, gain) == 0).all()


def test_one_gain_for_a_recording_is_log_normal() -> None:
    gain = torch.tensor([3.0, 3.0])
    at_one = log_prior(NoiseModel(), torch.ones(2, 8), torch.ones(2))
    found = log_prior(NoiseModel(), torch.ones(2, 8), gain) - at_one
    normal = Normal(0.0, GAIN_SPREAD)
    torch.testing.assert_close(
        found, normal.log_prob(gain[0].log()) - normal.log_prob(torch.tensor(0.0))
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, "rank is 0: give 1 or more"),
        ({"smoothness": -1.0}, "smoothness is -1.0: give 0 or more"),
        ({"smoothness": math.nan}, "smoothness is nan"),
        ({"gain": "all"}, "gain is 'all': take recording, frame or none"),
        ({"response": -1}, "response is -1: give 0 or more"),
        ({"gain": "frame"}, 'needs gain="recording", or give 0'),
    ],
)
def test_settings_without_sense_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        NoiseModel(**given)


def test_free_activations_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="free activations cannot be drawn"):
        noise_prior(NoiseModel.paper(), 5, 7)


def test_the_response_is_a_smooth_curve_over_mel() -> None:
    """Row j of the basis has j changes of sign, and row 0 is the gain's."""
    basis = response_basis(4, 513, torch.zeros(()))
    assert (basis[0] == 1).all()
    for j in range(1, 5):
        assert int((basis[j].sign().diff() != 0).sum()) == j
        assert basis[j, 0] == 1
        assert float(basis[j, -1]) == pytest.approx((-1) ** j)


# --- smooth activations ---------------------------------------------------------------------------------------------


def penalised(
    phi: Tensor, psi: Tensor, h: Tensor, smoothness: float, mask: Tensor | None = None
) -> Tensor:
    """The majoriser, by loops over the frames."""
    total = (phi / h + psi * h).sum()
    for n in range(1, len(h)):
        if mask is None or (mask[n] and mask[n - 1]):
            total = total + smoothness * (h[n] / h[n - 1] + h[n - 1] / h[n] - 2).sum()
    return total


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(1, 9),
    smoothness=st.sampled_from([0.01, 1.0, 300.0]),
    masked=st.booleans(),
)
def test_sweeps_lower_the_majoriser(
    seed: int, frames: int, smoothness: float, masked: bool
) -> None:
    rng = torch.Generator().manual_seed(seed)

    def positive() -> Tensor:
        return torch.randn(frames, 2, generator=rng, dtype=torch.float64).mul(2).exp()

    phi, psi, h = positive(), positive(), positive()
    mask = (torch.rand(frames, generator=rng) < 0.6) if masked else None
    new = smooth_activations(phi, psi, h, smoothness, mask)
    before, after = (penalised(phi, psi, t, smoothness, mask) for t in (h, new))
    assert after <= before + 1e-10 * before.abs()


def test_many_sweeps_come_to_the_minimum() -> None:
    """Where they stop, the majoriser's gradient in log h is zero; and smooth means smooth."""
    rng = torch.Generator().manual_seed(0)
    phi, psi = (torch.rand(7, 2, generator=rng, dtype=torch.float64) + 0.1 for _ in range(2))
    h = torch.ones(7, 2, dtype=torch.float64)
    for _ in range(200):
        h = smooth_activations(phi, psi, h, 2.0, None)
    log_h = h.log().requires_grad_()
    (gradient,) = torch.autograd.grad(penalised(phi, psi, log_h.exp(), 2.0), log_h)
    assert gradient.abs().max() < 1e-9
    free = (phi / psi).sqrt()
    assert h.log().diff(dim=0).abs().max() < 0.3 * free.log().diff(dim=0).abs().max()


# --- the M-step -----------------------------------------------------------------------------------------------------


class Problem:
    """Draws of a mixture's E-step at random: |x|^2 of 40 dB range, R draws of K components with their weights."""

    def __init__(self, seed: int, *utterances: int, frames: int = 6, freqs: int = 9, rank: int = 3):
        rng = torch.Generator().manual_seed(seed)

        def positive(*shape: int, spread: float) -> Tensor:
            return (spread * torch.randn(*shape, generator=rng, dtype=torch.float64)).exp()

        self.power = positive(*utterances, frames, freqs, spread=2)
        self.sigma = positive(2, 4, *utterances, frames, freqs, spread=2)
        weights = positive(2, 4, *utterances, frames, spread=1)
        self.weights = weights / weights.sum((0, 1))
        self.W, self.H = (
            positive(*utterances, rank, freqs, spread=1),
            positive(*utterances, frames, rank, spread=1),
        )
        self.gain = positive(*utterances, 1, spread=1).expand(*utterances, frames)
        self.response = 0.5 * torch.randn(*utterances, 2, generator=rng, dtype=torch.float64)
        self.mask = None
        if utterances:
            self.mask = torch.rand(*utterances, frames, generator=rng) < 0.7
            self.mask[..., 0] = True

    def heard(self, response: Tensor | None) -> Tensor:
        if response is None:
            return self.sigma
        basis = response_basis(response.shape[-1], self.power.shape[-1], self.power)
        return self.sigma * (response @ basis[1:]).exp()[..., None, :]

    def objective(
        self, noise: NoiseModel, W: Tensor, H: Tensor, gain: Tensor, response: Tensor | None
    ) -> Tensor:
        q = monte_carlo_q(
            self.power, self.heard(response), self.weights, W, H, gain, mask=self.mask
        )
        return q + log_prior(noise, H, gain, response, self.mask)


MODELS_OF_NOISE = {
    "smooth": NoiseModel(rank=3, response=2),
    "smoother than a frame is long": NoiseModel(rank=3, smoothness=1e4, response=2),
    "no response": NoiseModel(rank=3, smoothness=1.0, response=0),
    "free": NoiseModel(rank=3, smoothness=0.0, response=2),
    "paper": NoiseModel.paper(3),
    "paper, no gain": replace(NoiseModel.paper(3), gain="none"),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(sorted(MODELS_OF_NOISE)),
    utterances=st.sampled_from([(), (2,), (2, 3)]),
    exponent=st.sampled_from([0.5, 0.75, 1.0]),
)
def test_no_m_step_lowers_q_and_the_prior(
    seed: int, name: str, utterances: tuple[int, ...], exponent: float
) -> None:
    """S18, S19: each of the updates, at every exponent, from far and from near."""
    noise, p = MODELS_OF_NOISE[name], Problem(seed, *utterances)
    W, H, gain = p.W, p.H, p.gain
    response = p.response if noise.response else None
    if noise.gain == "frame":
        gain = gain * torch.rand_like(p.power[..., 0])
    before = p.objective(noise, W, H, gain, response)
    for _ in range(6):
        sigma = p.heard(response)
        W, H, gain, response = m_step(
            p.power, sigma, p.weights, W, H, gain, response, noise, exponent, p.mask
        )
        after = p.objective(noise, W, H, gain, response)
        assert (after >= before - 1e-9 * before.abs().clamp_min(1)).all()
        before = after


def test_the_default_updates_rise_one_by_one() -> None:
    """At the default's exponent, 1: H under its prior, W, then gain and response; and each rises by something."""
    noise = NoiseModel(rank=3, response=2)
    risen = torch.zeros(3)
    for seed in range(30):
        p = Problem(seed)
        W, H, gain, a = p.W, p.H, p.gain, p.response
        values = [p.objective(noise, W, H, gain, a)]
        given = p.power, p.heard(a), p.weights
        H = mcem_update_H(*given, W, H, gain, exponent=1.0, smoothness=noise.smoothness)
        values.append(p.objective(noise, W, H, gain, a))
        W = mcem_update_W(*given, W, H, gain, exponent=1.0)
        values.append(p.objective(noise, W, H, gain, a))
        gain, a = mcem_update_level(*given, W, H, gain, a)
        values.append(p.objective(noise, W, H, gain, a))
        rise = torch.stack(values).diff()
        assert (rise > -1e-9 * values[0].abs()).all()
        risen += rise
    assert (risen / 30 > 0.5).all()


def test_the_levels_step_is_the_papers_without_prior_or_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """g <- g sqrt(up / down), of all frames together: S19's of one long frame."""
    monkeypatch.setattr("pyro_avse.inference.m_step.GAIN_SPREAD", 1e9)
    monkeypatch.setattr("pyro_avse.inference.m_step.NEWTON", 60)
    p = Problem(0)
    gain, none = mcem_update_level(p.power, p.sigma, p.weights, p.W, p.H, p.gain, None)
    V = p.gain[..., None] * p.sigma + p.H @ p.W
    share = p.gain[..., None] * p.sigma / V
    weights = p.weights[..., None]
    up = (p.power * (weights * share / V).sum((0, 1))).sum()
    down = (weights * share).sum((0, 1)).sum()
    torch.testing.assert_close(gain, p.gain * (up / down).sqrt())
    assert none is None


def test_the_level_comes_to_the_minimum_of_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """By many of Newton's steps: the gradient of sum up e^-d + down e^d + (a + delta)^2 / (2 s^2) in delta is zero."""
    monkeypatch.setattr("pyro_avse.inference.m_step.NEWTON", 80)
    p = Problem(4)
    gain, a = mcem_update_level(
        p.power, p.heard(p.response), p.weights, p.W, p.H, p.gain, p.response
    )
    old = torch.cat([p.gain[:1].log(), p.response])
    new = torch.cat([gain[:1].log(), a])
    speech = p.gain[:, None] * p.heard(p.response)
    share = p.weights[..., None] * speech / (speech + p.H @ p.W)
    down = share.sum((0, 1, 2))
    up = (p.power * share / (speech + p.H @ p.W)).sum((0, 1, 2))
    d = (new - old) @ response_basis(2, 9, old)
    spread = torch.tensor([GAIN_SPREAD, RESPONSE_SPREAD, RESPONSE_SPREAD])
    slope = response_basis(2, 9, old) @ (down * d.exp() - up * (-d).exp()) + new / spread**2
    assert slope.abs().max() < 1e-6 * float(up.sum())
    assert (new - old).abs().max() > 0.1


def test_gain_and_response_are_found() -> None:
    """Of 500 frames, whose own scatter allows some hundredths, where the prior is wide beside what they say."""
    rng = torch.Generator().manual_seed(3)

    def exponential(*shape: int) -> Tensor:
        return torch.empty(*shape).exponential_(generator=rng)

    truth = torch.tensor([0.3, -0.4, 0.2])
    basis = response_basis(3, 65, truth)
    sigma = exponential(1, 1, 500, 65)
    W, H = exponential(2, 65), 0.05 * exponential(500, 2)
    power = (2.5 * (truth @ basis[1:]).exp() * sigma[0, 0] + H @ W) * exponential(500, 65)
    weights, gain, a = torch.ones(1, 1, 500), torch.ones(500), torch.zeros(3)
    for _ in range(30):
        heard = sigma * (a @ basis[1:]).exp()
        gain, a = mcem_update_level(power, heard, weights, W, H, gain, a)
    assert float(gain[0]) == pytest.approx(2.5, rel=0.03)
    torch.testing.assert_close(a, truth, rtol=0, atol=0.05)
    assert RESPONSE_SPREAD > 0.1


def test_padding_has_no_say_in_the_dictionary_gain_or_response() -> None:
    p = Problem(1, 2)
    loud = torch.where(p.mask[..., None], p.power, 1e6)
    quiet, padded = (
        mcem_update_W(x, p.sigma, p.weights, p.W, p.H, p.gain, mask=p.mask) for x in (p.power, loud)
    )
    torch.testing.assert_close(quiet, padded)
    given = p.sigma, p.weights, p.W, p.H, p.gain, p.response
    gain, a = mcem_update_level(p.power, *given, mask=p.mask)
    loud = torch.where(p.mask[..., None], p.power, 1e6)
    other = mcem_update_level(loud, *given, mask=p.mask)
    torch.testing.assert_close(gain, other[0])
    torch.testing.assert_close(a, other[1])
    assert not torch.allclose(a, mcem_update_level(loud, *given)[1])
