"""The schemes that are Pyro's: amortised_vem, nuts and auto_normal, on the posterior that MCEM's chains sample. S17"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import mcmc
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.stats import effective_sample_size
from torch import Tensor
from torch.distributions import Normal

from pyro_avse.errors import Divergence
from pyro_avse.inference import MCEM, SCHEMES, run_chains
from pyro_avse.inference.amortised_vem import AmortisedVEM
from pyro_avse.inference.auto_normal import AutoNormal
from pyro_avse.inference.em import observe
from pyro_avse.inference.encoders import Encoders, draw_components
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.nuts import NUTS, held_programs
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models import MODELS
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import Chains, InputError, couples_frames

pytestmark = pytest.mark.usefixtures("float64")
SmallPrior = Callable[..., Any]
FRAMEWISE = [name for name, kind in MODELS.items() if not couples_frames(kind)]
PRIORS = [*FRAMEWISE, "two_decoders"]
TINY = MCEM(
    iterations=2,
    warmup=2,
    draws=2,
    final_warmup=2,
    final_draws=2,
    chains=2,
    noise=NoiseModel.paper(2),
)
SHORT: dict[str, Any] = {
    "amortised_vem": AmortisedVEM(
        iterations=3, steps=2, draws=3, final_draws=3, noise=NoiseModel.paper(2)
    ),
    "nuts": NUTS(TINY, warmup=2, draws=3, max_tree_depth=2),
    "auto_normal": AutoNormal(TINY, steps=3, draws=3),
}
every_scheme = pytest.mark.parametrize("scheme", sorted(SHORT))
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def complex_normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


@every_scheme
@pytest.mark.parametrize("name", ["a_vae", "vae_mm"])
def test_nothing_that_is_global_changes(
    name: str, scheme: str, small_prior: SmallPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither Pyro's store and settings nor the prior; a run on the CPU seeds no GPU's generator."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("GPUs are seeded"))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: pytest.fail("a GPU is seeded"))
    x, lips, prior = complex_normal(2, 5, 7), torch.rand(2, 5, 67, 67), small_prior(name)
    given = copy.deepcopy(prior.state_dict())
    mine = pyro.param("AutoNormal.locs.z", torch.ones(3)).clone()
    before = torch.get_rng_state()
    SHORT[scheme](prior, x, lips, mask=MASK, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store()) == ["AutoNormal.locs.z"]
    assert torch.equal(pyro.param("AutoNormal.locs.z"), mine)
    assert not pyro.settings.get("module_local_params")
    assert all(torch.equal(given[key], value) for key, value in prior.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in prior.parameters())


@pytest.mark.parametrize("name", PRIORS)
def test_pyros_potential_is_the_collapsed_target(name: str, small_prior: SmallPrior) -> None:
    """S17: at MCEM's W, H, g, pi, what NUTS and AutoNormal see is the density that our kernels sample, to 1e-10."""
    x, lips, prior = complex_normal(2, 5, 7), torch.rand(2, 5, 67, 67), small_prior(name)
    held = TINY(prior, x, lips, mask=MASK)
    assert held.gain is not None
    assert (held.gain - 1).abs().max() > 0.1
    z = torch.randn(1, 2, 5, 2)
    log_density = held.target.log_density(z)[0]
    for (u,), frames, program in held_programs(x, held, MASK):
        _, potential, _, _ = initialize_model(program, max_plate_nesting=1)
        found = -potential({"z": z[0, u][frames]})
        torch.testing.assert_close(found, log_density[u][frames].sum(), rtol=1e-10, atol=0)
    without = replace(TINY, noise=replace(TINY.noise, gain="none"))(prior, x, lips)
    assert without.gain is None
    assert torch.equal(without.target.gain, torch.ones(2, 5))


def mean_and_error(chains: Chains) -> tuple[Tensor, Tensor]:
    """The posterior mean of every code, and its standard error by Pyro's effective sample size."""
    z = chains.draws
    size = effective_sample_size(z, chain_dim=0, sample_dim=1)
    return z.mean((0, 1)), z.flatten(0, 1).std(0) / size.sqrt()


def nuts_and_hmc(prior: Any, x: Tensor, scheme: NUTS, hmc_draws: int) -> tuple[float, float]:
    """The worst z-score between the means of NUTS and of our HMC; and of HMC where the noise is ten times as loud."""
    out = scheme(prior, x)
    mean, error = mean_and_error(out.chains)  # type: ignore[arg-type]
    scores = []
    for louder in (1, 10):
        target = replace(out.target, noise_variance=louder * out.target.noise_variance)
        z0 = out.z.repeat(20, 1, 1)
        run = {"draws": hmc_draws, "warmup": 50}
        ours, our_error = mean_and_error(run_chains(HMC(0.3, steps=5), target, z0, **run))
        scores.append(((mean - ours) / torch.hypot(error, our_error)).abs().max().item())
    return scores[0], scores[1]


def test_nuts_and_our_hmc_have_one_posterior_mean(small_prior: SmallPrior) -> None:
    """S17: E z of four codes by Pyro's NUTS and by 20 chains of HMC, which accept per frame."""
    # |z| < 4.5 of 4 means: false alarms 3e-5 by the normal law, for which there are 100 draws and more.
    prior, x = small_prior("a_vae"), complex_normal(2, 7)
    scheme = NUTS(replace(TINY, chains=1), warmup=60, draws=120, max_tree_depth=4)
    same, twin = nuts_and_hmc(prior, x, scheme, hmc_draws=200)
    assert same < 4.5
    assert twin > 4.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
def test_nuts_and_our_hmc_have_one_posterior_mean_in_full(
    name: str, small_prior: SmallPrior
) -> None:
    """S17: the same with two chains of 600 draws, three frames, and a mixture: alpha enumerated."""
    prior, x = small_prior(name), complex_normal(3, 7)
    scheme = NUTS(TINY, warmup=150, draws=600, max_tree_depth=5)
    same, twin = nuts_and_hmc(prior, x, scheme, hmc_draws=2000)
    assert same < 4.5
    assert twin > 4.5


def test_what_nuts_returns_describes_its_draws(small_prior: SmallPrior) -> None:
    """S20: objective, densities, acceptance and speech are those of the draws."""
    prior, x = small_prior("two_decoders"), complex_normal(2, 5, 7)
    scheme = SHORT["nuts"]
    out, held = scheme(prior, x, mask=MASK), scheme.mcem(prior, x, mask=MASK)
    draws = out.chains.draws
    assert draws.shape == (2, 3, 2, 5, 2)
    assert torch.equal(out.dictionary, held.dictionary)
    assert torch.equal(out.gain, held.gain)
    log_density = torch.stack([held.target.log_density(draws[:, d]) for d in range(3)], 1)
    torch.testing.assert_close(out.chains.log_density, log_density)
    joint = torch.stack([log_density[..., u, :][..., MASK[u]].sum(-1) for u in range(2)], -1)
    torch.testing.assert_close(out.objective, joint.mean(0))
    moved = torch.cat([held.z[:, None], draws], 1).diff(dim=1).ne(0).any(-1)
    assert torch.equal(out.chains.accepted, moved)
    assert not moved[..., 1, 3:].any()  # padding
    assert moved[..., MASK].any()
    wiener = torch.zeros(2, 5, 7)
    noise = out.activations @ out.dictionary
    for z in draws.flatten(0, 1):
        rho = torch.softmax(out.target.component_log_joint(z[None]), 0)[:, 0]
        speech = out.gain[..., None] * prior.log_variance(z, None).exp()
        wiener += (rho[..., None] * speech / (speech + noise)).sum(0).detach() / 6
    torch.testing.assert_close(out.speech, wiener * x)


def test_divergences_of_nuts_are_told(small_prior: SmallPrior, monkeypatch: Any) -> None:
    """The draws that Pyro names are flagged, for all frames of the utterance, whose energy is one."""
    monkeypatch.setattr(mcmc.NUTS, "diagnostics", lambda kernel: {"divergences": [0, 2]})
    chains = SHORT["nuts"](small_prior("a_vae"), complex_normal(2, 5, 7)).chains
    expected = torch.tensor([True, False, True])[:, None, None].expand(2, 3, 2, 5)
    assert torch.equal(chains.diverging, expected)


@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
def test_the_bound_of_auto_normal_is_that_of_its_guide(name: str, small_prior: SmallPrior) -> None:
    """S5: with a narrow guide that does not learn, E_q log p - log q = log p(x, z) + L / 2 (1 + log 2 pi s^2)."""
    # The mean of 100 steps, of a scaled chi-square each: |z| < 4.5, two utterances: false alarms 1e-5. In the twin the
    # gain's change of units is left out.
    prior, x = small_prior(name), complex_normal(2, 5, 7)
    scheme = AutoNormal(TINY, steps=100, learning_rate=0, draws=2, init_scale=1e-5)
    out = scheme(prior, x, mask=MASK)
    start = TINY(prior, x, mask=MASK).z[:1]
    torch.testing.assert_close(out.z, start)
    log_density = torch.where(MASK, out.target.log_density(start)[0], 0).sum(-1)
    entropy = MASK.sum(-1) * (1 + math.log(2 * math.pi * 1e-10))  # L = 2
    error = torch.sqrt(MASK.sum(-1) / 100)
    units = 7 * torch.where(MASK, out.gain.log(), 0).sum(-1)

    def max_z(shift: Tensor | float) -> Tensor:
        return ((out.objective.mean(0) - log_density - entropy - shift) / error).abs().max()

    assert max_z(0) < 4.5
    assert max_z(units) > 4.5


def log_evidence(target: CollapsedTarget) -> Tensor:
    """log p(x_n) by quadrature over z, of one dimension: (frame,)."""
    z = torch.linspace(-12, 12, 4001)[:, None, None].expand(-1, target.power.shape[0], 1)
    with torch.no_grad():
        return torch.logsumexp(target.log_density(z), 0) + math.log(24 / 4000)


@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
def test_auto_normal_ends_near_the_evidence(name: str, small_prior: SmallPrior) -> None:
    """S5: the ELBO rises towards log p(x) and stays below it."""
    prior, x = small_prior(name, latent_dim=1), complex_normal(5, 7)
    out = AutoNormal(TINY, steps=200, draws=10, learning_rate=0.05)(prior, x)
    evidence = log_evidence(out.target).sum()
    first, last = out.objective[:20].mean(), out.objective[-100:].mean()
    assert first < last < evidence + 0.05  # the mean of 100 steps
    assert last > evidence - 1.5  # 0.3 nats a frame: the posterior is no Gaussian


@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
def test_draws_of_components_give_the_bound(name: str, small_prior: SmallPrior) -> None:
    """(17), (22): log pi_k + E_{q_k} [log p(x, z | k) - log q_k] by quadrature; each component with its own decoder."""
    # 2 x 4 means of 4000 draws: |z| < 4.5 has false alarms of 5e-5. The twin hands each component the other's draws.
    prior, x = small_prior(name, latent_dim=1), complex_normal(4, 7)
    K, power = prior.num_components, x.abs().square()
    pi = torch.softmax(torch.randn(K), 0)
    target = CollapsedTarget(prior, None, power, torch.rand(4, 7), pi, torch.rand(4) + 0.5)
    mean, scale = torch.randn(K, 4, 1), 0.3 + torch.rand(K, 4, 1)
    q = torch.distributions.Independent(Normal(mean, scale), 1)
    grid = torch.linspace(-10, 10, 4001)[:, None, None].expand(-1, 4, 1)
    with torch.no_grad():
        joint = target.component_log_joint(grid)
        log_q = Normal(mean[:, None], scale[:, None]).log_prob(grid)[..., 0]
        density, gap = log_q.exp() * 20 / 4000, joint - log_q
        expected = (density * gap).sum(1)
        spread = ((density * gap.square()).sum(1) - expected.square()).sqrt()
        z, sigma, found = draw_components(target, q, 4000, torch.Generator().manual_seed(0))
        decoded = torch.stack([prior.log_variance(z[k], None)[k] for k in range(K)])

    def max_z(found: Tensor) -> Tensor:
        return ((found - expected) / spread).abs().max() * math.sqrt(4000)

    torch.testing.assert_close(sigma, decoded.exp())
    assert max_z(found) < 4.5
    assert max_z(found.roll(1, 0) if K > 1 else found + 0.3) > 4.5


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v2", "two_decoders"])
def test_what_adam_lowers_is_minus_the_bound(name: str, small_prior: SmallPrior) -> None:
    """(17): the mean of Pyro's loss is minus sum_nk r_k (log pi_k + E_{q_k} [log p - log q_k] - log r_k)."""
    # |z| < 4.5 of one mean of 100: false alarms 1e-5. The twin has noise twice as loud.
    x, lips, prior = complex_normal(2, 5, 7), torch.rand(2, 5, 67, 67), small_prior(name)
    K, noise = prior.num_components, torch.rand(2, 5, 7) + 0.2
    encoders = Encoders(prior, x.abs().square(), lips, 1e-3)
    observation = observe(prior, x, lips, mask=MASK)
    r, pi = torch.softmax(2 * torch.randn(K, 2, 5), 0), torch.softmax(torch.randn(K, 2), 0)
    target = CollapsedTarget(prior, lips, x.abs().square(), noise, pi)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(0)
        log_weight = draw_components(target, encoders(), 4000, rng)[2]
    expected = -torch.where(MASK, r * (log_weight - r.log()), 0).sum()

    def z(noise: Tensor) -> float:
        heard = replace(target, noise_variance=noise)
        losses = torch.stack([encoders.loss(observation, heard, r).detach() for _ in range(100)])
        return float((losses.mean() - expected).abs() / (losses.std() / math.sqrt(100)))

    assert z(noise) < 4.5
    assert z(2 * noise) > 4.5


def test_every_utterance_has_encoders_of_its_own(small_prior: SmallPrior) -> None:
    """q of two utterances is that of each alone, and what one learns the other does not."""
    prior, power, lips = (
        small_prior("min_vae_v2"),
        torch.rand(2, 5, 7),
        torch.rand(2, 5, 67, 67),
    )
    both = Encoders(prior, power, lips, 1e-2)
    assert len(both.copies) == 2
    q = both()
    for u in range(2):
        alone = Encoders(prior, power[u], lips[u], 1e-2)()
        torch.testing.assert_close(q.mean[:, u], alone.mean)
        torch.testing.assert_close(q.stddev[:, u], alone.stddev)
    both.step(both().mean[:, 0].sum())
    moved = both().mean
    assert not torch.allclose(moved[:, 0], q.mean[:, 0])
    torch.testing.assert_close(moved[:, 1], q.mean[:, 1])


@pytest.mark.parametrize(
    "name", ["a_vae", "av_vae", "min_vae_v2", "two_decoders", "vae_mm", "vae_mm+three"]
)
def test_fine_tuning_raises_the_bound(name: str, small_prior: SmallPrior) -> None:
    """(17): with the encoders learning, F rises, ends above that of the encoders as trained, and below log p(x)."""
    prior, lips = small_prior(name, latent_dim=1), torch.rand(5, 67, 67)
    x = complex_normal(5, 7)
    scheme = AmortisedVEM(
        iterations=40, steps=5, learning_rate=0.02, draws=20, noise=NoiseModel.paper(2)
    )
    out, rng = scheme(prior, x, lips), torch.Generator().manual_seed(0)
    with torch.no_grad():
        q = prior.encode(x.abs().square(), lips)
        untuned = draw_components(out.target, q, 2000, rng)[2].logsumexp(0).sum()
    ended = out.objective[-5:].mean()
    assert ended > out.objective[:3].mean() + 1
    assert untuned + 0.5 < ended < log_evidence(out.target).sum() + 0.1


@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
def test_only_the_copies_of_the_encoders_learn(name: str, small_prior: SmallPrior) -> None:
    """Without steps of Adam the draws are those of the prior's own encoders; decoders and priors never change."""
    prior, x = small_prior(name), complex_normal(5, 7)
    lips = torch.rand(5, 67, 67)
    still = replace(SHORT["amortised_vem"], steps=0)(prior, x, lips)
    q = prior.encode(x.abs().square(), lips)
    mean = (still.responsibilities[..., None] * q.mean).sum(0)
    torch.testing.assert_close(still.z[0], mean.detach())
    moved = SHORT["amortised_vem"](prior, x, lips)
    assert not torch.equal(moved.z, still.z)
    assert moved.target.prior is prior
    fixed = replace(
        SHORT["amortised_vem"], noise=replace(TINY.noise, gain="none"), mixing_weight=(1.0,)
    )
    if name == "a_vae":
        assert fixed(prior, x).gain is None
    else:
        with pytest.raises(InputError, match="give 2 numbers"):
            fixed(prior, x, lips)


def test_a_learning_rate_too_large_is_a_divergence(small_prior: SmallPrior) -> None:
    """The step or iteration and the cure in one line, with what was drawn before."""
    prior, x = small_prior("a_vae"), complex_normal(5, 7)
    with pytest.raises(Divergence, match=r"not finite in iteration \d+: lower learning") as stop:
        replace(SHORT["amortised_vem"], learning_rate=1e200)(prior, x)
    assert "\n" not in str(stop.value)
    assert stop.value.partial.shape == (1, 3, 5, 2)
    with pytest.raises(Divergence, match=r"not finite in step \d+: lower learning_rate") as stop:
        replace(SHORT["auto_normal"], learning_rate=1e200)(prior, x)
    assert stop.value.partial.draws.shape == (2, 2, 5, 2)


def test_lips_are_asked_for_where_an_encoder_needs_them(small_prior: SmallPrior) -> None:
    """MIN-VAE's posterior of z contains no lips, so nuts and auto_normal do without; its visual encoder does not."""
    prior, x = small_prior("min_vae_v2"), complex_normal(5, 7)
    for scheme in ("nuts", "auto_normal"):
        assert SHORT[scheme](prior, x).speech.isfinite().all()
    with pytest.raises(InputError, match="sees no lips"):
        SHORT["amortised_vem"](prior, x)


def test_they_are_registered() -> None:
    """The names on the command line are these classes'."""
    assert {name: SCHEMES[name] for name in SHORT} == {n: type(s) for n, s in SHORT.items()}
