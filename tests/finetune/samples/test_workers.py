"""Worker processes that run out of memory end, and nobody waits for them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable

import pytest

from finetune.samples.workers import end_without_threads
from finetune.training import trainer

FORK = multiprocessing.get_context("fork")


def exhausted(self: threading.Thread) -> None:
    raise MemoryError


def begin_a_thread(begin: Callable[[], None]) -> None:
    """As the feeder of a data loader's queue is begun."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    begin()
    threading.Thread._bootstrap = exhausted  # type: ignore[attr-defined]
    threading.Thread(target=print).start()


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize(
    "begin", [end_without_threads, lambda: trainer._begin_worker(0, num_workers=1, rank=0)]
)
def test_a_worker_without_memory_for_a_thread_is_killed(begin):
    """Without, ``start`` waits for the thread for ever."""
    worker = FORK.Process(target=begin_a_thread, args=(begin,))
    worker.start()
    worker.join(30)
    was = worker.exitcode
    worker.kill()
    assert was == -signal.SIGKILL


def test_other_errors_that_python_ignores_are_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    end_without_threads()

    class Broken:
        def __del__(self) -> None:
            raise MemoryError

    one = Broken()
    del one
    assert len(told) == 1
