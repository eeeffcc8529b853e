"""Point-estimate EM, with and without a prior on the gain: modes by another optimiser, objectives by Pyro. S17-S19"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import Gamma, Normal

from pyro_avse.distributions import ComplexNormal
from pyro_avse.errors import Divergence
from pyro_avse.inference.gpeem import GPEEM, GainTarget
from pyro_avse.inference.gradient import value_and_grad
from pyro_avse.inference.peem import PEEM, climb
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.typing import InputError, Target

pytestmark = pytest.mark.usefixtures("float64")
SmallPrior = Callable[..., Any]
PRIORS = ("a_vae", "min_vae_v2", "two_decoders")
PI = torch.tensor([0.3, 0.7], dtype=torch.float64)


def complex_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def mode_by_adam(target: Target, start: Tensor) -> Tensor:
    """Where `climb` ends, at a step that shrinks."""
    y = start.clone()
    for learning_rate in (0.05, 0.005, 0.0005):
        climb(target, y, 300, learning_rate, None)
    return y


def log_joint_by_pyro(prior: Any, x: Tensor, z: Tensor, noise: Tensor, pi: Tensor) -> Tensor:
    """log p(x_n, z_n) of every frame: the program's, alpha held at each component in turn, and summed out."""
    terms = []
    for k in range(len(pi)):
        held = {"z": z, "alpha": torch.full(x.shape[:-1], k)}
        program = poutine.condition(noisy_speech, data=held)
        trace = poutine.trace(program).get_trace(prior, x, None, noise, mixing_weight=pi)
        trace.compute_log_prob()
        sites = trace.nodes.keys() & {"alpha", "z", "x"}
        terms.append(sum(trace.nodes[site]["log_prob"] for site in sites))
    return torch.logsumexp(torch.stack(terms), 0).detach()


@pytest.mark.parametrize("name", PRIORS)
def test_the_code_is_the_mode_that_another_optimiser_finds(
    name: str, small_prior: SmallPrior
) -> None:
    """S17: BFGS on Pyro's joint, which counts the prior once, ends where Adam does; counted twice, elsewhere."""
    prior, x, noise = small_prior(name), complex_normal(1, 7), torch.rand(1, 7) + 0.1
    pi, start = PI[-prior.num_components :], torch.zeros(1, 1, 2)
    pi, latent = pi / pi.sum(), prior.latent_prior(None)
    target = CollapsedTarget(prior, None, x.abs().square(), noise, pi)
    mode = mode_by_adam(target, start)
    assert value_and_grad(target, start)[1].abs().max() > 0.1
    assert value_and_grad(target, mode)[1].abs().max() < 1e-3

    def found_by_bfgs(times: float) -> Tensor:
        @torch.no_grad()
        def minus_log_joint(z: Any) -> float:
            at = torch.tensor(z).reshape(1, 2)
            once_more = torch.logsumexp(latent.log_prob(at) + pi.log()[:, None], 0)
            joint = log_joint_by_pyro(prior, x, at, noise, pi)
            return -(joint + (times - 1) * once_more).item()

        return torch.tensor(minimize(minus_log_joint, np.zeros(2), method="BFGS").x)

    torch.testing.assert_close(mode[0, 0], found_by_bfgs(1), rtol=0, atol=1e-4)
    assert (mode[0, 0] - found_by_bfgs(2)).abs().max() > 1e-2


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize(
    "scheme",
    [
        PEEM(iterations=30, noise=NoiseModel.paper(2)),
        GPEEM(iterations=30, noise=NoiseModel.paper(2)),
    ],
)
def test_the_m_step_never_lowers_the_objective(
    name: str, scheme: PEEM | GPEEM, small_prior: SmallPrior
) -> None:
    """S18, S19: with codes and gains at rest, W, H, g and pi only ever raise log p(x, z); and they do raise it."""
    prior, x, lips = small_prior(name), complex_normal(2, 6, 7), torch.rand(2, 6, 67, 67)
    for seed in range(3):
        objective = replace(scheme, steps=0)(prior, x, lips, seed=seed).objective
        assert (objective.diff(dim=0) > -1e-9).all()
        assert (objective[-1] > objective[0] + 1e-3).all()


@pytest.mark.parametrize("name", PRIORS)
def test_the_objective_is_pyros_joint(name: str, small_prior: SmallPrior) -> None:
    """log p(x, z) under the returned W, H and pi, padding left out."""
    prior, x, lips = small_prior(name), complex_normal(6, 7), torch.rand(6, 67, 67)
    mask = torch.arange(6) < 4
    scheme = PEEM(
        iterations=3, steps=0, noise=replace(NoiseModel.paper(2), gain="none")
    )  # z is where it was
    out = scheme(prior, x, lips, mask=mask)
    noise = out.activations @ out.dictionary
    joint = log_joint_by_pyro(prior, x, out.z[0], noise, out.mixing_weight)
    torch.testing.assert_close(out.objective[-1], joint[mask].sum())
    assert out.gain is None


def test_where_it_stops_everything_is_at_rest(small_prior: SmallPrior) -> None:
    """The fixed point of E- and M-step is a stationary point of log p(x, z; W, H, g) in all of its arguments."""
    prior, x = small_prior("two_decoders"), complex_normal(6, 7)
    scheme = PEEM(
        iterations=300, steps=3, learning_rate=0.01, noise=NoiseModel.paper(1), exponent=1
    )
    out = scheme(prior, x)
    leaves = {"z": out.z, "W": out.dictionary, "H": out.activations, "g": out.gain}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    W, H, g = leaves["W"], leaves["H"], leaves["g"]
    target = CollapsedTarget(prior, None, x.abs().square(), H @ W, out.mixing_weight, g)
    target.log_density(leaves["z"]).sum().backward()
    for name, leaf in leaves.items():
        slope = (
            leaf.grad if name == "z" else leaf.grad * leaf
        )  # of the logarithm, for what is positive
        assert slope.abs().max() < 1e-3, name


def joint_with_gain(prior: Any, x: Tensor, z: Tensor, g: Tensor, noise: Tensor) -> Tensor:
    """log p(x, z, g) of A-VAE, each factor a distribution of torch's or Pyro's."""
    speech = g * prior.decoder(z).exp()
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(-1) + Gamma(3.0, 2.0).log_prob(g)
    return ComplexNormal(0, torch.log(speech + noise)).log_prob(x).sum(-1) + log_prior


def test_code_and_gain_are_at_the_mode_of_their_joint_density(small_prior: SmallPrior) -> None:
    """S17 with g ~ Gamma(3, 2): a search in g itself ends where Adam in log g does; with a Jacobian, elsewhere."""
    prior, x, noise = small_prior("a_vae"), complex_normal(7), torch.rand(7) + 0.1
    collapsed = CollapsedTarget(prior, None, x.abs().square()[None], noise[None], torch.ones(1))
    target = GainTarget(collapsed, shape=3.0, rate=2.0)
    z, g = torch.randn(2), torch.rand(())
    y = torch.cat([z, g.log()[None]])[None, None]
    torch.testing.assert_close(target.log_density(y)[0, 0], joint_with_gain(prior, x, z, g, noise))

    def found_by_search(jacobian: float) -> Tensor:
        @torch.no_grad()
        def minus(at: Any) -> float:
            z, g = torch.tensor(at[:2]), torch.tensor(at[2])
            return -(joint_with_gain(prior, x, z, g, noise) + jacobian * g.log()).item()

        bounds = [(-5, 5), (-5, 5), (1e-3, 50)]
        return torch.tensor(minimize(minus, [0.0, 0.0, 1.0], bounds=bounds, tol=1e-12).x)

    mode = mode_by_adam(target, torch.zeros(1, 1, 3))[0, 0]
    found = torch.cat([mode[:2], mode[2:].exp()])
    torch.testing.assert_close(found, found_by_search(0), rtol=1e-3, atol=1e-3)
    assert (found - found_by_search(1)).abs().max() > 0.05


def test_gpeem_climbs_the_joint_with_the_gain(small_prior: SmallPrior) -> None:
    """The objective, by distributions, where steps=0 keeps g at 1; a higher rate makes every gain lower."""
    prior, x = small_prior("a_vae"), complex_normal(6, 7)
    scheme = GPEEM(iterations=1, steps=0, noise=NoiseModel.paper(2), gain_shape=3.0, gain_rate=2.0)
    out, g = scheme(prior, x), torch.ones(())
    noise = out.activations @ out.dictionary
    expected = [joint_with_gain(prior, x[n], out.z[0, n], g, noise[n]) for n in range(6)]
    torch.testing.assert_close(out.objective[-1], torch.stack(expected).sum())

    scheme = replace(scheme, iterations=40, steps=10)
    low, high = (replace(scheme, gain_rate=rate)(prior, x) for rate in (0.5, 5.0))
    assert (high.gain < low.gain).all()
    assert isinstance(high.target, CollapsedTarget)  # p(z | x, g), which any kernel samples


@pytest.mark.parametrize("wrong", [{"gain_shape": 0.5}, {"gain_rate": 0.0}])
def test_a_gain_without_a_mode_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="give a shape of 1 or more"):
        GPEEM(**wrong)


@pytest.mark.parametrize("scheme", [PEEM, GPEEM])
def test_a_step_far_too_large_stops_with_its_cure(scheme: Any, small_prior: SmallPrior) -> None:
    """What was found so far is kept: the last codes that are finite."""
    with pytest.raises(
        Divergence, match=r"peem: .* in iteration 1: take a smaller learning_rate"
    ) as stop:
        scheme(learning_rate=1e200)(small_prior("a_vae"), complex_normal(6, 7))
    assert stop.value.partial.shape == (1, 6, 2)
    assert stop.value.partial.isfinite().all()
