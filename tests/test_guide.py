"""The guide that hears noise: what it is as a program, what it learns from, and what schemes make of it. (14), (31)"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import Independent, Normal
from torch import Tensor

from pyro_avse.inference.guess import guessed_gain, own_log_variance
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models import MODELS
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.stft import STFT
from pyro_avse.training import amortise
from pyro_avse.training.amortise import Amortiser, hearing_loss, sleep_loss, wake_loss
from pyro_avse.training.pairs import Pairs, draw_pairs, frames_level, load_speech
from pyro_avse.training.recipe import GuideRecipe, GuideTraining, load_recipe
from pyro_avse.training.stages import train
from pyro_avse.typing import Guess, InputError
from pyro_avse.weights.checkpoint import load_prior, save_prior

TAUGHT = ["a_vae", "min_vae_v1", "min_vae_v2", "vae_mm", "vae_mm+three"]
every_prior = pytest.mark.parametrize("name", TAUGHT)
STFT_SMALL = STFT(n_fft=64, hop=32)


def some_pairs(prior: Any, frames: int = 5) -> Pairs:
    """Two recordings of nothing in particular, every tensor of which counts."""
    K, L, F, dtype = (
        prior.num_components,
        prior.latent_dim,
        prior.num_freqs,
        prior.mixing_weight.dtype,
    )
    looks = any(prior.components_see)
    lips = torch.rand(2, frames, 67, 67, dtype=dtype)
    power = torch.empty(2, frames, F, dtype=dtype).exponential_()
    return Pairs(
        power=power,
        speech=0.3 * power,
        cross=0.4 * power,
        clear=0.5 * power,
        features=prior.visual_features(lips) if looks else None,
        seen=torch.randn(2, frames, L, dtype=dtype) if prior.uses_lips else None,
        lips_mask=None,
        log_gain=torch.randn(2, dtype=dtype),
        response=torch.randn(2, 4, dtype=dtype),
        log_noise=torch.randn(2, frames, F, dtype=dtype),
        codes=torch.randn(K, 2, frames, L, dtype=dtype),
        responsibilities=torch.softmax(torch.randn(K, 2, frames, dtype=dtype), 0),
    )


def believe(guide: NoisyGuide, pairs: Pairs) -> Guess:
    return guide.read(guide.ear(pairs.power, pairs.seen, lips_mask=pairs.lips_mask))


# --- the program ----------------------------------------------------------------------------------------------------


@every_prior
@pytest.mark.usefixtures("float64")
def test_the_program_is_the_product_of_its_factors(
    name: str, small_prior: Any, small_guide: Any
) -> None:
    """The trace at given values: every site's log density by torch's own Normal, alpha enumerated."""
    prior = small_prior(name)
    guide, pairs = small_guide(prior), some_pairs(prior)
    q = believe(guide, pairs)
    data = {
        "log_g": pairs.log_gain[:, None, None],
        "a": pairs.response[:, None],
        "log_noise": pairs.log_noise,
        "z": pairs.codes if prior.num_components > 1 else pairs.codes[0],
    }
    with poutine.enum(first_available_dim=-3), poutine.condition(data=data):
        trace = poutine.trace(guide.sample_sites).get_trace(q)
    trace.compute_log_prob()

    def normal(p: Independent, value: Tensor) -> Tensor:
        return Normal(p.mean, p.stddev).log_prob(value).sum(-1)

    site = {n: s["log_prob"] for n, s in trace.nodes.items() if s["type"] == "sample"}
    assert torch.allclose(site["log_g"][:, 0], normal(q.log_gain, pairs.log_gain[:, None]))
    assert torch.allclose(site["a"][:, 0], normal(q.response, pairs.response))
    assert torch.allclose(site["log_noise"], normal(q.log_noise, pairs.log_noise))
    z = normal(q.codes, pairs.codes)
    assert torch.allclose(site["z"], z if prior.num_components > 1 else z[0])
    if prior.num_components > 1:
        alpha = site["alpha"].reshape(z.shape)
        assert torch.allclose(alpha, q.responsibilities.log())


@every_prior
@pytest.mark.usefixtures("float64")
def test_the_guide_runs_as_a_pyro_program_over_a_batch(
    name: str, small_prior: Any, small_guide: Any
) -> None:
    """Drawn, with and without lips: a plate for recordings and one for frames."""
    prior = small_prior(name)
    guide = small_guide(prior)
    power, lips = torch.rand(3, 4, 7), torch.rand(3, 4, 67, 67)
    for seen in (lips, None):
        with poutine.enum(first_available_dim=-3):
            nodes = poutine.trace(guide.guide).get_trace(power, seen).nodes
        assert nodes["log_g"]["value"].shape == (3, 1, 1)
        assert nodes["log_noise"]["value"].shape == (3, 4, 7)
        assert nodes["z"]["value"].shape[-3:] == (3, 4, 2)
        assert ("alpha" in nodes) == (prior.num_components > 1)


@every_prior
@pytest.mark.usefixtures("float64")
def test_padding_and_other_recordings_have_no_say(
    name: str, small_prior: Any, small_guide: Any
) -> None:
    prior = small_prior(name)
    guide = small_guide(prior)
    power, lips = torch.rand(2, 9, 7), torch.rand(2, 9, 67, 67)
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    batch = guide.guess(power, lips, mask=mask)
    for u, length in enumerate((9, 6)):
        alone = guide.guess(power[u, :length], lips[u, :length])
        assert torch.allclose(batch.log_gain.mean[u], alone.log_gain.mean)
        assert torch.allclose(batch.response.mean[u], alone.response.mean)
        assert torch.allclose(batch.codes.mean[:, u, :length], alone.codes.mean)
        assert torch.allclose(batch.log_noise.mean[u, :length], alone.log_noise.mean)
        assert torch.allclose(batch.responsibilities[:, u, :length], alone.responsibilities)


@pytest.mark.parametrize("name", ["min_vae_v2", "vae_mm"])
@pytest.mark.usefixtures("float64")
def test_one_guide_with_lips_without_and_with_some(
    name: str, small_prior: Any, small_guide: Any
) -> None:
    """All pictures absent is no lips at all; one picture absent is neither."""
    guide = small_guide(small_prior(name))
    power, lips = torch.rand(9, 7), torch.rand(9, 67, 67)
    none = torch.zeros(9, dtype=torch.bool)
    some = ~none
    some[4] = False
    means = [
        guide.guess(power, seen, lips_mask=mask).codes.mean
        for seen, mask in ((None, None), (lips, none), (lips, some), (lips, None))
    ]
    assert torch.allclose(means[0], means[1])
    assert not torch.allclose(means[0], means[2])
    assert not torch.allclose(means[2], means[3])


# --- what it learns from --------------------------------------------------------------------------------------------


@every_prior
@pytest.mark.usefixtures("float64")
def test_the_sleep_loss_is_the_forward_divergence_by_hand(
    name: str, small_prior: Any, small_guide: Any
) -> None:
    prior = small_prior(name)
    guide, pairs = small_guide(prior), some_pairs(prior)
    q = believe(guide, pairs)
    total = torch.zeros(())
    for u in range(2):
        total -= q.log_gain.log_prob(pairs.log_gain[:, None])[u]
        total -= q.response.log_prob(pairs.response)[u]
        for n in range(5):
            noise = Normal(q.log_noise.mean[u, n], q.log_noise.stddev[u, n])
            total -= amortise.NOISE_WEIGHT * noise.log_prob(pairs.log_noise[u, n]).sum()
            for k in range(prior.num_components):
                z = Normal(q.codes.mean[k, u, n], q.codes.stddev[k, u, n])
                log_q = z.log_prob(pairs.codes[k, u, n]).sum()
                log_q = log_q + q.responsibilities[k, u, n].log()
                total -= pairs.responsibilities[k, u, n] * log_q
    assert torch.allclose(sleep_loss(guide, q, pairs), total / 10)


@every_prior
@pytest.mark.usefixtures("float64")
def test_the_hearing_loss_is_the_likelihood_at_fainter_noise(
    name: str, small_prior: Any, small_guide: Any
) -> None:
    prior = small_prior(name)
    guide, pairs = small_guide(prior), some_pairs(prior)
    q = believe(guide, pairs)
    target = CollapsedTarget(
        prior,
        pairs.features,
        pairs.clear,
        pairs.log_noise.exp() / 100,
        prior.mixing_weight,
        pairs.log_gain[:, None].exp().expand(2, 5),
        pairs.response @ amortise.response_basis(4, 7, pairs.power)[1:]
        + amortise.front_response(7, pairs.power),
    )
    total = torch.zeros(())
    for k in range(prior.num_components):
        decoded = prior.log_variance(q.codes.mean[k][None], pairs.features)
        own = decoded[k if len(decoded) > 1 else 0][None]
        density = target.component_log_likelihood(own)[0, 0] + 7 * math.log(math.pi)
        total -= (pairs.responsibilities[k] * density).mean()
    log_sigma = own_log_variance(q, prior, pairs.features)
    assert torch.allclose(hearing_loss(log_sigma, pairs), total)


@pytest.mark.usefixtures("float64")
def test_the_filter_loss_is_minus_the_si_sdr(small_prior: Any, small_guide: Any) -> None:
    """By the complex frames themselves; the filter is that of `guided`."""
    guide, (s, x) = (
        small_guide(small_prior("vae_mm")),
        torch.randn(2, 2, 5, 7, dtype=torch.complex128),
    )
    power, cross = x.abs().square(), (s.conj() * x).real
    pairs = replace(some_pairs(guide.prior), power=power, speech=s.abs().square(), cross=cross)
    q = believe(guide, pairs)
    y = guessed_gain(q, guide.prior, pairs.features) * x
    sums = [(a.conj() * b).real.sum((-2, -1)) for a, b in ((s, y), (s, s), (y, y))]
    rho = sums[0].square() / (sums[1] * sums[2])
    loss = amortise.filter_loss(q, own_log_variance(q, guide.prior, pairs.features), pairs)
    u = amortise.UNHEARD
    assert torch.allclose(loss, ((1 - rho + u) / (rho + u)).log().mean())


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v2"])
@pytest.mark.usefixtures("float64")
def test_the_wake_loss_moves_the_guide_to_the_posterior(
    name: str, small_prior: Any, small_guide: Any
) -> None:
    """Reweighted wake-sleep: one frame's q, its numbers free, ends at the posterior's mean by a grid over z.

    At a seed each of fifty draws a step; a guide that learns from draws of the prior alone ends elsewhere.
    """
    prior = small_prior(name, latent_dim=1).requires_grad_(False)
    pairs = replace(some_pairs(prior, frames=1), log_gain=torch.zeros(2))
    guide = small_guide(prior)
    start = believe(guide, pairs)
    K = prior.num_components
    mean = torch.zeros(K, 2, 1, 1, requires_grad=True)
    log_scale = torch.ones(K, 2, 1, 1, requires_grad=True)  # wide: it must meet the posterior
    logit = torch.zeros(K, 2, 1, requires_grad=True)
    adam = torch.optim.Adam([mean, log_scale, logit], lr=0.03)
    for _ in range(1000):
        q = replace(
            start,
            codes=Independent(Normal(mean, log_scale.exp()), 1),
            responsibilities=torch.softmax(logit, 0),
        )
        adam.zero_grad()
        wake_loss(guide, q, pairs, 50).backward()
        adam.step()
    z = torch.linspace(-8, 8, 4001)[:, None, None, None].expand(-1, 2, 1, 1)
    freqs = pairs.power.shape[-1]
    c = pairs.response @ amortise.response_basis(4, freqs, pairs.power)[1:]
    target = CollapsedTarget(
        prior,
        None,
        pairs.power,
        pairs.log_noise.exp(),
        prior.mixing_weight,
        torch.ones(2, 1),
        c + amortise.front_response(freqs, pairs.power),
    )
    weight = torch.softmax(target.log_density(z), 0)
    exact = (weight * z[..., 0]).sum(0)
    found = (torch.softmax(logit, 0) * mean[..., 0]).sum(0)
    spread = (weight * (z[..., 0] - exact).square()).sum(0).sqrt()
    assert ((found - exact).abs() < 0.3 * spread).all()


@pytest.fixture(scope="module")
def speech_of(tiny_corpus: Path, tiny_prior: Any) -> Callable[..., tuple[NoisyGuide, Any]]:
    """A small guide of a tiny prior, and the corpus's training speech under it."""
    from pyro_avse.data.corpora.corpus import find_utterances

    def build(name: str, **options: Any) -> tuple[NoisyGuide, Any]:
        torch.manual_seed(0)
        prior = tiny_prior(name, num_freqs=33).requires_grad_(False)
        guide = NoisyGuide(prior, hidden=8, layers=1, **options)
        return guide, load_speech(find_utterances(tiny_corpus, "train"), guide, STFT_SMALL)

    return build


@pytest.mark.parametrize("name", [*TAUGHT, "rvae", "av_rvae", "av_dkf"])
def test_pairs_hold_what_was_drawn(name: str, speech_of: Any) -> None:
    """Speech's codes are its encoders'; x is at the level of training; pictures are absent where lips were dropped."""
    guide, speech = speech_of(name)
    assert speech.ends[-1] == len(speech.spectrum) == speech.mean.shape[1]
    assert torch.allclose(speech.responsibilities.sum(0), torch.ones(len(speech.spectrum)))
    draw = {"utterances": 12, "num_frames": 200, "stft": STFT_SMALL}
    pairs = draw_pairs(speech, **draw, lips_dropped=0.5)
    assert pairs.codes.shape == (guide.num_components, 12, 200, 3)
    level = amortise_level(pairs)
    assert torch.allclose(level, torch.ones(12), atol=0.02)
    if guide.prior.uses_lips:
        seen = pairs.lips_mask.any(-1)
        assert 0 < seen.sum() < 12
        assert (~draw_pairs(speech, **draw, lips_dropped=1.0).lips_mask).all()
    else:
        assert pairs.lips_mask is None
    quiet = draw_pairs(speech, **draw, snr=(20.0, 20.0))
    ratio = (quiet.log_noise.exp().sum((-2, -1)) / quiet.power.sum((-2, -1))).log10()
    assert torch.allclose(ratio, torch.tensor(-2.0), atol=0.3)
    clean = draw_pairs(speech, **draw, snr=(60.0, 60.0))
    for of_speech in (clean.speech, clean.cross):
        assert (of_speech - clean.power).abs().sum() < 0.02 * clean.power.sum()


def amortise_level(pairs: Pairs) -> Tensor:
    return frames_level(pairs.power.sqrt(), STFT_SMALL)


@pytest.mark.parametrize("name", ["a_vae", "vae_mm"])
@pytest.mark.long
def test_training_teaches_it_to_hear(name: str, speech_of: Any) -> None:
    """On pairs it has not seen the loss falls, and what it says of the noise's level is nearer than the mixture's."""
    guide, speech = speech_of(name)
    recipe = GuideRecipe(
        "none", training=GuideTraining(rounds=3, steps=40, batch_size=8, frames=40)
    )
    run = Amortiser(guide, recipe, speech, speech, STFT_SMALL)
    before = run.validate()["valid_objective"]
    for _ in range(3):
        row = run.run_round()
    assert row["valid_objective"] > before + 2
    assert row["epoch"] == 2
    pairs = draw_pairs(speech, utterances=20, num_frames=40, stft=STFT_SMALL)
    with torch.no_grad():
        noise = believe(guide, pairs).log_noise.mean
    error = (noise - pairs.log_noise).square().mean()
    assert error < (pairs.power.log() - pairs.log_noise).square().mean()


@pytest.mark.long
def test_a_killed_run_ends_in_the_same_bytes(tiny_corpus: Path, tmp_path: Path) -> None:
    """With a share of reweighted wake-sleep, and from another guide's ear."""
    torch.manual_seed(0)
    save_prior(tmp_path / "prior.safetensors", MODELS["a_vae"](latent_dim=3, hidden=8), STFT())
    training = GuideTraining(rounds=2, steps=2, batch_size=2, frames=10, wake=0.3, particles=3)
    recipe = GuideRecipe(
        str(tmp_path / "prior.safetensors"),
        options={"hidden": 6, "layers": 1},
        training=training,
    )
    whole = train(recipe, tiny_corpus, tmp_path / "whole", device="cpu")

    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tiny_corpus, tmp_path / "halves", device="cpu", progress=stop)
    with pytest.raises(InputError, match="--resume"):
        train(recipe, tiny_corpus, tmp_path / "halves", device="cpu")
    other = replace(recipe, seed=1)
    with pytest.raises(InputError, match="another recipe"):
        train(other, tiny_corpus, tmp_path / "halves", device="cpu", resume=True)
    rows: list[dict[str, Any]] = []
    halves = train(
        recipe, tiny_corpus, tmp_path / "halves", device="cpu", resume=True, progress=rows.append
    )
    assert halves.read_bytes() == whole.read_bytes()
    assert [row["epoch"] for row in rows] == [0, 1]
    assert (tmp_path / "halves" / "curves.png").exists()
    started = replace(recipe, start=str(whole), training=replace(training, rounds=1, steps=1))
    again = train(started, tiny_corpus, tmp_path / "again", device="cpu")
    assert again.read_bytes() != whole.read_bytes()
    prior, _ = load_prior(recipe.prior, guide=whole)
    assert prior.noise_guide.options["hidden"] == 6
    assert "noise_guide" not in "".join(prior.state_dict())


def test_a_guides_recipe_is_checked(tmp_path: Path) -> None:
    recipe = load_recipe("default/guide_a_vae")
    assert isinstance(recipe, GuideRecipe)
    assert recipe.prior == "a_vae"
    for text, said in (
        ('prior = "a_vae"\n[training]\nround = 3', "unknown key 'round'"),
        ('prior = "a_vae"\n[training]\nsteps = 0', "steps is 0"),
        ('prior = "a_vae"\n[training]\nwake = 1.5', "wake is 1.5"),
        ('prior = "a_vae"\nlips_dropped = 2', "lips_dropped is 2"),
        ('prior = "a_vae"\nspeeds = 0.6', "speeds is 0.6"),
        ("prior = 3", "expected str"),
    ):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            load_recipe(path)


def test_wake_is_refused_where_components_look_at_lips(speech_of: Any) -> None:
    guide, speech = speech_of("vae_mm")
    recipe = GuideRecipe("none", training=GuideTraining(wake=0.5))
    with pytest.raises(InputError, match="by sleep alone"):
        Amortiser(guide, recipe, speech, speech, STFT_SMALL)
