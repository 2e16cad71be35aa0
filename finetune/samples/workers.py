"""Processes samples in several worker processes, in order, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

CHUNK = 256
"""Samples per task of a worker. Digests are computed per chunk, so changing this changes every digest."""
WORTH_A_PROCESS = 2000
"""With fewer samples per process, starting it costs more time than it saves."""

Result = TypeVar("Result")
_work: Callable[[range], Any] | None = None  # of a worker process


def is_data_worker_death(error: Exception) -> bool:
    """Was a process of torch's data loader killed?

    Trap: torch's handler of that signal raises in whatever the process is doing then. What only reports the failures
    of its own work has to raise this one again, or the run ends as if it had lost no more than that.
    """
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def end_without_threads() -> None:
    """In a worker process, once: end it where a thread cannot begin for lack of memory.

    Trap: Python's ``Thread.start`` waits for the first words of its thread, and one that runs out of memory before them
    leaves it waiting for ever, and with it whoever waits for the worker. Python only prints that it ignores the error.
    """
    told = sys.unraisablehook

    def ended(found: sys.UnraisableHookArgs) -> None:
        if issubclass(found.exc_type, MemoryError) and "thread" in (found.err_msg or ""):
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
        told(found)

    sys.unraisablehook = ended


def default_workers() -> int:
    """Cores available to this process, divided among the run's processes on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_chunks(
    work: Callable[[range], Result], count: int, *, workers: int | None, doing: str
) -> Iterator[tuple[range, Result]]:
    """Yield each chunk of 0 to ``count`` - 1 and its result from ``work``, in order.

    workers   processes; None: as many as the cores and the amount of work justify
    doing     label of the progress bar, shown after two seconds on the first process of the run
    """
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if workers is None:
        workers = min(default_workers(), count // WORTH_A_PROCESS)
    silent = os.environ.get("RANK", "0") != "0"
    with tqdm(total=count, desc=doing, unit="sample", delay=2, disable=silent) as bar:
        for chunk, result in zip(chunks, _results(work, chunks, workers), strict=True):
            yield chunk, result
            bar.update(len(chunk))


def _results(work: Callable[[range], Result], chunks: list[range], workers: int) -> Iterator[Result]:
    if workers <= 1 or len(chunks) <= 1:
        yield from map(work, chunks)
        return
    # Forked: a fresh process would import torch and transformers again, several seconds each. The children use
    # neither threads nor a device, so Python's warning about forking a threaded process does not apply.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(chunks)), fork, initializer=_begin, initargs=(work,)) as pool:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            results = pool.map(_do, chunks)  # forks here
        try:
            yield from results
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {workers} worker processes reading the data was killed, most likely for lack of memory"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[range], Any]) -> None:
    global _work
    _work = work


def _do(chunk: range) -> Any:
    assert _work is not None
    return _work(chunk)
