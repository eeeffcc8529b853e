"""Dynamical priors: stories, densities and bounds by independent routes, time's arrow, padding, and schemes on them."""

from typing import Any

import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_avse.inference import AmortisedVEM, Blocks, run_chains
from pyro_avse.inference.gpeem import GPEEM
from pyro_avse.inference.guided import Guided
from pyro_avse.inference.ldem import LDEM
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.mcem import MCEM
from pyro_avse.inference.peem import PEEM, climb
from pyro_avse.inference.target import Collapsed, CollapsedTarget
from pyro_avse.models import MODELS
from pyro_avse.models.dynamical import Dynamical
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.training.sequences import path_terms

pytestmark = pytest.mark.usefixtures("float64")
DYNAMICAL = [name for name, kind in MODELS.items() if issubclass(kind, Dynamical)]
every_model = pytest.mark.parametrize("name", DYNAMICAL)
STORIES = [name for name in DYNAMICAL if not name.startswith("av_")]
FRAMES = 4


@torch.no_grad()
def awake(prior: Any) -> Any:
    """A prior in evaluation, in which memory and lips, which start at nothing, matter."""
    for parameter in prior.parameters():
        if not parameter.any():
            parameter.normal_()
    return prior.eval()


@pytest.fixture
def known(small_prior: Any, random_power: Any, random_lips: Any) -> Any:
    """known("srnn", 2): a prior in evaluation, within utterances whose past it is told; and power and lips of them."""

    def build(name: str, *utterances: int, mask: Tensor | None = None) -> tuple[Any, Tensor, Any]:
        prior, power = awake(small_prior(name)), random_power(*utterances, FRAMES, 7)
        lips = random_lips(*utterances, FRAMES) if prior.uses_lips else None
        return prior.within(mask=mask, past=power if prior.uses_past else None), power, lips

    return build


# --- stories and densities --------------------------------------------------------------------------------------------


@every_model
def test_paths_are_drawn_from_their_density(name: str, known: Any) -> None:
    """Prior and guide: log p(z) = log N(noise; 0, I) - log |det dz/dnoise| for z = F(noise), z drawn frame by frame and
    the density taken of all frames at once.
    """
    prior, power, lips = known(name)
    for path in (prior.latent_path((FRAMES,), lips), prior.encoder_path(power, lips)):
        noise = torch.randn(FRAMES, 2)
        z = path.of_noise(noise)[0]
        jacobian = torch.autograd.functional.jacobian(
            lambda e, path=path: path.of_noise(e)[0], noise
        )
        log_det = torch.linalg.slogdet(jacobian.reshape(2 * FRAMES, -1)).logabsdet
        expected = Normal(0.0, 1.0).log_prob(noise).sum() - log_det
        torch.testing.assert_close(path.log_prob(z), expected)
        torch.testing.assert_close(path.frames_log_prob(z).sum(), expected)


@every_model
def test_chains_and_utterances_are_axes(name: str, known: Any) -> None:
    """Every part of the contract on (chain, utterance, frame, latent) is what it is on one path."""
    prior, power, lips = known(name, 2, 3)
    z = torch.randn(5, 2, 3, FRAMES, 2)
    log_variance, log_prior = prior.log_variance(z, lips), prior.log_prior(z, lips)
    assert log_variance.shape == (1, 5, 2, 3, FRAMES, 7)
    assert log_prior.shape == (1, 5, 2, 3, FRAMES)
    q, (drawn, log_q) = prior.encode(power, lips), prior.draw_codes(power, lips, z)
    assert (q.batch_shape, q.event_shape) == ((1, 2, 3, FRAMES), (2,))
    for c, i, j in ((0, 0, 0), (4, 1, 2)):
        alone = prior.within(past=power[i, j] if prior.uses_past else None)
        seen = None if lips is None else lips[i, j]
        torch.testing.assert_close(log_variance[:, c, i, j], alone.log_variance(z[c, i, j], seen))
        torch.testing.assert_close(log_prior[:, c, i, j], alone.log_prior(z[c, i, j], seen))
        own = alone.draw_codes(power[i, j], seen, z[c, i, j])
        torch.testing.assert_close((drawn[c, i, j], log_q[c, i, j]), own)
        torch.testing.assert_close(q.mean[:, i, j], alone.encode(power[i, j], seen).mean)


@every_model
def test_features_stand_for_the_pictures(name: str, known: Any) -> None:
    """What `visual_features` keeps serves as the pictures do, bit for bit."""
    prior, power, lips = known(name)
    v, z = prior.visual_features(lips), torch.randn(FRAMES, 2)
    assert torch.equal(prior.log_variance(z, v), prior.log_variance(z, lips))
    assert torch.equal(prior.log_prior(z, v), prior.log_prior(z, lips))
    assert torch.equal(prior.encode(power, v).mean, prior.encode(power, lips).mean)


@every_model
@pytest.mark.parametrize("masked", [False, True])
def test_target_is_pyros_potential(name: str, masked: bool, known: Any) -> None:
    """log p(x_1:N, z_1:N), s integrated out, to 1e-10, of two utterances; padding is left out of both."""
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2]) if masked else None
    prior, power, lips = known(name, 2, mask=mask)
    x, noise = torch.randn(2, FRAMES, 7, dtype=torch.complex128), torch.rand(2, FRAMES, 7) + 0.1
    past = power if prior.uses_past else None
    _, potential, _, _ = initialize_model(Held(prior, past, noise), (x, lips), {"mask": mask})
    target = CollapsedTarget(prior, lips, x.abs().square(), noise, torch.ones(1), mask=mask)
    z = torch.randn(3, 2, FRAMES, 2)
    for chain, found in enumerate(target.log_density(z).sum(-1)):
        torch.testing.assert_close(found, -potential({"z": z[chain]}), rtol=1e-10, atol=0)


class Held:
    """`noisy_speech` of a prior whose past is told."""

    def __init__(self, prior: Any, past: Tensor | None, noise: Tensor) -> None:
        self.prior, self.past, self.noise = prior, past, noise

    def __call__(self, x: Tensor, lips: Tensor | None, mask: Tensor | None = None) -> Tensor:
        return noisy_speech(self.prior, x, lips, self.noise, mask=mask)


@every_model
def test_padding_says_nothing(name: str, known: Any) -> None:
    """Within a mask: frames of sound are decoded, moved and encoded as if the padding were not there."""
    mask = torch.arange(FRAMES) < 3
    prior, power, lips = known(name, mask=mask)
    z, changed = torch.randn(2, FRAMES, 2)
    z[:3] = changed[:3]
    short = prior.within(mask=mask[:3], past=power[:3] if prior.uses_past else None)
    cut = None if lips is None else lips[:3]
    loud = power.clone()
    loud[3] = 1e3
    for path in (z, changed):
        torch.testing.assert_close(
            prior.log_variance(path, lips)[:, :3], short.log_variance(z[:3], cut)
        )
        torch.testing.assert_close(prior.log_prior(path, lips)[:, :3], short.log_prior(z[:3], cut))
    for heard in (power, loud):
        again = prior.within(mask=mask, past=heard if prior.uses_past else None)
        torch.testing.assert_close(
            again.encode(heard, lips).mean[:, :3], short.encode(power[:3], cut).mean
        )


@pytest.mark.parametrize("name", [*STORIES, "rvae+causal"])
def test_nothing_comes_back_from_the_future(name: str, known: Any) -> None:
    """Prior and decoder of frame n know no z_>n, and of the speech before no s_>=n; RVAE both ways, which does, is the
    twin that must fail. Where a summary w is told, it is held.
    """
    prior, power, lips = known(name)
    if hasattr(prior, "summarise"):
        prior = prior.knowing(torch.randn(2))
    z = torch.randn(FRAMES, 2)

    def said(z: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
        told = prior.within(past=power if prior.uses_past else None)
        return told.log_variance(z, lips)[0].sum(-1), told.log_prior(z, lips)[0]

    by_z, by_s = zip(
        *(torch.autograd.functional.jacobian(said, (z, power), strict=False)), strict=True
    )
    future = torch.triu(torch.ones(FRAMES, FRAMES, dtype=torch.bool), 1)
    leaks = [(part.abs().sum(-1) > 0)[future].any() for part in by_z]
    assert any(leaks) == (name == "rvae")
    now = torch.triu(torch.ones(FRAMES, FRAMES, dtype=torch.bool), 0)
    for part in by_s:
        assert not (part.abs().sum(-1) > 0)[now].any()
    looks_back = hasattr(prior, "memory") or name == "hit_dvae"
    assert (by_s[0].abs().sum() > 0) == looks_back


# --- the bound --------------------------------------------------------------------------------------------------------


def linear_dkf(small_prior: Any) -> tuple[Any, dict[str, Tensor]]:
    """A DKF whose networks are linear maps (tanh of what is tiny, scaled back), and the maps.

    z_n = A z_n-1 + N(0, P), log sigma = B z, and q(z_n | z_n-1) = N(C z_n-1 + d, Q), deaf.
    """
    prior = small_prior("dkf").eval()
    tiny = 1e-6
    A, B, C = 0.6 * torch.randn(2, 2), torch.randn(7, 2), 0.5 * torch.randn(2, 2)
    d, P, Q = torch.randn(2), torch.rand(2) + 0.5, torch.rand(2) + 0.2
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
        prior.move.linear.weight.copy_(A)
        prior.move.gate.bias.fill_(-50)  # g = 0: the linear move alone
        prior.move.network.log_variance.bias.copy_(P.log())
        for hidden, out, target in (
            (prior.decoder.hidden, prior.decoder.log_variance, B),
            (prior.encoder.told, prior.encoder.mean, C),
        ):
            hidden.weight[:2, :2] = tiny * torch.eye(2)
            out.weight[:, :2] = target / tiny
        prior.encoder.mean.bias.copy_(d)
        prior.encoder.log_variance.bias.copy_(Q.log())
    return prior, {"A": A, "B": B, "C": C, "d": d, "P": P, "Q": Q}


def unrolled(A: Tensor, variance: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of z_1:N, z_n = A z_n-1 + shift + N(0, diag variance), stacked."""
    step = torch.eye(2 * FRAMES)
    for n in range(1, FRAMES):
        step[2 * n : 2 * n + 2, 2 * n - 2 : 2 * n] = -A
    whole = torch.linalg.inv(step)
    covariance = whole @ torch.diag(variance.repeat(FRAMES)) @ whole.mT
    return whole @ shift.repeat(FRAMES), covariance


@pytest.mark.parametrize("honest", [True, False])
def test_the_bound_of_a_linear_gaussian_prior(
    honest: bool, small_prior: Any, random_power: Any
) -> None:
    """The ELBO = its closed form: the divergence of two Gaussians of all frames, and E_q log p(s | z) by the mean of a
    log-normal; 4000 paths, |z| < 4.5. A bound that leaves out the divergence's dependence on the path fails.
    """
    prior, maps = linear_dkf(small_prior)
    power, count = random_power(FRAMES, 7), 4000
    m, S = unrolled(maps["C"], maps["Q"], maps["d"])
    q = MultivariateNormal(m, S)
    p = MultivariateNormal(*unrolled(maps["A"], maps["P"], torch.zeros(2)))
    B = torch.block_diag(*[maps["B"]] * FRAMES)
    mean, variance = B @ m, (B @ S @ B.mT).diagonal()
    inverse = torch.exp(-mean + 0.5 * variance)  # E 1 / sigma
    likelihood = -(mean + power.flatten() * inverse + torch.log(torch.tensor(torch.pi))).sum()
    every = power.expand(count, FRAMES, 7)
    with torch.no_grad():
        log_likelihood, kl = path_terms(prior, every, None, every)
        if not honest:
            still = prior.encoder_path(power, None).of_noise(torch.zeros(FRAMES, 2))[0]
            paths = prior.encoder_path(power, None), prior.latent_path((FRAMES,), None)
            a, b = (Normal(*path.given(still)) for path in paths)
            kl = kl * 1e-9 + torch.distributions.kl_divergence(a, b).sum()
    exact_kl = torch.distributions.kl_divergence(q, p)
    for found, exact in ((log_likelihood, likelihood), (kl, exact_kl)):
        z_score = (found.mean() - exact) / (found.std() / count**0.5)
        assert (z_score.abs() < 4.5) == (honest or found is log_likelihood)


class Measured(Collapsed):
    """y_n = log sigma(z_n) + N(0, r): a likelihood under which a linear prior's posterior is Kalman's."""

    def __init__(self, prior: Any, y: Tensor, r: float) -> None:
        self.prior, self.y, self.r = prior, y, r
        self.lips = self.mask = None
        self.mixing_weight = torch.ones(1)

    @property
    def heard(self) -> Tensor:
        return self.y

    def component_log_likelihood(self, log_variance: Tensor) -> Tensor:
        return -0.5 * (self.y - log_variance).square().sum(-1) / self.r

    def with_slope(self, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        return self.component_log_likelihood(log_variance), (self.y - log_variance) / self.r


def kalman_smoother(maps: dict[str, Tensor], y: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """Means and variances of p(z_n | y_1:N), by the forward filter and Rauch's backward pass."""
    A, B, P = maps["A"], maps["B"], torch.diag(maps["P"])
    m, S, filtered, predicted = torch.zeros(2), torch.zeros(2, 2), [], []
    for frame in y:
        m, S = A @ m, A @ S @ A.mT + P
        predicted.append((m, S))
        gain = S @ B.mT @ torch.linalg.inv(B @ S @ B.mT + r * torch.eye(7))
        m, S = m + gain @ (frame - B @ m), S - gain @ B @ S
        filtered.append((m, S))
    smoothed = [filtered[-1]]
    for (m, S), (ahead, spread) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        back = S @ A.mT @ torch.linalg.inv(spread)
        later, wide = smoothed[-1]
        smoothed.append((m + back @ (later - ahead), S + back @ (wide - spread) @ back.mT))
    means, covariances = zip(*smoothed[::-1], strict=True)
    return torch.stack(means), torch.stack([c.diagonal() for c in covariances])


@pytest.mark.parametrize("kernel", [MALA(0.35), Blocks(MALA(0.6), frames=2)])
@pytest.mark.parametrize("honest", [True, False])
def test_chains_find_kalmans_smoother(kernel: Any, honest: bool, small_prior: Any) -> None:
    """Means of 1500 chains' codes after 20 steps, started at the posterior, and their variances: |z| < 4.5; frames in
    which the prior's dynamics are cut fail it. Adam's mode is the smoother's mean.
    """
    prior, maps = linear_dkf(small_prior)
    y, r = torch.randn(FRAMES, 7), 2.0
    mean, variance = kalman_smoother(maps, y, r)
    z = torch.zeros(1, FRAMES, 2)
    climb(Measured(prior, y, r), z, 600, 0.03, None)
    torch.testing.assert_close(z[0], mean, atol=1e-3, rtol=0)
    if not honest:
        prior.move.linear.weight.data.zero_()
    start = mean + variance.sqrt() * torch.randn(1500, FRAMES, 2)
    found = run_chains(kernel, Measured(prior, y, r), start, draws=1, warmup=20, seed=1).state.z
    score = (found.mean(0) - mean) / (variance / 1500).sqrt()
    spread = (found.var(0) / variance - 1) / (2 / 1500) ** 0.5
    assert (max(score.abs().max(), spread.abs().max()) < 4.5) == honest


# --- schemes ----------------------------------------------------------------------------------------------------------

SCHEMES = {
    "ldem": LDEM(iterations=2, draws=1, first_warmup=2, final_warmup=1, final_draws=2, chains=2),
    "guided": Guided(iterations=2, draws=1, first_warmup=2, final_warmup=1, final_draws=2),
    "mcem": MCEM(iterations=2, warmup=1, draws=1, final_warmup=1, final_draws=2),
    "peem": PEEM(iterations=2, steps=2),
    "gpeem": GPEEM(iterations=2, steps=2),
    "amortised_vem": AmortisedVEM(iterations=2, steps=1, draws=2, final_draws=2),
}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [*(("rvae", s) for s in SCHEMES), *((n, "peem") for n in STORIES[1:]), ("srnn", "guided")],
)
def test_schemes_of_paths(name: str, scheme: str, small_prior: Any) -> None:
    """What comes out of a batch is finite, and of its first utterance the same whatever pads the second."""
    prior = awake(small_prior(name))
    x = torch.randn(2, 6, 7, dtype=torch.complex128)
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    other = torch.where(mask[..., None], x, 100)
    out, again = (SCHEMES[scheme](prior, each, mask=mask, seed=3) for each in (x, other))
    assert out.speech.isfinite().all()
    assert out.z.shape[1:] == (2, 6, 2)
    assert out.target.event_dim == 2
    torch.testing.assert_close(out.speech[mask], again.speech[mask])
    torch.testing.assert_close(out.objective, again.objective)


@pytest.mark.parametrize("scheme", ["ldem", "amortised_vem"])
@pytest.mark.parametrize("name", ["av_rvae", "av_hit_dvae"])
def test_schemes_of_paths_with_lips(
    name: str, scheme: str, small_prior: Any, random_lips: Any
) -> None:
    """The lips matter, whatever the scheme."""
    prior, x = awake(small_prior(name)), torch.randn(6, 7, dtype=torch.complex128)
    one, two = (SCHEMES[scheme](prior, x, random_lips(6), seed=3).speech for _ in range(2))
    assert one.isfinite().all()
    assert not torch.equal(one, two)


def test_blocks_move_where_whole_paths_do_not(small_prior: Any) -> None:
    """Of 300 frames a Langevin move of all is never accepted, of blocks of five most are."""
    prior, _ = linear_dkf(small_prior)
    target = Measured(prior, torch.randn(300, 7), 0.5)
    z = torch.zeros(1, 300, 2)
    climb(target, z, 200, 0.05, None)
    whole = run_chains(MALA(0.15), target, z, draws=5).acceptance_rate
    blocks = run_chains(Blocks(MALA(0.15), frames=5), target, z, draws=2)
    assert whole.max() < 0.01
    assert blocks.acceptance_rate.min() > 0.5
    assert (blocks.state.z != z).any(-1).float().mean() > 0.5


def test_blocks_are_for_paths(small_prior: Any, random_power: Any) -> None:
    """Frames that are independent are refused, and so is an empty block."""
    target = CollapsedTarget(
        small_prior("a_vae"), None, random_power(3, 7), random_power(3, 7), torch.ones(1)
    )
    with pytest.raises(ValueError, match="blocks are for priors that couple frames"):
        Blocks().init(target, torch.randn(1, 3, 2))
    with pytest.raises(ValueError, match="Blocks: frames is 0: give 1 or more"):
        Blocks(frames=0)
