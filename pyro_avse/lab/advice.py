"""What is wrong with draws, and what to do, in a sentence. docs/diagnostics.md explains the words."""

import numpy as np
from jaxtyping import Float

from pyro_avse.lab.diagnostics import ACCEPTANCE_MIN, DIVERGENCES_MAX, ESS_MIN, Diagnosis
from pyro_avse.lab.short_chains import K_MAX


def advice(found: Diagnosis, draws: int) -> str:
    """Of chains: their worst trouble, in how many frames, and the cure. `draws` are those of each chain."""
    n, worst = (
        found.rhat.size,
        float(np.nanmin([found.ess_bulk.min(), found.ess_tail.min(), np.inf])),
    )
    stuck = np.isinf(found.rhat) | ((found.ess_bulk == 0) & np.isnan(found.rhat))
    short = (found.ess_bulk < ESS_MIN) | (found.ess_tail < ESS_MIN)
    more = int(np.ceil(draws * ESS_MIN / max(worst, 1) / 100)) * 100
    for frames, trouble in (
        (stuck, "no chain ever moved: take a much smaller step size, or one that is adapted"),
        (
            found.divergences > DIVERGENCES_MAX,
            "a trajectory flew off where the posterior is steep, so part of it is never visited: take a smaller step "
            "size, or more leapfrog steps",
        ),
        (
            found.acceptance < ACCEPTANCE_MIN,
            "nearly every step was rejected: take a smaller step size",
        ),
        (
            found.rhat > found.rhat_max,
            "chains that began apart still are, so that an average says where they began: run longer, and if that does "
            "not help the posterior has several modes, whose weights no chain tells: ask `evidence`",
        ),
        (
            short,
            f"chains agree, but their draws are worth fewer than {ESS_MIN} independent ones, so that averages are "
            f"rough: take about {more} draws a chain",
        ),
        (np.isnan(found.rhat), "one chain has no other to agree with: take four or more"),
    ):
        if frames.any():
            return f"In {int(frames.sum())} of {n} frames {trouble}."
    return f"In all {n} frames chains agree and draws suffice: averages over them can be trusted."


def advice_on_weights(k: Float[np.ndarray, "*frame"], worth: Float[np.ndarray, "*frame"]) -> str:
    """The same of importance sampling: k-hat and effective draws of every frame."""
    bad = ~(k <= K_MAX)
    if bad.any():
        return (
            f"In {int(bad.sum())} of {k.size} frames a few draws have nearly all the weight, and more draws would not "
            "change that: start from a guide, or run chains (mcem)."
        )
    if worth.min() < ESS_MIN:
        return (
            f"The proposal suits all {k.size} frames, but its draws are worth only {worth.min():.0f} in the worst one: "
            "raise final_draws for finer averages."
        )
    return f"The proposal suits all {k.size} frames and draws suffice: averages over them can be trusted."
