"""The switching VAE: its recursions and targets against sums over all paths, and the program against both."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_avse.distributions import complex_normal_log_prob
from pyro_avse.inference import LDEM, SCHEMES, RandomWalk, run_chains
from pyro_avse.inference.each_component import EachComponent
from pyro_avse.inference.mean_field import vem_objective
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models import MODELS, Switching
from pyro_avse.models.markov import smooth
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.training.recipe import Data, Recipe, Training
from pyro_avse.training.sequences import path_loss
from pyro_avse.training.stages import build_prior, train
from pyro_avse.typing import InputError, couples_frames, switches
from pyro_avse.weights.checkpoint import load_prior
from tests.test_schemes import short

pytestmark = pytest.mark.usefixtures("float64")
FRAMES, K = 6, 3
PATHS = torch.tensor(list(itertools.product(range(K), repeat=FRAMES)))
"""All 3^6 of alpha_1:6."""


def lively(small_prior: Callable[..., Any]) -> Switching:
    """A small prior whose A is no default."""
    prior = small_prior("switching")
    with torch.no_grad():
        prior.transition_logits.copy_(torch.randn(K, K))
    return prior.requires_grad_(False)


def log_paths(evidence: Tensor, pi: Tensor, A: Tensor) -> Tensor:
    """log p(frames, alpha_1:N) of every path: evidence (component, frame)."""
    moves = A.log()[PATHS[:, :-1], PATHS[:, 1:]].sum(1)
    return pi.log()[PATHS[:, 0]] + moves + evidence[PATHS, torch.arange(FRAMES)].sum(1)


def shares_of(joint: Tensor) -> Tensor:
    """p(alpha_n = k) by summing over all paths, (component, frame)."""
    shares = torch.softmax(joint, 0)
    return torch.stack([(shares[:, None] * (k == PATHS)).sum(0) for k in range(K)])


def test_recursions_are_sums_over_all_paths() -> None:
    """forward and backward: the evidence of all frames, of each given those before, and r(alpha_n)."""
    evidence, A = 2 * torch.randn(K, FRAMES), torch.softmax(torch.randn(K, K), 1)
    pi = torch.softmax(torch.randn(K), 0)
    evidence[1, 2] = -torch.inf  # out of the question
    joint = log_paths(evidence, pi, A)
    frames, r = smooth(evidence, pi, A)
    torch.testing.assert_close(frames.sum(), torch.logsumexp(joint, 0), rtol=1e-12, atol=0)
    torch.testing.assert_close(r, shares_of(joint), rtol=1e-12, atol=1e-14)
    first, _ = smooth(evidence[:, :3], pi, A)
    torch.testing.assert_close(frames[:3], first)  # nothing of the future


def test_without_memory_it_is_a_mixture() -> None:
    """Rows of A equal to pi: each frame on its own."""
    evidence, pi = torch.randn(K, 2, FRAMES), torch.softmax(torch.randn(K), 0)
    frames, r = smooth(evidence, pi[:, None], pi.expand(K, K))
    joint = pi.log()[:, None, None] + evidence
    torch.testing.assert_close(frames, torch.logsumexp(joint, 0))
    torch.testing.assert_close(r, torch.softmax(joint, 0))


class Heard:
    """A recording of six frames under the small prior, and one path z."""

    def __init__(self, small_prior: Callable[..., Any]) -> None:
        self.prior = lively(small_prior)
        self.x = torch.randn(FRAMES, 7, dtype=torch.complex128)
        self.lips, self.z = torch.rand(FRAMES, 67, 67), torch.randn(1, FRAMES, 2)
        self.noise = torch.rand(FRAMES, 7) + 0.1
        self.gain, self.response = torch.rand(FRAMES) + 0.5, 0.3 * torch.randn(7)

    def target(self, **more: Any) -> CollapsedTarget:
        v, pi = self.prior.visual_features(self.lips), self.prior.mixing_weight
        power = self.x.abs().square()
        given = (self.prior, v, power, self.noise, pi, self.gain, self.response)
        return CollapsedTarget(*given, **more)

    def evidence(self) -> Tensor:
        """log p(x_n, z_n | alpha_n = k) by the definitions, (component, frame)."""
        e = torch.empty(K, FRAMES)
        for k, n in itertools.product(range(K), range(FRAMES)):
            part, z = self.prior.parts[k], self.z[0, n]
            p = part.latent_prior(self.lips[n : n + 1])
            mean, variance = p.mean.reshape(2), p.variance.reshape(2)
            sigma = part.log_variance(z, self.lips[n])[0].exp()
            V = self.gain[n] * self.response.exp() * sigma + self.noise[n]
            e[k, n] = MultivariateNormal(mean, torch.diag(variance)).log_prob(z)
            e[k, n] += complex_normal_log_prob(self.x[n].abs(), V.log()).sum()
        return e


def test_collapsed_target_is_the_sum_over_all_paths(small_prior: Callable[..., Any]) -> None:
    """log p(x, z_1:6) and p(alpha_n | x, z): the forward recursion against 3^6 paths, and the gradient by autograd."""
    assert [name for name, kind in MODELS.items() if switches(kind)] == ["switching"]
    heard = Heard(small_prior)
    target = heard.target()
    assert couples_frames(heard.prior)
    assert target.event_dim == 2
    joint = log_paths(heard.evidence(), heard.prior.mixing_weight, heard.prior.transition)
    expected = torch.logsumexp(joint, 0)
    torch.testing.assert_close(target.log_density(heard.z)[0], expected, rtol=1e-12, atol=0)
    value, gradient = target.value_and_grad(heard.z)
    z = heard.z.clone().requires_grad_()
    torch.testing.assert_close(value[0], expected, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(target.log_density(z).sum(), z)
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("padded", [False, True])
def test_the_program_enumerates_all_paths(padded: bool, small_prior: Callable[..., Any]) -> None:
    """Pyro's TraceEnum of `noisy_speech`, alpha_1:6 enumerated by pyro.markov, is the target; padding adds nothing."""
    heard = Heard(small_prior)
    mask = torch.arange(FRAMES) < 4 if padded else None
    target = heard.target(mask=mask)
    data = {f"z_{n}": heard.z[0, n] for n in range(FRAMES)}
    program = pyro.condition(noisy_speech, data)
    given = (heard.prior, heard.x, heard.lips, heard.noise)
    more = {"gain": heard.gain, "log_response": heard.response, "mask": mask}

    def model() -> None:
        program(*given, mixing_weight=heard.prior.mixing_weight, **more)

    found = -TraceEnum_ELBO(max_plate_nesting=0).loss(model, lambda: None)
    assert found == pytest.approx(target.log_density(heard.z).item(), rel=1e-10)
    if padded:
        other = heard.z.clone()
        other[:, 4:] += 3
        assert target.log_density(other) == target.log_density(heard.z)


def test_the_program_of_two_utterances(small_prior: Callable[..., Any]) -> None:
    """A plate for utterances: the sum of theirs; drawn forwards it has their shape."""
    heard = Heard(small_prior)
    x = torch.stack([heard.x, heard.x.roll(1, 0)])
    lips, noise = torch.stack([heard.lips] * 2), torch.stack([heard.noise] * 2)
    z = torch.randn(1, 2, FRAMES, 2)
    pi = heard.prior.mixing_weight
    target = CollapsedTarget(
        heard.prior, heard.prior.visual_features(lips), x.abs().square(), noise, pi[:, None]
    )
    program = pyro.condition(noisy_speech, {f"z_{n}": z[0, :, n] for n in range(FRAMES)})
    found = -TraceEnum_ELBO(max_plate_nesting=1).loss(
        lambda: program(heard.prior, x, lips, noise), lambda: None
    )
    assert found == pytest.approx(target.log_density(z).sum().item(), rel=1e-10)
    for speech_latent in (True, False):
        drawn = noisy_speech(heard.prior, None, lips, noise, speech_latent=speech_latent)
        assert drawn.shape == x.shape


def test_the_pair_bounds_the_evidence(small_prior: Callable[..., Any]) -> None:
    """`model` and `guide`: TraceEnum's bound, r(alpha_1:N) enumerated, is below the evidence that quadrature finds."""
    prior = lively(small_prior)
    prior.temperature = 1.0
    power, lips = torch.empty(3, 7).exponential_(), torch.rand(3, 67, 67)
    z = torch.randn(4000, 3, 2)
    v = prior.visual_features(lips)
    p = prior.latent_prior(v)
    codes = p.mean[:, None] + p.stddev[:, None] * z  # of each component's prior
    own = torch.stack([prior.log_variance(c, v)[k] for k, c in enumerate(codes)])
    evidence = complex_normal_log_prob(power.sqrt(), own).sum(-1)
    evidence = torch.logsumexp(evidence, 1) - math.log(4000)
    exact = smooth(evidence, prior.mixing_weight, prior.transition)[0].sum()
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    found = torch.tensor([-elbo.loss(prior.model, prior.guide, power, lips) for _ in range(12)])
    assert found.mean() + 3 * found.std() / 12**0.5 < exact + 0.1
    broken = exact - 2 * (exact - found.mean())  # a bound as far above would be seen
    assert not broken - 3 * found.std() / 12**0.5 > exact


TAKES_IT = ["vem", "collapsed_vem", "mcem", "peem", "gpeem", "ldem", "guided"]


@pytest.mark.parametrize("scheme", TAKES_IT)
@pytest.mark.parametrize("utterances", [(), (2,)])
def test_every_scheme_that_takes_it(
    scheme: str, utterances: tuple[int, ...], small_prior: Callable[..., Any]
) -> None:
    """Shapes, shares that sum to one, and padding that cannot matter."""
    prior, shape = lively(small_prior), (*utterances, 5)
    x, lips = torch.randn(*shape, 7, dtype=torch.complex128), torch.rand(*shape, 67, 67)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 3:] = False
    loud, dark = x.clone(), lips.clone()
    loud[~mask] *= 30
    dark[~mask] = 0
    out = short(scheme)(prior, x, lips, mask=mask, seed=3)
    again = short(scheme)(prior, loud, dark, mask=mask, seed=3)
    assert torch.equal(out.speech[mask], again.speech[mask])
    assert torch.equal(out.objective, again.objective)
    assert out.responsibilities.shape == (K, *shape)
    torch.testing.assert_close(out.responsibilities.sum(0), torch.ones(shape))
    assert out.speech.abs().isfinite().all()
    assert out.target.log_density(out.z).isfinite().all()
    if out.chains is not None and scheme != "vem":
        assert len(out.z) == K  # two are asked for: one of each component


@pytest.mark.parametrize("scheme", sorted(SCHEMES.keys() - set(TAKES_IT)))
def test_schemes_that_take_frames_one_by_one_refuse(
    scheme: str, small_prior: Callable[..., Any]
) -> None:
    """In a line that names those which do not."""
    with pytest.raises(InputError, match="they are a chain: take guided, ldem"):
        short(scheme)(lively(small_prior), torch.randn(4, 7).cdouble(), torch.rand(4, 67, 67))


def test_the_objective_of_vem_counts_pi_once(small_prior: Callable[..., Any]) -> None:
    """(41) as a function of pi is E log p(alpha_1:6), over all paths; pi is of alpha_1, and no frame teaches it."""
    heard = Heard(small_prior)
    evidence, A, V = torch.randn(K, FRAMES), heard.prior.transition, heard.noise
    W, H = torch.rand(2, 7), torch.rand(FRAMES, 2)
    r = smooth(evidence, torch.full((K,), 1 / K), A)[1]
    shares = torch.softmax(log_paths(evidence, torch.full((K,), 1 / K), A), 0)
    found, expected = [], []
    for pi in torch.softmax(torch.randn(2, K), 1):
        found.append(vem_objective(V, W, H, r, pi, chain=True))
        expected.append((shares * log_paths(evidence, pi, A)).sum())
    torch.testing.assert_close(found[1] - found[0], expected[1] - expected[0])
    for scheme in ("vem", "ldem"):
        out = short(scheme)(heard.prior, heard.x, heard.lips)
        torch.testing.assert_close(out.mixing_weight, torch.full((K,), 1 / K))


def test_frames_without_a_picture_leave_out_what_looks(small_prior: Callable[..., Any]) -> None:
    """r(AV-VAE) is 0 there, whatever stands in the picture's place, and not elsewhere."""
    prior, x = lively(small_prior), torch.randn(6, 7).cdouble()
    seen = torch.arange(6) < 4
    out = short("ldem")(prior, x, torch.rand(6, 67, 67), lips_mask=seen)
    assert (out.responsibilities[2, 4:] == 0).all()
    assert (out.responsibilities[2, :4] > 0).all()
    held = short("mcem", mixing_weight=(1.0, 0.0, 0.0))(prior, x, torch.rand(6, 67, 67))
    assert (held.responsibilities[0] == 1).all()


def test_draws_are_weighed_by_all_paths(small_prior: Callable[..., Any]) -> None:
    """`weigh`: r(alpha_n) of the chains' evidence is the sum over 3^6 paths; each draw counts with its component."""
    heard = Heard(small_prior)
    each = EachComponent(heard.target())
    z0 = torch.randn(2 * K, FRAMES, 2)
    for k, part in enumerate(heard.prior.parts):
        alone = replace(heard.target(), prior=part, lips=heard.lips, mixing_weight=torch.ones(1))
        codes = z0[2 * k : 2 * k + 2]
        torch.testing.assert_close(
            each.log_density(z0)[2 * k : 2 * k + 2], alone.log_density(codes)
        )
    value, gradient = each.value_and_grad(z0)
    z = z0.clone().requires_grad_()
    density = each.log_density(z)
    torch.testing.assert_close(value, density)
    torch.testing.assert_close(gradient, torch.autograd.grad(density.sum(), z)[0])
    chains = run_chains(RandomWalk(0.1), each, z0, draws=6, seed=1)
    sigma, w = each.weigh(chains)
    assert sigma.shape == (K, 12, FRAMES, 7)
    levels = chains.log_density.mean(1) + chains.draws.std(1).log().sum(-1)
    levels = levels.unflatten(0, (K, 2)) / heard.prior.temperature
    joint = log_paths(torch.logsumexp(levels, 1), heard.prior.mixing_weight, heard.prior.transition)
    r = shares_of(joint)[:, None]
    torch.testing.assert_close(w.sum(1, keepdim=True), r)
    torch.testing.assert_close(w, (r * torch.softmax(levels, 1) / 6).repeat_interleave(6, 1))
    own = heard.prior.parts[2].log_variance(chains.draws[4:].flatten(0, 1), heard.lips)[0].exp()
    torch.testing.assert_close(sigma[2], own)


def test_transitions_are_learned_by_the_gradient_of_the_evidence(
    small_prior: Callable[..., Any],
) -> None:
    """A step's loss is minus the forward recursion's evidence; its gradient, by differences; the models stay."""
    prior = small_prior("switching")
    power, lips = torch.empty(2, FRAMES, 7).exponential_(), torch.rand(2, FRAMES, 67, 67)
    torch.manual_seed(3)
    loss, r = path_loss(prior, power, lips, power, 1.0)
    loss.backward()
    torch.manual_seed(3)
    with torch.no_grad():
        e = prior.evidence(power, lips)
    joint = [log_paths(e[:, cut], prior.mixing_weight, prior.transition) for cut in range(2)]
    torch.testing.assert_close(-loss, sum(torch.logsumexp(j, 0) for j in joint))
    assert r.shape == (K, 2 * FRAMES)
    assert [n for n, p in prior.named_parameters() if p.grad is not None] == ["transition_logits"]
    logits = prior.transition_logits
    found = logits.grad.clone()
    for j, k in itertools.product(range(K), range(K)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                logits[j, k] += step
                values.append(
                    -sum(
                        smooth(e[:, c], prior.mixing_weight, prior.transition)[0].sum()
                        for c in range(2)
                    )
                )
                logits[j, k] -= step
        torch.testing.assert_close(
            found[j, k], (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-8
        )


def test_a_chain_that_stays_is_found(small_prior: Callable[..., Any]) -> None:
    """Evidence that turns every twenty frames: training finds an A that stays, and loses if frames are shuffled."""
    prior = small_prior("switching")
    evidence = torch.full((K, 1, 80), -5.0)
    evidence[(torch.arange(80) // 20) % 2, 0, torch.arange(80)] = 0.0
    evidence += 2 * torch.randn_like(evidence)

    def fit(e: Tensor) -> tuple[Tensor, float]:
        torch.nn.init.zeros_(prior.transition_logits)
        adam = torch.optim.Adam([prior.transition_logits], lr=0.5)
        for _ in range(15):
            adam.zero_grad()
            loss = -smooth(e, prior.start(e), prior.transition)[0].sum()
            loss.backward()
            adam.step()
        return prior.transition.detach(), -loss.item()

    A, kept = fit(evidence)
    assert A[0, 0] > 0.8
    assert A[1, 1] > 0.8
    _, shuffled = fit(evidence[..., torch.randperm(80)])
    assert kept > shuffled + 5


def test_it_is_trained_saved_and_resumed(
    tiny_corpus: Path, tiny_prior: Callable[..., Any], tmp_path: Path
) -> None:
    """A recipe on clean speech with bad lips: the models' tensors stay, A moves, and the weights load."""
    torch.set_default_dtype(torch.float32)
    options = tiny_prior("switching", num_freqs=513).options
    training = Training(epochs=2, batch_size=2, learning_rate=0.1)
    data = Data(cut=0.5, bad_lips=0.4)
    recipe = Recipe("switching", options=options, data=data, training=training)
    path = train(recipe, tiny_corpus, tmp_path)
    prior, _ = load_prior(path)
    start = build_prior(recipe)
    moved = {n for n, t in start.state_dict().items() if not torch.equal(t, prior.state_dict()[n])}
    assert moved == {"transition_logits", "mixing_weight"}
    assert prior.options == options
    before = path.read_bytes()
    assert train(recipe, tiny_corpus, tmp_path, resume=True).read_bytes() == before
    clean = replace(recipe, data=replace(data, bad_lips=0.0))
    other = train(clean, tiny_corpus, tmp_path / "clean").read_bytes()
    assert other != before


def test_what_is_refused() -> None:
    """A temperature that is none; a penalty on the codes, under which frames have no evidence of their own."""
    prior, x = Switching().double(), torch.randn(4, 513).cdouble()
    with pytest.raises(InputError, match="weighs every frame's own evidence: give 0"):
        LDEM(total_variation=1.0)(prior, x, torch.rand(4, 67, 67))
    with pytest.raises(InputError, match="temperature is 0"):
        Switching(temperature=0)
