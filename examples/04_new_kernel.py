"""Write a kernel: Barker's sampler, registered in one line and tested by the tests that all kernels pass.

    python examples/04_new_kernel.py [--draws 300]

Metropolis and Hastings accept a proposal with probability min(1, a), a the ratio of densities. Barker (1965) accepts
with a / (1 + a), which leaves the density invariant too, since a / (1 + a) = a * (1/a) / (1 + 1/a); it accepts less
often, at most half of the proposals that change little. Its place is where a is only known with noise.

Needs the repository, for its tests, and pytest: `pip install -e ".[dev]"`.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_avse.inference import KERNELS, RandomWalk, run_chains
from pyro_avse.inference.adaptation import of_every_code
from pyro_avse.inference.metropolis import accept_or_reject
from pyro_avse.inference.random_walk import random_walk_proposal
from pyro_avse.typing import Info, Kernel, State, StepSize, Target


# 1. The kernel, as it would stand in inference/barker.py: tuning constants, a start, a step.
@dataclass(frozen=True)
class Barker:
    """Gaussian proposals of standard deviation `step_size`, accepted with probability a / (1 + a)."""

    step_size: StepSize = 0.1
    target_acceptance: ClassVar[float] = 0.16  # what adaptation steers at

    def init(self, target: Target, z: Tensor) -> State:
        """The chain at z (chain, ..., frame, latent)."""
        return State(z, target.log_density(z))

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        """One proposal for every chain and frame, each accepted on its own."""
        z = random_walk_proposal(state.z, of_every_code(self.step_size, target), rng=rng)
        proposal = State(z, target.log_density(z))
        log_a = proposal.log_density - state.log_density
        # min(1, exp(r)) with r = log sigmoid(log a) is a / (1 + a); NaN stays NaN, and is rejected.
        return accept_or_reject(state, proposal, logsigmoid(log_a), rng=rng)


# 2. Its registration: in the library, a line in inference/__init__.py. The command line then knows --kernel barker.
KERNELS["barker"] = Barker


# 3. A look at it, and at a mistake: accepting with probability sqrt(a / (1 + a)) looks harmless.
@dataclass(frozen=True)
class TooEager(Barker):
    """A twin that the tests must find."""

    def step(self, target: Target, state: State, *, rng: torch.Generator) -> tuple[State, Info]:
        z = random_walk_proposal(state.z, of_every_code(self.step_size, target), rng=rng)
        proposal = State(z, target.log_density(z))
        log_a = proposal.log_density - state.log_density
        return accept_or_reject(state, proposal, 0.5 * logsigmoid(log_a), rng=rng)


@dataclass(frozen=True)
class Normal:
    """N(0, 0.13^2 I): every frame's code about as uncertain as a speech encoder's."""

    event_dim: int = 1

    def log_density(self, z: Tensor) -> Tensor:
        return -0.5 * (z / 0.13).square().sum(-1)


parser = argparse.ArgumentParser()
parser.add_argument("--draws", type=int, default=300)
draws = parser.parse_args().draws

# Chains (chain, frame, latent) that start in the target must stay there.
z0 = 0.13 * torch.randn(1_000, 4, 2, generator=torch.Generator().manual_seed(0)).double()
kernels: tuple[Kernel, ...] = (RandomWalk(), Barker(), TooEager())
for kernel in kernels:
    chains = run_chains(kernel, Normal(), z0, draws=draws)
    print(
        f"{type(kernel).__name__:12s} accepts {chains.acceptance_rate.mean():.2f}, "
        f"standard deviation {chains.state.z.std():.4f}; it should be 0.1300"
    )

# 4. The tests of all kernels, which find it in KERNELS: exact on a linear-Gaussian posterior, converging, without
# leakage between frames, never in a NaN region, the same for the same seed; calibrated on data from the story itself;
# and held against stored posteriors. One more asks for a broken twin, such as TooEager: a line in test_kernels.py.
root = Path(__file__).resolve().parents[1]
files = ("test_kernels.py", "test_calibration.py", "test_reference_posteriors.py")
options = ["-q", "-p", "no:cacheprovider", "-c", str(root / "pyproject.toml")]
options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # some plugins are imported already
options += ["-m", "not slow", "-k", "barker and not broken"]
sys.exit(pytest.main([*(str(root / "tests" / file) for file in files), *options]))
