"""Work that strangers' files decide, tried in a process of its own: it may never end, or ask for all memory.

A chat template is a program. It cannot be stopped from within the process that runs it: ``10 ** 10**9`` hears no signal
before it is done, and ``'x' * 10**10`` takes its memory in one step.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

SECONDS = 3
"""Of computing. A question and an answer take a thousandth of it."""
GIB = 1
"""Of memory beyond what this process has."""
PATIENCE_SECONDS = 30
"""Of waiting. A process on a crowded machine, or one that waits for a lock, has then not shown anything."""

_ENDED, _OUT_OF_MEMORY = 0, 1


def excess(work: Callable[[], object]) -> str | None:
    """What some work takes too much of, in words; None where it ends within the limits, however it ends.

    It runs in a forked process, so nothing of it is left, and what it raises is lost: do it again here.
    Where it cannot be shown that it ends nor that it does not, None; so in any thread but the first, where libraries
    crash the forked process (seen beneath the web demo's server).
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    with warnings.catch_warnings():
        # Of forking beside threads, which the work does not need.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(_within_limits(work))
    try:
        status, seconds = _awaited(child)
    except ChildProcessError:  # somebody else was told: whoever started this process had it ignore SIGCHLD
        return None
    if os.WIFSIGNALED(status) and (os.WTERMSIG(status) == signal.SIGXCPU or seconds >= SECONDS):
        return f"computes for more than {SECONDS} seconds"
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _OUT_OF_MEMORY:
        return f"asks for more than {GIB} GiB of memory"
    return None


def _within_limits(work: Callable[[], object]) -> int:
    """In the forked process: the exit status."""
    try:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silent, stream)
        for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + GIB * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        work()
    except MemoryError:
        return _OUT_OF_MEMORY
    except BaseException:
        return _ENDED
    return _ENDED


def _awaited(child: int) -> tuple[int, float]:
    """Wait status of a process and the seconds that it computed; one that takes no end is killed."""
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.0005
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            return status, used.ru_utime + used.ru_stime
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            return status, used.ru_utime + used.ru_stime
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
