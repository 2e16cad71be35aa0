"""``<image>`` in a text stands for the next picture of the record's list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune.conversation import ImageRef
from finetune.formats.record import Record

IMAGE = "<image>"


class Queue:
    """The pictures beside the conversation, handed out in order.

    ``"<image>\\nWhat is this?"`` with ``image: "a.png"`` → ``(ImageRef("a.png"), "\\nWhat is this?")``.
    """

    def __init__(self, record: Record, key: str) -> None:
        self.record, self.key = record, key
        given = record.content.get(key)
        specs: list[Any] = given if isinstance(given, list) else [] if given is None else [given]
        ats = [f"{key}[{i}]" for i in range(len(specs))] if isinstance(given, list) else [key]
        self.pictures = [record.picture(spec, at) for spec, at in zip(specs, ats, strict=False)]
        self.asked = 0

    def take(self) -> Iterator[ImageRef]:
        """The next picture, or nothing where there is none left."""
        yield from self.pictures[self.asked : self.asked + 1]
        self.asked += 1

    def split(self, text: str) -> Iterator[str | ImageRef]:
        """A text's words and pictures in reading order."""
        first, *rest = text.split(IMAGE)
        yield first
        for words in rest:
            yield from self.take()
            yield words

    def close(self) -> None:
        """A fault where the text asks for more or fewer pictures than there are."""
        if self.asked != len(self.pictures):
            self.record.fault(
                f"{self.key}: found {_count(len(self.pictures), 'picture')} and {_count(self.asked, IMAGE)} in the "
                "text, expected one of them for each picture, where it belongs"
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if what.isalpha() and number != 1 else ''}"
