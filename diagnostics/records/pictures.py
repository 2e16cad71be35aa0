"""Identifies pictures by content, whatever their file name and format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from diagnostics.records.probes import Probe
from finetune.samples.images import open_image


def picture_mark(path: str | Path) -> str:
    """SHA-256 of a picture's size and RGB pixels as shown (EXIF orientation applied). A copy under another name, or
    saved again as another PNG, has the same one; a crop, a turned picture or a JPEG of it has another.

    Each file is read once, until it changes. Raises ValueError naming the picture where it is missing or broken.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        return _mark(path, 0, 0)  # says what is wrong
    return _mark(path, stat.st_mtime_ns, stat.st_size)


def names_by_picture(probes: Iterable[Probe]) -> dict[str, str]:
    """The picture of each probe → "folder/file" of it (of copies, the first in the alphabet): a name to order pictures
    by, the same on every machine. The file's name alone is ambiguous, the whole path is not portable."""
    names: dict[str, str] = {}
    for probe in probes:
        path = probe.images[0]
        mark, name = picture_mark(path), f"{path.parent.name}/{path.name}"
        names[mark] = min(name, names.get(mark, name))
    return names


@lru_cache(maxsize=16384)
def _mark(path: Path, _modified: int, _bytes: int) -> str:
    picture = open_image(path)
    found = hashlib.sha256(f"{picture.width} {picture.height} ".encode())
    found.update(picture.tobytes())
    return found.hexdigest()
