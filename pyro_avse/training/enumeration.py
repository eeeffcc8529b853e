"""Whether a prior's `model` and `guide` fit together, and alpha_n is enumerated: looked at once for a run."""

from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.infer.enum import get_importance_trace

from pyro_avse.training.frames import Frames
from pyro_avse.typing import InputError


def check_elbo(prior: Any, elbo: ELBO | None, frames: Frames) -> bool:
    """Whether the guide has an alpha_n to enumerate; refuses a pair that Pyro would train wrongly with only a warning.

    Raises:
        InputError: alpha_n would be sampled instead of enumerated.
    """
    lips = None if frames.lips is None else frames.lips[:2].to(prior.mixing_weight.device)
    power = frames.power[:2].to(prior.mixing_weight.device)
    with torch.random.fork_rng():
        trace = poutine.trace(prior.guide).get_trace(power, lips)
    discrete = {
        name: site["infer"].get("enumerate") == "parallel"
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and getattr(site["fn"], "has_enumerate_support", False)
    }
    if discrete and elbo is not None and not isinstance(elbo, TraceEnum_ELBO):
        raise InputError(
            f"{type(elbo).__name__} does not enumerate alpha: take TraceEnum_ELBO(max_plate_nesting=1)"
        )
    for name, enumerated in discrete.items():
        if not enumerated:
            raise InputError(
                f'the guide\'s site {name!r} is not enumerated: add infer={{"enumerate": "parallel"}}'
            )
    if discrete:  # Pyro's own checks that the pair fits, once for the run
        with torch.random.fork_rng(), poutine.enum(first_available_dim=-2):
            get_importance_trace("flat", 1, prior.model, prior.guide, (power, lips), {})
    return bool(discrete)
