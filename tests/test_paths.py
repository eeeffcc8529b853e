"""Priors that couple frames: the contract's target, program and schemes, under a process that can be written out.

`Chain` is the least prior of the kind: z_n given z_n-1 is linear-Gaussian, and a frame's log-variance is linear in its
code and the one before. Its densities are compared with torch.distributions', term by term.
"""

import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn
from torch.distributions import Exponential, MultivariateNormal, Normal

from pyro_avse.distributions import Path
from pyro_avse.inference import SCHEMES
from pyro_avse.inference.gpeem import GainTarget
from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.heard import HeardThrough
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import InputError

pytestmark = pytest.mark.usefixtures("float64")
FRAMES, FREQS, LATENT = 5, 7, 2
every_shape = pytest.mark.parametrize("utterances", [(), (2,), (2, 3)])


class Chain(nn.Module):
    """z_n ~ N(A z_n-1, 0.6^2 I), log sigma_n = B z_n + C z_n-1."""

    couples_frames = True
    num_components, latent_dim, num_freqs = 1, LATENT, FREQS
    uses_lips = requires_lips = False
    components_see = (False,)

    def __init__(self) -> None:
        super().__init__()
        self.A = 0.5 * torch.randn(LATENT, LATENT)
        self.B, self.C = torch.randn(FREQS, LATENT), torch.randn(FREQS, LATENT)
        self.register_buffer("mixing_weight", torch.ones(1))
        self.mask: Tensor | None = None

    def within(self, *, mask: Tensor | None = None, past: Tensor | None = None) -> "Chain":
        new = Chain()
        new.A, new.B, new.C, new.mask = self.A, self.B, self.C, mask
        return new

    def latent_path(self, frames: tuple[int, ...], lips: Tensor | None) -> Path:
        def conditional(previous: Tensor, first: int, memory: Any) -> tuple[Tensor, Tensor, Any]:
            return previous @ self.A.mT, torch.full_like(previous, 0.6), None

        return Path(conditional, frames, LATENT, self.A, self.mask)

    def log_prior(self, z: Tensor, lips: Tensor | None) -> Tensor:
        return self.latent_path(z.shape[:-1], lips).frames_log_prob(z)[None]

    def log_variance(self, z: Tensor, lips: Tensor | None) -> Tensor:
        before = nn.functional.pad(z[..., :-1, :], (0, 0, 1, 0))
        return (z @ self.B.mT + before @ self.C.mT)[None]


def problem(*utterances: int, **more: Tensor) -> tuple[CollapsedTarget, Tensor, Tensor]:
    """A target, the mixture, and paths of three chains."""
    x = torch.randn(*utterances, FRAMES, FREQS, dtype=torch.complex128)
    noise = torch.rand(*utterances, FRAMES, FREQS) + 0.1
    z = torch.randn(3, *utterances, FRAMES, LATENT)
    return CollapsedTarget(Chain(), None, x.abs().square(), noise, torch.ones(1), **more), x, z


def by_hand(target: CollapsedTarget, z: Tensor) -> Tensor:
    """log p(x, z) of one path (frame, latent) by Normal and Exponential, frame by frame."""
    prior: Any = target.prior
    total = torch.zeros(())
    for n in range(FRAMES):
        before = z[n - 1] if n else torch.zeros(LATENT)
        total += Normal(prior.A @ before, 0.6).log_prob(z[n]).sum()
        variance = torch.exp(prior.B @ z[n] + prior.C @ before) + target.noise_variance[n]
        total += (Exponential(1 / variance).log_prob(target.power[n]) - math.log(math.pi)).sum()
    return total


def test_target_is_the_joint_of_a_path() -> None:
    """log p(x_1:N, z_1:N), an event an utterance: chains in front, no frame axis."""
    target, _, z = problem()
    assert target.event_dim == 2
    found = target.log_density(z)
    torch.testing.assert_close(found, torch.stack([by_hand(target, path) for path in z]))
    torch.testing.assert_close(target.frames_log_density(z).sum(-1), found)


@every_shape
@pytest.mark.parametrize("masked", [False, True])
def test_target_is_pyros_potential(utterances: tuple[int, ...], masked: bool) -> None:
    """Minus the potential that Pyro's HMC sees of `noisy_speech`, to 1e-10; padding, if any, is left out of both."""
    mask = torch.arange(FRAMES).expand(*utterances, FRAMES) < 3 if masked else None
    gain, log_c = torch.rand(*utterances, FRAMES) + 0.5, torch.randn(*utterances, FREQS)
    target, x, z = problem(*utterances, gain=gain, log_response=log_c, mask=mask)
    kwargs = {"mask": mask, "gain": gain, "log_response": log_c}
    _, potential, _, _ = initialize_model(
        noisy_speech, (target.prior, x, None, target.noise_variance), kwargs
    )
    found = target.log_density(z)
    assert found.shape == (3, *utterances)
    for chain in range(3):
        expected = -potential({"z": z[chain]})
        torch.testing.assert_close(found[chain].sum(), expected, rtol=1e-10, atol=0)


def test_speech_integrated_out_is_speech_drawn_and_averaged() -> None:
    """With s kept as a site the joint is log p(x|s) + log p(s|z) + log p(z), each an utterance's."""
    target, x, z = problem(2)
    s = torch.randn_like(x)
    trace = pyro.poutine.trace(pyro.condition(noisy_speech, {"z": z[0], "s": s})).get_trace(
        target.prior, x, None, target.noise_variance, speech_latent=True
    )
    trace.compute_log_prob()
    assert {trace.nodes[name]["log_prob"].shape for name in "zsx"} == {(2,)}
    sigma = target.prior.log_variance(z[0], None)[0].exp()
    for name, power, variance in (
        ("s", s.abs().square(), sigma),
        ("x", (x - s).abs().square(), target.noise_variance),
    ):
        expected = (Exponential(1 / variance).log_prob(power) - math.log(math.pi)).sum((-2, -1))
        torch.testing.assert_close(trace.nodes[name]["log_prob"], expected)


@every_shape
def test_gradient_is_autograds(utterances: tuple[int, ...]) -> None:
    """The target's own value and gradient, padding included, and through a filter and a gain."""
    mask = torch.rand(*utterances, FRAMES).argsort(-1).argsort(-1) >= 0
    mask[..., 4:] = False
    gain = torch.rand(*utterances, FRAMES) + 0.5
    target, _, z = problem(*utterances, gain=gain, mask=mask)
    object.__setattr__(target, "prior", HeardThrough(target.prior, torch.randn(FREQS)))
    value, gradient = value_and_grad(target, z)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(target.log_density(leaf).sum(), leaf)
    torch.testing.assert_close(value, target.log_density(z))
    torch.testing.assert_close(gradient, expected)
    assert (gradient[..., 4, :] == 0).all()


def test_gain_target_sums_over_the_path() -> None:
    """log p(x, z, g) of `gpeem` is an utterance's too."""
    target, _, z = problem(2)
    y = torch.cat([z, torch.randn(3, 2, FRAMES, 1)], -1)
    joint = GainTarget(target, 2.0, 3.0)
    assert joint.event_dim == 2
    torch.testing.assert_close(joint.log_density(y), joint.frames_log_density(y).sum(-1))


def test_a_path_is_the_gaussian_that_it_says() -> None:
    """Density of z_1:N = that of the Gaussian whose covariance unrolls z_n = A z_n-1 + 0.6 e_n; without padding."""
    prior, z = Chain(), torch.randn(4, FRAMES, LATENT)
    unroll = torch.zeros(FRAMES * LATENT, FRAMES * LATENT)
    for n in range(FRAMES):
        for m in range(n + 1):
            block = torch.linalg.matrix_power(prior.A, n - m)
            rows, columns = (slice(i * LATENT, (i + 1) * LATENT) for i in (n, m))
            unroll[rows, columns] = block
    gaussian = MultivariateNormal(
        torch.zeros(FRAMES * LATENT), 0.36 * unroll @ unroll.mT + 1e-14 * torch.eye(len(unroll))
    )
    path = prior.latent_path((FRAMES,), None)
    torch.testing.assert_close(path.log_prob(z), gaussian.log_prob(z.flatten(1)))
    first = prior.within(mask=torch.arange(FRAMES) < 3).latent_path((FRAMES,), None)
    part = gaussian.covariance_matrix[:6, :6]
    shorter = MultivariateNormal(torch.zeros(6), part)
    torch.testing.assert_close(first.log_prob(z), shorter.log_prob(z.flatten(1)[:, :6]))


@pytest.mark.parametrize("honest", [True, False])
def test_draws_of_a_path_have_its_density(honest: bool) -> None:
    """z = F(noise) is the density's draw: log p(z) = log N(noise; 0, I) - log |det dz/dnoise|. A path of frames that
    forget those before fails it.
    """
    path, noise = Chain().latent_path((FRAMES,), None), torch.randn(FRAMES, LATENT)
    z, mean, scale = path.of_noise(noise)
    jacobian = torch.autograd.functional.jacobian(lambda e: path.of_noise(e)[0], noise)
    log_det = torch.linalg.slogdet(jacobian.reshape(10, 10)).logabsdet
    expected = Normal(0.0, 1.0).log_prob(noise).sum() - log_det
    if not honest:
        z = mean * 0 + scale * noise
    assert torch.allclose(path.log_prob(z), expected) == honest
    torch.testing.assert_close((mean, scale), path.given(path.of_noise(noise)[0]))


OF_FRAMES = ["vem", "collapsed_vem", "importance", "bnmf", "nuts", "auto_normal"]


@pytest.mark.parametrize("name", OF_FRAMES)
def test_schemes_of_single_frames_refuse(name: str) -> None:
    """One line that names the scheme, the prior and the cure."""
    x = torch.randn(FRAMES, FREQS, dtype=torch.complex128)
    with pytest.raises(InputError, match=f"{name} takes each frame .* Chain .* take guided, ldem"):
        SCHEMES[name]()(Chain(), x)  # type: ignore[arg-type]
