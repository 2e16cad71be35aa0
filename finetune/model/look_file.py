"""``look.json`` beside a trained checkpoint: attention was trained on, in these layers, from these pictures.

Who judges the checkpoint has to know: attention that a loss asked for is no evidence that the model learned to look.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

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
    pictures   SHA-256 of each picture's file; None where they are not known (streamed data)
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
    """Say in the folder of a run that its attention is trained on."""
    content = {
        "version": VERSION,
        "weight": weight,
        "loss": loss,
        "layers": list(layers),
        "pictures": None if pictures is None else sorted(pictures),
    }
    write_atomically(folder / LOOK_FILE, (json.dumps(content, indent=1) + "\n").encode())


def supervised_of(folder: str | Path) -> Supervised | None:
    """What was trained on of the checkpoint in a folder, or of the run that the folder is a checkpoint of; None where
    nothing was, and for hub names.

    Raises ValueError for a file of another shape.
    """
    folder = Path(folder)
    for path in (folder / LOOK_FILE, folder.absolute().parent / LOOK_FILE):
        if path.is_file() and (path.parent == folder or folder.name.startswith("checkpoint-")):
            found = fields.load(path, SHAPE, required=tuple(SHAPE), remedy=REMEDY)
            pictures = found["pictures"]
            return Supervised(
                tuple(map(int, found["layers"])), None if pictures is None else frozenset(pictures)
            )
    return None
