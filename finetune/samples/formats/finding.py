"""Resolves file paths as users write them (backslashes, percent escapes, composed accents); suggests one for a typo."""

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

MOST_LISTED = 20_000  # files in a folder; larger folders are not searched for similar names
LONGEST_PATH = 4096  # characters that file systems allow
MOST_FOLDERS = 32  # trailing folders of a path that are searched for below the known folders
LONGEST_NAME = 160  # characters of a path in a message
_FILE_URL = re.compile(r"file:(?://(?:localhost(?=/))?)?", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def find_file(written: str, folders: tuple[Path, ...], what: str) -> Path:
    """The file that a path refers to.

    written   relative to any of ``folders`` (the first that has it wins), absolute, or a file:// URL
    what      "image" or "video", for errors

    Tries the path as written, then with %20 decoded, then with / for each backslash, each of these with composed and
    decomposed accents (NFC, NFD). Case matters.

    Raises ValueError with the places searched and a similar name.
    """
    name = f"{what} {shortened(written, LONGEST_NAME)!r}"
    if len(written) > LONGEST_PATH:
        raise ValueError(f"{name}: no such file (no path has {len(written):,} characters)")
    spellings = [*dict.fromkeys(_spellings(written))]
    if _ADDRESS.match(spellings[0]):
        raise ValueError(f"{name}: is a URL, expected a file; download it first")
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
        with contextlib.suppress(RuntimeError):  # ~user for an unknown user
            given = given.expanduser()
    return [given] if given.is_absolute() else [*dict.fromkeys(one / given for one in folders)]


def _is(place: Path, asked: Callable[[Path], bool]) -> bool:
    try:
        return asked(place)
    except (OSError, ValueError):  # an invalid name: too long, or with a NUL in it
        return False


def _missing(spellings: list[str], folders: tuple[Path, ...]) -> str:
    places = _places(spellings[0], folders)
    for place in places:
        if _is(place, Path.is_symlink):
            return f"is a link to {shortened(os.readlink(place), LONGEST_NAME)!r}, which does not exist"
        if _is(place, Path.is_dir):
            return f"is a folder ({shortened(str(place), LONGEST_NAME)}), expected a file"
    looked = " and ".join(shortened(str(place), LONGEST_NAME) for place in places)
    near = _near(spellings[-1], folders)
    hint = "" if near is None else f"; there is {shortened(str(near), LONGEST_NAME)}"
    return f"no such file (looked at {looked}){hint}"


def _near(path: str, folders: tuple[Path, ...]) -> Path | None:
    """A file that may be meant: with another case or suffix, or with the path's last folders below one of ``folders``
    (``D:/data/images/a.png`` → ``images/a.png``)."""
    for fold in (_folded, _stem):
        for place in _places(path, folders):
            near = _like(place, fold)
            if near is not None and _is(near, Path.is_file):
                return near
    whole = PureWindowsPath(path)  # splits at / and at backslashes
    parts = whole.parts[1:][-MOST_FOLDERS:]
    tails = (folder.joinpath(*parts[start:]) for start in range(len(parts)) for folder in folders)
    return next((tail for tail in tails if _is(tail, Path.is_file)), None)


def _like(place: Path, fold: Callable[[str], str]) -> Path | None:
    """The path that equals ``place`` once both are folded; None if there is none."""
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
    """Names in a folder by their folded form. ``stamp``: when the folder last changed."""
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
