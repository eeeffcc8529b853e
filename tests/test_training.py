"""Training: the loss is minus a bound on log p(s), r(alpha) is a constant of it, and steps along it raise it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import Exponential, Normal

from pyro_avse.models import MINVAEv2
from pyro_avse.models.mixture import (
    component_negative_elbo,
    mixture_free_energy,
    update_responsibilities,
)
from pyro_avse.training.enumeration import check_elbo
from pyro_avse.training.frames import Frames
from pyro_avse.training.recipe import Data, Recipe, Training
from pyro_avse.training.stages import train
from pyro_avse.training.svi import Trainer, enumerated_negative_elbo, seeded
from pyro_avse.typing import InputError
from pyro_avse.weights.checkpoint import load_prior

MIXTURE = "min_vae_v2"
STEPS = Training(epochs=4, batch_size=64, learning_rate=1e-2)


def tiny_recipe(model: str, training: Training = STEPS, **rest: Any) -> Recipe:
    sizes = {"hidden": 8, "latent_dim": 3, **({} if model == "a_vae" else {"features": 8})}
    return Recipe(model, options=sizes, training=training, **rest)


@pytest.fixture
def trainer(
    small_prior: Callable[..., Any],
    random_power: Callable[..., Tensor],
    random_lips: Callable[..., Tensor],
    float64: None,
) -> Callable[..., Trainer]:
    """trainer(responsibilities=..., elbo=...): a small MIN-VAE in float64 with 12 frames to train on."""

    def build(
        responsibilities: Any = "step",
        elbo: Any = None,
        frames: int = 12,
        noisy_fraction: float = 0.0,
    ) -> Trainer:
        data = Frames(random_power(frames, 7), random_lips(frames))
        settings = replace(STEPS, batch_size=5, responsibilities=responsibilities)
        recipe = Recipe(MIXTURE, data=Data(noisy_fraction=noisy_fraction), training=settings)
        return Trainer(small_prior(MIXTURE), recipe, data, data, elbo=elbo)

    return build


def gradient(loss: Tensor, prior: nn.Module) -> dict[str, Tensor]:
    prior.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in prior.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("model", "responsibilities"),
    [("a_vae", "step"), ("v_vae", "step"), (MIXTURE, "step"), (MIXTURE, "epoch")],
)
def test_train_raises_the_bound(
    model: str, responsibilities: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    """(18): maximising the bound raises it on held-out frames too, from first to last, but for chance."""
    recipe = tiny_recipe(model, replace(STEPS, responsibilities=responsibilities))
    rows: list[dict[str, Any]] = []
    weights = train(recipe, [tiny_corpus], tmp_path / "run", progress=rows.append)
    elbo = [row["valid_elbo"] for row in rows]
    assert elbo[-1] == max(elbo) > elbo[0] + 15
    assert elbo[0] == min(elbo)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    for row in rows:
        assert row["valid_elbo"] == pytest.approx(row["valid_reconstruction"] - row["valid_kl"])
        assert sum(row["valid_responsibility"]) == pytest.approx(1)
        assert sum(row["mixing_weight"]) == pytest.approx(1)
    prior, stft = load_prior(weights)
    assert (stft.hop, prior.latent_dim) == (533, 3)
    torch.testing.assert_close(prior.mixing_weight.tolist(), rows[-1]["mixing_weight"])


@pytest.mark.usefixtures("float64")
def test_enumerated_negative_elbo_is_the_log_ratio_at_its_draws(
    small_prior: Callable[..., Any],
    random_power: Callable[..., Tensor],
    random_lips: Callable[..., Tensor],
) -> None:
    """J_k = log q(z_k) - log p(s|z_k) - log p(z_k|k), term by term with torch's own distributions."""
    prior, power, lips = small_prior(MIXTURE), random_power(4, 7), random_lips(4)
    torch.manual_seed(3)
    J = enumerated_negative_elbo(prior, power, lips)
    torch.manual_seed(3)
    eps = torch.normal(torch.zeros(2, 4, 2), torch.ones(2, 4, 2))
    encoders = (prior.audio_encoder(power), prior.visual_encoder(lips))
    for k, p in enumerate((prior.audio_prior, prior.visual_prior)):
        q = Normal(encoders[k].mean, encoders[k].variance.sqrt())
        z = q.mean + q.stddev * eps[k]
        variance = prior.decoder(z).exp()
        log_s = Exponential(1 / variance).log_prob(power).sum(-1) - 7 * math.log(math.pi)
        log_z = Normal(p.mean, torch.exp(p.log_variance / 2)).log_prob(z).sum(-1)
        torch.testing.assert_close(J[k], q.log_prob(z).sum(-1) - log_s - log_z)


def test_step_loss_is_minus_logsumexp(trainer: Callable[..., Trainer]) -> None:
    """At r of (22) from the same draws, the free energy (19) is -logsumexp_k(log pi_k - J_k)."""
    run = trainer()
    power, lips = run.train.power, run.train.lips
    with seeded(1):
        loss, r = run._loss(power, lips, power, torch.arange(12))
    with seeded(1):
        J = enumerated_negative_elbo(run.prior, power, lips)
    pi = run.prior.mixing_weight
    expected = update_responsibilities(J, pi)
    torch.testing.assert_close(r, expected.detach())
    torch.testing.assert_close(loss, mixture_free_energy(expected, J, pi).sum())


def test_step_gradient_is_that_of_the_papers_loss(trainer: Callable[..., Trainer]) -> None:
    """The gradient is that of (23), sum_k r_k J_k with pi_n from (22) a constant; with r from elsewhere it is not."""
    run = trainer()
    power, lips = run.train.power, run.train.lips
    with seeded(1):
        found = gradient(run._loss(power, lips, power, torch.arange(12))[0], run.prior)

    def papers(*, fresh: bool) -> dict[str, Tensor]:
        with seeded(1):
            J = enumerated_negative_elbo(run.prior, power, lips)
        r = update_responsibilities(J.detach(), run.prior.mixing_weight)
        r = r if fresh else torch.full_like(r, 0.5)
        return gradient((r * J).sum(), run.prior)

    torch.testing.assert_close(found, papers(fresh=True))
    stale = papers(fresh=False)
    assert any(not torch.allclose(found[name], stale[name]) for name in found)
    assert found.keys() == dict(run.prior.named_parameters()).keys()


class FittedEncoders(MINVAEv2):
    """MIN-VAE whose two encoders are one free Gaussian, the same for all frames."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.free = nn.Parameter(torch.zeros(2, 1))

    def encode(self, power: Tensor, lips: Tensor | None) -> dist.Independent:
        shape = (2, len(power), 1)
        return dist.Normal(self.free[0].expand(shape), self.free[1].exp().expand(shape)).to_event(1)


@pytest.mark.usefixtures("float64")
def test_step_loss_is_a_bound_on_the_evidence() -> None:
    """E log sum_k pi_k exp(-J_k) <= log p(s), by quadrature over a one-dimensional z; with J of (21) it is not.

    (21) takes the divergence in closed form, and its draws' noise in exp(-J) is then no estimate of p(s). 20 000 draws;
    a valid bound fails here once in 1e5 at most (4.3 standard errors).
    """
    prior = FittedEncoders(num_freqs=20, latent_dim=1, hidden=4, features=2)
    with torch.no_grad():
        for parameter in prior.decoder.parameters():
            parameter.copy_(torch.randn_like(parameter))
        prior.mixing_weight.copy_(torch.tensor([0.5, 0.5]))
        power = prior.decoder(torch.tensor([0.4])).exp() * torch.empty(1, 20).exponential_()
    optimiser = torch.optim.Adam([prior.free], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        enumerated_negative_elbo(prior, power.expand(64, 20), None).mean().backward()
        optimiser.step()

    z = torch.linspace(-10, 10, 20_001)[:, None]
    with torch.no_grad():
        log_s = -(prior.decoder(z) + power * torch.exp(-prior.decoder(z)) + math.log(math.pi)).sum(
            -1
        )
        log_joint = log_s + Normal(0.0, 1.0).log_prob(z[:, 0])  # both priors still are N(0, 1)
        evidence = torch.logsumexp(log_joint, 0) + math.log(1e-3)

        def excess(J: Tensor) -> float:
            """Standard errors by which the mean bound lies above the evidence."""
            bound = torch.logsumexp(math.log(0.5) - J, 0)
            return float((bound.mean() - evidence) / bound.std() * math.sqrt(len(bound)))

        many = power.expand(20_000, 20)
        assert excess(enumerated_negative_elbo(prior, many, None)) < 4.3
        assert excess(component_negative_elbo(prior, many, None)) > 4.3


def test_epoch_loss_is_the_free_energy_at_the_table(trainer: Callable[..., Trainer]) -> None:
    """TraceEnum_ELBO with responsibilities= is (19) with r at that table and J at its draws; no gradient reaches r."""
    run = trainer()
    power, lips = run.train.power, run.train.lips
    table = torch.softmax(torch.randn(2, 12), 0).requires_grad_()
    with seeded(1):
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
            run.prior.model, run.prior.guide, power, lips, responsibilities=table
        )
    with seeded(1):
        J = enumerated_negative_elbo(run.prior, power, lips)
    free = mixture_free_energy(table.detach(), J, run.prior.mixing_weight).sum()
    torch.testing.assert_close(loss, free)
    torch.testing.assert_close(gradient(loss, run.prior), gradient(free, run.prior))
    assert table.grad is None


@pytest.mark.parametrize("responsibilities", ["step", "epoch"])
def test_responsibilities_are_constants(
    responsibilities: str, trainer: Callable[..., Trainer]
) -> None:
    """r(alpha_n) has no gradient, and neither have pi and the table."""
    run = trainer(responsibilities)
    _, r = run._loss(*run._batch(torch.arange(12)), torch.arange(12))
    assert not r.requires_grad
    run.run_epoch()
    assert not run.prior.mixing_weight.requires_grad
    assert run.table is None or not run.table.requires_grad


def test_the_table_is_refreshed_after_each_epoch(trainer: Callable[..., Trainer]) -> None:
    """In `epoch` mode r is even, then (22) of (21) at the epoch's last weights; pi is its mean (25)."""
    run = trainer("epoch")
    seen: list[Tensor] = []
    refresh = run._refresh_table

    def watched() -> None:
        state = torch.get_rng_state()
        refresh()
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        with torch.no_grad():
            J = component_negative_elbo(run.prior, run.train.power, run.train.lips)
        seen.append(update_responsibilities(J, run.prior.mixing_weight))
        torch.set_rng_state(after)

    run._refresh_table = watched  # type: ignore[method-assign]
    assert run.table is not None
    assert (run.table == 0.5).all()
    for _ in range(2):
        row = run.run_epoch()
        torch.testing.assert_close(run.table, seen[-1])
        torch.testing.assert_close(run.prior.mixing_weight, run.table.mean(-1))
        assert row["mixing_weight"] == run.prior.mixing_weight.tolist()
    assert not torch.allclose(seen[0], seen[1])


def test_pi_is_the_mean_responsibility_of_the_steps(trainer: Callable[..., Trainer]) -> None:
    """In `step` mode pi after an epoch is the mean over all frames of the r that its steps used (25)."""
    run = trainer("step")
    used: list[Tensor] = []
    loss = run._loss

    def watched(*args: Any) -> tuple[Tensor, Tensor]:
        result = loss(*args)
        used.append(result[1])
        return result

    run._loss = watched  # type: ignore[method-assign]
    run.run_epoch()
    assert [r.shape[-1] for r in used] == [5, 5, 2]
    torch.testing.assert_close(run.prior.mixing_weight, torch.cat(used, -1).mean(-1))


class ForgottenInfer(MINVAEv2):
    """A guide that samples alpha where it should be enumerated: Pyro would only warn."""

    def guide(self, power: Tensor, lips: Tensor | None = None, **options: Any) -> None:
        with pyro.plate("frame", len(power)):
            alpha = pyro.sample("alpha", dist.Categorical(self.mixing_weight))
            q = self.encode(power, lips)
            chosen = torch.where(alpha[:, None] == 0, q.mean[0], q.mean[1])
            pyro.sample("z", dist.Normal(chosen, 1.0).to_event(1))


def test_an_elbo_that_does_not_enumerate_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    """Trace_ELBO would draw alpha instead of summing over it; on A-VAE, which has none, it is welcome."""
    with pytest.raises(
        InputError, match="Trace_ELBO does not enumerate alpha: take TraceEnum_ELBO"
    ):
        train(tiny_recipe(MIXTURE), [tiny_corpus], tmp_path / "run", elbo=Trace_ELBO())
    assert not list((tmp_path / "run").glob("*"))
    once = replace(STEPS, epochs=1)
    train(tiny_recipe("a_vae", once), [tiny_corpus], tmp_path / "a", elbo=Trace_ELBO())


def test_a_guide_that_forgets_to_enumerate_is_refused(trainer: Callable[..., Trainer]) -> None:
    """A guide without infer={"enumerate": "parallel"} is refused by the site's name, without touching the RNG."""
    run = trainer()
    forgetful = ForgottenInfer(num_freqs=7, latent_dim=2, hidden=6, features=5)
    state = torch.get_rng_state()
    with pytest.raises(InputError, match="site 'alpha' is not enumerated"):
        check_elbo(forgetful, None, run.train)
    for elbo in (None, TraceEnum_ELBO(max_plate_nesting=1)):
        check_elbo(run.prior, elbo, run.train)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_enumerating_elbo_trains(tiny_corpus: Path, tmp_path: Path) -> None:
    """`elbo=TraceEnum_ELBO(...)` is used instead of the recipe's own loss, and raises the bound."""
    rows: list[dict[str, Any]] = []
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    train(tiny_recipe(MIXTURE), [tiny_corpus], tmp_path / "run", elbo=elbo, progress=rows.append)
    assert rows[-1]["valid_elbo"] > rows[0]["valid_elbo"] + 5


def test_the_cosine_schedule_falls_to_two_per_cent(trainer: Callable[..., Trainer]) -> None:
    """The learning rate starts at the recipe's, has fallen by half midway, and would end at 2 %."""
    run = trainer()
    run.recipe = replace(run.recipe, training=replace(STEPS, schedule="cosine", learning_rate=1.0))
    rates = [run._learning_rate(epoch) for epoch in range(5)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[2] == pytest.approx(0.51)
    assert rates[4] == pytest.approx(0.02)


def test_level_range_makes_frames_quieter_only(trainer: Callable[..., Trainer]) -> None:
    """`level_range_db` scales every frame by 0 to -12 dB, each its own."""
    run = trainer()
    run.recipe = replace(run.recipe, data=replace(run.recipe.data, level_range_db=12.0))
    scale = run._batch(torch.arange(12))[0] / run.train.power
    torch.testing.assert_close(scale, scale[:, :1].expand(12, 7))
    assert ((scale >= 10**-1.2) & (scale <= 1)).all()
    assert len(scale[:, 0].unique()) == 12


def test_early_stopping_keeps_the_best_epoch(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ends `patience` epochs after the best, whose weights are the ones kept."""
    run = trainer()
    run.recipe = replace(run.recipe, training=replace(STEPS, epochs=100, patience=3))
    bounds = iter([1.0, 4.0, 3.0, 3.5, 2.0, 9.0])
    monkeypatch.setattr(
        "pyro_avse.training.svi.validate",
        lambda prior, frames, seed, **options: {"valid_elbo": next(bounds)},
    )
    states = []
    while not run.finished:
        run.run_epoch()
        states.append({name: t.clone() for name, t in run.prior.state_dict().items()})
    assert len(states) == 5
    torch.testing.assert_close(run.best, states[1], rtol=0, atol=0)
    assert not torch.equal(run.best["decoder.hidden.weight"], states[4]["decoder.hidden.weight"])


def test_a_run_ends_after_its_epochs(trainer: Callable[..., Trainer]) -> None:
    """All epochs run while the bound improves."""
    run = trainer()
    while not run.finished:
        run.run_epoch()
    assert len(run.history) == STEPS.epochs


@pytest.mark.parametrize("quieter", [0.0, 12.0])
def test_noise_is_heard_by_the_audio_encoder_alone(
    quieter: float, trainer: Callable[..., Trainer]
) -> None:
    """Noise injection: a share of the frames, uniform on the power, 0 dB over all frames; the target stays clean.

    A frame that `level_range_db` makes quieter has its noise made quieter with it.
    """
    run = trainer(frames=3000, noisy_fraction=1 / 3)
    run.recipe = replace(run.recipe, data=replace(run.recipe.data, level_range_db=quieter))
    target, _, heard = run._batch(torch.arange(3000))
    power, scale = run.train.power, (target / run.train.power)[:, :1]
    torch.testing.assert_close(target, scale * power, rtol=1e-12 if quieter else 0, atol=0)
    noise = (heard - target) / scale
    hit = (noise != 0).any(1)
    assert 0.30 < hit.float().mean() < 0.37  # 1/3 within four standard deviations
    assert torch.equal(hit, run.noisy)
    mean = float(noise[hit].mean() / power.mean())
    assert abs(mean - 1) < 0.02  # 0 dB; 7000 draws, uniform on [0, 2]
    assert 1.9 < float(noise.max() / power.mean()) < 2 + 1e-9
    again = trainer(frames=3000, noisy_fraction=1 / 3)
    assert torch.equal(again.noisy, run.noisy)  # the same frames in every epoch and after a resume


def test_a_diverging_run_stops_with_the_cure(trainer: Callable[..., Trainer]) -> None:
    """A bound that is not finite ends the run in one line, and the epoch is not recorded."""
    run = trainer()
    with torch.no_grad():
        run.prior.decoder.log_variance.bias.fill_(torch.nan)
    with pytest.raises(InputError, match=r"diverged in epoch 0 .*: lower learning_rate"):
        run.run_epoch()
    assert run.history == []
