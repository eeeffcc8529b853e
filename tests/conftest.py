"""Small models and random inputs that several tests share.

A file of proofs asks for float64 by `pytestmark = pytest.mark.usefixtures("float64")`. Every test starts from the same
global seed and an empty param store.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyro
import pytest
import soundfile
import torch
from torch import Tensor, nn

from pyro_avse.models import MODELS, MINVAEv2
from pyro_avse.models.nets import Decoder

torch.set_num_threads(1)  # these networks are small: more threads cost more than they bring
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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


@pytest.fixture
def small_prior() -> Callable[..., nn.Module]:
    """small_prior(name): any of MODELS, small and in float64, no bias, prior or weight pi at its default.

    "two_decoders" is one more, for what only a mixture of decoders shows (its `model` and `guide` are MIN-VAE's).
    """

    def build(name: str, **options: int) -> nn.Module:
        sizes = {"num_freqs": 7, "latent_dim": 2, "hidden": 6, "features": 5} | options
        kind = TwoDecoders if name == "two_decoders" else MODELS[name]
        known = inspect.signature(MINVAEv2 if name == "two_decoders" else kind).parameters
        prior = kind(**{key: size for key, size in sizes.items() if key in known}).double()
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
