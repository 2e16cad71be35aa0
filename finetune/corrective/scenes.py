"""A picture with its annotated boxes, and a question about it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from PIL.Image import Image

from finetune.samples.formats.look_at import composed, occurrences

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")

Box = tuple[float, float, float, float]
"""x0 y0 x1 y1 in pixels of the upright picture."""


class AnnotatedBox(NamedTuple):
    """One box of a picture and its category."""

    category: str
    box: Box


SAME_BOX = 0.95
"""Boxes of one category with a larger IoU are one thing, drawn twice: two annotators differ by pixels, two exports by
rounding, and no two spheres of a tower lie this far over each other."""


@dataclass(frozen=True)
class Scene:
    """A picture and its annotated boxes.

    size      width and height of the upright picture, in pixels
    crowds    categories annotated only as a crowd, or of which more may be there than has boxes
    digest    SHA-256 of its size and pixels, equal for copies under other names and where it was saved again
    absent    categories that are known not to be there; None: all that are not annotated
    unsure    categories of which is not known whether they are there: an answer that is not trained on names them
    """

    image: Path
    size: tuple[int, int]
    things: tuple[AnnotatedBox, ...]
    crowds: frozenset[str] = frozenset()
    digest: str = ""
    absent: frozenset[str] | None = None
    unsure: frozenset[str] = frozenset()

    def boxes_of(self, category: str) -> tuple[Box, ...]:
        return tuple(thing.box for thing in self.things if thing.category == category)

    @cached_property
    def categories(self) -> frozenset[str]:
        """All that is annotated in it, as a thing or as a crowd."""
        return self.crowds | {thing.category for thing in self.things}

    def not_there(self, asked: Set[str]) -> frozenset[str]:
        """Those of the categories that are known not to be there."""
        known = asked if self.absent is None else asked & self.absent
        return frozenset(known - self.categories - self.unsure)

    @cached_property
    def perhaps(self) -> frozenset[str]:
        """All that is, or may be, in it."""
        return self.categories | self.unsure

    @cached_property
    def single(self) -> tuple[AnnotatedBox, ...]:
        """The only things of their category, without a crowd of it."""
        counts = Counter(thing.category for thing in self.things)
        return tuple(
            thing
            for thing in self.things
            if counts[thing.category] == 1 and thing.category not in self.crowds
        )


def digest_of(picture: Image) -> str:
    """SHA-256 of a picture's size and RGB pixels, as a person sees it: a copy that was saved again has the same."""
    found = hashlib.sha256(f"{picture.width} {picture.height} ".encode())
    found.update(picture.tobytes())
    return found.hexdigest()


def merged(copies: Sequence[Scene]) -> Scene:
    """What is annotated of all copies of a picture, each thing once."""
    things = distinct(thing for one in copies for thing in one.things)
    return replace(
        copies[0],
        things=things,
        crowds=frozenset().union(*(one.crowds for one in copies)),
        absent=absent_in([one.absent for one in copies]),
        unsure=frozenset().union(*(one.unsure for one in copies)),
    )


def absent_in(copies: Sequence[frozenset[str] | None]) -> frozenset[str] | None:
    """What is absent from a picture, of several lists of it."""
    lists = [one for one in copies if one is not None]
    return frozenset().union(*lists) if lists else None


def distinct(things: Iterable[AnnotatedBox]) -> tuple[AnnotatedBox, ...]:
    """Without the boxes that an earlier one of their category covers up to ``SAME_BOX``."""
    kept: list[AnnotatedBox] = []
    for thing in things:
        alike = (one for one in kept if one.category == thing.category)
        if not any(_iou(one.box, thing.box) > SAME_BOX for one in alike):
            kept.append(thing)
    return tuple(kept)


def _iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return shared / (sum(areas) - shared)


@dataclass(frozen=True)
class Question:
    """One question about a picture, which can be written as a training sample or a probe.

    group      of the probe
    topic      a relation, a building or a template; held-out pictures are stratified by topic
    form       the form of the question; forms and labels are sampled equally often
    label      the right answer among those of the form, independent of language
    against    the opposite label, trained exactly as often (no for yes, left of for right of), or None
    about      the categories that tell it from others of its form: all of one form about the same are worded alike
    only_balanced   whether it is left out where the pictures give what it is about one answer alone; no answer to it
                    is trained or probed more often than all its others
    own        whether a template of the user's asks it: where its words make its answer likely, that is told, and what
               is balanced goes first, but nothing is left out
    trained    whether it may be a training sample
    probed     whether it may be a probe; questions whose answer is a box may not
    regions, phrases, relation   as in the probe file
    """

    group: str
    topic: str
    form: str
    language: Language
    text: str
    answer: str
    label: str
    foil: str | None = None
    against: str | None = None
    about: tuple[str, ...] = ()
    only_balanced: bool = False
    own: bool = False
    trained: bool = True
    probed: bool = True
    regions: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)
    phrases: Mapping[str, str] = field(default_factory=dict)
    relation: Mapping[str, str] | None = None

    @property
    def kind(self) -> tuple[str, ...]:
        """The unit of balanced sampling."""
        return (self.group, self.topic, self.form, self.label, self.language)


def either(language: Language | None, rng: Random) -> Language:
    """The language, or one of the two at random."""
    return rng.choice(LANGUAGES) if language is None else language


def phrases_in(text: str, names: Mapping[str, str]) -> dict[str, str]:
    """The entries of phrase → region whose phrase occurs in the text as a whole word."""
    return {phrase: region for phrase, region in names.items() if occurrences(phrase, composed(text))}
