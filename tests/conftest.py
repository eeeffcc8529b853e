"""Small models and random inputs that several tests share.

A file of proofs asks for float64 by `pytestmark = pytest.mark.usefixtures("float64")`. Every test starts from the same
global seed and an empty param store.
"""

import inspect
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import soundfile
import torch
from torch import Tensor, nn

from pyro_avse.inference.em import Observation, observe
from pyro_avse.models import AVAE, AVVAE, MODELS, VAEMM, MINVAEv2, Switching
from pyro_avse.models.guide import NoisyGuide
from pyro_avse.models.nets import Decoder
from pyro_avse.stft import STFT
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.weights.checkpoint import save_prior

LONG = [
    "bad_lips",
    "batch",
    "calibration",
    "campaigns",
    "capabilities",
    "cli",
    "cli_data",
    "cli_inference",
    "cluster",
    "comparison",
    "crew",
    "diagnostics",
    "evaluation",
    "examples",
    "lips_carry_speech",
    "ntcd",
    "pipeline",
    "posteriors",
    "protocol",
    "real_clip",
    "reference_posteriors",
    "report",
    "resume",
    "sequences",
    "synth",
    "training_options",
    "watch",
]
"""Files of tests whose every test is `long`: they train, start processes or sample for seconds."""
torch.set_num_threads(1)  # these networks are small: more threads cost more than they bring
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in LONG:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def fresh_state() -> None:
    torch.manual_seed(0)
    pyro.clear_param_store()


@pytest.fixture
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """shared_data("clip.wav"): a file beside the repository; the test is skipped where it is not."""

    def find(name: str) -> Path:
        if not (DATA / name).exists():
            pytest.skip(f"{DATA / name} is not on this machine")
        return DATA / name

    return find


class TwoDecoders(MINVAEv2):
    """A mixture whose components have decoders of their own, as VAE-MM's have."""

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        self.second = Decoder(options["latent_dim"], options["hidden"], options["num_freqs"])

    def log_variance(self, z: Tensor, lips: Tensor | None) -> Tensor:
        return torch.stack([self.decoder(z), self.second(z)])


def known_options(kind: type[nn.Module], options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a model takes; VAE-MM hands them on to its two parts, or three if so asked."""
    if kind is Switching or (kind is VAEMM and options.pop("three", False)):
        parts = {"audio": "a_vae", "visual": "v_vae", "audio_visual": "av_vae"}
        return {
            "components": {
                name: {"model": model} | known_options(MODELS[model], options)
                for name, model in parts.items()
            }
        }
    if kind is VAEMM:
        return {
            "audio": known_options(AVAE, options),
            "audio_visual": known_options(AVVAE, options),
        }
    known = inspect.signature(MINVAEv2 if kind is TwoDecoders else kind).parameters
    return {key: value for key, value in options.items() if key in known}


@pytest.fixture(scope="session")
def tiny_prior() -> Callable[..., nn.Module]:
    """tiny_prior(name, num_freqs=9): any of MODELS as a user gets it, but small."""

    def build(name: str, **options: int) -> nn.Module:
        name, _, option = name.partition("+")
        sizes = {"latent_dim": 3, "hidden": 8, "features": 8, "embedding": 6, option: True}
        return MODELS[name](**known_options(MODELS[name], sizes | options))

    return build


@pytest.fixture
def small_prior() -> Callable[..., nn.Module]:
    """small_prior(name): any of MODELS, small and in float64, no bias, prior or weight pi at its default.

    "two_decoders" is one more, for what a mixture of decoders shows that needs no lips (its `model` and `guide` are
    MIN-VAE's); "a_vae+learned_prior" is A-VAE with that option on, and "vae_mm+three" a mixture of A-VAE, V-VAE
    and AV-VAE.
    """

    def build(name: str, **options: float) -> nn.Module:
        name, _, option = name.partition("+")
        kind = TwoDecoders if name == "two_decoders" else MODELS[name]
        sizes = {"num_freqs": 7, "latent_dim": 2, "hidden": 6, "features": 5, "embedding": 4}
        prior = kind(**known_options(kind, sizes | options | ({option: True} if option else {})))
        prior = prior.double()
        with torch.no_grad():
            for parameter in prior.parameters():
                if parameter.dim() == 1:
                    parameter += 0.5 * torch.randn_like(parameter)
                elif parameter.shape[1] < 100:
                    parameter *= 2  # a code matters to what is decoded from it
            prior.mixing_weight.copy_(torch.softmax(torch.randn_like(prior.mixing_weight), 0))
        return prior

    return build


@pytest.fixture
def given(small_prior: Callable[..., Any]) -> Callable[[str], tuple[Any, Observation]]:
    """A prior and what it is asked: a mixture and lips."""

    def build(name: str) -> tuple[Any, Observation]:
        prior = small_prior(name)
        x = torch.randn(5, 7, dtype=torch.complex128)
        return prior, observe(prior, x, torch.rand(5, 67, 67))

    return build


@pytest.fixture
def random_power() -> Callable[..., Tensor]:
    """random_power(3, 7): |STFT|^2 of three frames of seven frequencies, exponentially distributed."""
    return lambda *shape: torch.empty(shape, dtype=torch.float64).exponential_()


@pytest.fixture
def random_lips() -> Callable[..., Tensor]:
    """random_lips(3): three frames of 67 x 67 grey pixels."""
    return lambda *shape: torch.randint(0, 256, (*shape, 67, 67), dtype=torch.uint8)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 2 speakers with 2 + 1 clips of 1 s each, to train and validate: harmonics that a mouth opens."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    seconds, rows = np.arange(16000) / 16000, np.abs(np.arange(67) - 33)[:, None]
    for speaker, pitch in (("s1", 110.0), ("s2", 190.0)):
        for split, name in (("train", "a"), ("train", "b"), ("valid", "c")):
            folder = root / split / speaker
            folder.mkdir(parents=True, exist_ok=True)
            phase = rng.uniform(0, 2 * np.pi)
            opening = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * seconds + phase)  # 4 syllables a second
            tones = sum(np.sin(2 * np.pi * pitch * k * seconds) / k for k in range(1, 20))
            sound = opening * (tones + 0.3 * rng.standard_normal(16000))
            soundfile.write(folder / f"{name}.flac", 0.2 * sound, 16000)
            shown = opening[:: 16000 // 30][:30, None, None]
            picture = np.where(rows < 20 * shown, 30, 200) + rng.integers(0, 20, (30, 67, 67))
            np.savez(folder / f"{name}.npz", lips=picture.astype(np.uint8), fps=np.float32(30))
    return root


@pytest.fixture
def make_video() -> Callable[..., Path]:
    """make_video(path, pictures, times=, sound=, ...): grey pictures (picture, row, column) as a small colour video.

    `times` are the pictures' seconds (default 25 a second), `sound` (sample,) is at 16 kHz from `sound_at` seconds on,
    `rotation` is what a player turns the pictures by, in degrees.
    """
    import av  # and so only where a test asks for it

    def make(
        path: Path,
        pictures: np.ndarray,
        times: np.ndarray | None = None,
        sound: np.ndarray | None = None,
        sound_at: float = 0.0,
        codec: str = "mpeg4",
        rotation: int = 0,
    ) -> Path:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.height, stream.width = pictures.shape[1:]
            stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
            clock = Fraction(1, 25 if times is None else 1000)
            stream.codec_context.time_base = clock
            if rotation:
                stream.set_display_rotation(rotation)
            voice: Any = (
                None if sound is None else container.add_stream("aac", rate=16000, layout="mono")
            )
            ticks = range(len(pictures)) if times is None else np.round(1000 * times).astype(int)
            for picture, tick in zip(pictures, ticks, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(
                    format="yuv420p"
                )
                frame.pts, frame.time_base = int(tick), clock
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            if sound is not None:
                heard = av.AudioFrame.from_ndarray(
                    sound.astype(np.float32)[None], format="fltp", layout="mono"
                )
                heard.sample_rate, heard.pts = 16000, round(16000 * sound_at)
                heard.time_base = Fraction(1, 16000)
                container.mux([*voice.encode(heard), *voice.encode(None)])
        return path

    return make


@pytest.fixture(scope="session")
def small_sweep(
    tiny_corpus: Path,
    tiny_prior: Callable[..., nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Arguments of `evaluate`, but for `out`: 2 clips, 3 noises (one shorter than a clip), 2 SNRs, 2 models."""
    folder = tmp_path_factory.mktemp("sweep")
    torch.manual_seed(0)
    for name in ("a_vae", "min_vae_v2"):
        save_prior(folder / f"{name}.safetensors", tiny_prior(name), STFT())
    hum = np.random.default_rng(1).standard_normal(7000)
    soundfile.write(folder / "hum.wav", 0.1 * hum, 16000, subtype="FLOAT")
    return {
        "data": tiny_corpus,
        "noises": ["white", "babble", str(folder / "hum.wav")],
        "snrs": [-5.0, 5.0],
        "models": [f"{name}={folder / name}.safetensors" for name in ("a_vae", "min_vae_v2")],
        "split": "train",
        "clips": 2,
        "inference": ["vem"],
        "settings": {"vem": {"iterations": 2, "warmup": 1, "draws": 1}},
    }


@pytest.fixture(scope="session")
def finished_sweep(small_sweep: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small sweep's results; only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    evaluate(**small_sweep, out=folder)
    return folder


@pytest.fixture(scope="session")
def same_rows() -> Callable[[pd.DataFrame, pd.DataFrame], None]:
    """same_rows(mine, theirs): but for their times; scores to nine digits, as a sum's last bits depend on where
    memory lies."""

    def compare(mine: pd.DataFrame, theirs: pd.DataFrame) -> None:
        lists = ["noise_files", "noise_starts"]
        drop = ["seconds", "real_time_factor", *lists]
        mine, theirs = (frame.reset_index(drop=True) for frame in (mine, theirs))
        pd.testing.assert_frame_equal(mine.drop(columns=drop), theirs.drop(columns=drop), rtol=1e-9)
        for name in lists:
            assert mine[name].map(list).tolist() == theirs[name].map(list).tolist()

    return compare


@pytest.fixture
def small_guide() -> Callable[..., NoisyGuide]:
    """small_guide(prior): a guide of it that has learned nothing, no number at its default."""

    def build(prior: Any, **options: Any) -> NoisyGuide:
        guide = NoisyGuide(prior, hidden=6, layers=1, **options).to(prior.mixing_weight.dtype)
        for parameter in guide.parameters():  # biases too
            parameter.data += 0.3 * torch.randn_like(parameter)
        return guide.requires_grad_(False)

    return build
