"""The score d/dz log p(z) that MALA, ULA and HMC follow: the target's own where it has one, else autograd's.

Frames, utterances and chains are independent, so the gradient of the sum of all log densities holds every one's own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_avse.typing import Codes, State, Target


@dataclass(frozen=True)
class GradientState(State):
    """A state that remembers its score, so that a step costs one gradient for each place it visits."""

    gradient: Tensor
    """d log_density / d z at z, (chain, ..., frame, latent)."""


def gradient_state(target: Target, z: Codes) -> GradientState:
    """The chain at z, with its log density and score."""
    return GradientState(z, *value_and_grad(target, z))


def value_and_grad(target: Target, z: Codes) -> tuple[Float[Tensor, "*batch frame"], Codes]:
    """`target.log_density(z)` and its gradient in z; a target may bring its own `value_and_grad`.

    Works under `torch.no_grad`, and adds nothing to the `.grad` of any parameter.
    """
    own = getattr(target, "value_and_grad", None)
    if own is not None:
        value, gradient = own(z)
        return value, gradient
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = target.log_density(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def squared_norm(x: Codes, target: Target) -> Float[Tensor, "*batch frame"]:
    """|x|^2 of every event of the target: a frame's code, or an utterance's."""
    return x.square().sum(tuple(range(-target.event_dim, 0)))
