"""Training priors that couple frames: cuts of clips in place of single frames, and their bound. [Girin2021]

A clip is cut into pieces of one length, from a random place on, anew in every epoch; what is left over at its ends, and
clips shorter than one cut, are not seen. The loss of a cut is minus the bound, by one path z of the guide,

    -log p(s_1:N | z) + sum_n KL(q(z_n | z_<n, s_1:N) || p(z_n | z_<n)),   z ~ q

the divergences in closed form given the path, from Pyro's traces of `model` and `guide`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.models.markov import smooth
from pyro_avse.models.mixture import component_elbo_terms
from pyro_avse.training.frames import Frames
from pyro_avse.training.recipe import Recipe
from pyro_avse.typing import JSON, InputError, switches


def cut_frames(recipe: Recipe) -> int:
    """Frames of a cut."""
    return max(2, round(recipe.data.cut * SAMPLE_RATE / recipe.data.hop))


def draw_cuts(ends: Sequence[int], length: int, *, at_random: bool) -> Tensor:
    """Indices of frames, (cut, length), clip by clip; from the first frame on if not `at_random`.

    `ends` says where each clip ends. Raises InputError where every clip is shorter than a cut.
    """
    starts = []
    first = 0
    for end in ends:
        count, rest = divmod(end - first, length)
        shift = int(torch.randint(rest + 1, ())) if at_random and count else 0
        starts += [first + shift + length * number for number in range(count)]
        first = end
    if not starts:
        raise InputError(
            f"no clip is as long as a cut of {length} frames: lower [data] cut, or give longer clips"
        )
    return torch.tensor(starts)[:, None] + torch.arange(length)


def path_terms(
    prior: Any, power: Float[Tensor, "cut frame freq"], lips: Tensor | None, heard: Tensor
) -> tuple[Tensor, Tensor]:
    """The two terms of the bound D11 of every cut, (cut,): log p(s | z), and the sum of the divergences."""
    given = {"encoder_power": heard}
    guide = poutine.trace(prior.guide).get_trace(power, lips, **given)
    model = poutine.trace(poutine.replay(prior.model, guide)).get_trace(power, lips, **given)
    kl = power.new_zeros(len(power))
    for name in guide.stochastic_nodes:
        if name not in ("w", "z"):  # a plate
            continue
        q, p, value = guide.nodes[name]["fn"], model.nodes[name]["fn"], guide.nodes[name]["value"]
        if name == "z":
            q, p = (Independent(Normal(*path.given(value)), 2) for path in (q, p))
        kl = kl + kl_divergence(q, p)
    site = model.nodes["s"]
    return site["fn"].log_prob(site["value"]), kl


def path_loss(
    prior: Any, power: Tensor, lips: Tensor | None, heard: Tensor, kl_weight: float
) -> tuple[Tensor, Float[Tensor, "component frames"]]:
    """Minus the bound of some cuts, its divergences counted `kl_weight` times, and r(alpha_n) of all their frames."""
    if switches(prior):
        return chain_loss(prior, power, lips, heard)
    lips = prior.visual_features(lips)  # once for model and guide
    log_likelihood, kl = path_terms(prior, power, lips, heard)
    return (kl_weight * kl - log_likelihood).sum(), power.new_ones(1, power.shape[:-1].numel())


def chain_loss(
    prior: Any, power: Float[Tensor, "cut frame freq"], lips: Tensor | None, heard: Tensor
) -> tuple[Tensor, Float[Tensor, "component frames"]]:
    """Minus the log evidence of some cuts where alpha_1:N is a Markov chain, and r(alpha_n) of all their frames.

    By the forward recursion (`models/markov.py`); what frames say is each component's bound at one draw, and fixed.
    """
    with torch.no_grad():
        e = prior.evidence(power, lips, encoder_power=heard)
    frames, r = smooth(e, prior.start(e), prior.transition)
    return -frames.sum(), r.detach().flatten(1)


@torch.no_grad()
def validate_chain(prior: Any, frames: Frames, length: int) -> JSON:
    """The log evidence of held-out cuts and its parts, times the temperature, in nats a frame; r's mean."""
    device, sums, count = prior.mixing_weight.device, torch.zeros(2), 0
    responsibility = torch.zeros(prior.num_components)
    for index in draw_cuts(frames.ends, length, at_random=False).split(32):
        power = frames.power[index].to(device)
        lips = None if frames.lips is None else frames.lips[index].to(device)
        kl, log_likelihood = component_elbo_terms(prior, power, lips)
        e = (log_likelihood - kl) / prior.temperature
        evidence, r = smooth(e, prior.start(e), prior.transition)
        reconstruction = (r * log_likelihood).sum()
        sums += torch.stack([prior.temperature * evidence.sum(), reconstruction]).cpu()
        responsibility += r.flatten(1).sum(1).cpu()
        count += index.numel()
    elbo, reconstruction = (sums / count).tolist()
    return {
        "valid_elbo": elbo,
        "valid_reconstruction": reconstruction,
        "valid_kl": reconstruction - elbo,
        "valid_responsibility": (responsibility / count).tolist(),
    }


@torch.no_grad()
def validate_paths(prior: Any, frames: Frames, length: int) -> JSON:
    """The bound and its parts on held-out cuts, in nats a frame; the caller seeds the draws."""
    if switches(prior):
        return validate_chain(prior, frames, length)
    device, sums, count = prior.mixing_weight.device, torch.zeros(2), 0
    for index in draw_cuts(frames.ends, length, at_random=False).split(32):
        power = frames.power[index].to(device)
        lips = None if frames.lips is None else frames.lips[index].to(device)
        terms = path_terms(prior, power, prior.visual_features(lips), power)
        sums += torch.stack([term.sum() for term in terms]).cpu()
        count += index.numel()
    reconstruction, kl = (sums / count).tolist()
    return {
        "valid_elbo": reconstruction - kl,
        "valid_reconstruction": reconstruction,
        "valid_kl": kl,
        "valid_responsibility": [1.0],
    }
