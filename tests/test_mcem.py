"""Monte Carlo EM on the collapsed posterior: weights, updates, filter, and the whole. S17-S20"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pyro.poutine as poutine
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from pyro_avse.inference import MCEM, VEM, CollapsedVEM, Independence, RandomWalk
from pyro_avse.inference.m_step import mcem_update_gain, mcem_update_H, mcem_update_W, monte_carlo_q
from pyro_avse.inference.mean_field import CollapsedMeanFieldTarget
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.wiener import monte_carlo_wiener, wiener_posterior
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.models.noisy_speech import noisy_speech

pytestmark = pytest.mark.usefixtures("float64")
SmallPrior = Callable[..., Any]
SHORT = MCEM(
    iterations=4,
    warmup=2,
    draws=3,
    final_warmup=2,
    final_draws=3,
    chains=2,
    noise=NoiseModel.paper(2),
)
MIXTURES = ("min_vae_v2", "two_decoders")
Problem = dict[str, Tensor]


def complex_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def problem(seed: int, components: int = 2, utterances: tuple[int, ...] = ()) -> Problem:
    """Speech variances of 3 draws, normalised weights, noise factors and gains of 5 frames, 4 frequencies."""
    rng = torch.Generator().manual_seed(seed)

    def exponential(*shape: int) -> Tensor:
        return torch.empty(*shape).exponential_(generator=rng)

    weights = exponential(components, 3, *utterances, 5)
    return {
        "power": exponential(*utterances, 5, 4),
        "sigma": exponential(components, 3, *utterances, 5, 4),
        "weights": weights / weights.sum((0, 1)),
        "W": exponential(*utterances, 2, 4),
        "H": exponential(*utterances, 5, 2),
        "gain": exponential(*utterances, 5),
    }


@pytest.mark.parametrize("name", MIXTURES)
def test_component_joints_are_those_of_the_program(name: str, small_prior: SmallPrior) -> None:
    """S17: the k-th term of the collapsed target is the Pyro joint with s integrated out and alpha at k."""
    prior, x, z = small_prior(name), complex_normal(4, 7), torch.randn(1, 4, 2)
    noise, pi = torch.rand(4, 7), torch.tensor([0.3, 0.7])
    target = CollapsedTarget(prior, None, x.abs().square(), noise, pi)
    joint = target.component_log_joint(z)[:, 0].sum(-1)
    for k in range(2):
        held = {"z": z[0], "alpha": torch.full((4,), k)}
        program = poutine.condition(noisy_speech, data=held)
        trace = poutine.trace(program).get_trace(prior, x, None, noise, mixing_weight=pi)
        torch.testing.assert_close(joint[k], trace.log_prob_sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", MIXTURES)
def test_less_factorised_joints_are_those_of_the_program(
    name: str, small_prior: SmallPrior
) -> None:
    """r(z, alpha) is, up to a constant, the joint with alpha at k and s = sqrt(|m|^2 + nu): S22 without a split."""
    prior, z = small_prior(name), torch.randn(6, 1, 2)
    second_moment, pi = torch.rand(1, 7) + 0.1, torch.tensor([0.3, 0.7])
    target = CollapsedMeanFieldTarget(prior, None, second_moment, pi)
    found = target.component_log_joint(z)[..., 0]
    s, x = second_moment.sqrt().to(torch.complex128), complex_normal(1, 7)
    expected = torch.empty(2, 6)
    for k in range(2):
        for d in range(6):
            held = {"z": z[d], "alpha": torch.tensor([k]), "s": s}
            program = poutine.condition(noisy_speech, data=held)
            trace = poutine.trace(program).get_trace(
                prior, x, None, torch.ones(1, 7), mixing_weight=pi, speech_latent=True
            )
            expected[k, d] = trace.log_prob_sum().detach()
    constant = (found - expected).detach()
    torch.testing.assert_close(constant, constant[0, 0].expand(2, 6))


def test_the_gain_scales_the_variance_of_speech(small_prior: SmallPrior) -> None:
    """S17: a gain g is the same as a decoder whose log-variance is higher by log g."""
    prior, power, z = small_prior("a_vae"), torch.rand(4, 7), torch.randn(2, 4, 2)
    noise, pi = torch.rand(4, 7), torch.ones(1)
    gained = CollapsedTarget(prior, None, power, noise, pi, gain=torch.full((4,), 3.0))
    found = gained.log_density(z)
    with torch.no_grad():
        prior.decoder.log_variance.bias += torch.log(torch.tensor(3.0))
    torch.testing.assert_close(found, CollapsedTarget(prior, None, power, noise, pi).log_density(z))


@given(seed=st.integers(0, 10**6), components=st.integers(1, 2), batch=st.booleans())
def test_no_update_ever_lowers_q(seed: int, components: int, batch: bool) -> None:
    """S19: one update of H, W or g at exponent 1/2, 3/4 or 1, V computed anew, never lowers S18."""
    p = problem(seed, components, (2,) if batch else ())
    q = monte_carlo_q(**p)
    for exponent in (0.5, 0.75, 1.0):
        for name, update in UPDATES.items():
            new = monte_carlo_q(**(p | {name: update(**p, exponent=exponent)}))
            assert (new >= q - 1e-9 * q.abs()).all(), name


UPDATES: dict[str, Callable[..., Tensor]] = {
    "H": mcem_update_H,
    "W": mcem_update_W,
    "gain": mcem_update_gain,
}


def test_where_the_updates_stop_the_gradient_is_zero() -> None:
    """S19's fixed points are stationary points of S18: autograd, in the logarithm of W, H and g."""
    p = problem(3)
    for _ in range(20000):
        for name, update in UPDATES.items():
            p[name] = update(**p)
    logs = {name: p[name].log().requires_grad_() for name in UPDATES}
    monte_carlo_q(**(p | {name: log.exp() for name, log in logs.items()})).backward()
    for name, log in logs.items():
        assert log.grad is not None
        assert log.grad.abs().max() < 1e-4, name
    started = {name: problem(3)[name].log().requires_grad_() for name in UPDATES}
    monte_carlo_q(**(problem(3) | {n: log.exp() for n, log in started.items()})).backward()
    assert min(log.grad.abs().max() for log in started.values() if log.grad is not None) > 1e-2


def test_the_gain_ends_at_the_maximum_of_q() -> None:
    """S19: iterated, g_n is where a scalar maximiser puts it, frame by frame."""
    p = problem(5)
    for _ in range(3000):
        p["gain"] = mcem_update_gain(**p)
    for n in range(5):

        def minus_q(log_gain: float, n: int = n) -> float:
            gain = p["gain"].clone()
            gain[n] = torch.tensor(log_gain).exp()
            return -float(monte_carlo_q(**(p | {"gain": gain})))

        best = minimize_scalar(minus_q, bounds=(-14, 5), method="bounded")
        assert minus_q(float(p["gain"][n].log())) <= best.fun + 1e-6


def test_the_estimate_is_the_posterior_mean() -> None:
    """S20: E[s | x] by quadrature over the complex plane, for one coefficient and each draw and component."""
    p = problem(7)
    x = complex_normal(5, 4)
    axis = torch.linspace(-12, 12, 1201)
    s = torch.complex(axis[:, None], axis[None, :])
    n, f = 2, 1
    noise = (p["H"] @ p["W"])[n, f]
    mean = torch.zeros((), dtype=torch.complex128)
    for k in range(2):
        for d in range(3):
            speech = p["gain"][n] * p["sigma"][k, d, n, f]
            density = torch.exp(-(s.abs() ** 2) / speech - (x[n, f] - s).abs() ** 2 / noise)
            mean += p["weights"][k, d, n] * (s * density).sum() / density.sum()
    del p["power"]
    torch.testing.assert_close(monte_carlo_wiener(x, **p)[n, f], mean, rtol=1e-4, atol=1e-5)


def test_with_one_component_nothing_is_left_to_collapse(small_prior: SmallPrior) -> None:
    """`collapsed_vem` of A-VAE is `vem`: the same draws to 1e-10, the same speech."""
    prior, x = small_prior("a_vae"), complex_normal(6, 7)
    settings = {"iterations": 6, "warmup": 3, "draws": 4, "noise": NoiseModel.paper(2)}
    one, other = VEM(**settings)(prior, x, seed=1), CollapsedVEM(**settings)(prior, x, seed=1)
    torch.testing.assert_close(one.chains.draws, other.chains.draws, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.speech, other.speech)
    torch.testing.assert_close(one.objective, other.objective)


def test_without_gain_it_stays_one(small_prior: SmallPrior) -> None:
    """With a gain of none a quieter recording is another problem; with it on, speech may follow."""
    prior, x = small_prior("a_vae"), complex_normal(6, 7)
    off = replace(SHORT, noise=replace(SHORT.noise, gain="none"))(prior, x).speech
    assert not torch.equal(off, SHORT(prior, x).speech)


def test_the_guide_hears_speech_as_loud_as_in_training(
    small_prior: SmallPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the mixture's power, then E|s|^2 / g: by the draws of the E-step before it, its gain the M-step's."""
    prior, x = small_prior("a_vae"), complex_normal(3, 7)
    heard: list[Tensor] = []
    encode = prior.encode

    def listen(power: Tensor, lips: Tensor | None) -> Any:
        heard.append(power)
        return encode(power, lips)

    monkeypatch.setattr(prior, "encode", listen)
    # One iteration's last E-step is the second of two's, if both draw as much.
    scheme = replace(SHORT, kernel=Independence(), warmup=2, final_warmup=2, draws=3, final_draws=3)
    heard.clear()
    one = replace(scheme, iterations=1)(prior, x)
    torch.testing.assert_close(heard[0], x.abs().square())
    heard.clear()
    two = replace(scheme, iterations=2)(prior, x)
    second_moment = torch.zeros(3, 7)
    for z in one.chains.draws.flatten(0, 1):
        speech_variance = one.gain[:, None] * prior.log_variance(z, None)[0].exp()
        m, nu = wiener_posterior(x, speech_variance, one.target.noise_variance)
        second_moment += (m.abs().square() + nu).detach() / 6
    torch.testing.assert_close(heard[2], second_moment / two.gain[:, None])
    assert not torch.allclose(heard[2], second_moment, rtol=0.1)


def test_the_first_warmup_is_the_first_e_steps_alone(small_prior: SmallPrior) -> None:
    """Counted in proposals: an E-step of `warmup + draws` each, but for the first and the last."""
    prior, x = small_prior("a_vae"), complex_normal(3, 7)

    class Counting(RandomWalk):
        steps: ClassVar[int] = 0

        def step(self, *args: Any, **options: Any) -> Any:
            type(self).steps += 1
            return super().step(*args, **options)

    replace(SHORT, kernel=Counting(), first_warmup=20)(prior, x)
    assert Counting.steps == (20 + 3) + 3 * (2 + 3) + (2 + 3)
    same = replace(SHORT, first_warmup=SHORT.warmup)(prior, x)
    assert torch.equal(same.speech, SHORT(prior, x).speech)
