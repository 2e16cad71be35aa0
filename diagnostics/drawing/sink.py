"""Where results go: the interface of TensorBoard and of every other tracker, and what is remembered so that none gets
anything twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from diagnostics.drawing.cards import Card

NOT_YET = "not judged yet"
"""In the place of a verdict until there is one."""


class TaggedPicture(NamedTuple):
    """An encoded picture and its tag; ``size`` is (width, height) in pixels."""

    tag: str
    png: bytes
    size: tuple[int, int]


class Sink(ABC):
    """One place that results are written to. A subclass says how; here nothing is written twice.

    name      as in ``--report_to``
    written   (tag, step) of what is there
    """

    name: str

    def __init__(self, written: Iterable[tuple[str, int]] = ()) -> None:
        self.written = set(written)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log tag → value."""
        fresh = {tag: value for tag, value in values.items() if (tag, step) not in self.written}
        if fresh:
            self._numbers(fresh, step)
            self._remember(fresh, step)

    def cards(self, cards: Mapping[str, Card], step: int) -> None:
        """Log tag → card."""
        fresh = {tag: card for tag, card in cards.items() if (tag, step) not in self.written}
        if fresh:
            self._cards(fresh, step)
            self._remember(fresh, step)

    def pictures(self, pictures: Sequence[TaggedPicture], step: int) -> None:
        """Log pictures as they are encoded."""
        fresh = [picture for picture in pictures if (picture.tag, step) not in self.written]
        if fresh:
            self._pictures(fresh, step)
            self._remember([picture.tag for picture in fresh], step)

    def forget(self, step: int) -> None:
        """Let what was written of a step be written again, behind it."""
        self.written = {one for one in self.written if one[1] != step}

    @abstractmethod
    def verdicts(self, verdicts: Mapping[str, str]) -> None:
        """Group → verdict, where runs are compared with each other. What was there before is replaced."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left. Whoever opened the run ends it."""

    @abstractmethod
    def _numbers(self, values: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def _cards(self, cards: Mapping[str, Card], step: int) -> None: ...

    @abstractmethod
    def _pictures(self, pictures: Sequence[TaggedPicture], step: int) -> None: ...

    def _remember(self, tags: Iterable[str], step: int) -> None:
        self.written.update((tag, step) for tag in tags)
