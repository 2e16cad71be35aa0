"""``OUTPUT_DIR/libraries.log``: what DeepSpeed, transformers, the hub's client and others say beside the run itself.

Their warnings and notes go there from the moment that the output folder is ours; their errors stay on the terminal too.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from finetune.distributed import is_main

LOG_FILE = "libraries.log"
LIBRARIES = (
    "DeepSpeed", "accelerate", "bitsandbytes", "datasets", "filelock", "httpx", "httpx2", "huggingface_hub", "peft",
    "py.warnings", "torch", "transformers",
)  # fmt: skip
"""Names of their loggers; ``py.warnings`` gets what Python warns of."""


class _Diverted(logging.Filter):
    """On a library's own logger: what is no error goes to the log alone, whatever handlers it gets later.

    DeepSpeed writes to stdout by a handler that importing it adds, in the middle of a run.
    """

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self.handler = handler

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        self.handler.handle(record)
        return False


class _File(logging.FileHandler):
    """A disk that refuses the log has one line in the place of tracebacks; the run itself says more where it writes."""

    has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (its name in logging)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_failed:
            self.has_failed = True
            print(f"{self.baseFilename}: {error.strerror}; what libraries say is lost", file=sys.__stderr__)

    def close(self) -> None:
        with suppress(OSError):  # what is still to be written
            super().close()


class _Log:
    """The open log of this process, and how loggers were before."""

    def __init__(self, path: Path) -> None:
        self.path = path if is_main() else Path(os.devnull)
        self.handler = _File(self.path, mode="a", encoding="utf-8", delay=True)
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        self.diverted = _Diverted(self.handler)
        self.levels: dict[logging.Handler, int] = {}
        self.propagated = {name: logging.getLogger(name).propagate for name in LIBRARIES}

    def attach(self) -> None:
        """Also of loggers and handlers that were made since, by importing their library."""
        for name in LIBRARIES:
            logger = logging.getLogger(name)
            logger.propagate = False
            logger.addFilter(self.diverted)  # once, however often it is added
            for handler in logger.handlers:
                if handler is not self.handler and handler not in self.levels:
                    self.levels[handler] = handler.level
                    handler.setLevel(logging.ERROR)
            if self.handler not in logger.handlers:
                logger.addHandler(self.handler)

    def detach(self) -> None:
        for name in LIBRARIES:
            logger = logging.getLogger(name)
            logger.removeHandler(self.handler)
            logger.removeFilter(self.diverted)
            logger.propagate = self.propagated[name]
        for handler, level in self.levels.items():
            handler.setLevel(level)
        self.handler.close()


_log: _Log | None = None


def begin(folder: Path) -> None:
    """From here on libraries write to the log of this folder. The file is made with its first line."""
    global _log
    end()
    _log = _Log(folder / LOG_FILE)
    _log.attach()
    logging.captureWarnings(True)


def end() -> Path | None:
    """Loggers are as they were before; returns the log, None if there is none."""
    global _log
    ended, _log = _log, None
    if ended is None:
        return None
    logging.captureWarnings(False)
    ended.detach()
    return ended.path if ended.path.is_file() and is_main() else None


def written() -> Path | None:
    """The log, where libraries have written anything."""
    return _log.path if _log is not None and is_main() and _log.path.is_file() else None


@contextmanager
def printed() -> Iterator[None]:
    """What libraries print in this block goes to the log, of C++ too (Gloo, the compiler of an operator).

    Around their set-up alone: a line of ours in the block would be lost to the terminal.
    """
    if _log is None:
        yield
        return
    _log.attach()
    _flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    with open(_log.path, "a", encoding="utf-8", buffering=1) as file:
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            _flush()
            for descriptor, was in zip((1, 2), saved, strict=True):
                os.dup2(was, descriptor)
                os.close(was)
            _log.attach()
    if is_main() and not _log.path.stat().st_size:
        _log.path.unlink()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
