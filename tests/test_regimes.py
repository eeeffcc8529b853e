"""How models with one component and more than one encoder are trained: AV-VAE by S15, MIN-VAE v3 in turns."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Exponential, Normal, kl_divergence

from pyro_avse.training.enumeration import check_elbo
from pyro_avse.training.frames import Frames
from pyro_avse.training.recipe import Recipe, Training
from pyro_avse.training.svi import Trainer, seeded, validate
from pyro_avse.typing import InputError

pytestmark = pytest.mark.usefixtures("float64")
STEPS = Training(epochs=4, batch_size=5, learning_rate=1e-2)


@pytest.fixture
def trainer(
    small_prior: Callable[..., Any],
    random_power: Callable[..., Tensor],
    random_lips: Callable[..., Tensor],
) -> Callable[..., Trainer]:
    """trainer("av_vae"): a small model in float64 with 12 frames to train on."""

    def build(model: str, elbo: ELBO | None = None, **attributes: Any) -> Trainer:
        prior = small_prior(model)
        for name, value in attributes.items():
            setattr(prior, name, value)
        data = Frames(random_power(12, 7), random_lips(12))
        return Trainer(prior, Recipe(model, training=STEPS), data, data, elbo=elbo)

    return build


def state(prior: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in prior.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The networks of which any tensor moved."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("weight", [0.3, 0.0, 1.0])
def test_av_vae_is_trained_by_its_weighted_objective(
    weight: float, trainer: Callable[..., Trainer]
) -> None:
    """S15 with each part's own draw: alpha log p(s|z_p, v) + (1 - alpha) (log p(s|z_q, v) - divergence of q from p)."""
    run = trainer("av_vae", prior_weight=weight)
    prior, power, lips = run.prior, run.train.power, run.train.lips
    heard = power + 0.5
    with seeded(1):
        loss, r = run._loss(power, lips, heard, torch.arange(12))
    assert torch.equal(r, torch.ones(1, 12))
    with seeded(1):
        mixed = 0 < weight < 1
        eps = torch.normal(torch.zeros(2, 12, 2)[: 2 if mixed else 1], 1.0).expand(2, 12, 2)
    v = prior.embedding(lips)
    p, q = (Normal(d.mean, d.stddev) for d in (prior.prior(v), prior.encoder(heard, v)))

    def log_likelihood(z: Tensor) -> Tensor:
        speech = Exponential(torch.exp(-prior.decoder(z, v))).log_prob(power)
        return speech.sum() - 12 * 7 * torch.tensor(torch.pi).log()

    z_p, z_q = p.mean + p.stddev * eps[0], q.mean + q.stddev * eps[1]
    divergence = (q.log_prob(z_q) - p.log_prob(z_q)) if mixed else kl_divergence(q, p)
    bound = log_likelihood(z_q) - divergence.sum()
    torch.testing.assert_close(loss, -(weight * log_likelihood(z_p) + (1 - weight) * bound))


@pytest.mark.parametrize("weight", [0.3, 0.0])
@pytest.mark.parametrize("given", [False, True])
def test_the_lips_are_embedded_once_a_step(
    given: bool, weight: float, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients are those of model and guide that each look at the pictures; the embedding learns."""
    usual = TraceEnum_ELBO(max_plate_nesting=1) if weight else TraceMeanField_ELBO()
    run = trainer("av_vae", elbo=usual if given else None, prior_weight=weight)
    prior, power, lips = run.prior, run.train.power, run.train.lips
    seen: list[Tensor] = []
    prior.embedding.features.register_forward_hook(lambda *call: seen.append(call[-1]))
    found = []
    for once in (True, False):
        prior.zero_grad()
        with seeded(1):
            if once:
                loss, _ = run._loss(power, lips, power + 0.5, torch.arange(12))
            else:
                pair, heard = (prior.model, prior.guide), {"encoder_power": power + 0.5}
                loss = usual.differentiable_loss(*pair, power, lips, **heard)
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in prior.named_parameters()}))
        assert len(seen) == (1 if once else 3)
    torch.testing.assert_close(*found)
    assert all(p.grad.abs().max() > 0 for p in prior.embedding.parameters())


def test_av_vae_has_no_mixing_weight_to_learn(trainer: Callable[..., Trainer]) -> None:
    """pi and r stay 1, and the validation bound is that of q(z|s, v) whatever share the prior has of the loss."""
    run = trainer("av_vae", prior_weight=0.3)
    row = run.run_epoch()
    assert (row["mixing_weight"], row["valid_responsibility"]) == ([1.0], [1.0])
    bounds = []
    for weight in (0.3, 0.9, 0.0):
        run.prior.prior_weight = weight
        bounds.append(validate(run.prior, run.valid, seed=0))
    assert bounds[0] == bounds[1] == bounds[2]
    assert bounds[0]["valid_elbo"] == row["valid_elbo"]


def test_av_vae_needs_an_elbo_that_enumerates(trainer: Callable[..., Trainer]) -> None:
    """One component or not: where the guide has alpha, Trace_ELBO is refused; where it has none it is welcome."""
    run = trainer("av_vae", prior_weight=0.3)
    with pytest.raises(InputError, match="Trace_ELBO does not enumerate alpha"):
        check_elbo(run.prior, Trace_ELBO(), run.train)
    assert check_elbo(run.prior, TraceEnum_ELBO(max_plate_nesting=1), run.train)
    run.prior.prior_weight = 0.0
    assert not check_elbo(run.prior, Trace_ELBO(), run.train)


def test_encoders_take_turns(trainer: Callable[..., Trainer]) -> None:
    """Sec. IV-A: each epoch moves one encoder, the decoder and the prior; the other encoder not by a bit.

    The broken twin leaves gradients of 0 in place, and Adam's momentum moves the encoder that rests.
    """

    def moved(run: Trainer) -> list[set[str]]:
        networks = []
        for _ in range(4):
            before = state(run.prior)
            run.run_epoch()
            networks.append(changed(before, state(run.prior)))
        return networks

    audio, visual = ({"decoder", "prior", f"{kind}_encoder"} for kind in ("audio", "visual"))
    assert moved(trainer("min_vae_v3")) == [audio, visual, audio, visual]
    run = trainer("min_vae_v3")
    keep = run.optimiser.zero_grad
    run.optimiser.zero_grad = lambda set_to_none: keep(set_to_none=False)  # type: ignore[method-assign]
    assert moved(run) == [audio, audio | visual, audio | visual, audio | visual]


def test_the_turn_goes_by_the_number_of_the_epoch(trainer: Callable[..., Trainer]) -> None:
    """A resumed run's next epoch is the turn it would have been, wherever validation left `active_encoder`."""
    run = trainer("min_vae_v3")
    run.run_epoch()
    resumed = trainer("min_vae_v3")
    resumed.train, resumed.valid = run.train, run.valid
    tensors, header = deepcopy(run.snapshot({}))
    resumed.restore(tensors, header, path=Path("checkpoint"))
    for each in (run, resumed):
        each.prior.active_encoder = "nobody's"
    assert run.run_epoch() == resumed.run_epoch()
    assert changed(state(run.prior), state(resumed.prior)) == set()


def test_validation_of_encoders_in_turn_is_their_mean(trainer: Callable[..., Trainer]) -> None:
    """So that the best epoch is one of both, not of the encoder whose turn it was."""
    run = trainer("min_vae_v3")
    found = validate(run.prior, run.valid, seed=0)
    alone = []
    for encoder in ("audio_encoder", "visual_encoder"):
        run.prior.alternate = (encoder,)
        alone.append(validate(run.prior, run.valid, seed=0))
    for key in ("valid_elbo", "valid_reconstruction", "valid_kl"):
        assert alone[0][key] != alone[1][key]
        assert found[key] == pytest.approx((alone[0][key] + alone[1][key]) / 2)
    assert found["valid_responsibility"] == [1.0]


@pytest.mark.parametrize(("model", "network"), [("a_vae", "audio"), ("v_vae", "visual")])
def test_a_learned_prior_learns(
    model: str, network: str, small_prior: Callable[..., Any], trainer: Callable[..., Trainer]
) -> None:
    """(10): with `learned_prior` its mean and variance move with the rest."""
    data = trainer(model).train
    prior = small_prior(model, learned_prior=True)
    before = state(prior)
    Trainer(prior, Recipe(model, training=STEPS), data, data).run_epoch()
    assert changed(before, state(prior)) == {f"{network}_prior", f"{network}_encoder", "decoder"}
