"""Probes shared out among processes: small models on a CPU, whose operations are too short for several threads."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch
from torch import nn

from diagnostics.probing.before import is_sharded
from finetune.samples.workers import end_without_threads

SMALL_BYTES = 2**26
"""Weights of a model that is small: 16 million parameters in fp32. A choice: larger ones were not measured."""
WORTH_A_PROCESS = 16
"""Probes of a process, at least: it is forked, and reads its pictures anew."""

Asked = TypeVar("Asked")
Found = TypeVar("Found")
_work: Callable[[Any], Any] | None = None  # of a process that was forked


def worthwhile(model: nn.Module, probes: int) -> int:
    """Into how many processes to share so many probes out; 1: none but this one.

    As many as threads compute, so that the machine is as busy as before.
    """
    parameters = list(model.parameters())
    on_cpu = all(one.device.type == "cpu" for one in parameters)
    weight = sum(one.numel() * one.element_size() for one in parameters)
    if not on_cpu or weight > SMALL_BYTES or is_sharded(model) or not hasattr(os, "fork"):
        return 1
    if multiprocessing.current_process().daemon:  # it may have no children
        return 1
    return max(1, min(torch.get_num_threads(), probes // WORTH_A_PROCESS))


def parted(asked: Sequence[Asked], processes: int, *, most: int) -> list[Sequence[Asked]]:
    """In equal parts, at most ``most`` in each, as many for each process: 152 for 2, at most 32 → 2 × 3 of 25 or 26."""
    count = processes * max(1, math.ceil(len(asked) / (processes * most)))
    ends = [len(asked) * at // count for at in range(count + 1)]
    return [asked[start:end] for start, end in itertools.pairwise(ends) if end > start]


def in_processes(
    work: Callable[[Sequence[Asked]], list[Found]],
    parts: Sequence[Sequence[Asked]],
    *,
    processes: int,
) -> Iterator[list[Found]]:
    """What ``work`` makes of each part, in their order, computed by forked processes with a thread each.

    They see this process' memory as it is now; what ``work`` changes there is lost, only what it returns comes back.

    Raises what ``work`` raises, and ChildProcessError if a process was killed.
    """
    threads = torch.get_num_threads()
    fork = multiprocessing.get_context("fork")
    # One thread, also here: a forked process that waits for threads of its parent waits for ever.
    torch.set_num_threads(1)
    pool = ProcessPoolExecutor(processes, fork, initializer=_begin, initargs=(work, os.getpid()))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            results = pool.map(_do, parts)  # forks here
        yield from results
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {processes} processes that read probes was killed, most likely for lack of memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    end_without_threads()
    os.setsid()  # a signal to the training's process group, and Ctrl-C, are its parent's to answer
    for number in (
        signal.SIGTERM,
        signal.SIGUSR1,
    ):  # whose handlers are the training's; the pool ends it by SIGTERM
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Without this, the processes of a parent that was killed would wait for its next request for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(part: Sequence[Any]) -> list[Any]:
    assert _work is not None
    return _work(part)
