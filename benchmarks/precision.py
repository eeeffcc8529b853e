"""What fewer bits in the decoder's products would cost: the tf32 and bfloat16 of matrix units, emulated on any machine.

The bundled clip in a workshop's noise at 0 dB by the default model and scheme. Inputs and weights of every linear layer
are rounded to the mantissa of the format (tf32 10 bits, bfloat16 7) and multiplied and summed in float32, as matrix
units do; the way back through them, for the gradients, is not rounded. Against float64:

    density     error of a frame's log density (S17) at the codes where the default's chains end, in nats
    accepted    mean difference of a random walk's acceptance probability there, steps of 0.1 (38)

and what comes out: SI-SDR and STOI of the enhanced speech, and its SI-SDR against that of float32.

    python benchmarks/precision.py
"""

import copy
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import audio_from_array, load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.defaults import DEFAULT_INFERENCE, DEFAULT_MODEL, SAMPLE_RATE
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.enhancement.find import find_scheme
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.metrics import score
from pyro_avse.weights.checkpoint import load_prior

MANTISSA = {"float32": 23, "tf32": 10, "bfloat16": 7}


@torch.no_grad()
def main() -> None:
    clean, noise = (load_audio(CLIPS / f"{name}.flac").waveform for name in ("talker", "workshop"))
    mixed, _ = mix_at_snr(clean, noise[: len(clean)], 0)
    mixture, lips = audio_from_array(mixed, SAMPLE_RATE), load_lips(CLIPS / "talker.npz")
    prior, stft = load_prior(DEFAULT_MODEL)
    sounds: dict[str, np.ndarray] = {}
    rows = []
    for name, bits in MANTISSA.items():
        enhancer = Enhancer(
            of_fewer_bits(prior, bits), find_scheme(DEFAULT_INFERENCE), stft=stft, device="cpu"
        )
        enhanced = enhancer(mixture, lips, seed=0)
        sounds[name] = enhanced.speech_16k
        if name == "float32":
            target, z = enhanced.separation.target, enhanced.separation.z
            there = z + 0.1 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
            exact = densities(in_float64(target), z.double(), there.double())
        found = densities(replaced(target, enhancer.prior), z, there)
        error = (found[0] - exact[0]).abs()
        accepted = [(b - a).clamp_max(0).exp() for a, b in (found, exact)]
        scores = score(sounds[name], clean).as_dict()
        row = {
            "precision": name,
            "density_median": float(error.median()),
            "density_max": float(error.max()),
            "accepted": float((accepted[0] - accepted[1]).abs().mean()),
            "si_sdr": scores["si_sdr"],
            "stoi": scores["stoi"],
            "to_float32": score(sounds[name], sounds["float32"]).si_sdr,
        }
        rows.append(row)
        print(
            f"{name:9s} density {row['density_median']:.1e} (at most {row['density_max']:.1e}) nats  "
            f"accepted {row['accepted']:.1e}  SI-SDR {row['si_sdr']:.3f} dB  STOI {row['stoi']:.4f}  "
            f"to float32's {row['to_float32']:.0f} dB",
            flush=True,
        )
    print(json.dumps(rows))


def of_fewer_bits(prior: nn.Module, bits: int) -> nn.Module:
    """A copy whose linear layers round what they multiply."""
    prior = copy.deepcopy(prior).requires_grad_(False)
    for layer in prior.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(rounded(layer.weight, bits))
            layer.register_forward_pre_hook(lambda _, inputs: (passed(inputs[0], bits),))
    return prior


def passed(x: Tensor, bits: int) -> Tensor:
    """x rounded, with x's own gradient."""
    return x + (rounded(x.detach(), bits) - x.detach())


def rounded(x: Tensor, bits: int) -> Tensor:
    """The nearest float32 with so many bits of mantissa."""
    if bits == 23:
        return x
    last = 1 << (23 - bits)
    return ((x.contiguous().view(torch.int32) + last // 2) & -last).view(torch.float32)


def densities(target: CollapsedTarget, *codes: Tensor) -> list[Tensor]:
    return [target.log_density(z).double() for z in codes]


def replaced(target: Any, prior: nn.Module, dtype: torch.dtype = torch.float32) -> CollapsedTarget:
    """The same posterior under another prior, its numbers in `dtype`."""
    tensors = {
        name: None if value is None else value.to(dtype)
        for name, value in vars(target).items()
        if name in ("power", "noise_variance", "mixing_weight", "gain", "log_response")
    }
    return CollapsedTarget(prior, target.lips, **tensors)


def in_float64(target: Any) -> CollapsedTarget:
    """The same posterior in float64."""
    return replaced(target, copy.deepcopy(target.prior).double(), torch.float64)


if __name__ == "__main__":
    main()
