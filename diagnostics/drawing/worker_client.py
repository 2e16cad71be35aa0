"""The client of the drawing process: training never waits for it."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from diagnostics.drawing.board import SHOWN_PER_GROUP
from diagnostics.drawing.sink import TaggedPicture

STRIPS = "strips"  # stands for a step in requests and replies

logger = logging.getLogger(__name__)

LAST_WORDS_BYTES = 2**14

_ROOT = Path(__file__).resolve().parents[2]

Message = dict[str, Any]  # one line of JSON from the drawing process: progress, or a step that is done


class Rendered(NamedTuple):
    """One step's pictures for TensorBoard, and messages about what could not be drawn."""

    step: int
    pictures: tuple[TaggedPicture, ...]
    problems: tuple[str, ...]


class Renderer:
    """The drawing process, as training uses it.

    >>> renderer = Renderer(output_dir / "attention")
    >>> renderer.submit(50)            # returns at once
    >>> for step in renderer.poll():   # what has been drawn since the last call
    ...     board.write_pictures(step.pictures, step.step)
    >>> renderer.close(timeout=120)    # the rest, with a progress bar

    No method raises when the process fails. If it dies, another draws what it left, once: the system may have killed it
    to free memory. After that the failure is logged once as a warning, ``problem`` describes it, and later requests do
    nothing.
    """

    def __init__(self, attention_dir: str | Path, *, shown_per_group: int = SHOWN_PER_GROUP) -> None:
        self.attention_dir = Path(attention_dir)
        self.shown_per_group = shown_per_group
        self.problem: str | None = None
        self.undrawn: list[str] = []  # messages about what could not be drawn
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._waiting: list[int | str] = []
        self._has_warned = self._has_restarted = self._is_closing = False

    def start(self) -> None:
        """Start the process; ``submit`` does so when it is not running."""
        command = [
            sys.executable,
            "-m",
            "diagnostics.render",
            "--serve",
            "--attention_dir",
            str(self.attention_dir.resolve()),
            "--shown_per_group",
            str(self.shown_per_group),
        ]
        paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        # One thread, and no accelerator: this process must not compete for what the training uses.
        quiet = {
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": paths,
            "PYTHONUNBUFFERED": "1",
        }
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - without a name, so that no kill leaves it behind
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **quiet},
                start_new_session=True,  # Ctrl-C ends the training; this process ends when its input does
            )
        except OSError as error:
            self._fail(f"could not be started: {error}")
            return
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def submit(self, step: int) -> None:
        """Request the pictures of a step whose records are complete. Returns at once."""
        self._ask(step)

    def submit_strips(self) -> None:
        """Request the strips of each group's first probes over the steps recorded so far, as the last request. Returns
        at once; ``python -m diagnostics.render --strips`` draws all of them."""
        self._ask(STRIPS)

    def _ask(self, awaited: int | str) -> None:
        if self._process is None and self.problem is None:
            self.start()
        if self._process is None or self._process.stdin is None or self.problem is not None:
            return
        request: Message = {STRIPS: True} if awaited == STRIPS else {"step": awaited}
        self._waiting.append(awaited)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._died()

    def _died(self) -> None:
        """Another process takes over what is still awaited; a second death is a failure."""
        words, waiting = self._last_words(), self._waiting
        if self._has_restarted:
            self._fail(words)
            return
        self._has_restarted, self._waiting = True, []
        self._end()
        self.start()
        for awaited in waiting:
            self._ask(awaited)
        if self._is_closing:
            self._close_input()

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):  # a dead process has not read all
                self._process.stdin.close()

    def poll(self) -> list[Rendered]:
        """What has been drawn since the last call. Returns at once."""
        rendered = [done for message in self._drain() if (done := self._received(message)) is not None]
        if self._process is not None and self._process.poll() is not None and self._waiting:
            # Its last lines may still be on their way; the processes that drew for it hold its end of the pipe.
            self._kill_group()
            self._listener.join(timeout=10)
            rendered += [done for message in self._drain() if (done := self._received(message)) is not None]
            if self._waiting:
                self._died()
        return rendered

    def close(self, timeout: float = 300.0) -> list[Rendered]:
        """Wait for the requested pictures, at most ``timeout`` seconds, and end the process."""
        if self._process is None:
            return []
        self._is_closing = True
        self._close_input()
        rendered = self._wait(time.monotonic() + timeout)
        if self._process is not None and self._process.poll() is None and self._waiting:
            self._fail(f"did not finish within {timeout:.0f} s; steps {self._waiting} lack pictures")
        self._end()
        return rendered

    def _wait(self, deadline: float) -> list[Rendered]:
        rendered: list[Rendered] = []
        with tqdm(desc="drawing attention", unit="picture", disable=not self._waiting, leave=False) as bar:
            while self._waiting and self.problem is None and time.monotonic() < deadline:
                for message in self._drain():
                    if "drawn" in message:
                        bar.total, bar.n = message["of"], message["drawn"]
                        bar.refresh()
                    done = self._received(message)
                    rendered += [] if done is None else [done]
                rendered += self.poll()
                time.sleep(0.05)
        return rendered

    def _end(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._kill_group()
            self._process.wait()
        # Workers of a process that was killed wait for it: they hold each other's pipes open.
        self._kill_group()
        self._process = None
        self._errors.close()

    def _kill_group(self) -> None:
        """The process with its workers: it leads its own session."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _listen(self, lines: IO[str]) -> None:
        """Always reads, so that the process never waits for the training either."""
        for line in lines:
            if line.endswith("\n"):  # a killed process leaves half a line
                self._messages.put(json.loads(line))

    def _drain(self) -> Iterator[Message]:
        while not self._messages.empty():
            yield self._messages.get()

    def _received(self, message: Message) -> Rendered | None:
        """A finished step; None for a report of progress, and for strips, which stay in the archive."""
        if "done" not in message:
            return None
        step, problems = message["done"], tuple(message["problems"])
        self.undrawn += problems
        if step in self._waiting:
            self._waiting.remove(step)
        if problems and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: %d pictures could not be drawn, first: %s",
                step if step == STRIPS else f"step {step}",
                len(problems),
                problems[0],
            )
        if step == STRIPS:
            return None
        pictures = tuple(
            TaggedPicture(entry["tag"], base64.b64decode(entry["png"]), tuple(entry["size"]))
            for entry in message["pictures"]
        )
        return Rendered(step, pictures, problems)

    def _last_words(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        # Not read(): it would move the place at which the process still writes.
        end = os.pread(self._errors.fileno(), LAST_WORDS_BYTES, max(0, size - LAST_WORDS_BYTES))
        words = end.decode(errors="replace").strip().splitlines()
        return f"ended early: {words[-1]}" if words else "ended early, without a message"

    def _fail(self, problem: str) -> None:
        if self.problem is None:
            self.problem = f"the drawing of attention pictures {problem}"
            self._waiting.clear()
            logger.warning(
                "%s. Training continues; draw later with: python -m diagnostics.render --attention_dir %s",
                self.problem,
                shlex.quote(str(self.attention_dir)),
            )
