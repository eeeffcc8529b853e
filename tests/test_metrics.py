"""Scores agree with closed forms and the packages under torchmetrics; a missing one says why."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyro_avse.metrics import NAMES, Scores, auc, score
from pyro_avse.typing import InputError

DATA = Path(__file__).parents[2] / "shared" / "data"


def bursts(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise bursts of 0.3 s, 0.3 s apart: speech enough for PESQ and STOI."""
    n = round(16000 * seconds)
    on = np.arange(n) // 4800 % 2 == 0
    return 0.1 * np.random.default_rng(seed).standard_normal(n) * on


def orthogonal_noise(reference: np.ndarray, snr_db: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(len(reference))
    noise -= reference * (noise @ reference) / (reference @ reference)
    return noise * np.linalg.norm(reference) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0])
@pytest.mark.parametrize("gain", [1e-9, 0.3, 100.0])
def test_si_sdr_of_orthogonal_noise_is_its_snr(snr_db: float, gain: float) -> None:
    reference = bursts(1.0)
    estimate = gain * (reference + orthogonal_noise(reference, snr_db))
    assert score(estimate, reference).si_sdr == pytest.approx(snr_db, abs=1e-6)


def test_si_sdr_keeps_the_mean() -> None:
    reference = bursts(1.0)
    reference -= reference.mean()
    estimate = reference + np.sqrt(np.mean(reference**2))  # an offset as strong as the speech: 0 dB
    assert score(estimate, reference).si_sdr == pytest.approx(0, abs=1e-6)


def test_sdr_forgives_a_filter_as_a_least_squares_fit_does() -> None:
    reference = bursts(1.0)
    taps = np.random.default_rng(2).standard_normal(300)
    filtered = np.convolve(reference, taps)[: len(reference)]
    estimate = filtered + orthogonal_noise(filtered, 10.0)
    # BSS-eval's definition: project onto the reference's 512 shifts, the estimate zero-padded.
    shifts = np.zeros((len(reference) + 511, 512))
    for k in range(512):
        shifts[k : k + len(reference), k] = reference
    padded = np.concatenate([estimate, np.zeros(511)])
    target = shifts @ np.linalg.solve(shifts.T @ shifts, shifts.T @ padded)
    expected = 10 * np.log10(np.sum(target**2) / np.sum((padded - target) ** 2))
    scores = score(estimate, reference)
    assert scores.sdr == pytest.approx(expected, abs=1e-4)
    assert scores.sdr > 9
    assert scores.si_sdr < 0, "SI-SDR forgives no filter"


def test_pesq_and_stoi_are_the_packages_own() -> None:
    from pesq import pesq
    from pystoi import stoi

    reference = bursts(3.0)
    estimate = reference + 0.02 * np.random.default_rng(3).standard_normal(len(reference))
    scores = score(estimate, reference)
    assert scores.pesq_wb == pytest.approx(pesq(16000, reference, estimate, "wb"), abs=1e-4)
    assert scores.pesq_nb == pytest.approx(pesq(16000, reference, estimate, "nb"), abs=1e-4)
    assert scores.stoi == pytest.approx(stoi(reference, estimate, 16000), abs=1e-6)
    assert scores.estoi == pytest.approx(stoi(reference, estimate, 16000, extended=True), abs=1e-6)
    assert scores.estoi != scores.stoi
    assert scores.pesq_wb != scores.pesq_nb
    assert scores.reasons == {}


def test_the_estimates_level_does_not_matter() -> None:
    reference = bursts(2.0)
    estimate = reference + orthogonal_noise(reference, 5.0)
    scores = score(estimate, reference)
    for gain in (1e-30, 1e6):
        for scaled in (score(gain * estimate, reference), score(estimate, gain * reference)):
            for name in NAMES:
                assert getattr(scaled, name) == pytest.approx(getattr(scores, name), abs=1e-4)


def test_a_perfect_estimate_scores_best() -> None:
    reference = bursts(2.0)
    scores = score(reference + orthogonal_noise(reference, 120.0), reference)
    assert scores.si_sdr > 100
    assert scores.sdr > 100
    assert scores.pesq_wb == pytest.approx(4.644, abs=1e-3)
    assert scores.pesq_nb == pytest.approx(4.549, abs=1e-3)
    assert scores.stoi == pytest.approx(1, abs=1e-6)
    assert scores.estoi == pytest.approx(1, abs=1e-6)


def test_missing_scores_are_nan_with_a_reason() -> None:
    speech, rng = bursts(2.0), np.random.default_rng(4)
    noisy = speech + 0.01 * rng.standard_normal(len(speech))
    with_nan = np.where(np.arange(len(speech)) == 5, np.nan, noisy)
    click = np.zeros(len(speech))
    click[100] = 1
    blip = np.where(np.arange(len(speech)) < 800, noisy, 0.0)  # 0.05 s
    long = bursts(40.0)
    pesqs, stois = {"pesq_wb", "pesq_nb"}, {"stoi", "estoi"}
    for estimate, reference, sample_rate, missing, reason in [
        (0 * speech, speech, 16000, set(NAMES), "the estimate is silent"),
        (noisy, 0 * speech, 16000, set(NAMES), "the reference is silent"),
        (with_nan, speech, 16000, set(NAMES), "the estimate holds NaN"),
        (noisy[:5000], speech[:5000], 16000, stois, "0.4 s of speech"),
        (noisy[:3999], speech[:3999], 16000, stois | pesqs, "at least 1/4 of a second"),
        (noisy[:300], speech[:300], 16000, stois | pesqs | {"sdr"}, "fewer than the 512 taps"),
        (noisy[:1], speech[:1], 16000, stois | pesqs | {"sdr"}, "fewer than the 512 taps"),
        (noisy, click, 16000, stois, "0.4 s of speech"),
        (noisy, blip, 16000, stois | pesqs, "No utterances detected"),
        (noisy, speech, 8000, {"pesq_wb"}, "wb PESQ takes 16000 Hz, not 8000"),
        (noisy, speech, 44100, pesqs, "nb PESQ takes 8000 or 16000 Hz, not 44100"),
        (long + 0.01, long, 16000, pesqs, "lasts 40.0 s, PESQ takes up to 20 s"),
    ]:
        scores = score(estimate, reference, sample_rate)
        nan = {name for name in NAMES if math.isnan(getattr(scores, name))}
        assert nan == missing == set(scores.reasons), (reason, scores)
        assert any(reason in text for text in scores.reasons.values()), scores.reasons


def test_the_longest_clip_pesq_is_given_holds_no_more_utterances_than_it_can_count() -> None:
    # In a process of its own, since an overrun kills it: at 40 s these bursts do.
    code = (
        "import numpy as np; from pyro_avse.metrics import score\n"
        "for burst in (3300, 3500, 4800):\n"
        "    on = np.arange(320000) // burst % 2 == 0\n"
        "    x = np.random.default_rng(0).standard_normal(320000) * on\n"
        "    print(score(x + 0.1, x).pesq_wb)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(1 <= float(line) <= 4.65 for line in done.stdout.split())
    assert len(done.stdout.split()) == 3


def test_unequal_or_many_channels_are_refused() -> None:
    for estimate, reference in [
        (np.ones(9), np.ones(10)),
        (np.ones((2, 10)), np.ones((2, 10))),
    ]:
        with pytest.raises(InputError, match="of the same length"):
            score(estimate, reference)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    """By counting all pairs, ties half, whatever the scale; NaN with its reason where nothing is to be told apart."""
    rng = np.random.default_rng(6)
    truth = rng.random(300) < 0.3
    detector = np.round(rng.random(300) * 0.9 + 0.1 * truth, 1)
    pairs = detector[truth][:, None] - detector[~truth][None]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert auc(detector, truth) == (pytest.approx(expected, abs=1e-6), "")
    assert auc(1 - detector, truth)[0] == pytest.approx(1 - expected, abs=1e-6)
    assert auc(truth.astype(float), truth)[0] == 1
    assert auc(100 * detector - 7, truth)[0] == pytest.approx(expected, abs=1e-6)
    assert auc(np.ones(300), truth)[0] == 0.5
    for bad, labels, reason in [
        (detector, truth & False, "0 of 300 frames are true"),
        (detector, truth | True, "300 of 300"),
        (np.where(detector > 0.5, np.nan, detector), truth, "NaN or infinite"),
    ]:
        area, why = auc(bad, labels)
        assert math.isnan(area)
        assert reason in why


def test_some_scores_can_be_left_out() -> None:
    """What is not asked for is missing with that reason, and the others are what they were."""
    reference = bursts(2.0)
    estimate = reference + orthogonal_noise(reference, 5.0)
    some, every = score(estimate, reference, only=("si_sdr", "stoi")), score(estimate, reference)
    assert (some.si_sdr, some.stoi) == (every.si_sdr, every.stoi)
    assert math.isnan(some.sdr)
    assert set(some.reasons) == {"sdr", "pesq_wb", "pesq_nb", "estoi"}
    assert set(some.reasons.values()) == {"it was not asked for"}


def test_as_dict_is_json() -> None:
    scores = Scores(1.5, math.nan, 2.0, 3.0, 0.5, 0.4, {"sdr": "too short"})
    assert json.loads(json.dumps(scores.as_dict(), allow_nan=False)) == {
        "si_sdr": 1.5,
        "sdr": None,
        "pesq_wb": 2.0,
        "pesq_nb": 3.0,
        "stoi": 0.5,
        "estoi": 0.4,
        "reasons": {"sdr": "too short"},
    }


def test_importing_metrics_is_cheap() -> None:
    code = "import sys, pyro_avse.metrics; sys.exit('torchmetrics' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_less_noise_scores_higher_on_speech() -> None:
    import soundfile

    speech, _ = soundfile.read(DATA / "grid/valid/s1/bbaf5a.flac")
    noise = np.random.default_rng(5).standard_normal(len(speech)) * np.sqrt(np.mean(speech**2))
    worse, better = score(speech + noise, speech), score(speech + 0.1 * noise, speech)
    assert all(getattr(better, name) > getattr(worse, name) for name in NAMES)
