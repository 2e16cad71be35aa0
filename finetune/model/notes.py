"""Notes beside a trained checkpoint of what it was trained on: JSON files that go where the weights go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import fields
from finetune.files import write_atomically

Content = dict[str, Any]


@dataclass(frozen=True)
class Note:
    """One kind of note: in the folder of a run, in its checkpoints, and in what is made of them.

    file     its name
    shape    of its fields, which are all required
    remedy   what to do about a file of another shape
    united   contents of one or more notes → one that says it all; the newest comes first
    """

    file: str
    shape: fields.Shape
    remedy: str
    united: Callable[[Sequence[Content]], Content]

    def write(self, folder: Path, content: Content) -> None:
        """Note something in a folder, beside what is noted there already.

        Raises ValueError for a file of another shape.
        """
        self._write(folder, content, self._read(folder))

    def carry(self, folder: Path, *origins: str | Path | None) -> None:
        """Note in a folder what is noted of the models that its weights come from: of an adapter and its base, say.

        Nothing is written where nothing was, and for hub names.

        Raises ValueError for a file of another shape.
        """
        found = [self._read(folder), *(self.of_checkpoint(one) for one in origins if one is not None)]
        if any(one is not None for one in found[1:]):
            self._write(folder, *found)

    def of_checkpoint(self, folder: str | Path) -> Content | None:
        """What is noted of the checkpoint in a folder, or of the run that the folder is a checkpoint of; None where
        nothing is, and for hub names.

        Raises ValueError for a file of another shape.
        """
        folder = Path(folder)
        found = self._read(folder)
        if found is None and folder.name.startswith(
            "checkpoint-"
        ):  # of a release whose checkpoints had no copy
            return self._read(folder.absolute().parent)
        return found

    def _read(self, folder: Path) -> Content | None:
        path = folder / self.file
        if not path.is_file():
            return None
        return fields.load(path, self.shape, required=tuple(self.shape), remedy=self.remedy)

    def _write(self, folder: Path, *contents: Content | None) -> None:
        content = self.united([one for one in contents if one is not None])
        write_atomically(folder / self.file, (json.dumps(content, indent=1) + "\n").encode())


def any_of(pictures: Collection[Path], known: Collection[str]) -> bool:
    """Is the SHA-256 of one of these files among the known ones? Nothing is read where none is known."""
    return bool(known) and any(hashlib.sha256(path.read_bytes()).hexdigest() in known for path in pictures)
