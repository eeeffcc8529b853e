"""The lesson on vision-guided hearing: its sound against mirrors and delays, its mixture against enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import stats
from scipy.special import digamma, gammaln
from torch import Tensor

from lessons import av_gmm
from lessons import vision_guided_hearing as hearing
from lessons.vision_guided_hearing import Belief, Scene, Shares

pytestmark = pytest.mark.usefixtures("float64")

PEOPLE = torch.tensor([[-1.1, 0.0, 1.9], [0.1, 0.1, 2.2], [1.0, 0.0, 1.8]])
SIGMA = torch.tensor(40.0)
TAU = torch.tensor([[-240.0, 60.0, 400.0, 5.0], [250.0, 230.0, -300.0, 90.0]])
G = torch.tensor([-260.0, 20.0])


def test_the_map_is_that_of_the_first_lesson() -> None:
    """(2), written twice: the microphones stand in the same places."""
    torch.testing.assert_close(hearing.directions(PEOPLE), av_gmm.itd(PEOPLE))


def test_first_images_are_mirrors() -> None:
    """(1): one image behind each of six walls, reflected there."""
    (x, y, z), low, high = PEOPLE[0], *hearing.ROOM
    mirrors = {
        *((2 * wall - x, y, z) for wall in (low[0], high[0])),
        *((x, 2 * wall - y, z) for wall in (low[1], high[1])),
        *((x, y, 2 * wall - z) for wall in (low[2], high[2])),
        (x, y, z),
    }
    places, walls = hearing.images(PEOPLE[0], 1)
    expected = torch.tensor(sorted([float(c) for c in m] for m in mirrors))
    torch.testing.assert_close(torch.tensor(sorted(places.tolist())), expected)
    assert sorted(walls.tolist()) == [0, 1, 1, 1, 1, 1, 1]


def test_images_are_those_of_pyroomacoustics() -> None:
    """(1), of third order, where that package is installed."""
    pra = pytest.importorskip("pyroomacoustics")
    low, high = hearing.ROOM
    material = pra.Material(energy_absorption=1 - 0.6**2)
    room = pra.ShoeBox((high - low).tolist(), fs=16000, materials=material, max_order=3)
    room.add_source((PEOPLE[0] - low).tolist())
    room.add_microphone((-low).tolist())
    room.image_source_model()
    source = room.sources[0]
    theirs = np.column_stack([source.images.T + low.numpy(), source.damping.ravel()])
    places, walls = hearing.images(PEOPLE[0], 3)
    ours = torch.cat([places, 0.6 ** walls[:, None]], 1).numpy()

    def ordered(rows: np.ndarray) -> np.ndarray:
        return rows[np.lexsort(np.round(rows, 3).T)]

    np.testing.assert_allclose(ordered(ours), ordered(theirs), atol=1e-5)


def test_sound_is_delayed_and_attenuated() -> None:
    """(1): of a tone burst, which can be written at any time, with every wall's echo."""

    def burst(t: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((t - 0.05) / 0.002) ** 2) * torch.cos(2 * math.pi * 1500 * t)

    t = torch.arange(1600) / hearing.RATE
    heard = hearing.propagate(burst(t), PEOPLE[0], 0.5, order=1)
    expected = torch.zeros(2, 1600)
    for place, walls in zip(*hearing.images(PEOPLE[0], 1), strict=True):
        for ear in range(2):
            d = (place - hearing.EARS[ear]).norm()
            expected[ear] += 0.5**walls / d * burst(t - d / 343)
    torch.testing.assert_close(heard, expected, atol=1e-9, rtol=0)


def test_lags_are_the_delays() -> None:
    """(3): of one loud voice without walls, to the grid of 5 us."""
    rng = torch.Generator().manual_seed(0)
    scene = hearing.draw(rng, PEOPLE[:1], torch.ones(1, 1, dtype=torch.bool), 60.0, 0.0)
    error = hearing.lags(scene.sound) - hearing.directions(PEOPLE[0])
    assert error.abs().median() <= 5


def test_lags_of_noise_lie_where_clutter_has_a_density() -> None:
    """(3), (6): the uniform law ends at LONGEST, and Pyro's does not hold at its end."""
    tau = hearing.lags(torch.randn(2, 20 * hearing.RATE))
    assert tau.abs().max() < hearing.LONGEST
    assert tau.abs().max() > 0.95 * hearing.LONGEST


def densities(window: int) -> np.ndarray:
    """p(tau_k | n) of one window by scipy: (frame, person + clutter)."""
    tau = TAU[window].numpy()[:, None]
    clutter = stats.uniform.pdf(tau, -560, 1120)
    return np.hstack([stats.norm.pdf(tau, G.numpy(), 40.0), clutter])


def test_the_e_step_of_em_is_enumeration() -> None:
    """(8), and log p(tau; pi, sigma), over all 3^4 labels of both windows; and (9)."""
    pi = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    log_p, r = 0.0, np.zeros((2, 4, 3))
    for w in range(2):
        p_w = 0.0
        for labels in itertools.product(range(3), repeat=4):
            p = np.prod(densities(w)[range(4), labels] * pi[w].numpy()[list(labels)])
            p_w += p
            r[w, range(4), labels] += p
        r[w] /= p_w
        log_p += math.log(p_w)
    after, evidence = hearing.em_step(TAU, G, Shares(pi, SIGMA))
    assert evidence.item() == pytest.approx(log_p)
    np.testing.assert_allclose(after.pi, r.mean(1))
    square = (r[..., :2] * (TAU.numpy()[..., None] - G.numpy()) ** 2).sum() / r[..., :2].sum()
    assert after.sigma.item() == pytest.approx(math.sqrt(square))


def exact(window: int) -> tuple[float, np.ndarray]:
    """log p(tau_w; sigma) and E[pi_w | tau_w], pi integrated out: every label sequence has a Dirichlet posterior."""
    a, total, mean = 0.5, 0.0, np.zeros(3)
    for labels in itertools.product(range(3), repeat=4):
        counts = a + np.bincount(labels, minlength=3)
        log_z = gammaln(counts).sum() - gammaln(counts.sum()) - 3 * gammaln(a) + gammaln(3 * a)
        p = densities(window)[range(4), labels].prod() * math.exp(log_z)
        total += p
        mean += p * counts / counts.sum()
    return math.log(total), mean / total


def fixed_spread(tau: Tensor, g: Tensor, belief: Belief, iterations: int = 200) -> Belief:
    """VEM with sigma held."""
    for _ in range(iterations):
        belief = Belief(hearing.vem_step(tau, g, belief)[0].concentration, SIGMA)
    return belief


def test_the_variational_posterior_is_near_the_exact_one() -> None:
    """(10) to (12): F below the evidence of the enumeration; weights near the exact ones, for all of four frames."""
    belief = fixed_spread(TAU, G, Belief(torch.ones(2, 3), SIGMA))
    F = hearing.vem_step(TAU, G, belief)[1].item()
    log_p = [exact(w)[0] for w in range(2)]
    assert sum(log_p) - 1 < F < sum(log_p)
    mean = belief.concentration / belief.concentration.sum(-1, keepdim=True)
    np.testing.assert_allclose(mean, [exact(w)[1] for w in range(2)], atol=0.07)


def test_the_bound_is_its_definition() -> None:
    """(13) against (10) written out for one person and three frames: all labels, pi by quadrature."""
    tau, g, c = TAU[:1, :3], G[:1], torch.tensor([[2.3, 1.1]])
    log_r = hearing.log_likelihood(tau, g, SIGMA)[0].numpy() + digamma(c.numpy()) - digamma(3.4)
    r = np.exp(log_r - np.logaddexp.reduce(log_r, axis=1, keepdims=True))
    beta, prior = stats.beta(2.3, 1.1), stats.beta(0.5, 0.5)
    likelihood = np.column_stack(
        [stats.norm.pdf(tau[0].numpy(), -260.0, 40.0), np.full(3, 1 / 1120)]
    )

    nodes, weights = np.polynomial.legendre.leggauss(300)
    angle = math.pi / 4 * (nodes + 1)
    pi = np.sin(angle) ** 2
    d_pi = math.pi / 4 * weights * np.sin(2 * angle)
    F = 0.0
    for labels in map(np.array, itertools.product(range(2), repeat=3)):
        r_z = r[range(3), labels].prod()
        weight = np.where(labels == 0, pi[:, None], 1 - pi[:, None])
        joint = np.log(likelihood[range(3), labels] * weight).sum(1) + prior.logpdf(pi)
        F += r_z * (d_pi * beta.pdf(pi) * (joint - math.log(r_z) - beta.logpdf(pi))).sum()
    found = hearing.vem_step(tau, g, Belief(c, SIGMA))[1]
    assert found.item() == pytest.approx(F, abs=1e-6)


def test_pyro_has_the_same_posterior() -> None:
    """(5), (6) given pi: TraceEnum_ELBO's marginals of z are (8). And Pyro's evidence, integrated over pi by quadrature
    (one window, two people, the simplex in polar coordinates), is that of the enumeration."""
    pi = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    given_pi = poutine.condition(hearing.model, {"pi": pi[:, None]})
    elbo = TraceEnum_ELBO(max_plate_nesting=2)
    z = elbo.compute_marginals(given_pi, lambda *_: None, TAU, G, SIGMA)["z"]
    terms = hearing.log_likelihood(TAU, G, SIGMA) + pi.log()[:, None]
    torch.testing.assert_close(z.probs.expand(2, 4, 3), terms.softmax(-1))

    nodes, weights = np.polynomial.legendre.leggauss(40)  # pi = squares of a point of the sphere
    angle, weight = math.pi / 4 * (nodes + 1), math.pi / 4 * weights
    theta, phi = (x.ravel() for x in np.meshgrid(angle, angle))
    sphere = np.array([np.cos(theta), np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)])
    pis = torch.from_numpy(sphere.T**2)
    area = 8 * np.prod(sphere, 0) * np.sin(theta)  # d pi = area d theta d phi / 2
    many = TAU[:1].expand(len(pis), 4)
    given_pi = poutine.condition(hearing.model, {"pi": pis[:, None]})
    trace = poutine.trace(poutine.enum(given_pi, first_available_dim=-3)).get_trace(many, G, SIGMA)
    trace.compute_log_prob()
    log_z, log_tau = (trace.nodes[name]["log_prob"] for name in ("z", "tau"))
    log_p = (log_z + log_tau).logsumexp(0).sum(-1) + trace.nodes["pi"]["log_prob"].squeeze(-1)
    total = (log_p.exp().numpy() * area / 2 * np.outer(weight, weight).ravel()).sum()
    assert math.log(total) == pytest.approx(exact(0)[0], abs=1e-6)


def test_pyro_has_the_same_joint() -> None:
    """(4) to (6): log p(tau, z, pi) of any z and pi, with scipy's densities."""
    pi, z = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]), np.array([[0, 2, 1, 1], [2, 2, 0, 1]])
    values = {"pi": torch.from_numpy(pi[:, None]), "z": torch.from_numpy(z)}
    trace = poutine.trace(poutine.condition(hearing.model, values)).get_trace(TAU, G, SIGMA)
    log_p = sum(
        stats.dirichlet.logpdf(pi[w], [0.5] * 3)
        + np.log(densities(w)[range(4), z[w]] * pi[w, z[w]]).sum()
        for w in range(2)
    )
    assert trace.log_prob_sum().item() == pytest.approx(log_p)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), people=st.integers(1, 4), windows=st.integers(1, 3))
def test_no_bound_ever_falls(seed: int, people: int, windows: int) -> None:
    """(8) and (9); (11) and (12): any lags, any directions."""
    rng = torch.Generator().manual_seed(seed)
    tau = 1120 * torch.rand(windows, 12, generator=rng) - 560
    g = 800 * torch.rand(people, generator=rng) - 400
    for rise in (hearing.fit_em(tau, g, 20)[1], hearing.fit_vem(tau, g, 20)[1]):
        assert (rise.diff() > -1e-9).all()


def test_the_probability_of_speaking_is_an_integral() -> None:
    """(14): the Beta marginal's tail, against a sum over draws of the whole Dirichlet on a fixed seed."""
    belief = Belief(torch.tensor([[3.0, 0.6, 1.5]]), SIGMA)
    draws = np.random.default_rng(0).dirichlet([3.0, 0.6, 1.5], 200_000)
    shares = (draws[:, :2] > 0.1).mean(0)
    np.testing.assert_allclose(hearing.speaks(belief)[0], shares, atol=5e-3)


def drawn(seed: int, reflection: float) -> Scene:
    rng = torch.Generator().manual_seed(seed)
    speaking = torch.rand(5, 3, generator=rng) < 0.5
    return hearing.draw(rng, PEOPLE, speaking, 10.0, reflection)


@pytest.mark.parametrize("reflection", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_speakers_are_found(reflection: float) -> None:
    """Who talks in which second; a head with its ears swapped must fail at the same."""
    scene = drawn(0, reflection)
    g = hearing.directions(scene.seen)
    belief, _ = hearing.fit_vem(hearing.lags(scene.sound), g)
    assert ((hearing.speaks(belief) > 0.5) == scene.speaking).double().mean() > 0.9
    swapped, _ = hearing.fit_vem(hearing.lags(scene.sound.flip(0)), g)
    assert ((hearing.speaks(swapped) > 0.5) == scene.speaking).double().mean() < 0.8
