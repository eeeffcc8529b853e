"""Any of our kernels inside Pyro: `pyro.infer.MCMC(PyroKernel(kernel, target, z0), num_samples=..., warmup_steps=...)`.

All of z is one site "z", chains its leading axis, so that Pyro's draws are those of `run_chains`, bit for bit:

    MCMC(...).get_samples()["z"]      (draw, chain, ..., frame, latent)
    run_chains(...).draws             (chain, draw, ..., frame, latent)

When to use it: for a comparison with Pyro's own kernels under one roof, with its hooks and its progress bar. Pyro's
kernels keep one energy for all frames; these accept or reject each frame on its own, here too.
"""

import os
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_avse.inference.adaptation import (
    Adaptation,
    acceptance_error,
    step_size_of,
    with_step_size,
)
from pyro_avse.inference.run import stop_if_diverged
from pyro_avse.typing import Chains, InputError, Kernel, Target


class PyroKernel(MCMCKernel):  # type: ignore[misc]
    """A kernel, its target and a start, as an `MCMCKernel` of Pyro; arguments as of `run_chains`.

    Pyro's `num_chains` stays at 1, since the leading axis of z0 holds the chains: its own chains are processes, which
    would all draw the same. A second `MCMC.run` starts at z0 again, and goes on with the random numbers. The global
    random state is neither read nor changed.

    Raises:
        InputError: run in another process than it was made in, as by `num_chains` above 1.
        Divergence: after the last draw, where `run_chains` raises it; its `partial` has that draw alone.
    """

    transforms: dict[str, Any] = {}  # noqa: RUF012
    """Pyro's, from z to an unconstrained space: z is unconstrained."""

    def __init__(
        self,
        kernel: Kernel,
        target: Target,
        z0: Tensor,
        *,
        adapt: Adaptation | None = None,
        thin: int = 1,
        seed: int | torch.Generator = 0,
    ) -> None:
        self.first_kernel, self.target, self.z0 = kernel, target, z0
        self.adapt, self.thin = adapt, thin
        if not isinstance(seed, torch.Generator):
            seed = torch.Generator(device=z0.device).manual_seed(seed)
        self.rng = seed
        self.process = os.getpid()

    @property
    def initial_params(self) -> dict[str, Tensor]:
        """Where the chains start."""
        return {"z": self.z0}

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self.z0 = params["z"]

    @torch.no_grad()
    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Put the chains at their start; whatever `MCMC.run` is given is not used."""
        if os.getpid() != self.process:
            raise InputError(
                "PyroKernel has its chains in z0's leading axis: leave num_chains of MCMC at 1"
            )
        self.kernel, self.warmup, self.steps = self.first_kernel, warmup_steps, 0
        self.state = self.kernel.init(self.target, self.z0)
        self.tuning = None
        if self.adapt is not None:
            self.tuning = self.adapt.init(step_size_of(self.kernel, self.state.log_density))
        self.accepted = torch.zeros_like(self.state.log_density)
        self.diverging: list[Tensor] = []

    @torch.no_grad()
    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step, or after the warm-up `thin` steps, from where the chains stand."""
        for _ in range(1 if self.steps < self.warmup else self.thin):
            self.state, self.info = self.kernel.step(self.target, self.state, rng=self.rng)
            self.accepted += self.info.accepted
            self.steps += 1
        if self.adapt is not None and self.steps <= self.warmup:
            error = acceptance_error(self.kernel, self.info)
            self.tuning = self.adapt.update(self.tuning, error, self.steps)
            step_size = self.adapt.step_size(self.tuning, final=self.steps == self.warmup)
            self.kernel = with_step_size(self.kernel, step_size)
        if self.steps > self.warmup and self.info.diverging is not None:
            self.diverging.append(self.info.diverging)
        return {"z": self.state.z}

    def logging(self) -> dict[str, str]:
        """What Pyro's progress bar shows."""
        return {"acceptance": f"{float(self.accepted.mean()) / self.steps:.3f}"}

    def diagnostics(self) -> dict[str, Any]:
        """The acceptance rate over all steps, (chain, ..., frame), and the draws to which a step of any frame diverged.

        Kernels that cannot diverge have no "divergences".
        """
        rate = self.accepted / self.steps
        found: dict[str, Any] = {"acceptance rate": rate}
        if self.diverging:
            anywhere = torch.stack(self.diverging).flatten(1).any(1)
            found["divergences"] = anywhere.nonzero()[:, 0].tolist()
        last = Chains(
            draws=self.state.z[:, None],
            log_density=self.state.log_density[:, None],
            accepted=self.info.accepted[:, None],
            diverging=None if self.info.diverging is None else self.info.diverging[:, None],
            acceptance_rate=rate,
            state=self.state,
            kernel=self.kernel,
        )
        stop_if_diverged(last)
        return found
