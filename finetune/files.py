"""Files and folders that are written whole or not at all, and what is said where they cannot be."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (*FULL, errno.EFBIG, errno.EROFS)
OF_TORCH = ("PytorchStreamWriter", "unexpected pos", "iostream error")
"""What ``torch.save`` says where a disk takes a part, or nothing: it knows neither the file nor why."""
NOT_WHOLE = "the disk did not take the whole of a file (full, or over a quota)"
OWN = re.compile(r"\.([0-9]+)-[0-9]+\.tmp(\.\w+)?")
"""Names of temporary files and folders, with the number of their process."""
SAFETENSORS_OWN = re.compile(r"\.tmp[0-9A-Za-z]{6}")

_numbers = itertools.count()


class WriteError(OSError):
    """A file could not be written; ``errno``, ``strerror`` and ``filename`` are as for any OSError."""

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause), str(path))

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}"

    def __reduce__(self) -> tuple[type, tuple[Path, OSError]]:
        return WriteError, (Path(self.filename), OSError(self.errno, self.strerror))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that only writes ``path``: whatever OSError it raises becomes a WriteError, which names it."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error


@contextmanager
def in_place_of(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """A temporary path to write to; it replaces ``path`` when the block ends. Missing parent folders are made.

    suffix   the end of its name, for readers that go by it

    Raises WriteError if that fails: nothing half-written is left, and an older file stays.
    """
    temporary = _temporary(path, suffix)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            give_usual_mode([temporary])
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_in_place_of(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it replaces ``folder`` when the block ends. Missing parent folders are made, and what
    killed processes left beside it is deleted.

    Raises WriteError where a disk refuses it: nothing half-written is left, and an older folder stays.
    """
    temporary = _temporary(folder)
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            delete_left_behind([folder.parent], of_safetensors=False)
            temporary.mkdir()
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        with writing(folder):
            temporary.rename(folder)
    except Exception as error:
        if isinstance(error, WriteError) or not is_refused_write(error):
            raise
        cause = error if isinstance(error, OSError) else OSError(0, str(error))
        raise WriteError(folder, cause) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def files_into(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; when the block ends its files move into ``folder``, over those of their names. What else
    is there stays.

    Raises what the block raises, and OSError where they cannot move: nothing half-written is left.
    """
    temporary = _temporary(folder / "a file")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(one for one in temporary.rglob("*") if not one.is_dir()):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path, suffix: str = "") -> Path:
    """Not named after what it replaces, whose name may already have the greatest length."""
    return path.with_name(f".{os.getpid()}-{next(_numbers)}.tmp{suffix}")


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
    of_rust = (f"(os error {number})" for number in REFUSED)
    of_torch = (f"strerror: {os.strerror(number)}" for number in REFUSED)
    return any(word in str(error) for word in (*OF_TORCH, *of_rust, *of_torch))


def refusal_words(error: BaseException) -> str:
    """Which file a disk refused, where the error knows it, and why."""
    if any(word in str(error) for word in OF_TORCH):
        return NOT_WHOLE
    if isinstance(error, WriteError) or not isinstance(error, OSError):
        return str(error)
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"cannot write {name or 'a file'}: {error.strerror}"


def fault_words(error: Exception) -> str:
    """What a program says of an error that ends it: of a disk, which file and why, and what to do where it is full."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    words = refusal_words(error) if is_refused_write(error) else f"{error.filename}: {error.strerror}"
    if error.errno in FULL:
        return f"{words}; free some space, or give another folder"
    return words if error.filename is not None or is_refused_write(error) else str(error)


def delete_left_behind(folders: Iterable[Path], *, of_safetensors: bool = True) -> None:
    """Delete the temporary files and folders that killed processes left in these folders.

    of_safetensors   its names do not tell whose they are: only where nobody else writes
    """
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            name = OWN.fullmatch(path.name)
            is_left = not _is_alive(int(name[1])) if name is not None else False
            if is_left and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif is_left or (of_safetensors and SAFETENSORS_OWN.fullmatch(path.name)):
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
    trial = _temporary(folder / "trial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            trial.write_bytes(b"\0")  # an empty file fits onto a full disk
        finally:
            trial.unlink(missing_ok=True)
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
