"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class WriteError(OSError):
    """A file could not be written; ``errno``, ``strerror`` and ``filename`` are as for any OSError."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause), str(path))

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}"


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces ``path`` when the block ends. Missing parent folders are made.

    Raises WriteError if that fails: nothing half-written is left, and an older file stays.
    """
    # Not named after the file, whose name may already have the greatest length.
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write the whole file or nothing. Raises WriteError."""
    with in_place_of(path) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: Path) -> None:
    """Write and remove a file in the folder. Folders that were made for it are removed again, so that a program that
    refuses another input leaves nothing behind. Raises ValueError if the folder cannot be written.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        write_atomically(folder / ".trial", b"")
        (folder / ".trial").unlink()
    except OSError as error:
        raise ValueError(
            f"{folder}: found a folder that cannot be written ({error.strerror}); expected one with room that this "
            "user may write to"
        ) from error
    finally:
        _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Innermost first; another process may have put something in one of them meanwhile."""
    for one in folders:
        with suppress(OSError):
            one.rmdir()
