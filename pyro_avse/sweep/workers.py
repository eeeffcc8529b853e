"""Who does a sweep's work: this process, others of this machine, or the workers of dask.distributed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pyro_avse.files import remove_litter
from pyro_avse.typing import InputError

SECONDS_TO_CONNECT = 10
"""To a scheduler of dask."""


def run_all(
    work: Callable[[Any], int], to_do: list[Any], folder: Path, jobs: int, cluster: str | None
) -> Generator[int]:
    """What `work` says of every batch, as it is done; `folder` is where it writes.

    Raises InputError in one line where processes or the scheduler are lost, or there is no dask.
    """
    if cluster is not None:
        return _on_dask(work, to_do, jobs, cluster)
    if jobs > 1 and len(to_do) > 1:
        return _in_processes(work, to_do, folder, jobs)
    return (work(batch) for batch in to_do)


def _in_processes(
    work: Callable[[Any], int], to_do: list[Any], folder: Path, jobs: int
) -> Generator[int]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(to_do)), context, initializer=_watch_parent)
    try:
        for future in as_completed([pool.submit(work, batch) for batch in to_do]):
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
        remove_litter(folder / "parts")


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
    work: Callable[[Any], int], to_do: list[Any], jobs: int, cluster: str
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
        futures = [client.submit(work, batch, pure=False) for batch in to_do]
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
        ) as error:  # `run_batch` keeps its own: the scheduler is lost, or a worker lacks something
            raise InputError(
                f"dask failed ({type(error).__name__}: {' '.join(str(error).split())}): see that its scheduler runs and"
                " its workers have pyro_avse and the same folders, and run the same again"
            ) from None
