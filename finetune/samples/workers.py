"""Processes samples in several worker processes, in order, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
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
    leaves it waiting for ever, and with it whoever waits for the worker. Nor can a hook of Python's tell: calling it
    takes memory too. So the one who waits looks after it, where the system lists threads (Linux).
    """
    if not _TASKS.is_dir():
        return
    start = threading.Thread.start

    def watched(self: threading.Thread) -> None:
        self._started = _Begun()  # type: ignore[attr-defined]
        start(self)

    threading.Thread.start = watched  # type: ignore[method-assign]


_TASKS = Path("/proc/self/task")
LOOK_SECONDS = 1.0


class _Begun(threading.Event):
    """Set by a thread when it begins. ``wait`` ends the process where the thread is gone before that."""

    def __init__(self) -> None:
        super().__init__()
        self._others = set(os.listdir(_TASKS))

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            return super().wait(timeout)
        while not super().wait(LOOK_SECONDS):
            if not set(os.listdir(_TASKS)) - self._others and not self.is_set():
                os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
        return True


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
