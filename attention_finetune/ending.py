"""How a run ends: one message and an exit status."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from transformers.utils import logging

from finetune import folder_lock
from finetune.distributed import end_with_launcher, is_main
from finetune.files import is_refused_write, refusal_words
from finetune.flags.arguments import TrainingArguments
from finetune.printable import printable
from finetune.training import library_log, stopping, trainer

FAILED = 1


class RefusedError(Exception):
    """Flags, data, probes or the output folder are invalid; nothing was trained."""


class IncompleteError(Exception):
    """The weights are saved, but another promised output is missing."""


class InterruptedRun(Exception):  # noqa: N818  (no error: it was asked for)
    """Ctrl-C during training; the message says how to resume."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a ValueError before training into a RefusedError: the input is at fault, not the program."""
    try:
        yield
    except ValueError as error:
        raise RefusedError(str(error)) from error


@contextmanager
def interruptible(args: TrainingArguments) -> Iterator[None]:
    """Ctrl-C while a run writes to its folder becomes one line that says how to resume."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRun(stopping.interrupted(args)) from error


def exit_status(stations: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run the stations; returns the exit status.

    Invalid input and deliberate stops of training print one message; a stop signal and Ctrl-C print one line that says
    how to resume, and a full disk or a folder that is gone one that says what to do. Any other error keeps its
    traceback.
    """
    quieten()
    end_with_launcher()
    status, is_explained = FAILED, False
    try:
        with threads_told():
            stations(argv)
        status, is_explained = 0, True
    except (RefusedError, trainer.TrainingError) as error:
        status = fail(error)
    except IncompleteError as missing:
        status, is_explained = ended(str(missing), FAILED), True
    except stopping.Stopped as stopped:
        status, is_explained = ended(str(stopped), stopped.status), True
    except InterruptedRun as interrupted:
        status, is_explained = ended(str(interrupted), stopping.INTERRUPTED), True
    except KeyboardInterrupt:
        status, is_explained = ended("interrupted; nothing had been trained", stopping.INTERRUPTED), True
    except Exception as error:
        lost = folder_lock.lost() if isinstance(error, OSError) else None
        if lost is None and not is_refused_write(error):
            raise
        words = folder_lock.lost_words(lost) if lost is not None else _refused_words(error)
        status, is_explained = fail(RefusedError(words)), True
    finally:
        log = library_log.end()
        if log is not None and not is_explained:
            print(f"what libraries said is in {log}", file=sys.stderr)
        folder_lock.release_all()
    return status


def _refused_words(error: Exception) -> str:
    """Where a disk refuses what is no checkpoint: pictures, curves, the run's own files."""
    return (
        f"{refusal_words(error)}. What was saved before is unchanged: free some space and run the same command again "
        "(without --overwrite_output_dir True, which deletes every checkpoint), or give another --output_dir"
    )


def quieten() -> None:
    """Silence deprecation warnings of libraries, and the logs of every process but the first."""
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|torch|peft|accelerate|deepspeed)\."
    )
    if not is_main():
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@contextmanager
def threads_told() -> Iterator[None]:
    """A thread that cannot write has a line in the place of a traceback: TensorBoard writes in one, and raises what
    ended it once more where the run writes next."""
    others = threading.excepthook

    def told(ended: threading.ExceptHookArgs) -> None:
        error = ended.exc_value
        if isinstance(error, OSError) and (is_refused_write(error) or folder_lock.lost() is not None):
            print(printable(f"finetune.py: {refusal_words(error)}"), file=sys.stderr)
        else:
            others(ended)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = others


def fail(error: Exception) -> int:
    """Print the error, on the first process or on the only one that has it; returns the exit status."""
    if is_main() or isinstance(error, trainer.BatchError):
        print(printable(f"finetune.py: {error}"), file=sys.stderr)
    else:
        time.sleep(5)  # the launcher ends all processes once one ends: let the first print its message
    return FAILED


def ended(line: str, status: int) -> int:
    """Print why the run ended early, on the first process only; returns the exit status."""
    if is_main():
        print(f"\nfinetune.py: {line}", file=sys.stderr, flush=True)
    return status
