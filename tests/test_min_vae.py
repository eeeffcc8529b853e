"""MIN-VAE's three versions: the mixtures' story and guide, v3's turns, and what a mixture held at audio is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Exponential, MultivariateNormal

from pyro_avse.inference import VEM, RandomWalk
from pyro_avse.models import AVAE
from pyro_avse.models.mixture import component_negative_elbo, update_responsibilities
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import Info, InputError, State, Target

pytestmark = pytest.mark.usefixtures("float64")
every_mixture = pytest.mark.parametrize("name", ["min_vae_v1", "min_vae_v2"])


def traced(program, *args, data: dict[str, Tensor], **kwargs) -> dict:
    """The sample sites of a Pyro program that is conditioned on `data`, with their log densities."""
    trace = poutine.trace(pyro.condition(program, data)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


@every_mixture
def test_story_of_a_mixture(name, small_prior, random_power, random_lips) -> None:
    """(9)-(11), S28: alpha ~ Cat(pi), z | alpha ~ N(mu_k, sigma_k I), s | z ~ N_c(0, sigma(z))."""
    prior = small_prior(name)
    power, lips, z = random_power(4, 7), random_lips(4), torch.randn(4, 2)
    alpha = torch.tensor([0, 1, 1, 0])
    sites = traced(prior.model, power, lips, data={"z": z, "alpha": alpha})
    assert set(sites) == {"frame", "alpha", "z", "s"}
    pi = prior.mixing_weight[0].item()
    bernoulli = torch.tensor([pi, 1 - pi, 1 - pi, pi]).log()
    torch.testing.assert_close(sites["alpha"]["log_prob"], bernoulli)
    for n in range(4):
        own = [prior.audio_prior, prior.visual_prior][alpha[n]]
        isotropic = MultivariateNormal(own.mean, own.log_variance.exp() * torch.eye(2))
        torch.testing.assert_close(sites["z"]["log_prob"][n], isotropic.log_prob(z[n]))
    sigma = prior.log_variance(z, lips)[0].exp()
    speech = Exponential(1 / sigma).log_prob(power) - math.log(math.pi)
    torch.testing.assert_close(sites["s"]["log_prob"], speech.sum(-1))


@every_mixture
def test_guide_selects_the_encoder(name, small_prior, random_power, random_lips) -> None:
    """(13), (14): q(z | alpha) r(alpha), the audio encoder where alpha is 0, the visual one where 1."""
    prior = small_prior(name)
    power, lips, z = random_power(4, 7), random_lips(4), torch.randn(4, 2)
    alpha = torch.tensor([0, 1, 1, 0])
    r = torch.softmax(torch.randn(2, 4, requires_grad=True), 0)
    heard = power + random_power(4, 7)
    data = {"z": z, "alpha": alpha}
    kwargs = {"encoder_power": heard, "responsibilities": r}
    sites = traced(prior.guide, power, lips, data=data, **kwargs)
    assert set(sites) == {"frame", "alpha", "z"}
    for n in range(4):
        q = prior.visual_encoder(lips[n]) if alpha[n] else prior.audio_encoder(heard[n])
        expected = MultivariateNormal(q.mean, torch.diag(q.variance)).log_prob(z[n])
        torch.testing.assert_close(sites["z"]["log_prob"][n], expected)
        torch.testing.assert_close(sites["alpha"]["log_prob"][n], r[alpha[n], n].log())
    assert not sites["alpha"]["log_prob"].requires_grad


@every_mixture
def test_guide_without_a_table_takes_the_closed_form(
    name, small_prior, random_power, random_lips
) -> None:
    """(22): r(alpha) of the guide is the minimiser at its own draws, and carries no gradient."""
    prior = small_prior(name)
    power, lips, heard = random_power(4, 7), random_lips(4), random_power(4, 7)
    torch.manual_seed(1)
    trace = poutine.trace(prior.guide).get_trace(power, lips, encoder_power=heard)
    torch.manual_seed(1)
    J = component_negative_elbo(prior, power, lips, encoder_power=heard)
    r = update_responsibilities(J, prior.mixing_weight)
    probs = trace.nodes["alpha"]["fn"].probs
    torch.testing.assert_close(probs, r.T.detach())
    assert not probs.requires_grad


def test_only_v1_decodes_with_the_lips(small_prior, random_lips) -> None:
    """(9): other lips are another variance of v1's speech, and the same of v2's."""
    z = torch.randn(4, 2)
    for name, sees in (("min_vae_v1", True), ("min_vae_v2", False)):
        prior = small_prior(name)
        one, other = (prior.log_variance(z, random_lips(4)) for _ in range(2))
        assert torch.equal(one, other) is not sees


def test_the_visual_encoder_starts_the_chain(small_prior, random_power, random_lips) -> None:
    """Without lips the audio encoder does, where the model enhances without them at all."""
    power, lips = random_power(4, 7), random_lips(4)
    for name in ("min_vae_v1", "min_vae_v2", "min_vae_v3"):
        prior = small_prior(name)
        seen, heard = prior.visual_encoder(lips).mean, prior.audio_encoder(power).mean
        assert torch.equal(prior.initial_codes(power, lips), seen)
        if name != "min_vae_v1":
            assert torch.equal(prior.initial_codes(power, None), heard)


@pytest.mark.parametrize("active", ["audio_encoder", "visual_encoder"])
def test_v3_takes_turns(active: str, small_prior, random_power, random_lips) -> None:
    """Sec. IV-A: the bound's gradient reaches the decoder, the prior and the encoder whose turn it is, no other."""
    prior = small_prior("min_vae_v3")
    assert set(prior.alternate) < {name for name, _ in prior.named_children()}
    prior.active_encoder = active
    args = random_power(4, 7), random_lips(4)
    loss = TraceMeanField_ELBO().differentiable_loss(prior.model, prior.guide, *args)
    loss.backward()
    reached = {name for name, p in prior.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in reached} == {"prior", "decoder", active}
    assert all(p.grad.abs().max() > 0 for p in prior.parameters() if p.grad is not None)
    q = prior.encode(*args)
    own = prior.get_submodule(active)(args[active == "visual_encoder"])
    assert torch.equal(q.mean[0], own.mean)
    assert torch.equal(q.stddev[0], own.stddev)


def test_v3_starts_with_the_audio_encoder(small_prior, random_power) -> None:
    """A model fresh from its file encodes without lips; in the lips' turn it says what it lacks."""
    prior, power = small_prior("min_vae_v3"), random_power(3, 7)
    assert prior.encode(power, None).batch_shape == (1, 3)
    prior.active_encoder = "visual_encoder"
    with pytest.raises(InputError, match="lips"):
        prior.encode(power, None)


@dataclass(frozen=True)
class Watched(RandomWalk):
    """A random walk that notes every decision."""

    accepted: list[Tensor] = field(default_factory=list)

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        state, info = super().step(target, state, rng=rng)
        self.accepted.append(info.accepted)
        return state, info


def test_v2_held_at_a_component_is_a_vae_with_that_prior(
    small_prior: Callable[..., nn.Module], random_lips: Callable[..., Tensor]
) -> None:
    """(31)-(45): with pi at exactly (1, 0), VEM of v2 is that of an A-VAE whose prior is N(mu_a, sigma_a I).

    At (0, 1), N(mu_v, sigma_v I). The same decisions and draws; at (0.5, 0.5) they differ.
    """
    mixture, lips = small_prior("min_vae_v2"), random_lips(6)
    x, z0 = torch.randn(6, 7, dtype=torch.complex128), torch.randn(6, 2)

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

    for k, own in enumerate((mixture.audio_prior, mixture.visual_prior)):
        alone = AVAE(num_freqs=7, latent_dim=2, hidden=6, learned_prior=True)
        alone.decoder.load_state_dict(mixture.decoder.state_dict())
        alone.audio_prior.load_state_dict(own.state_dict())
        expected, decisions = separate(alone, (1.0,))
        found, same = separate(mixture, tuple(float(i == k) for i in range(2)))
        assert torch.equal(same, decisions)
        assert 0.1 < decisions.double().mean() < 0.9
        close = {"rtol": 0, "atol": 1e-10}
        torch.testing.assert_close(found.chains.draws, expected.chains.draws, **close)
        torch.testing.assert_close(found.speech, expected.speech, **close)
        assert torch.equal(found.responsibilities[k], torch.ones(6))
        other, _ = separate(mixture, (0.5, 0.5))
        assert (other.chains.draws - expected.chains.draws).abs().max() > 1e-3
