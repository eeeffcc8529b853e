"""The order in which schemes do things: one step of each against the same step written out here, in float64.

Formulas are copied from the papers, not from the code; kernels alone are the library's. All counts differ: 5 frames, 7
frequencies, 2 latent dimensions, 2 components, 4 spectra, 3 draws of 2 chains.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from pyro_avse.inference import (
    GPEEM,
    LDEM,
    MCEM,
    PEEM,
    ULA,
    VEM,
    AmortisedVEM,
    CollapsedVEM,
    Importance,
    RandomWalk,
    run_chains,
)
from pyro_avse.inference.em import Observation
from pyro_avse.inference.proposal import guide_mixture
from pyro_avse.models.nmf_noise import NoiseModel

pytestmark = pytest.mark.usefixtures("float64")
PAPER = NoiseModel.paper(4)
COUNTS = {"warmup": 6, "draws": 3, "chains": 2}
FINAL = {"first_warmup": 10, "final_warmup": 9, "final_draws": 8}
SCHEMES: dict[str, Any] = {
    "vem": VEM(noise=PAPER, iterations=3, exponent=0.7, **COUNTS),
    "collapsed_vem": CollapsedVEM(noise=PAPER, iterations=3, exponent=0.7, **COUNTS),
    "mcem": MCEM(noise=PAPER, iterations=3, exponent=0.7, **COUNTS, **FINAL),
    "ldem": LDEM(noise=PAPER, iterations=3, exponent=0.7, **COUNTS, **FINAL),
    "peem": PEEM(noise=PAPER, iterations=3, steps=4, exponent=0.7),
    "gpeem": GPEEM(noise=PAPER, iterations=3, steps=4, exponent=0.7, gain_shape=1.5, gain_rate=2.0),
    "importance": Importance(noise=PAPER, iterations=3, draws=3, final_draws=8, exponent=0.7),
    "amortised_vem": AmortisedVEM(
        noise=PAPER, iterations=3, draws=3, final_draws=8, steps=0, exponent=0.7
    ),
}
every_prior = pytest.mark.parametrize("prior_name", ["two_decoders", "min_vae_v2"])


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the formulas ---------------------------------------------------------------------------------------------------


def log_prior_of(prior: Any, z: Tensor) -> Tensor:
    """log p(z | k), (component, draw, frame)."""
    latent = prior.latent_prior(None)
    return torch.stack(
        [
            Normal(latent.mean[k], latent.stddev[k]).log_prob(z).sum(-1)
            for k in range(prior.num_components)
        ]
    )


def sigmas(prior: Any, z: Tensor) -> Tensor:
    """sigma_k(z), (component, draw, frame, freq), the shared one twice."""
    return prior.log_variance(z, None).exp().expand(prior.num_components, *z.shape[:-1], 7)


def log_joint(prior: Any, z: Tensor, power: Tensor, noise: Tensor, pi: Tensor, g: Tensor) -> Tensor:
    """log pi_k p(z | k) N_c(x; 0, g sigma_k(z) + W H), (component, draw, frame): S17."""
    V = g[..., None] * sigmas(prior, z) + noise
    likelihood = (-torch.log(math.pi * V) - power / V).sum(-1)
    return pi.log()[:, None, None] + log_prior_of(prior, z) + likelihood


@dataclass
class Literal:
    """A density over z (chain, frame, latent), by a formula of this file."""

    of: Callable[[Tensor], Tensor]
    event_dim: int = 1

    def log_density(self, z: Tensor) -> Tensor:
        return self.of(z)


def s19(
    power: Tensor, sigma: Tensor, w: Tensor, W: Tensor, H: Tensor, g: Tensor, gain: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """H, then W, then g, each from the others as they then are; W's rows sum to one. S19"""
    V = g[:, None] * sigma + H @ W
    up, down = (torch.einsum("kdn,kdnf->nf", w, t) for t in (power / V**2, 1 / V))
    H = H * ((up @ W.T) / (down @ W.T)) ** 0.7
    V = g[:, None] * sigma + H @ W
    up, down = (torch.einsum("kdn,kdnf->nf", w, t) for t in (power / V**2, 1 / V))
    W = W * ((H.T @ up) / (H.T @ down)) ** 0.7
    scale = W.sum(1)
    W, H = W / scale[:, None], H * scale
    if gain:
        V = g[:, None] * sigma + H @ W
        up = torch.einsum("kdn,kdnf->n", w, power * sigma / V**2)
        g = g * (up / torch.einsum("kdn,kdnf->n", w, sigma / V)) ** 0.7
    return W, H, g


def check(state: Any, W: Tensor, H: Tensor, r: Tensor, g: Tensor | None = None) -> None:
    """theta after the step, and pi, the mean of r."""
    close = torch.testing.assert_close
    close(state.dictionary, W)
    close(state.activations, H)
    close(state.responsibilities, r)
    close(state.mixing_weight, r.mean(-1))
    if g is not None:
        close(state.gain, g)
    assert state.iteration == 1


# --- one step of every scheme ---------------------------------------------------------------------------------------


@every_prior
@pytest.mark.parametrize("name", ["vem", "collapsed_vem"])
def test_a_step_of_the_variational_schemes(
    name: str, prior_name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """(36), (40), (34), (35), then (42), (43) and (44), from a state that is not the first."""
    prior, seen = given(prior_name)
    scheme = SCHEMES[name]
    start = scheme.step(seen, scheme.init(seen, rng=generator()), rng=generator(1))
    start = replace(start, iteration=0)
    state = scheme.step(seen, start, rng=generator(3))

    W, H, pi, r = start.dictionary, start.activations, start.mixing_weight, start.responsibilities
    E = start.m.abs() ** 2 + start.nu
    assert start.nu.max() > 0.01

    def expected(z: Tensor) -> Tensor:
        """E log N_c(s; 0, sigma_k), (component, draw, frame)."""
        sigma = sigmas(prior, z)
        return (-sigma.log() - E / sigma).sum(-1)

    def density(z: Tensor) -> Tensor:
        if name == "vem":  # (36)
            return (r[:, None] * (log_prior_of(prior, z) + expected(z))).sum(0)
        joint = pi.log()[:, None, None] + log_prior_of(prior, z) + expected(z)
        return torch.logsumexp(joint, 0)

    chains = run_chains(
        RandomWalk(), Literal(density), start.z, draws=3, warmup=6, seed=generator(3)
    )
    z = chains.draws.reshape(6, 5, 2)
    sigma = sigmas(prior, z)
    joint = pi.log()[:, None, None] + log_prior_of(prior, z) + expected(z)
    if name == "vem":
        if prior_name == "min_vae_v2":  # what is common to both leaves no trace in (40)
            joint = joint - expected(z)
        r = torch.softmax(joint.mean(1), 0)
        rho = r[:, None].expand(2, 6, 5)
    else:
        rho = torch.softmax(joint, 0)
        r = rho.mean(1)
    gamma = 1 / (rho[..., None] / sigma).sum(0).mean(0)  # (34)
    m = gamma / (gamma + H @ W) * seen.x  # (35)
    nu = gamma * (H @ W) / (gamma + H @ W)
    V = (seen.x - m).abs() ** 2 + nu
    H = H * (((V / (H @ W) ** 2) @ W.T) / ((1 / (H @ W)) @ W.T)) ** 0.7  # (42)
    W = W * ((H.T @ (V / (H @ W) ** 2)) / (H.T @ (1 / (H @ W)))) ** 0.7  # (43)
    H, W = H * W.sum(1), W / W.sum(1, keepdim=True)
    torch.testing.assert_close(state.z, chains.state.z)
    torch.testing.assert_close(state.m, m)
    torch.testing.assert_close(state.nu, nu)
    check(state, W, H, r)
    bound = (r * r.mean(-1).log()[:, None]).sum() - (V / (H @ W) + (H @ W).log()).sum()  # (41)
    torch.testing.assert_close(state.objective, bound)

    out = scheme.finish(seen, state, rng=generator())
    torch.testing.assert_close(out.speech, gamma / (gamma + H @ W) * seen.x)  # (45)


@every_prior
@pytest.mark.parametrize("name", ["mcem", "ldem"])
def test_a_step_of_the_monte_carlo_schemes(
    name: str, prior_name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """S17-S19, and S20 from a last E-step with counts of its own; the chains count by their evidence in `ldem`."""
    prior, seen = given(prior_name)
    scheme = SCHEMES[name]
    start = scheme.step(seen, scheme.init(seen, rng=generator()), rng=generator(1))
    kernel = RandomWalk() if name == "mcem" else ULA(longest_drift=1.0)

    def e_step(state: Any, draws: int, warmup: int, seed: int) -> tuple[Any, Tensor, Tensor]:
        noise, pi, g = state.activations @ state.dictionary, state.mixing_weight, state.gain

        def density(z: Tensor) -> Tensor:
            return torch.logsumexp(log_joint(prior, z, seen.power, noise, pi, g), 0)

        found = run_chains(
            kernel, Literal(density), state.z, draws=draws, warmup=warmup, seed=generator(seed)
        )
        z = found.draws.flatten(0, 1)
        rho = torch.softmax(log_joint(prior, z, seen.power, noise, pi, g), 0)
        if name == "mcem":
            return found, sigmas(prior, z), rho / len(z)
        evidence = found.log_density.mean(1)
        if draws >= 5:
            evidence = evidence + found.draws.std(1).log().sum(-1)
        share = torch.softmax(evidence / 20, 0)  # (chain, frame)
        count = share[:, None].expand(2, draws, 5).reshape(2 * draws, 5) / draws
        return found, sigmas(prior, z), rho * count

    state = scheme.step(seen, replace(start, iteration=0), rng=generator(3))
    found, sigma, w = e_step(start, 3, 10, 3)  # the first E-step is longer
    W, H, g = s19(seen.power, sigma, w, start.dictionary, start.activations, start.gain)
    torch.testing.assert_close(state.z, found.state.z)
    check(state, W, H, w.sum(1), g)
    V = g[:, None] * sigma + H @ W
    q = -(w[..., None] * (V.log() + seen.power / V)).sum()
    torch.testing.assert_close(state.objective, q)

    out = scheme.finish(seen, state, rng=generator(4))
    _, sigma, w = e_step(state, 8, 9, 4)
    G = (w[..., None] * g[:, None] * sigma / (g[:, None] * sigma + H @ W)).sum((0, 1))  # S20
    torch.testing.assert_close(out.speech, G * seen.x)
    assert out.chains.draws.shape == (2, 8, 5, 2)
    second = scheme.step(seen, state, rng=generator(5))
    found, _, _ = e_step(state, 3, 6, 5)
    torch.testing.assert_close(second.z, found.state.z)


@every_prior
def test_a_step_of_importance_sampling(
    prior_name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """u_rk = pi_k p(z_r | k) p(x | z_r, k) / q(z_r), of draws of the guide at E|s|^2 / g."""
    prior, seen = given(prior_name)
    scheme = SCHEMES["importance"]
    start = scheme.step(seen, scheme.init(seen, rng=generator()), rng=generator(1))
    state = scheme.step(seen, replace(start, iteration=0), rng=generator(3))

    W, H, pi, g = start.dictionary, start.activations, start.mixing_weight, start.gain
    guide = prior.encode(start.speech_power / g[:, None], seen.lips)
    q = guide_mixture(guide, prior, None, start.responsibilities, pi, 1.5, 0.1)
    z = q.sample(3, rng=generator(3))
    log_u = log_joint(prior, z, seen.power, H @ W, pi, g) - q.log_prob(z)
    w = torch.softmax(log_u.flatten(0, 1), 0).reshape(2, 3, 5)
    sigma = sigmas(prior, z)
    V = g[:, None] * sigma + H @ W
    G = g[:, None] * sigma / V
    power = (w[..., None] * (G**2 * seen.power + G * (H @ W))).sum((0, 1))
    torch.testing.assert_close(state.speech_power, power)
    torch.testing.assert_close(state.z[0], (w.sum(0)[..., None] * z).sum(0))
    evidence = (torch.logsumexp(log_u, (0, 1)) - math.log(3)).sum()
    torch.testing.assert_close(state.objective, evidence)
    W, H, g = s19(seen.power, sigma, w, W, H, g)
    check(state, W, H, w.sum(1), g)
    out = scheme.finish(seen, state, rng=generator(4))
    assert 3 < float(out.effective_sample_size.max()) <= 8


@every_prior
@pytest.mark.parametrize("name", ["peem", "gpeem"])
def test_a_step_of_point_estimate_em(
    name: str, prior_name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """Four steps of Adam, which goes on from E-step to E-step, then S19 at the mode."""
    prior, seen = given(prior_name)
    scheme = SCHEMES[name]
    start = scheme.init(seen, rng=generator())
    state = scheme.step(seen, start, rng=generator(3))
    second = scheme.step(seen, state, rng=generator(3))

    W, H, pi, g = start.dictionary, start.activations, start.mixing_weight, start.gain
    y = start.z.clone()
    if name == "gpeem":
        y = torch.cat([y, torch.zeros(1, 5, 1)], -1)
    adam = torch.optim.Adam([y], lr=0.05, maximize=True)

    def joint(y: Tensor) -> Tensor:
        gain = g if name == "peem" else y[0, :, 2].exp()
        value = torch.logsumexp(log_joint(prior, y[..., :2], seen.power, H @ W, pi, gain), 0)
        if name == "gpeem":  # Gamma(1.5, 2)
            value = value + 0.5 * y[..., 2] - 2 * gain + 1.5 * math.log(2) - math.lgamma(1.5)
        return value

    for moved in (state, second):
        for _ in range(4):
            leaf = y.clone().requires_grad_()
            y.grad = torch.autograd.grad(joint(leaf).sum(), leaf)[0]
            adam.step()
        z = y[..., :2]
        if name == "gpeem":
            g = y[0, :, 2].exp()
            torch.testing.assert_close(moved.gain, g)
        torch.testing.assert_close(moved.z, z)
        with torch.no_grad():
            w = torch.softmax(log_joint(prior, z, seen.power, H @ W, pi, g), 0)
            W, H, g = s19(seen.power, sigmas(prior, z), w, W, H, g, gain=name == "peem")
            pi = w[:, 0].mean(-1)
            check(replace(moved, iteration=1), W, H, w[:, 0], g)
            torch.testing.assert_close(moved.objective, joint(y).sum())


@every_prior
def test_a_step_with_an_encoder_that_has_learned_enough(
    prior_name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """(14), (22): r by draws of each component's encoder, with their own decoders; S19 with weights r_k / R."""
    prior, seen = given(prior_name)
    scheme = SCHEMES["amortised_vem"]
    start = scheme.init(seen, rng=generator())
    rng = generator(3)
    state = scheme.step(seen, start, rng=rng)

    W, H, pi, g = start.dictionary, start.activations, start.mixing_weight, start.gain
    again = generator(3)
    torch.randint(2**62, (), generator=again)  # of Pyro's session
    q = prior.encode(seen.power, seen.lips)
    z = q.mean[:, None] + q.stddev[:, None] * torch.randn(2, 3, 5, 2, generator=again)
    own = torch.stack([log_joint(prior, z[k], seen.power, H @ W, pi, g)[k] for k in (0, 1)])
    log_q = torch.stack([Normal(q.mean[k], q.stddev[k]).log_prob(z[k]).sum(-1) for k in (0, 1)])
    gap = (own - log_q).mean(1)
    r = torch.softmax(gap, 0)
    torch.testing.assert_close(state.objective, torch.logsumexp(gap, 0).sum())
    sigma = torch.stack([sigmas(prior, z[k])[k] for k in (0, 1)])
    w = (r / 3)[:, None].expand(2, 3, 5)
    W, H, g = s19(seen.power, sigma.detach(), w.detach(), W, H, g)
    check(state, W, H, r, g)
