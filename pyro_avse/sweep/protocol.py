"""What a sweep is: clips, noises, SNRs, models and schemes, by name and by content.

`protocol.json` in a folder of results holds it. What decides a row's numbers is told by content (a digest), so that a
corpus may move; a call that disagrees with the folder on any of it is refused. A later call may add noises, SNRs,
models, schemes and clips: rows are named by what they are, never by their order.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from pyro_avse.data.corpora.corpus import choose_split, find_corpus
from pyro_avse.data.corpora.utterance import Split, Utterance
from pyro_avse.data.media.audio import load_audio
from pyro_avse.data.noise import Level, choose_voices
from pyro_avse.enhancement.find import build_scheme
from pyro_avse.errors import closest
from pyro_avse.rivals.find import find_rival, labelled
from pyro_avse.sweep.mixtures import LIPS, Mixture, place_mixture
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.checkpoint import (
    bundled_weights,
    find_weights,
    listed,
    load_prior,
    weight_files,
)

DRAWN = ("white", "pink", "babble")
"""Noises that are no recordings."""
OWN = "corpus"
"""The mixtures that come with a corpus, at nominal SNRs: a noise for each kind of them."""
VOICES = 6
"""Of babble, where the corpus has so many."""
SOUNDS = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}
PLACES = ("audio", "lips", "file", "weights", "noisy")
"""Entries that say where something stands: it may move."""
VERSION = 1
"""Of protocol.json."""


RIVAL = "-"
"""The scheme of a rival's rows, and its label: it has none."""


@dataclass(frozen=True)
class Run:
    """One model with one scheme, or a rival."""

    model: str
    weights: str
    """Bundled name or weight file; of a rival what `find_rival` takes."""
    digest: str
    """Of the weights."""
    inference: str
    scheme: str
    """`RIVAL` of a rival."""
    settings: str
    """JSON."""


Unit = tuple[Mixture, tuple[Run, ...]]
"""One mixture, and the runs that are to do on it."""


def make_protocol(
    data: Path,
    noises: Sequence[str],
    snrs: Sequence[float],
    models: Sequence[str],
    inference: Sequence[str],
    *,
    split: Split = "test",
    clips: int | None = None,
    seed: int = 0,
    level: Level = "clip",
    settings: Mapping[str, JSON] | None = None,
    lips: Sequence[str] = ("clean",),
    bad_lips: float = 1 / 3,
    batch: int = 1,
) -> JSON:
    """The protocol of one call, everything in it looked at; arguments as for `evaluate`.

    Raises InputError for what cannot be found or used, before any work is done.
    """
    if level not in get_args(Level):
        raise InputError(f"a level over {level!r}: take 'clip' or 'active'")
    if not snrs or not np.isfinite(list(snrs)).all():
        raise InputError(f"SNRs {list(snrs)}: give finite numbers, in dB")
    for condition in lips or ("",):
        if condition not in LIPS:
            raise InputError(f"unknown lips {condition!r}{closest(condition, LIPS)}")
    if batch < 1:
        raise InputError(f"batches of {batch} mixtures: give 1 or more")
    if not 0 < bad_lips < 1:
        raise InputError(f"a share of bad lips of {bad_lips}: give one between 0 and 1")
    data = Path(data).resolve()
    corpus = find_corpus(data)
    found = _in_turn(choose_split(corpus, data, split), seed)
    names = Counter(map(clip_name, found))
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(f"{data}: two clips are called {twice[0]!r}: rename one")
    if clips is not None and not 0 < clips <= len(found):
        raise InputError(
            f"{clips} clips of {split}, which has {len(found)}: give 1 to {len(found)}"
        )
    settings = dict(settings or {})
    schemes = labelled(inference, "--inference")
    sweep: JSON = {
        "noises": _find_noises(noises, corpus.utterances, found, data),
        "models": {label: _model(name) for label, name in labelled(models, "--models").items()},
        "inference": {
            label: {"scheme": name, "settings": settings.get(label, {})}
            for label, name in schemes.items()
        },
    }
    for entry in sweep["inference"].values():
        build_scheme(entry["scheme"], entry["settings"])
    if unknown := settings.keys() - schemes.keys():
        example = json.dumps({next(iter(schemes)): {"iterations": 50}})
        raise InputError(
            f"settings for {sorted(unknown)[0]!r}, which is no scheme here: give them as {example}"
        )
    return {
        "version": VERSION,
        "data": str(data),
        "split": split,
        "seed": seed,
        "level": level,
        "bad_lips": bad_lips,
        "batch": batch,
        "clips": {clip_name(u): _clip(u, data, OWN in noises) for u in found[:clips]},
        **sweep,
        "sweeps": [
            {
                "noises": list(sweep["noises"]),
                "snrs": sorted({float(snr) for snr in snrs}),
                "lips": list(dict.fromkeys(lips)),
                "models": list(sweep["models"]),
                "inference": list(sweep["inference"]),
            }
        ],
    }


def join_protocol(folder: Path, new: JSON) -> JSON:
    """The folder's protocol with a new call's added; the new one where the folder has none.

    What only one of the two says, as an older version wrote less, is not compared.
    Raises InputError where the two disagree, or rows have no protocol, in one line: nothing has been written.
    """
    if not (folder / "protocol.json").is_file():
        if (folder / "rows.parquet").exists() or any((folder / "parts").glob("*.parquet")):
            raise InputError(
                f"{folder} has rows, no protocol.json: bring it, or give another --out"
            )
        return new
    old: JSON = {"batch": 1, **read_protocol(folder)}
    cure = "give another --out"
    for name in ("split", "seed", "level", "bad_lips", "batch"):
        if old[name] != new[name]:
            raise InputError(
                f"{folder} holds a sweep of another protocol, with {name} {old[name]}, not {new[name]}: {cure}"
            )
    if missing := old["clips"].keys() - new["clips"].keys():
        raise InputError(
            f"{folder} holds a sweep of another protocol, over {len(old['clips'])} clips, of which"
            f" {sorted(missing)[0]} is not among these {len(new['clips'])}: {cure}, or more --clips"
        )
    for kind in ("clips", "noises", "models", "inference"):
        for label in old[kind].keys() & new[kind].keys():
            if _differ(old[kind][label], new[kind][label]):
                raise InputError(
                    f"{folder} holds a sweep of another protocol, whose {kind} have another {label!r}: {cure}"
                    + (f", or name it anew, NEW={label}" if kind in ("models", "inference") else "")
                )
    joined = {kind: old[kind] | new[kind] for kind in ("noises", "models", "inference")}
    sweeps = old["sweeps"] + [sweep for sweep in new["sweeps"] if sweep not in old["sweeps"]]
    return new | joined | {"sweeps": sweeps}


def read_protocol(folder: Path) -> JSON:
    """What protocol.json says. Raises InputError where it is not there, no JSON, or of another kind or version."""
    path = folder / "protocol.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no protocol ({error}): give another folder") from None
    kinds = {"data", "clips", "noises", "models", "inference", "sweeps"}
    if not isinstance(found, dict) or found.get("version") != VERSION or not kinds <= found.keys():
        raise InputError(f"{path}: no protocol of version {VERSION}: give another folder")
    return found


def units(protocol: JSON) -> Iterator[Unit]:
    """The mixtures of the newest sweep with all their runs, clip by clip."""
    data, sweep = Path(protocol["data"]), protocol["sweeps"][-1]
    pool = find_corpus(data).utterances if "babble" in sweep["noises"] else []
    runs = runs_of(protocol, sweep)
    grid = [(n, s, v) for n in sweep["noises"] for s in sweep["snrs"] for v in sweep["lips"]]
    for clip in protocol["clips"]:
        for noise, snr, lips in grid:
            seed = mixture_seed(protocol["seed"], clip, noise, snr)
            files = tuple(_recordings(protocol, pool, clip, noise, snr, seed))
            yield place_mixture(protocol, clip, noise, snr, lips, seed=seed, files=files), runs


def runs_of(protocol: JSON, sweep: JSON) -> tuple[Run, ...]:
    """Every model with every scheme, and every rival once."""
    runs = (find_run(protocol, m, i) for i in sweep["inference"] for m in sweep["models"])
    return tuple(dict.fromkeys(runs))


def find_run(protocol: JSON, model: str, inference: str) -> Run:
    """A model and a scheme of a protocol, by their labels; a rival is the same run whatever the scheme."""
    weights = protocol["models"][model]
    if weights.get("rival"):
        return Run(model, weights["weights"], weights["digest"], RIVAL, RIVAL, "{}")
    scheme = protocol["inference"][inference]
    settings = json.dumps(scheme["settings"])
    return Run(model, weights["weights"], weights["digest"], inference, scheme["scheme"], settings)


def mixture_seed(seed: int, clip: str, noise: str, snr: float) -> int:
    """A seed that depends on nothing but these: 63 bits."""
    text = f"{seed}\n{clip}\n{noise}\n{snr:g}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def clip_name(utterance: Utterance) -> str:
    """SPEAKER/NAME, or NAME."""
    return "/".join(filter(None, (utterance.speaker, utterance.name)))


def _recordings(
    protocol: JSON, pool: list[Utterance], clip: str, noise: str, snr: float, seed: int
) -> list[str]:
    """The files of a mixture's noise: none for a drawn one, babble's for this clip's speaker.

    Of the corpus's own it is the mixture itself; none where the clip does not come with it.
    """
    source = protocol["noises"][noise]
    if source["kind"] == "corpus":
        own = protocol["clips"][clip]["noisy"]
        return [file for name, at, file in own if (name, at) == (noise, snr)]
    if source["kind"] == "babble":
        speaker = protocol["clips"][clip]["speaker"]
        chosen = choose_voices(pool, speaker, source["voices"], seed)
        return [_relative(voice.audio, Path(protocol["data"])) for voice in chosen]
    return [source["file"]] if source["kind"] == "recording" else []


def _in_turn(utterances: list[Utterance], seed: int) -> list[Utterance]:
    """Shuffled, speaker after speaker in turn: any beginning is balanced, and a beginning of any longer one."""
    rng = np.random.default_rng(seed)
    ranked = [(rank, speaker, u) for speaker, rank, u in _shuffled(utterances, rng)]
    return [u for _, _, u in sorted(ranked, key=lambda item: item[:2])]


def _shuffled(
    utterances: list[Utterance], rng: np.random.Generator
) -> Iterator[tuple[str, int, Utterance]]:
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_speaker.setdefault(utterance.speaker or "", []).append(utterance)
    for speaker, clips in by_speaker.items():
        for rank, index in enumerate(rng.permutation(len(clips))):
            yield speaker, rank, clips[index]


def _find_noises(
    names: Sequence[str], pool: list[Utterance], chosen: list[Utterance], data: Path
) -> JSON:
    """Label -> what the noise is; a folder stands for all recordings in it, each labelled by its name.

    `pool` is the whole corpus, `chosen` what is swept.
    """
    found: JSON = {}
    for name in names:
        path = Path(name)
        if name in DRAWN:
            entries = {name: _drawn(name, pool)}
        elif name == OWN:
            own = sorted({mixture.noise for u in chosen for mixture in u.noisy})
            entries = {kind: {"kind": OWN} for kind in own}
        elif path.is_dir():
            files = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SOUNDS]
            entries = {p.stem: _recording(p) for p in files if not p.name.startswith(".")}
        elif path.is_file():
            entries = {path.stem: _recording(path)}
        else:
            raise InputError(
                f"unknown noise {name!r}: give {', '.join((*DRAWN, OWN))}, a recording or a folder of recordings"
            )
        if not entries:
            holds = (
                f"{data} comes with no mixtures" if name == OWN else f"{name} holds no recordings"
            )
            raise InputError(f"{holds}: give a folder of .wav or .flac")
        if twice := found.keys() & entries.keys():
            raise InputError(f"two noises are called {sorted(twice)[0]!r}: rename one of the files")
        found |= entries
    if not found:
        raise InputError(
            f"no noise: give {', '.join(DRAWN)}, a recording or a folder of recordings"
        )
    return found


def _drawn(name: str, pool: list[Utterance]) -> JSON:
    if name != "babble":
        return {"kind": name}
    names = [f"{u.split}/{clip_name(u)}" for u in pool]
    return {"kind": name, "voices": VOICES, "digest": _digest("\n".join(names).encode())}


def _recording(path: Path) -> JSON:
    load_audio(path)  # refuses what is no sound
    return {"kind": "recording", "file": str(path.resolve()), "digest": _digest(path.read_bytes())}


def _clip(utterance: Utterance, data: Path, with_noisy: bool) -> JSON:
    lips = utterance.lips
    own = [[m.noise, m.snr, _relative(m.audio, data)] for m in utterance.noisy]
    return {
        "speaker": utterance.speaker,
        "audio": _relative(utterance.audio, data),
        "lips": None if lips is None else _relative(lips, data),
        "fps": utterance.fps,
        "digest": _digest(utterance.audio.read_bytes()),
        "lips_digest": None if lips is None else _digest(lips.read_bytes()),
        **({"noisy": own} if with_noisy else {}),
    }


def _model(name: str) -> JSON:
    rival = find_rival(name)
    if rival is not None:
        place = str(Path(name).resolve()) if os.path.isfile(name) else name
        return {"weights": place, "digest": _digest(rival.content), "rival": True}
    load_prior(name)  # refuses what is no weight file
    files = weight_files(name)
    parts = listed(name) or [name]
    place = "+".join(p if p in bundled_weights() else str(find_weights(p).resolve()) for p in parts)
    return {"weights": place, "digest": _digest(b"".join(file.read_bytes() for file in files))}


def _differ(old: JSON, new: JSON) -> bool:
    """Whether two entries disagree in what both of them say, places aside."""
    return any(old[key] != new[key] for key in (old.keys() & new.keys()) - set(PLACES))


def _relative(path: Path, data: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(data) if path.is_relative_to(data) else path)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
