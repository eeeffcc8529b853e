"""Several recordings at once: padding is nothing, each result is its own, and sweeps by batches go on as others do."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import audio_from_array, load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.enhancement import enhancer as module
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.front import low_speech
from pyro_avse.inference import LDEM, MCEM, SCHEMES, VEM
from pyro_avse.metrics import score
from pyro_avse.models.nmf_noise import NoiseModel
from pyro_avse.stft import STFT
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.results import load_results
from pyro_avse.typing import InputError, Scheme
from pyro_avse.weights.checkpoint import load_prior

Same = Callable[[pd.DataFrame, pd.DataFrame], None]
QUICK: dict[str, Scheme] = {
    "vem": VEM(iterations=3, warmup=2, draws=2, noise=NoiseModel(3)),
    "mcem": MCEM(
        iterations=3, warmup=2, draws=2, final_warmup=2, final_draws=2, noise=NoiseModel(3)
    ),
}
LENGTHS = (9000, 16000, 12345)


def noisy(samples: int, seed: int = 0) -> np.ndarray:
    """A hum that comes and goes, in noise."""
    time = np.arange(samples) / 16000
    noise = np.random.default_rng(seed).standard_normal(samples)
    return np.sin(2 * np.pi * 440 * time) * np.sin(2 * np.pi * 3 * time) ** 2 + 0.2 * noise


def three(enhancer: Enhancer, *, lips: bool = True) -> list[Recording]:
    """Recordings of different lengths, with lips."""
    rng = np.random.default_rng(0)
    recordings = []
    for seed, samples in enumerate(LENGTHS):
        mouths = rng.integers(0, 256, (samples * 30 // 16000, 67, 67), dtype=np.uint8)
        seen = (mouths, 30.0) if lips else (None, None)
        recordings.append(enhancer.prepare(noisy(samples, seed), *seen))
    return recordings


def same(one: Enhanced, other: Enhanced) -> bool:
    """Whether two results agree in every bit of every field that is a recording's own."""
    fields = ("speech", "noise", "speech_16k", "responsibilities", "frame_times", "objective")
    tensors = ("speech", "dictionary", "activations", "mixing_weight", "z", "gain")
    pairs = [(getattr(one, name), getattr(other, name)) for name in fields]
    pairs += [(getattr(one.separation, n), getattr(other.separation, n)) for n in tensors]
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in pairs)


def padded_with(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what stands in the padding be noise around `value`, and lips of any grey."""

    def pad(sequences: list[Tensor], batch_first: bool) -> Tensor:
        assert batch_first
        rng = torch.Generator().manual_seed(5)
        shape = len(sequences), max(map(len, sequences)), *sequences[0].shape[1:]
        garbage = (value * torch.rand(shape, generator=rng)).to(sequences[0].dtype)
        for row, sequence in zip(garbage, sequences, strict=True):
            row[: len(sequence)] = sequence
        return garbage

    monkeypatch.setattr(module, "pad_sequence", pad)


@pytest.mark.parametrize("name", ["a_vae", "min_vae_v2", "vae_mm"])
@pytest.mark.parametrize("scheme", QUICK)
def test_what_stands_in_the_padding_cannot_matter(
    name: str, scheme: str, tiny_prior: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage in place of zeros changes no bit of any recording's result."""
    enhancer = Enhancer(tiny_prior(name), QUICK[scheme], device="cpu")
    plain = enhancer.batch(three(enhancer), seed=3)
    padded_with(200.0, monkeypatch)
    other = enhancer.batch(three(enhancer), seed=3)
    assert all(map(same, plain, other))
    assert not same(plain[0], plain[1])


def test_a_scheme_that_forgets_the_mask_is_found(
    tiny_prior: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken twin of the test before: W is then fitted to the padding too."""

    class Forgets(VEM):
        def __call__(self, *args: Any, mask: Any = None, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    scheme = Forgets(iterations=3, warmup=2, draws=2, noise=NoiseModel(3))
    enhancer = Enhancer(tiny_prior("a_vae"), scheme, device="cpu")
    plain = enhancer.batch(three(enhancer))
    padded_with(200.0, monkeypatch)
    assert not same(plain[0], enhancer.batch(three(enhancer))[0])


@pytest.mark.parametrize("lips", [True, False])
def test_each_result_is_its_recordings_own(lips: bool, tiny_prior: Any) -> None:
    """Lengths, levels, times and shapes are as of single runs; speech and noise sum to the mixture."""
    enhancer = Enhancer(tiny_prior("vae_mm"), QUICK["mcem"], device="cpu")
    recordings = three(enhancer, lips=lips)
    for samples, seed, recording, result in zip(
        LENGTHS, range(3), recordings, enhancer.batch(recordings), strict=True
    ):
        alone = enhancer.separate(recording)
        mixture = noisy(samples, seed)
        np.testing.assert_allclose(result.speech + result.noise, mixture, atol=1e-5)
        assert np.array_equal(result.frame_times, alone.frame_times)
        for name in ("speech", "responsibilities", "objective"):
            assert getattr(result, name).shape == getattr(alone, name).shape, name
        for name in ("z", "gain", "dictionary", "activations", "mixing_weight", "responsibilities"):
            mine, theirs = (getattr(one.separation, name) for one in (result, alone))
            assert mine.shape == theirs.shape, name
        assert result.separation.chains is None
        heard = STFT().synthesise(result.separation.speech, samples).double().numpy()
        low = low_speech(recording.parts, heard, STFT())
        again = recording.parts.restore(heard, low).astype(np.float32)
        assert np.array_equal(again, result.speech_16k)


def test_one_alone_is_a_single_run(tiny_prior: Any) -> None:
    """To the last bit, chains and target included."""
    enhancer = Enhancer(tiny_prior("min_vae_v2"), QUICK["mcem"], device="cpu")
    recording = three(enhancer)[0]
    (result,) = enhancer.batch([recording], seed=4)
    assert same(result, enhancer.separate(recording, seed=4))
    assert result.separation.chains is not None
    assert not same(result, enhancer.separate(recording, seed=5))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_takes_a_batch(scheme: str, tiny_prior: Any) -> None:
    """None is refused: finite speech of every recording, and no louder than the mixture."""
    few: dict[str, Any] = {"iterations": 1, "noise": NoiseModel(2)}
    tiny = MCEM(iterations=1, warmup=1, draws=1, final_warmup=1, final_draws=1, noise=NoiseModel(2))
    inside: dict[str, dict[str, Any]] = {
        "nuts": {"mcem": tiny, "warmup": 1, "draws": 1, "max_tree_depth": 1},
        "auto_normal": {"mcem": tiny, "steps": 1, "draws": 1},
    }
    built: Any = SCHEMES[scheme](**inside.get(scheme, few))
    enhancer = Enhancer(tiny_prior("min_vae_v2"), built, device="cpu")
    for result, recording in zip(enhancer.batch(three(enhancer)), three(enhancer), strict=True):
        ratio = result.separation.speech.abs() / recording.spectrum.abs().clamp_min(1e-9)
        assert ratio.max() < 1 + 1e-5
        assert np.isfinite(result.speech).all()


def test_a_batch_enhances_as_well_as_single_runs_do() -> None:
    """Three parts of the demonstration's clip, four seeds: mean SI-SDR within 1.5 dB of single runs, above the noisy.

    Over six seeds a part's SI-SDR had a standard deviation of 0.8 dB, in batches and alone: the two means of twelve
    differ by 0.33, so that chance fails this once in 10^5. Padding fitted as sound is what the tests above find.
    """
    prior, stft = load_prior("min_vae_v2")
    enhancer = Enhancer(prior, LDEM(), stft=stft, device="cpu")
    clean, noise = (load_audio(CLIPS / f"{name}.flac").waveform for name in ("talker", "workshop"))
    lips = load_lips(CLIPS / "talker.npz")
    mixed, _ = mix_at_snr(clean, noise[: len(clean)], 0.0)
    recordings, truth = [], []
    for start, stop in ((0, 24000), (16000, 48000), (8000, 35200)):
        part = audio_from_array(mixed[start:stop], 16000)
        recordings.append(enhancer.place(part, lips, start / 16000, len(clean) / 16000))
        truth.append(clean[start:stop])

    def mean_si_sdr(estimates: list[np.ndarray]) -> float:
        pairs = zip(estimates, truth, strict=True)
        return float(np.mean([score(estimate, s).si_sdr for estimate, s in pairs]))

    together, alone = [], []
    for seed in range(4):
        batch = enhancer.batch(recordings, seed=seed)
        single = [enhancer.separate(recording, seed=seed) for recording in recordings]
        together.append(mean_si_sdr([result.speech_16k for result in batch]))
        alone.append(mean_si_sdr([result.speech_16k for result in single]))
    assert np.mean(together) == pytest.approx(np.mean(alone), abs=1.5)
    assert np.mean(together) > mean_si_sdr([r.audio.waveform for r in recordings]) + 2


def test_what_is_not_alike_is_refused(tiny_prior: Any) -> None:
    """None; with and without lips; lips of two types."""
    enhancer = Enhancer(tiny_prior("min_vae_v2"), QUICK["vem"], device="cpu")
    with_lips, without = three(enhancer), three(enhancer, lips=False)
    grey = enhancer.prepare(noisy(16000), np.full((30, 67, 67), 0.5, np.float32), 30.0)
    refused = [
        ([], "a batch of no recordings: give one or more of one kind"),
        ([*with_lips, *without], "a batch of lips torch.uint8, no lips: give one or more"),
        ([with_lips[0], grey], "a batch of lips torch.float32, lips torch.uint8"),
    ]
    for recordings, message in refused:
        with pytest.raises(InputError, match=message):
            enhancer.batch(recordings)


@pytest.fixture
def sweep(small_sweep: dict[str, Any]) -> dict[str, Any]:
    """2 clips, 1 noise, 1 SNR, 2 models: 4 rows, of which a batch of two holds both clips."""
    return small_sweep | {"noises": ["white"], "snrs": [5.0]}


def test_a_sweep_by_batches_has_the_same_rows(
    sweep: dict[str, Any], finished_sweep: Path, same_rows: Same, tmp_path: Path
) -> None:
    """Keys and mixtures are those of a sweep without, the speech nearly; stopped, it goes on to the same numbers."""
    batched = evaluate(**sweep, batch=2, out=tmp_path / "a")
    single = load_results(finished_sweep)
    single = single[single["key"].isin(batched["key"])]
    assert len(batched) == len(single) == 4
    mixture = ["key", "snr", "noise_gain", "si_sdr_in", "stoi_in", "iterations", "failure"]
    pd.testing.assert_frame_equal(
        batched[mixture], single[mixture].reset_index(drop=True), rtol=1e-9
    )
    assert not np.allclose(batched["si_sdr_out"], single["si_sdr_out"], rtol=1e-9)
    assert batched["si_sdr_out"].to_numpy() == pytest.approx(single["si_sdr_out"], abs=2)
    assert (batched["seconds"] > 0).all()

    few = sweep | {"models": sweep["models"][:1]}  # as if it had been stopped half-way
    evaluate(**few, batch=2, out=tmp_path / "b")
    same_rows(evaluate(**sweep, batch=2, out=tmp_path / "b"), batched)
    before = load_results(tmp_path / "b")
    _forget(
        tmp_path / "b", before["key"][0]
    )  # and as if it had been killed between two rows of a batch
    again = evaluate(**sweep, batch=2, out=tmp_path / "b")
    same_rows(again, batched)
    assert (again["seconds"] != before["seconds"]).tolist() == [True, False, False, False]


def _forget(folder: Path, key: str) -> None:
    """Remove a row."""
    frame = pd.read_parquet(folder / "rows.parquet")
    frame[frame["key"] != key].to_parquet(folder / "rows.parquet")


def test_the_batch_is_part_of_the_protocol(sweep: dict[str, Any], tmp_path: Path) -> None:
    """A folder of another batch is refused; one of an older version, which does not say, is of batch 1."""
    few = sweep | {"models": sweep["models"][:1], "clips": 1}
    evaluate(**few, out=tmp_path)
    with pytest.raises(InputError, match="with batch 1, not 2: give another --out"):
        evaluate(**few, batch=2, out=tmp_path)
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    del protocol["batch"]
    (tmp_path / "protocol.json").write_text(json.dumps(protocol))
    with pytest.raises(InputError, match="with batch 1, not 2"):
        evaluate(**few, batch=2, out=tmp_path)
    assert len(evaluate(**few, out=tmp_path)) == 1
    with pytest.raises(InputError, match="batches of 0 mixtures: give 1 or more"):
        evaluate(**few, batch=0, out=tmp_path)


def test_one_that_fails_does_not_spoil_its_batch(
    sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheme that breaks down over one clip: the batch is done again one by one, and the others have rows."""
    calls = []

    class Breaks(VEM):
        def __call__(self, prior: Any, mixture: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append(mixture.dim())
            if mixture.dim() == 3 or len(calls) == 2:
                raise RuntimeError("it diverged")
            return super().__call__(prior, mixture, *args, **kwargs)

    monkeypatch.setitem(SCHEMES, "vem", Breaks)
    frame = evaluate(**sweep | {"models": sweep["models"][:1]}, batch=2, out=tmp_path)
    assert calls == [3, 2, 2]
    assert frame["failure"].tolist().count("RuntimeError: it diverged") == 1
    assert frame["si_sdr_out"].notna().sum() == 1
    assert math.isfinite(frame["si_sdr_in"].sum())
