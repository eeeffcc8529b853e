"""Diagnostics where chains are short, or are none: nested R-hat, and k-hat of importance weights.

R-hat asks for chains that are long enough to be compared with themselves. Many short chains are compared in groups: a
*superchain* is some chains that begin at one point, and superchains begin apart. [Margossian et al. 2024]

    nested R-hat = sqrt(1 + B / W)      B: variance of the superchains' means
                                        W: mean variance within superchains, between chains and within each

While a superchain remembers where it began, B is large. Once all have forgotten, B / W is about 1/M for superchains of
M chains of one draw, and less for longer ones. M B / W is then F-distributed, and `nested_limit` is what a frame at
rest exceeds once in a thousand. (For Langevin's diffusion on a Gaussian from starts of variance s^2 in units of the
target's, B / W after time t is 1/M + s^2 / (exp(2 t) - 1).)

k-hat is the shape of a Pareto distribution fitted to the largest importance weights: from 0.5 their variance does not
exist, and above 0.7 no usable number of draws helps. [Vehtari et al. 2024]
"""

import numpy as np
from jaxtyping import Float

from pyro_avse.errors import InputError

K_MAX = 0.7
"""[Vehtari et al. 2024]"""
FALSE_ALARMS = 1e-3
"""Of a frame at rest."""
FEWEST_WEIGHTS = 25
"""From fewer no tail can be seen."""


def nested_rhat(
    draws: Float[np.ndarray, "chain draw *utterance frame latent"], superchains: int
) -> Float[np.ndarray, "*utterance frame"]:
    """That of the frame's worst code. Chains stand superchain by superchain; one draw a chain is enough.

    Infinite where no chain ever moved. Raises InputError as `check_superchains`.
    """
    chains, length = draws.shape[:2]
    each = check_superchains(chains, superchains)
    grouped = draws.reshape(superchains, each, *draws.shape[1:])
    means = grouped.mean(2)
    between = means.mean(1).var(0, ddof=1)
    within = means.var(1, ddof=1)
    if length > 1:
        within = within + grouped.var(2, ddof=1).mean(1)
    within = within.mean(0)
    ratio = np.divide(between, within, out=np.full_like(within, np.inf), where=within > 0)
    return np.sqrt(1 + ratio).max(-1)


def nested_limit(chains: int, superchains: int, codes: int) -> float:
    """What the worst of a frame's codes exceeds once in a thousand where all chains have forgotten their starts."""
    from scipy.stats import f

    each = check_superchains(chains, superchains)
    worst = f.ppf(1 - FALSE_ALARMS / codes, superchains - 1, superchains * (each - 1))
    return float(np.sqrt(1 + worst / each))


def check_superchains(chains: int, superchains: int) -> int:
    """Chains in each. Raises InputError for fewer than two superchains, of two chains each, or uneven ones."""
    if superchains < 2 or chains % superchains or chains < 2 * superchains:
        raise InputError(
            f"{chains} chains in {superchains} superchains: give two or more of each, so that it comes out even"
        )
    return chains // superchains


def pareto_k(
    log_weights: Float[np.ndarray, "draw *utterance frame"],
) -> Float[np.ndarray, "*utterance frame"]:
    """k-hat of every frame's weights, by ArviZ. Raises InputError for fewer than `FEWEST_WEIGHTS` draws."""
    import arviz

    if len(log_weights) < FEWEST_WEIGHTS:
        raise InputError(
            f"{len(log_weights)} draws have no k-hat: take {FEWEST_WEIGHTS} or more (final_draws)"
        )
    frames = np.moveaxis(log_weights, 0, -1).astype(np.float64)
    with np.errstate(all="ignore"):
        k = [arviz.psislw(of_frame)[1] for of_frame in frames.reshape(-1, len(log_weights))]
    return np.reshape(np.array(k, float), frames.shape[:-1])
