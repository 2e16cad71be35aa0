"""One program at a time writes into an output folder: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from finetune.files import check_writable, writing

LOCK_FILE = "run.lock"
HELD = (errno.EAGAIN, errno.EACCES)


class _Lock(NamedTuple):
    """A lock of this process: its open file, and the folders that were made for it, the innermost first."""

    descriptor: int
    made: tuple[Path, ...]


_held: dict[Path, _Lock] = {}
"""Folder → its lock."""


def take(folder: Path) -> tuple[str, ...]:
    """Lock ``folder`` for this process until it ends, however it ends; the folder is made where it is missing.

    The lock is the process's own: a loader's workers, which are forked, do not keep it alive. Returns a line for
    people where the file system has no locks, so that a second run would not be noticed.

    Raises ValueError where another process holds it, on this machine or on another that shares the folder, and
    OSError where the folder cannot be written to.
    """
    folder = folder.resolve()
    if folder in _held:
        return ()
    made = _make(folder)
    while True:
        try:
            descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            _remove(made)
            raise
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if error.errno in HELD:
                raise ValueError(_refusal(folder, holder)) from error
            (folder / LOCK_FILE).unlink(missing_ok=True)
            return (
                f"--output_dir {folder}: its file system has no locks ({error.strerror}), so a second run into it "
                "would not be noticed",
            )
        if _is_there(folder / LOCK_FILE, descriptor):
            break
        os.close(descriptor)  # its last holder deleted the file between our opening and locking it
    _held[folder] = _Lock(descriptor, made)
    try:
        with writing(folder / LOCK_FILE):
            os.ftruncate(descriptor, 0)
            us = {"process": os.getpid(), "machine": socket.gethostname()}
            os.pwrite(descriptor, json.dumps(us).encode(), 0)
    except OSError:  # a full disk
        release(folder)
        raise
    return ()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder while the block runs, unless this process has locked it before.

    Raises ValueError where it cannot be written to, or another process writes there.
    """
    check_writable(folder)
    is_mine = folder.resolve() not in _held
    for line in take(folder):
        print(line, flush=True)
    try:
        yield
    finally:
        if is_mine:
            release(folder)


def release(folder: Path) -> None:
    """Unlock a folder, and delete it where locking made it and nothing was written into it."""
    folder = folder.resolve()
    lock = _held.pop(folder, None)
    if lock is None:
        return
    with contextlib.suppress(OSError):  # it holds files, was deleted, or can no longer be written to
        if _is_there(folder / LOCK_FILE, lock.descriptor):
            (folder / LOCK_FILE).unlink()
    _remove(lock.made)
    os.close(lock.descriptor)


def release_all() -> None:
    """Unlock every folder that this process holds."""
    for folder in [*_held]:
        release(folder)


def lost() -> Path | None:
    """A folder that this process holds and that is gone, with its lock: deleted, moved or emptied by somebody."""
    gone = (folder for folder, lock in _held.items() if not _is_there(folder / LOCK_FILE, lock.descriptor))
    return next(gone, None)


def lost_words(folder: Path) -> str:
    return (
        f"{folder}: was deleted, moved or emptied during the run; nothing more is saved there. Put it back and run "
        "the same command again to resume (without --overwrite_output_dir True, which deletes every checkpoint), or "
        "train anew"
    )


def _make(folder: Path) -> tuple[Path, ...]:
    """Make a folder; returns those that were missing, the innermost first."""
    missing = tuple(one for one in (folder, *folder.parents) if not one.exists())
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove(made: tuple[Path, ...]) -> None:
    with contextlib.suppress(OSError):  # something was written into it, or it is gone
        for one in made:
            one.rmdir()


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _refusal(folder: Path, written: bytes) -> str:
    try:
        holder = json.loads(written)
        who = f"process {holder['process']} on {holder['machine']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return (
        f"--output_dir {folder}: another run is writing there ({who}); wait for it, stop it, or choose another "
        "folder"
    )
