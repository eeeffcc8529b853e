"""How sure a scheme is of speech: moments and intervals against quadrature, and whether they hold it. S17, S20"""

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import butter, sosfiltfilt
from scipy.stats import norm
from torch import Tensor, nn

from pyro_avse.cli import main
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.uncertainty import Uncertainty
from pyro_avse.inference import KERNELS, MCEM, run_chains
from pyro_avse.inference.adaptation import DualAveraging
from pyro_avse.inference.guided import pooled
from pyro_avse.inference.monte_carlo import weighted_draws
from pyro_avse.inference.uncertainty import alpha_band, cdf, draw_speech, interval, moments, sure
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.models.noise_floor import CUTOFF, ORDER
from pyro_avse.stft import STFT
from pyro_avse.typing import InputError, Separation, SpeechPosterior
from pyro_avse.weights.checkpoint import save_prior
from tests.test_calibration import Story, draw_story, every_exact_kernel, fitting
from tests.test_calibration import prior as prior
from tests.test_schemes import every_scheme, short

pytestmark = pytest.mark.usefixtures("float64")
SHARES = (0.5, 0.8, 0.95)


def separated(x: Tensor, V_s: Tensor, V_b: Tensor, weights: Tensor) -> Separation:
    """A separation of nothing but the posterior of speech, and its mean."""
    posterior = SpeechPosterior(x, V_s, V_b, weights)
    gain = V_s / (V_s + V_b)
    w = weights.sum(0, keepdim=True) if len(V_s) < len(weights) else weights
    none: Any = None
    return Separation(
        speech=(w[..., None] * gain).sum((0, 1)) * x,
        responsibilities=weights.sum(1),
        posterior=posterior,
        **dict.fromkeys(
            ("mixing_weight", "dictionary", "activations", "objective", "z", "target"), none
        ),
    )


def random_separation() -> Separation:
    """Of two components with decoders of their own, five draws of unlike weights."""
    weights = torch.rand(2, 5, 4)
    return separated(
        torch.randn(4, 3, dtype=torch.complex128),
        torch.rand(2, 5, 4, 3).exp(),
        torch.rand(4, 3)[None, None],
        weights / weights.sum((0, 1)),
    )


def by_grid(story: Story) -> Separation:
    """The posterior of speech of every frame by quadrature over both components and a grid of z."""
    axis = torch.linspace(-1.3, 1.3, 27)
    z = torch.cartesian_prod(axis, axis)[:, None]
    sigma = story.target.prior.log_variance(z, None).exp()
    w = torch.softmax(story.target.component_log_joint(z).flatten(0, 1), 0).unflatten(0, (2, -1))
    return separated(story.x, sigma, story.target.noise_variance[None, None, None], w)


def by_kernel(story: Story, kernel: Any, draws: int, **options: Any) -> Separation:
    """The same by a chain a frame, started at the truth of another one."""
    tunable = hasattr(getattr(kernel, "inner", kernel), "target_acceptance")
    adapt = DualAveraging() if tunable else None
    z0 = story.z.roll(1, 1)
    chains = run_chains(kernel, story.target, z0, draws=draws, adapt=adapt, seed=3, **options)
    sigma, w = weighted_draws(story.target, chains.draws[0])
    return separated(story.x, sigma, story.target.noise_variance[None, None, None], w)


def few_frames(found: Separation, frames: int) -> Separation:
    """The first frames."""
    p = found.posterior
    assert p is not None
    of_frames = [t[:, :, :frames] for t in (p.speech_variance, p.noise_variance, p.weights)]
    return separated(p.mixture[:frames], *of_frames)


def without_filters_variance(found: Separation) -> Separation:
    """A twin: as if given z and alpha speech were known, the spread of the filters is all that is left."""
    p = found.posterior
    assert p is not None
    gain = p.speech_variance / (p.speech_variance + p.noise_variance)
    return replace(
        found,
        posterior=replace(p, speech_variance=1e-6 * gain, noise_variance=1e-6 * (1 - gain)),
    )


def as_one_filter(found: Separation) -> Separation:
    """A twin: r(s) of (35), one Gaussian by the mean precision, as a mean-field scheme has it."""
    p = found.posterior
    assert p is not None
    gamma = (p.weights[..., None] / p.speech_variance).sum((0, 1)).reciprocal()[None, None]
    return separated(
        p.mixture, gamma, p.noise_variance[0, 0, None, None], torch.ones(1, 1, len(p.mixture))
    )


def worst_coverage(found: Separation, truth: Tensor) -> float:
    """The worst of 42 z-scores of how often intervals of 50, 80 and 95 % hold the truth, frame by frame independent.

    |z| > 4.5 has probability 7e-6 each, so that false alarms are 3e-4.
    """
    far = (cdf(found, truth) - 0.5).abs() * 2  # (part, frame, freq)
    z = [((far <= q).double().mean(1) - q) / (q * (1 - q) / far.shape[1]) ** 0.5 for q in SHARES]
    return torch.stack(z).abs().max().item()


def test_moments_are_those_of_the_mixture() -> None:
    """E s and Var s by their definition, E|s|^2 - |E s|^2, and the share of power that is known."""
    found = random_separation()
    p = found.posterior
    assert p is not None
    gain = p.speech_variance / (p.speech_variance + p.noise_variance)
    second = (gain * p.mixture).abs().square() + gain * p.noise_variance
    second = (p.weights[..., None] * second).sum((0, 1))
    mean, variance = moments(found)
    torch.testing.assert_close(variance, second - mean.abs().square())
    torch.testing.assert_close(sure(mean, variance), mean.abs().square().sum(-1) / second.sum(-1))
    assert sure(0 * mean, 0 * variance).eq(1).all()


def test_probabilities_are_those_of_the_mixture() -> None:
    """The distribution function by SciPy, term by term; intervals end at its quantiles, whatever their share."""
    found, truth = random_separation(), torch.randn(4, 3, dtype=torch.complex128)
    p = found.posterior
    assert p is not None
    gain = p.speech_variance / (p.speech_variance + p.noise_variance)
    for part, of in enumerate((torch.real, torch.imag)):
        terms = norm.cdf(of(truth), gain * of(p.mixture), (gain * p.noise_variance / 2).sqrt())
        expected = (p.weights[..., None] * torch.from_numpy(terms)).sum((0, 1))
        torch.testing.assert_close(cdf(found, truth)[part], expected)
    for share in (0.02, 0.8, 0.999):
        for ends, quantile in zip(
            interval(found, share), (0.5 - share / 2, 0.5 + share / 2), strict=True
        ):
            at = cdf(found, torch.complex(*ends))
            torch.testing.assert_close(at, torch.full_like(at, quantile), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match=r"share is 1\.0: give a number between 0 and 1"):
        interval(found, 1.0)


@pytest.mark.parametrize("of_recording", [False, True])
def test_draws_have_the_moments_and_the_distribution(of_recording: bool) -> None:
    """5 000 draws: z-scores of means and of powers under 4.5 (false alarms 4e-4); shares of a draw go together."""
    found = random_separation()
    p = found.posterior
    assert p is not None
    if of_recording:  # then a draw weighs the same in every frame
        even = p.weights / p.weights.sum(0) / p.weights.shape[1]
        V = (p.speech_variance, p.noise_variance)
        found = separated(p.mixture, *V, even)
        found = replace(found, posterior=replace(found.posterior, of_recording=True))
    s = draw_speech(found, 5_000, rng=torch.Generator().manual_seed(1))
    mean, variance = moments(found)
    away = (s - mean).abs().square()
    for terms, expected in ((s.real, mean.real), (s.imag, mean.imag), (away, variance)):
        z = (terms.mean(0) - expected) / (terms.var(0) / len(s)).sqrt()
        assert z.abs().max() < 4.5
    below = (s.real <= mean.real + 0.3).double().mean(0)
    expected = cdf(found, mean + 0.3)[0]
    assert ((below - expected) / (expected * (1 - expected) / len(s)).sqrt()).abs().max() < 4.5
    with pytest.raises(InputError, match="draws is 0: give 1 or more"):
        draw_speech(found, 0, rng=torch.Generator())


def test_draws_of_a_recording_keep_its_frames_together() -> None:
    """Where a draw is of the whole recording all frames take the same; else each its own."""
    V_s = torch.tensor([1e-4, 1e4])[None, :, None, None].expand(1, 2, 6, 1)
    x, noise = torch.ones(6, 1, dtype=torch.complex128), torch.full((1, 1, 6, 1), 1e-8)
    found = separated(x, V_s, noise + 1e-2, torch.full((1, 2, 6), 0.5))
    rng = torch.Generator().manual_seed(0)
    apart = draw_speech(found, 40, rng=rng).real[..., 0] > 0.5
    assert (apart != apart[:, :1]).any()
    found = replace(found, posterior=replace(found.posterior, of_recording=True))
    together = draw_speech(found, 40, rng=rng).real[..., 0] > 0.5
    assert (together == together[:, :1]).all()
    assert 5 < together[:, 0].sum() < 35


def test_intervals_hold_the_truth_as_often_as_they_say(prior: nn.Module) -> None:
    """S17, S20: 50, 80 and 95 % of 800 truths, by quadrature and by chains, and no interval wider than it must be;
    without the filters' own variance, or with one filter in place of many, they hold fewer."""
    story = draw_story(prior, 800)
    exact = by_grid(story)
    assert worst_coverage(exact, story.s) < 4.5
    found = by_kernel(story, KERNELS["mala"](), 40, warmup=80, thin=4)
    assert worst_coverage(found, story.s) < 4.5
    few = (few_frames(p, 30) for p in (found, exact))
    (low, high), (least_low, least_high) = (interval(p, 0.8) for p in few)
    ratio = (high - low).mean() / (least_high - least_low).mean()
    assert float(ratio) == pytest.approx(1, abs=0.01)
    assert worst_coverage(without_filters_variance(found), story.s) > 4.5
    assert worst_coverage(as_one_filter(found), story.s) > 4.5


@every_exact_kernel
@pytest.mark.slow
def test_intervals_hold_the_truth_in_full(name: str, prior: nn.Module) -> None:
    """S17, S20: the same for every exact kernel, with ten times the frames and longer chains."""
    story = draw_story(prior, 10_000)
    found = by_kernel(story, fitting(name, story), 100, warmup=400, thin=20)
    assert worst_coverage(found, story.s) < 4.5
    assert worst_coverage(without_filters_variance(found), story.s) > 4.5
    assert worst_coverage(as_one_filter(found), story.s) > 4.5


@every_scheme
def test_every_scheme_with_draws_has_its_estimate_in_the_middle(
    scheme: str, small_prior: Callable[..., Any]
) -> None:
    """S20, (45): the posterior's mean is the speech; a scheme with one code a frame has none and says so in a line."""
    x, lips = torch.randn(2, 4, 7, dtype=torch.complex128), torch.rand(2, 4, 67, 67)
    found = short(scheme)(small_prior("two_decoders"), x, lips)
    if scheme in ("peem", "gpeem"):
        with pytest.raises(InputError, match="ends with one code a frame and has no draws: take"):
            moments(found)
        return
    p = found.posterior
    middle = separated(p.mixture, p.speech_variance, p.noise_variance, p.weights)
    torch.testing.assert_close(middle.speech, found.speech)
    torch.testing.assert_close(p.weights.sum((0, 1)), torch.ones(2, 4))
    low, high = alpha_band(found)
    assert ((low >= 0) & (low <= high) & (high <= 1)).all()


def test_the_band_of_alpha_holds_nine_tenths() -> None:
    """Of twenty draws of equal weight, from the first or second to the nineteenth."""
    r = torch.arange(1, 21) / 40
    weights = torch.stack([r, 1 - r])[..., None] / 20
    one = torch.ones(1, 20, 1, 1)
    low, high = alpha_band(separated(torch.ones(1, 1) + 0j, one, one, weights))
    assert float(low[0, 0]) == pytest.approx(1.5 / 40, abs=0.51 / 40)
    assert float(high[0, 0]) == pytest.approx(19.5 / 40, abs=0.51 / 40)


def test_a_pooled_posterior_is_between_two_filters() -> None:
    """Its gain by hand, G_guide^v G^(1-v); x has the variance that it had; at v = 0 nothing changes."""
    p = random_separation().posterior
    assert p is not None
    guide = torch.rand(4, 3)
    V = p.speech_variance + p.noise_variance
    for share in (0.0, 0.3):
        q = pooled(p, guide, share)
        gain = guide**share * (p.speech_variance / V) ** (1 - share)
        torch.testing.assert_close(q.speech_variance, gain * V)
        torch.testing.assert_close(q.speech_variance + q.noise_variance, V)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Any) -> Path:
    """A model and four seconds of sound at 22.05 kHz, in two channels, the second silent for a while."""
    root = tmp_path_factory.mktemp("doubt")
    torch.manual_seed(0)
    save_prior(root / "a.safetensors", tiny_prior("a_vae"), STFT())
    sound = 0.1 * np.random.default_rng(0).standard_normal((88_200, 2))
    sound[:, 1] *= 0.01
    soundfile.write(root / "noisy.wav", sound, 22_050, subtype="FLOAT")
    return root


@pytest.fixture
def into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """into("--draws", 2): the exit code of `pyro-avse enhance noisy.wav -o out.wav --draws 2`, in an empty folder."""

    def call(*options: str) -> int:
        args = ["enhance", str(folder / "noisy.wav"), "--model", str(folder / "a.safetensors")]
        args += ["-o", str(folder / "out.wav"), "--device", "cpu", *options]
        monkeypatch.setattr(sys, "argv", ["pyro-avse", *args])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return call


@pytest.mark.parametrize("block", ["0", "3"])
def test_draws_and_uncertainty_of_a_file(
    block: str, folder: Path, into: Callable[..., int]
) -> None:
    """As a whole and in blocks: draws of its rate and length, unlike each other; arrays by the frame, in its unit."""
    doubt = folder / "doubt.npz"
    more = ["--inference", "ldem", "--iterations", "2", "--block", block]
    assert into(*more, "--draws", "2", "--uncertainty", str(doubt)) == 0
    speech, one, two = (
        soundfile.read(folder / f"out{name}.wav") for name in ("", "_draw1", "_draw2")
    )
    assert one[1] == 22_050
    assert len(one[0]) == len(two[0]) == 88_200
    assert np.square(one[0] - two[0]).sum() > 0
    found = np.load(doubt)
    assert set(found) == {field.name for field in fields(Uncertainty)}
    frames = len(found["times"])
    assert all(len(found[name]) == frames for name in found)
    assert (np.diff(found["times"]) > 0).all()
    assert found["times"][-1] == pytest.approx(4, abs=0.04)
    loud = np.square(np.abs(found["mean"])).mean() / 512  # of a sample, under a sine window
    above = butter(ORDER, CUTOFF, "high", fs=speech[1], output="sos")  # below, nothing is inferred
    assert loud == pytest.approx(np.square(sosfiltfilt(above, speech[0])).mean(), rel=0.3)
    assert ((found["sure"] > 0) & (found["sure"] <= 1)).all()
    assert doubt.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draws", "2", "--inference", "peem"], "peem ends with one code a frame: it has no"),
        (
            ["--uncertainty", "doubt.png"],
            "doubt.png is to be an uncertainty's file: end it in .npz",
        ),
        (["--draws", "1", "-o", "-"], "which is stdout: name a file with -o"),
        (["--draws", "1", "--noise-out", "{}/out_draw1.wav"], "out_draw1.wav is a draw too"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    options: list[str],
    message: str,
    folder: Path,
    into: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert into(*(option.format(folder) for option in options)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in " ".join(told)
    assert "Traceback" not in "".join(told)


def test_a_recording_of_a_batch_has_its_own_posterior(tiny_prior: Any) -> None:
    """Cut to its frames, with draws and uncertainty."""
    torch.set_default_dtype(torch.float32)
    scheme = MCEM(
        iterations=1, warmup=1, draws=2, final_warmup=1, final_draws=2, noise=NoiseModel(2)
    )
    enhancer = Enhancer(tiny_prior("min_vae_v2", num_freqs=513), scheme, device="cpu")
    rng = np.random.default_rng(0)
    recordings = [enhancer.prepare(0.1 * rng.standard_normal(n)) for n in (4_000, 8_000)]
    for enhanced, recording in zip(enhancer.batch(recordings), recordings, strict=True):
        doubt = enhanced.uncertainty
        assert doubt.mean.shape == doubt.variance.shape == recording.spectrum.shape
        assert len(enhanced.draws(1)[0]) == len(enhanced.speech)
