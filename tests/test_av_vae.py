"""AV-VAE: its networks, its story, the objective S15 by hand, and A-VAE as what is left without lips."""

import math

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.distributions import Exponential, MultivariateNormal, kl_divergence

from pyro_avse.inference import VEM, RandomWalk
from pyro_avse.models import AVVAE
from pyro_avse.models.mixture import component_negative_elbo
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import InputError

pytestmark = pytest.mark.usefixtures("float64")
MIXED = [0.1, 0.5, 0.8]


def log_speech(power: Tensor, log_variance: Tensor) -> Tensor:
    """log N_c(s; 0, sigma) of every frame, by torch's Exponential."""
    return (Exponential((-log_variance).exp()).log_prob(power) - math.log(math.pi)).sum(-1)


def test_networks_are_the_concatenated_ones(small_prior, random_power, random_lips) -> None:
    """(7), (8), S14: pixels, ReLU, ReLU; then tanh of one linear layer of (s, v) or (z, v) concatenated."""
    prior, power, lips, z = (
        small_prior("av_vae"),
        random_power(4, 7),
        random_lips(4),
        torch.randn(4, 2),
    )
    weights = {key: value.detach().numpy() for key, value in prior.state_dict().items()}

    def linear(name: str, x: np.ndarray, *beside: np.ndarray) -> np.ndarray:
        parent = name.rpartition(".")[0]
        matrix = [weights[f"{name}.weight"], *[weights[f"{parent}.lips.weight"] for _ in beside]]
        return np.hstack([x, *beside]) @ np.hstack(matrix).T + weights[f"{name}.bias"]

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    v = relu(linear("embedding.features", lips.reshape(4, -1).numpy() / 255))
    v = relu(linear("embedding.hidden", v))
    h = relu(linear("prior.hidden", v))
    p = prior.latent_prior(lips)
    np.testing.assert_allclose(p.mean[0].detach(), linear("prior.mean", h))
    np.testing.assert_allclose(p.variance[0].detach(), np.exp(linear("prior.log_variance", h)))
    h = np.tanh(linear("encoder.hidden", power.numpy(), v))
    q = prior.encode(power, lips)
    np.testing.assert_allclose(q.mean[0].detach(), linear("encoder.mean", h))
    np.testing.assert_allclose(q.variance[0].detach(), np.exp(linear("encoder.log_variance", h)))
    h = np.tanh(linear("decoder.hidden", z.numpy(), v))
    decoded = prior.log_variance(z, lips)[0].detach()
    np.testing.assert_allclose(decoded, linear("decoder.log_variance", h))
    torch.testing.assert_close(prior.initial_codes(power, lips), q.mean[0])


@pytest.mark.parametrize("prior_weight", [0.0, *MIXED, 1.0])
def test_story(prior_weight: float, small_prior, random_power, random_lips) -> None:
    """(7), (8), S14: z | v ~ N(mu(v), sigma(v)), s | z, v ~ N_c(0, sigma(z, v)), whatever alpha is."""
    prior = small_prior("av_vae", prior_weight=prior_weight)
    power, lips, z = random_power(4, 7), random_lips(4), torch.randn(4, 2)
    data = {"z": z, "alpha": torch.tensor([0, 1, 1, 0])}
    trace = poutine.trace(pyro.condition(prior.model, data)).get_trace(power, lips)
    trace.compute_log_prob()
    sites = {name for name, site in trace.nodes.items() if site["type"] == "sample"}
    assert sites == {"frame", "z", "s"} | ({"alpha"} if prior_weight in MIXED else set())
    p = prior.latent_prior(lips)
    expected = MultivariateNormal(p.mean[0], torch.diag_embed(p.variance[0])).log_prob(z)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)
    expected = log_speech(power, prior.log_variance(z, lips)[0])
    torch.testing.assert_close(trace.nodes["s"]["log_prob"], expected)


def by_hand(
    prior: nn.Module, alpha: float, power: Tensor, heard: Tensor, lips: Tensor, z: Tensor
) -> Tensor:
    """Minus S15, summed over frames, at the draws `z` (2, frame, latent) of p(z|v) and q(z|s,v)."""
    p, q = prior.latent_prior(lips), prior.encode(heard, lips)
    mean, scale = torch.cat([p.mean, q.mean]), torch.cat([p.stddev, q.stddev])
    eps = ((z - mean) / scale).detach()
    from_prior, from_encoder = mean + scale * eps  # S9: gradients flow through the draws
    reconstructed = [
        log_speech(power, prior.log_variance(code, lips)[0]) for code in (from_prior, from_encoder)
    ]
    divergence = q.log_prob(from_encoder)[0] - p.log_prob(from_encoder)[0]
    return -(alpha * reconstructed[0] + (1 - alpha) * (reconstructed[1] - divergence)).sum()


@pytest.mark.parametrize("prior_weight", MIXED)
def test_objective_of_a_prior_weight(
    prior_weight: float, small_prior, random_power, random_lips
) -> None:
    """S15: the enumerated bound, and its gradients, are the sum written by hand; with the weights swapped they are not.

    One draw stands for each expectation, and log q(z) / p(z|v) at the draw for the divergence.
    """
    prior = small_prior("av_vae", prior_weight=prior_weight)
    power, lips = random_power(5, 7), random_lips(5)
    heard = power + random_power(5, 7)
    args, kwargs = (power, lips), {"encoder_power": heard}
    torch.manual_seed(1)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    loss = elbo.differentiable_loss(prior.model, prior.guide, *args, **kwargs)
    torch.manual_seed(1)
    enumerated = poutine.enum(prior.guide, first_available_dim=-2)
    z = poutine.trace(enumerated).get_trace(*args, **kwargs).nodes["z"]["value"].detach()
    expected = by_hand(prior, prior_weight, power, heard, lips, z)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(prior.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))
    assert all(g.abs().max() > 0 for g in gradients)
    swapped = by_hand(prior, 1 - prior_weight, power, heard, lips, z)
    assert (swapped - loss).abs() > 1e-3 or prior_weight == 0.5


@pytest.mark.parametrize("prior_weight", [0.0, 1.0])
def test_objective_of_one_term(prior_weight: float, small_prior, random_power, random_lips) -> None:
    """S15: at weight 0 the ELBO, at 1 the prior's codes alone; nothing is enumerated, and 0 log 0 costs nothing."""
    prior = small_prior("av_vae", prior_weight=prior_weight)
    args = random_power(5, 7), random_lips(5)
    torch.manual_seed(1)
    loss = Trace_ELBO().differentiable_loss(prior.model, prior.guide, *args)
    torch.manual_seed(1)
    sites = poutine.trace(prior.guide).get_trace(*args).nodes
    assert "alpha" not in sites
    z = sites["z"]["value"].detach().expand(2, -1, -1)
    expected = by_hand(prior, prior_weight, args[0], *args, z)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = dict(prior.named_parameters())
    used = [p for name, p in parameters.items() if not prior_weight or "encoder" not in name]
    gradients = torch.autograd.grad(loss, used)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, used))
    assert all(g.abs().max() > 0 for g in gradients)

    torch.manual_seed(1)
    analytic = TraceMeanField_ELBO().differentiable_loss(prior.model, prior.guide, *args)
    p, q = prior.latent_prior(args[1]), prior.encode(*args)
    kl = kl_divergence(q.base_dist, p.base_dist).sum(-1)[0]
    sampled = (q.log_prob(z[1]) - p.log_prob(z[1]))[0]
    torch.testing.assert_close(analytic, loss + (1 - prior_weight) * (kl - sampled).sum())


@torch.no_grad()
def test_expected_objective(small_prior, random_power, random_lips) -> None:
    """S15: the enumerated bound's mean over 3000 draws is S15 by quadrature over z; not with the weights swapped."""
    # Student's t of 100 batches: P(|t| > 5) < 3e-6 for a right bound.
    prior, alpha = small_prior("av_vae", latent_dim=1, prior_weight=0.3), 0.3
    power, lips = random_power(1, 7), random_lips(1)
    nodes, weights = map(torch.tensor, np.polynomial.hermite_e.hermegauss(48))
    weights = weights / weights.sum()
    p, q = prior.latent_prior(lips), prior.encode(power, lips)
    reconstructed = []
    for normal in (p, q):
        z = normal.mean[0] + normal.stddev[0] * nodes[:, None]  # (node, latent)
        log_variance = prior.log_variance(z[:, None], lips)[0, :, 0]
        reconstructed.append(weights @ log_speech(power, log_variance))
    elbo = reconstructed[1] - kl_divergence(q.base_dist, p.base_dist).sum()

    many = power.expand(30, -1), lips.expand(30, -1, -1)
    bound = TraceEnum_ELBO(max_plate_nesting=1)
    found = -torch.tensor([bound.loss(prior.model, prior.guide, *many) for _ in range(100)]) / 30
    spread = found.std() / math.sqrt(len(found))

    def t(alpha: float) -> float:
        expected = alpha * reconstructed[0] + (1 - alpha) * elbo
        return ((found.mean() - expected).abs() / spread).item()

    assert t(alpha) < 5
    assert t(1 - alpha) > 5


@pytest.mark.parametrize("prior_weight", MIXED)
def test_svi_trains_every_network(
    prior_weight: float, small_prior, random_power, random_lips
) -> None:
    """S15: three steps of the enumerated pair change embedding, prior, decoder and encoder."""
    prior = small_prior("av_vae", prior_weight=prior_weight)
    before = {key: p.detach().clone() for key, p in prior.named_parameters()}

    def model(*args: Tensor) -> None:
        pyro.module("prior", prior)
        prior.model(*args)

    svi = SVI(model, prior.guide, Adam({"lr": 1e-2}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(3):
        assert math.isfinite(svi.step(random_power(6, 7), random_lips(6)))
    assert all(not torch.equal(p, before[key]) for key, p in prior.named_parameters())


def without_lips(prior: nn.Module, audio: nn.Module) -> None:
    """Make an AV-VAE an A-VAE: no weight on the lips, prior N(0, I), the A-VAE's encoder and decoder."""
    with torch.no_grad():
        for part in (prior.prior, prior.encoder.lips, prior.decoder.lips):
            for parameter in part.parameters():
                parameter.zero_()
    for own, other in ((prior.encoder, audio.audio_encoder), (prior.decoder, audio.decoder)):
        missing, unexpected = own.load_state_dict(other.state_dict(), strict=False)
        assert (missing, unexpected) == (["lips.weight"], [])


def test_without_weight_on_the_lips_it_is_an_a_vae(small_prior, random_power, random_lips) -> None:
    """S12, S14: encoder, prior, decoder, bound, its gradient and enhancement are then A-VAE's."""
    audio, prior = small_prior("a_vae"), small_prior("av_vae", prior_weight=0.0)
    power, lips, z = random_power(5, 7), random_lips(5), torch.randn(3, 5, 2)
    assert not torch.allclose(prior.log_variance(z, lips), audio.log_variance(z, lips))
    without_lips(prior, audio)
    for part in ("latent_prior", "encode"):
        args = (power, lips)[part == "latent_prior" :]
        own, other = getattr(prior, part)(*args), getattr(audio, part)(*args)
        torch.testing.assert_close(own.mean, other.mean.expand_as(own.mean))
        torch.testing.assert_close(own.stddev, other.stddev.expand_as(own.stddev))
    torch.testing.assert_close(prior.log_variance(z, lips), audio.log_variance(z, lips))
    torch.testing.assert_close(prior.initial_codes(power, lips), audio.initial_codes(power, lips))

    losses, gradients = [], []
    for model in (prior, audio):
        torch.manual_seed(1)
        loss = TraceMeanField_ELBO().differentiable_loss(model.model, model.guide, power, lips)
        shared = [model.decoder.hidden.weight, model.decoder.log_variance.weight]
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, shared, retain_graph=True))
        torch.manual_seed(1)
        J = component_negative_elbo(model, power, lips)
        torch.testing.assert_close(J.sum(), loss)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)

    x = torch.randn(5, 7, dtype=torch.complex128)
    scheme = VEM(RandomWalk(0.5), iterations=3, warmup=3, draws=3, noise=NoiseModel.paper(2))
    own, other = scheme(prior, x, lips), scheme(audio, x)
    torch.testing.assert_close(own.chains.draws, other.chains.draws, rtol=0, atol=1e-10)
    torch.testing.assert_close(own.speech, other.speech)


@pytest.mark.parametrize(
    ("options", "found"),
    [({"prior_weight": -0.1}, "-0.1"), ({"prior_weight": 2}, "2"), ({"embedding": 67}, "67 x 67")],
)
def test_refusals(options: dict[str, float], found: str) -> None:
    """A weight that is no share, an embedding as wide as a picture: one line each."""
    with pytest.raises(InputError, match=found) as error:
        AVVAE(**options)
    assert len(str(error.value).splitlines()) == 1
