"""lessons/inference_duel.py: the truth by Pyro, autograd and importance sampling; kernels and schemes against it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor

from lessons.inference_duel import (
    KERNELS,
    SCHEMES,
    Answer,
    Frame,
    average,
    draw,
    errors,
    hear,
    quadrature,
    run_kernel,
    run_scheme,
    small_prior,
    train,
)
from pyro_avse.errors import InputError
from pyro_avse.models.noisy_speech import noisy_speech

pytestmark = pytest.mark.usefixtures("float64")
NAMES = ["a_vae", "min_vae_v2"]


def a_frame(name: str, seed: int = 0) -> Frame:
    """A prior that is not trained, but whose code matters."""
    prior: Any = small_prior(name, seed).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prior.decoder.parameters():
            parameter += 0.7 * torch.randn(parameter.shape, generator=rng)
    return hear(prior, draw(4, rng), 1, rng)


def log_evidence(
    frame: Frame, x: Tensor, noise: Tensor, side: int = 160, reach: float = 6.0
) -> Tensor:
    """log p(x), with its constants, by quadrature; it can be differentiated."""
    line = torch.linspace(-reach, reach, side)
    z = torch.cartesian_prod(line, line)
    sigma = frame.prior.log_variance(z[:, None], None)[0, :, 0].exp().detach()
    pi, prior = frame.prior.mixing_weight, frame.prior.latent_prior(None)
    parts = [
        torch.distributions.Normal(mean[0].detach(), scale[0].detach()).log_prob(z).sum(-1)
        + weight.log()
        for weight, mean, scale in zip(pi, prior.mean, prior.stddev, strict=True)
    ]
    V = sigma + noise
    power = x.real.square() + x.imag.square()
    heard = -(math.log(math.pi) + V.log() + power / V).sum(-1)
    return (torch.logsumexp(torch.stack(parts), 0) + heard).logsumexp(0) + 2 * math.log(
        line[1] - line[0]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_density_is_the_pyro_programs(name: str) -> None:
    frame = a_frame(name)
    gaps = []
    for z in torch.randn(6, 1, 2):
        values, total = {"z": z}, []
        for k in range(frame.prior.num_components):
            given = values | (
                {"alpha": torch.tensor([k])} if frame.prior.num_components > 1 else {}
            )
            program = poutine.condition(noisy_speech, given)
            trace = poutine.trace(program).get_trace(frame.prior, frame.x, frame.lips, frame.noise)
            total.append(trace.log_prob_sum())
        gaps.append(torch.stack(total).logsumexp(0) - frame.target.log_density(z[None])[0, 0])
    torch.testing.assert_close(torch.stack(gaps), torch.zeros(6), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_about_speech_is_the_evidences_slope(name: str) -> None:
    """E[s] = x + v d log p(x) / d conj x; E|s - x|^2 = v + v^2 d log p(x) / d v. No filter is used."""
    frame = a_frame(name)
    truth, _, _ = quadrature(frame, 160)
    re, im = (part[0].clone().requires_grad_() for part in (frame.x.real, frame.x.imag))
    v = frame.noise[0].clone().requires_grad_()
    slopes = torch.autograd.grad(log_evidence(frame, torch.complex(re, im), v), (re, im, v))
    x, noise = frame.x[0], frame.noise[0]
    speech = x + noise * 0.5 * torch.complex(slopes[0], slopes[1])
    torch.testing.assert_close(truth.speech, speech)
    apart = noise + noise.square() * slopes[2]
    power = apart + 2 * (x.conj() * speech).real - x.abs().square()
    torch.testing.assert_close(truth.power, power)


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_about_z_is_that_of_weighted_draws(name: str) -> None:
    """Within 4.5 standard errors: a false alarm in one of 70,000 numbers. A twin that hears less noise is far off."""
    frame = a_frame(name, 1)
    truth, _, _ = quadrature(frame)
    prior, rng = frame.prior.latent_prior(None), torch.Generator().manual_seed(0)
    which = frame.prior.mixing_weight.multinomial(40000, replacement=True, generator=rng)
    with torch.no_grad():
        mean, scale = prior.mean[which, 0], prior.stddev[which, 0]
        z = mean + scale * torch.randn(40000, 2, generator=rng)
        sigma = frame.prior.log_variance(z[:, None], None)[0, :, 0].exp()

    def score(noise: Tensor) -> float:
        V = sigma + noise
        w = -(V.log() + frame.x.abs().square() / V).sum(-1)
        w = w.softmax(0)
        found = w @ z
        error = (w.square() @ (z - found).square()).sqrt()
        return float(((found - truth.z) / error).abs().max())

    assert score(frame.noise) < 4.5
    assert score(0.05 * frame.noise) > 4.5


def test_a_finer_or_wider_grid_changes_nothing() -> None:
    frame = a_frame("min_vae_v2", 2)
    truth, z, weight = quadrature(frame)
    for side, reach in ((300, 6.0), (300, 8.0)):
        other, _, _ = quadrature(frame, side, reach)
        assert max(errors(other, truth).values()) < 1e-4
    assert errors(truth, truth) == {"z": 0.0, "speech": 0.0, "power": 0.0}
    quarter = average(frame, z, weight.pow(0.25) / weight.pow(0.25).sum())
    assert errors(quarter, truth)["speech"] > 1e-3
    assert math.isnan(errors(Answer(truth.z, truth.speech), truth)["power"])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_come_to_the_truth(name: str, kernel: str) -> None:
    """`ula` at its own step size is slow here, and biased where it is fast; the others adapt theirs."""
    frame = a_frame(name)
    if kernel == "gibbs" and name == "a_vae":
        with pytest.raises(InputError, match="needs a mixture"):
            run_kernel(kernel, frame, 1, 0, 1)
        return
    truth, _, _ = quadrature(frame, 120)
    found, seconds, draws = run_kernel(kernel, frame, 64, 50, 70)
    assert seconds > 0
    assert draws.shape == (4480, 2)
    loose = {"ula": (0.3, 1.0), "gibbs": (0.12, 0.6), "random_walk": (0.12, 0.6)}
    speech, code = loose.get(kernel, (0.1, 0.35))
    assert errors(found, truth)["speech"] < speech
    assert errors(found, truth)["z"] < code


def vem_by_quadrature(frame: Frame, steps: int) -> Answer:
    """(7) and (8) in turn, r(z) on a grid, from r(s) a point at x."""
    _, z, _ = quadrature(frame, 120)
    x, v = frame.x[0], frame.noise[0]
    with torch.no_grad():
        log_sigma = frame.prior.log_variance(z[:, None], None)[0, :, 0]
    log_prior, second = -0.5 * z.square().sum(-1), x.abs().square()
    for _ in range(steps):
        r = (log_prior - (log_sigma + second * (-log_sigma).exp()).sum(-1)).softmax(0)
        gamma = 1 / (r @ (-log_sigma).exp())
        m, nu = gamma / (gamma + v) * x, gamma * v / (gamma + v)
        second = m.abs().square() + nu
    return Answer(r @ z, m, spread=(r @ (z - r @ z).square()).sqrt())


def test_vem_is_itself_by_quadrature() -> None:
    frame = a_frame("a_vae", 3)
    expected = vem_by_quadrature(frame, 10)
    assert expected.spread is not None
    kernel = KERNELS["elliptical_slice"]()
    found, _ = run_scheme(
        "vem", frame, iterations=10, warmup=10, draws=20, chains=200, kernel=kernel
    )
    assert (found.speech - expected.speech).norm() / expected.speech.norm() < 0.05
    assert ((found.z - expected.z) / expected.spread).norm() < 0.25
    truth, _, _ = quadrature(frame)
    assert truth.spread is not None
    assert expected.spread.norm() < truth.spread.norm()  # it is too sure


SHORT: dict[str, dict[str, Any]] = {
    "nuts": {"warmup": 5, "draws": 5, "max_tree_depth": 2},
    "auto_normal": {"steps": 10, "draws": 20},
    "importance": {"iterations": 3, "final_draws": 5000},
    "vem": {"iterations": 3},
    "collapsed_vem": {"iterations": 3},
    "amortised_vem": {"iterations": 2},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_answers_with_the_noise_that_is_known(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, seen = a_frame("min_vae_v2", 4), []
    kind: Callable[..., Any] = SCHEMES["mcem" if scheme in ("nuts", "auto_normal") else scheme]
    finish = kind.finish  # type: ignore[attr-defined]

    def watched(self: Any, observation: Any, state: Any, *, rng: torch.Generator) -> Any:
        seen.append(state.activations @ state.dictionary)
        return finish(self, observation, state, rng=rng)

    monkeypatch.setattr(kind, "finish", watched)
    found, _ = run_scheme(scheme, frame, **SHORT.get(scheme, {}))
    torch.testing.assert_close(seen[0], frame.noise)
    assert found.speech.isfinite().all()
    assert found.z.shape == (2,)
    if scheme == "importance":
        truth, _, _ = quadrature(frame)
        assert errors(found, truth)["speech"] < 0.05


def test_svi_raises_a_bound_that_stays_below_the_evidence() -> None:
    """ELBO + KL(q, p(z | s)) is log p(s), on a grid, for every frame."""
    for seed in range(2):
        sounds = draw(200, torch.Generator().manual_seed(seed))
        prior: Any = small_prior("a_vae", seed).double()
        rises = train(prior, sounds, 60, seed, batch=32)
        assert sum(rises[-10:]) > sum(rises[:10])
    frame = Frame(prior, sounds.power[:1].sqrt() + 0j, None, torch.zeros(1, sounds.power.shape[1]))
    log_p = log_evidence(frame, frame.x, frame.noise, side=300)
    line = torch.linspace(-6, 6, 300)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        q = prior.encode(sounds.power[:1], None)
        log_q = torch.distributions.Normal(q.mean[0, 0], q.stddev[0, 0]).log_prob(z).sum(-1)
        log_sigma = prior.log_variance(z[:, None], None)[0, :, 0]
        prior_part = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    heard = -(math.log(math.pi) + log_sigma + sounds.power[0] * (-log_sigma).exp()).sum(-1)
    share = log_q.exp() * (line[1] - line[0]) ** 2
    elbo, gap = share @ (prior_part + heard - log_q), share @ (log_q - (prior_part + heard - log_p))
    torch.testing.assert_close(elbo + gap, log_p, atol=1e-6, rtol=0)
    assert gap > 0
