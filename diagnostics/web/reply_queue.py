"""A queue of replies for one model: each waits for its turn and streams to its listener."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

import torch

from diagnostics.web.texts import RefusedError
from diagnostics.web.trace import Trace
from finetune.samples.conversation import Turn

T = TypeVar("T")

POLL_SECONDS = 0.1
CLOSING_SECONDS = 5.0


class Partial(NamedTuple):
    """A reply so far.

    text      all text so far
    done      whether this is the last partial
    trace     its attention, with the last partial; None in mode "text", and for a reply without tokens
    waiting   number of replies ahead in the queue; the text is "" until its turn
    cut       with the last partial: whether the limit of tokens or ``stop`` ended the reply, not its end token
    """

    text: str
    done: bool
    trace: Trace | None
    waiting: int = 0
    cut: bool = False


@dataclass(eq=False)
class Job:
    """One reply to generate: ``stop`` ends it; ``left`` is set once nobody listens."""

    turns: tuple[Turn, ...]
    stop: threading.Event
    max_new_tokens: int
    left: threading.Event = field(default_factory=threading.Event)
    events: SimpleQueue[Partial | BaseException] = field(default_factory=SimpleQueue)

    @property
    def is_over(self) -> bool:
        return self.stop.is_set() or self.left.is_set()

    def emit(self, event: Partial | BaseException) -> None:
        """Pass an event to the listener without waiting for it."""
        self.events.put(event)


class ReplyQueue:
    """Runs jobs in one thread, first come, first served.

    The thread never waits for a listener, so a disconnected one blocks nobody. When the process exits, the thread ends
    within one token: a daemon thread killed inside torch would abort the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._work: SimpleQueue[tuple[Job, Callable[[Job], None]]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def submit(self, job: Job, work: Callable[[Job], None]) -> None:
        with self._lock:
            self._jobs.append(job)
            self._work.put((job, work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="reply", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def close(self) -> None:
        """End the running job and the thread; waiting jobs are not run."""
        self._closed.set()
        with self._lock:
            for job in self._jobs:
                job.left.set()
                job.emit(Partial("", True, None))
        if self._thread is not None:
            empty = Job((), threading.Event(), 0)
            self._work.put((empty, lambda _: None))  # wakes the thread
            self._thread.join(CLOSING_SECONDS)
        atexit.unregister(self.close)

    def _serve(self) -> None:
        while not self._closed.is_set():
            self._run(*self._work.get())  # no variable may keep a job alive while the thread waits

    def between(self, work: Callable[[], T]) -> T:
        """What other work gives, done in the thread of the replies once those that wait are answered: while a model is
        loaded, transformers changes the default precision of the whole process.

        Raises what the work raises, and RefusedError when the process exits.
        """
        found: list[T] = []
        job = Job((), threading.Event(), 0)

        def run(job: Job) -> None:
            found.append(work())
            job.emit(Partial("", True, None))

        self.submit(job, run)
        for _ in self.stream(job):
            pass
        if not found:
            raise RefusedError("not_answered")
        return found[0]

    def leave(self, job: Job) -> None:
        """Remove a job from the queue, if it is in it."""
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)

    def ahead(self, job: Job) -> int:
        """Number of jobs before this one, including the running one."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    def stream(self, job: Job) -> Iterator[Partial]:
        """A job's partials until it is done; while it waits, its place in the queue whenever it changes."""
        waiting = 0
        while True:
            try:
                event = job.events.get(timeout=POLL_SECONDS)
            except Empty:
                ahead = self.ahead(job)
                if ahead and job.stop.is_set():
                    yield Partial("", True, None)
                    return
                if ahead not in (0, waiting):
                    waiting = ahead
                    yield Partial("", False, None, waiting)
                continue
            if isinstance(event, BaseException):
                raise event
            yield event
            if event.done:
                return

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        try:
            if job.is_over:
                job.emit(Partial("", True, None))
            else:
                work(job)
        except BaseException as error:  # raised in the listener; the next job still runs
            job.emit(_for_listener(error))
        finally:
            self.leave(job)


def _for_listener(error: BaseException) -> BaseException:
    """Out of memory as a message for the visitor; any other error as it is."""
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return error
    refused = RefusedError("no_memory")
    refused.__cause__ = error
    return refused
