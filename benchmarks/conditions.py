"""The recordings of benchmarks/robustness.py and benchmarks/oracle_ladder.py: which, and how they are made."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pyro_avse.data.corpora.corpus import find_utterances
from pyro_avse.data.corpora.utterance import Utterance
from pyro_avse.data.lips.lips import Lips
from pyro_avse.data.lips.open import load_lips
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import babble, mix_at_snr, take_noise, white_noise

NEAR = ("kitchen", "street_tram", "babble")
FAR = ("machine_factory", "train_ride", "wind_leaves", "restaurant", "babble")
RATE = 16000
SPEAKERS = ("s1", "s4", "s26")
LIPS = (
    "right",
    "another clip",
    "0.2 s late",
    "1 s late",
    "another face",
    "mirrored",
    "upside down",
    "frozen",
    "none",
)


@dataclass(frozen=True)
class Case:
    """One mixture; `lips` names what the models see."""

    kind: str
    condition: str
    clip: Path
    noise: str
    snr: float
    seed: int
    speaker: str | None = None
    lips: str = "right"
    systems: tuple[str, ...] = ()
    others: tuple[Path, ...] = field(default=(), repr=False)
    """Voices of babble."""


def grid_clips(args: argparse.Namespace) -> list[Utterance]:
    clips = find_utterances(args.data / "grid", args.split)
    own = {s: [c for c in clips if c.speaker == s][: args.clips] for s in SPEAKERS}
    return [clip for of_one in own.values() for clip in of_one]


def other_voices(data: Path, clip: Path) -> tuple[Path, ...]:
    """Five voices of LibriSpeech's validation excerpts, none the target."""
    voices = sorted((data / "speech" / "librispeech_valid").glob("*.flac"))
    voices = [voice for voice in voices if voice != clip]
    first = sum(map(ord, clip.name)) % len(voices)
    return tuple(voices[(first + 2 * k) % len(voices)] for k in range(5))


def systems(args: argparse.Namespace) -> tuple[str, ...]:
    rivals = () if args.no_rivals else ("high-pass", "noisereduce")
    return ("recording", *rivals, *args.models)


def near(args: argparse.Namespace) -> Iterator[Case]:
    for place, clip in enumerate(grid_clips(args)):
        for noise in NEAR:
            for snr in (-5.0, 0.0, 5.0):
                yield Case(
                    "near",
                    f"{noise} {snr:g} dB",
                    clip.audio,
                    noise,
                    snr,
                    place,
                    clip.speaker,
                    systems=(*systems(args), *without_lips(args.models)),
                    others=other_voices(args.data, clip.audio),
                )


def without_lips(models: list[str]) -> tuple[str, ...]:
    return tuple(f"{m} without lips" for m in models if m in ("min_vae_v2", "min_vae_v3", "vae_mm"))


def far(args: argparse.Namespace) -> Iterator[Case]:
    clips = sorted((args.data / "speech" / "librispeech_valid").glob("*.flac"))
    for place, clip in enumerate(clips):
        for n, noise in enumerate(FAR):
            for k, snr in enumerate((-20.0, -15.0, -10.0, -5.0, 0.0, 5.0)):
                if (place + n + k) % 3 == 0:  # every noise at every SNR, of four clips each
                    others = other_voices(args.data, clip)
                    yield Case(
                        "far",
                        f"{noise} {snr:g} dB",
                        clip,
                        noise,
                        snr,
                        place,
                        systems=systems(args),
                        others=others,
                    )


def white(args: argparse.Namespace) -> Iterator[Case]:
    for place, clip in enumerate(grid_clips(args)):
        for snr in (60.0, 30.0, 20.0, 10.0):
            condition = f"white {snr:g} dB"
            yield Case(
                "white",
                condition,
                clip.audio,
                "white",
                snr,
                place,
                clip.speaker,
                systems=systems(args),
            )


def loud_clean(args: argparse.Namespace) -> Iterator[Case]:
    grid = grid_clips(args)
    speech = sorted((args.data / "speech" / "librispeech_valid").glob("*.flac"))
    for n, noise in enumerate(sorted((args.data / "noise").glob("*.flac"))):
        for snr in (20.0, 30.0):
            one, other = grid[n % len(grid)], speech[n % len(speech)]
            for clip, speaker in ((one.audio, one.speaker), (other, None)):
                condition = f"recorded noise {snr:g} dB"
                yield Case(
                    "loud clean",
                    condition,
                    clip,
                    noise.stem,
                    snr,
                    n,
                    speaker,
                    systems=systems(args),
                )


def trouble(args: argparse.Namespace) -> Iterator[Case]:
    for place, clip in enumerate(grid_clips(args)):
        for condition in TROUBLE:
            yield Case(
                "trouble",
                condition,
                clip.audio,
                "kitchen",
                5.0,
                place,
                clip.speaker,
                systems=systems(args),
            )


def lips(args: argparse.Namespace) -> Iterator[Case]:
    for case in near(args):
        for seen in LIPS:
            systems = tuple(args.lip_models)
            yield Case(
                "lips",
                seen,
                case.clip,
                case.noise,
                case.snr,
                case.seed,
                case.speaker,
                seen,
                systems,
                case.others,
            )


def sweep(args: argparse.Namespace) -> Iterator[Case]:
    for place, clip in enumerate(grid_clips(args)[:: args.clips]):
        for snr in range(60, -1, -2):
            yield Case(
                "sweep",
                f"{snr} dB",
                clip.audio,
                "white",
                float(snr),
                place,
                clip.speaker,
                systems=("recording", *args.models),
            )


KINDS: dict[str, Callable[[argparse.Namespace], Iterator[Case]]] = {
    "near": near,
    "far": far,
    "white": white,
    "loud clean": loud_clean,
    "trouble": trouble,
    "lips": lips,
    "sweep": sweep,
}


def thinned(cases: list[Case]) -> list[Case]:
    """At most two of every condition, and nothing of lips but the right ones, a stranger's and none."""
    kept: list[Case] = []
    for case in cases:
        alike = [k for k in kept if (k.kind, k.condition) == (case.kind, case.condition)]
        few = 1 if case.kind in ("sweep", "far") else 2
        if case.kind == "lips" and case.lips not in ("right", "another face", "none"):
            continue
        if len(alike) < few and not (case.kind == "sweep" and case.snr % 10):
            kept.append(case)
    return kept


def quieter(x: np.ndarray, db: float) -> np.ndarray:
    return x * 10 ** (-db / 20)


def clicked(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[len(x) // 3] = 10 * np.abs(x).max()
    return x


def hummed(x: np.ndarray) -> np.ndarray:
    hum = np.sin(2 * np.pi * 50 * np.arange(len(x)) / RATE)
    return x + hum * np.std(x) * 2**0.5


TROUBLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda x: x,
    "20 dB quieter": partial(quieter, db=20),
    "40 dB quieter": partial(quieter, db=40),
    "offset 0.1": lambda x: x + 0.1 * np.abs(x).max(),
    "offset 1": lambda x: x + np.abs(x).max(),
    "a click": clicked,
    "hum": hummed,
}


def mixture_of(case: Case, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Clean, as loud as it is in there, and mixture, 16 kHz; the mixture's peak is 1 but for its trouble."""
    clean = load_audio(case.clip).waveform[: 4 * RATE]
    rng = np.random.default_rng([case.seed, sum(map(ord, case.noise))])
    if case.noise == "white":
        noise = white_noise(len(clean), rng)
    elif case.noise == "babble":
        voices = [load_audio(path).waveform for path in case.others]
        noise = babble(voices, len(clean), [int(rng.integers(len(v))) for v in voices])
    else:
        recorded = load_audio(data / "noise" / f"{case.noise}.flac").waveform
        noise, _ = take_noise(recorded, len(clean), rng)
    mixture, _ = mix_at_snr(clean, noise, case.snr)
    peak = np.abs(mixture).max()
    clean, mixture = clean / peak, mixture / peak
    if case.kind == "trouble":
        mixture = TROUBLE[case.condition](mixture)
    return clean, mixture.astype(np.float32)


def pictures(case: Case) -> Lips | None:
    """What the models see."""
    if case.lips == "none" or not case.clip.with_suffix(".npz").exists():
        return None
    own = load_lips(case.clip.with_suffix(".npz"))
    frames = own.frames
    if case.lips in ("another clip", "another face"):
        folder = case.clip.parent
        if case.lips == "another face":
            speakers = sorted(p for p in folder.parent.iterdir() if p.name in SPEAKERS)
            folder = speakers[(speakers.index(folder) + 1) % len(speakers)]
        clips = sorted(folder.glob("*.npz"))
        place = (case.seed + 1) % len(clips)
        if clips[place].stem == case.clip.stem:
            place = (place + 1) % len(clips)
        frames = load_lips(clips[place]).frames
    elif case.lips.endswith("late"):
        late = round(float(case.lips.split()[0]) * own.fps)
        frames = np.concatenate([np.repeat(frames[:1], late, 0), frames])[: len(frames)]
    elif case.lips == "mirrored":
        frames = frames[:, :, ::-1]
    elif case.lips == "upside down":
        frames = frames[:, ::-1]
    elif case.lips == "frozen":
        frames = np.repeat(frames[len(frames) // 2][None], len(frames), 0)
    return Lips(np.ascontiguousarray(frames), own.fps)
