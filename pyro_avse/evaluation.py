"""Sweeps: every clip in every noise at every SNR, enhanced by every model and scheme and scored, a row each.

    frame = evaluate("grid", ["white", "babble", "noise/"], [-5, 0, 5], ["a_vae"], ["vem"], out="results")

Rows are written as they come; called again, a sweep that was stopped, or killed, goes on where it was. A mixture
depends on its clip, noise, SNR and the protocol's seed and on nothing else; `pyro_avse.mixtures` makes it again from a
row. What fails is a row with its reason. `pyro_avse.results` reads and averages the rows, `pyro_avse.report` draws
them.

Work is done here, in processes of this machine (`jobs`), or by the workers of dask.distributed (`cluster`), who must
see the same folders. Processes are spawned: a script that asks for them guards its calls by
`if __name__ == "__main__":`.
"""

import fcntl
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_avse.checkpoint import load_prior
from pyro_avse.data.noise import Level
from pyro_avse.data.utterance import Split
from pyro_avse.defaults import DEFAULT_INFERENCE
from pyro_avse.enhancer import Enhancer, find_device
from pyro_avse.files import make_folder, write_atomically
from pyro_avse.measure import measure
from pyro_avse.metrics import NAMES, auc, score
from pyro_avse.mixtures import Mixture, mix
from pyro_avse.protocol import (
    Run,
    Unit,
    build_scheme,
    join_protocol,
    make_protocol,
    units,
)
from pyro_avse.results import load_results, merge_parts, row_key, write_row
from pyro_avse.typing import JSON, InputError

if TYPE_CHECKING:
    import pandas as pd

MERGE_EVERY = 500
"""Rows, after which the small files are merged into one."""
SECONDS_TO_CONNECT = 10
"""To a scheduler of dask."""
Progress = Callable[[int, int], None]


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
    jobs: int = 1,
    cluster: str | None = None,
    device: str = "cpu",
    retry: bool = False,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Run a sweep, or the rest of one; all rows of the folder, as `load_results` gives them.

    Args:
        data: a corpus, as `pyro_avse.data.corpus` describes it.
        noises: "white", "pink", "babble", recordings, folders of recordings; "corpus": the mixtures that come with the
            clips (NTCD-TIMIT's), each kind of them by its name, at its nominal SNRs.
        snrs: in dB.
        models: bundled names or weight files; "LABEL=FILE" gives one another name in the table.
        inference: schemes; "LABEL=SCHEME" is one with settings of its own.
        out: folder of the results, new or of the same protocol.
        clips: only so many, of every speaker in turn; fewer are always among more. None: all.
        level: what an SNR's speech level is taken over: the whole "clip", or "active" speech.
        settings: of the schemes, by label; a kernel is its name, or {"name": ..., and its constants}.
        lips: what the models are shown: "clean", "patch", "frozen", "black" (`pyro_avse.data.corrupt`), or "mixed",
            one of the three for each mixture. `auc` of a row says how well r(audio) tells the bad frames.
        bad_lips: share of the pictures that are bad, where not "clean".
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
    )
    find_device(device)
    join_protocol(out, new)  # refuses before any folder is made
    make_folder(out / "parts")
    with _held(out):
        joined = join_protocol(out, new)
        write_atomically(out / "protocol.json", json.dumps(joined, indent=1).encode())
        merge_parts(out)
        wanted = joined | {"sweeps": new["sweeps"]}
        total = len(joined["clips"]) * math.prod(map(len, new["sweeps"][0].values()))
        rows = load_results(out)
        to_do = list(
            units(wanted, set(rows["key"][rows["failure"].isna()] if retry else rows["key"]))
        )
        done = merged = total - sum(len(runs) for _, runs in to_do)
        with closing(_run_all(out, to_do, jobs, cluster, device)) as counts:
            for count in counts:
                done += count
                if progress is not None:
                    progress(done, total)
                if done - merged >= MERGE_EVERY:
                    merge_parts(out)
                    merged = done
        merge_parts(out)
        return load_results(out)


def run_unit(folder: Path, unit: Unit, device: str = "cpu") -> int:
    """Make one mixture, enhance and score it by each of its runs, write each row at once; how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mixture, runs = unit
        shared = _mixture_row(mixture)
        made: JSON = {}
        reason = _attempt(partial(_mix, mixture, shared, made))
        for run in runs:
            row = shared | {"model": run.model, "inference": run.inference}
            row["key"] = row_key(**row)
            row["failure"] = reason or _attempt(partial(_enhance, mixture, made, run, row, device))
            row["reasons"] = json.dumps(row["reasons"])
            write_row(folder, row)
        return len(runs)
    finally:
        torch.set_num_threads(before)


def find_enhancer(run: Run, device: str = "cpu") -> Enhancer:
    """The model and scheme of a run; each model is read once for a process."""
    prior, stft = _prior(run.weights, run.digest)
    scheme = build_scheme(run.scheme, json.loads(run.settings))
    return Enhancer(prior, scheme, stft=stft, device=device)


def _mixture_row(mixture: Mixture) -> JSON:
    """The columns of a mixture, scores missing."""
    scores = dict.fromkeys((f"{n}_{side}" for n in NAMES for side in ("in", "out")), math.nan)
    names = ("clip", "speaker", "noise", "snr", "lips", "seed")
    return {name: getattr(mixture, name) for name in names} | scores | {"reasons": {}}


def _attempt(work: Callable[[], object]) -> str | None:
    """Why the work failed; None: it did not. One clip must not end a sweep of days."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _mix(mixture: Mixture, row: JSON, made: JSON) -> None:
    """Make the mixture and score it; what its noise was is noted in the row."""
    mixed = mix(mixture)
    before = score(mixed.noisy.waveform, mixed.clean.waveform)
    row |= {
        "noise_files": list(mixed.segment.files),
        "noise_starts": list(mixed.segment.starts),
        "noise_looped": mixed.segment.looped,
        "noise_gain": mixed.gain,
        "reasons": {"in": before.reasons},
        **{f"{name}_in": getattr(before, name) for name in NAMES},
    }
    made |= {"mixed": mixed, "before": before}


def _enhance(mixture: Mixture, made: JSON, run: Run, row: JSON, device: str) -> None:
    """Fill in what one model and scheme make of the mixture."""
    enhancer, mixed = find_enhancer(run, device), made["mixed"]
    try:
        recording = enhancer.prepare(mixed.noisy, mixed.lips)
    except InputError as error:
        raise InputError(f"{mixture.lips_file or mixture.audio}: {error}") from None
    names = (run.model, run.inference, mixed.clean, row["seed"])
    result, measured = measure(enhancer, recording, *names, before=made["before"])
    after, heard = measured["output"], result.responsibilities[0]
    bad = mixed.bad_on_grid(result.frame_times)
    area, reason = math.nan, "the lips are clean" if bad is None else "the model has one component"
    if bad is not None and len(result.responsibilities) > 1:
        area, reason = auc(heard, bad)
    row |= {f"{name}_out": math.nan if after[name] is None else after[name] for name in NAMES}
    row |= {name: measured[name] for name in ("iterations", "seconds", "real_time_factor")}
    row |= {"audio_responsibility": float(heard.mean()), "auc": area}
    row["reasons"] = (
        row["reasons"] | {"out": after["reasons"]} | ({"auc": reason} if reason else {})
    )


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


def _run_all(
    folder: Path, to_do: list[Unit], jobs: int, cluster: str | None, device: str
) -> Generator[int]:
    """Rows of every unit, as it is done."""
    folder = folder.resolve()
    if cluster is not None:
        return _on_dask(folder, to_do, jobs, cluster, device)
    if jobs > 1 and len(to_do) > 1:
        return _in_processes(folder, to_do, jobs, device)
    return (run_unit(folder, unit, device) for unit in to_do)


def _in_processes(folder: Path, to_do: list[Unit], jobs: int, device: str) -> Generator[int]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(to_do)), context, initializer=_watch_parent)
    try:
        for future in as_completed([pool.submit(run_unit, folder, u, device) for u in to_do]):
            yield future.result()
    except BrokenProcessPool:
        raise InputError(
            "a process of the sweep died (killed, or out of memory): run the same again, it goes on where it was"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # nothing to wait for: a row is whole or not there
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _watch_parent() -> None:
    """End with the process that started this one: a killed sweep leaves nobody behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _on_dask(
    folder: Path, to_do: list[Unit], jobs: int, cluster: str, device: str
) -> Generator[int]:
    try:
        from distributed import Client, KilledWorker, LocalCluster
        from distributed import as_completed as as_finished
    except ImportError:
        raise InputError(
            "a cluster needs dask.distributed: pip install 'pyro_avse[cluster]'"
        ) from None
    with ExitStack() as stack:
        address: Any = cluster
        if cluster == "local":
            options = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": ":0"}
            address = stack.enter_context(LocalCluster(**options))
        try:
            client = stack.enter_context(
                Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"no dask scheduler at {cluster} ({error}): check --scheduler"
            ) from None
        futures = [client.submit(run_unit, folder, u, device, pure=False) for u in to_do]
        try:
            for future in as_finished(futures, loop=client.loop):
                yield future.result()
        except KilledWorker:
            raise InputError(
                "workers die over one mixture (out of memory?): run the same again, it goes on where it was"
            ) from None
        except InputError:
            raise
        except (
            Exception
        ) as error:  # `run_unit` keeps its own: the scheduler is lost, or a worker lacks something
            raise InputError(
                f"dask failed ({type(error).__name__}: {' '.join(str(error).split())}): see that its scheduler runs and"
                " its workers have pyro_avse and the same folders, and run the same again"
            ) from None
