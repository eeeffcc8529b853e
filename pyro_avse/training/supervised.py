"""Training the supervised rival on pairs of clean and noisy speech. [Gabbay, Shamir & Peleg 2018]

    x = s + b     s a clip of 3 s, b the first half of a recorded noise, or the same speaker in another clip
    loss = mean (net(log-mel x, pictures) - log-mel s)^2

Recorded noise trains nothing else here (`pyro_avse.rivals.gabbay`). Second halves are kept, so that a noise can be
known without its samples being known. Nothing is selected: the last epoch's weights are the result.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.corpora.utterance import Split, Utterance
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import take_noise
from pyro_avse.defaults import SAMPLE_RATE
from pyro_avse.files import SOUNDS
from pyro_avse.rivals.classical import WINDOWS as NMF_WINDOWS
from pyro_avse.rivals.classical import learn_dictionary, save_dictionary
from pyro_avse.rivals.gabbay import (
    FRAMES,
    WINDOWS,
    GabbayNet,
    in_unit,
    log_mel,
    pictures_of,
    save_net,
    slices,
)
from pyro_avse.training.folder import CHECKPOINT, LOG, WEIGHTS, find_checkpoint, write_log
from pyro_avse.training.frames import load_clips
from pyro_avse.training.recipe import RivalRecipe
from pyro_avse.training.svi import seeded
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.tensors import load_state, save_tensors

SLICES = 15
"""Of 200 ms: 3 s, of every recording in training."""
SAMPLES = SLICES * FRAMES * WINDOWS.hop
MOST_FRAMES = 20_000
"""Of clean speech, for a dictionary."""
KNOWN_SHARE = 0.5
"""Of a noise's recording, from its start, what is trained on."""


@dataclass(frozen=True)
class Clip:
    """Three seconds of clean speech with its pictures."""

    speaker: str | None
    waveform: Float32[np.ndarray, "sample"]
    pictures: UInt8[Tensor, "slice 5 67 67"]


@dataclass(frozen=True)
class Pair:
    """Noisy and clean recordings, their peak that of the noisy one, 1."""

    noisy: Float[Tensor, "recording sample"]
    clean: Float[Tensor, "recording sample"]
    pictures: UInt8[Tensor, "recording slice 5 67 67"]


def train_rival(
    recipe: RivalRecipe,
    roots: list[str | Path],
    out: Path,
    *,
    noise: str | Path | None,
    resume: bool,
    device: torch.device,
    progress: Callable[[JSON], None] | None = None,
) -> Path:
    """Train the network, or the dictionary of `supervised_nmf`, into `out`; files and refusals as of
    `pyro_avse.training.stages.train`.

    `noise` is the folder with the recordings that the recipe names.
    """
    if recipe.rival == "supervised_nmf":
        return _train_dictionary(recipe, roots, out, resume=resume, progress=progress)
    noises = _load_noises(recipe.noises, noise)
    with seeded(recipe.seed):
        try:
            net = GabbayNet(**recipe.options).to(device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"[options] of gabbay: {error}") from None
    header: JSON = {"recipe": json.loads(json.dumps(asdict(recipe)))}
    found = find_checkpoint(out, header["recipe"], resume)
    train, valid = (_load_clips(roots, split) for split in ("train", "valid"))
    rate = recipe.training.learning_rate
    optimiser = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    history: list[JSON] = []
    if found is not None:
        history = _restore(net, optimiser, *found, path=out / CHECKPOINT)
    else:
        _set_scale(net, draw_pairs(train[:64], train, noises, recipe, recipe.seed))
    for row in history:
        if progress is not None:
            progress(row)
    while len(history) < recipe.training.epochs:
        number = len(history)
        fall = 0.5 * (1 + math.cos(math.pi * number / recipe.training.epochs))
        for group in optimiser.param_groups:
            group["lr"] = rate * (0.02 + 0.98 * fall)
        with seeded(recipe.seed, number, device=device):
            loss = _epoch(net, optimiser, train, noises, recipe)
        with seeded(recipe.seed, 0, 1), torch.no_grad():
            pair = draw_pairs(valid, valid, noises, recipe, 1)
            held = float(pair_loss(net.eval(), pair))
        row = {"epoch": number, "train_loss": loss, "valid_loss": held}
        if not math.isfinite(held):
            raise InputError(f"training diverged in epoch {number}: lower learning_rate")
        history.append(row)
        save_tensors(out / CHECKPOINT, *_snapshot(net, optimiser, header | {"history": history}))
        write_log(out / LOG, history)
        if progress is not None:
            progress(row)
    save_net(out / WEIGHTS, net, recipe.noises)
    return out / WEIGHTS


def _train_dictionary(
    recipe: RivalRecipe,
    roots: list[str | Path],
    out: Path,
    *,
    resume: bool,
    progress: Callable[[JSON], None] | None,
) -> Path:
    """Spectra of clean speech: seconds, so there is nothing to go on with."""
    find_checkpoint(out, {}, resume)
    found = [u for root in roots for u in find_utterances(root, "train")]
    spectra = load_clips(found, NMF_WINDOWS, with_lips=False, noise_floor_db=40.0, seed=recipe.seed)
    power = torch.cat([spectrum.abs().square() for spectrum, _ in spectra])
    rng = torch.Generator().manual_seed(recipe.seed)
    try:
        chosen = power[torch.randperm(len(power), generator=rng)[:MOST_FRAMES]]
        W = learn_dictionary(chosen, **recipe.options, iterations=recipe.training.epochs, rng=rng)
    except TypeError as error:
        raise InputError(f"[options] of supervised_nmf: {error}") from None
    save_dictionary(out / WEIGHTS, W)
    if progress is not None:
        progress({"epoch": recipe.training.epochs - 1})
    return out / WEIGHTS


def _epoch(
    net: GabbayNet,
    optimiser: torch.optim.Optimizer,
    clips: list[Clip],
    noises: list[np.ndarray],
    recipe: RivalRecipe,
) -> float:
    """Every clip once; the mean loss."""
    net.train()
    size, order = recipe.training.batch_size, torch.randperm(len(clips)).tolist()
    total = torch.zeros(())
    for first in range(0, len(order), size):
        chosen = [clips[i] for i in order[first : first + size]]
        pair = draw_pairs(chosen, clips, noises, recipe, int(torch.randint(2**62, ())))
        loss = pair_loss(net, pair)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += loss.detach().cpu() * len(chosen) / len(order)
    return float(total)


def pair_loss(net: GabbayNet, pair: Pair) -> Tensor:
    """Mean squared error of the log mel spectrum, in units of `net.scale`."""
    device = net.scale.device
    noisy, clean = (
        slices(log_mel(WINDOWS.analyse(x.to(device))), SLICES).flatten(0, 1)
        for x in (pair.noisy, pair.clean)
    )
    found = net(noisy, in_unit(pair.pictures.to(device)).flatten(0, 1))
    return ((found - clean) / net.scale).square().mean()


def draw_pairs(
    chosen: list[Clip],
    clips: list[Clip],
    noises: list[Float32[np.ndarray, "_"]],
    recipe: RivalRecipe,
    seed: int,
) -> Pair:
    """Each of `chosen` in a noise: a stretch of a recording, or another of `clips` of its speaker."""
    rng = np.random.default_rng(seed)
    noisy, clean = np.zeros((2, len(chosen), SAMPLES), np.float32)
    for n, clip in enumerate(chosen):
        voices = [c for c in clips if c.speaker == clip.speaker and c is not clip]
        if voices and rng.random() < recipe.own_voice:
            noise = voices[rng.integers(len(voices))].waveform
        else:
            noise, _ = take_noise(noises[rng.integers(len(noises))], SAMPLES, rng)
        powers = [float(np.square(w, dtype=np.float64).mean()) for w in (clip.waveform, noise)]
        snr = rng.uniform(recipe.snr_db[0], recipe.snr_db[1])
        gain = math.sqrt(powers[0] / (powers[1] + 1e-12)) * 10 ** (-snr / 20)
        mixture = clip.waveform + gain * noise
        peak = float(np.abs(mixture).max()) + 1e-9
        noisy[n], clean[n] = mixture / peak, clip.waveform / peak
    pictures = torch.stack([clip.pictures for clip in chosen])
    return Pair(torch.from_numpy(noisy), torch.from_numpy(clean), pictures)


def _load_clips(roots: list[str | Path], split: Split) -> list[Clip]:
    """The first 3 s of every clip with lips. Raises InputError where there is none."""
    utterances = [u for root in roots for u in find_utterances(root, split)]
    found = [_load_clip(u, u.lips) for u in utterances if u.lips is not None]
    if not found:
        raise InputError(f"no {split} clip has lips, which gabbay needs: give a corpus with lips")
    return found


def _load_clip(utterance: Utterance, seen: Path) -> Clip:
    waveform = load_audio(utterance.audio).waveform
    lips = load_lips(seen, fps=utterance.fps)
    pictures = pictures_of(lips, len(waveform) / SAMPLE_RATE, SLICES)
    if pictures.dtype != torch.uint8:
        pictures = (255 * pictures).round().to(torch.uint8)
    waveform = waveform[:SAMPLES]
    return Clip(utterance.speaker, np.pad(waveform, (0, SAMPLES - len(waveform))), pictures)


def _load_noises(names: list[str], folder: str | Path | None) -> list[Float32[np.ndarray, "_"]]:
    """The known share of every recording."""
    if folder is None:
        raise InputError(
            f"gabbay learns noises, {', '.join(names)}: give the folder of their recordings, --noise"
        )
    files = {p.stem: p for p in sorted(Path(folder).glob("*")) if p.suffix.lower() in SOUNDS}
    for name in names:
        if name not in files:
            raise InputError(f"{folder} has no recording of {name}: give it, or name other noises")
    recordings = [load_audio(files[name]).waveform for name in names]
    return [x[: int(KNOWN_SHARE * len(x))] for x in recordings]


def _set_scale(net: GabbayNet, pair: Pair) -> None:
    """Mean and deviation of each band of noisy speech, by which the network sees it."""
    seen = log_mel(WINDOWS.analyse(pair.noisy)).flatten(0, 1)
    net.mean.copy_(seen.mean(0))
    net.scale.copy_(seen.std(0) + 0.1)


def _snapshot(
    net: GabbayNet, optimiser: torch.optim.Optimizer, header: JSON
) -> tuple[dict[str, Tensor], JSON]:
    """All that the next epoch depends on."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for key, value in optimiser.state[parameter].items():
            tensors[f"adam.{name}.{key}"] = value
    return tensors, header


def _restore(
    net: GabbayNet,
    optimiser: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    header: JSON,
    *,
    path: Path,
) -> list[JSON]:
    """Go back to a `_snapshot`; its history."""
    state = {n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")}
    with torch.no_grad():
        load_state(net, state, path)
    for name, parameter in net.named_parameters():
        optimiser.state[parameter] = {
            key: tensors[f"adam.{name}.{key}"].to(parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    history: list[JSON] = header["history"]
    return history
