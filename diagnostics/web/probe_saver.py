"""Saves boxes drawn on the page as probes, only to the file of ``--probe-file``."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostics.records.json_files import shown
from diagnostics.records.names import BYTES_MAX, CHARACTERS_MAX, file_name, id_fault, same_file
from diagnostics.records.probes import Probe, read_probes, write_probes
from diagnostics.web.named_pictures import numbers_of_pictures
from diagnostics.web.sessions import QUESTION_MAX_CHARACTERS, Asked
from diagnostics.web.texts import RefusedError, Words
from diagnostics.web.trace import Trace
from diagnostics.web.views import box_pixels
from finetune.files import in_place_of

logger = logging.getLogger(__name__)

PROBES_MAX = 1000
"""Keeps visitors of a public page from filling the disk."""
_TEXTS = ("id", "group", "region", "question", "answer", "foil")


class ProbeFile:
    """A probe file that visitors add to; pictures go into ``images/`` beside it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._writing = threading.Lock()

    def add(self, trace: Trace, asked: Asked, written: Mapping[str, Any]) -> Probe:
        """Append one probe, and validate the whole file with the reader that every program uses. It has one picture
        and no earlier turns.

        written   ``id group region question answer foil`` as texts, ``image`` (index), and ``box`` in fractions of the
                  picture; an empty ``id`` is made up from the group

        Raises ValueError naming the field, and leaves file and pictures unchanged.
        """
        texts = {name: str(written.get(name) or "").strip() for name in _TEXTS}
        for name, text in texts.items():
            if len(text) > QUESTION_MAX_CHARACTERS:
                raise RefusedError(
                    "field_long", field=_label(name), found=len(text), most=QUESTION_MAX_CHARACTERS
                )
        if texts["id"] and id_fault(texts["id"]) is not None:
            raise RefusedError("id_wrong", found=shown(texts["id"], 40), most=CHARACTERS_MAX, bytes=BYTES_MAX)
        for name in ("group", "region", "question", "answer"):
            if not texts[name]:
                raise RefusedError("field_empty", field=_label(name))
        image = written.get("image")
        if not isinstance(image, int) or isinstance(image, bool) or not 0 <= image < len(asked.pictures):
            raise ValueError(f"image: found {image!r}, expected one of the {len(asked.pictures)} pictures")
        _check_one_picture(asked, texts["question"])
        box = box_pixels(trace, written.get("box"), image)
        with self._writing:
            return self._append(texts, asked, image, box)

    def _append(
        self, texts: dict[str, str], asked: Asked, image: int, box: tuple[float, float, float, float]
    ) -> Probe:
        before = self._read(self.path) if self.path.is_file() else ()
        texts["id"] = texts["id"] or self._new_id(texts["group"], before)
        if any(same_file(probe.id) == same_file(texts["id"]) for probe in before):
            raise RefusedError("id_taken", id=texts["id"], file=self.path.name)
        if len(before) >= PROBES_MAX:
            raise RefusedError("probes_many", file=self.path.name, found=len(before))
        place = self.path.parent / "images" / file_name(texts["id"], ".png")
        if place.exists():
            raise RefusedError("image_taken", image=place.name, folder=place.parent.name)
        probe = Probe(
            texts["id"],
            texts["group"],
            (place,),
            texts["question"],
            texts["answer"],
            texts["foil"] or None,
            {texts["region"]: ((round(box[0], 1), round(box[1], 1), round(box[2], 1), round(box[3], 1)),)},
            {texts["answer"]: texts["region"]},
        )
        try:
            with in_place_of(place) as temporary:
                asked.pictures[image].open().save(temporary, format="PNG")
            self._check_and_write((*before, probe))
        except (ValueError, OSError) as error:
            place.unlink(missing_ok=True)
            if isinstance(error, OSError):
                logger.warning("a probe could not be saved: %s", error)
                # its message contains the file's path
                raise RefusedError("not_written", file=self.path.name) from error
            raise
        return probe

    def _new_id(self, group: str, before: Sequence[Probe]) -> str:
        """``sphere-building-02``: the group, as far as it can be in a file name, and the first free number."""
        stem = re.sub(r"[^\w.-]+", "-", group).strip("-.")
        if not stem or id_fault(f"{stem}-{PROBES_MAX}") is not None:
            stem = "probe"
        taken = {same_file(probe.id) for probe in before}
        taken |= {same_file(path.stem) for path in (self.path.parent / "images").glob("*.png")}
        numbered = (f"{stem}-{number:02d}" for number in itertools.count(1))
        return next(name for name in numbered if same_file(name) not in taken)

    def _check_and_write(self, probes: tuple[Probe, ...]) -> None:
        trial = self.path.with_name(f".{self.path.name}.trial")
        try:
            write_probes(probes, trial)
            self._read(trial)
            trial.replace(self.path)
        finally:
            trial.unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[Probe, ...]:
        """``read_probes`` with errors for visitors, without the file's path."""
        try:
            return read_probes(path)
        except ValueError as error:
            message = str(error).replace(str(path), self.path.name).replace(f"{path.parent}{os.sep}", "")
            raise ValueError(message) from error

    def __len__(self) -> int:
        return len(json.loads(self.path.read_text(encoding="utf-8"))["probes"]) if self.path.is_file() else 0


def _check_one_picture(asked: Asked, question: str) -> None:
    """Raises RefusedError for a question that one picture, alone and thus the first, does not answer."""
    if (own := len(asked.pictures) - asked.before) > 1:
        raise RefusedError("probe_pictures", found=own)
    number = max(numbers_of_pictures(question), default=1)
    if number > 1:
        raise RefusedError("probe_names_picture", found=number)


def _label(name: str) -> Words:
    """A field's label in the form."""
    return Words("right_answer" if name == "answer" else name)
