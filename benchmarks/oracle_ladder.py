"""Where quality is lost: what the code, the noise and the prior each cost, one thing known at a time.

    python benchmarks/oracle_ladder.py --data ../shared/data --left-out runs/leave_one_out --out runs/oracle_ladder

Each rung knows less than the one above it, A-VAE throughout, on near and far of benchmarks/robustness.py:

    speech and noise      the Wiener filter of the true powers of both
    code and noise        z is the encoder's mean of the clean frame; noise is the true one, averaged over five frames
    noise, from the code  z by 100 tamed Langevin steps that start at that code; noise as above
    noise, from the start the same from where the encoder of the noisy frame says: what finding z costs
    code                  W, H, g and c fitted by 30 M-steps of the default's noise model: what finding the noise costs
    code, paper's noise   the same by the papers' noise model
    nothing               the default
    not even the low part what lies below 60 Hz is guessed too (enhancement/front.py); above, all rungs are told

The step between two rungs is what the thing costs that only the upper one knows.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from conditions import SPEAKERS, Case, far, mixture_of, near
from robustness import enhancer_of
from torch import Tensor
from torch.nn.functional import avg_pool1d

from pyro_avse.data.media.audio import audio_from_array
from pyro_avse.defaults import DEFAULT_INFERENCE
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.front import split
from pyro_avse.files import make_folder
from pyro_avse.inference.m_step import m_step
from pyro_avse.inference.nmf import initial_factors
from pyro_avse.inference.run import run_chains
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.inference.wiener import monte_carlo_wiener
from pyro_avse.metrics import score
from pyro_avse.models.heard import HeardThrough
from pyro_avse.models.nmf_noise import (
    NOISE_MODELS,
    NoiseModel,
    nmf_noise_variance,
    response_basis,
)

MODEL = "a_vae"
M_STEPS, LANGEVIN = 30, 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid, speech and noise")
    parser.add_argument("--left-out", type=Path, help="made by benchmarks/leave_one_out.py")
    parser.add_argument("--out", type=Path, default=Path("runs/oracle_ladder"))
    parser.add_argument("--split", choices=["valid", "test"], default="valid", help="of GRID")
    parser.add_argument("--clips", type=int, default=3, help=f"of each of {', '.join(SPEAKERS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.models, args.no_rivals = [MODEL], True
    make_folder(args.out)
    run = partial(rungs_of, data=args.data, left_out=args.left_out)
    with ProcessPoolExecutor(args.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = pool.map(run, [*near(args), *far(args)], chunksize=2)
        rows = pd.DataFrame(row for of_one in found for row in of_one)
    rows.to_csv(args.out / "scores.csv", index=False)
    mean = rows.groupby(["rung", "kind"], sort=False)[["si_sdr", "stoi"]].mean()
    print("SI-SDR in dB / STOI\n\n| what is known | near | far |\n| --- | --- | --- |")
    for rung in dict.fromkeys(rows["rung"]):
        cells = [
            f"{mean.loc[(rung, k), 'si_sdr']:.2f} / {mean.loc[(rung, k), 'stoi']:.3f}"
            for k in ("near", "far")
        ]
        print("| " + " | ".join([rung, *cells]) + " |")


def rungs_of(case: Case, *, data: Path, left_out: Path | None) -> list[dict[str, Any]]:
    """The scores of every rung on one mixture."""
    clean, mixture = mixture_of(case, data)
    enhancer = enhancer_of(MODEL, case.speaker, left_out, DEFAULT_INFERENCE, "{}")
    recording = enhancer.prepare(audio_from_array(mixture, 16000))
    ladder = Ladder(enhancer, recording, clean)
    estimates = {
        "the recording": recording.spectrum,
        "speech and noise": ladder.by_powers(),
        "code and noise": ladder.by(ladder.clean_code, ladder.noise),
        "noise, from the code": ladder.by(ladder.chains(ladder.clean_code), ladder.noise),
        "noise, from the start": ladder.by(ladder.chains(ladder.noisy_code), ladder.noise),
        "code": ladder.fitted(NoiseModel()),
        "code, the papers' noise": ladder.fitted(NOISE_MODELS["paper"]),
        "nothing": enhancer.separate(recording).separation.speech,
    }
    low = ladder.clean.low / ladder.clean.level  # what lies below speech: the last must guess it
    heard = {
        rung: enhancer.stft.synthesise(speech, len(clean)).double().numpy() + low
        for rung, speech in estimates.items()
    }
    heard["not even the low part"] = enhancer.restored(recording, estimates["nothing"])[0]
    rows = []
    for rung, waveform in heard.items():
        found = score(
            waveform.astype(np.float64), clean.astype(np.float64), only=("si_sdr", "stoi")
        )
        rows.append({"kind": case.kind, "rung": rung, "si_sdr": found.si_sdr, "stoi": found.stoi})
    return rows


class Ladder:
    """One recording with all that an oracle knows of it."""

    def __init__(self, enhancer: Enhancer, recording: Recording, clean: np.ndarray) -> None:
        self.prior: Any = HeardThrough(enhancer.prior, enhancer.log_response)
        self.x = recording.spectrum
        self.power = self.x.abs().square()
        self.clean = split(clean / recording.audio.peak, recording.parts.level)
        s = enhancer.stft.analyse(torch.from_numpy(self.clean.heard).float())
        self.speech_power = s.abs().square()
        true = (self.x - s).abs().square()
        self.noise = avg_pool1d(true.T[None], 5, 1, 2, count_include_pad=False)[0].T
        self.clean_code = self.prior.initial_codes(self.speech_power, None)[None]
        self.noisy_code = self.prior.initial_codes(self.power, None)[None]

    @torch.no_grad()
    def by_powers(self) -> Tensor:
        return self.x * self.speech_power / (self.speech_power + self.noise).clamp_min(1e-12)

    @torch.no_grad()
    def by(self, z: Tensor, noise: Tensor) -> Tensor:
        """The mean Wiener filter over draws (draw, frame, latent)."""
        sigma = self.prior.log_variance(z, None)[0].exp()
        return self.x * (sigma / (sigma + noise.clamp_min(1e-12))).mean(0)

    def chains(self, start: Tensor) -> Tensor:
        target = CollapsedTarget(
            self.prior, None, self.power, self.noise.clamp_min(1e-12), self.prior.mixing_weight
        )
        kernel = ULA(longest_drift=1.0)
        return run_chains(kernel, target, start, draws=10, warmup=LANGEVIN - 10).draws[0]

    @torch.no_grad()
    def fitted(self, noise: NoiseModel) -> Tensor:
        """z known; everything else by M-steps from the usual start."""
        sigma = self.prior.log_variance(self.clean_code, None).exp()
        weights = torch.ones_like(sigma[..., 0])
        W, H = initial_factors(self.power, noise, rng=torch.Generator().manual_seed(0))
        gain = torch.ones_like(self.power[:, 0])
        a = self.power.new_zeros(noise.response) if noise.response else None

        def heard() -> Tensor:
            if a is None:
                return sigma
            basis = response_basis(len(a), self.power.shape[-1], self.power)
            return sigma * (a @ basis[1:]).exp()

        for _ in range(M_STEPS):
            W, H, gain, a = m_step(
                self.power, heard(), weights, W, H, gain, a, noise, 1.0, mask=None
            )
        assert nmf_noise_variance(W, H).isfinite().all()
        return monte_carlo_wiener(self.x, heard(), weights, W, H, gain)


if __name__ == "__main__":
    main()
