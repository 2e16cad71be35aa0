"""``seen.json`` beside a trained checkpoint: pictures of its probes that are in its training data.

Who judges the checkpoint has to know: what was trained on shows no correction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from finetune.fields import TEXT, items, one_of
from finetune.model.notes import Content, Note

SEEN_FILE = "seen.json"
VERSION = 1
REMEDY = "train again, or delete it if no picture of the probes is in the training data"
SHAPE = {"version": one_of(VERSION), "pictures": items(TEXT)}


def write(folder: Path, pictures: Collection[str]) -> None:
    """Say in the folder of a run that its data shows these pictures of the probes (SHA-256 of their files), beside what
    the folder says already. Without any, nothing is written.

    Raises ValueError for a file of another shape.
    """
    if pictures:
        NOTE.write(folder, {"version": VERSION, "pictures": list(pictures)})


def carry(folder: Path, *origins: str | Path | None) -> None:
    """Say in a folder what the models that its weights come from have seen: see ``Note.carry``."""
    NOTE.carry(folder, *origins)


def seen_of(folder: str | Path) -> frozenset[str]:
    """SHA-256 of the pictures of probes that the checkpoint in a folder was trained on, or the run that the folder is a
    checkpoint of; none where none is known, and for hub names.

    Raises ValueError for a file of another shape.
    """
    found = NOTE.of_checkpoint(folder)
    return frozenset() if found is None else frozenset(found["pictures"])


def _united(found: Sequence[Content]) -> Content:
    return {**found[0], "pictures": sorted({picture for one in found for picture in one["pictures"]})}


NOTE = Note(SEEN_FILE, SHAPE, REMEDY, _united)
