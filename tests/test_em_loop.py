"""The one loop of all schemes: one generator, counts, what is held and what is given. Their steps: test_wiring.py."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_avse.inference import SCHEMES as KINDS
from pyro_avse.inference import em, run_chains
from pyro_avse.inference.em import Observation
from pyro_avse.inference.independence import Independence
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.heard import HeardThrough
from pyro_avse.models.nmf_noise import NoiseModel, log_prior

pytestmark = pytest.mark.usefixtures("float64")
COUNTS = {"warmup": 6, "draws": 3, "chains": 2}
FINAL = {"first_warmup": 10, "final_warmup": 9, "final_draws": 8}
SETTINGS: dict[str, dict[str, int]] = {
    "vem": COUNTS,
    "collapsed_vem": COUNTS,
    "mcem": COUNTS | FINAL,
    "ldem": COUNTS | FINAL,
    "peem": {"steps": 4},
    "gpeem": {"steps": 4},
    "importance": {"draws": 3, "final_draws": 8},
    "amortised_vem": {"draws": 3, "final_draws": 8, "steps": 2},
}
SCHEMES: dict[str, Any] = {
    name: KINDS[name](noise=NoiseModel.paper(4), iterations=3, **settings)
    for name, settings in SETTINGS.items()
}
every_scheme = pytest.mark.parametrize("name", sorted(SCHEMES))


def test_every_scheme_that_steps_is_here() -> None:
    """But `guided`, which is ldem without a guide, and `bnmf`, which draws the noise: both have tests of their own."""
    steps = {name for name, kind in KINDS.items() if issubclass(kind, em.EM)}
    assert SCHEMES.keys() == steps - {"guided", "bnmf"}


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_scheme
def test_all_steps_share_one_generator(
    name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """`scheme(...)` is its steps in a row, to the last bit; steps change nothing that they are given."""
    prior, seen = given("two_decoders")
    scheme, rng = SCHEMES[name], generator(2)
    state = scheme.init(seen, rng=rng)
    objective = []
    for _ in range(3):
        before = {k: v.clone() for k, v in vars(state).items() if isinstance(v, Tensor)}
        moved = scheme.step(seen, state, rng=rng)
        for key, value in before.items():
            assert (
                torch.equal(
                    value,
                    getattr(state, key),
                )
                or value.isnan().any()
            ), key
        state = moved
        objective.append(state.objective)
    out = scheme.finish(seen, state, rng=rng)
    whole = scheme(prior, seen.x, seen.lips, seed=2)
    for key in ("speech", "responsibilities", "dictionary", "activations", "mixing_weight", "z"):
        assert torch.equal(getattr(out, key), getattr(whole, key)), key
    assert torch.equal(torch.stack(objective), whole.objective)


@pytest.mark.parametrize(
    "name", ["vem", "collapsed_vem", "mcem", "ldem", "importance", "amortised_vem"]
)
def test_consecutive_e_steps_draw_other_numbers(
    name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """From one state with one generator: two steps differ; from the same point of the generator they do not."""
    _, seen = given("two_decoders")
    scheme, rng = SCHEMES[name], generator()
    state = scheme.init(seen, rng=rng)
    first, second = (scheme.step(seen, state, rng=rng) for _ in range(2))
    assert not torch.equal(first.dictionary, second.dictionary)
    same = [scheme.step(seen, state, rng=generator(9)) for _ in range(2)]
    assert torch.equal(same[0].dictionary, same[1].dictionary)


@pytest.mark.parametrize("name", ["vem", "collapsed_vem", "mcem", "ldem"])
def test_every_e_step_has_its_counts(
    name: str, given: Callable[[str], tuple[Any, Observation]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warm-up and draws of the first, the others and the last; step sizes and places are handed on."""
    prior, seen = given("two_decoders")
    asked: list[tuple[int, int, int]] = []

    def recorded(kernel: Any, target: Any, z: Tensor, **options: Any) -> Any:
        asked.append((len(z), options["warmup"], options["draws"]))
        return run_chains(kernel, target, z, **options)

    monkeypatch.setattr(em, "run_chains", recorded)
    SCHEMES[name](prior, seen.x, seen.lips)
    expected = [(2, 6, 3)] * 3
    if name in ("mcem", "ldem"):
        expected = [(2, 10, 3), (2, 6, 3), (2, 6, 3), (2, 9, 8)]
    assert asked == expected


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("vem", "vem"),
        ("collapsed_vem", "vem"),
        ("mcem", "mcem"),
        ("ldem", "mcem"),
        ("peem", "peem"),
    ],
)
def test_the_objective_counts_the_prior_of_the_noise(
    name: str,
    module: str,
    given: Callable[[str], tuple[Any, Observation]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is higher by 1000 where `log_prior` of the new H is."""
    _, seen = given("two_decoders")
    scheme = replace(SCHEMES[name], noise=NoiseModel(4, smoothness=2.0))
    start = scheme.init(seen, rng=generator())
    plain = scheme.step(seen, start, rng=generator(3))

    def higher(noise: NoiseModel, H: Tensor, *rest: Any, **more: Any) -> Tensor:
        assert torch.equal(H, plain.activations)
        return log_prior(noise, H, *rest, **more) + 1000

    monkeypatch.setattr(f"pyro_avse.inference.{module}.log_prior", higher)
    lifted = scheme.step(seen, start, rng=generator(3))
    torch.testing.assert_close(lifted.objective, plain.objective + 1000)


@pytest.mark.parametrize("name", ["vem", "collapsed_vem", "mcem", "ldem"])
def test_a_kernel_that_proposes_from_the_guide_has_one(
    name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """`independence` would refuse a target without a proposal."""
    prior, seen = given("two_decoders")
    out = replace(SCHEMES[name], kernel=Independence())(prior, seen.x, seen.lips)
    assert out.chains.acceptance_rate.max() > 0


def test_frames_without_a_picture_are_encoded_by_their_sound(
    given: Callable[[str], tuple[Any, Observation]],
) -> None:
    """All components of q are component 0's there, mean and scale, and their own elsewhere."""
    prior, seen = given("min_vae_v2")
    mask = torch.arange(5) < 3
    q = em.encode(replace(seen, lips_mask=mask), seen.power)
    plain = prior.encode(seen.power, seen.lips)
    for found, own in ((q.mean, plain.mean), (q.stddev, plain.stddev)):
        torch.testing.assert_close(found[:, :3], own[:, :3])
        torch.testing.assert_close(found[:, 3:], own[:1, 3:].expand(2, 2, 2))


def test_a_microphones_response_is_a_prior_heard_through_it(
    given: Callable[[str], tuple[Any, Observation]],
) -> None:
    """`CollapsedTarget.log_response` c is the prior whose log-variance has c added, value and slope."""
    prior, seen = given("two_decoders")
    c, z = torch.linspace(-2, 1, 7), torch.randn(3, 5, 2)
    noise, pi = torch.rand(5, 7) + 0.1, torch.tensor([0.4, 0.6])
    with_response = CollapsedTarget(prior, None, seen.power, noise, pi, log_response=c)
    through = CollapsedTarget(HeardThrough(prior, c), None, seen.power, noise, pi)
    for one, other in zip(with_response.value_and_grad(z), through.value_and_grad(z), strict=True):
        torch.testing.assert_close(one, other)
    flat = CollapsedTarget(prior, None, seen.power, noise, pi)
    assert not torch.allclose(with_response.log_density(z), flat.log_density(z))


@every_scheme
def test_held_weights_and_given_dictionaries_stay(
    name: str, given: Callable[[str], tuple[Any, Observation]]
) -> None:
    """pi where it is held; W's zeros, which no multiplicative update fills."""
    prior, seen = given("two_decoders")
    scheme = replace(SCHEMES[name], mixing_weight=(0.25, 0.75))
    W = torch.rand(4, 7) + 0.1
    W[0, 2:] = 1e-12
    out = scheme(prior, seen.x, seen.lips, dictionary=W)
    torch.testing.assert_close(out.mixing_weight, torch.tensor([0.25, 0.75]))
    assert out.dictionary[0, 2:].max() < 1e-6 < out.dictionary[1:].min()
