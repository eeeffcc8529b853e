"""Sweeps in processes and on dask: killed, on one side or the other, they lose no row and double none."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pyro_avse.sweep import workers
from pyro_avse.sweep.evaluation import evaluate
from pyro_avse.sweep.results import load_results
from pyro_avse.typing import InputError

Same = Callable[[pd.DataFrame, pd.DataFrame], None]


KILLS = 20


def wait_for_rows(folder: Path, count: int, process: Any) -> None:
    """Until that many rows are there."""
    limit = time.monotonic() + 120
    while process.is_alive() and len(list((folder / "parts").glob("*.parquet"))) < count:
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.slow  # a short form of it is in test_campaigns.py
def test_a_sweep_killed_at_any_moment_goes_on(
    finished_sweep: Path, small_sweep: dict[str, Any], same_rows: Same, tmp_path: Path
) -> None:
    """SIGKILL at seeded random moments of a run's length; no row lost, doubled or done again; the end is the same."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyro_avse.sweep.evaluation", "pandas", "pyarrow.parquet"])
    rng = np.random.default_rng(0)

    def start(folder: Path) -> Any:
        process = context.Process(target=evaluate, kwargs=small_sweep | {"out": folder})
        process.start()
        return process

    whole = start(tmp_path / "whole")
    wait_for_rows(tmp_path / "whole", 1, whole)
    began = time.monotonic()
    whole.join()
    length = 1.5 * (time.monotonic() - began)  # with what it takes to begin
    expected, folder, finished = load_results(finished_sweep), tmp_path / "0", 0
    same_rows(load_results(tmp_path / "whole"), expected)
    seen = pd.DataFrame(columns=["key", "seconds"])
    for kill in range(KILLS):
        process = start(folder)
        process.join(rng.uniform(0, length))
        process.kill()
        process.join()
        if not (folder / "protocol.json").exists():
            continue  # killed before it began
        frame = load_results(folder)
        assert frame["key"].is_unique
        assert set(frame["key"]) >= set(seen["key"])
        kept = frame.set_index("key")["seconds"].loc[seen["key"]]
        assert kept.tolist() == seen["seconds"].tolist(), "a finished row was done again"
        seen = frame[["key", "seconds"]]
        if len(frame) == len(expected):
            same_rows(frame, expected)
            folder, seen, finished = tmp_path / f"{kill + 1}", seen[:0], finished + 1
    frame = evaluate(**small_sweep, out=folder)
    kept = frame.set_index("key")["seconds"].loc[seen["key"]]
    assert kept.tolist() == seen["seconds"].tolist(), "a finished row was done again"
    same_rows(frame, expected)
    assert finished < KILLS


def test_processes_share_the_work_and_end_with_it(
    finished_sweep: Path, small_sweep: dict[str, Any], same_rows: Same, tmp_path: Path
) -> None:
    """Two processes give one process's rows; one killed is an error that names the cure; none outlives the sweep."""
    context = multiprocessing.get_context("forkserver")
    sweep = context.Process(target=evaluate, kwargs=small_sweep | {"out": tmp_path, "jobs": 2})
    sweep.start()
    wait_for_rows(tmp_path, 3, sweep)
    workers = children_of(sweep.pid)
    sweep.kill()
    sweep.join()
    assert len(workers) >= 2
    limit = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < limit, "workers of a killed sweep are still there"
        time.sleep(0.05)

    def kill_one(done: int, total: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    before = len(load_results(tmp_path))
    with pytest.raises(InputError, match=r"a process of the sweep died.*goes on where it was"):
        evaluate(**small_sweep, out=tmp_path, jobs=2, progress=kill_one)
    assert len(load_results(tmp_path)) > before
    same_rows(evaluate(**small_sweep, out=tmp_path), load_results(finished_sweep))


def children_of(pid: int | None) -> list[int]:
    """Processes whose parent is `pid`, by /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry.parent.name))
    return found


@pytest.fixture
def two_workers() -> Iterator[Any]:
    """A dask scheduler on loopback with two workers, each a process; a killed one is started anew."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster:
        yield cluster


def test_dask_loses_and_doubles_no_row_when_a_worker_is_killed(
    finished_sweep: Path,
    small_sweep: dict[str, Any],
    same_rows: Same,
    two_workers: Any,
    tmp_path: Path,
) -> None:
    """Killed as soon as the first mixture is done, while both have more to do."""
    from distributed import Client

    with Client(two_workers.scheduler_address, set_as_default=False) as client:
        before = client.run(os.getpid)
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if not killed:
            assert done < total
            killed.append(next(iter(before.values())))
            os.kill(killed[0], signal.SIGKILL)

    frame = evaluate(
        **small_sweep,
        out=tmp_path,
        cluster=two_workers.scheduler_address,
        progress=kill_one,
    )
    assert killed
    assert not Path(f"/proc/{killed[0]}").exists() or killed[0] not in children_of(os.getpid())
    same_rows(frame, load_results(finished_sweep))


def test_a_lost_scheduler_is_one_line(
    small_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while mixtures are to do: what to look at; the rows that are there stay."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "SECONDS_TO_CONNECT", 3)  # and, once lost, to connect again
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster:

        def stop(done: int, total: int) -> None:
            cluster.close()

        with pytest.raises(InputError, match=r"dask failed .*run the same again") as refusal:
            evaluate(**small_sweep, out=tmp_path, cluster=cluster.scheduler_address, progress=stop)
    assert "\n" not in str(refusal.value)
    assert 0 < len(load_results(tmp_path)) < 24


@pytest.mark.slow
def test_dask_is_started_here_when_asked(
    finished_sweep: Path, small_sweep: dict[str, Any], same_rows: Same, tmp_path: Path
) -> None:
    """`cluster="local"`: a scheduler and workers of its own, gone at the end."""
    pytest.importorskip("distributed")
    frame = evaluate(**small_sweep, out=tmp_path, cluster="local", jobs=2)
    same_rows(frame, load_results(finished_sweep))
    assert not multiprocessing.active_children()


def test_a_cluster_that_cannot_be_had_is_refused(
    small_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No scheduler at the address, none with such a name, and dask not installed: one line with the cure."""
    monkeypatch.setattr(workers, "SECONDS_TO_CONNECT", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"tcp://127.0.0.1:{port}", "nonsense://x"):
        with pytest.raises(InputError, match=f"no dask scheduler at {address}.*check") as refusal:
            evaluate(**small_sweep, out=tmp_path, cluster=address)
        assert "\n" not in str(refusal.value)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'pyro_avse\[cluster\]'"):
        evaluate(**small_sweep, out=tmp_path, cluster="local")
