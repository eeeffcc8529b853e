"""Effective draws per second of every kernel, beside Pyro's and BlackJAX's, on one noisy clip's posterior p(z | x).

The bundled A-VAE (L = 32, hidden 128, F = 513) and the bundled talker in the workshop's noise at 0 dB; W H is held
where 30 iterations of `mcem` (g = 1) leave it. The clip's frames are repeated up to --frames. One chain a frame,
float32, and every sampler starts at the same codes, where 200 adapted HMC steps have led.

Ours: step sizes are adapted in 200 steps (dual averaging to each kernel's own acceptance), then frozen. Kernels are at
    their defaults otherwise; `ula` is biased, and listed all the same.
BlackJAX: random walk, MALA, HMC (as many leapfrog steps as ours) and NUTS, a chain a frame under vmap, the whole run
    one jit on JAX's CPU device; the decoder rewritten in jax.numpy and checked against ours; each frame with the step
    size that ours found (NUTS with HMC's, and half the draws).
Pyro: RandomWalkKernel and NUTS, one joint chain of all frames as Pyro has it, on our log density, which is faster than
    tracing a program; 200 steps of its own adaptation, the random walk from the best scale in theory. NUTS from a step
    of 0.03; above 100 frames, where a draw takes a second, 40 steps that leave the mass matrix alone and 40 draws.

Only sampling is timed: warm-up, adaptation and compilation are not. ESS is of every
latent dimension of up to 30 frames, spread evenly; the table has their minimum and median, divided by seconds. It is
ArviZ's bulk ESS, or N (1 - rho) / (1 + rho) where that is less and rho > 1/2: no reversible chain exceeds it. 1 - rho
is the mean squared jump from draw to draw over twice the posterior variance, known from the run before. (A chain that
hardly moves seems stationary to itself: of one such, ArviZ makes an ESS of 2 or 3 however short it was.) Every kept
draw costs about the same: cheap kernels are thinned.

    python benchmarks/kernels.py [--frames 300 10] [--draws 100] [--device cpu] [--json]
    taskset -c 0 python benchmarks/kernels.py       # one thread for torch and JAX alike

On another device than the CPU only our kernels run.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.rwkernel import RandomWalkKernel
from torch import Tensor

from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import mix_at_snr
from pyro_avse.enhancement.demo import CLIPS
from pyro_avse.errors import InputError
from pyro_avse.inference import KERNELS, MCEM, run_chains
from pyro_avse.inference.adaptation import DualAveraging, can_adapt
from pyro_avse.inference.hmc import HMC
from pyro_avse.inference.independence import Independence, guide_proposal
from pyro_avse.inference.target import CollapsedTarget
from pyro_avse.models.nmf_noise import NoiseModel, nmf_noise_variance
from pyro_avse.weights.checkpoint import load_prior

THIN = {"random_walk": 20, "pcn": 20, "independence": 20, "gibbs": 5, "mala": 8, "ula": 8, "hmc": 2}
SAME_ALGORITHM = {  # ours that stands over the other in the ratios: HMC where we have no NUTS
    "pyro random_walk": "random_walk",
    "pyro nuts": "hmc",
    **{f"blackjax {name}": name for name in ("random_walk", "mala", "hmc")},
    "blackjax nuts": "hmc",
}
RATES = ("ess_per_second_min", "ess_per_second_median", "frame_steps_per_second")
WARMUP = 200


@dataclass(frozen=True)
class Row:
    """One sampler on one posterior; steps are of all frames, times in seconds."""

    sampler: str
    frames: int
    steps: int
    seconds: float
    ess_per_second_min: float
    ess_per_second_median: float
    frame_steps_per_second: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[300, 10])
    parser.add_argument("--draws", type=int, default=100, help="kept of each sampler")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="all rows, as the last line")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"torch: {torch.get_num_threads()} threads on {args.device}; JAX: {cores} cores' threads")
    rows, ratios = [], []
    for frames in args.frames:
        target, z0, spread = posterior(frames, torch.device(args.device))
        found = compare(target, z0, spread, args.draws)
        rows += [asdict(row) for row in found.values()]
        ratios += compared(found)
    if args.json:
        print(json.dumps({"device": args.device, "rows": rows, "ratios": ratios}))


@torch.no_grad()
def posterior(frames: int, device: torch.device) -> tuple[CollapsedTarget, Tensor, np.ndarray]:
    """p(z | x) of so many frames, codes (1, frame, latent) in it and its standard deviations (frame, latent)."""
    clean, noise = (load_audio(CLIPS / f"{name}.flac").waveform for name in ("talker", "workshop"))
    mixed, _ = mix_at_snr(clean, noise[: len(clean)], 0)
    prior, stft = load_prior("a_vae")
    prior = prior.to(device)
    waveform = torch.from_numpy((mixed / np.abs(mixed).max()).astype(np.float32))
    x = stft.analyse(waveform.to(device))
    separation = MCEM(iterations=30, noise=replace(NoiseModel.paper(), gain="none"))(
        prior, x, seed=0
    )
    noise_variance = nmf_noise_variance(separation.dictionary, separation.activations)
    n = (len(x) // 3 + torch.arange(frames, device=device)) % len(x)  # begins amid speech
    r = torch.ones(1, frames, device=device)
    speech_power = separation.speech[n].abs().square()
    guide = guide_proposal(Independence(), lambda: prior.encode(speech_power, None), r)
    target = CollapsedTarget(
        prior, None, x[n].abs().square(), noise_variance[n], r[:, 0], proposal=guide
    )
    start = HMC(0.05, steps=20)
    chains = run_chains(
        start, target, separation.z[:, n], draws=WARMUP, warmup=WARMUP, adapt=DualAveraging()
    )
    return target, chains.state.z, chains.draws[0].std(0).cpu().numpy()


def compare(target: CollapsedTarget, z0: Tensor, spread: np.ndarray, draws: int) -> dict[str, Row]:
    """Run every sampler and print a line for each as it ends."""
    frames, rows, step_sizes = z0.shape[1], {}, {}
    print(f"\n{frames} frames              ESS/s min   median   frame-steps/s   seconds")

    def record(sampler: str, z: np.ndarray, thin: int, seconds: float) -> None:
        ess, steps = effective_sizes(z, spread), thin * len(z)
        rate = frames * steps / seconds
        row = Row(
            sampler,
            frames,
            steps,
            seconds,
            ess.min() / seconds,
            float(np.median(ess)) / seconds,
            rate,
        )
        rows[sampler] = row
        print(
            f"{sampler:22s} {row.ess_per_second_min:12.3f} {row.ess_per_second_median:8.3f} "
            f"{rate:15.0f} {seconds:9.1f}",
            flush=True,
        )

    for name in sorted(KERNELS.keys() - {"blocks"}):  # which moves whole utterances
        thin = THIN.get(name, 1)
        try:
            z, seconds, step_sizes[name] = our_draws(name, target, z0, draws, thin)
        except InputError as refusal:  # gibbs, where there is one component
            print(f"{name:22s} {refusal}")
            continue
        record(name, z, thin, seconds)
    if z0.device.type == "cpu":
        z, seconds = pyro_draws(
            pyro_random_walk(target, z0), z0, draws, THIN["random_walk"], WARMUP
        )
        record("pyro random_walk", z, THIN["random_walk"], seconds)
        many = frames > 100
        nuts = NUTS(
            potential_fn=partial(potential, target), step_size=0.03, adapt_mass_matrix=not many
        )
        z, seconds = pyro_draws(nuts, z0, 40 if many else draws, 1, 40 if many else WARMUP)
        record("pyro nuts", z, 1, seconds)
        for name in ("random_walk", "mala", "hmc", "nuts"):
            thin, step_size = THIN.get(name, 1), step_sizes["hmc" if name == "nuts" else name]
            count = draws // 2 if name == "nuts" else draws
            z, seconds = blackjax_draws(name, target, z0, count, thin, step_size)
            record(f"blackjax {name}", z, thin, seconds)
    return rows


def compared(rows: dict[str, Row]) -> list[dict[str, Any]]:
    """Ours over the others', printed and returned; None where the other's is zero."""
    ratios: list[dict[str, Any]] = []
    for other, ours in SAME_ALGORITHM.items():
        if other not in rows or ours not in rows:
            continue
        ratio: dict[str, Any] = {"frames": rows[ours].frames, "ours": ours, "other": other}
        for of in RATES:
            theirs = getattr(rows[other], of)
            ratio[of] = getattr(rows[ours], of) / theirs if theirs else None
        ratios.append(ratio)
        least, median, steps = (ratio[of] or np.inf for of in RATES)
        print(
            f"{ours} / {other}: ESS/s {least:.3g} (minimum), {median:.3g} (median); "
            f"frame-steps/s {steps:.3g}"
        )
    return ratios


def effective_sizes(z: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """ESS of z (draw, frame, latent) for every latent of up to 30 frames; `spread` is the posterior's."""
    import arviz

    shown = np.unique(np.linspace(0, z.shape[1] - 1, 30).astype(int))
    z, spread = z[:, shown], spread[shown]
    ess = arviz.ess(arviz.convert_to_dataset({"z": z[None]}), method="bulk")["z"].values
    off = np.square(np.diff(z, axis=0)).mean(0) / (2 * spread**2)  # 1 - rho
    most = np.where(off < 0.5, len(z) * off / (2 - off), np.inf)  # above, ArviZ's is reliable
    return np.minimum(ess, most)


def our_draws(
    name: str,
    target: CollapsedTarget,
    z0: Tensor,
    draws: int,
    thin: int,
) -> tuple[np.ndarray, float, Tensor | None]:
    """Draws (draw, frame, latent), their seconds and each frame's step size."""
    kernel = KERNELS[name]()
    adapt = DualAveraging() if can_adapt(kernel) else None
    warm = run_chains(kernel, target, z0, draws=1, warmup=WARMUP, adapt=adapt, seed=1)
    kernel = warm.kernel
    wait(z0)
    start = time.perf_counter()
    chains = run_chains(kernel, target, warm.state.z, draws=draws, thin=thin, seed=2)
    wait(z0)
    seconds = time.perf_counter() - start
    return chains.draws[0].cpu().numpy(), seconds, getattr(warm.kernel, "step_size", None)


def wait(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize(z.device)


def potential(target: CollapsedTarget, codes: dict[str, Tensor]) -> Tensor:
    """Minus the log density of all frames together, as Pyro's kernels take it."""
    return -target.log_density(codes["z"]).sum()


def pyro_random_walk(target: CollapsedTarget, z0: Tensor) -> RandomWalkKernel:
    """Pyro's kernel told where to start, which it otherwise does not listen to, and with our density."""

    class FromHere(RandomWalkKernel):
        def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
            self._warmup_steps, self.transforms, self._prototype_trace = warmup_steps, {}, None
            self.potential_fn, self._initial_params = partial(potential, target), {"z": z0}
            self._energy_last = self.potential_fn(self._initial_params)

    # 2.4 posterior standard deviations of about 0.3, over the root of the dimension [Roberts et al. 1997].
    return FromHere(None, init_step_size=2.4 * 0.3 / z0.numel() ** 0.5)


def pyro_draws(
    kernel: Any, z0: Tensor, draws: int, thin: int, warmup: int
) -> tuple[np.ndarray, float]:
    """Draws of all frames' joint chain and their seconds, warm-up apart."""
    started: list[float] = []

    def hook(kernel: Any, samples: Any, stage: str, i: int) -> None:
        if stage == "Sample" and not started:
            started.append(time.perf_counter())

    pyro.set_rng_seed(0)
    mcmc = MCMC(
        kernel,
        num_samples=draws * thin,
        warmup_steps=warmup,
        initial_params={"z": z0},
        disable_progbar=True,
        hook_fn=hook,
    )
    mcmc.run()
    steps = draws * thin
    seconds = (
        (time.perf_counter() - started[0]) * steps / (steps - 1)
    )  # the hook is told after the first
    return mcmc.get_samples()["z"][thin - 1 :: thin, 0].numpy(), seconds


def blackjax_draws(
    name: str, target: CollapsedTarget, z0: Tensor, draws: int, thin: int, step_size: Tensor
) -> tuple[np.ndarray, float]:
    """Draws of a chain for every frame, vmapped and jitted, and their seconds without compilation."""
    import blackjax
    import jax
    import jax.numpy as jnp

    decoder: Any = target.prior.decoder
    layers = (decoder.hidden, decoder.log_variance)
    (A, a), (B, b) = ((jnp.array(m.weight.T.numpy()), jnp.array(m.bias.numpy())) for m in layers)
    data = [jnp.array(t.numpy()) for t in (target.power, target.noise_variance, step_size[0])]
    L, F = z0.shape[-1], len(b)
    constant = F * np.log(np.pi) + 0.5 * L * np.log(2 * np.pi)

    def log_density(z: Any, power: Any, noise: Any) -> Any:
        V = jnp.exp(jnp.tanh(z @ A + a) @ B + b) + noise
        return -(jnp.log(V) + power / V).sum() - 0.5 * (z**2).sum() - constant

    build: dict[str, Callable[[Any, Any], Any]] = {
        "random_walk": lambda log_p, eps: blackjax.additive_step_random_walk(
            log_p, blackjax.mcmc.random_walk.normal(jnp.full(L, eps))
        ),
        "mala": lambda log_p, eps: blackjax.mala(log_p, 0.5 * eps**2),
        "hmc": lambda log_p, eps: blackjax.hmc(log_p, eps, jnp.ones(L), HMC().steps),
        "nuts": lambda log_p, eps: blackjax.nuts(log_p, eps, jnp.ones(L)),
    }

    def sampler(power: Any, noise: Any, eps: Any) -> Any:
        return build[name](partial(log_density, power=power, noise=noise), eps)

    def step(states: Any, key: Any) -> tuple[Any, None]:
        keys = jax.random.split(key, z0.shape[1])
        move = jax.vmap(lambda key, state, *of_frame: sampler(*of_frame).step(key, state)[0])
        return move(keys, states, *data), None

    def keep(states: Any, key: Any) -> tuple[Any, Any]:
        states, _ = jax.lax.scan(step, states, jax.random.split(key, thin))
        return states, states.position

    z = jnp.array(z0[0].numpy())
    values = jax.vmap(log_density)(z, *data[:2])
    if not np.allclose(values, target.log_density(z0)[0].numpy(), rtol=1e-4, atol=0.05):
        raise SystemExit("the decoder in jax.numpy is not torch's: nothing to compare")
    states = jax.vmap(lambda z, *of_frame: sampler(*of_frame).init(z))(z, *data)
    keys = jax.random.split(jax.random.key(0), draws)
    run = jax.jit(lambda states, keys: jax.lax.scan(keep, states, keys)[1])
    run = run.lower(states, keys).compile()
    start = time.perf_counter()
    drawn = np.asarray(run(states, keys))
    return drawn, time.perf_counter() - start


if __name__ == "__main__":
    main()
