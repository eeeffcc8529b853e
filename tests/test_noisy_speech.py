"""The test-time program is the joint (31), and the fast targets are what Pyro makes of it."""

import itertools
import math
from dataclasses import replace

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import Categorical, Exponential, Normal

from pyro_avse.inference.mean_field import MeanFieldTarget
from pyro_avse.inference.nmf import initial_factors, stationary_spectrum
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models import MODELS
from pyro_avse.models.nmf_noise import VARIANCE_FLOOR, NoiseModel, nmf_noise, nmf_noise_variance
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import couples_frames

pytestmark = pytest.mark.usefixtures("float64")

FRAMEWISE = [name for name, kind in MODELS.items() if not couples_frames(kind)]
OPTIONS = ["a_vae+learned_prior", "v_vae+learned_prior", "vae_mm+three"]
PRIORS = [*FRAMEWISE, *OPTIONS, "two_decoders"]
every_prior = pytest.mark.parametrize("name", PRIORS)
every_shape = pytest.mark.parametrize("utterances", [(), (2,), (2, 3)])


def complex_normal(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128)


def frame_log_density(program, *args, data: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
    """Each site's log density of every frame, from a trace conditioned on `data`."""
    trace = poutine.trace(pyro.condition(program, data)).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {name: site["log_prob"] for name, site in sites.items()}


def power_density(power: Tensor, variance: Tensor) -> Tensor:
    """log N_c(.; 0, variance) of a frame, by torch's Exponential."""
    return (Exponential(1 / variance).log_prob(power) - math.log(math.pi)).sum(-1)


def every_frame(parameter: Tensor, components: int, *shape: int) -> Tensor:
    """A prior's mean or scale, repeated over the utterances and frames that share it."""
    while parameter.dim() < len(shape) + 1:
        parameter = parameter[:, None]
    return parameter.expand(components, *shape)


@every_prior
@every_shape
def test_joint_is_the_product_of_its_factors(
    name, utterances, small_prior, random_power, random_lips
) -> None:
    """(31): log p(x|s) + log p(s|z) + log p(z|alpha) + log p(alpha), a plate for each utterance axis."""
    prior, shape = small_prior(name), (*utterances, 4)
    x, s, z = complex_normal((*shape, 7)), complex_normal((*shape, 7)), torch.randn(*shape, 2)
    noise, lips = random_power(*shape, 7), random_lips(*shape)
    alpha = torch.randint(0, prior.num_components, shape)
    pi = torch.softmax(torch.randn(prior.num_components, *utterances), 0)
    sites = frame_log_density(
        noisy_speech,
        *(prior, x, lips, noise),
        data={"alpha": alpha, "z": z, "s": s},
        mixing_weight=pi,
        speech_latent=True,
    )
    plates = {"frame", "utterance_1", "utterance_2"}
    assert len(plates & set(sites)) == len(shape)
    assert set(sites) - plates == {"alpha", "z", "s", "x"} - ({"alpha"} if len(pi) == 1 else set())
    if len(pi) > 1:
        expected = Categorical(pi.movedim(0, -1)[..., None, :]).log_prob(alpha)
        torch.testing.assert_close(sites["alpha"], expected)

    latent, log_variance = prior.latent_prior(lips), prior.log_variance(z, lips)
    mean, scale = (every_frame(p, len(pi), *shape, 2) for p in (latent.mean, latent.stddev))
    log_variance = log_variance.expand(len(pi), *shape, 7)
    for index in itertools.product(*map(range, shape)):
        own = (int(alpha[index]), *index)
        expected = Normal(mean[own], scale[own]).log_prob(z[index]).sum()
        torch.testing.assert_close(sites["z"][index], expected)
        expected = power_density(s[index].abs() ** 2, log_variance[own].exp())
        torch.testing.assert_close(sites["s"][index], expected)
    expected = power_density((x - s).abs() ** 2, noise)
    torch.testing.assert_close(sites["x"], expected)


@every_prior
def test_speech_integrates_out(name, small_prior, random_power, random_lips) -> None:
    """(31), S11, S17: its integral over s, on a grid, is the program with s integrated out."""
    prior = small_prior(name, num_freqs=1)
    x, z, lips = complex_normal((2, 1)), torch.randn(2, 2), random_lips(2)
    noise = random_power(2, 1) + 0.2
    axis = torch.linspace(-12, 12, 401)
    s = torch.complex(*torch.meshgrid(axis, axis, indexing="ij")).reshape(-1, 1, 1)
    area = (axis[1] - axis[0]) ** 2
    for k in range(prior.num_components):
        data = {"alpha": torch.full((2,), k), "z": z}
        args = (prior, x, lips, noise)
        latent = {"data": data | {"s": s}, "speech_latent": True}
        joint = frame_log_density(noisy_speech, *args, **latent)
        integral = ((joint["s"] + joint["x"]).exp() * area).sum(0)
        collapsed = frame_log_density(noisy_speech, *args, data=data)["x"]
        torch.testing.assert_close(integral, collapsed.exp(), rtol=1e-6, atol=0)


@every_prior
@pytest.mark.parametrize("speech_latent", [True, False])
def test_padding_adds_nothing(name, speech_latent, small_prior, random_power, random_lips) -> None:
    """The joint of padded utterances is the sum of the joints of each, cut to its length."""
    prior, frames = small_prior(name), [4, 2]
    x, z, noise = complex_normal((2, 4, 7)), torch.randn(2, 4, 2), random_power(2, 4, 7)
    data = {"z": z, "s": complex_normal((2, 4, 7))}
    data["alpha"] = torch.randint(0, prior.num_components, (2, 4))
    lips = random_lips(2, 4)
    mask = torch.arange(4) < torch.tensor(frames)[:, None]
    kwargs = {"speech_latent": speech_latent}
    padded = frame_log_density(noisy_speech, prior, x, lips, noise, data=data, mask=mask, **kwargs)
    total = sum(site.sum() for site in padded.values())
    for i, n in enumerate(frames):
        cut = {key: value[i, :n] for key, value in data.items()}
        args = (prior, x[i, :n], lips[i, :n], noise[i, :n])
        sites = frame_log_density(noisy_speech, *args, data=cut, **kwargs)
        total -= sum(site.sum() for site in sites.values())
    assert total.abs() < 1e-10


def test_noise_program(random_power) -> None:
    """(28), S16: b_fn ~ N_c(0, sum_k w_fk h_kn), the sum in explicit loops."""
    W, H, b = random_power(3, 5), random_power(4, 3), complex_normal((4, 5))
    variance = torch.zeros(4, 5)
    for n, f, k in itertools.product(range(4), range(5), range(3)):
        variance[n, f] += W[k, f] * H[n, k]
    torch.testing.assert_close(nmf_noise_variance(W, H), variance)
    sites = frame_log_density(nmf_noise, W, H, data={"b": b})
    torch.testing.assert_close(sites["b"], power_density(b.abs() ** 2, variance))
    assert (nmf_noise_variance(0 * W, H) > 0).all()


def test_noise_samples(random_power) -> None:
    """(28), S16: sampled |b|^2 has the mean W H; with W transposed in time it has not."""
    # 20 statistics: P(max |z| > 5) < 2e-5 for a sound program.
    W, H = random_power(3, 5), random_power(4, 3)
    power = torch.stack([nmf_noise(W, H).abs().square() for _ in range(1000)])
    error = power.std(0) / math.sqrt(len(power))

    def max_z(variance: Tensor) -> float:
        return ((power.mean(0) - variance).abs() / error).max().item()

    assert max_z(nmf_noise_variance(W, H)) < 5
    assert max_z(nmf_noise_variance(W.flip(1), H)) > 5


def test_noise_starts_as_loud_as_the_mixture(random_power) -> None:
    """Initial factors: positive, spectra summing to one, W H of the mixture's mean power."""
    power = random_power(2, 200, 7) * torch.tensor([1e-6, 1e3])[:, None, None]
    W, H = initial_factors(power, NoiseModel.paper(5), rng=torch.Generator().manual_seed(0))
    assert (W.shape, H.shape) == ((2, 5, 7), (2, 200, 5))
    assert (W > 0).all()
    assert (H > 0).all()
    torch.testing.assert_close(W.sum(-1), torch.ones(2, 5))
    ratio = nmf_noise_variance(W, H).mean((-2, -1)) / power.mean((-2, -1))
    torch.testing.assert_close(ratio, torch.ones(2), rtol=0.1, atol=0)


def test_noise_starts_as_what_is_always_there(random_power) -> None:
    """A stationary start: W H is on average the variance of Gaussian noise, whatever speech does in half of the frames.

    The mean quantile of 4000 exponential variables is within 10 % of its value in each of 2 x 7 frequencies but once in
    10^3; the broken twin, the mixture's own mean, is far off. Padding, here loud, counts for nothing.
    """
    variance = torch.logspace(-6, 3, 7, dtype=torch.float64)[torch.randperm(7)]
    noise = -variance * torch.rand(2, 4000, 7, dtype=torch.float64).log()
    mixture = noise.clone()
    mixture[:, ::2] += 50 * variance
    mask = torch.arange(4000) < torch.tensor([4000, 2000])[:, None]
    mixture[1, 2000:] = 1e9
    found = stationary_spectrum(mixture, mask)
    # speech in half of the frames: the quiet fifth of all is the 2/5 of those without it
    bias = math.log(1 - 2 / 5) / math.log(1 - 1 / 5)
    torch.testing.assert_close(found / variance, torch.full_like(found, bias), rtol=0.1, atol=0)
    torch.testing.assert_close(found[1], stationary_spectrum(mixture[1, :2000]))
    torch.testing.assert_close(found[0], stationary_spectrum(mixture[0]))
    assert not torch.allclose(mixture[0].mean(0) / variance, found[0] / variance, rtol=1)
    W, H = initial_factors(
        mixture,
        replace(NoiseModel.paper(1000), start="stationary"),
        mask=mask,
        rng=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(W.sum(-1), torch.ones(2, 1000, dtype=torch.float64))
    mean = nmf_noise_variance(W, H).mean(-2)  # of a thousand random spectra around it
    torch.testing.assert_close(mean / found, torch.ones_like(found), rtol=0.1, atol=0)


def test_stationary_start_on_digital_silence() -> None:
    """Frequencies that are silent in most frames start 30 dB under their mean, those that always are at the floor."""
    power = torch.zeros(10, 3)
    power[8:, 1] = 5.0
    power[:, 2] = 1.0
    found = stationary_spectrum(power)
    quiet = -1 / math.log(1 - 1 / 5)
    torch.testing.assert_close(found, torch.tensor([VARIANCE_FLOOR, 1e-3, quiet]))
    W, H = initial_factors(
        power * 0,
        replace(NoiseModel.paper(2), start="stationary"),
        rng=torch.Generator().manual_seed(0),
    )
    assert W.isfinite().all()
    assert H.isfinite().all()


@every_prior
@pytest.mark.parametrize("own_weight", [True, False])
@every_shape
def test_collapsed_target_is_pyros_potential(
    name, own_weight, utterances, small_prior, random_power, random_lips
) -> None:
    """S17: CollapsedTarget's sum over frames = minus the potential Pyro's HMC sees, alpha enumerated."""
    prior, shape = small_prior(name), (*utterances, 4)
    K = prior.num_components
    x, lips, noise = complex_normal((*shape, 7)), random_lips(*shape), random_power(*shape, 7)
    own = prior.mixing_weight.reshape(K, *[1] * len(utterances)).expand(K, *utterances)
    pi = own if own_weight else torch.softmax(torch.randn(K, *utterances), 0)
    _, potential, _, _ = initialize_model(
        noisy_speech,
        (prior, x, lips, noise),
        {} if own_weight else {"mixing_weight": pi},
        max_plate_nesting=len(shape),
    )
    target = CollapsedTarget(prior, lips, x.abs().square(), noise, pi)
    z = torch.randn(3, *shape, 2)  # three chains
    log_density = target.log_density(z)
    assert log_density.shape == (3, *shape)
    for chain in range(3):
        expected = -potential({"z": z[chain]})
        torch.testing.assert_close(log_density[chain].sum(), expected, rtol=1e-10, atol=0)


@every_prior
@every_shape
def test_mean_field_target_is_the_expected_joint(
    name, utterances, small_prior, random_power, random_lips
) -> None:
    """(36), S24: sum_k r_k log p(x, s, z, alpha = k) at |s|^2 = |m|^2 + nu, up to a constant in z."""
    prior, shape = small_prior(name), (*utterances, 4)
    K = prior.num_components
    x, m, nu = complex_normal((*shape, 7)), complex_normal((*shape, 7)), random_power(*shape, 7)
    lips, noise = random_lips(*shape), random_power(*shape, 7)
    r = torch.softmax(torch.randn(K, *shape), 0)
    second_moment = m.abs().square() + nu  # log p(s|z) depends on |s|^2 only
    z = torch.randn(5, *shape, 2)
    expected = torch.zeros(5, *shape)
    for i, k in itertools.product(range(5), range(K)):
        data = {"alpha": torch.full(shape, k), "z": z[i], "s": second_moment.sqrt() + 0j}
        sites = frame_log_density(
            noisy_speech, prior, x, lips, noise, data=data, speech_latent=True
        )
        expected[i] += r[k] * sum(sites.values())
    log_density = MeanFieldTarget(prior, lips, second_moment, r).log_density(z)
    assert log_density.shape == (5, *shape)
    torch.testing.assert_close(
        log_density - log_density[0], expected - expected[0], rtol=1e-9, atol=1e-9
    )


@every_prior
@every_shape
def test_features_stand_for_the_pictures(
    name, utterances, small_prior, random_power, random_lips
) -> None:
    """(31), (36), S17: program and targets given `visual_features` of the lips are those given the lips."""
    prior, shape = small_prior(name), (*utterances, 4)
    K, lips = prior.num_components, random_lips(*shape)
    v = prior.visual_features(lips)
    x, noise, z = complex_normal((*shape, 7)), random_power(*shape, 7), torch.randn(3, *shape, 2)
    data = {"z": z[0], "alpha": torch.randint(0, K, shape)}
    seen, kept = (
        frame_log_density(noisy_speech, prior, x, pictures, noise, data=data)
        for pictures in (lips, v)
    )
    assert all(torch.equal(kept[site], seen[site]) for site in seen)
    r = torch.softmax(torch.randn(K, *shape), 0)
    for kind, args in (
        (MeanFieldTarget, (noise, r)),
        (CollapsedTarget, (x.abs().square(), noise, r.mean(-1))),
    ):
        seen, kept = (kind(prior, pictures, *args).log_density(z) for pictures in (lips, v))
        assert torch.equal(kept, seen)


@every_prior
def test_geometric_mixture_is_one_gaussian(name, small_prior, random_power, random_lips) -> None:
    """(36): prod_k p(z|k)^r_k is a Gaussian, which the target holds normalised: on a grid."""
    prior = small_prior(name, latent_dim=1)
    K, lips = prior.num_components, random_lips(4)
    r = torch.softmax(torch.randn(K, 4), 0)
    gaussian = MeanFieldTarget(prior, lips, random_power(4, 7), r).gaussian
    z, step = torch.linspace(-20, 20, 4001)[:, None, None].expand(-1, 4, 1), 0.01
    latent = prior.latent_prior(lips)
    mean, scale = (every_frame(p, K, 4, 1) for p in (latent.mean, latent.stddev))
    log_product = sum(r[k] * Normal(mean[k], scale[k]).log_prob(z)[..., 0] for k in range(K))
    product = log_product.exp()
    density = product / (product.sum(0) * step)
    torch.testing.assert_close(gaussian.log_prob(z).exp(), density, rtol=1e-7, atol=1e-12)


def test_dead_components_do_not_poison_the_target(small_prior, random_power, random_lips) -> None:
    """S24: a component held at r_k = 0 may have an infinite likelihood; the target is the other's."""
    prior = small_prior("two_decoders")
    z, lips, power = torch.randn(3, 4, 2), random_lips(4), random_power(4, 7)
    r = torch.tensor([1.0, 0.0])[:, None].expand(2, 4)
    target = MeanFieldTarget(prior, lips, power, r)
    expected = target.log_density(z)
    with torch.no_grad():
        prior.second.log_variance.bias -= 1000  # sigma = 0
    assert (prior.log_variance(z, lips)[1].exp() == 0).all()
    torch.testing.assert_close(target.log_density(z), expected)
