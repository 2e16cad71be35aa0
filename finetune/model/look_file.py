"""``look.json`` beside a trained checkpoint: attention was trained on, in these layers, from these pictures.

Where rows of attention are composed with that of a resampler, and it trains too, every layer's map goes through what
the loss has moved: ``connector`` says so.

Who judges the checkpoint has to know: attention that a loss asked for is no evidence that the model learned to look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from finetune import fields
from finetune.fields import NULL, TEXT, TRUTH, items, number, one_of, whole
from finetune.model.notes import Content, Note, any_of
from finetune.samples.conversation import ImageRef

LOOK_FILE = "look.json"
VERSION = 1
REMEDY = "train again, or delete it if no attention was trained on"
SHAPE = {
    "version": one_of(VERSION), "weight": number(0, above=True), "loss": one_of("mass", "kl"),
    "layers": items(whole(0)), "pictures": items(TEXT) | NULL, "connector": TRUTH, "unknown_pictures": TRUTH,
}  # fmt: skip
UNSAID: Content = {"connector": True, "unknown_pictures": False}
"""What older notes do not say: of the connector, as much as there may have been."""


class Supervised(NamedTuple):
    """What of a model's attention was trained on.

    layers     language layers by number
    pictures   SHA-256 of each picture's file, as far as they are known; None where none is (streamed data)
    connector  a resampler's attention too, where the model attends through one; True where it is not known
    more       there were others beside these pictures, which are not known
    """

    layers: tuple[int, ...]
    pictures: frozenset[str] | None
    connector: bool = True
    more: bool = False

    @property
    def some_unknown(self) -> bool:
        """Is it not known of some pictures, or of all, which they were?"""
        return self.more or self.pictures is None

    def saw(self, pictures: Collection[Path]) -> bool:
        """Was one of the pictures among those that are known?"""
        return any_of(pictures, self.pictures or ())


def picture_digest(ref: ImageRef) -> str:
    """SHA-256 of a picture's file."""
    return hashlib.sha256(ref.path.read_bytes() if ref.data is None else ref.data).hexdigest()


class _LookNote(Note):
    def _read(self, folder: Path) -> Content | None:
        path = folder / self.file
        if not path.is_file():
            return None
        required = [name for name in self.shape if name not in UNSAID]
        return UNSAID | fields.load(path, self.shape, required=required, remedy=self.remedy)


def write(
    folder: Path,
    layers: Sequence[int],
    pictures: Collection[str] | None,
    *,
    weight: float,
    loss: str,
    connector: bool = True,
) -> None:
    """Say in the folder of a run that its attention is trained on, beside what the folder says already."""
    content = {
        "version": VERSION,
        "weight": weight,
        "loss": loss,
        "layers": list(layers),
        "pictures": None if pictures is None else sorted(pictures),
        "connector": connector,
        "unknown_pictures": pictures is None,
    }
    NOTE.write(folder, content)


def carry(folder: Path, *origins: str | Path | None) -> None:
    """Say in a folder what was trained on of the models that its weights come from: see ``Note.carry``."""
    NOTE.carry(folder, *origins)


def supervised_of(folder: str | Path) -> Supervised | None:
    """What was trained on of the checkpoint in a folder, or of the run that the folder is a checkpoint of; None where
    nothing was, and for hub names.

    Raises ValueError for a file of another shape.
    """
    found = NOTE.of_checkpoint(folder)
    if found is None:
        return None
    pictures = found["pictures"]
    return Supervised(
        tuple(map(int, found["layers"])),
        None if pictures is None else frozenset(pictures),
        found["connector"],
        found["unknown_pictures"] and pictures is not None,
    )


def _united(found: Sequence[Content]) -> Content:
    """All layers, all pictures that are known, whether there were others, and the connector of any; weight and loss are
    those of the first."""
    known = [one["pictures"] for one in found if one["pictures"] is not None]
    return {
        **found[0],
        "layers": sorted({int(layer) for one in found for layer in one["layers"]}),
        "pictures": sorted({*chain(*known)}) if known else None,
        "connector": any(one["connector"] for one in found),
        "unknown_pictures": any(one["unknown_pictures"] or one["pictures"] is None for one in found),
    }


NOTE = _LookNote(LOOK_FILE, SHAPE, REMEDY, _united)
