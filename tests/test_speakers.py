"""Several speakers at once: the program, its fast target, the EM on it. [Nguyen2021]; S17-S20"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from pyro_avse.inference import MALA, MCEM, RandomWalk, run_chains
from pyro_avse.inference.speakers import SpeakersEM
from pyro_avse.inference.speakers_m_step import observe_speakers, speech_of_each
from pyro_avse.inference.speakers_target import (
    SpeakersTarget,
    apart,
    combine,
    joined,
    of_combination,
    of_speaker,
)
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models import MODELS
from pyro_avse.models.nmf_noise import NOISE_MODELS, NoiseModel, log_prior, nmf_noise_variance
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import InputError, couples_frames

pytestmark = pytest.mark.usefixtures("float64")

FRAMES = [name for name, kind in MODELS.items() if not couples_frames(kind)]
PRIORS = [*FRAMES, "two_decoders"]
every_prior = pytest.mark.parametrize("name", PRIORS)


def some_target(prior: Any, speakers: int, *utterances: int, frames: int = 3) -> SpeakersTarget:
    """All that a target holds, nothing at its default."""
    shape = (*utterances, speakers, frames)
    pi = torch.softmax(torch.randn(prior.num_components, *shape), 0)
    return SpeakersTarget(
        prior,
        torch.rand(*shape, 67, 67),
        torch.empty(*utterances, frames, 7).exponential_(),
        torch.empty(*utterances, frames, 7).exponential_(),
        pi,
        torch.rand(shape) + 0.5,
        0.3 * torch.randn(*shape[:-1], 7),
    )


def program_of(
    target: SpeakersTarget, x: Tensor, **more: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `noisy_speech` for the same joint."""
    args = (target.prior, x, target.lips, target.noise_variance)
    given = {
        "mixing_weight": target.mixing_weight,
        "gain": target.gain,
        "log_response": target.log_response,
        "speakers": target.speakers,
    }
    return args, given | more


def log_joint_by_pyro(target: SpeakersTarget, z: Tensor) -> Tensor:
    """log sum over all alphas of the program's joint, one trace for every combination: (..., frame)."""
    x = target.power.sqrt().to(torch.complex128)
    args, given = program_of(target, x)
    terms = []
    K, J = target.prior.num_components, target.speakers
    for alphas in itertools.product(range(K), repeat=J):
        data = {f"z_{j + 1}": z[..., j, :, :] for j in range(J)}
        data |= {f"alpha_{j + 1}": torch.full(x.shape[:-1], a) for j, a in enumerate(alphas)}
        trace = poutine.trace(pyro.condition(noisy_speech, data)).get_trace(*args, **given)
        trace.compute_log_prob()
        sites = [s for s in trace.nodes.values() if s["type"] == "sample" and s["is_observed"]]
        terms.append(sum(site["log_prob"] for site in sites))
    return torch.logsumexp(torch.stack(terms), 0)


@every_prior
@pytest.mark.parametrize(("speakers", "utterances"), [(1, ()), (2, (2,)), (3, ())])
def test_the_target_is_the_joint_of_the_program(
    name: str, speakers: int, utterances: tuple[int, ...], small_prior: Callable[..., Any]
) -> None:
    """s and every alpha integrated out, to 1e-10, and the gradient as autograd has it."""
    target = some_target(small_prior(name), speakers, *utterances)
    z = torch.randn(*utterances, speakers, 3, 2)
    found = target.log_density(joined(z)[None])[0]
    torch.testing.assert_close(found, log_joint_by_pyro(target, z), rtol=1e-10, atol=1e-10)
    chains = joined(torch.randn(4, *utterances, speakers, 3, 2)).requires_grad_()
    value = target.log_density(chains)
    expected = torch.autograd.grad(value.sum(), chains)[0]
    fast, gradient = target.value_and_grad(chains.detach())
    torch.testing.assert_close(fast, value.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_alphas_are_enumerated_apart(small_prior: Callable[..., Any]) -> None:
    """Pyro's own sum over both speakers' alphas, each on an axis of its own, is the target too."""
    target = some_target(small_prior("vae_mm"), 2)
    x, z = target.power.sqrt().to(torch.complex128), torch.randn(2, 3, 2)
    args, given = program_of(target, x)
    data = {"z_1": z[0], "z_2": z[1]}
    with poutine.enum(first_available_dim=-2):
        trace = poutine.trace(pyro.condition(noisy_speech, data)).get_trace(*args, **given)
    trace.compute_log_prob()
    sites = [trace.nodes[n]["log_prob"] for n in ("alpha_1", "z_1", "alpha_2", "z_2", "x")]
    total = sum(sites)
    assert total.shape == (2, 2, 3)
    expected = target.log_density(joined(z)[None])[0]
    torch.testing.assert_close(torch.logsumexp(total, (0, 1)), expected, rtol=1e-10, atol=1e-10)


@every_prior
@pytest.mark.parametrize("speech_latent", [True, False])
def test_one_speaker_is_the_program_of_one_bit_by_bit(
    name: str, speech_latent: bool, small_prior: Callable[..., Any]
) -> None:
    target = some_target(small_prior(name), 1)
    x = torch.randn(3, 7, dtype=torch.complex128)
    data = {
        "alpha": torch.randint(target.prior.num_components, (3,)),
        "z": torch.randn(3, 2),
        "s": torch.randn(3, 7, dtype=torch.complex128),
    }
    args, given = program_of(target, x, speech_latent=speech_latent)
    alone = {
        "mixing_weight": target.mixing_weight[:, 0],
        "gain": target.gain[0],
        "log_response": target.log_response[0],
        "speech_latent": speech_latent,
    }
    one = poutine.trace(pyro.condition(noisy_speech, {f"{k}_1": v for k, v in data.items()}))
    one = one.get_trace(*args, **given)
    old = poutine.trace(pyro.condition(noisy_speech, data))
    old = old.get_trace(args[0], x, target.lips[0], args[3], **alone)
    for trace in (one, old):
        trace.compute_log_prob()
    for name_of_site in ("alpha", "z", "s", "x"):
        if name_of_site in old.nodes:
            own = f"{name_of_site}_1" if name_of_site != "x" else "x"
            assert torch.equal(one.nodes[own]["log_prob"], old.nodes[name_of_site]["log_prob"])


@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
def test_speech_of_all_integrates_out(name: str, small_prior: Callable[..., Any]) -> None:
    """E|x|^2 of draws of the program with every s is that of the program without; 1 of 10^5 sound ones would fail.

    The twin forgets the second speaker.
    """
    target = some_target(small_prior(name), 2, frames=2)
    z, K, count = torch.randn(2, 2, 2), target.prior.num_components, 4000
    data = {f"z_{j + 1}": z[j].expand(count, 2, 2) for j in (0, 1)}
    data |= {f"alpha_{j + 1}": torch.full((count, 2), (K - 1) * j) for j in (0, 1)}
    power = (
        pyro.condition(noisy_speech, data)(
            target.prior,
            None,
            None,
            target.noise_variance.expand(count, 2, 7),
            gain=target.gain,
            log_response=target.log_response,
            speech_latent=True,
            speakers=2,
        )
        .abs()
        .square()
    )
    S = target.speech_variance(target.prior.log_variance(z[None], None))[:, 0]
    first, error = S[0, 0] + target.noise_variance, power.std(0) / count**0.5
    assert ((power.mean(0) - first - S[-1, 1]) / error).abs().max() < 5.5
    assert ((power.mean(0) - first) / error).abs().max() > 5.5


@every_prior
def test_to_exchange_speakers_exchanges_nothing_else(
    name: str, small_prior: Callable[..., Any]
) -> None:
    target = some_target(small_prior(name), 3, 2)
    order = torch.tensor([2, 0, 1])
    turned = replace(
        target,
        lips=target.lips[:, order],
        mixing_weight=target.mixing_weight[:, :, order],
        gain=target.gain[:, order],
        log_response=target.log_response[:, order],
    )
    z = torch.randn(4, 2, 3, 3, 2)
    value, gradient = target.value_and_grad(joined(z))
    other, turned_gradient = turned.value_and_grad(joined(z[:, :, order]))
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(apart(turned_gradient, 3), apart(gradient, 3)[:, :, order])
    assert not torch.allclose(turned.log_density(joined(z)), value)


@every_prior
def test_one_speaker_is_the_target_of_one(name: str, small_prior: Callable[..., Any]) -> None:
    target = some_target(small_prior(name), 1, 2)
    alone = CollapsedTarget(
        target.prior,
        target.lips[:, 0],
        target.power,
        target.noise_variance,
        target.mixing_weight[:, :, 0],
        target.gain[:, 0],
        target.log_response[:, 0],
    )
    z = torch.randn(4, 2, 3, 2)
    for own, old in zip(target.value_and_grad(z), alone.value_and_grad(z), strict=True):
        torch.testing.assert_close(own, old)


def test_of_speaker_is_the_transpose_of_combine() -> None:
    """<combine(a), b> = <a, of_speaker(b)>; and `of_combination` has one speaker's part of the sum."""
    a, b = torch.randn(2, 4, 3, 5, 6), torch.randn(8, 4, 5, 6)
    torch.testing.assert_close((combine(a) * b).sum(), (a * of_speaker(b, 3, 2)).sum())
    torch.testing.assert_close(sum(of_combination(a, j) for j in range(3)), combine(a))


# --- EM ----------------------------------------------------------------------------------------------------------


def observation_of(prior: Any, speakers: int = 2, *utterances: int) -> Any:
    x = torch.randn(*utterances, 6, 7, dtype=torch.complex128)
    lips = torch.rand(*utterances, speakers, 6, 67, 67)
    return observe_speakers(prior, x, lips, speakers)


@pytest.mark.parametrize("noise", [NoiseModel(rank=2), replace(NOISE_MODELS["paper"], rank=2)])
@every_prior
def test_no_update_lowers_q(name: str, noise: NoiseModel, small_prior: Callable[..., Any]) -> None:
    """The M-step at the same draws, ten times, from where the last left: S18 never falls, with its prior."""
    observation = observation_of(small_prior(name), 2, 2)
    scheme = SpeakersEM(noise=noise, exponent=0.5)
    rng = torch.Generator().manual_seed(0)
    state = scheme.init(observation, rng=rng)
    state, drawn = scheme.e_step(observation, state, 2, 3, rng)
    before = None
    for _ in range(10):
        state = scheme.m_step(observation, state, drawn)
        assert before is None or (state.objective >= before - 1e-9).all()
        before = state.objective


def test_q_is_that_of_the_mixture(small_prior: Callable[..., Any]) -> None:
    """The objective against a loop over draws and combinations."""
    observation = observation_of(small_prior("vae_mm"))
    scheme = SpeakersEM(noise=NoiseModel(rank=2))
    rng = torch.Generator().manual_seed(0)
    state = scheme.init(observation, rng=rng)
    state, drawn = scheme.e_step(observation, state, 2, 3, rng)
    state = scheme.m_step(observation, state, drawn)
    S, WH = (
        speech_of_each(drawn.sigma, state),
        nmf_noise_variance(state.dictionary, state.activations),
    )
    q = 0.0
    for r, (k, i) in itertools.product(range(S.shape[1]), itertools.product(range(2), repeat=2)):
        V = S[k, r, 0] + S[i, r, 1] + WH
        q += (drawn.weights[2 * k + i, r] * -(V.log() + observation.power / V).sum(-1)).sum()
    q = q + log_prior(scheme.noise, state.activations)
    for j in (0, 1):
        level = log_prior(
            replace(scheme.noise, smoothness=0.0),
            state.activations,
            state.gain[j],
            state.response[j],
        )
        q = q + level
    torch.testing.assert_close(state.objective, q)


@every_prior
def test_all_parts_sum_to_the_mixture(name: str, small_prior: Callable[..., Any]) -> None:
    """Speech of all and noise, none of them of another sign than the mixture: filters between 0 and 1."""
    prior = small_prior(name)
    x = torch.randn(2, 6, 7, dtype=torch.complex128)
    found = SpeakersEM(noise=NoiseModel(rank=2)).separate(
        prior, x, torch.rand(2, 3, 6, 67, 67), speakers=3
    )
    assert found.speech.shape == (2, 3, 6, 7)
    share = (found.speech / x[:, None]).real
    assert (share >= 0).all()
    assert (share.sum(1) <= 1).all()
    assert found.responsibilities.shape == (prior.num_components, 2, 3, 6)
    torch.testing.assert_close(found.responsibilities.sum(0), torch.ones(2, 3, 6))
    torch.testing.assert_close(found.mixing_weight.sum(0), torch.ones(2, 3))


def test_one_speaker_is_mcem(small_prior: Callable[..., Any]) -> None:
    """The same draws, the same updates, the same speech."""
    prior, x, lips = (
        small_prior("vae_mm"),
        torch.randn(6, 7, dtype=torch.complex128),
        torch.rand(6, 67, 67),
    )
    settings = {"kernel": RandomWalk(), "iterations": 2, "chains": 2, "noise": NoiseModel(rank=2)}
    one = SpeakersEM(**settings).separate(prior, x, lips[None], speakers=1)
    shared = {
        f: getattr(SpeakersEM(), f)
        for f in (
            "warmup",
            "draws",
            "first_warmup",
            "final_warmup",
            "final_draws",
            "temperature",
            "exponent",
        )
    }
    old = MCEM(**settings, **shared)(prior, x, lips)
    torch.testing.assert_close(one.speech[0], old.speech)
    torch.testing.assert_close(one.objective, old.objective)


def test_chains_sample_the_joint_posterior(small_prior: Callable[..., Any]) -> None:
    """Two speakers of one number each: means of MALA's draws against a grid; a twin that leaves the second out fails.

    Four standard errors of the mean of 8 chains, which differ: one sound run in 10^3 would fail.
    """
    prior = small_prior("a_vae", latent_dim=1)
    target = some_target(prior, 2, frames=1)
    target = replace(target, noise_variance=0.1 * target.noise_variance)
    axis = torch.linspace(-6, 6, 241)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    p = torch.softmax(target.log_density(grid)[:, 0], 0)
    expected = (p[:, None] * grid[:, 0]).sum(0)
    chains = run_chains(MALA(0.6), target, torch.randn(8, 1, 2), draws=3000, warmup=200)
    means = chains.draws[:, :, 0].mean(1)
    error = means.std(0) / 8**0.5
    assert ((means.mean(0) - expected).abs() < 5.4 * error).all()  # Student's t with 7 degrees
    alone = replace(target, noise_variance=target.noise_variance + 5)
    q = torch.softmax(alone.log_density(grid)[:, 0], 0)
    wrong = (q[:, None] * grid[:, 0]).sum(0)
    assert ((means.mean(0) - wrong).abs() > 5.4 * error).any()


def test_refusals(small_prior: Callable[..., Any]) -> None:
    x = torch.randn(6, 7, dtype=torch.complex128)
    with pytest.raises(
        InputError, match="lips of 1 speakers for 2: give one pair of lips for each"
    ):
        observe_speakers(small_prior("a_vae"), x, torch.rand(1, 6, 67, 67), 2)
    with pytest.raises(InputError, match="needs the lips of every speaker in every frame"):
        observe_speakers(small_prior("av_vae"), x, None, 2)
    with pytest.raises(InputError, match=r"filter_share is 1.5: give 0, the model's filter, to 1"):
        SpeakersEM(filter_share=1.5)
