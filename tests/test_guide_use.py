"""What guides are used for: starts and proposals of schemes, the command line, the programs under benchmarks/."""

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import soundfile
import torch
from pyro.distributions import Independent, Normal
from scipy.stats import chisquare
from torch import Tensor

from pyro_avse.cli import main
from pyro_avse.enhancement.enhancer import enhance
from pyro_avse.inference import SCHEMES, importance, run_chains
from pyro_avse.inference.em import encode, observe, starting_codes
from pyro_avse.inference.importance import Importance
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.monte_carlo import initial_theta
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.models.nmf_noise import NOISE_MODELS, NoiseModel, nmf_noise_variance
from pyro_avse.models.noisy_speech import noisy_speech
from pyro_avse.stft import STFT
from pyro_avse.typing import Guess, InputError
from pyro_avse.weights.checkpoint import load_prior, save_prior
from pyro_avse.weights.guides import load_guide, save_guide

STFT_SMALL = STFT(n_fft=64, hop=32)
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def folder(tiny_prior: Callable[..., Any], tmp_path: Path) -> Path:
    """Weights, their guide beside them, and noisy.wav of a second."""
    torch.manual_seed(0)
    prior = tiny_prior("a_vae", num_freqs=513)
    save_prior(tmp_path / "weights.safetensors", prior, STFT())
    save_guide(tmp_path / "guide.safetensors", NoisyGuide(prior, hidden=6, layers=1), STFT())
    sound = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(tmp_path / "noisy.wav", sound, 16000, subtype="FLOAT")
    return tmp_path


def test_enhance_starts_from_the_guide_beside_the_weights_a_file_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`own` is the guide beside the weights; `none` is what the weights without one give."""
    monkeypatch.chdir(folder)

    def run(*arguments: str, code: int = 0) -> None:
        monkeypatch.setattr("sys.argv", ["pyro-avse", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == code

    options = ["--model", "weights.safetensors", "--inference", "mcem", "--iterations", "1"]
    found = {}
    for name, guide in (
        ("default", []),
        ("own", ["--guide", "own"]),
        ("file", ["--guide", "guide.safetensors"]),
        ("none", ["--guide", "none"]),
    ):
        run("enhance", "noisy.wav", *options, *guide, "-o", f"{name}.wav")
        found[name] = soundfile.read(f"{name}.wav")[0]
    assert np.array_equal(found["own"], found["file"])
    assert np.array_equal(found["own"], found["default"])
    assert not np.allclose(found["own"], found["none"])
    (folder / "guide.safetensors").unlink()
    run("enhance", "noisy.wav", *options, "-o", "alone.wav")
    assert np.array_equal(found["none"], soundfile.read("alone.wav")[0])
    capsys.readouterr()
    refused = ["--guide", "weights.safetensors", "-o", "x.wav"]
    run("enhance", "noisy.wav", *options, *refused, code=2)
    assert "weights.safetensors: holds a_vae, no guide" in capsys.readouterr().err
    assert not Path("x.wav").exists()


def test_python_takes_the_same_three(folder: Path) -> None:
    weights, sound = folder / "weights.safetensors", np.random.default_rng(0).normal(size=8000)
    own, file, none = (
        enhance(sound, model=weights, inference="mcem", guide=guide).speech
        for guide in ("own", folder / "guide.safetensors", None)
    )
    assert np.array_equal(own, file)
    assert not np.allclose(own, none)
    assert load_prior(weights)[0].noise_guide is not None
    assert load_prior(weights, guide=None)[0].noise_guide is None
    with pytest.raises(InputError, match="no such"):
        enhance(sound, model=weights, guide=folder / "absent.safetensors")


def test_the_gpu_script_runs_small_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "gpu.md"
    small = {"--batch": 2, "--steps": 1, "--seconds": 0.5, "--draws": 2}
    options = [str(part) for pair in small.items() for part in pair]
    script = str(BENCHMARKS / "gpu.py")
    monkeypatch.setattr("sys.argv", [script, "--device", "cpu", *options, "--out", str(table)])
    runpy.run_path(script, run_name="__main__")
    rows = [line.split("|")[1:3] for line in table.read_text().splitlines() if line.startswith("|")]
    rates = {name.strip(): float(rate) for name, rate in rows[2:]}
    assert {"guide training, steps", "clips enhanced", "hmc, frame-steps"} <= set(rates)
    assert min(rates.values()) > 0
    assert table.read_text() == capsys.readouterr().out


def test_a_guide_belongs_to_its_prior_and_its_stft(
    tiny_prior: Any, tmp_path: Path, small_guide: Any
) -> None:
    prior, other = (tiny_prior("a_vae", num_freqs=33) for _ in range(2))
    guide, path = small_guide(prior, causal=True), tmp_path / "guide.safetensors"
    save_guide(path, guide, STFT_SMALL)
    found = load_guide(path, prior, STFT_SMALL, causal=True)
    power = torch.rand(4, 33)
    assert torch.equal(found.guess(power).codes.mean, guide.guess(power).codes.mean)
    for refused, said in (
        (lambda: load_guide(path, other, STFT_SMALL), "guide of another AVAE"),
        (lambda: load_guide(path, prior, STFT(n_fft=64, hop=16)), "STFT"),
        (lambda: load_guide(path, prior, STFT_SMALL, causal=False), "sees the past alone"),
        (lambda: load_guide(tmp_path / "none", prior, STFT_SMALL), "no such"),
    ):
        with pytest.raises(InputError, match=said):
            refused()
    save_prior(tmp_path / "prior.safetensors", prior, STFT_SMALL)
    with pytest.raises(InputError, match="no guide"):
        load_guide(tmp_path / "prior.safetensors", prior, STFT_SMALL)
    # stored at half the size, or with matrices at a quarter, it hears much the same
    for fewer, tolerance in (({"half": True}, 2e-3), ({"quarter": True}, 3e-2)):
        save_guide(path, guide, STFT_SMALL, **fewer)
        found = load_guide(path, prior, STFT_SMALL)
        assert found.options == guide.options
        off = found.guess(power).codes.mean - guide.guess(power).codes.mean
        assert 0 < off.abs().max() < tolerance


# --- what schemes make of it ----------------------------------------------------------------------------------------


class Oracle:
    """A guide that knows: q around the codes, the noise and the level that were drawn."""

    def __init__(self, z: Tensor, noise: Tensor, r: Tensor, width: float = 0.3) -> None:
        self.z, self.noise, self.r, self.width = z, noise, r, width

    def guess(self, power: Tensor, lips: Any = None, *, mask: Any = None, lips_mask: Any = None):
        def normal(mean: Tensor, scale: float) -> Independent:
            return Independent(Normal(mean, torch.full_like(mean, scale)), 1)

        K = len(self.r)
        return Guess(
            codes=normal(self.z[None].expand(K, *self.z.shape), self.width),
            responsibilities=self.r,
            log_gain=normal(power.new_full((*power.shape[:-2], 1), -0.7), 0.1),
            response=normal(power.new_zeros(*power.shape[:-2], 4), 0.1),
            log_noise=normal(self.noise.log(), 0.5),
        )


@pytest.fixture
def heard(small_prior: Any) -> Callable[[str], tuple[Any, Tensor, Oracle]]:
    """A prior, a recording of 30 frames that it drew in noise of rank 1, and the guide that knows."""

    def build(name: str) -> tuple[Any, Tensor, Oracle]:
        prior = small_prior(name).requires_grad_(False)
        W, H = torch.rand(1, 7) + 0.1, torch.rand(30, 1) + 0.5
        noise = nmf_noise_variance(W, H)
        trace = poutine.trace(noisy_speech).get_trace(prior, None, None, noise)
        alpha = trace.nodes["alpha"]["value"] if "alpha" in trace.nodes else torch.zeros(30).long()
        r = torch.nn.functional.one_hot(alpha, prior.num_components).mT.double()
        r = 0.9 * r + 0.1 / prior.num_components
        return (
            prior,
            trace.nodes["x"]["value"],
            Oracle(trace.nodes["z"]["value"], noise, r / r.sum(0)),
        )

    return build


@pytest.mark.parametrize("name", ["a_vae", "two_decoders"])
@pytest.mark.usefixtures("float64")
def test_schemes_start_where_the_guide_says(name: str, heard: Any) -> None:
    """Codes at its means, speech fainter where it is, W H near its noise if asked; it proposes its q."""
    prior, x, guide = heard(name)
    seen = observe(prior, x, guide=guide)
    assert torch.equal(starting_codes(seen, 3), guide.z.expand(3, 30, 2))
    assert encode(seen, seen.power) is seen.guess.codes
    scheme = SCHEMES["mcem"](noise=NoiseModel(start="guide"))
    theta = initial_theta(scheme, seen, torch.Generator().manual_seed(0))
    W_H = nmf_noise_variance(theta["dictionary"], theta["activations"])
    blind = initial_theta(scheme, observe(prior, x), torch.Generator().manual_seed(0))
    start = nmf_noise_variance(blind["dictionary"], blind["activations"])

    def error(V: Tensor) -> Tensor:
        return (V.log() - guide.noise.log()).square().mean()

    assert error(W_H) < 0.1 < error(start)
    assert torch.allclose(theta["gain"], torch.tensor(-0.7).exp())
    assert torch.equal(theta["response"], torch.zeros(4))


@pytest.mark.parametrize("noise", NOISE_MODELS.values(), ids=NOISE_MODELS)
@pytest.mark.usefixtures("float64")
def test_the_start_of_the_noise_is_that_of_each_recording_alone(noise: Any, heard: Any) -> None:
    prior, x, guide = heard("a_vae")
    both = torch.stack([x, torch.cat([x[:20], torch.zeros_like(x[:10])])])
    mask = torch.arange(30) < torch.tensor([[30], [20]])
    twice = Oracle(guide.z.expand(2, 30, 2), guide.noise.expand(2, 30, 7), guide.r[:, None])
    scheme = SCHEMES["mcem"](noise=replace(noise, start="guide"))
    seen = observe(prior, both, mask=mask, guide=twice)
    rng = torch.Generator().manual_seed(0)
    theta = initial_theta(scheme, seen, rng)
    W_H = nmf_noise_variance(theta["dictionary"], theta["activations"])
    for u, length in enumerate((30, 20)):
        error = W_H[u, :length].log() - guide.noise[:length].log()
        assert error.square().mean() < 0.1


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.usefixtures("float64")
def test_every_scheme_takes_a_guide(scheme: str, heard: Any) -> None:
    """With and without: another result, and in both all is finite."""
    prior, x, guide = heard("two_decoders")
    mcem = SCHEMES["mcem"](iterations=2, warmup=2, draws=2, final_warmup=2, final_draws=2)
    few = {
        "nuts": {"mcem": mcem, "warmup": 3, "draws": 3},
        "auto_normal": {"mcem": mcem, "steps": 3, "draws": 3},
    }
    built = SCHEMES[scheme](**few.get(scheme, {"iterations": 2}))
    lips = torch.rand(30, 67, 67)
    with_guide, without = (built(prior, x, lips, guide=g, seed=0) for g in (guide, None))
    assert with_guide.speech.isfinite().all()
    assert not torch.allclose(with_guide.speech, without.speech)
    again = built(prior, x, lips, guide=guide, seed=0)
    assert torch.equal(again.speech, with_guide.speech)


@pytest.mark.usefixtures("float64")
def test_a_better_proposal_is_worth_more_draws(heard: Any) -> None:
    """Importance sampling's effective sample size, by a guide that knows the posterior and by the encoders."""
    prior, x, guide = heard("a_vae")
    target = CollapsedTarget(prior, None, x.abs().square(), guide.noise, prior.mixing_weight)
    start = guide.z.expand(4, 30, 2)
    draws = run_chains(MALA(step_size=0.5), target, start, draws=300, warmup=200).draws
    guide.z, guide.width = draws.mean((0, 1)), float(draws.std((0, 1)).mean())
    scheme = Importance(iterations=1, draws=200, final_draws=200)
    sizes = [scheme(prior, x, guide=g, seed=0).effective_sample_size.mean() for g in (guide, None)]
    assert sizes[0] > sizes[1]


@pytest.mark.usefixtures("float64")
def test_proposals_gather_round_the_best_so_far(
    heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Population Monte Carlo: first round the guide's means, then round what was found; narrower in more dimensions."""
    prior, x, guide = heard("a_vae")
    law, proposed = importance.guide_mixture, []

    def listen(q: Independent, *rest: Any) -> Any:
        proposed.append((q, rest[4]))
        return law(q, *rest)

    monkeypatch.setattr(importance, "guide_mixture", listen)
    scheme, rng = Importance(draws=20, narrowing=0.6), torch.Generator().manual_seed(0)
    seen = observe(prior, x, guide=guide)
    state = scheme.init(seen, rng=rng)
    for around in (guide.z, None, None):
        around = state.z[0] if around is None else around
        state = scheme.step(seen, state, rng=rng)
        q, factor = proposed[-1]
        assert torch.equal(q.mean[0], around)
        assert torch.equal(q.stddev[0], torch.full_like(around, guide.width))
        assert factor == pytest.approx(0.6 / 2**0.5)  # of codes of two numbers
        assert not torch.allclose(state.z[0], around)
    Importance(iterations=1)(prior, x, guide=guide)
    assert proposed[-1][1] == 1  # never wider than the guide believes


@pytest.mark.usefixtures("float64")
def test_the_guide_followed_by_an_exact_kernel_is_calibrated(
    small_prior: Any, small_guide: Any
) -> None:
    """SBC [Talts et al. 2018] over 600 frames of the program: the truth's rank among draws that start at the guide's.

    An untrained guide alone is not calibrated, 300 steps of MALA from its draws are. p < 1e-5 has false alarms of 3e-5.
    """
    prior = small_prior("a_vae").requires_grad_(False)
    guide = small_guide(prior)
    noise = torch.full((600, 7), 1.0)
    trace = poutine.trace(noisy_speech).get_trace(prior, None, None, noise)
    x, truth = trace.nodes["x"]["value"], trace.nodes["z"]["value"]
    power = x.abs().square()
    target = CollapsedTarget(prior, None, power, noise, prior.mixing_weight)
    q = guide.guess(power).codes
    start = q.mean + q.stddev * torch.randn(9, 600, 2)

    def p_value(draws: Tensor) -> float:
        rank = (draws < truth).sum(0)
        counts = torch.stack([(rank == i).sum(0) for i in range(10)])
        return chisquare(counts.numpy()).pvalue.min()

    kernel = MALA(step_size=0.7)
    moved = run_chains(kernel, target, start, draws=1, warmup=300, seed=0).draws[:, 0]
    assert p_value(start) < 1e-5
    assert p_value(moved) > 1e-5


@pytest.mark.usefixtures("float64")
def test_a_mixture_without_its_lips_takes_the_guides_first_component(
    small_prior: Any, small_guide: Any
) -> None:
    """VAE-MM without lips is A-VAE: the guide's beliefs of audio are then all there is."""
    prior = small_prior("vae_mm")
    guide = small_guide(prior)
    x = torch.randn(6, 7, dtype=torch.complex128)
    alone = observe(prior.without_lips, x, guide=guide)
    assert alone.guess.codes.mean.shape == (1, 6, 2)
    assert torch.equal(alone.guess.codes.mean, guide.guess(alone.power).codes.mean[:1])
    assert torch.equal(alone.guess.responsibilities, torch.ones(1, 6))
