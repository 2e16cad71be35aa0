"""Whether the training under way is on the probes' own pictures, and the words for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from PIL import Image

from diagnostics.records.probes import Probe
from finetune.samples import same_pictures, source
from finetune.samples.conversation import Conversation, ImageRef, Turn

MOST_GROUPS_NAMED = 12
UNKNOWN = (
    "warning: the data of this training is not looked through for the probes' pictures, and what was trained on shows "
    "no correction; give the monitor data=, the files of the data or the paths of its pictures"
)


class LookedThrough(Enum):
    """What is given in place of data that the caller has looked through."""

    ITSELF = "looked through"


LOOKED_THROUGH = LookedThrough.ITSELF
TrainingData = str | Path | Iterable[str | Path]
"""Data files, as ``finetune.py`` reads them, or pictures, or both."""


def paths_of(data: TrainingData) -> tuple[Path, ...]:
    """The files that are given, one or several. Raises ValueError that names the first which is none, or not there,
    and where there are none at all."""
    given: Any = (data,) if isinstance(data, str | Path) else data
    every = given if isinstance(given, Iterable) and not isinstance(given, bytes) else [given]
    paths = list[Path]()
    for one in every:  # not drawn to its end: a data set would open all its pictures
        if not isinstance(one, str | Path):
            raise ValueError(
                f"data: found {type(one).__name__} at place {len(paths)}, expected paths of data files or of pictures; "
                "where the pictures are no files, write those that probes may share into files"
            )
        paths.append(Path(one).expanduser())
    if not paths:
        raise ValueError(
            "data: found no file, expected paths of data files or of pictures; does the pattern fit their names?"
        )
    found = tuple(paths)
    missing = next((one for one in found if not one.exists()), None)
    if missing is not None:
        raise ValueError(f"data: {missing}: no such file; expected paths of data files or of pictures")
    return found


def pictures_among(files: Collection[Path], data: Sequence[Path]) -> dict[Path, str]:
    """Those of the files that the data shows, under their own names or as byte-equal copies, each with its SHA-256.

    Raises ValueError for a data file that cannot be read, or that has faults.
    """
    pictures = [one for one in data if one.is_file() and _is_picture(one)]
    shown = [Conversation((Turn("user", (ImageRef(str(one), one),)),), str(one)) for one in pictures]
    found = same_pictures.files_among(files, shown)
    known = {*pictures}
    for path in [one for one in data if one not in known]:
        found |= same_pictures.files_among(files, _read(path))
    return found


def _is_picture(path: Path) -> bool:
    """By its suffix or, whatever that is, by how its bytes begin."""
    if path.suffix.lower() in Image.registered_extensions():
        return True
    try:
        with Image.open(path):
            return True
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def _read(path: Path) -> Sequence[Conversation]:
    try:
        return source.read(path, say=lambda line: None)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"data: {error}\nExpected data that finetune.py reads; else give the paths of its pictures instead"
        ) from error


def seen_words(
    judged: Sequence[Probe],
    found: Collection[Path],
    *,
    where: str,
    remedy: str,
    of: str,
    stop_when: str | None,
) -> list[str]:
    """A warning that names the groups with pictures that were trained on; [] where there is none.

    found    these pictures
    where    "is in the training data", say
    of       what the probes are called: their file
    """
    shown = {probe.id: path for probe in judged for path in reversed(probe.images) if path in found}
    if not shown:
        return []
    seen = Counter(probe.group for probe in judged if probe.id in shown)
    total = Counter(probe.group for probe in judged)
    groups = [f"{name}: {count} of {total[name]}" for name, count in seen.items()]
    more = len(groups) - MOST_GROUPS_NAMED
    named = ", ".join(groups[:MOST_GROUPS_NAMED]) + (f" and {more} more groups" if more > 0 else "")
    never = f"; until then, --stop_when {stop_when} cannot be met" if stop_when else ""
    first = next(iter(shown))
    return [
        f"warning: {of}: in {len(shown)} of {len(judged)} probes a picture {where} "
        f"({named}), the first is {first}: {shown[first]}. What was trained on shows no correction, so these groups "
        f'get no verdict but "not held out": {remedy}{never}'
    ]
