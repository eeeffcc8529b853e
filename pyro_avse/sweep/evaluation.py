"""Sweeps: every clip in every noise at every SNR, enhanced by every model and scheme and scored, a row each.

    frame = evaluate("grid", ["white", "babble", "noise/"], [-5, 0, 5], ["a_vae"], ["vem"], out="results")

Rows are written as they come; called again, a sweep that was stopped, or killed, goes on where it was. A mixture
depends on its clip, noise, SNR and the protocol's seed and on nothing else; `mixtures` makes it again from a row.
With `batch` several are enhanced at once and share one stream of random numbers: then a row's draws depend on its batch
too. What fails is a row with its reason. `results` reads the rows, `report` draws them.

Work is done here, in processes of this machine (`jobs`), or by the workers of dask.distributed (`cluster`), who must
see the same folders. Processes are spawned: a script that asks for them guards its calls by
`if __name__ == "__main__":`.
"""

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from pyro_avse.data.corpora.utterance import Split
from pyro_avse.data.noise import Level
from pyro_avse.defaults import DEFAULT_INFERENCE, SAMPLE_RATE
from pyro_avse.enhancement.enhanced import Enhanced
from pyro_avse.enhancement.enhancer import Enhancer, Recording
from pyro_avse.enhancement.find import build_scheme, find_device
from pyro_avse.files import make_folder, write_atomically
from pyro_avse.metrics import NAMES, auc, score, share_without_lips
from pyro_avse.rivals.find import Rival, find_rival
from pyro_avse.sweep.mixtures import Mixed, Mixture, mix
from pyro_avse.sweep.protocol import RIVAL, Run, Unit, join_protocol, make_protocol, runs_of, units
from pyro_avse.sweep.results import load_results, merge_parts, row_key, write_row
from pyro_avse.sweep.workers import run_all
from pyro_avse.typing import JSON, InputError
from pyro_avse.weights.checkpoint import load_prior

if TYPE_CHECKING:
    import pandas as pd

MERGE_EVERY = 500
"""Rows, after which the small files are merged into one."""
Progress = Callable[[int, int], None]
Batch = tuple[Unit, ...]
"""What a process does at a time: mixtures that are enhanced at once, with the runs that are still to do on each."""
Outcome = tuple[tuple[Enhanced | np.ndarray, float] | None, str | None]
"""Of one mixture: what came out, of a rival its speech alone, and its seconds; or why nothing did."""
T = TypeVar("T")


def evaluate(
    data: str | Path,
    noises: Sequence[str],
    snrs: Sequence[float],
    models: Sequence[str],
    inference: Sequence[str] = (DEFAULT_INFERENCE,),
    *,
    out: str | Path,
    split: Split = "test",
    clips: int | None = None,
    seed: int = 0,
    level: Level = "clip",
    settings: Mapping[str, JSON] | None = None,
    lips: Sequence[str] = ("clean",),
    bad_lips: float = 1 / 3,
    batch: int = 1,
    jobs: int = 1,
    cluster: str | None = None,
    device: str = "cpu",
    retry: bool = False,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Run a sweep, or the rest of one; all rows of the folder, as `load_results` gives them.

    Args:
        data: a corpus, as `pyro_avse.data.corpora.corpus` describes it.
        noises: "white", "pink", "babble", recordings, folders of recordings; "corpus": the mixtures that come with the
            clips (NTCD-TIMIT's), each kind of them by its name, at its nominal SNRs.
        snrs: in dB.
        models: bundled names or weight files; "LABEL=FILE" gives one another name in the table. Rivals too
            (`pyro_avse.rivals.find`): their names, "module:function", "LABEL=CMD {noisy} {out}"; they have one row for
            all schemes.
        inference: schemes; "LABEL=SCHEME" is one with settings of its own.
        out: folder of the results, new or of the same protocol.
        clips: only so many, of every speaker in turn; fewer are always among more. None: all.
        level: what an SNR's speech level is taken over: the whole "clip", or "active" speech.
        settings: of the schemes, by label; a kernel is its name, or {"name": ..., and its constants}.
        lips: what the models are shown: "clean", "patch", "frozen", "black" (`data.lips.corrupt`), or "mixed",
            one of the three for each mixture. `auc` of a row says how well r(alpha_n) tells the bad frames.
        bad_lips: share of the pictures that are bad, where not "clean".
        batch: mixtures enhanced at once, `seconds` being each one's share by its length. A folder holds rows of one
            batch size. A batch that fails is done again one by one.
        jobs: processes, one torch thread each; 1 is this one.
        cluster: address of a dask scheduler; "local" starts one with `jobs` workers.
        retry: do the rows that failed again.
        progress: called with the rows done and the rows there will be.

    Raises:
        InputError: in one line, what cannot be used; a folder of another protocol, or in use. Nothing is overwritten.
    """
    out = Path(out)
    new = make_protocol(
        Path(data),
        noises,
        snrs,
        models,
        inference,
        split=split,
        clips=clips,
        seed=seed,
        level=level,
        settings=settings,
        lips=lips,
        bad_lips=bad_lips,
        batch=batch,
    )
    find_device(device)
    join_protocol(out, new)  # refuses before any folder is made
    make_folder(out / "parts")
    with _held(out):
        joined = join_protocol(out, new)
        write_atomically(out / "protocol.json", json.dumps(joined, indent=1).encode())
        merge_parts(out)
        wanted = joined | {"sweeps": new["sweeps"]}
        mixtures = math.prod(len(new["sweeps"][0][name]) for name in ("noises", "snrs", "lips"))
        total = len(joined["clips"]) * mixtures * len(runs_of(joined, new["sweeps"][0]))
        rows = load_results(out)
        finished = set(rows["key"][rows["failure"].isna()] if retry else rows["key"])
        to_do = list(_batches(wanted, finished))
        done = merged = total - sum(len(runs) for one in to_do for _, runs in one)
        work = partial(run_batch, out.resolve(), device=device)
        with closing(run_all(work, to_do, out, jobs, cluster)) as counts:
            for count in counts:
                done += count
                if progress is not None:
                    progress(done, total)
                if done - merged >= MERGE_EVERY:
                    merge_parts(out)
                    merged = done
        merge_parts(out)
        return load_results(out)


def run_batch(folder: Path, batch: Batch, device: str = "cpu") -> int:
    """Make the mixtures, enhance them by each run, score them, write each row at once; how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = [_make(mixture) for mixture, _ in batch]
        for run in dict.fromkeys(run for _, runs in batch for run in runs):
            outcomes = _enhance(run, made, device)
            for (_, runs), one, (result, reason) in zip(batch, made, outcomes, strict=True):
                if run not in runs:
                    continue
                row = one.row | {"model": run.model, "inference": run.inference}
                row["key"] = row_key(**row)
                if result is not None and one.mixed is not None:
                    _, reason = _attempt(partial(_fill_in, row, one.mixed, run, *result))
                row["failure"], row["reasons"] = reason, json.dumps(row["reasons"])
                write_row(folder, row)
        return sum(len(runs) for _, runs in batch)
    finally:
        torch.set_num_threads(before)


def find_enhancer(run: Run, device: str = "cpu") -> Enhancer:
    """The model and scheme of a run; each model is read once for a process."""
    prior, stft = _prior(run.weights, run.digest)
    scheme = build_scheme(run.scheme, json.loads(run.settings))
    return Enhancer(prior, scheme, stft=stft, device=device)


def speech_of(run: Run, mixed: Mixed, seed: int) -> np.ndarray:
    """What one run makes of one mixture, at 16 kHz, where the mixture's peak is 1."""
    if run.scheme == RIVAL:
        return _rival(run)(mixed.noisy.waveform, mixed.lips)
    enhancer = find_enhancer(run)
    return enhancer.separate(enhancer.prepare(mixed.noisy, mixed.lips), seed=seed).speech_16k


def _batches(protocol: JSON, done: set[str]) -> Iterator[Batch]:
    """The sweep's mixtures, so many at once as it says, but for what is done.

    Which mixtures are together does not depend on what is done: a batch that was stopped is made again as it was.
    """
    every, size = list(units(protocol)), protocol["batch"]
    for first in range(0, len(every), size):
        batch = tuple(
            (mixture, tuple(run for run in runs if _key(mixture, run) not in done))
            for mixture, runs in every[first : first + size]
        )
        if any(runs for _, runs in batch):
            yield batch


def _key(mixture: Mixture, run: Run) -> str:
    return row_key(**vars(mixture), model=run.model, inference=run.inference)


@dataclass(frozen=True)
class _Made:
    """A mixture, and the columns that its rows share."""

    row: JSON
    name: Path
    mixed: Mixed | None
    failure: str | None


def _make(mixture: Mixture) -> _Made:
    """Make the mixture and score it; what its noise was is noted in the row."""
    scores = dict.fromkeys((f"{n}_{side}" for n in NAMES for side in ("in", "out")), math.nan)
    names = ("clip", "speaker", "noise", "snr", "lips", "seed")
    row = {name: getattr(mixture, name) for name in names} | scores | {"reasons": {}}

    def make() -> Mixed:
        mixed = mix(mixture)
        before = score(mixed.noisy.waveform, mixed.clean.waveform)
        row.update(
            noise_files=list(mixed.segment.files),
            noise_starts=list(mixed.segment.starts),
            noise_looped=mixed.segment.looped,
            noise_gain=mixed.gain,
            reasons={"in": before.reasons},
            **{f"{name}_in": getattr(before, name) for name in NAMES},
        )
        return mixed

    return _Made(row, mixture.lips_file or mixture.audio, *_attempt(make))


def _attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """What the work returns, or why it failed. One clip must not end a sweep of days."""
    try:
        return work(), None
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"


def _enhance(run: Run, made: list[_Made], device: str) -> list[Outcome]:
    """What one model and scheme make of the mixtures, all at once whose lips are of one kind."""
    if run.scheme == RIVAL:
        return [_ask_rival(run, one) for one in made]
    outcomes: list[Outcome] = [(None, one.failure) for one in made]
    alike: dict[Any, dict[int, Recording]] = {}
    for i, one in enumerate(made):
        if one.mixed is not None:
            recording, reason = _attempt(partial(_prepare, run, one.name, one.mixed, device))
            outcomes[i] = None, reason
            if recording is not None:
                kind = None if recording.lips is None else recording.lips.dtype
                alike.setdefault(kind, {})[i] = recording
    for recordings in alike.values():
        seeds = [made[i].row["seed"] for i in recordings]
        found = _separate(find_enhancer(run, device), list(recordings.values()), seeds)
        for i, outcome in zip(recordings, found, strict=True):
            outcomes[i] = outcome
    return outcomes


def _ask_rival(run: Run, made: _Made) -> Outcome:
    """What a rival makes of one mixture."""
    if made.mixed is None:
        return None, made.failure
    start = time.perf_counter()
    speech, reason = _attempt(partial(speech_of, run, made.mixed, made.row["seed"]))
    return (None if speech is None else (speech, time.perf_counter() - start)), reason


def _prepare(run: Run, name: Path, mixed: Mixed, device: str) -> Recording:
    enhancer = find_enhancer(run, device)
    try:
        return enhancer.prepare(mixed.noisy, mixed.lips)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _separate(enhancer: Enhancer, recordings: list[Recording], seeds: list[int]) -> list[Outcome]:
    """At once, by the first one's seed; where that fails one by one, each by its own."""
    start = time.perf_counter()
    results, reason = _attempt(partial(enhancer.batch, recordings, seed=seeds[0]))
    if results is not None:
        pace = (time.perf_counter() - start) / sum(len(result.frame_times) for result in results)
        return [((result, pace * len(result.frame_times)), None) for result in results]
    if len(recordings) == 1:
        return [(None, reason)]
    return [_separate(enhancer, [r], [s])[0] for r, s in zip(recordings, seeds, strict=True)]


def _fill_in(
    row: JSON, mixed: Mixed, run: Run, result: Enhanced | np.ndarray, seconds: float
) -> None:
    """Note in the row how well the speech came out, and how fast."""
    speech = result.speech_16k if isinstance(result, Enhanced) else result
    after = score(speech, mixed.clean.waveform)
    row |= {f"{name}_out": getattr(after, name) for name in NAMES}
    row |= {"seconds": seconds}
    row |= {"real_time_factor": seconds * SAMPLE_RATE / len(mixed.noisy.waveform)}
    row["reasons"] = row["reasons"] | {"out": after.reasons}
    if not isinstance(result, Enhanced):
        return
    heard = result.responsibilities[0]
    bad = mixed.bad_on_grid(result.frame_times)
    area, reason = math.nan, "the lips are clean" if bad is None else "the model has one component"
    if bad is not None and len(result.responsibilities) > 1:
        sees = _prior(run.weights, run.digest)[0].components_see
        area, reason = auc(share_without_lips(result.responsibilities, sees), bad)
    row |= {"iterations": len(result.objective)}
    row |= {"audio_responsibility": float(heard.mean()), "auc": area}
    row["reasons"] |= {"auc": reason} if reason else {}


@cache
def _rival(run: Run) -> Rival:
    found = find_rival(run.weights)
    if found is None:
        raise InputError(f"{run.weights} is no rival any more: give another --out")
    return replace(found, name=run.model)


@cache
def _prior(weights: str, digest: str) -> Any:
    return load_prior(weights)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Refuse a second sweep in the same folder; the system lets go when this process ends, however it ends."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another evaluate is writing to {folder}: wait for it, or give another --out"
            ) from None
        yield
