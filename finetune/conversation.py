"""A sample as read: turns of text and images. Errors name file, record and field."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ImageRef:
    """An image inside a turn: ``written`` as the user wrote it, ``path`` where it is to be opened."""

    written: str
    path: Path


@dataclass(frozen=True)
class Turn:
    """One turn; ``parts`` are text and images in reading order (text may hold ``<ref>``/``<box>`` markup)."""

    role: Role
    parts: tuple[str | ImageRef, ...]


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and ``source``, the words by which an error names this sample (file, record, id)."""

    turns: tuple[Turn, ...]
    source: str = field(default="conversation", compare=False)

    @property
    def images(self) -> tuple[ImageRef, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef))
