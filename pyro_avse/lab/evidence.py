"""Models compared by what they say of a recording: log p(x_n | k) of every frame, W H held. `pyro-avse evidence`

Each model enhances the recording first. Its evidence is then found by tempering (`inference/evidence.py`), twice: with
the noise, level and response that it ended with itself, and with those of the first model, which are then common to
all. Both are plug-in likelihoods: the noise was fitted to the recording, and nothing is integrated out but z and alpha.
How far a number can be trusted: the same by annealed importance sampling, along the same path and with other random
numbers, which is below the truth on average.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.distributions import unchecked_normal
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.errors import InputError
from pyro_avse.inference.evidence import component_evidence
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.typing import JSON, Kernel, Responsibilities

WIDENING = 1.5
"""By which a guide's standard deviations exceed what it believes, where tempering starts."""


@dataclass(frozen=True)
class Weighed:
    """One model's evidence of a recording."""

    log_evidence: Float[Tensor, "frame"]
    """log p(x_n) = log sum_k pi_k p(x_n | k), at its own noise."""
    lower: Float[Tensor, "frame"]
    """The same by annealed importance sampling."""
    common: Float[Tensor, "frame"]
    """At the noise, level and response of the first model."""
    responsibilities: Responsibilities
    """r(alpha_n) by evidence, at its own noise."""
    scheme: Responsibilities
    """What the scheme said of alpha."""

    def row(self, model: str, first: "Weighed") -> JSON:
        """A line of the table; nats of all frames, and of the worst frame's doubt."""
        away = (self.responsibilities - self.scheme).abs().sum(0) / 2
        return {
            "model": model,
            "log_evidence": float(self.log_evidence.sum()),
            "a_frame_over_first": float((self.log_evidence - first.log_evidence).mean()),
            "common_noise": float(self.common.sum()),
            "common_a_frame_over_first": float((self.common - first.common).mean()),
            "below_by": float((self.log_evidence - self.lower).sum()),
            "r_audio": float(self.responsibilities[0].mean()),
            "r_audio_of_scheme": float(self.scheme[0].mean()),
            "alpha_away": float(away.mean()),
            "frames": len(self.log_evidence),
        }


def weigh(
    enhancers: Sequence[tuple[str, Enhancer, Recording]],
    *,
    particles: int = 32,
    moves: int = 2,
    kernel: Kernel | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Weighed]:
    """Models by name, each with its enhancer and the recording as it prepared it; the first one's noise is the common.

    `kernel` moves the particles; None: HMC.

    Raises InputError for a kernel that cannot be tempered, a scheme that leaves no posterior with speech integrated
    out, and models whose STFTs differ.
    """
    found: dict[str, Weighed] = {}
    first: CollapsedTarget | None = None
    for name, enhancer, recording in enhancers:
        report(f"{name}: enhances, and is weighed")
        separation = enhancer.separate(recording, seed=seed).separation
        own = separation.target
        if not isinstance(own, CollapsedTarget):
            raise InputError(
                f"{type(enhancer.inference).__name__} ends with no posterior p(z | x) to weigh: take guided, "
                "ldem or mcem"
            )
        first = first or own
        if first.power.shape != own.power.shape:
            raise InputError(
                f"{name} has another STFT than the first model ({tuple(own.power.shape)} against "
                f"{tuple(first.power.shape)} coefficients): compare models of one"
            )
        common = replace(
            own,
            noise_variance=first.noise_variance,
            gain=first.gain,
            log_response=first.log_response,
        )
        start = _guesses(enhancer, recording)
        options: Any = {
            "particles": particles,
            "moves": moves,
            "kernel": kernel,
            "guesses": start,
        }
        weighed = component_evidence(own, annealed=True, seed=seed, **options)
        at_common = weighed
        if first is not own:
            at_common = component_evidence(common, seed=seed, **options)
        assert weighed.lower is not None
        found[name] = Weighed(
            weighed.of_mixture(weighed.evidence),
            weighed.of_mixture(weighed.lower),
            at_common.of_mixture(at_common.evidence),
            weighed.responsibilities,
            separation.responsibilities,
        )
    return found


def _guesses(enhancer: Enhancer, recording: Recording) -> Any:
    """Where tempering starts: what the guide believes, wider; None without one."""
    if enhancer.guide is None:
        return None
    guide: Any = enhancer.guide
    with torch.no_grad():
        power = recording.spectrum.abs().square()
        q = guide.guess(power, recording.lips, lips_mask=recording.lips_mask).codes
    return unchecked_normal(q.mean, WIDENING * q.stddev)
