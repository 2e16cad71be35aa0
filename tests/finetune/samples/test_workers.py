"""Worker processes that run out of memory end, and nobody waits for them."""

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable

import pytest

from finetune.samples import workers
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


def test_threads_begin_as_before(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)  # put back behind this test
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.01)
    end_without_threads()
    said, slowly = [], threading.Thread._bootstrap

    def later(self):
        time.sleep(0.2)  # it has not begun, but it is there
        slowly(self)

    monkeypatch.setattr(threading.Thread, "_bootstrap", later)
    one = threading.Thread(target=said.append, args=(1,))
    one.start()
    one.join()
    assert said == [1]


def starve_and_begin_a_thread() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    end_without_threads()
    resource.setrlimit(resource.RLIMIT_AS, (2**20, 2**20))
    threading.Thread(target=print).start()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_worker_without_any_memory_ends():
    """Either the thread cannot be made at all, or it ends before its first words."""
    worker = FORK.Process(target=starve_and_begin_a_thread)
    worker.start()
    worker.join(30)
    was = worker.exitcode
    worker.kill()
    assert was not in (0, None)
