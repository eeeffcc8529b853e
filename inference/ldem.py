"""Langevin EM: Monte Carlo EM by few unadjusted Langevin moves of several chains. Slides S17-S20

It is `mcem`, step for step. What differs is how z moves and for how long:

    z' = z + drift + eps xi,   drift = eps^2/2 grad log p(z | x), no longer than 1,   xi ~ N(0, I)

and nothing is rejected (`ula`). Loud frames have posteriors so narrow that eps lies outside of the region in which
Langevin's moves are stable; without the limit on the drift such chains fly apart.

The schedule is short: chains go on from one iteration to the next, so that four steps do for thirty, provided that the
first E-step is long enough for them to arrive. Of a mixture's chains each starts at another encoder's code
(`starting_codes`): of a MIN-VAE's four, two at the lips' and two at the sound's. They seldom meet. So their draws count
by their evidence (`chain_weights`), tempered.

Frames are independent there, though speech is smooth. With `total_variation` lambda > 0 the codes of an utterance are
one event with the log density

    sum_n log p(x_n, z_n) - lambda sum_n |z_n - z_{n-1}|_1

that is, neighbours differ by Laplace variables: each number of z costs lambda for its way through time. The sums leave
padding out. The penalty's normaliser depends on pi alone among the parameters; (44) ignores it.

When to use it: it is the default of `enhance`, faster than `mcem` and better (docs/RESULTS.md, "Time to quality"). Its
draws are NO sample of the posterior: ULA is biased, the chains are a few dozen steps old, and r(alpha_n) hardly leaves
where they began (`Separation.chains_disagree`). `kernel=MALA()` is exact, but stays where the gradient is steep.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pyro_avse.inference.em import Observation
from pyro_avse.inference.mcem import MCEM
from pyro_avse.inference.run import sum_of_frames
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.inference.ula import ULA
from pyro_avse.typing import Codes, FrameMask, InputError, Kernel, Target, switches


@dataclass(frozen=True)
class LDEM(MCEM):
    """Settings of Langevin EM; how the defaults were found: docs/RESULTS.md.

    Attributes:
        kernel: what moves z, by gradients.
        iterations, warmup, draws, first_warmup, final_warmup, final_draws, chains, temperature, noise, adapt,
            mixing_weight, exponent: as in `MCEM`; `ula`, which rejects nothing, has nothing to adapt.
        total_variation: lambda, the weight of the penalty on |z_n - z_{n-1}|_1; 0: none, and frames are independent.
            Under a penalty log densities have no frame axis, and chains count alike.

    Raises:
        InputError: a negative lambda, under which codes would fly apart.
    """

    name: ClassVar[str] = "ldem"
    kernel: Kernel = field(default_factory=lambda: ULA(longest_drift=1.0))
    iterations: int = 6
    warmup: int = 2
    draws: int = 2
    first_warmup: int | None = 10
    final_warmup: int = 8
    final_draws: int = 8
    chains: int = 4
    temperature: float = 20.0
    exponent: float = 1.0
    total_variation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.total_variation >= 0:
            raise InputError(f"total_variation is {self.total_variation}: give 0 or more")

    def sampled(self, observation: Observation, target: CollapsedTarget) -> Target:
        """The posterior of z, smooth if asked."""
        if self.total_variation and switches(target.prior):
            raise InputError(
                f"total_variation is {self.total_variation}, and {type(target.prior).__name__} weighs every frame's "
                "own evidence: give 0"
            )
        if self.total_variation:
            return SmoothTarget(target, self.total_variation, observation.mask)
        return super().sampled(observation, target)


@dataclass(frozen=True)
class SmoothTarget:
    """An utterance's log density under the penalty: sum_n log p(x_n, z_n) - lambda sum_n |z_n - z_{n-1}|_1.

    Its event is all of an utterance, so a kernel that rejects rejects all frames at once. `mask` leaves out padding:
    its frames, and the steps to it.
    """

    collapsed: CollapsedTarget
    weight: float
    mask: FrameMask | None = None
    event_dim: int = 2

    def log_density(self, z: Codes) -> Float[Tensor, "*batch"]:
        """For codes (chain, ..., frame, latent): (chain, ...)."""
        mask = self.mask
        both = None if mask is None else mask[..., 1:] & mask[..., :-1]
        variation = z.diff(dim=-2).abs().sum(-1)
        density = sum_of_frames(self.collapsed.frames_log_density(z), mask)
        return density - self.weight * sum_of_frames(variation, both)
