"""Schemes, kernels, adaptations, noise models and devices by their names, with settings as JSON has them."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pyro_avse.errors import closest
from pyro_avse.inference import KERNELS, SCHEMES
from pyro_avse.inference.adaptation import Adaptation, DualAveraging, RobbinsMonro
from pyro_avse.models.nmf_noise import NOISE_MODELS, NoiseModel
from pyro_avse.typing import JSON, InputError, Kernel, Scheme

ADAPTATIONS = {"robbins_monro": RobbinsMonro, "dual_averaging": DualAveraging}


def find_scheme(name: str, **settings: Any) -> Scheme:
    """The scheme of that name, with settings other than its defaults.

    Raises:
        InputError: no scheme of that name, or a setting that it has not.
    """
    return _called("inference scheme", SCHEMES, name, settings)


def find_kernel(name: str, **settings: Any) -> Kernel:
    """The kernel of that name, with tuning constants other than its defaults; "gibbs:pcn" is gibbs with pcn inside.

    Raises:
        InputError: no kernel of that name, or a constant that it has not.
    """
    name, _, inner = name.partition(":")
    if inner:
        settings["inner"] = find_kernel(inner)
    return _called("kernel", KERNELS, name, settings)


def find_adaptation(name: str, **settings: Any) -> Adaptation:
    """How step sizes are adapted, by its name in `ADAPTATIONS`. Raises InputError as `find_kernel`."""
    return _called("adaptation", ADAPTATIONS, name, settings)


def _called(
    kind: str, registry: Mapping[str, Callable[..., Any]], name: str, settings: Mapping[str, Any]
) -> Any:
    if name not in registry:
        raise InputError(f"unknown {kind} {name!r}{closest(name, registry)}")
    known = inspect.signature(registry[name]).parameters
    for setting in settings:
        if setting not in known:
            raise InputError(f"{name} has no setting {setting!r}{closest(setting, known)}")
    return registry[name](**settings)


def find_device(name: str | torch.device) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one."""
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(name)!r} cannot be used ({reason}): take cpu") from None
    return torch.device(name)


def build_scheme(
    name: str, settings: JSON, iterations: int | None = None, noise: str | None = None
) -> Scheme:
    """A scheme from JSON.

    Args:
        settings: `kernel` and `adapt` are names ("gibbs:pcn", "robbins_monro"), or {"name": ..., and constants}; a
            kernel's `inner` is again either; `noise` is a name of `NOISE_MODELS`, or settings of a `NoiseModel`; `mcem`
            holds settings of `mcem`; `otherwise` those of `ldem`, which else are the same as here.
        iterations: of EM, where the settings do not say: the scheme's own, or those of the `mcem` inside it.
        noise: the same of the noise model, by name.

    Raises InputError for unknown names and settings, and for values they cannot have.
    """
    try:
        built = dict(settings)
        given = {"iterations": iterations, "noise": noise}
        given = {key: value for key, value in given.items() if value is not None}
        has = inspect.signature(SCHEMES[name]).parameters if name in SCHEMES else {}
        if "otherwise" in has:  # what it leaves to another scheme has the same settings
            known = inspect.signature(SCHEMES["ldem"]).parameters
            same = {key: value for key, value in (given | built).items() if key in known}
            built["otherwise"] = build_scheme("ldem", same | built.get("otherwise", {}))
        if "mcem" in has:
            if given or "mcem" in built:
                built["mcem"] = build_scheme("mcem", given | built.get("mcem", {}))
        else:
            built = given | built
        if "kernel" in built:
            built["kernel"] = _named(find_kernel, built["kernel"])
        if built.get("adapt") is not None:
            built["adapt"] = _named(find_adaptation, built["adapt"])
        if "noise" in built:
            built["noise"] = find_noise_model(built["noise"])
        if isinstance(built.get("mixing_weight"), list):
            built["mixing_weight"] = tuple(built["mixing_weight"])
        return find_scheme(name, **built)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot have settings {json.dumps(settings)}: {error}") from None


def find_noise_model(entry: str | JSON) -> NoiseModel:
    """A name of `NOISE_MODELS`, or a `NoiseModel` with these settings. Raises InputError for others."""
    if isinstance(entry, str):
        if entry not in NOISE_MODELS:
            raise InputError(f"unknown noise model {entry!r}{closest(entry, NOISE_MODELS)}")
        return NOISE_MODELS[entry]
    known = inspect.signature(NoiseModel).parameters
    for key in entry:
        if key not in known:
            raise InputError(f"a noise model has no setting {key!r}{closest(key, known)}")
    return NoiseModel(**entry)


def _named(find: Callable[..., Any], entry: Any) -> Any:
    """What `find` has under a name, or under {"name": ..., and its settings}."""
    if isinstance(entry, str):
        return find(entry)
    inner = {"inner": _named(find, entry["inner"])} if "inner" in entry else {}
    return find(**(entry | inner))
