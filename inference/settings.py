"""What the settings of kernels and schemes have in common may be, and which priors a scheme takes: looked at once."""

from typing import Any

from pyro_avse.errors import InputError
from pyro_avse.typing import SpeechPrior, couples_frames, switches

LEAST = {
    "iterations": 1,
    "draws": 1,
    "final_draws": 1,
    "chains": 1,
    "rank": 1,
    "thin": 1,
    "warmup": 0,
    "first_warmup": 0,
    "final_warmup": 0,
    "steps": 0,
}
"""The least that a setting of that name may be."""


def check_settings(settings: Any, **least: int) -> None:
    """Refuse counts below `LEAST`, or below `least`; exponents outside of (0, 1]; step sizes of 0 and below.

    Of step sizes only numbers are looked at: adapted ones are tensors, positive anyway, and to look costs a sync.

    Raises:
        InputError: naming the setting, what it is, and what to give.
    """
    name = type(settings).__name__
    for field, at_least in (LEAST | least).items():
        value = getattr(settings, field, at_least)
        if value is not None and not value >= at_least:
            raise InputError(f"{name}: {field} is {value}: give {at_least} or more")
    exponent = getattr(settings, "exponent", 1.0)
    if not 0 < exponent <= 1:
        raise InputError(f"{name}: exponent is {exponent}: give a number above 0 and up to 1")
    step_size = getattr(settings, "step_size", 1.0)
    if isinstance(step_size, int | float) and not step_size > 0:
        raise InputError(f"{name}: step_size is {step_size}: give a number above 0")


def check_prior(scheme: Any, prior: SpeechPrior) -> None:
    """Raise InputError for a prior whose frames are coupled, by codes or by alpha_n, where each is taken alone."""
    kind = type(prior).__name__
    if switches(prior) and not getattr(scheme, "of_switching", False):
        raise InputError(
            f"{scheme.name} takes each alpha_n on its own, and under {kind} they are a chain: take guided, ldem, mcem, "
            "vem, collapsed_vem, peem or gpeem"
        )
    if couples_frames(prior) and not switches(prior) and not getattr(scheme, "of_paths", False):
        raise InputError(
            f"{scheme.name} takes each frame on its own, and under {kind} they are coupled: take guided, ldem, mcem, "
            "peem, gpeem or amortised_vem"
        )
