"""NTCD-TIMIT in the layout of its authors, read end to end; the lips' DCT against its definition."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from pyro_avse.data.corpora.corpus import Mixture, find_corpus, find_utterances
from pyro_avse.data.corpora.info import describe
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.metrics import score
from pyro_avse.stft import STFT
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.mixtures import rebuild
from pyro_avse.sweep.protocol import read_protocol
from pyro_avse.sweep.report import make_report
from pyro_avse.training.frames import load_frames
from pyro_avse.training.stages import train
from pyro_avse.typing import InputError

NEST = "u/drspeech/data/TCDTIMIT"
SPEAKERS = {"01M": "train", "02F": "train", "03M": "dev", "04F": "test"}
RECIPE = """
model = "min_vae_v2"
[options]
hidden = 8
latent_dim = 3
features = 8
[training]
epochs = 2
batch_size = 16
"""


def dct_rows(pictures: np.ndarray) -> np.ndarray:
    """(frame, 4489) by the definition of the orthonormal DCT-II, each coefficient matrix column by column."""
    k, n = np.mgrid[0:67, 0:67]
    basis = np.sqrt(2 / 67) * np.cos(np.pi * (n + 0.5) * k / 67)
    basis[0] /= np.sqrt(2)
    return np.stack([(basis @ p @ basis.T).flatten(order="F") for p in pictures]).astype(np.float32)


def write_mat(path: Path, rows: np.ndarray, key: str = "data") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = rows


def pictures_of(k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (30, 67, 67)).astype(np.uint8)


def write_wav(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(16000), 16000)


def write_corpus(root: Path, nest: str = NEST, above: bool = True) -> Path:
    """Four volunteers with two clips each, a lipspeaker, two noises at two SNRs; trees nested above or within."""

    def tree(name: str) -> Path:
        return root / nest / name if above else root / name / nest

    for k, (speaker, split) in enumerate(SPEAKERS.items()):
        for j, name in enumerate(("sa1", "si459")):
            place = f"volunteers/{speaker}/straightcam/{name}.wav"
            write_wav(tree("Clean") / place, 10 * k + j)
            for noise in ("Babble", "LR"):
                for snr in ("-5", "20"):
                    write_wav(tree(f"Noisy_TCDTIMIT/{noise}/{snr}") / place, 99)
            write_mat(
                root / "matlab_raw" / split / speaker / f"{name}.mat",
                dct_rows(pictures_of(10 * k + j)),
            )
    write_wav(tree("Clean") / "lipspeakers/Lipspkr1/straightcam/sa1.wav", 7)
    return root


@pytest.mark.parametrize(
    ("nest", "above"),
    [("", True), (NEST, True), (NEST, False), ("ntcd/2017/data", True), ("vol/12", False)],
)
def test_the_distributed_layout(tmp_path: Path, nest: str, above: bool) -> None:
    """Speakers, splits, lips and mixtures, wherever the trees are."""
    write_corpus(tmp_path, nest, above)
    corpus = find_corpus(tmp_path)
    assert corpus.kind == "NTCD-TIMIT"
    assert corpus.problems == []
    splits = {"dev": "valid"}
    expected = {
        (s, n): splits.get(split, split) for s, split in SPEAKERS.items() for n in ("sa1", "si459")
    }
    assert {(u.speaker, u.name): u.split for u in corpus.utterances} == expected | {
        ("Lipspkr1", "sa1"): None
    }
    for u in find_utterances(tmp_path, "test"):
        assert u.lips == tmp_path / f"matlab_raw/test/04F/{u.name}.mat"
        assert u.audio.match(f"volunteers/04F/straightcam/{u.name}.wav")
        assert "Clean" in u.audio.parts
        assert [(m.noise, m.snr) for m in u.noisy] == [
            ("Babble", -5.0),
            ("Babble", 20.0),
            ("LR", -5.0),
            ("LR", 20.0),
        ]
        assert all(
            isinstance(m, Mixture) and m.audio.is_file() and m.noise in m.audio.parts
            for m in u.noisy
        )
    assert len(corpus.missing) == 1
    assert corpus.missing == ["speaker Lipspkr1 is in no split: lipspeakers have none"]


def test_as_many_speakers_as_the_distribution_has(tmp_path: Path) -> None:
    """39 / 8 / 9 by folder, one clip each; a folder "test" above them all is no split."""
    root = tmp_path / "test"
    counts = {"train": 39, "dev": 8, "test": 9}
    splits = [split for split, count in counts.items() for _ in range(count)]
    for k, split in enumerate(splits):
        for file in (
            f"Clean/volunteers/{k:02}M/straightcam/sa1.wav",
            f"Noisy_TCDTIMIT/Car/0/volunteers/{k:02}M/straightcam/sa1.wav",
            f"matlab_raw/{split}/{k:02}M/sa1.mat",
        ):
            (root / file).parent.mkdir(parents=True)
            (root / file).touch()
    corpus = find_corpus(tmp_path)
    assert (corpus.problems, corpus.missing) == ([], [])
    assert all(u.lips and len(u.noisy) == 1 for u in corpus.utterances)
    found = [{u.speaker for u in find_utterances(tmp_path, s)} for s in ("train", "valid", "test")]
    assert [len(speakers) for speakers in found] == [39, 8, 9]
    for folder in ("Noisy_TCDTIMIT", "Noisy_TCDTIMIT/Car", "Noisy_TCDTIMIT/Car/0"):
        with pytest.raises(InputError, match=f"{folder} holds .* without their Clean/: name the"):
            find_corpus(root / folder)


def test_the_lips_are_the_pictures(tmp_path: Path) -> None:
    """The inverse of the transform by its definition gives back every grey level, upright, at 30 fps."""
    pictures = pictures_of(3)
    pictures[0] = 0
    pictures[0, 60, 10:50] = (
        255  # a horizontal line near the bottom: transposed, it would be vertical
    )
    write_mat(tmp_path / "a.mat", dct_rows(pictures))
    lips = load_lips(tmp_path / "a.mat")
    assert lips.frames.dtype == np.uint8
    assert lips.fps == 30.0
    assert np.array_equal(lips.frames, pictures)
    assert load_lips(tmp_path / "a.mat", fps=25).fps == 25.0
    raw = np.stack([p.flatten(order="F") for p in pictures], axis=1) / 255
    np.save(tmp_path / "aRaw.npy", raw)
    assert np.abs(load_lips(tmp_path / "aRaw.npy").frames * 255 - pictures).max() < 1e-3


def test_the_raw_form_of_the_lips(tmp_path: Path) -> None:
    """*Raw.npy beside or in place of .mat; both of one clip say the same, and are no doubled file."""
    write_corpus(tmp_path)
    folder = tmp_path / "matlab_raw/train/01M"
    raw = pictures_of(0).reshape(30, -1).T / 255
    np.save(folder / "sa1Raw.npy", raw)
    np.save(folder / "si459Raw.npy", raw)
    (folder / "si459.mat").unlink()
    found = {u.name: u.lips for u in find_utterances(tmp_path, "train") if u.speaker == "01M"}
    assert found == {"sa1": folder / "sa1.mat", "si459": folder / "si459Raw.npy"}


def test_other_mat_files_are_refused(tmp_path: Path) -> None:
    """Another shape, key, content or format: one line that names the file and what it must hold."""
    rows = dct_rows(pictures_of(0))
    write_mat(tmp_path / "turned.mat", rows.T)
    write_mat(tmp_path / "cube.mat", rows.reshape(-1, 67, 67))
    write_mat(tmp_path / "key.mat", rows, key="roi")
    write_mat(tmp_path / "none.mat", rows[:0])
    write_mat(tmp_path / "scaled.mat", 3 * rows)
    write_mat(tmp_path / "nan.mat", np.full_like(rows, np.nan))
    (tmp_path / "text.mat").write_text("MATLAB 5.0 MAT-file\n" * 20)
    whole = (tmp_path / "scaled.mat").read_bytes()
    (tmp_path / "cut.mat").write_bytes(whole[: len(whole) // 2])
    for name, message in [
        ("turned.mat", r"data is float32 of shape \(4489, 30\): give \(frame, 4489\)"),
        ("cube.mat", r"shape \(30, 67, 67\): give"),
        ("key.mat", r"keys \['roi'\], no dataset 'data'"),
        ("none.mat", "no frames"),
        ("scaled.mat", r"inverse DCT reaches from .* not within 0..255: give"),
        ("nan.mat", "inverse DCT reaches from nan"),
        ("text.mat", "cannot be read as MATLAB 7.3"),
        ("cut.mat", "cannot be read as MATLAB 7.3"),
    ]:
        with pytest.raises(InputError, match=message) as refusal:
            load_lips(tmp_path / name)
        assert "\n" not in str(refusal.value)
        assert name in str(refusal.value)


def test_what_is_doubled_or_missing_is_named(tmp_path: Path) -> None:
    """Two trees of the same clips and a speaker in two splits are refused; what is missing is said."""
    write_corpus(tmp_path)
    (tmp_path / "matlab_raw/train/01M/sa1.mat").unlink()
    clean = tmp_path / NEST / "Clean/volunteers/02F/straightcam/sa1.wav"
    clean.unlink()
    missing = find_corpus(tmp_path).missing
    assert any(line.endswith("01M/straightcam/sa1.wav has no lips") for line in missing)
    assert any(line.endswith("02F/sa1.mat has no sound") for line in missing)
    assert sum("has no clean sound" in line for line in missing) == 4
    write_wav(tmp_path / "copy/Clean/volunteers/04F/straightcam/sa1.wav", 0)
    with pytest.raises(
        InputError, match=r"04F/straightcam/sa1.wav is the same recording as .*: keep one"
    ):
        find_utterances(tmp_path, "test")
    (tmp_path / "copy/Clean/volunteers/04F/straightcam/sa1.wav").unlink()
    (tmp_path / "matlab_raw/test/01M").mkdir()
    with pytest.raises(InputError, match=r"train/01M is also a speaker of test: keep one"):
        find_utterances(tmp_path, "train")


def test_a_tree_without_splits_says_how_to_give_them(tmp_path: Path) -> None:
    """Sound alone: empty folders of speakers are enough."""
    write_wav(tmp_path / "Clean/volunteers/01M/straightcam/sa1.wav", 0)
    with pytest.raises(InputError, match="holds no train utterances: see pyro-avse data info"):
        find_utterances(tmp_path, "train")
    assert "make a folder matlab_raw/{train,dev,test}/01M" in find_corpus(tmp_path).missing[0]
    (tmp_path / "matlab_raw/train/01M").mkdir(parents=True)
    assert len(find_utterances(tmp_path, "train")) == 1


def test_the_corpus_is_described(tmp_path: Path) -> None:
    """Counts by split, and the files that cannot be used by name."""
    write_corpus(tmp_path)
    total = describe(tmp_path).total
    assert total == {
        "speakers": 5,
        "utterances": 9,
        "with_lips": 8,
        "noisy": 32,
        "minutes": pytest.approx(9 / 60, abs=1e-3),
        "broken": [],
    }
    noisy = tmp_path / NEST / "Noisy_TCDTIMIT/LR/20/volunteers/01M/straightcam/sa1.wav"
    noisy.write_text("no sound")
    lips = tmp_path / "matlab_raw/test/04F/sa1.mat"
    write_mat(lips, np.zeros((30, 4488), np.float32))
    short = tmp_path / "matlab_raw/dev/03M/sa1.mat"
    write_mat(short, np.zeros((10, 4489), np.float32))
    broken = {item["file"]: item["reason"] for item in describe(tmp_path).total["broken"]}
    assert broken.keys() == {str(noisy), str(lips), str(short)}
    assert "(30, 4488)" in broken[str(lips)]
    assert "lasts 1.00 s" in broken[str(short)]


def test_from_the_corpus_to_weights(tmp_path: Path) -> None:
    """Frames of sound and lips in step, and a few steps of training on them."""
    write_corpus(tmp_path / "data")
    utterances = find_utterances(tmp_path / "data", "train")
    frames = load_frames(utterances, STFT(), with_lips=True, noise_floor_db=None, seed=0)
    assert frames.lips is not None
    assert frames.lips.shape == (len(frames), 67, 67)
    first = STFT().frame_times(len(frames) // len(utterances))
    shown = [min(int(t * 30 + 1e-6), 29) for t in first]
    assert np.array_equal(frames.lips[: len(first)].numpy(), pictures_of(0)[shown])
    (tmp_path / "tiny.toml").write_text(RECIPE)
    rows: list[dict[str, float]] = []
    weights = train(
        tmp_path / "tiny.toml",
        tmp_path / "data",
        tmp_path / "run",
        device="cpu",
        progress=rows.append,
    )
    assert Path(str(weights)).is_file()
    assert len(rows) == 2
    assert rows[1]["train_objective"] > rows[0]["train_objective"]
    check_evaluation(tmp_path, str(weights))


def check_evaluation(folder: Path, weights: str) -> None:
    """Rows in white noise and in the corpus's own mixtures; what an SNR has no file for is a failed row."""
    frame = evaluate(
        folder / "data",
        ["white", "corpus"],
        [-5, 0],
        [f"tiny={weights}"],
        clips=1,
        inference=["vem"],
        settings={"vem": {"iterations": 1, "warmup": 1, "draws": 1}},
        out=folder / "results",
    )
    assert sorted(zip(frame.noise, frame.snr, frame.failure.isna(), strict=True)) == [
        ("Babble", -5.0, True),
        ("Babble", 0.0, False),
        ("LR", -5.0, True),
        ("LR", 0.0, False),
        ("white", -5.0, True),
        ("white", 0.0, True),
    ]
    failed = frame[frame.failure.notna()]
    assert failed.failure.str.contains("mixture of nominally 0 dB: leave it out").all()
    row = frame[(frame.noise == "LR") & (frame.snr == -5)].iloc[0]
    assert np.isnan(row.noise_gain)
    noisy = folder / "data" / row.noise_files[0]
    name = row["clip"].removeprefix("04F/")
    assert noisy.match(f"LR/-5/volunteers/04F/straightcam/{name}.wav")
    made = rebuild(read_protocol(folder / "results"), row)
    clean = load_audio(
        folder / "data" / NEST / "Clean" / Path(*noisy.parts[noisy.parts.index("volunteers") :])
    )
    assert np.array_equal(made.clean.waveform, clean.waveform)
    by_hand = score(load_audio(noisy).waveform, clean.waveform)
    assert row.si_sdr_in == pytest.approx(by_hand.si_sdr, abs=1e-3)
    assert "Of Babble, LR, the corpus's own mixtures, SNRs are nominal" in make_report(
        folder / "results"
    )
