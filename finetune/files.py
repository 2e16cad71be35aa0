"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
LEFT_BEHIND = re.compile(r"\.([0-9]+)-[0-9]+\.tmp|\.tmp[0-9A-Za-z]{6}")
"""Names of temporary files: ``in_place_of``'s, with the number of their process, and safetensors'."""


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
            give_usual_mode([temporary])
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error) from error


def give_usual_mode(paths: Iterable[Path]) -> None:
    """Give files the mode that the umask asks for, as ``open`` would: safetensors writes through a temporary file that
    only its owner may read, so that nobody else could load the weights."""
    mode = 0o666 & ~_umask()
    for path in paths:
        with suppress(PermissionError):  # a file system without modes
            path.chmod(mode)


def _umask() -> int:
    try:  # os.umask tells it by setting it, for what other threads write meanwhile too
        words = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split()
        return int(words[words.index("Umask:") + 1], 8)
    except (OSError, ValueError):
        umask = os.umask(0o022)
        os.umask(umask)
        return umask


def write_atomically(path: Path, content: bytes) -> None:
    """Write the whole file or nothing. Raises WriteError."""
    with in_place_of(path) as temporary:
        temporary.write_bytes(content)


def is_refused_write(error: BaseException) -> bool:
    """Did a disk refuse a write: full, over a quota, or mounted for reading? safetensors and torch have words for it in
    errors of their own."""
    if isinstance(error, WriteError):
        return True
    if isinstance(error, OSError):
        return error.errno in REFUSED
    words = (
        "PytorchStreamWriter", "unexpected pos", *(f"(os error {number})" for number in REFUSED)
    )  # fmt: skip
    return any(word in str(error) for word in words)


def refusal_words(error: BaseException) -> str:
    """Which file a disk refused, where the error knows it, and why."""
    if isinstance(error, WriteError) or not isinstance(error, OSError):
        return str(error)
    return f"cannot write {error.filename or 'a file'}: {error.strerror}"


def delete_left_behind(folders: Iterable[Path]) -> None:
    """Delete the temporary files that killed processes left in these folders. Call where nobody else writes there."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            name = LEFT_BEHIND.fullmatch(path.name)
            if name is not None and not (name[1] and _is_alive(int(name[1]))):
                path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return process != os.getpid()


def check_writable(folder: Path) -> None:
    """Write and remove a file in the folder. Folders that were made for it are removed again, so that a program that
    refuses another input leaves nothing behind. Raises ValueError if the folder cannot be written.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        write_atomically(folder / ".trial", b"")
        (folder / ".trial").unlink()
    except OSError as error:
        found = "a file" if folder.is_file() else f"a folder that cannot be written ({error.strerror})"
        raise ValueError(
            f"{folder}: found {found}; expected a folder with room that this user may write to"
        ) from error
    finally:
        _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Innermost first; another process may have put something in one of them meanwhile."""
    for one in folders:
        with suppress(OSError):
            one.rmdir()
