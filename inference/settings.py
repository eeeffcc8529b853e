"""What the settings of kernels and schemes have in common may be: looked at once, when they are made."""

from typing import Any

from pyro_avse.errors import InputError

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
