"""Samplers side by side on the library's posteriors: how well, at what cost, and whether the answer is right.

    race(HMC(), load("noisy_frame"))                    a kernel of ours, or of yours: warm-up, draws, verdict
    judge(load("noisy_frame"), draws, evaluations=...)  draws of any sampler, (chain, draw, frame, latent)

Right is what has mixed (R-hat, ESS: `lab.diagnostics`) and agrees with the reference in mean and standard deviation of
every number, in standard errors of both sides together; beyond `FAR` of them something is wrong.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pyro_avse.errors import InputError
from pyro_avse.inference.run import run_chains
from pyro_avse.lab.diagnostics import ESS_MIN, LEAST_DRAWS, RHAT_MAX, TAILS, adaptation_for
from pyro_avse.lab.posteriors.library import Posterior
from pyro_avse.typing import JSON, Codes, Kernel, Target

FAR = 4.5
"""Standard errors: a right sampler is further off in one of 384 numbers once in 400 runs."""


@dataclass(frozen=True)
class Verdict:
    """What draws are worth: of the worst number of z."""

    ess: float
    """The lesser of bulk and tail, of all chains together."""
    r_hat: float
    """Infinite where a number never moved."""
    mean_off: float
    """The largest distance from the reference's means, in standard errors."""
    stddev_off: float
    evaluations: int | None
    """Of density or gradient, all chains together, warm-up left out."""
    seconds: float | None

    @property
    def reason(self) -> str | None:
        """What is wrong, in words; None: nothing."""
        if not self.r_hat <= RHAT_MAX:
            return f"R-hat over {RHAT_MAX}"
        if not self.ess >= ESS_MIN:
            return f"ESS under {ESS_MIN}"
        off = [
            f"{what} off" for what in ("mean", "stddev") if not getattr(self, f"{what}_off") <= FAR
        ]
        return ", ".join(off) or None

    def row(self) -> JSON:
        """For JSON: what is not finite is None."""
        numbers: JSON = {
            "ess": self.ess,
            "ess_per_1000_evaluations": 1000 * self.ess / self.evaluations
            if self.evaluations
            else None,
            "ess_per_second": self.ess / self.seconds if self.seconds else None,
            "r_hat": self.r_hat,
            "mean_off": self.mean_off,
            "stddev_off": self.stddev_off,
        }
        found = {k: v if v is not None and np.isfinite(v) else None for k, v in numbers.items()}
        return found | {"passes": self.reason is None, "reason": self.reason}


def judge(
    posterior: Posterior,
    draws: Float[np.ndarray, "chain draw frame latent"],
    *,
    evaluations: int | None = None,
    seconds: float | None = None,
) -> Verdict:
    """Draws of any sampler against the reference.

    Raises:
        InputError: fewer than two chains or four draws, or codes of another shape.
    """
    import arviz

    if draws.ndim != 4 or draws.shape[2:] != posterior.shape:
        raise InputError(
            f"draws are {draws.shape}: {posterior.name} has (chain, draw, {posterior.shape[0]}, {posterior.shape[1]})"
        )
    check_counts(len(draws), draws.shape[1])
    known = posterior.reference()
    data = arviz.convert_to_dataset({"z": draws})

    def of(statistic: Any, **options: Any) -> np.ndarray:
        return np.asarray(statistic(data, **options)["z"].values)

    moved = bool((np.ptp(draws, axis=1) > 0).any(0).all())
    with np.errstate(invalid="ignore", divide="ignore"):
        ess = np.minimum(of(arviz.ess, method="bulk"), of(arviz.ess, method="tail", prob=TAILS))
        z, errors = draws.reshape(-1, *posterior.shape), (known.mean_error, known.stddev_error)
        off = [
            np.abs(found - right) / np.hypot(of(arviz.mcse, method=method), error)
            for found, right, error, method in zip(
                (z.mean(0), z.std(0)),
                (known.mean, known.stddev),
                errors,
                ("mean", "sd"),
                strict=True,
            )
        ]
        return Verdict(
            ess=float(ess.min()) if moved else 0.0,
            r_hat=float(of(arviz.rhat).max()) if moved else np.inf,
            mean_off=float(off[0].max()),
            stddev_off=float(off[1].max()),
            evaluations=evaluations,
            seconds=seconds,
        )


def race(
    kernel: Kernel,
    posterior: Posterior,
    *,
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 1000,
    seed: int = 0,
) -> Verdict:
    """A kernel's chains from draws of the prior; step sizes are found in the warm-up, by dual averaging.

    Raises:
        InputError: as `judge`; a kernel that does not suit the posterior.
        Divergence: as `run_chains`.
    """
    check_counts(chains, draws)
    z0 = posterior.starts(chains, seed=seed)
    kernel.init(posterior.target(), z0)  # refuses what it cannot sample
    target = Counted(posterior.target())
    warm = run_chains(
        kernel, target, z0, draws=1, warmup=warmup, adapt=adaptation_for(kernel), seed=seed
    )
    target.count, start = 0, time.process_time()
    drawn = run_chains(warm.kernel, target, warm.state.z, draws=draws, seed=seed + 1)
    seconds = time.process_time() - start
    return judge(posterior, drawn.draws.numpy(), evaluations=target.count * chains, seconds=seconds)


def check_counts(chains: int, draws: int) -> None:
    """Raise InputError where there are too few for R-hat and ESS."""
    if chains < 2 or draws < LEAST_DRAWS:
        raise InputError(
            f"{chains} chains of {draws} draws have no R-hat: give 2 chains or more, of {LEAST_DRAWS} draws or more"
        )


class Counted:
    """A target that counts how often it is asked for a density or a gradient; everything else is the target's."""

    def __init__(self, target: Target) -> None:
        self.target, self.count = target, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.target, name)
        if name not in ("log_likelihood", "component_log_joint", "value_and_grad"):
            return found

        def counted(*args: Any) -> Any:
            self.count += 1
            return found(*args)

        return counted

    @property
    def event_dim(self) -> int:
        return self.target.event_dim

    def log_density(self, z: Codes) -> Tensor:
        self.count += 1
        return self.target.log_density(z)
