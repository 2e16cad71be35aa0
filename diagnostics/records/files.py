"""Files that are there whole or not at all, and folders that are tried before hours of work go into them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """A place to write to; once the block is done it takes the place of ``path``. Folders above it are made.

    Raises OSError naming ``path`` where that fails; nothing half-written is left then, and an older file stays.
    """
    # Not after the file's own name: that may be as long as a name can be.
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or nothing. Raises OSError naming the file."""
    with in_place_of(path) as temporary:
        temporary.write_bytes(content)


def check_writable(folder: Path) -> None:
    """Make the folder, and write and remove a file in it. Raises ValueError where that cannot be done."""
    try:
        write_atomically(folder / ".trial", b"")
        (folder / ".trial").unlink()
    except OSError as error:
        raise ValueError(
            f"{folder}: found a folder that cannot be written ({_reason(error)}); expected one with room that this "
            "user may write to"
        ) from error


def _reason(error: OSError) -> str:
    cause = error.__cause__
    return str(cause.strerror) if isinstance(cause, OSError) and cause.strerror else str(error)
