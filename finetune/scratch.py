"""Folders for what a program needs only while it runs; a killed one's are deleted by the next."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".attention-finetune-scratch-"
MADE_HERE = re.compile(rf"{re.escape(PREFIX)}[a-z]+-[a-z0-9_]{{8}}")
"""Names that ``scratch_folder`` gives, and nobody else: sources unpacked as attention-finetune-main are no scratch."""


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """An empty folder in TMPDIR, deleted when the block ends.

    It is locked, and a lock dies with its process, however that ends: what is not locked was left by a killed program
    of this user, and is deleted here. A process's number would not tell: containers share folders, but no numbers.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if MADE_HERE.fullmatch(left.name):
            _delete_unless_used(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-"))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another program deleted it at once
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_there(folder, lock):
            break
        os.close(lock)  # another program deleted it before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _delete_unless_used(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, or deleted meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_uid == os.getuid() and _is_there(folder, lock):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # in use, or no locks there
        pass
    finally:
        os.close(lock)


def _is_there(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
