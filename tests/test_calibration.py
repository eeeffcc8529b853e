"""Kernels and targets on data from the story itself: simulation-based calibration, and Geweke's joint test. S7, S17

Both draw (alpha, z, s, x) from the Pyro program `noisy_speech` with W H and pi held, thousands of frames in one call.
Codes are in units in which kernels' default step sizes suit them: prior standard deviations of 0.25.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import Independent, Normal
from scipy.stats import chisquare
from torch import Tensor, nn

from pyro_avse.inference import KERNELS, run_chains
from pyro_avse.inference.adaptation import DualAveraging
from pyro_avse.inference.gibbs import Gibbs, draw_component
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.inference.wiener import average_speech_variance, wiener_posterior
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import InputError, Kernel

pytestmark = pytest.mark.usefixtures("float64")
every_exact_kernel = pytest.mark.parametrize("name", sorted(KERNELS.keys() - {"ula", "blocks"}))
PI, DRAWS = torch.tensor([0.15, 0.85], dtype=torch.float64), 9


@pytest.fixture
def prior(small_prior: Callable[..., nn.Module]) -> nn.Module:
    """Two components that overlap, with decoders of their own: p(z | x) has two modes, or one and a shoulder."""
    prior = small_prior("two_decoders")
    with torch.no_grad():
        for component, mean in ((prior.audio_prior, -0.2), (prior.visual_prior, 0.2)):
            component.mean.fill_(mean)
            component.log_variance.fill_(2 * torch.tensor(0.25).log())
        for decoder in (prior.decoder, prior.second):
            decoder.hidden.weight *= 4
    return prior.requires_grad_(False)


@dataclass(frozen=True)
class Story:
    """What `noisy_speech` drew for every frame, and the target of its z."""

    alpha: Tensor
    z: Tensor  # (1, frame, 2)
    s: Tensor
    x: Tensor
    target: CollapsedTarget


def draw_story(prior: nn.Module, frames: int) -> Story:
    """`frames` joint draws; W H alternates between quiet and loud along the frequencies."""
    noise = torch.tensor([0.3, 2.0, 0.3, 2.0, 0.3, 2.0, 0.3])
    args = (prior, torch.zeros(frames, 7, dtype=torch.complex128), None, noise)
    story = poutine.trace(poutine.uncondition(noisy_speech))
    sites = story.get_trace(*args, mixing_weight=PI, speech_latent=True).nodes
    alpha, z, s, x = (sites[name]["value"] for name in ("alpha", "z", "s", "x"))
    # For `independence`: wider than both components, whose means are 0.4 apart.
    wide = Independent(Normal(torch.full((2,), 0.06), torch.full((2,), 0.4)), 1)
    target = CollapsedTarget(prior, None, x.abs().square(), noise, PI, proposal=wide)
    return Story(alpha, z[None], s, x, target)


def fitting(name: str, story: Story) -> Kernel:
    """The kernel, inside Gibbs where it needs a prior that is one Gaussian."""
    kernel = KERNELS[name]()
    try:
        kernel.init(story.target, story.z)
    except InputError:
        return Gibbs(kernel)
    return kernel


def widened(prior: nn.Module) -> nn.Module:
    """The same prior with z's variances doubled."""
    twin = prior.__class__(**prior.options).double()
    twin.load_state_dict(prior.state_dict())
    for component in (twin.audio_prior, twin.visual_prior):
        component.log_variance.data += torch.tensor(2.0).log()
    return twin.requires_grad_(False)


TWINS: dict[str, Callable[[CollapsedTarget], CollapsedTarget]] = {
    "pi is ignored": lambda target: replace(target, mixing_weight=torch.tensor([0.5, 0.5])),
    "prior too wide": lambda target: replace(target, prior=widened(target.prior)),
    "another frame's data": lambda target: replace(target, power=target.power.roll(1, 0)),
}


def calibration_p(
    kernel: Kernel, story: Story, on: CollapsedTarget, *, warmup: int = 120, thin: int = 20
) -> float:
    """The least p value of four chi-square tests that the truth's rank among nine thinned draws is uniform.

    [Talts et al. 2018]; ranked are both codes, their product and log p(z, x), which sees that the data count. The
    chains start at the truths of other frames, draws of the prior. p < 1e-5 has false alarms of 4e-5.
    """
    tunable = hasattr(getattr(kernel, "inner", kernel), "target_acceptance")
    adapt, z0 = DualAveraging() if tunable else None, story.z.roll(1, 1)
    options = {"draws": DRAWS, "warmup": warmup, "adapt": adapt, "thin": thin}
    z = run_chains(kernel, on, z0, seed=3, **options).draws

    def ranked(z: Tensor) -> Tensor:
        density = story.target.log_density(z)
        return torch.cat([z, z.prod(-1, True), density[..., None]], -1)

    rank = (ranked(z[0]) < ranked(story.z)).sum(0)  # (frame, statistic)
    counts = torch.stack([(rank == i).sum(0) for i in range(DRAWS + 1)])
    return chisquare(counts.numpy()).pvalue.min()


@every_exact_kernel
def test_the_truth_ranks_evenly_among_draws_of_its_posterior(name: str, prior: nn.Module) -> None:
    """S7, S17: calibrated for a thousand frames, each with a truth and data of its own."""
    story = draw_story(prior, 1_000)
    assert calibration_p(fitting(name, story), story, story.target) > 1e-5


@every_exact_kernel
@pytest.mark.slow
def test_the_truth_ranks_evenly_in_full(name: str, prior: nn.Module) -> None:
    """S7, S17: the same for ten thousand frames and longer chains, and every twin for every kernel."""
    story = draw_story(prior, 10_000)
    kernel = fitting(name, story)
    assert calibration_p(kernel, story, story.target, warmup=400, thin=60) > 1e-5
    for twin in TWINS.values():
        assert calibration_p(kernel, story, twin(story.target)) < 1e-5


@pytest.mark.parametrize("twin", TWINS)
def test_calibration_sees_a_wrong_target(twin: str, prior: nn.Module) -> None:
    """S17: without pi, with a prior variance twice as large or with another frame's data the ranks are not even."""
    story = draw_story(prior, 1_000)
    assert calibration_p(KERNELS["mala"](), story, TWINS[twin](story.target)) < 1e-5


def test_calibration_sees_a_biased_kernel(prior: nn.Module) -> None:
    """ULA's draws are too wide, and the truth's ranks too often in the middle."""
    story = draw_story(prior, 1_000)
    assert calibration_p(ULA(0.2), story, story.target) < 1e-5


def successive_conditional(
    kernel: Kernel,
    story: Story,
    *,
    sweeps: int = 20,
    twin: Callable[[CollapsedTarget], CollapsedTarget] = lambda target: target,
    keep_spread: bool = True,
) -> Story:
    """Gibbs sweeps through the joint, from a joint draw: z | x by the kernel, alpha | z, x, s | z, alpha, x, x | s."""
    rng = torch.Generator().manual_seed(4)
    z, x, noise = story.z, story.x, story.target.noise_variance

    def standard() -> Tensor:
        return torch.randn(x.shape, generator=rng, dtype=x.dtype)

    for _ in range(sweeps):
        target = twin(replace(story.target, power=x.abs().square()))
        state = kernel.init(target, z)
        for _ in range(2):
            state, _ = kernel.step(target, state, rng=rng)
        z = state.z
        alpha = draw_component(target.component_log_joint(z), rng=rng)[0]
        r = nn.functional.one_hot(alpha, 2).T.to(z)
        gamma = average_speech_variance(target.prior.log_variance(z, None), r)  # (34), one draw
        m, nu = wiener_posterior(x, gamma, noise)  # (35)
        s = m + nu.sqrt() * standard() if keep_spread else m
        x = s + noise.sqrt() * standard()
    return Story(alpha, z, s, x, story.target)


def geweke_z(a: Story, b: Story) -> float:
    """The worst of 27 two-sample z-scores of means: alpha, z, |s|^2, |x|^2, Re s* x, and all products of two of them.

    [Geweke 2004]; frames are independent draws of the joint on both sides. |z| > 4.5 has probability 7e-6 each, so
    that false alarms are 2e-4.
    """

    def moments(story: Story) -> Tensor:
        s, x = story.s, story.x
        powers = [s.abs().square(), x.abs().square(), (s.conj() * x).real]
        one = [
            story.alpha.to(story.z),
            *story.z[0].unbind(-1),
            *(power.mean(-1) for power in powers),
        ]
        first = torch.stack(one, -1)
        i, j = torch.triu_indices(6, 6)
        return torch.cat([first, first[:, i] * first[:, j]], -1)

    p, q = moments(a), moments(b)
    z = (p.mean(0) - q.mean(0)) / ((p.var(0) + q.var(0)) / len(p)).sqrt()
    return z.abs().max().item()


@every_exact_kernel
def test_gibbs_sweeps_with_a_kernel_stay_in_the_joint(name: str, prior: nn.Module) -> None:
    """S17, (34), (35): sweeps over (alpha, z, s, x) from joint draws end in joint draws."""
    story, fresh = draw_story(prior, 2_500), draw_story(prior, 2_500)
    assert geweke_z(successive_conditional(fitting(name, story), story), fresh) < 4.5


@every_exact_kernel
@pytest.mark.slow
def test_gibbs_sweeps_with_a_kernel_stay_in_the_joint_in_full(name: str, prior: nn.Module) -> None:
    """S17, (34), (35): with four times the frames and three times the sweeps, and every twin for every kernel."""
    story, fresh = draw_story(prior, 10_000), draw_story(prior, 10_000)
    kernel = fitting(name, story)
    assert geweke_z(successive_conditional(kernel, story, sweeps=60), fresh) < 4.5
    for twin in TWINS.values():
        assert geweke_z(successive_conditional(kernel, story, twin=twin), fresh) > 4.5


def test_gewekes_test_sees_what_is_wrong(prior: nn.Module) -> None:
    """A wrong target, a Wiener filter without its variance nu (35), or a biased kernel: the sweeps drift away."""
    story, fresh = draw_story(prior, 2_500), draw_story(prior, 2_500)
    kernel = KERNELS["mala"]()
    assert geweke_z(story, fresh) < 4.5
    assert geweke_z(successive_conditional(kernel, story, keep_spread=False), fresh) > 4.5
    assert geweke_z(successive_conditional(ULA(0.3), story), fresh) > 4.5
    for twin in TWINS.values():
        assert geweke_z(successive_conditional(kernel, story, twin=twin), fresh) > 4.5
