"""Every speech prior: its Pyro pair is the density it says it is, and its parts are the pair's.

The densities of `model` and `guide` come from Pyro traces conditioned on alpha and z; what they are compared with comes
from torch.distributions, from quadrature over z, or from enumerating alpha.
"""

import itertools
import math

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.distributions import Exponential, MultivariateNormal

from pyro_avse.distributions import align_components
from pyro_avse.inference.em import observe, starting_codes
from pyro_avse.models import MODELS
from pyro_avse.models.nets import AudioEncoder, VisualEncoder, diagonal_normal
from pyro_avse.typing import InputError, couples_frames

pytestmark = pytest.mark.usefixtures("float64")

LEARNED = ["a_vae+learned_prior", "v_vae+learned_prior"]
OWN_PRIOR = dict(
    zip([*LEARNED, "min_vae_v3"], ["audio_prior", "visual_prior", "prior"], strict=True)
)
FRAMEWISE = [name for name, kind in MODELS.items() if not couples_frames(kind)]
every_model = pytest.mark.parametrize("name", [*FRAMEWISE, *LEARNED, "vae_mm+three"])


@pytest.mark.parametrize("name", FRAMEWISE)
def test_defaults_are_the_papers_sizes(name: str) -> None:
    """Sec. IV-A: F = 513, L = 32, M = 128; MIN-VAE v2 has 2,517,315 trainable parameters."""
    prior = MODELS[name]()
    assert (prior.num_freqs, prior.latent_dim) == (513, 32)
    if name == "min_vae_v2":
        trainable = sum(p.numel() for p in prior.parameters() if p.requires_grad)
        # The authors' code keeps both priors' means and variances: 2 (32 + 1) of these.
        assert trainable == 2_517_315
    if name in ("av_vae", "min_vae_v1"):
        assert prior.visual_features(torch.zeros(3, 67, 67)).shape == (3, 128)


@every_model
def test_shapes(name, small_prior, random_power, random_lips) -> None:
    """Chains and utterances are leading axes of every part, and each is treated on its own."""
    prior = small_prior(name)
    K, L = prior.num_components, prior.latent_dim
    power, lips, z = random_power(2, 3, 4, 7), random_lips(2, 3, 4), torch.randn(5, 2, 3, 4, L)
    q = prior.encode(power, lips)
    log_variance = prior.log_variance(z, lips)
    latent = align_components(prior.latent_prior(lips), z.dim())
    start = prior.initial_codes(power, lips)
    assert (q.batch_shape, q.event_shape) == ((K, 2, 3, 4), (L,))
    assert latent.log_prob(z).shape == (K, 5, 2, 3, 4)
    assert log_variance.shape in {(1, 5, 2, 3, 4, 7), (K, 5, 2, 3, 4, 7)}
    assert start.shape == (2, 3, 4, L)
    assert prior.mixing_weight.shape == (K,)
    for c, i, j in itertools.product(range(5), range(2), range(3)):
        one = prior.encode(power[i, j], lips[i, j])
        torch.testing.assert_close(q.mean[:, i, j], one.mean)
        torch.testing.assert_close(q.stddev[:, i, j], one.stddev)
        decoded = prior.log_variance(z[c, i, j], lips[i, j])
        torch.testing.assert_close(log_variance[:, c, i, j], decoded)
        own = prior.latent_prior(lips[i, j]).log_prob(z[c, i, j])
        torch.testing.assert_close(latent.log_prob(z)[:, c, i, j], own)
        torch.testing.assert_close(start[i, j], prior.initial_codes(power[i, j], lips[i, j]))


@every_model
def test_features_stand_for_the_pictures(name, small_prior, random_lips) -> None:
    """What `visual_features` keeps serves prior and decoder as the pictures do, bit for bit, chains in front."""
    prior, lips, z = small_prior(name), random_lips(2, 4), torch.randn(5, 2, 4, 2)
    v = prior.visual_features(lips)
    assert v.shape[:2] == (2, 4)
    seen, kept = prior.latent_prior(lips), prior.latent_prior(v)
    assert torch.equal(kept.mean, seen.mean)
    assert torch.equal(kept.stddev, seen.stddev)
    assert torch.equal(prior.log_variance(z, v), prior.log_variance(z, lips))
    assert torch.equal(prior.visual_features(v), v)


@pytest.mark.parametrize("name", ["min_vae_v1", "min_vae_v2", "min_vae_v3", *LEARNED])
def test_prior_variances_stay_positive(name, small_prior, random_lips) -> None:
    """(10): no optimiser step, however wild, makes a learned prior's variance negative."""
    prior, lips = small_prior(name), random_lips(2)
    parameters = [p for p in prior.parameters() if p.requires_grad]
    for sign in (1, -1):
        optimiser = torch.optim.Adam(parameters, lr=3.0)
        for _ in range(20):
            loss = sign * prior.latent_prior(lips).stddev.log().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            assert (prior.latent_prior(lips).variance > 0).all()


def networks(encoder: nn.Module, *layers: tuple[str, str], x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean and variance by matrix products in NumPy: layers (name, activation), then the two heads."""
    weights = {key: value.numpy() for key, value in encoder.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    for name, activation in layers:
        x = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0)}[activation](linear(name, x))
    return linear("mean", x), np.exp(linear("log_variance", x))


def test_audio_encoder(random_power) -> None:
    """(3): Gaussian with mean and *variance* from tanh(|s|^2)."""
    encoder, power = AudioEncoder(7, 6, 2), random_power(4, 7)
    mean, variance = networks(encoder, ("hidden", "tanh"), x=power.numpy())
    q = encoder(power)
    np.testing.assert_allclose(q.mean.detach(), mean)
    np.testing.assert_allclose(q.variance.detach(), variance)


def test_visual_encoder(random_lips) -> None:
    """(6): Gaussian with mean and *variance* from the pixels, in 0..255 or in [0, 1]."""
    encoder, lips = VisualEncoder(5, 6, 2), random_lips(4)
    pixels = lips.reshape(4, -1).numpy() / 255
    mean, variance = networks(encoder, ("features", "relu"), ("hidden", "tanh"), x=pixels)
    for q in (encoder(lips), encoder(lips / 255.0)):
        np.testing.assert_allclose(q.mean.detach(), mean)
        np.testing.assert_allclose(q.variance.detach(), variance)


def test_reparametrised_draws() -> None:
    """S9: z = mu + sqrt(Sigma) eps has mean mu and variance Sigma; without the root it has not."""
    # 6 statistics: P(max |z| > 5) < 4e-6 for a sound sampler.
    mean, log_variance = torch.randn(3), torch.tensor([-1.0, 0.5, 2.0])
    q = diagonal_normal(mean, log_variance)
    eps = torch.randn(20_000, 3)

    def max_z(z: Tensor) -> float:
        u = (z - mean) / torch.exp(0.5 * log_variance)
        moments = [u, u.square() - 1]
        return max((m.mean(0).abs() / m.std(0) * math.sqrt(20_000)).max().item() for m in moments)

    assert max_z(q.rsample((20_000,))) < 5
    assert max_z(mean + eps * log_variance.exp()) > 5
    assert q.has_rsample


def traced(program, *args, data: dict[str, Tensor], **kwargs) -> dict:
    """The sample sites of a Pyro program that is conditioned on `data`, with their log densities."""
    trace = poutine.trace(pyro.condition(program, data)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def log_joint(sites: dict) -> Tensor:
    """Log density of every frame: the sum over sites."""
    return sum(site["log_prob"] for site in sites.values())


@pytest.mark.parametrize("name", ["a_vae", "v_vae", *OWN_PRIOR])
def test_story_of_a_standard_vae(name, small_prior, random_power, random_lips) -> None:
    """(1), (2), S12, S13: z ~ N(0, I), s | z ~ N_c(0, sigma(z)), scored through |s|^2; or N(mu, sigma I), learned."""
    prior = small_prior(name)
    power, lips, z = random_power(4, 7), random_lips(4), torch.randn(4, 2)
    sites = traced(prior.model, power, lips, data={"z": z})
    assert set(sites) == {"frame", "z", "s"}
    mean, variance = torch.zeros(2), torch.ones(1)
    if name in OWN_PRIOR:
        own = prior.get_submodule(OWN_PRIOR[name])
        mean, variance = own.mean, own.log_variance.exp()
    expected = MultivariateNormal(mean, variance * torch.eye(2)).log_prob(z)
    torch.testing.assert_close(sites["z"]["log_prob"], expected)
    speech = Exponential((-prior.decoder(z)).exp()).log_prob(power) - math.log(math.pi)
    torch.testing.assert_close(sites["s"]["log_prob"], speech.sum(-1))


@every_model
def test_guide_is_the_encoder(name, small_prior, random_power, random_lips) -> None:
    """(3), (6), (13): z of the guide is encode(...)'s component alpha, hearing `encoder_power`."""
    prior = small_prior(name)
    power, lips, z = random_power(4, 7), random_lips(4), torch.randn(4, 2)
    heard = power + random_power(4, 7)
    expected = prior.encode(heard, lips).log_prob(z)
    for k in range(prior.num_components):
        data = {"z": z, "alpha": torch.full((4,), k)}
        sites = traced(prior.guide, power, lips, data=data, encoder_power=heard)
        torch.testing.assert_close(sites["z"]["log_prob"], expected[k])


@every_model
def test_enumerated_bound_is_a_sum_over_configurations(
    name, small_prior, random_power, random_lips
) -> None:
    """(17): Pyro's enumerated ELBO = sum over all alpha_1..3 of r(alpha) (log p - log q), drawn z."""
    prior = small_prior(name)
    K, N = prior.num_components, 3
    power, lips = random_power(N, 7), random_lips(N)
    r = torch.softmax(torch.randn(K, N), 0)
    args, kwargs = (power, lips), {"responsibilities": r}
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if K > 1 else Trace_ELBO()
    torch.manual_seed(1)
    loss = elbo.loss(prior.model, prior.guide, *args, **kwargs)

    torch.manual_seed(1)
    enumerated = poutine.enum(prior.guide, first_available_dim=-2) if K > 1 else prior.guide
    z = poutine.trace(enumerated).get_trace(*args, **kwargs).nodes["z"]["value"]
    z = z.reshape(K, N, -1)
    bound = 0.0
    for alpha in itertools.product(range(K), repeat=N):
        chosen = torch.stack([z[k, n] for n, k in enumerate(alpha)])
        data = {"alpha": torch.tensor(alpha), "z": chosen}
        p = log_joint(traced(prior.model, *args, data=data)).sum()
        q = log_joint(traced(prior.guide, *args, data=data, **kwargs)).sum()
        weight = math.prod(r[k, n].item() for n, k in enumerate(alpha))
        bound += weight * (p - q).item()
    assert -loss == pytest.approx(bound, rel=1e-10)


GRID = torch.linspace(-12, 12, 601, dtype=torch.float64)[:, None]
STEP = 24 / 600


def densities(prior: nn.Module, power: Tensor, lips: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """log p(s, z, alpha = k) and log q(z, alpha = k) of one frame, from traces: (component, grid)."""
    args = power.expand(len(GRID), -1), lips.expand(len(GRID), -1, -1)
    table = r[:, None].expand(-1, len(GRID))
    p, q = [], []
    for k in range(prior.num_components):
        data = {"z": GRID, "alpha": torch.full((len(GRID),), k)}
        p.append(log_joint(traced(prior.model, *args, data=data)))
        q.append(log_joint(traced(prior.guide, *args, data=data, responsibilities=table)))
    return torch.stack(p), torch.stack(q)


STANDARD_NODES = torch.linspace(-9, 9, 901, dtype=torch.float64)
STANDARD_WEIGHTS = 0.02 * torch.exp(-0.5 * STANDARD_NODES.square()) / math.sqrt(2 * math.pi)


def under_the_prior(prior: nn.Module, lips: Tensor, k: int, nodes: Tensor) -> Tensor:
    """sigma_k at z = mu_k + std_k * nodes, one frame: (node, freq). No Pyro."""
    latent = prior.latent_prior(lips[None])
    z = latent.mean[k] + latent.stddev[k] * nodes[:, None]
    log_variance = prior.log_variance(z[:, None], lips[None])
    return log_variance[k if len(log_variance) > 1 else 0, :, 0].exp()


def component_evidence(prior: nn.Module, power: Tensor, lips: Tensor) -> Tensor:
    """log pi_k p(s | alpha = k) of one frame, integrated over p(z | k)."""
    evidence = []
    for k in range(prior.num_components):
        sigma = under_the_prior(prior, lips, k, STANDARD_NODES)
        log_s = (Exponential(1 / sigma).log_prob(power) - math.log(math.pi)).sum(-1)
        evidence.append(torch.logsumexp(log_s + STANDARD_WEIGHTS.log(), 0))
    return prior.mixing_weight.log() + torch.stack(evidence)


@every_model
@torch.no_grad()
def test_bayes_and_the_bound(name, small_prior, random_power, random_lips) -> None:
    """(4), (12), (15), (16), (17), S2: by quadrature over z and enumeration of alpha.

    S2 the joint integrates to the evidence; (15) joint / evidence is a density; (12) it is
    p(z | s, alpha) p(alpha | s); (16) evidence - bound (17) is the divergence to it, positive: (4).
    """
    prior = small_prior(name, latent_dim=1)
    power, lips = random_power(7), random_lips()
    r = torch.softmax(torch.randn(prior.num_components), 0)
    log_p, log_q = densities(prior, power, lips, r)
    parts = component_evidence(prior, power, lips)
    evidence = torch.logsumexp(parts, 0)
    integral = log_p.exp().sum() * STEP
    torch.testing.assert_close(integral.log(), evidence)

    posterior = (log_p - evidence).exp()
    assert posterior.sum().item() * STEP == pytest.approx(1, abs=1e-8)
    given_alpha = (log_p - parts[:, None]).exp()  # p(z | s, alpha)
    torch.testing.assert_close(given_alpha.sum(-1) * STEP, torch.ones(len(parts)))
    alpha_given = torch.softmax(parts, 0)[:, None]  # p(alpha | s)
    torch.testing.assert_close(posterior, given_alpha * alpha_given)

    q = log_q.exp() * STEP
    bound = (q * (log_p - log_q)).sum()
    divergence = (q * (log_q - posterior.clamp_min(1e-300).log())).sum()
    torch.testing.assert_close(bound + divergence, evidence)
    assert divergence > 0


@every_model
@torch.no_grad()
def test_ancestral_sampling(name, small_prior, random_power, random_lips) -> None:
    """S2: |s|^2 sampled from the story has the mean sum_k pi_k E_{p(z|k)} sigma_k by quadrature.

    Its broken twin takes what the decoder returns for the logarithm of a standard deviation.
    """
    # 7 statistics: P(max |z| > 5) < 5e-6 for a sound story.
    prior, frames, lips = small_prior(name, latent_dim=1), 1500, random_lips()
    story = poutine.trace(poutine.uncondition(prior.model))
    s = story.get_trace(random_power(frames, 7), lips.expand(frames, -1, -1)).nodes["s"]["value"]
    assert s.is_complex()
    error = s.abs().square().std(0) / math.sqrt(frames)

    def max_z(exponent: int) -> float:
        mean = torch.zeros(7)
        for k, pi in enumerate(prior.mixing_weight):
            variance = under_the_prior(prior, lips, k, STANDARD_NODES) ** exponent
            mean += pi * (STANDARD_WEIGHTS @ variance)
        return ((s.abs().square().mean(0) - mean).abs() / error).max().item()

    assert max_z(1) < 5
    assert max_z(2) > 5


def resting(prior: nn.Module) -> tuple[str, ...]:
    """Encoders whose turn it is not."""
    return tuple(e for e in getattr(prior, "alternate", ()) if e != prior.active_encoder)


@every_model
@pytest.mark.parametrize("registered", [True, False])
def test_svi_trains_what_is_registered(
    name, registered, small_prior, random_power, random_lips
) -> None:
    """Three SVI steps change decoders, encoders and priors through the wrapper, and nothing without.

    Of two encoders used in turn, only the active one changes.
    """
    prior = small_prior(name)
    before = {key: p.detach().clone() for key, p in prior.named_parameters()}
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if prior.num_components > 1 else Trace_ELBO()

    def model(*args: Tensor) -> None:
        pyro.module("prior", prior)
        prior.model(*args)

    svi = SVI(model if registered else prior.model, prior.guide, Adam({"lr": 1e-2}), elbo)
    for _ in range(3):
        assert math.isfinite(svi.step(random_power(6, 7), random_lips(6)))
    changed = {key for key, p in prior.named_parameters() if not torch.equal(p, before[key])}
    trainable = {key for key in before if not key.startswith(resting(prior))}
    assert changed == (trainable if registered else set())


@pytest.mark.parametrize("name", [n for n in FRAMEWISE if MODELS[n]().num_components == 1])
def test_one_component_ignores_responsibilities(
    name, small_prior, random_power, random_lips
) -> None:
    """K = 1 has no alpha: a table of responsibilities changes nothing."""
    prior = small_prior(name)
    data, args = {"z": torch.randn(3, 2)}, (random_power(3, 7), random_lips(3))
    table = traced(prior.guide, *args, data=data, responsibilities=torch.ones(1, 3))
    without = traced(prior.guide, *args, data=data)
    assert set(table) == set(without) == {"frame", "z"}
    torch.testing.assert_close(table["z"]["log_prob"], without["z"]["log_prob"])


@every_model
def test_without_lips(name, small_prior, random_power) -> None:
    """A model that needs lips says so; any other, or the part that stands in for it, knows where to start."""
    prior, power = small_prior(name), random_power(3, 7)
    prior = getattr(prior, "without_lips", prior)
    if prior.requires_lips:
        with pytest.raises(InputError, match="lips"):
            prior.encode(power, None)
    else:
        assert prior.initial_codes(power, None).shape == (3, 2)
        assert prior.log_variance(torch.randn(3, 2), None).shape[1:] == (3, 7)
        assert align_components(prior.latent_prior(None), 3).batch_shape[0] == prior.num_components


@every_model
def test_where_chains_start(name, small_prior, random_power, random_lips) -> None:
    """One at `initial_codes`; more at the encoders' means in turn, the last first: MIN-VAE's lips, then sound."""
    prior, power, lips = small_prior(name), random_power(2, 4, 7), random_lips(2, 4)
    x = power.sqrt() + 0j
    power = observe(prior, x, lips).power
    one, three = (starting_codes(observe(prior, x, lips), chains) for chains in (1, 3))
    start, means = prior.initial_codes(power, lips), prior.encode(power, lips).mean
    assert torch.equal(one, start[None])
    if prior.num_components == 1:
        assert torch.equal(three, start.expand(3, 2, 4, 2))
    else:
        assert torch.equal(three, means.flip(0).repeat(2, 1, 1, 1)[:3])
    if name.startswith("min_vae_v") and prior.num_components == 2:
        seen, heard = prior.visual_encoder(lips).mean, prior.audio_encoder(power).mean
        assert torch.equal(three, torch.stack([seen, heard, seen]))
    prior = getattr(prior, "without_lips", prior)
    if not prior.requires_lips:
        unseen = starting_codes(observe(prior, x), 3)
        assert torch.equal(unseen, prior.initial_codes(power, None).expand(3, 2, 4, 2))
