"""The inference duel: one noisy frame, every scheme and kernel of pyro_avse, against the truth by quadrature.

The last lesson, and the one about the library itself; the equation numbers are ours. One frame of speech, s in C^F, is
heard in noise of known variance v, as x. The speech prior's code z has only two numbers. What the library does with 32
of them, where nobody knows the truth, can here be drawn, and checked on a grid:

    alpha ~ Cat(pi)   z | alpha = k ~ N(mu_k, Sigma_k)   s_f | z ~ N_c(0, sigma_f(z))   x_f | s ~ N_c(s_f, v_f)   (1)

Given z, x_f is the sum of two Gaussians. So s can be integrated out, and given z it has a Wiener filter's posterior:

    p(x | z) = prod_f N_c(x_f; 0, sigma_f(z) + v_f)                                                               (2)
    s_f | x, z ~ N_c(G_f x_f, G_f v_f)         G_f(z) = sigma_f(z) / (sigma_f(z) + v_f)                           (3)

alpha can be summed out, too. What is left is a density in the plane,

    p(z | x) = p(z) p(x | z) / p(x)            p(z) = sum_k pi_k N(z; mu_k, Sigma_k)                              (4)

**The truth** is three averages over (4), each a sum over a fine grid (`quadrature`):

    E[z | x]     E[s_f | x] = x_f E[G_f]     E[|s_f|^2 | x] = |x_f|^2 E[G_f^2] + v_f E[G_f]                       (5)

**The kernels** (`KERNELS`) move z and leave (4) as it is. With enough draws each of them has (5) right; they differ in
how many are enough, and in whether they get from one mode to another. `ula` rejects nothing and keeps a bias. pcn and
elliptical_slice need a Gaussian prior; on a mixture they run inside `gibbs`, which draws alpha, too.

**The schemes** (`SCHEMES`) estimate the noise besides. Here it is known: W H = v is put back after each of their steps
(`known_noise`). What remains of a scheme is what it makes of z:

    mcem, ldem, nuts, importance    draws of (4): exact, or few and unadjusted, or by NUTS, or weighted
    peem                            argmax p(x, z), and (5) at this one point
    gpeem                           the same, but the level of speech is not taken for known
    vem, collapsed_vem              r(s) r(z) in place of p(s, z | x), as below
    amortised_vem, auto_normal      a Gaussian q(z) that raises E[log p(x, z) - log q(z)] = log p(x) - KL(q, p)   (6)

(6) has one mode where (4) may have two. VEM's factors are each the best for the other (shown for one component):

    log r(z) = log p(z) - sum_f log sigma_f(z) + E|s_f|^2 / sigma_f(z) + constant                                 (7)
    r(s_f) is (3) with gamma_f in place of sigma_f(z)       1 / gamma_f = E[1 / sigma_f(z)]                       (8)

But given x, z and s are not independent. If s were known, z would be much surer than it is: so r(z) is too narrow, and
keeps to one mode. And (8) filters more than the mean filter of the same codes does: 1 / (1 + v u) is convex in u.

**The priors** are the library's A-VAE and MIN-VAE, tiny, and trained here by SVI on made-up sound and lips (`draw`):

    opening, tongue ~ U(0, 1)    hiss ~ Bernoulli(0.3)    s_f ~ N_c(0, sigma_f(opening, tongue, hiss))            (9)
"""

import math
import time
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Complex, Float
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_avse import inference
from pyro_avse.inference import DualAveraging, Gibbs, run_chains
from pyro_avse.inference.adaptation import can_adapt
from pyro_avse.inference.em import observe
from pyro_avse.inference.independence import guide_proposal
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models import AVAE, MINVAEv2
from pyro_avse.models.nmf_noise import NoiseModel

FREQS = 24
KERNELS = {
    k: v for k, v in inference.KERNELS.items() if k != "blocks"
}  # that moves whole utterances
SCHEMES = {k: v for k, v in inference.SCHEMES.items() if k not in ("guided", "bnmf")}
# The one has no guide here, and the other draws its noise.
NO_MODEL = NoiseModel(rank=1, smoothness=0.0, gain="none", response=0, start="mixture")


@dataclass(frozen=True)
class Sounds:
    """Frames, as the library takes them."""

    power: Float[Tensor, "frame freq"]
    variance: Float[Tensor, "frame freq"]
    lips: Float[Tensor, "frame 67 67"]


def draw(count: int, rng: torch.Generator) -> Sounds:
    """(9): two resonances that opening and tongue move, or a hiss; an open mouth is a dark band."""
    opening, tongue, kind = torch.rand(3, count, 1, generator=rng)
    freq = torch.linspace(0, 1, FREQS)

    def peak(centre: Tensor, width: float) -> Tensor:
        return torch.exp(-0.5 * ((freq - centre) / width) ** 2)

    vowel = 4 * peak(0.1 + 0.15 * opening, 0.08)
    vowel = vowel + (2 + 2 * opening) * peak(0.35 + 0.3 * tongue, 0.08)
    hiss = 4 * peak(0.75 + 0.15 * tongue, 0.15)
    variance = torch.exp(torch.where(kind < 0.3, hiss, vowel) - 2)
    power = variance * -torch.rand(count, FREQS, generator=rng).log()
    rows, gap = (torch.arange(67) - 33).abs()[:, None], torch.where(kind < 0.3, 0.1, 1.0) * opening
    lips = torch.where(rows < 4 + 20 * gap[..., None], 0.1, 0.8)
    lips = lips + 0.05 * torch.rand(count, 67, 67, generator=rng)
    return Sounds(power, variance, lips)


def small_prior(name: str, seed: int) -> nn.Module:
    """A-VAE or MIN-VAE with two latent dimensions, not yet trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "a_vae":
            return AVAE(num_freqs=FREQS, latent_dim=2, hidden=32)
        return MINVAEv2(num_freqs=FREQS, latent_dim=2, hidden=32, features=16)


def train(prior: Any, sounds: Sounds, steps: int, seed: int, batch: int = 64) -> list[float]:
    """SVI on the prior's own `model` and `guide`, alpha enumerated; the ELBO a frame at every step."""
    elbo, rises = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False), []
    adam = torch.optim.Adam(prior.parameters(), lr=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(steps):
            some = torch.randint(len(sounds.power), (batch,))
            adam.zero_grad()
            data = sounds.power[some], sounds.lips[some]
            loss = elbo.differentiable_loss(prior.model, prior.guide, *data)
            (loss / batch).backward()
            adam.step()
            rises.append(-float(loss.detach()) / batch)
    return rises


@dataclass(frozen=True)
class Frame:
    """One noisy frame, and what is asked of it."""

    prior: Any
    x: Complex[Tensor, "1 freq"]
    lips: Tensor | None
    noise: Float[Tensor, "1 freq"]

    @property
    def target(self) -> CollapsedTarget:
        """(4)."""
        seen, pi = self.prior.visual_features(self.lips), self.prior.mixing_weight
        return CollapsedTarget(self.prior, seen, self.x.abs().square(), self.noise, pi)


def hear(prior: Any, sounds: Sounds, index: int, rng: torch.Generator) -> Frame:
    """One of the sounds in noise that is loud where the resonances are; MIN-VAE sees its lips."""
    sigma = sounds.variance[index : index + 1]
    v = torch.exp(3.5 * torch.exp(-8 * (torch.linspace(0, 1, FREQS) - 0.3) ** 2) - 2)[None]
    noise = torch.randn(2, 1, FREQS, generator=rng)
    x = (0.5 * (sigma + v)).sqrt() * torch.complex(noise[0], noise[1])
    return Frame(prior, x, sounds.lips[index : index + 1] if prior.uses_lips else None, v)


@dataclass(frozen=True)
class Answer:
    """(5), and the spread of z where it is known."""

    z: Float[Tensor, "2"]
    speech: Complex[Tensor, "freq"]
    power: Float[Tensor, "freq"] | None = None
    spread: Float[Tensor, "2"] | None = None


def average(frame: Frame, z: Float[Tensor, "code 2"], weight: Float[Tensor, "code"]) -> Answer:
    """(5) of weighted codes."""
    x, v = frame.x[0], frame.noise[0]
    with torch.no_grad():
        sigma = frame.prior.log_variance(z[:, None], frame.target.lips)[0, :, 0].exp()
    G = sigma / (sigma + v)
    power = x.abs().square() * (weight @ G.square()) + v * (weight @ G)
    mean = weight @ z
    return Answer(mean, x * (weight @ G), power, (weight @ (z - mean).square()).sqrt())


def quadrature(frame: Frame, side: int = 220, reach: float = 6.0) -> tuple[Answer, Tensor, Tensor]:
    """The truth, the grid's codes (code, 2) and the density's share in each."""
    line = torch.linspace(-reach, reach, side)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        weight = frame.target.log_density(z[:, None])[:, 0].softmax(0)
    return average(frame, z, weight), z, weight


def known_noise(scheme: Any, noise: Float[Tensor, "1 freq"]) -> Any:
    """The same scheme, with W H = v put back after its start and after every step."""
    if hasattr(scheme, "mcem"):
        return replace(scheme, mcem=known_noise(scheme.mcem, noise))

    def back(state: Any) -> Any:
        return replace(state, dictionary=noise, activations=torch.ones(1, 1))

    class Known(type(scheme)):  # type: ignore[misc]
        def init(self, observation: Any, *, rng: torch.Generator) -> Any:
            return back(super().init(observation, rng=rng))

        def step(self, observation: Any, state: Any, *, rng: torch.Generator) -> Any:
            return back(super().step(observation, state, rng=rng))

    return Known(**{field.name: getattr(scheme, field.name) for field in fields(scheme)})


def run_scheme(name: str, frame: Frame, seed: int = 0, **settings: Any) -> tuple[Answer, float]:
    """What a scheme of `SCHEMES` says of a frame, and its seconds of CPU."""
    held: dict[str, Any] = {
        "noise": NO_MODEL,
        "mixing_weight": tuple(frame.prior.mixing_weight.tolist()),
    }
    own = {"mcem": SCHEMES["mcem"](**held)} if name in ("nuts", "auto_normal") else held
    scheme = known_noise(SCHEMES[name](**own | settings), frame.noise)
    began = time.process_time()
    found = scheme(frame.prior, frame.x, frame.lips, seed=seed)
    seconds = time.process_time() - began
    codes = found.z if found.chains is None else found.chains.draws.flatten(0, 1)
    return Answer(codes[:, 0].mean(0), found.speech[0]), seconds


def kernel_for(name: str, frame: Frame, **settings: Any) -> Any:
    """A kernel of `KERNELS`, inside `gibbs` where it needs a Gaussian and the prior is a mixture."""
    kernel = KERNELS[name](**settings)
    needs_one = name in ("pcn", "elliptical_slice")
    return Gibbs(kernel) if needs_one and frame.prior.num_components > 1 else kernel


def run_kernel(
    name: str, frame: Frame, chains: int, warmup: int, draws: int, **settings: Any
) -> tuple[Answer, float, Float[Tensor, "draw 2"]]:
    """What the draws of a kernel say, its seconds of CPU, and the draws. Chains start at the encoder's code."""
    kernel, target = kernel_for(name, frame, **settings), frame.target
    observation = observe(frame.prior, frame.x, frame.lips)
    with torch.no_grad():
        q = frame.prior.encode(observation.power, frame.lips)
        start = frame.prior.initial_codes(observation.power, frame.lips).expand(chains, 1, 2)
    if name == "independence":
        wide = guide_proposal(kernel, lambda: q, frame.prior.mixing_weight[:, None])
        target = replace(target, proposal=wide)
    adapt = DualAveraging() if can_adapt(kernel) else None
    began = time.process_time()
    ran = run_chains(kernel, target, start, draws=draws, warmup=warmup, adapt=adapt, seed=0)
    seconds = time.process_time() - began
    z = ran.draws[:, :, 0].flatten(0, 1)
    return average(frame, z, z.new_full((len(z),), 1 / len(z))), seconds, z


def errors(found: Answer, truth: Answer) -> dict[str, float]:
    """Of E z in standard deviations, of E s and E|s|^2 as a share of theirs; NaN where there is no answer."""
    assert truth.spread is not None
    rows = {"z": float((found.z - truth.z).norm() / truth.spread.norm())}
    for name in ("speech", "power"):
        mine, true = getattr(found, name), getattr(truth, name)
        rows[name] = math.nan if mine is None else float((mine - true).norm() / true.norm())
    return rows
