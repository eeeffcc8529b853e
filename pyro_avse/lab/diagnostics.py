"""Whether draws can be trusted: R-hat and effective sample sizes of every frame, by ArviZ.

    R-hat       spread of all chains together over that within each: 1 where the chains agree
    bulk ESS    how many independent draws would give the mean as well as these do
    tail ESS    the same for the 5 % and 95 % quantiles                       all three: [Vehtari et al. 2021]

A frame is as good as the worst of its codes, and each frame is a Markov chain of its own, so one number for a recording
hides what matters: everything here is an array over frames. When to use it: after any scheme whose posterior you rely
on, by `sample_posterior` on what the scheme returned, or on any `Chains` of yours by `to_inference_data`.
"""

import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.errors import InputError
from pyro_avse.inference.adaptation import Adaptation, DualAveraging, step_size_of
from pyro_avse.inference.run import run_chains
from pyro_avse.lab.short_chains import check_superchains, nested_limit, nested_rhat
from pyro_avse.typing import JSON, Chains, Codes, Kernel, Power, Separation

if TYPE_CHECKING:
    import xarray

RHAT_MAX = 1.01
"""[Vehtari et al. 2021] 4: above it chains have not mixed."""
ESS_MIN = 400
"""[Vehtari et al. 2021] 4: of all chains together, bulk and tail; fewer, and R-hat itself is noise."""
ACCEPTANCE_MIN = 0.05
"""Of a frame's steps: below it the step size is wrong, whatever the other numbers say."""
DIVERGENCES_MAX = 0
"""Of a frame: each one tells of a region that the chain cannot enter."""

LEAST_DRAWS = 4
"""Of a chain: ArviZ splits each in two, and a half needs two."""
TAILS = (0.05, 0.95)
"""The quantiles of the tail ESS, said aloud since ArviZ 1 has others by default."""

FrameArray = Float[np.ndarray, "*utterance frame"]


def to_inference_data(
    chains: Chains, *, observed: Power | None = None, model_name: str | None = None
) -> Any:
    """What `run_chains` drew as ArviZ's object: InferenceData before ArviZ 1, an xarray DataTree since.

    Nothing is run again. `posterior` holds z, dims (chain, draw, utterance_1, ..., frame, latent); `sample_stats` lp,
    acceptance_rate (0 or 1), step_size of a kernel that has one, diverging of a kernel that can; `observed_data`
    `power` |x|^2; `constant_data` the model's name.
    """
    return of_groups(inference_groups(chains, observed, model_name))


def of_groups(groups: "dict[str, xarray.Dataset]") -> Any:
    """ArviZ's object, whatever its version, of datasets by ArviZ's names."""
    import arviz
    import xarray

    if int(arviz.__version__.split(".")[0]) >= 1:
        return xarray.DataTree.from_dict(groups)
    return arviz.InferenceData(**groups)


def inference_groups(
    chains: Chains, observed: Power | None = None, model_name: str | None = None
) -> "dict[str, xarray.Dataset]":
    """The groups of `to_inference_data`, as ArviZ names them."""
    z = chains.draws
    utterances = [f"utterance_{i}" for i in range(1, z.dim() - 3)]
    dims = ["chain", "draw", *utterances, "frame", "latent"]
    frames = dims[: chains.log_density.dim()]  # where the utterance is one event, without "frame"
    stats = {
        "lp": (frames, chains.log_density),
        "acceptance_rate": (frames, chains.accepted.to(z.dtype)),
    }
    if chains.diverging is not None:
        stats["diverging"] = (frames, chains.diverging)
    step_size = getattr(getattr(chains.kernel, "inner", chains.kernel), "step_size", None)
    if step_size is not None:
        like = chains.state.log_density
        step_size = torch.as_tensor(step_size, dtype=like.dtype).expand_as(like)
        stats["step_size"] = (["chain", *frames[2:]], step_size)
    groups = {"posterior": _dataset({"z": (dims, z)}), "sample_stats": _dataset(stats)}
    groups["posterior"].attrs["kernel"] = type(chains.kernel).__name__
    if observed is not None:
        groups["observed_data"] = _dataset({"power": ([*utterances, "frame", "freq"], observed)})
    if model_name is not None:
        groups["constant_data"] = _dataset({"model": ([], model_name)})
    return groups


def _dataset(variables: dict[str, tuple[list[str], Any]]) -> "xarray.Dataset":
    import xarray

    arrays = {
        name: (dims, value.cpu().numpy() if isinstance(value, Tensor) else value)
        for name, (dims, value) in variables.items()
    }
    dataset = xarray.Dataset(arrays)
    dataset = dataset.assign_coords({dim: np.arange(n) for dim, n in dataset.sizes.items()})
    dataset.attrs = {
        "inference_library": "pyro_avse",
        "inference_library_version": version("pyro_avse"),
    }
    return dataset


@dataclass(frozen=True)
class Diagnosis:
    """How well chains sampled, a number a frame: that of its worst code."""

    rhat: FrameArray
    """Infinite where no chain ever moved."""
    ess_bulk: FrameArray
    """Of all chains together; 0 where no chain ever moved; NaN where chains are too short to tell."""
    ess_tail: FrameArray
    acceptance: FrameArray
    """Mean over chains and draws, in [0, 1]."""
    divergences: FrameArray
    """How many, in all chains."""
    chains: int = 2
    """One has no R-hat: NaN."""
    rhat_max: float = RHAT_MAX
    """Of nested R-hat what a frame at rest seldom exceeds (`nested_limit`)."""

    def failures(self) -> dict[tuple[int, ...], str]:
        """Frames, by their indices (utterance, ..., frame), that miss a threshold, and which, in words."""
        one = self.chains < 2
        missed = {
            "no R-hat: one chain" if one else f"R-hat over {self.rhat_max:.4g}": ~(
                self.rhat <= self.rhat_max
            ),
            f"bulk ESS under {ESS_MIN}": self.ess_bulk < ESS_MIN,
            f"tail ESS under {ESS_MIN}": self.ess_tail < ESS_MIN,
            f"acceptance under {ACCEPTANCE_MIN}": ~(self.acceptance >= ACCEPTANCE_MIN),
            "divergences": self.divergences > DIVERGENCES_MAX,
        }
        failing = np.argwhere(np.logical_or.reduce(list(missed.values())))
        return {
            tuple(map(int, index)): ", ".join(
                name for name, where in missed.items() if where[tuple(index)]
            )
            for index in failing
        }

    def summary(self) -> JSON:
        """Worst and median over frames, ready for JSON: what is not finite is None."""
        worst = {"rhat": np.max, "ess_bulk": np.min, "ess_tail": np.min, "acceptance": np.min}
        return {
            **{
                name: {
                    "worst": finite_or_none(pick(getattr(self, name))),
                    "median": finite_or_none(np.median(getattr(self, name))),
                }
                for name, pick in worst.items()
            },
            "divergences": int(self.divergences.sum()),
        }


def finite_or_none(value: float) -> float | None:
    """A number as JSON has it, which knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def diagnose(idata: Any, superchains: int | None = None) -> Diagnosis:
    """R-hat, ESS, acceptance and divergences of every frame of what `to_inference_data` made.

    ArviZ calls draws that never move perfect; here they are not (see `Diagnosis`). Takes about 2 ms a code and frame.
    With `superchains`, groups of chains of which each began at one point, R-hat is nested, and no ESS is asked.
    Raises InputError for fewer than four draws a chain, or as `nested_rhat`.
    """
    import arviz

    z = idata["posterior"]["z"]
    chains, draws = z.sizes["chain"], z.sizes["draw"]
    if superchains is not None:
        return _of_superchains(idata, superchains)
    if draws < LEAST_DRAWS:
        raise InputError(
            f"{draws} draws a chain have no R-hat and no ESS: take {LEAST_DRAWS} or more"
        )
    moved = (z.max("draw") > z.min("draw")).any("chain").all("latent")
    dataset = z.to_dataset(name="z")

    def over_codes(values: Any, worst: str, where_stuck: float) -> FrameArray:
        return getattr(values["z"], worst)("latent", skipna=False).where(moved, where_stuck).values

    stats = idata["sample_stats"]
    diverging = stats["diverging"] if "diverging" in stats else 0 * stats["lp"]
    with np.errstate(invalid="ignore", divide="ignore"):
        return Diagnosis(
            rhat=(
                over_codes(arviz.rhat(dataset), "max", np.inf)
                if chains > 1
                else np.full(moved.shape, np.nan)
            ),
            ess_bulk=over_codes(arviz.ess(dataset, method="bulk"), "min", 0),
            ess_tail=over_codes(arviz.ess(dataset, method="tail", prob=TAILS), "min", 0),
            acceptance=_of_frames(stats["acceptance_rate"].mean(("chain", "draw")), moved),
            divergences=_of_frames(diverging.sum(("chain", "draw")), moved),
            chains=chains,
        )


def _of_superchains(idata: Any, superchains: int) -> Diagnosis:
    """By nested R-hat."""
    z, stats = idata["posterior"]["z"], idata["sample_stats"]
    rhat = nested_rhat(z.values, superchains)
    like = z.isel(chain=0, draw=0, latent=0)
    diverging = stats["diverging"] if "diverging" in stats else 0 * stats["lp"]
    chains, codes = z.sizes["chain"], z.sizes["latent"]
    return Diagnosis(
        rhat=rhat,
        ess_bulk=np.full(rhat.shape, np.nan),
        ess_tail=np.full(rhat.shape, np.nan),
        acceptance=_of_frames(stats["acceptance_rate"].mean(("chain", "draw")), like),
        divergences=_of_frames(diverging.sum(("chain", "draw")), like),
        chains=chains,
        rhat_max=nested_limit(chains, superchains, codes),
    )


def _of_frames(values: Any, like: Any) -> FrameArray:
    """Where the utterance is one event, its number for each of its frames."""
    return values.broadcast_like(like).transpose(*like.dims).values


def sample_posterior(
    separation: Separation,
    kernel: Kernel,
    *,
    draws: int,
    warmup: int,
    chains: int = 4,
    seed: int = 0,
) -> tuple[Chains, float]:
    """A long run on the posterior of z that a scheme ended with, and its seconds, warm-up left out.

    Chains start as `starting_points` says. Steps are adapted in the warm-up, then frozen.

    Raises:
        InputError: the kernel does not suit the posterior.
    """
    target, rng = separation.target, torch.Generator(device=separation.z.device).manual_seed(seed)
    z = starting_points(separation, chains, rng=rng)
    warm = run_chains(
        kernel, target, z, draws=1, warmup=warmup, adapt=adaptation_for(kernel), seed=rng
    )
    start = time.perf_counter()
    drawn = run_chains(warm.kernel, target, warm.state.z, draws=draws, seed=rng)
    drawn.draws.cpu()  # waits for the device
    return drawn, time.perf_counter() - start


@torch.no_grad()
def starting_points(
    separation: Separation, chains: int, *, superchains: int | None = None, rng: torch.Generator
) -> Codes:
    """`chains` points (chain, ..., frame, latent): where the scheme's first chain stands, then draws of the prior.

    Chains that all start in one mode agree, whatever they miss: R-hat asks for starts that are wider apart than the
    posterior, as p(z_n | k) is, k = 0, 1, ... in turn. A target without `components` has where the scheme's chains
    stand, over and over: its R-hat says less. With `superchains` so many groups of chains begin at one such point each.
    """
    if superchains is not None:
        each = check_superchains(chains, superchains)
        return starting_points(separation, superchains, rng=rng).repeat_interleave(each, 0)
    z, target = separation.z, separation.target
    starts = z[torch.arange(chains, device=z.device) % len(z)]
    prior = getattr(getattr(target, "collapsed", target), "components", None)
    if prior is not None:
        k = torch.arange(chains - 1, device=z.device) % len(prior.mean)
        noise = torch.randn(starts[1:].shape, generator=rng, dtype=z.dtype, device=z.device)
        starts[1:] = prior.mean[k, 0] + prior.stddev[k, 0] * noise
    return starts


def adaptation_for(kernel: Kernel) -> Adaptation | None:
    """Dual averaging, the one for long runs; None for a kernel that has nothing to adapt."""
    try:
        step_size_of(kernel, torch.zeros(()))
    except InputError:
        return None
    return DualAveraging()
