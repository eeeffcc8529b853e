"""Named posteriors: log density, gradient, exact data, reference draws; for our kernels, Pyro, NumPyro and BlackJAX.

    posterior = load("noisy_frame")
    posterior.target()                     what our kernels sample: codes (chain, frame, latent)
    posterior.potential({"z": z})          minus the log density of one z (frame, latent): for Pyro's HMC and NUTS
    posterior.log_density_in_jax()         a function of one z (frame, latent) in jax.numpy: for BlackJAX; its negative
                                           is NumPyro's `potential_fn`
    posterior.starts(4, seed=0)            where chains may begin: draws of the prior
    posterior.simulate(seed=0)             the same posterior of new data, and the z that made them: an exact draw
    posterior.reference()                  means, standard deviations and draws of a long run, and how it was checked

Each is one file, reference/NAME.nc: `posterior` has draws, as `arviz.from_netcdf` reads them; `constant_data` what
the density is made of and what the whole run said; its attributes tell kernel, settings, checks and command. They were
made by benchmarks/reference_posteriors.py, which no file here depends on. The two networks are the bundled decoders of
A-VAE and MIN-VAE v2 on the day when the references were made; they stay as they are when those are trained anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions import Independent, Normal
from torch import Tensor

from pyro_avse.errors import InputError, closest
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.lab.posteriors.stories import STORIES, Story
from pyro_avse.typing import Codes, Target

FOLDER = Path(__file__).parent / "reference"
POSTERIORS = {
    "one_mode": "a small A-VAE: a frame that says much, and one that says little",
    "two_modes": "a small MIN-VAE, its two priors side by side",
    "two_decoders": "a small VAE-MM: two priors, two decoders, lips that change",
    "line": "a path of 12 frames, linear and Gaussian: the answer is known",
    "dark_frame": "A-VAE, a frame of a talker in a tram's noise at -10 dB: nearly the prior",
    "noisy_frame": "the same frame at 0 dB",
    "mixed_frame": "MIN-VAE v2, the frame at 0 dB: which of two priors made it?",
    "unknown_noise": "speech and its noise, both unknown: z, W and H",
    "far_modes": "two modes that no small step connects",
}
"""In rising difficulty, and what each is."""
NETWORK = ("A", "a", "B", "b")
REFERENCE = ("mean", "mean_error", "stddev", "stddev_error", "r_hat", "ess_bulk", "ess_tail")
"""What the whole run said of every number: (frame, latent)."""


@dataclass(frozen=True)
class Reference:
    """What a long run said of every number of z, (frame, latent), and some of its draws."""

    draws: Float[np.ndarray, "chain draw frame latent"]
    """Of the whole run some, nearly independent."""
    mean: Float[np.ndarray, "frame latent"]
    mean_error: Float[np.ndarray, "frame latent"]
    """Monte Carlo standard error of the mean."""
    stddev: Float[np.ndarray, "frame latent"]
    stddev_error: Float[np.ndarray, "frame latent"]
    r_hat: Float[np.ndarray, "frame latent"]
    ess_bulk: Float[np.ndarray, "frame latent"]
    ess_tail: Float[np.ndarray, "frame latent"]
    about: dict[str, Any]
    """Kernel, settings, seed, command, and what tempered SMC said (`smc_*`)."""


@dataclass(frozen=True)
class Posterior:
    """p(z | x) of one of the stories, in float64."""

    name: str
    kind: str
    """A key of `STORIES`."""
    arrays: dict[str, Any]
    """float64 tensors and single numbers, by the names of the story."""

    @property
    def story(self) -> Story:
        """Its density, in torch."""
        return STORIES[self.kind](torch, self.arrays)

    @property
    def shape(self) -> tuple[int, int]:
        """(frame, latent) of z."""
        return self.story.shape

    def target(self) -> Target:
        """For our kernels: `frames` is a `CollapsedTarget`, for all of them; the others have a log density alone."""
        if self.kind != "frames":
            return StoryTarget(self.story)
        power, noise = self.arrays["power"], self.arrays["noise_variance"]
        prior: Any = StoredPrior(self.arrays)
        return CollapsedTarget(prior, None, power, noise, self.arrays["pi"])

    def log_density(self, z: Float[Tensor, "*batch frame latent"]) -> Float[Tensor, "*batch"]:
        """log p(x, z), all frames together."""
        density = self.story.log_density(z)
        return density.sum(-1) if self.story.event_dim == 1 else density

    def potential(self, codes: dict[str, Tensor]) -> Tensor:
        """Minus the log density of codes["z"], as `pyro.infer.NUTS(potential_fn=...)` takes it."""
        return -self.log_density(codes["z"])

    def log_density_in_jax(self) -> Callable[[Any], Any]:
        """`log_density` of one z (frame, latent) in jax.numpy, to be differentiated, jitted and vmapped.

        In float64 where jax is told so (`jax.enable_x64`). Raises InputError where there is no jax.
        """
        try:
            import jax.numpy as jnp
        except ImportError:
            raise InputError("there is no jax here: pip install jax, numpyro or blackjax") from None
        arrays = {
            name: jnp.asarray(value.numpy()) if isinstance(value, Tensor) else value
            for name, value in self.arrays.items()
        }
        story = STORIES[self.kind](jnp, arrays)
        return lambda z: story.log_density(z).sum()

    def simulate(self, *, seed: int) -> tuple["Posterior", Float[Tensor, "frame latent"]]:
        """The same story of new data that it makes itself, and the z of which: an exact draw of the new posterior."""
        z, data = self.story.draw(torch.Generator().manual_seed(seed))
        return replace(self, arrays=self.arrays | data), z

    def starts(self, chains: int, *, seed: int) -> Float[Tensor, "chain frame latent"]:
        """Draws of the prior."""
        rng = torch.Generator().manual_seed(seed)
        return torch.stack([self.story.draw(rng)[0] for _ in range(chains)])

    def reference(self) -> Reference:
        """What is known of it. (Of simulated data nothing is: the stored data's is returned.)"""
        import xarray

        file = FOLDER / f"{self.name}.nc"
        draws = xarray.load_dataset(file, group="posterior", engine="h5netcdf")
        told = xarray.load_dataset(file, group="constant_data", engine="h5netcdf")
        known = {name: told[f"reference_{name}"].values for name in REFERENCE}
        return Reference(draws["z"].values, **known, about=dict(draws.attrs))


def load(name: str) -> Posterior:
    """The posterior of that name in `POSTERIORS`. Raises InputError for others."""
    import xarray

    if name not in POSTERIORS:
        raise InputError(f"unknown posterior {name!r}{closest(name, POSTERIORS)}")
    stored = xarray.load_dataset(FOLDER / f"{name}.nc", group="constant_data", engine="h5netcdf")
    told = {key: value.values for key, value in stored.items() if "reference_" not in str(key)}
    network = stored.attrs.get("network")
    if network:
        weights = xarray.load_dataset(FOLDER / f"network_{network}.nc", engine="h5netcdf")
        told |= {key: weights[key].values for key in NETWORK}
        told["b"] = told["b"] + told.pop("level")
    arrays = {
        str(key): torch.from_numpy(value.astype(float)) if value.ndim else float(value)
        for key, value in told.items()
    }
    return Posterior(name, stored.attrs["kind"], arrays)


@dataclass(frozen=True)
class StoryTarget:
    """A story as our kernels see it; its gradient is autograd's."""

    story: Story

    @property
    def event_dim(self) -> int:
        return self.story.event_dim

    def log_density(self, z: Codes) -> Tensor:
        """For codes (chain, ..., frame, latent)."""
        return self.story.log_density(z)


@dataclass(frozen=True)
class StoredPrior:
    """As much of a speech prior as p(z | x) of `frames` needs."""

    arrays: dict[str, Tensor]

    @property
    def num_components(self) -> int:
        return len(self.arrays["mean"])

    @property
    def latent_dim(self) -> int:
        return self.arrays["mean"].shape[-1]

    def latent_prior(self, lips: Tensor | None) -> Independent:
        """p(z_n | k): batch (component, frame), event (latent,)."""
        stddev = self.arrays["stddev"][..., None].expand_as(self.arrays["mean"])
        return Independent(Normal(self.arrays["mean"], stddev), 1)

    def log_variance(self, z: Codes, lips: Tensor | None) -> Tensor:
        """log sigma_k(z): (decoder, chain, frame, freq)."""
        return STORIES["frames"](torch, self.arrays).log_variance(z)
