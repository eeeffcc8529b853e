"""The references of pyro_avse.lab.posteriors: the problems, long runs on them, and whether those can be believed.

    python benchmarks/reference_posteriors.py --data ../shared/data                # all, anew: about 8 CPU minutes
    python benchmarks/reference_posteriors.py --data ../shared/data --only line far_modes

Frames are of GRID's valid clip s1/bbaf5a in a tram's noise (street_tram), at the noise, level and microphone that
`guided` ends with; the decoders are the bundled A-VAE's and MIN-VAE v2's, in half precision as they are bundled. The
other problems are drawn from their own stories, by a seed.

Each is sampled by ten chains of HMC from draws of its prior, step sizes by dual averaging, then thinned to 1,000 draws
a chain. `far_modes` is sampled by the independence kernel, which jumps; `line` by exact draws. What is written must
have R-hat <= 1.01 and an ESS of 1,000, and must agree with tempered SMC of 1,000 particles, which starts at the prior's
mean and spread: means within 0.2 standard deviations, standard deviations within 20 %. Files hold every draw of small
problems, every tenth of large ones, packed to 16 bits.
"""

import argparse
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import torch
import xarray
from torch import Tensor

from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.distributions import unchecked_normal
from pyro_avse.enhancement.enhancer import Enhancer
from pyro_avse.files import beside
from pyro_avse.inference import HMC, Guided, Independence, run_chains
from pyro_avse.inference.adaptation import DualAveraging
from pyro_avse.inference.evidence import tempered_smc
from pyro_avse.lab.diagnostics import RHAT_MAX, TAILS
from pyro_avse.lab.posteriors import library
from pyro_avse.lab.posteriors.library import NETWORK, POSTERIORS, Posterior
from pyro_avse.lab.posteriors.stories import Line, normal
from pyro_avse.typing import Kernel
from pyro_avse.weights.checkpoint import load_prior

CLIP, NOISE = Path("grid/valid/s1/bbaf5a"), Path("noise/street_tram.flac")
CHAINS, DRAWS, LARGE = 10, 1_000, 20
COMMAND = "python benchmarks/reference_posteriors.py --data ../shared/data"
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How a posterior is made and sampled."""

    kind: str
    kernel: Kernel = field(default_factory=lambda: HMC(0.05, steps=8))
    thin: int = 4
    warmup: int = 1_000
    seed: int = 0
    network: str | None = None
    snr: float | None = None
    """Of real frames; None: drawn from the story."""


PLANS = {
    "one_mode": Plan("frames", seed=1),
    "two_modes": Plan("frames", warmup=500, seed=1),
    "two_decoders": Plan("frames", seed=3),
    "line": Plan("line", seed=0),
    "dark_frame": Plan("frames", HMC(0.1, steps=12), 2, 500, network="a_vae", snr=-10),
    "noisy_frame": Plan("frames", HMC(0.1, steps=12), 2, 500, network="a_vae", snr=0),
    "mixed_frame": Plan("frames", HMC(0.1, steps=12), 2, 500, network="min_vae_v2", snr=0),
    "unknown_noise": Plan("noise", HMC(0.1, steps=15), 10, seed=0),
    "far_modes": Plan("frames", Independence(), 100, seed=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="with grid and noise")
    parser.add_argument("--only", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    library.FOLDER.mkdir(exist_ok=True)
    for name in args.only:
        plan, start = PLANS[name], time.process_time()
        stored = drawn(name, plan) if plan.snr is None else heard(args.data, plan)
        write(library.FOLDER / f"{name}.nc", {"constant_data": problem(plan, stored)})
        posterior = library.load(name)  # as rounded to what is stored
        draws, about = sample(name, plan, posterior)
        told, about = check(name, posterior, draws, about)
        every = 10 if np.prod(posterior.shape) > LARGE else 1
        kept = packed(draws[:, every - 1 :: every], about)
        known = problem(plan, stored).assign(told)
        write(library.FOLDER / f"{name}.nc", {"posterior": kept, "constant_data": known})
        size = (library.FOLDER / f"{name}.nc").stat().st_size
        print(
            f"{name}: R-hat {about['r_hat']:.4f}, ESS {about['ess']:.0f}, SMC away by {about['smc_mean_off']:.3f} sd, "
            f"spreads by {about['smc_stddev_off']:.1%}; {size / 1e3:.0f} kB, {time.process_time() - start:.0f} s",
            flush=True,
        )


def drawn(name: str, plan: Plan) -> Arrays:
    """A small problem's arrays, its data drawn from its story; its codes are in units in which a step of 0.1 suits."""
    rng = torch.Generator().manual_seed(plan.seed)

    def randn(*shape: int) -> Tensor:
        return normal(shape, rng)

    def network(decoders: int, latent: int, hidden: int, freqs: int, A: float, B: float) -> Arrays:
        return {
            "A": A * randn(decoders, latent, hidden),
            "a": randn(decoders, hidden),
            "B": B * randn(decoders, hidden, freqs),
            "b": 0.5 * randn(decoders, freqs),
        }

    if plan.kind == "line":
        arrays = {"rho": 0.9, "scale": 0.5, "C": randn(3, 4), "y": randn(12, 4)}
    elif plan.kind == "noise":
        fall = torch.linspace(1, -1, 8, dtype=torch.float64).exp()
        arrays = {
            **network(1, 2, 6, 8, 1.0, 0.8),
            "power": randn(4, 8).square(),
            "W_mean": torch.stack([fall, fall.flip(0)]),
            "W_shape": 4.0,
            "H_shape": 2.0,
        }
    else:
        far = name == "far_modes"
        frames, K = (1 if far else 2), (1 if name == "one_mode" else 2)
        centre = (
            torch.tensor([0.0]) if K == 1 else (2.0 if far else 0.25) * torch.tensor([-1.0, 1.0])
        )
        mean = centre.double()[:, None, None].expand(K, frames, 2).clone()
        if name == "two_decoders":
            mean[1] += 0.15 * randn(frames, 2)
        noise = torch.tensor([[3.0]] if far else [[0.03], [3.0]]).double()
        decoders = 2 if name == "two_decoders" else 1
        arrays = {
            "mean": mean,
            "stddev": torch.full((K, frames), 0.3 if K == 1 or far else 0.17).double(),
            "pi": torch.tensor([1.0] if K == 1 else [0.4, 0.6]).double(),
            **network(decoders, 2, 6, 9, 1.0 if far else 5.0, 1.0 if name == "one_mode" else 0.4),
            "noise_variance": noise.expand(frames, 9).clone(),
            "power": torch.ones(frames, 9).double(),
        }
    return arrays | Posterior(name, plan.kind, arrays).story.draw(rng)[1]


def heard(data: Path, plan: Plan) -> Arrays:
    """The frame of a talker in noise where speech is loudest, as a scheme hears it in the end."""
    clean, noise = (load_audio(data / f).waveform for f in (CLIP.with_suffix(".flac"), NOISE))
    prior, stft = load_prior(str(plan.network))
    enhancer = Enhancer(prior, Guided(), stft=stft, device="cpu")
    mixed, _ = mix_at_snr(clean, noise[: len(clean)], plan.snr)
    lips = load_lips(data / CLIP.with_suffix(".npz")) if prior.uses_lips else None
    recording = enhancer.prepare(mixed.astype(np.float32), lips)
    target = enhancer.separate(recording, seed=0).separation.target
    loud = stft.analyse(torch.from_numpy(clean.astype(np.float32))).abs().square().sum(-1)
    n = int(loud.argmax())
    z = torch.zeros(1, len(loud), prior.latent_dim)
    level = (target.speech_variance(prior_of(target, z)).log() - prior.log_variance(z, None))[0, 0]
    p = prior.latent_prior(None)
    arrays = {
        "power": target.power[n : n + 1],
        "noise_variance": target.noise_variance[n : n + 1],
        "level": level[n],
        "mean": p.mean.expand(-1, 1, -1),
        "stddev": p.stddev[..., 0].expand(-1, 1),
        "pi": target.mixing_weight,
    }
    network = {"A": prior.decoder.hidden, "B": prior.decoder.log_variance}
    weights = {key: layer.weight.T[None] for key, layer in network.items()}
    weights |= {key.lower(): layer.bias[None] for key, layer in network.items()}
    half = {key: weights[key].detach().half() for key in NETWORK}
    write(library.FOLDER / f"network_{plan.network}.nc", {None: dataset(half)})
    return {key: value.detach().float() for key, value in arrays.items()}


def prior_of(target: Any, z: Tensor) -> Tensor:
    with torch.no_grad():
        return target.prior.log_variance(z, target.lips)


def sample(name: str, plan: Plan, posterior: Posterior) -> tuple[np.ndarray, dict[str, Any]]:
    """Draws (chain, draw, frame, latent), and how they came to be."""
    rng = torch.Generator().manual_seed(plan.seed)
    about: dict[str, Any] = {"command": f"{COMMAND} --only {name}", "seed": plan.seed}
    story = posterior.story
    if isinstance(story, Line):
        torch.manual_seed(plan.seed)  # of torch.distributions, which takes no generator
        z = story.posterior().sample((CHAINS, DRAWS)).unflatten(-1, posterior.shape)
        return z.numpy(), about | {"kernel": "exact draws"}
    target: Any = posterior.target()
    z0 = posterior.starts(CHAINS, seed=plan.seed)
    options: dict[str, Any] = {"draws": DRAWS, "warmup": plan.warmup, "thin": plan.thin}
    if isinstance(plan.kernel, Independence):
        target = replace(target, proposal=prior_moments(posterior, 1.0))
    else:
        options["adapt"] = DualAveraging()
    chains = run_chains(plan.kernel, target, z0, seed=rng, **options)
    about |= {
        "kernel": f"{plan.kernel}, step sizes by DualAveraging()",
        "warmup": plan.warmup,
        "thin": plan.thin,
        "acceptance": float(chains.acceptance_rate.mean()),
    }
    return chains.draws.numpy(), about


def check(
    name: str, posterior: Posterior, draws: np.ndarray, about: dict[str, Any]
) -> tuple[xarray.Dataset, dict[str, Any]]:
    """What the run says of every number; raises where it cannot be believed."""
    data = arviz.convert_to_dataset({"z": draws})

    def of(statistic: Any, **options: Any) -> np.ndarray:
        return statistic(data, **options)["z"].values

    z = draws.reshape(-1, *posterior.shape)
    told = {
        "mean": z.mean(0),
        "mean_error": of(arviz.mcse, method="mean"),
        "stddev": z.std(0),
        "stddev_error": of(arviz.mcse, method="sd"),
        "r_hat": of(arviz.rhat),
        "ess_bulk": of(arviz.ess, method="bulk"),
        "ess_tail": of(arviz.ess, method="tail", prob=TAILS),
    }
    smc = by_smc(posterior)
    about = about | {
        "r_hat": float(told["r_hat"].max()),
        "ess": float(min(told["ess_bulk"].min(), told["ess_tail"].min())),
        "smc_mean_off": float((np.abs(smc.mean(0) - told["mean"]) / told["stddev"]).max()),
        "smc_stddev_off": float(np.abs(smc.std(0) / told["stddev"] - 1).max()),
        "torch": torch.__version__.split("+")[0],
    }
    believed = about["r_hat"] <= RHAT_MAX and about["ess"] >= 1_000
    if not believed or about["smc_mean_off"] > 0.2 or about["smc_stddev_off"] > 0.2:
        raise SystemExit(f"{name}: not to be believed: {about}")
    return xarray.Dataset(
        {f"reference_{key}": (("frame", "latent"), value) for key, value in told.items()}
    ), about


@dataclass(frozen=True)
class AsOneFrame:
    """A path as one frame, which tempering takes."""

    posterior: Posterior
    event_dim: int = 1

    def log_density(self, z: Tensor) -> Tensor:
        return self.posterior.log_density(z.unflatten(-1, self.posterior.shape)[..., 0, :, :])[
            ..., None
        ]


def by_smc(posterior: Posterior, particles: int = 1_000) -> np.ndarray:
    """Particles (particle, frame, latent)."""
    target, start = as_frames(posterior, prior_moments(posterior, 1.2))
    kernel = HMC(0.1, steps=8)
    z = tempered_smc(target, start, kernel=kernel, particles=particles, moves=2).z
    return z.numpy().reshape(particles, *posterior.shape)


def prior_moments(posterior: Posterior, widening: float) -> Any:
    z = posterior.starts(2_000, seed=1)
    return unchecked_normal(z.mean(0), widening * z.std(0))


def as_frames(posterior: Posterior, start: Any) -> tuple[Any, Any]:
    """Its target and where tempering starts; a path is made one frame."""
    target = posterior.target()
    if target.event_dim == 1:
        return target, start
    return AsOneFrame(posterior), unchecked_normal(
        start.mean.flatten()[None], start.stddev.flatten()[None]
    )


def problem(plan: Plan, stored: Arrays) -> xarray.Dataset:
    """`constant_data` of a file."""
    made = dataset(stored)
    made.attrs = {"kind": plan.kind, "network": plan.network or ""}
    if plan.snr is not None:
        made.attrs["source"] = (
            f"GRID corpus (Cooke, Barker, Cunningham & Shao 2006, CC BY 4.0), {CLIP}; Berlin Noise by Thomas Rosen "
            f"(CC BY 4.0), {NOISE.stem}; {plan.snr:g} dB"
        )
    return made


def dataset(arrays: Arrays) -> xarray.Dataset:
    return xarray.Dataset(
        {
            k: ([f"{k}_{i}" for i in range(v.dim())], v.numpy()) if isinstance(v, Tensor) else v
            for k, v in arrays.items()
        }
    )


def packed(draws: np.ndarray, about: dict[str, Any]) -> xarray.Dataset:
    """Draws that are stored in 16 bits, to 2e-5 of their range."""
    kept = xarray.Dataset({"z": (("chain", "draw", "frame", "latent"), draws)}, attrs=about)
    kept = kept.assign_coords({dim: np.arange(n) for dim, n in kept.sizes.items()})
    low, high = draws.min(), draws.max()
    packing = {"scale_factor": (high - low) / 65_000, "add_offset": (high + low) / 2}
    kept["z"].encoding = packing | {"dtype": "int16", "zlib": True, "_FillValue": -32_768}
    return kept


def write(path: Path, groups: dict[str | None, xarray.Dataset]) -> None:
    def put(part: Path) -> None:
        part.unlink()  # it is locked, and HDF5 wants its own lock
        for number, (group, data) in enumerate(groups.items()):
            mode: Any = "a" if number else "w"
            data.to_netcdf(part, mode=mode, group=group, engine="h5netcdf")
        part.replace(path)

    beside(path, put)


if __name__ == "__main__":
    main()
