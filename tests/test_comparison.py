"""Schemes and kernels side by side: rows, what is refused and why, JSON, the page."""

import base64
import io
import json
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from pyro_avse import html
from pyro_avse.data.media.audio import Audio, audio_from_array
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.inference import MCEM, VEM
from pyro_avse.inference.auto_normal import AutoNormal
from pyro_avse.inference.elliptical_slice import EllipticalSlice
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.importance import Importance
from pyro_avse.inference.independence import Independence
from pyro_avse.inference.mala import MALA
from pyro_avse.inference.nuts import NUTS
from pyro_avse.inference.random_walk import RandomWalk
from pyro_avse.inference.ula import ULA
from pyro_avse.lab.comparison import NUMBERS, Clip, Comparison, compare
from pyro_avse.lab.diagnostics import (
    RHAT_MAX,
    Diagnosis,
    diagnose,
    sample_posterior,
    to_inference_data,
)
from pyro_avse.lab.page import COLUMNS, cells, comparison_page, input_cells
from pyro_avse.models import AVAE, MINVAEv2
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.typing import InputError, Separation

QUICK = {"iterations": 2, "warmup": 2, "draws": 2, "noise": NoiseModel(2)}
SCHEMES = {"vem": VEM(**QUICK), "mcem": MCEM(**QUICK)}
LONG_RUN = {"draws": 30, "warmup": 40, "chains": 3, "device": "cpu"}
TIMED = {"seconds", "ess_per_second_min", "ess_per_second_median"}
WANTED = {
    *("scheme", "kernel", "si_sdr", "sdr", "pesq_wb", "pesq_nb", "stoi", "seconds", "rhat_max"),
    *("ess_per_second_min", "ess_per_second_median", "acceptance"),
}


def sound(seed: int, seconds: float = 0.6) -> tuple[Audio, Audio]:
    """A syllable in noise, and without."""
    rng, n = np.random.default_rng(seed), int(16000 * seconds)
    tones = sum(np.sin(2 * np.pi * 150 * k * np.arange(n) / 16000) / k for k in range(1, 20))
    clean = tones * np.hanning(n)
    noisy = clean + 0.1 * rng.standard_normal(n)
    return audio_from_array(noisy, 16000), audio_from_array(clean, 16000)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip("one", *sound(0))


@pytest.fixture(scope="module")
def a_vae() -> AVAE:
    torch.manual_seed(0)
    return AVAE(hidden=8, latent_dim=3)


@pytest.fixture(scope="module")
def two_kernels(clip: Clip, a_vae: AVAE) -> Comparison:
    kernels = {"random_walk": RandomWalk(), "elliptical_slice": EllipticalSlice()}
    return compare([clip], a_vae, SCHEMES, kernels, **LONG_RUN)


def test_a_row_for_every_combination(two_kernels: Comparison) -> None:
    """Scheme by scheme, kernel by kernel; every number is there, with what the sampling numbers are of."""
    names = [(row["scheme"], row["kernel"]) for row in two_kernels.rows]
    assert names == [(s, k) for s in SCHEMES for k in ("random_walk", "elliptical_slice")]
    for row in two_kernels.rows:
        assert row.keys() >= WANTED
        assert row["iterations"] == 2
        assert row["seconds"] > 0
        assert all(isinstance(row[name], float) for name in NUMBERS), row
        assert row["diagnosed"] == "3 chains of 30 draws after 40"
        assert row["reason"] is None
        assert row["counts"] == dict.fromkeys(NUMBERS, 1)
        assert not row["intervals"]
        assert 0 < row["ess_per_second_min"] <= row["ess_per_second_median"]
        assert 0 <= row["unmixed"] <= 1


def test_the_numbers_are_the_diagnosis(two_kernels: Comparison) -> None:
    """ESS a second, R-hat and acceptance of a row are those of its frames; improvements are output minus input."""
    before = two_kernels.inputs[0]
    assert before is not None
    for row, trial in zip(two_kernels.rows, two_kernels.trials, strict=True):
        found, per_second = trial.diagnosis, trial.ess_per_second
        assert isinstance(found, Diagnosis)
        assert per_second is not None
        assert row["ess_per_second_min"] == per_second.min()
        ratio = found.ess_bulk / per_second  # the same seconds for every frame
        np.testing.assert_allclose(ratio, ratio[0])
        assert row["rhat_max"] == found.rhat.max()
        assert row["unmixed"] == (found.rhat > RHAT_MAX).mean()
        assert row["acceptance"] == pytest.approx(found.acceptance.mean())
        assert row["si_sdr_improvement"] == pytest.approx(row["si_sdr"] - before.si_sdr)


def test_the_same_seed_gives_the_same_rows(
    clip: Clip, a_vae: AVAE, two_kernels: Comparison
) -> None:
    """But for seconds, and alone or among others. Another seed differs."""
    kernels = {"random_walk": RandomWalk()}
    same = compare([clip], a_vae, {"vem": SCHEMES["vem"]}, kernels, **LONG_RUN).rows[0]
    other = compare([clip], a_vae, {"vem": SCHEMES["vem"]}, kernels, seed=1, **LONG_RUN).rows[0]
    first = two_kernels.rows[0]
    for name in set(NUMBERS) - TIMED:  # STOI's last digits depend on where memory lies
        assert same[name] == pytest.approx(first[name], rel=1e-9), name
    assert (other["si_sdr"], other["rhat_max"]) != (first["si_sdr"], first["rhat_max"])


def test_kernels_draw_from_one_posterior(clip: Clip, a_vae: AVAE) -> None:
    """A second kernel's chains are those of a long run on the first one's result, independence with its own guide."""
    kernels = {"random_walk": RandomWalk(), "hmc": HMC(), "independence": Independence()}
    found = compare([clip], a_vae, {"vem": SCHEMES["vem"]}, kernels, **LONG_RUN)
    first, own, guided = (trial.enhanced.separation for trial in found.trials if trial.enhanced)
    long_run = {"draws": 30, "warmup": 40, "chains": 3}
    for trial, held, kernel in (
        (found.trials[1], first, HMC()),
        (found.trials[2], with_proposal(first, guided), Independence()),
    ):
        drawn, _ = sample_posterior(held, kernel, **long_run)
        assert trial.diagnosis is not None
        np.testing.assert_allclose(trial.diagnosis.rhat, diagnose(to_inference_data(drawn)).rhat)
    other, _ = sample_posterior(own, HMC(), **long_run)
    assert not np.allclose(found.trials[1].diagnosis.rhat, diagnose(to_inference_data(other)).rhat)


def with_proposal(held: Any, guided: Any) -> Any:
    target = held.target
    return replace(held, target=replace(target, proposal=guided.target.proposal))


def test_schemes_that_weigh_or_draw_themselves(clip: Clip, a_vae: AVAE) -> None:
    """importance's own weights and nuts's own draws over all their seconds, which the rows say; and no R-hat of one."""
    mcem = MCEM(**QUICK, final_warmup=1, final_draws=1)
    schemes: dict[str, Any] = {
        "importance": Importance(iterations=2, draws=4, final_draws=8, noise=NoiseModel(2)),
        "nuts": NUTS(mcem=mcem, warmup=2, draws=4, max_tree_depth=1),
        "auto_normal": AutoNormal(mcem=mcem, steps=3, draws=4),
    }
    found = compare([clip], a_vae, schemes, **LONG_RUN)
    weighed, drawn, neither = found.rows
    assert found.trials[0].enhanced is not None
    ess = found.trials[0].enhanced.separation.effective_sample_size.numpy()
    assert weighed["ess_per_second_min"] == pytest.approx(ess.min() / weighed["seconds"])
    assert weighed["ess_per_second_median"] == pytest.approx(np.median(ess) / weighed["seconds"])
    whole = "over all its seconds, warm-up and EM included: no match for a kernel's"
    assert weighed["diagnosed"] == f"its own weights {whole}"
    assert drawn["diagnosed"] == f"its own draws {whole}"
    assert drawn["ess_per_second_min"] is not None
    assert weighed["rhat_max"] is drawn["rhat_max"] is None
    assert "no R-hat: one chain" in drawn["reason"]
    assert neither["reason"] == "no ESS: no chains"
    assert [row["iterations"] for row in found.rows] == [2, 4, 3]
    assert comparison_page(found)


def test_every_scheme_is_rehearsed(
    clip: Clip, a_vae: AVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One EM iteration, its own or of the mcem inside, and two steps and draws, before any clock is started."""
    seen: list[Any] = []

    def separate(enhancer: Enhancer, recording: Any, **options: Any) -> Any:
        seen.append(enhancer.inference)
        raise InputError("seen")

    monkeypatch.setattr(Enhancer, "separate", separate)
    schemes: dict[str, Any] = {"vem": VEM(), "nuts": NUTS(), "auto_normal": AutoNormal()}
    compare([clip], a_vae, schemes, **LONG_RUN)
    once = MCEM(iterations=1)
    assert seen == [
        *(VEM(iterations=1), VEM()),
        *(NUTS(mcem=once, warmup=2, draws=2), NUTS()),
        *(AutoNormal(mcem=once, steps=2, draws=2), AutoNormal()),
    ]


def test_what_does_not_fit_is_a_row_with_the_reason(clip: Clip) -> None:
    """Elliptical slice sampling of a collapsed mixture, a chain that explodes: no number, and why; others go on."""
    prior = MINVAEv2(hidden=8, latent_dim=3, features=8)
    kernels = {"elliptical_slice": EllipticalSlice(), "mala": MALA(0.01)}
    refused, fits = compare([clip], prior, {"mcem": SCHEMES["mcem"]}, kernels, **LONG_RUN).rows
    assert "a mixture of 2 components" in refused["reason"]
    assert all(refused[name] is None for name in NUMBERS)
    assert refused["counts"] == dict.fromkeys(NUMBERS, 0)
    assert fits["reason"] is None
    assert fits["si_sdr"] is not None


@dataclass(frozen=True)
class Other:
    """A scheme without a kernel: VEM's result, its chains kept or not."""

    keep: bool

    def __call__(self, *args: Any, **options: Any) -> Separation:
        result = VEM(**(QUICK | {"draws": 20, "chains": 2}))(*args, **options)
        return result if self.keep else replace(result, chains=None)


def test_schemes_without_a_kernel_or_chains(clip: Clip, a_vae: AVAE) -> None:
    """One row each, whatever the kernels: own draws over all seconds, or a score without sampling numbers."""
    kernels = {"mala": MALA(), "random_walk": RandomWalk()}
    found = compare([clip], a_vae, {"own": Other(True), "none": Other(False)}, kernels, **LONG_RUN)
    own, none = found.rows
    assert own["kernel"] is none["kernel"] is None
    assert own["diagnosed"].startswith("its own draws over all its seconds")
    assert own["unmixed"] is not None
    diagnosis = found.trials[0].diagnosis
    assert diagnosis is not None
    assert own["ess_per_second_min"] == diagnosis.ess_bulk.min() / own["seconds"]
    assert none["si_sdr"] is not None
    assert none["ess_per_second_min"] is none["rhat_max"] is none["acceptance"] is None
    assert none["reason"] == "no ESS: no chains"


def test_no_kernels_no_draws_no_reference(clip: Clip, a_vae: AVAE) -> None:
    """Each scheme's own kernel by its name; 0 draws leave out the long run; without a clean clip no scores."""
    bare = replace(clip, clean=None)
    schemes = {"one": replace(SCHEMES["vem"], kernel=MALA()), "other": SCHEMES["mcem"]}
    found = compare([bare], a_vae, schemes, **(LONG_RUN | {"draws": 0}))
    assert [row["kernel"] for row in found.rows] == ["mala", "random_walk"]
    for row in found.rows:
        assert row["reason"] == "no scores: no reference; no ESS: no draws were asked for"
        assert row["si_sdr"] is row["ess_per_second_min"] is None
        assert row["seconds"] is not None
    assert found.as_dict()["clips"][0]["input"] is None


def test_a_run_that_explodes_leaves_the_scores(clip: Clip, a_vae: AVAE) -> None:
    """A long run that ends in a divergence takes only the sampling numbers with it."""

    @dataclass(frozen=True)
    class Later(ULA):
        """Sound in the scheme, whose chain is one; broken in the long run, whose chains are three."""

        def step(self, target: Any, state: Any, *, rng: torch.Generator) -> Any:
            new, info = super().step(target, state, rng=rng)
            bad = new.log_density * torch.nan if len(new.z) == 3 else new.log_density
            return replace(new, log_density=bad), info

    row = compare([clip], a_vae, {"vem": SCHEMES["vem"]}, {"later": Later(0.01)}, **LONG_RUN).rows[
        0
    ]
    assert row["si_sdr"] is not None
    assert row["rhat_max"] is None
    assert row["reason"].startswith("no ESS: Later: the log density")


def test_adaptation_where_it_can_be(clip: Clip, a_vae: AVAE) -> None:
    """`adapt` changes what a random walk draws in the scheme, and leaves elliptical slice sampling as it is."""
    kernels = {"random_walk": RandomWalk(1.0), "elliptical_slice": EllipticalSlice()}
    settings = {**LONG_RUN, "draws": 0}
    plain, adapted = (
        compare([clip], a_vae, {"vem": SCHEMES["vem"]}, kernels, adapt=on, **settings).rows
        for on in (False, True)
    )
    assert plain[0]["si_sdr"] != adapted[0]["si_sdr"]
    assert plain[1]["si_sdr"] == adapted[1]["si_sdr"]


def test_several_clips_have_means_and_intervals(clip: Clip, a_vae: AVAE) -> None:
    """Means, Student's intervals and counts over three clips, one of them without a reference; the worst R-hat."""
    clips = [clip, Clip("two", *sound(1)), Clip("three", sound(2)[0])]
    found = compare(clips, a_vae, {"vem": SCHEMES["vem"]}, **LONG_RUN)
    row, trials = found.rows[0], [trial.row for trial in found.trials]
    assert [trial["clip"] for trial in trials] == ["one", "two", "three"]
    scores = [trial["si_sdr"] for trial in trials[:2]]
    assert row["si_sdr"] == pytest.approx(np.mean(scores))
    half = 12.7062 * abs(scores[0] - scores[1]) / 2  # t of 97.5 % with 1 degree of freedom
    assert row["intervals"]["si_sdr"] == pytest.approx(
        [row["si_sdr"] - half, row["si_sdr"] + half], rel=1e-4
    )
    assert row["counts"]["si_sdr"] == 2
    assert row["counts"]["seconds"] == 3
    assert row["rhat_max"] == max(trial["rhat_max"] for trial in trials)
    assert row["reason"] == "no scores: no reference"
    text = dict(zip(COLUMNS, cells(row, 3)[2:], strict=True))
    assert text["si_sdr"] == f"{row['si_sdr']:.1f} ± {half:.1f} (n=2/3)"
    assert [trial.enhanced is None for trial in found.trials] == [False, True, True]
    json.dumps(found.as_dict(), allow_nan=False)
    assert comparison_page(found)


def test_a_reference_of_another_clip_is_refused(clip: Clip, a_vae: AVAE) -> None:
    with pytest.raises(InputError, match=r"lasts 0\.900 s, the recording 0\.600 s"):
        compare([replace(clip, clean=sound(0, 0.9)[1])], a_vae, SCHEMES)


def test_the_page_stands_alone(two_kernels: Comparison) -> None:
    """Sounds and pictures are inside, decodable and of the clip; nothing outside is named; names are escaped."""
    clip = replace(two_kernels.clips[0], name="<script>one</script>")
    page = comparison_page(replace(two_kernels, clips=[clip])).decode()
    sources = re.findall(r'src="([^"]*)"', page)
    assert all(source.startswith("data:") for source in sources)
    bare = re.sub(r'"data:[^"]*"', "", page)
    for outside in ("http", "href", "url(", "@import", "<script", "<link"):
        assert outside not in bare
    assert "&lt;script&gt;" in bare
    assert html.table(["<b>"], [["<b>"]]).count("&lt;b&gt;") == 2
    data = [base64.b64decode(source.partition(",")[2]) for source in sources]
    sounds = [soundfile.read(io.BytesIO(d))[0] for d in data[:6]]
    np.testing.assert_allclose(sounds[0], clip.mixture.waveform, atol=1 / 32000)
    for heard, trial in zip(sounds[2:], two_kernels.trials, strict=True):
        assert trial.enhanced is not None
        np.testing.assert_allclose(heard, trial.enhanced.speech_16k.clip(-1, 1), atol=1 / 32000)
    assert len(data) == 9  # noisy, clean, four results; spectrograms, objectives, ESS
    for picture in data[6:]:
        assert np.ptp(imread(io.BytesIO(picture))) > 0.5
    for text in (*input_cells(two_kernels), *cells(two_kernels.rows[0], 1)):
        assert f"<td>{text}</td>" in bare
