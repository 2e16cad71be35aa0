"""Files as people name them: other separators, percent signs and forms of accents; what lies near a missing one."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from finetune.samples.listing import shortened

MOST_LISTED = 20_000  # names of a folder; in larger ones nothing near is looked for
LONGEST_PATH = 4096  # of a file system
MOST_FOLDERS = 32  # of a path, whose last ones are looked for below ours
LONGEST_NAME = 160  # of a path in a message
_FILE_URL = re.compile(r"file:(?://(?:localhost(?=/))?)?", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def find_file(written: str, folders: tuple[Path, ...], what: str) -> Path:
    """The file that is meant by a path.

    written   relative to any of ``folders``, the first that has it wins; or absolute; or a file:// address
    what      "image" or "video", for errors

    The path as it is comes first, then with its %20 decoded, then with / for each backslash, each of them with accents
    in one letter or two (NFC, NFD). Another case of letters is another file.

    Raises ValueError that says where it was looked for, and what lies near.
    """
    name = f"{what} {shortened(written, LONGEST_NAME)!r}"
    if len(written) > LONGEST_PATH:
        raise ValueError(f"{name}: no such file (no path has {len(written):,} letters)")
    spellings = [*dict.fromkeys(_spellings(written))]
    if _ADDRESS.match(spellings[0]):
        raise ValueError(f"{name}: is an address, expected a file; download it first")
    for spelled in spellings:
        for place in _places(spelled, folders):
            if _is(place, Path.is_file):
                return place
    for place in _places(spellings[-1], folders):
        same = _like(place, _composed)
        if same is not None and _is(same, Path.is_file):
            return same
    raise ValueError(f"{name}: {_missing(spellings, folders)}; see --image_folder")


def _spellings(written: str) -> Iterator[str]:
    address = _FILE_URL.match(written)
    plain = written if address is None else written[address.end() :]
    decoded = unquote(plain)
    forms = [decoded, plain] if address is not None else [plain, decoded]
    for form in (*forms, *(one.replace("\\", "/") for one in forms)):
        yield form
        yield unicodedata.normalize("NFC", form)
        yield unicodedata.normalize("NFD", form)


def _places(path: str, folders: tuple[Path, ...]) -> list[Path]:
    given = Path(path)
    if path.startswith("~"):
        with contextlib.suppress(RuntimeError):  # ~somebody who is not there
            given = given.expanduser()
    return [given] if given.is_absolute() else [*dict.fromkeys(one / given for one in folders)]


def _is(place: Path, asked: Callable[[Path], bool]) -> bool:
    try:
        return asked(place)
    except (OSError, ValueError):  # a name that no file system takes: too long, or with a NUL in it
        return False


def _missing(spellings: list[str], folders: tuple[Path, ...]) -> str:
    places = _places(spellings[0], folders)
    for place in places:
        if _is(place, Path.is_symlink):
            return f"is a link to {shortened(os.readlink(place), LONGEST_NAME)!r}, and there is no such file"
        if _is(place, Path.is_dir):
            return f"is a folder ({shortened(str(place), LONGEST_NAME)}), expected a file"
    looked = " and ".join(shortened(str(place), LONGEST_NAME) for place in places)
    near = _near(spellings[-1], folders)
    hint = "" if near is None else f"; there is {shortened(str(near), LONGEST_NAME)}"
    return f"no such file (looked at {looked}){hint}"


def _near(path: str, folders: tuple[Path, ...]) -> Path | None:
    """A file that may be meant: with capital letters elsewhere, with another suffix, or where the last folders of the
    path lie below ours (``D:/data/images/a.png`` → ``images/a.png``)."""
    for fold in (_folded, _stem):
        for place in _places(path, folders):
            near = _like(place, fold)
            if near is not None and _is(near, Path.is_file):
                return near
    whole = PureWindowsPath(path)  # its separators are those of both worlds
    parts = whole.parts[1:][-MOST_FOLDERS:]
    tails = (folder.joinpath(*parts[start:]) for start in range(len(parts)) for folder in folders)
    return next((tail for tail in tails if _is(tail, Path.is_file)), None)


def _like(place: Path, fold: Callable[[str], str]) -> Path | None:
    """The path whose names are those of ``place`` once both are folded; None where there is none."""
    found = Path(place.anchor) if place.is_absolute() else Path()
    for part in place.parts[1:] if place.is_absolute() else place.parts:
        if _is(found / part, Path.exists):
            found = found / part
            continue
        name = _listing(found, fold).get(fold(part))
        if name is None:
            return None
        found = found / name
    return found


def _listing(folder: Path, fold: Callable[[str], str]) -> dict[str, str]:
    try:
        return _names(str(folder), fold, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@functools.lru_cache(maxsize=64)
def _names(folder: str, fold: Callable[[str], str], stamp: int) -> dict[str, str]:
    """Names in a folder by what they fold to. ``stamp``: when it last changed."""
    found: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            found.setdefault(fold(entry.name), entry.name)
            if len(found) > MOST_LISTED:
                return {}
    return found


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(name).casefold().strip()


def _stem(name: str) -> str:
    return Path(_folded(name)).stem
