"""VAE-MM: the story of S21, its E-step over two decoders by loops, and what it is when held at one component."""

import itertools
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Exponential, MultivariateNormal

from pyro_avse.inference import VEM, RandomWalk
from pyro_avse.inference.mean_field import latent_responsibilities
from pyro_avse.inference.wiener import average_speech_variance
from pyro_avse.models import VAEMM
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import Info, InputError, State, Target

pytestmark = pytest.mark.usefixtures("float64")


def traced(program, *args, data: dict[str, Tensor], **kwargs) -> dict:
    """The sample sites of a Pyro program that is conditioned on `data`, with their log densities."""
    trace = poutine.trace(pyro.condition(program, data)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


@pytest.mark.parametrize("learned_prior", [False, True])
def test_story(learned_prior: bool, small_prior, random_power, random_lips) -> None:
    """S21: alpha ~ Cat(pi); where 0, z and s are A-VAE's, where 1 AV-VAE's. The guide is their encoders."""
    prior = small_prior("vae_mm", learned_prior=learned_prior)
    power, lips, z = random_power(4, 7), random_lips(4), torch.randn(4, 2)
    heard, alpha = power + random_power(4, 7), torch.tensor([0, 1, 1, 0])
    sites = traced(prior.model, power, lips, data={"z": z, "alpha": alpha})
    assert set(sites) == {"frame", "alpha", "z", "s"}
    r = torch.softmax(torch.randn(2, 4), 0)
    kwargs = {"encoder_power": heard, "responsibilities": r}
    guided = traced(prior.guide, power, lips, data={"z": z, "alpha": alpha}, **kwargs)
    assert set(guided) == {"frame", "alpha", "z"}
    pi = prior.mixing_weight
    torch.testing.assert_close(sites["alpha"]["log_prob"], pi[alpha].log())
    torch.testing.assert_close(guided["alpha"]["log_prob"], r[alpha, torch.arange(4)].log())
    for n, k in enumerate(alpha):
        part = [prior.audio, prior.audio_visual][k]
        p, q = part.latent_prior(lips[n : n + 1]), part.encode(heard[n], lips[n])
        if k == 0 and not learned_prior:
            assert torch.equal(p.mean, torch.zeros(1, 1, 2))
            assert torch.equal(p.variance, torch.ones(1, 1, 2))
        for site, normal in ((sites, p), (guided, q)):
            mean, variance = normal.mean.reshape(2), normal.variance.reshape(2)
            expected = MultivariateNormal(mean, torch.diag(variance)).log_prob(z[n])
            torch.testing.assert_close(site["z"]["log_prob"][n], expected)
        sigma = part.log_variance(z[n], lips[n])[0].exp()
        speech = Exponential(1 / sigma).log_prob(power[n]).sum() - 7 * math.log(math.pi)
        torch.testing.assert_close(sites["s"]["log_prob"][n], speech)


def test_story_of_three(small_prior, random_power, random_lips) -> None:
    """Any list of models: alpha_n takes each component's own prior, decoder and encoder, pictures or their features."""
    prior, power, lips = small_prior("vae_mm+three"), random_power(6, 7), random_lips(6)
    z, alpha = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    sites = traced(prior.model, power, lips, data={"z": z, "alpha": alpha})
    r = torch.softmax(torch.randn(3, 6), 0)
    guided = traced(prior.guide, power, lips, data={"z": z, "alpha": alpha}, responsibilities=r)
    for n, k in enumerate(alpha):
        part = [prior.audio, prior.visual, prior.audio_visual][k]
        for site, normal in (
            (sites, part.latent_prior(lips[n : n + 1])),
            (guided, part.encode(power[n], lips[n])),
        ):
            mean, variance = normal.mean.reshape(2), normal.variance.reshape(2)
            expected = MultivariateNormal(mean, torch.diag(variance)).log_prob(z[n])
            torch.testing.assert_close(site["z"]["log_prob"][n], expected)
        sigma = part.log_variance(z[n], lips[n])[0].exp()
        speech = Exponential(1 / sigma).log_prob(power[n]).sum() - 7 * math.log(math.pi)
        torch.testing.assert_close(sites["s"]["log_prob"][n], speech)
    v = prior.visual_features(lips)
    assert torch.equal(prior.log_variance(z, v), prior.log_variance(z, lips))
    assert torch.equal(prior.latent_prior(v).mean, prior.latent_prior(lips).mean)


def test_two_models_that_look_keep_their_features_apart(random_lips) -> None:
    """Each AV-VAE of a mixture gets what its own embedding makes of the lips; without an A-VAE lips are needed."""
    sizes = {"num_freqs": 7, "latent_dim": 2, "hidden": 6, "features": 5}
    parts = {
        "near": {"model": "av_vae", **sizes, "embedding": 4},
        "far": {"model": "av_vae", **sizes, "embedding": 3},
    }
    prior, lips, z = VAEMM(parts), random_lips(3), torch.randn(3, 2)
    v = prior.visual_features(lips)
    assert v.shape == (3, 7)
    assert prior.components_see == (True, True)
    assert prior.requires_lips
    assert prior.without_lips is prior
    for k, part in enumerate((prior.near, prior.far)):
        torch.testing.assert_close(prior.log_variance(z, v)[k], part.log_variance(z, lips)[0])
        torch.testing.assert_close(prior.latent_prior(v).mean[k], part.latent_prior(lips).mean[0])


def test_models_that_hear_alone_are_a_mixture_too(random_power) -> None:
    """Two A-VAEs look at no lips, and need none."""
    sizes = {"model": "a_vae", "num_freqs": 7, "latent_dim": 2, "hidden": 6}
    prior = VAEMM({"speech": sizes, "song": sizes})
    assert not prior.uses_lips
    assert prior.without_lips is prior
    out = VEM(iterations=2, warmup=1, draws=1, noise=NoiseModel(2))(
        prior, torch.randn(4, 7, dtype=torch.complex128)
    )
    assert out.responsibilities.shape == (2, 4)


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"a": {"model": "a_vae"}}, "mixture of 1: name two"),
        ({"a": {"model": "a_vae"}, "m": {"model": "min_vae_v2"}}, "m is a 'min_vae_v2': take one"),
        ({"a": {"model": "a_vae"}, "b": {}}, "b is a None"),
        ({"model": {"model": "a_vae"}, "b": {"model": "a_vae"}}, "named 'model': take another"),
        ({"v": {"model": "v_vae"}, "a": {"model": "a_vae"}}, "a needs no lips.*name it first"),
    ],
)
def test_lists_that_are_none(components: dict[str, dict[str, str]], message: str) -> None:
    """One line names the component."""
    with pytest.raises(InputError, match=message) as error:
        VAEMM(components)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match="beside components"):
        VAEMM(components, audio={"hidden": 3})


def test_chain_starts_and_lack_of_lips(small_prior, random_power, random_lips) -> None:
    """Chains start at the components' own codes weighted by pi; without lips A-VAE stands in."""
    prior, power, lips = small_prior("vae_mm"), random_power(4, 7), random_lips(4)
    a = prior.audio.audio_encoder(power).mean
    v = prior.audio_visual.encode(power, lips).mean[0]
    for pi in ([0.3, 0.7], [1.0, 0.0]):
        prior.mixing_weight.copy_(torch.tensor(pi))
        torch.testing.assert_close(prior.initial_codes(power, lips), pi[0] * a + pi[1] * v)
    assert prior.without_lips is prior.audio
    with pytest.raises(InputError, match="lips"):
        prior.visual_features(None)


def test_the_parts_must_fit() -> None:
    """Two sizes of z, or of a frame: one line."""
    for size in ("latent_dim", "num_freqs"):
        with pytest.raises(InputError, match=f"{size} is 7 in audio") as error:
            VAEMM(audio={size: 7})
        assert len(str(error.value).splitlines()) == 1


@torch.no_grad()
def test_e_step_over_two_decoders_by_loops(small_prior, random_power, random_lips) -> None:
    """S23, S25: gamma sums over both decoders; the log-odds hold likelihoods, and the normalisers once.

    Published code of this family counts the normalisers twice: its odds differ.
    """
    prior, lips, z = small_prior("vae_mm"), random_lips(4), torch.randn(3, 4, 2)
    second_moment, pi = random_power(4, 7), torch.tensor([0.3, 0.7])
    v = prior.visual_features(lips)
    log_variance = prior.log_variance(z, v)
    r = latent_responsibilities(prior, z, v, log_variance, second_moment, pi)
    gamma = average_speech_variance(log_variance, r)
    parts = prior.audio, prior.audio_visual
    for n in range(4):
        odds = {"once": math.log(0.3 / 0.7), "twice": math.log(0.3 / 0.7)}
        precision = torch.zeros(7)
        for d, (k, part) in itertools.product(range(3), enumerate(parts)):
            sign = (1 - 2 * k) / 3
            sigma = part.log_variance(z[d, n], lips[n])[0].exp()
            precision += r[k, n] / sigma / 3
            p = part.latent_prior(lips[n : n + 1])
            for f in range(7):
                term = -math.log(sigma[f]) - second_moment[n, f].item() / sigma[f].item()
                odds = {way: value + sign * term for way, value in odds.items()}
            for l in range(2):
                mean, variance = p.mean[0, 0, l].item(), p.variance[0, 0, l].item()
                square = (z[d, n, l].item() - mean) ** 2 / (2 * variance)
                odds["once"] -= sign * (square + math.log(variance) / 2)
                odds["twice"] -= sign * (square + math.log(variance))
        assert torch.logit(r[0, n]).item() == pytest.approx(odds["once"], rel=1e-10)
        assert abs(odds["twice"] - odds["once"]) > 1e-3
        torch.testing.assert_close(gamma[n], 1 / precision)


@dataclass(frozen=True)
class Watched(RandomWalk):
    """A random walk that notes every decision."""

    accepted: list[Tensor] = field(default_factory=list)

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        state, info = super().step(target, state, rng=rng)
        self.accepted.append(info.accepted)
        return state, info


@pytest.mark.parametrize("component", [0, 1])
@pytest.mark.parametrize("utterances", [(), (2,)])
def test_held_at_a_component_it_is_that_model(
    component: int, utterances: tuple[int, ...], small_prior, random_lips
) -> None:
    """S22-S27: with pi at exactly (1, 0) or (0, 1), VEM is A-VAE's or AV-VAE's: the same decisions and draws.

    At (0.5, 0.5) it is not. The idle decoder may decode anything, infinities among it.
    """
    prior, shape = small_prior("vae_mm"), (*utterances, 6)
    x, lips = torch.randn(*shape, 7, dtype=torch.complex128), random_lips(*shape)
    z0 = torch.randn(*shape, 2)
    parts = prior.audio, prior.audio_visual

    def separate(prior: nn.Module, pi: tuple[float, ...]) -> tuple:
        prior.initial_codes = lambda power, lips: z0
        prior.encode = lambda power, lips: SimpleNamespace(mean=z0.expand(2, *z0.shape))
        kernel = Watched(0.5)
        scheme = VEM(
            kernel,
            iterations=4,
            warmup=3,
            draws=3,
            chains=2,
            noise=NoiseModel.paper(2),
            mixing_weight=pi,
        )
        return scheme(prior, x, lips), torch.stack(kernel.accepted)

    expected, decisions = separate(parts[component], (1.0,))
    mixed, _ = separate(prior, (0.5, 0.5))
    assert (mixed.chains.draws - expected.chains.draws).abs().max() > 1e-3
    assert 0.1 < decisions.double().mean() < 0.9
    for overflow in (0, 1000):  # log sigma of the other: exp(-1000) is zero, its precision infinite
        with torch.no_grad():
            parts[1 - component].decoder.log_variance.bias -= overflow
        found, same = separate(prior, tuple(float(k == component) for k in range(2)))
        assert torch.equal(same, decisions)
        close = {"rtol": 0, "atol": 1e-10}
        torch.testing.assert_close(found.chains.draws, expected.chains.draws, **close)
        torch.testing.assert_close(found.speech, expected.speech, **close)
        torch.testing.assert_close(found.objective, expected.objective)
        assert torch.equal(found.responsibilities[component], torch.ones(shape))
