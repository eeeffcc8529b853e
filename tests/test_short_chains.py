"""Many short chains, importance weights, and the sentence that says what is wrong."""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pyro_avse.errors import InputError
from pyro_avse.inference import HMC, Importance, run_chains
from pyro_avse.lab.advice import advice, advice_on_weights
from pyro_avse.lab.diagnostics import Diagnosis, diagnose, starting_points, to_inference_data
from pyro_avse.lab.short_chains import nested_limit, nested_rhat, pareto_k
from pyro_avse.models.nmf_noise import NoiseModel

pytestmark = pytest.mark.usefixtures("float64")


def langevin(time: float, superchains: int, each: int, spread: float, codes: int = 1) -> np.ndarray:
    """The state at a time of Langevin's diffusion on N(0, 1), exactly: x_t ~ N(x_0 e^-t, 1 - e^-2t), starts of variance
    spread^2, one a superchain. (chain, draw = 1, frame = 1, latent)"""
    rng = np.random.default_rng(0)
    start = spread * rng.standard_normal((superchains, 1, codes))
    noise = rng.standard_normal((superchains, each, codes))
    x = start * math.exp(-time) + math.sqrt(1 - math.exp(-2 * time)) * noise
    return x.reshape(superchains * each, 1, 1, codes)


@pytest.mark.parametrize("time", [0.2, 1.0, 3.0])
def test_nested_rhat_of_langevins_diffusion(time: float) -> None:
    """[Margossian et al. 2024]'s example, where it is known: its square is 1 + 1/M + s^2 / (e^2t - 1). Over 4 000
    superchains B has an error of 2 %."""
    found = nested_rhat(langevin(time, 4_000, 10, 2.0), 4_000)[0]
    assert found**2 - 1 == pytest.approx(1 / 10 + 4 / (math.exp(2 * time) - 1), rel=0.1)


def test_nested_rhat_is_its_definition() -> None:
    """Loops over superchains, chains and codes, of the worst code; the limit is what chains at rest seldom exceed."""
    rng = np.random.default_rng(1)
    draws = rng.standard_normal((6, 5, 2, 3)) + rng.standard_normal((6, 1, 1, 3))
    found = nested_rhat(draws, 3)
    for n in range(2):
        worst = 0.0
        for code in range(3):
            x = draws[:, :, n, code].reshape(3, 2, 5)
            B = np.var([x[k].mean() for k in range(3)], ddof=1)
            between = [np.var([x[k, m].mean() for m in range(2)], ddof=1) for k in range(3)]
            within = [np.mean([np.var(x[k, m], ddof=1) for m in range(2)]) for k in range(3)]
            worst = max(worst, math.sqrt(1 + B / np.mean(np.add(between, within))))
        assert found[n] == pytest.approx(worst)
    at_rest = rng.standard_normal((8 * 8, 1, 3_000, 4))
    over = (nested_rhat(at_rest, 8) > nested_limit(64, 8, 4)).mean()
    assert over < 4e-3  # of 3 000 frames 3 are expected, more than 12 in 5e-5 of cases
    begun_apart = at_rest + np.repeat(rng.standard_normal((8, 1, 3_000, 4)), 8, 0)
    assert (nested_rhat(begun_apart, 8) > nested_limit(64, 8, 4)).mean() > 0.9
    assert np.isinf(nested_rhat(np.repeat(at_rest[:1], 4, 0), 2)).all()


@pytest.mark.parametrize(("chains", "superchains"), [(6, 1), (6, 4), (3, 3)])
def test_superchains_that_do_not_come_out_are_refused(chains: int, superchains: int) -> None:
    with pytest.raises(InputError, match=f"{chains} chains in {superchains} superchains: give two"):
        nested_rhat(np.zeros((chains, 2, 1, 1)), superchains)


def test_many_short_chains_of_a_posterior(given: Any) -> None:
    """Two draws of 16 chains, begun at four points: enough for a nested R-hat, none for an ESS. Chains that have hardly
    moved do not agree, chains that ran do."""
    prior, seen = given("min_vae_v2")
    found = Importance(iterations=1, draws=4, final_draws=4, noise=NoiseModel(2))(
        prior, seen.x, seen.lips
    )
    rng = torch.Generator().manual_seed(0)
    z = starting_points(found, 16, superchains=4, rng=rng)
    assert torch.equal(z[:4], z[:1].expand(4, *z.shape[1:]))
    assert not torch.equal(z[3], z[4])

    def diagnosed(steps: int, size: float) -> Diagnosis:
        run = run_chains(HMC(step_size=size), found.target, z, draws=2, warmup=steps)
        return diagnose(to_inference_data(run), superchains=4)

    ran, hardly = diagnosed(60, 0.3), diagnosed(0, 1e-3)
    assert (hardly.rhat > hardly.rhat_max).all()
    assert (ran.rhat < ran.rhat_max).all()
    assert not ran.failures()
    assert np.isnan(ran.ess_bulk).all()
    assert "chains that began apart still are" in advice(hardly, 2)


def test_k_hat_is_the_shape_of_the_largest_weights() -> None:
    """Of Pareto weights of shape 1/k, k: a tail of 0.3 is under the threshold, of 1.2 far above; too few have none."""
    rng = np.random.default_rng(2)
    for k in (0.3, 1.2):
        found = pareto_k(np.log(rng.pareto(1 / k, (4_000, 5)) + 1))
        assert found.mean() == pytest.approx(k, abs=0.15)
    with pytest.raises(InputError, match=r"8 draws have no k-hat: take 25 or more \(final_draws\)"):
        pareto_k(np.zeros((8, 2)))


def test_importance_keeps_its_weights(given: Any) -> None:
    prior, seen = given("two_decoders")
    found = Importance(iterations=1, draws=4, final_draws=30, noise=NoiseModel(2))(
        prior, seen.x, seen.lips
    )
    w = found.log_weights.exp()
    torch.testing.assert_close(w.sum(0), torch.ones(5))
    torch.testing.assert_close(w.square().sum(0).reciprocal(), found.effective_sample_size)
    assert np.isfinite(pareto_k(found.log_weights.numpy())).all()


FINE = Diagnosis(
    rhat=np.full(10, 1.002),
    ess_bulk=np.full(10, 800.0),
    ess_tail=np.full(10, 700.0),
    acceptance=np.full(10, 0.7),
    divergences=np.zeros(10, int),
    chains=4,
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "In all 10 frames chains agree and draws suffice"),
        ({"rhat": np.full(10, np.inf)}, "In 10 of 10 frames no chain ever moved"),
        (
            {"rhat": np.full(10, 1.4), "ess_bulk": np.full(10, 9.0)},
            "In 10 of 10 frames chains that began apart",
        ),
        (
            {"ess_bulk": np.arange(40.0, 440.0, 40.0)},
            "In 9 of 10 frames chains agree, but .* take about 10000 draws",
        ),
        ({"acceptance": np.full(10, 0.01)}, "In 10 of 10 frames nearly every step was rejected"),
        ({"divergences": np.arange(10) // 9}, "In 1 of 10 frames a trajectory flew off"),
        ({"rhat": np.full(10, np.nan), "chains": 1}, "In 10 of 10 frames one chain has no other"),
    ],
)
def test_one_sentence_says_what_is_wrong(changes: dict[str, Any], sentence: str) -> None:
    said = advice(replace(FINE, **changes), 1_000)
    assert said.endswith(".")
    assert "\n" not in said
    assert re.match(sentence, said), said


def test_one_sentence_on_weights() -> None:
    fine, poor = np.full(4, 0.4), np.array([0.4, 0.9, np.inf, 0.1])
    assert advice_on_weights(poor, np.full(4, 500.0)).startswith("In 2 of 4 frames a few draws")
    assert "worth only 12 in the worst one" in advice_on_weights(fine, np.full(4, 12.0))
    assert advice_on_weights(fine, np.full(4, 500.0)).endswith("can be trusted.")
