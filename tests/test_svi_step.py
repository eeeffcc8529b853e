"""One training step: what Pyro checks and when, and benchmarks/svi_step.py, whose two steps agree."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_avse.models import MINVAEv2
from pyro_avse.training.enumeration import check_elbo
from pyro_avse.training.frames import Frames
from pyro_avse.training.recipe import Recipe, Training
from pyro_avse.training.svi import Trainer

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "svi_step.py"
TINY = ["--frames", "40", "--batch", "16", "--rounds", "1"]


@pytest.fixture
def frames(
    random_power: Callable[..., Tensor], random_lips: Callable[..., Tensor], float64: None
) -> Frames:
    """12 of them, in float64."""
    return Frames(random_power(12, 7), random_lips(12))


@pytest.mark.parametrize("enabled", [True, False])
def test_pyro_checks_the_first_step_of_an_epoch(
    enabled: bool, small_prior: Callable[..., Any], frames: Frames
) -> None:
    """Later steps run without Pyro's and torch's checks, and whether they are on is afterwards as it was."""
    recipe = Recipe("min_vae_v2", training=Training(batch_size=5))
    run = Trainer(small_prior("min_vae_v2"), recipe, frames, frames)
    seen: list[bool] = []
    loss = run._loss

    def watched(*args: Any) -> tuple[Tensor, Tensor]:
        seen.append(pyro.infer.is_validation_enabled() and dist.is_validation_enabled())
        return loss(*args)

    run._loss = watched  # type: ignore[method-assign]
    with pyro.validation_enabled(enabled):
        run.run_epoch()
        assert pyro.infer.is_validation_enabled() is dist.is_validation_enabled() is enabled
    assert seen == [enabled, False, False]


class OneDrawTooMany(MINVAEv2):
    """A model with a latent that its guide never draws."""

    def model(self, power: Tensor, lips: Tensor | None = None, **options: Any) -> None:
        pyro.sample("gain", dist.Normal(power.new_zeros(()), 1.0))
        super().model(power, lips, **options)


def test_a_model_that_its_guide_does_not_fit_is_told(frames: Frames) -> None:
    """Pyro's check of the pair runs once, when the trainer is made: here its warning, an error in other tests."""
    odd = OneDrawTooMany(num_freqs=7, latent_dim=2, hidden=6, features=5)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"Found vars in model but not guide: \{'gain'\}"):
        check_elbo(odd, None, frames)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_training_step_is_the_one_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """A step through Pyro's program has the loss, r and gradients of plain torch's, and both are timed."""
    runpy.run_path(str(SCRIPT))["main"](TINY)
    lines = capsys.readouterr().out.splitlines()
    row = json.loads(lines[-1])
    assert row.keys() == {"pyro_ms", "torch_ms", "ratio"}
    assert row["ratio"] == pytest.approx(row["pyro_ms"] / row["torch_ms"])  # of a single round
    assert "extrapolated" in lines[-2]


def test_steps_that_differ_are_not_timed() -> None:
    """A loss by hand that forgets a thousandth of the bound is noticed."""
    script = runpy.run_path(str(SCRIPT))
    loss = script["ByHand"].loss

    def forgetful(*args: Any) -> tuple[Tensor, Tensor]:
        value, r = loss(*args)
        return 0.999 * value, r

    script["ByHand"].loss = forgetful
    with pytest.raises(AssertionError, match=r"the two steps differ by 1\.0e-03"):
        script["main"](TINY)
