"""The supervised rival: a network from noisy sound and a mouth to clean sound. [Gabbay, Shamir & Peleg 2018]

    Y = log(M |STFT(x)|^2)         80 mel bands, windows of 40 ms every 10 ms
    S = net(Y, v)                  for each 200 ms: 20 frames of Y and the 5 pictures v seen meanwhile
    loss = mean (S - log(M |STFT(s)|^2))^2

It learns from pairs of noisy and clean speech. **This is the one place of the library where recorded noise trains
something**: everything else learns from clean speech alone. So it knows the noises of its recipe, and how it fares in
others is the question (`benchmarks/crossing.py`). Its training is `pyro_avse.training.supervised`.

After "Visual speech enhancement" (Interspeech 2018), with three changes. Pictures are 67 x 67, halved, and meet fewer
filters, so that it trains on one core. Strided kernels have the widths that divide the spectrogram evenly. Sound is
made of the noisy spectrum, each bin multiplied by the square root of S's share of Y in the bands around it, at most 1;
the paper inverts the mel bands by their pseudo-inverse and takes the noisy phase, which loses what 80 bands cannot say.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from pyro_avse.data.lips.lips import Lips, lips_on_grid
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.stft import STFT
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.tensors import Shapes, build, load_state, load_tensors, save_tensors

WINDOWS = STFT(n_fft=640, hop=160)
BANDS, FRAMES, PICTURES = 80, 20, 5
"""Of a slice of 200 ms."""
FPS = 25.0
WEIGHTS = Path("runs/gabbay/weights.safetensors")
"""Where the name `gabbay` finds them, from the working folder: none are bundled."""
FLOOR = 1e-3
"""Added to a band's power: silence is no number."""


class GabbayNet(nn.Module):
    """The network, a slice at a time.

    Args:
        video_filters: of the five convolutions over pictures, each halving their side: 33 to 1.
        audio_filters: of the first two, and the other three, convolutions over the mel spectrogram.
        dropped: share of the pictures' features left out in training.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        video_filters: tuple[int, ...] = (16, 16, 24, 32, 48),
        audio_filters: tuple[int, int] = (24, 48),
        dropped: float = 0.25,
    ) -> None:
        super().__init__()
        self.options: JSON = {
            "video_filters": list(video_filters),
            "audio_filters": list(audio_filters),
            "dropped": dropped,
        }
        few, many = audio_filters
        sides = zip((PICTURES, *video_filters[:-1]), video_filters, strict=True)
        self.video = nn.Sequential(
            *(
                nn.Sequential(_layer(nn.Conv2d(a, b, 3, padding=1), b), nn.MaxPool2d(2))
                for a, b in sides
            ),
            nn.Dropout(dropped),
            nn.Flatten(),
        )
        self.audio = nn.Sequential(  # (80, 20) -> (40, 10) -> (20, 5) -> (10, 5) -> (5, 5)
            _layer(nn.Conv2d(1, few, 5, 2, 2), few),
            _layer(nn.Conv2d(few, few, 3, 1, 1), few),
            _layer(nn.Conv2d(few, many, 4, 2, 1), many),
            _layer(nn.Conv2d(many, many, (2, 3), (2, 1), (0, 1)), many),
            _layer(nn.Conv2d(many, many, (2, 3), (2, 1), (0, 1)), many),
            nn.Flatten(),
        )
        heard, seen = 25 * many, video_filters[-1]
        hidden = (heard + seen) // 4
        self.shared = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.LeakyReLU(0.2))
                for a, b in ((heard + seen, hidden), (hidden, hidden), (hidden, heard))
            ),
            nn.Unflatten(1, (many, 5, 5)),
        )
        self.decoder = nn.Sequential(
            _layer(nn.ConvTranspose2d(many, many, (2, 3), (2, 1), (0, 1)), many),
            _layer(nn.ConvTranspose2d(many, many, (2, 3), (2, 1), (0, 1)), many),
            _layer(nn.ConvTranspose2d(many, few, 4, 2, 1), few),
            _layer(nn.ConvTranspose2d(few, few, 3, 1, 1), few),
            nn.ConvTranspose2d(few, 1, 6, 2, 2),
        )
        self.register_buffer("mean", torch.zeros(BANDS))
        self.register_buffer("scale", torch.ones(BANDS))

    def forward(
        self, noisy: Float[Tensor, "slice 20 80"], pictures: Float[Tensor, "slice 5 67 67"]
    ) -> Float[Tensor, "slice 20 80"]:
        """Log mel power of the clean slice; pictures are in [0, 1]."""
        heard = ((noisy - self.mean) / self.scale).transpose(1, 2)[:, None]
        seen = avg_pool2d(pictures - 0.5, 2)
        code = self.shared(torch.cat([self.audio(heard), self.video(seen)], 1))
        return self.decoder(code)[:, 0].transpose(1, 2) * self.scale + self.mean


def _layer(convolution: nn.Module, filters: int) -> nn.Module:
    return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.LeakyReLU(0.2))


def mel_bands() -> Float[Tensor, "band freq"]:
    """M: triangles that overlap by half, evenly spaced in mel (2595 log10(1 + f / 700)) from 0 to 8 kHz."""
    freqs = np.linspace(0, SAMPLE_RATE / 2, WINDOWS.n_fft // 2 + 1)
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (freqs - low) / (centre - low), (high - freqs) / (high - centre)
    triangles = np.maximum(0, np.minimum(rise, fall))
    nearest = np.abs(freqs - centre).argmin(1)  # low bands are narrower than a bin: they have one
    bands = np.arange(BANDS)
    triangles[bands, nearest] = np.maximum(1e-2, triangles[bands, nearest])
    triangles[0, 0] = triangles[-1, -1] = 1e-2  # and every bin is in a band
    return torch.from_numpy(triangles / triangles.sum(1, keepdims=True)).float()


def log_mel(spectrum: Tensor) -> Float[Tensor, "*utterance frame 80"]:
    """log(M |spectrum|^2)."""
    return (spectrum.abs().square() @ mel_bands().T.to(spectrum.device) + FLOOR).log()


def slices(
    frames: Float[Tensor, "*utterance frame 80"], count: int
) -> Float[Tensor, "*utterance slice 20 80"]:
    """The first `count` slices, one after another; silence after the last frame."""
    missing = max(0, count * FRAMES - frames.shape[-2])
    padded = pad(frames, (0, 0, 0, missing), value=float(np.log(FLOOR)))
    return padded[..., : count * FRAMES, :].unflatten(-2, (count, FRAMES))


def pictures_of(lips: Lips, seconds: float, count: int) -> Shaped[Tensor, "slice 5 67 67"]:
    """For `count` slices of a sound that lasts `seconds`, 25 a second whatever the lips' rate; of the lips' dtype."""
    seen = lips_on_grid(lips, np.arange(count * PICTURES) / FPS, seconds)
    return torch.from_numpy(seen).unflatten(0, (count, PICTURES))


def in_unit(pictures: Shaped[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Grey levels of 0..255 as numbers in [0, 1]; such numbers as they are."""
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures


@torch.no_grad()
def enhance(
    net: GabbayNet, samples: Float32[np.ndarray, "sample"], lips: Lips
) -> Float32[np.ndarray, "sample"]:
    """The speech of a recording at 16 kHz, whose lips are as long (up to 0.25 s)."""
    peak = float(np.abs(samples).max()) or 1.0
    x = WINDOWS.analyse(torch.from_numpy(samples / peak).float())
    noisy = log_mel(x)
    count = -(-len(x) // FRAMES)
    seen = pictures_of(lips, len(samples) / SAMPLE_RATE, count)
    found = net.eval()(slices(noisy, count), in_unit(seen)).flatten(0, 1)[: len(x)]
    share = (0.5 * (found - noisy)).exp().clamp(max=1)
    around = mel_bands().T
    gain = share @ (around / around.sum(1, keepdim=True)).T
    speech = WINDOWS.synthesise(gain * x, len(samples)).numpy()
    return speech * np.float32(peak)


def gabbay(
    samples: Float32[np.ndarray, "sample"],
    sample_rate: int,
    lips: Lips | None,
    *,
    weights: Path = WEIGHTS,
) -> Float32[np.ndarray, "sample"]:
    """The rival by the weights of `pyro-avse train default/gabbay`. Raises InputError without lips or weights."""
    if lips is None:
        raise InputError("it needs the lips: give --lips (lips=), or leave it out")
    if not weights.is_file():
        raise InputError(
            f"no {weights}: train it, pyro-avse train default/gabbay --out {weights.parent}, or give NAME=FILE"
        )
    return enhance(_net(weights.resolve(), weights.stat().st_mtime_ns), samples, lips)


@lru_cache(maxsize=2)
def _net(weights: Path, changed: int) -> GabbayNet:
    """`changed` is when the file last was."""
    return load_net(weights)


def save_net(path: Path, net: GabbayNet, noises: list[str]) -> None:
    """Write the network, and the noises that it was trained on."""
    save_tensors(
        path, net.state_dict(), {"rival": "gabbay", "options": net.options, "noises": noises}
    )


def load_net(path: Path) -> GabbayNet:
    """The network of a file of `save_net`, ready to enhance. Raises InputError for another file."""
    found: list[GabbayNet] = []

    def check(header: JSON, shapes: Shapes) -> None:
        options = header.get("options")
        if header.get("rival") != "gabbay" or not isinstance(options, dict):
            raise InputError(
                f"{path}: no weights of gabbay: train them, pyro-avse train default/gabbay"
            )
        found.append(build(lambda: GabbayNet(**options), options, shapes, path, "gabbay"))

    tensors, _ = load_tensors(path, check)
    (net,) = found
    with torch.no_grad():
        load_state(net, tensors, path)
    return net.eval().requires_grad_(False)
