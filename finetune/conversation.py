"""A sample as read: turns of text, images and boxes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ImageRef:
    """An image inside a turn.

    written       as the user wrote it
    path          where it is to be opened
    data          the encoded file itself, where the data set holds pictures inside; else None
    size_pixels   (width, height) of the upright picture, where the reader has seen its header; else None
    max_pixels    at most so many pixels for this picture, below the processor's own budget; else None
    """

    written: str
    path: Path
    data: bytes | None = field(default=None, compare=False, repr=False)
    size_pixels: tuple[int, int] | None = field(default=None, compare=False)
    max_pixels: int | None = None


@dataclass(frozen=True)
class BoxRef:
    """Boxes inside a turn: where a phrase lies in an image. Each family writes them in its own way.

    written   as the user wrote them, phrase and markup together
    boxes     x0 y0 x1 y1 of each, as fractions of the upright image's width and height, 0 to 1
    label     the phrase they belong to, or None
    image     which of the conversation's images, counted from 0
    style     how ``written`` is written: "qwen-vl" (<ref>, <box>, thousandths), or "json" (bbox_2d), or
              "placeholder"
    """

    written: str
    boxes: tuple[tuple[float, float, float, float], ...]
    label: str | None = None
    image: int = 0
    style: str = "qwen-vl"


Part = str | ImageRef | BoxRef


@dataclass(frozen=True)
class Turn:
    """One turn; ``parts`` are text, images and boxes in reading order."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and ``source``, the words by which an error names this sample (file, record, id)."""

    turns: tuple[Turn, ...]
    source: str = field(default="conversation", compare=False)

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))


def questions(conversations: Sequence[Conversation]) -> list[tuple[Path, str, str]]:
    """(picture, question, answer) of every turn about one picture on disk, as a person would read it."""
    found: list[tuple[Path, str, str]] = []
    for one in conversations:
        paths = [ref.path for ref in one.images if ref.data is None]
        if len(paths) != 1 or len(one.images) != 1:
            continue
        for asked, answered in itertools.pairwise(one.turns):
            if (asked.role, answered.role) == ("user", "assistant"):
                found.append((paths[0], _words(asked).removeprefix("Picture 1: ").strip(), _words(answered)))
    return found


def _words(turn: Turn) -> str:
    """A turn without its pictures, boxes as they were written."""
    words = (part.written if isinstance(part, BoxRef) else part for part in turn.parts)
    return "".join(part for part in words if isinstance(part, str))
