"""Runs without the seconds of their imports: a parent that has loaded every module forks one process for each run.

What is forked is the program from its first line on, in a session of its own, with streams and arguments as a shell
would give them; only modules, and the hash seed, are the parent's. So a parent per hash seed. Its drawing process comes
from the parent too: a *spare* child, forked before the program begins, takes the place of the first that it starts.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TextIO

ROOT = Path(__file__).parents[2]
DRAWING = "drawing"
"""Name of a spare, as the system shows it."""
PROGRAMS = (
    "diagnostics.render", "diagnostics.compare", "diagnostics.diagnose", "diagnostics.inspect", "diagnostics.curve",
    "finetune.export", "finetune.corrective.__main__",
)  # fmt: skip
"""What forked processes run besides ``finetune.py``."""
NOT_WARM = ("__main__", "__mp_main__", "tests.")


class WarmRun(NamedTuple):
    """A forked run: its process, which leads its own session."""

    pid: int
    pidfd: int
    parent: WarmParent

    def wait(self, timeout: float) -> int:
        """The status, negative for a signal. Raises subprocess.TimeoutExpired."""
        waiter = select.poll()
        waiter.register(self.pidfd, select.POLLIN)
        if not waiter.poll(max(0, int(timeout * 1000))):
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        status: int = self.parent.ask({"reap": self.pid})
        os.close(self.pidfd)
        return status


class WarmParent:
    """A process that has loaded ``modules``, under one hash seed."""

    def __init__(self, modules: Path, hash_seed: int, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(modules)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, "PYTHONHASHSEED": str(hash_seed)},
            text=True,
            cwd=ROOT,
        )

    def start(
        self,
        program: Sequence[str],
        log: Path,
        cwd: Path,
        environment: dict[str, str] | None = None,
        **situation: Any,
    ) -> WarmRun:
        """Start ``program``: a script and its arguments, or "-m", a module and its arguments.

        situation   ``unset``: names of variables that it does not have; ``user``: the number of the user that it runs
                    as; ``shm_kib``: the size of its /dev/shm
        """
        asked = {
            "program": list(map(str, program)),
            "log": str(log),
            "cwd": str(cwd),
            "environment": environment or {},
            **situation,
        }
        pid: int = self.ask(asked)
        return WarmRun(pid, os.pidfd_open(pid), self)

    def ask(self, asked: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(300)  # it unloads every module, beside other work


def serve(answers: TextIO) -> dict[str, Any] | None:
    """In the parent: answer until the input ends (None). In a forked child: what it should run."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "reap" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["reap"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                return dict(asked)
        print(answer, file=answers, flush=True)
    return None


def become(asked: dict[str, Any]) -> None:
    """Streams, folder, environment and arguments of the run."""
    os.setsid()
    nothing, log = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    )
    for old, new in ((0, nothing), (1, log), (2, log)):
        os.dup2(new, old)
    sys.stdin, sys.stdout = open(0), open(1, "w", buffering=1)  # noqa: SIM115
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
    os.chdir(asked["cwd"])
    os.environ.update(asked["environment"])
    for name in asked.get("unset", ()):
        os.environ.pop(name, None)
    if "shm_kib" in asked:
        _small_shm(asked["shm_kib"])
    if "user" in asked:
        os.setgroups([])
        os.setgid(asked["user"])
        os.setuid(asked["user"])
    if "full_disk" in os.environ.get("LD_PRELOAD", ""):
        ctypes.CDLL(None).endurance_arm()  # full_disk.c reads the environment


def _small_shm(kib: int) -> None:
    """A /dev/shm of this process's own."""
    if ctypes.CDLL(None).unshare(0x00020000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", "/dev/shm"],
    ):
        subprocess.run(command, check=True)


class Spare:
    """A child that waits to become the drawing process of a run; it ends with the run where it is not wanted."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid:
            theirs.close()
            self.way = ours
            return
        ours.close()
        ctypes.CDLL(None).prctl(15, DRAWING.encode())  # PR_SET_NAME
        asked, descriptors, _, _ = socket.recv_fds(theirs, 2**16, 3)
        if not asked:
            os._exit(0)
        for target, one in enumerate(descriptors):
            os.dup2(one, target)
            os.close(one)
        theirs.close()
        os.setsid()
        sys.stdin, sys.stdout = open(0), open(1, "w", buffering=1)  # noqa: SIM115
        command = json.loads(asked)
        # As urgent as the run: on a machine with other work an idle process takes minutes for a picture.
        os.nice = lambda by: 0
        os.sched_setscheduler = lambda *_: None
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        sys.exit(0)

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen[str] | SpareProcess:
        """As ``subprocess.Popen``, with the spare in the place of the first process."""
        if self.way.fileno() < 0:
            return subprocess.Popen(command, **options)
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        sent = [theirs_in, theirs_out, options["stderr"].fileno()]
        try:
            socket.send_fds(self.way, [json.dumps(command).encode()], sent)
        except OSError:  # it was killed before it was wanted
            return subprocess.Popen(command, **options)
        finally:
            self.way.close()
            os.close(theirs_in)
            os.close(theirs_out)
        return SpareProcess(self.pid, open(ours_in, "w"), open(ours_out))


class SpareProcess:
    """What the run knows of its drawing process: as much of a Popen as it uses."""

    def __init__(self, pid: int, stdin: TextIO, stdout: TextIO) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.02)
        return status


def lend_spare() -> None:
    """Fork the spare, and let the run's drawing client use it."""
    from diagnostics.drawing import worker_client

    spare = Spare()
    worker_client.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=spare.popen, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )


def load(modules: Path) -> None:
    """Every module that a finished run had loaded; what was made by hand has no file to import, and is left out."""
    from finetune import threads

    threads.set_defaults()
    noted = json.loads(modules.read_text()) if modules.is_file() else ["attention_finetune.train"]
    for name in [*noted, *PROGRAMS]:
        if not name.startswith(NOT_WARM):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    codecs.lookup("utf-8-sig")  # found once: who becomes nobody may not read Python's own folder


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some modules print when they are imported
    load(Path(sys.argv[1]))
    asked = serve(answers)
    if asked is None:
        return
    become(asked)
    if asked["program"][0].endswith("finetune.py"):
        lend_spare()
    program = asked["program"]
    note = os.environ.get("ENDURANCE_MODULES")
    try:
        if program[0] == "-m":
            sys.argv = program[1:]
            runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = program
            runpy.run_path(program[0], run_name="__main__")
    finally:
        if note is not None:
            Path(note).write_text(json.dumps(sorted(sys.modules)))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
