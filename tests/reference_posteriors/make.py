"""Reference posteriors of z, in the style of posteriordb: three small problems, and what 10,000 draws say of each.

    NAME.safetensors   the problem: p(z_n | k) = N(mean_kn, stddev_kn^2 I), decoders B tanh(A z + a) + b, pi, W H, |x|^2
    NAME.json          means, standard deviations, covariances and quantiles of the draws, R-hat and effective sample
                       sizes by ArviZ, and the kernel, settings, seed and command that made them

    a_vae        one component; a frame at high SNR (narrow), one at low SNR (nearly the prior)
    min_vae_v2   two components that share a decoder: two modes
    vae_mm       two components with decoders of their own; the second prior differs from frame to frame, as lips do

    python tests/reference_posteriors/make.py

makes them all anew, in about a minute. `tests/test_reference_posteriors.py` holds every kernel against them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.distributions import Independent, Normal
from safetensors.torch import load_file, save
from torch import Tensor

from pyro_avse.files import write_atomically
from pyro_avse.inference import run_chains
from pyro_avse.inference.adaptation import DualAveraging
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.target import CollapsedTarget

FOLDER = Path(__file__).parent
SEEDS = {"a_vae": 1, "min_vae_v2": 0, "vae_mm": 3}
PROBABILITIES = [0.05, 0.25, 0.5, 0.75, 0.95]
CHAINS, DRAWS, WARMUP, THIN = 10, 1_000, 500, 4
FRAMES, LATENT, HIDDEN, FREQS = 2, 2, 6, 9


@dataclass(frozen=True)
class StoredPrior:
    """As much of a speech prior as p(z | x) needs, from a problem's tensors."""

    tensors: dict[str, Tensor]

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """p(z_n | k): batch (component, frame), event (latent,)."""
        stddev = self.tensors["stddev"][..., None].expand_as(self.tensors["mean"])
        return Independent(Normal(self.tensors["mean"], stddev), 1)

    def log_variance(self, z: Tensor, lips: Tensor | None) -> Tensor:
        """log sigma_k(z): (decoder, chain, frame, freq)."""
        A, a, B, b = (self.tensors[name][:, None] for name in ("A", "a", "B", "b"))
        return torch.tanh(z @ A + a[:, None]) @ B + b[:, None]


def target_of(tensors: dict[str, Tensor]) -> CollapsedTarget:
    """p(z | x) of a problem, both frames."""
    noise, power = tensors["noise_variance"], tensors["power"]
    return CollapsedTarget(StoredPrior(tensors), None, power, noise, tensors["pi"])


def load(name: str) -> tuple[CollapsedTarget, dict[str, Any]]:
    """A stored problem's target, in float64, and its JSON."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return target_of(tensors), json.loads((FOLDER / f"{name}.json").read_text())


def make_problem(name: str, seed: int) -> dict[str, Tensor]:
    """A problem's tensors, x drawn from its story; codes are in units in which a step of 0.1 is a good one."""
    rng = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    K, decoders = 1 if name == "a_vae" else 2, 2 if name == "vae_mm" else 1
    centre = torch.tensor([0.0] if K == 1 else [-0.25, 0.25]).double()
    mean = centre[:, None, None].expand(K, FRAMES, LATENT).clone()
    if name == "vae_mm":
        mean[1] += 0.15 * randn(FRAMES, LATENT)
    tensors = {
        "mean": mean,
        "stddev": torch.full((K, FRAMES), 0.3 if K == 1 else 0.17).double(),
        "pi": torch.tensor([1.0] if K == 1 else [0.4, 0.6]).double(),
        "A": 5 * randn(decoders, LATENT, HIDDEN),
        "a": randn(decoders, HIDDEN),
        "B": (1.0 if name == "a_vae" else 0.4) * randn(decoders, HIDDEN, FREQS),
        "b": 0.5 * randn(decoders, FREQS),
        "noise_variance": torch.tensor([[0.03], [3.0]]).double().expand(FRAMES, FREQS).clone(),
    }
    alpha = torch.multinomial(tensors["pi"], FRAMES, replacement=True, generator=rng)
    n = torch.arange(FRAMES)
    z = mean[alpha, n] + tensors["stddev"][alpha, n, None] * randn(FRAMES, LATENT)
    sigma = StoredPrior(tensors).log_variance(z[None], None).exp()[:, 0]
    V = sigma[alpha % decoders, n] + tensors["noise_variance"]
    tensors["power"] = V / 2 * (randn(FRAMES, FREQS) ** 2 + randn(FRAMES, FREQS) ** 2)
    return tensors


def quadrature(target: CollapsedTarget, at: np.ndarray) -> dict[str, Any]:
    """Moments, P(z < at) and the number of modes of every frame by the trapezoid rule on a 301 x 301 grid.

    `at` is (frame, latent, point).
    """
    axis = torch.linspace(-2, 2, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = target.log_density(grid[:, None].expand(-1, FRAMES, -1)).T.reshape(FRAMES, 301, 301)
    p = torch.softmax(log_p.flatten(1), 1).reshape_as(log_p)
    marginal = torch.stack([p.sum(2), p.sum(1)], 1)  # (frame, latent, point)
    mean = marginal @ axis
    deviation = axis - mean[..., None]
    cross = torch.einsum("nij,ni,nj->n", p, deviation[:, 0], deviation[:, 1])
    # A bin's probability stands half on either side of its point.
    cdf = (marginal.cumsum(-1) - 0.5 * marginal).flatten(0, 1).numpy()
    below = [np.interp(x, axis, F) for x, F in zip(at.reshape(len(cdf), -1), cdf, strict=True)]
    highest = torch.nn.functional.max_pool2d(log_p[:, None], 3, 1, 1)[:, 0]
    modes = (log_p == highest) & (log_p > log_p.amax((1, 2), keepdim=True) - 4)
    return {
        "mean": mean.numpy(),
        "stddev": (marginal * deviation.square()).sum(-1).sqrt().numpy(),
        "covariance": cross.numpy(),
        "below": np.reshape(below, at.shape),
        "modes": modes.sum((1, 2)).tolist(),
    }


def summarise(draws: Tensor) -> dict[str, Any]:
    """The same of draws (chain, draw, frame, latent), with R-hat and bulk and tail effective sample sizes."""
    import arviz

    z = draws.flatten(0, 1)
    deviation = z - z.mean(0)
    data = arviz.convert_to_dataset({"z": draws.numpy()})
    probabilities = torch.tensor(PROBABILITIES, dtype=torch.float64)
    return {
        "mean": z.mean(0).tolist(),
        "stddev": z.std(0).tolist(),
        "covariance": deviation.prod(-1).mean(0).tolist(),
        "quantiles": z.quantile(probabilities, dim=0).movedim(0, -1).tolist(),
        "r_hat": arviz.rhat(data)["z"].values.tolist(),
        "ess_bulk": arviz.ess(data, method="bulk")["z"].values.tolist(),
        "ess_tail": arviz.ess(data, method="tail")["z"].values.tolist(),
    }


def main() -> None:
    for name, seed in SEEDS.items():
        tensors = make_problem(name, seed)
        target, rng = target_of(tensors), torch.Generator().manual_seed(seed)
        z0 = torch.rand(CHAINS, FRAMES, LATENT, generator=rng, dtype=torch.float64) - 0.5
        options = {"draws": DRAWS, "warmup": WARMUP, "thin": THIN, "adapt": DualAveraging()}
        chains = run_chains(HMC(0.05, steps=8), target, z0, seed=rng, **options)
        summary = summarise(chains.draws)
        reference = {
            "name": name,
            "command": "python tests/reference_posteriors/make.py",
            "kernel": "HMC(0.05, steps=8), step sizes by DualAveraging()",
            "chains": CHAINS,
            "draws": DRAWS,
            "warmup": WARMUP,
            "thin": THIN,
            "seed": seed,
            "torch": torch.__version__.split("+")[0],
            "probabilities": PROBABILITIES,
            "modes": quadrature(target, np.array(summary["quantiles"]))["modes"],
            "summary": summary,
        }
        write_atomically(FOLDER / f"{name}.safetensors", save(tensors))
        text = json.dumps(reference, indent=1) + "\n"
        write_atomically(FOLDER / f"{name}.json", text.encode())
        worst = np.max(summary["r_hat"])
        print(f"{name}: modes {reference['modes']}, worst R-hat {worst:.4f}")


if __name__ == "__main__":
    main()
