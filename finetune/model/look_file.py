"""``look.json`` beside a trained checkpoint: attention was trained on, in these layers, from these pictures.

Who judges the checkpoint has to know: attention that a loss asked for is no evidence that the model learned to look.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from finetune import fields
from finetune.fields import NULL, TEXT, items, number, one_of, whole
from finetune.files import write_atomically
from finetune.samples.conversation import ImageRef

LOOK_FILE = "look.json"
VERSION = 1
REMEDY = "train again, or delete it if no attention was trained on"
SHAPE = {
    "version": one_of(VERSION), "weight": number(0, above=True), "loss": one_of("mass", "kl"),
    "layers": items(whole(0)), "pictures": items(TEXT) | NULL,
}  # fmt: skip


class Supervised(NamedTuple):
    """What of a model's attention was trained on.

    layers     language layers by number
    pictures   SHA-256 of each picture's file, as far as they are known; None where none is (streamed data)
    """

    layers: tuple[int, ...]
    pictures: frozenset[str] | None

    def saw(self, pictures: Collection[Path]) -> bool:
        """Was one of the pictures among them?"""
        known = self.pictures or frozenset()
        return any(hashlib.sha256(path.read_bytes()).hexdigest() in known for path in pictures)


def picture_digest(ref: ImageRef) -> str:
    """SHA-256 of a picture's file."""
    return hashlib.sha256(ref.path.read_bytes() if ref.data is None else ref.data).hexdigest()


def write(
    folder: Path, layers: Sequence[int], pictures: Collection[str] | None, *, weight: float, loss: str
) -> None:
    """Say in the folder of a run that its attention is trained on, beside what the folder says already."""
    content = {
        "version": VERSION,
        "weight": weight,
        "loss": loss,
        "layers": list(layers),
        "pictures": None if pictures is None else sorted(pictures),
    }
    _write_united(folder, content, _read(folder))


def carry(folder: Path, *origins: str | Path | None) -> None:
    """Say in a folder what was trained on of the models that its weights come from: of an adapter and its base, say.

    Nothing is written where nothing was, and for hub names.

    Raises ValueError for a file of another shape.
    """
    found = [_read(folder), *(_of_checkpoint(one) for one in origins if one is not None)]
    if any(one is not None for one in found[1:]):
        _write_united(folder, *found)


def supervised_of(folder: str | Path) -> Supervised | None:
    """What was trained on of the checkpoint in a folder, or of the run that the folder is a checkpoint of; None where
    nothing was, and for hub names.

    Raises ValueError for a file of another shape.
    """
    found = _of_checkpoint(folder)
    if found is None:
        return None
    pictures = found["pictures"]
    return Supervised(tuple(map(int, found["layers"])), None if pictures is None else frozenset(pictures))


def _of_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    folder = Path(folder)
    found = _read(folder)
    if found is None and folder.name.startswith("checkpoint-"):  # of a release whose checkpoints had no copy
        return _read(folder.absolute().parent)
    return found


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / LOOK_FILE
    return fields.load(path, SHAPE, required=tuple(SHAPE), remedy=REMEDY) if path.is_file() else None


def _write_united(folder: Path, *contents: dict[str, Any] | None) -> None:
    """All layers and all pictures that are known; weight and loss are those of the first."""
    found = [one for one in contents if one is not None]
    known = [one["pictures"] for one in found if one["pictures"] is not None]
    united = {
        **found[0],
        "layers": sorted({int(layer) for one in found for layer in one["layers"]}),
        "pictures": sorted({*chain(*known)}) if known else None,
    }
    write_atomically(folder / LOOK_FILE, (json.dumps(united, indent=1) + "\n").encode())
