"""A picture with its annotated boxes, and a question about it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")

Box = tuple[float, float, float, float]
"""x0 y0 x1 y1 in pixels of the upright picture."""


class AnnotatedBox(NamedTuple):
    """One box of a picture and its category."""

    category: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """A picture and its annotated boxes.

    size      width and height of the upright picture, in pixels
    crowds    categories annotated only as a crowd
    digest    SHA-256 of the file, equal for copies under other names
    """

    image: Path
    size: tuple[int, int]
    things: tuple[AnnotatedBox, ...]
    crowds: frozenset[str] = frozenset()
    digest: str = ""

    def boxes_of(self, category: str) -> tuple[Box, ...]:
        return tuple(thing.box for thing in self.things if thing.category == category)

    @cached_property
    def single(self) -> tuple[AnnotatedBox, ...]:
        """Things that "the cat" identifies: the only one of its category, without a crowd of it."""
        counts = Counter(thing.category for thing in self.things)
        return tuple(
            thing
            for thing in self.things
            if counts[thing.category] == 1 and thing.category not in self.crowds
        )

    def pairs(self) -> Iterator[tuple[AnnotatedBox, AnnotatedBox]]:
        """Every ordered pair of ``single`` things."""
        for one in self.single:
            for other in self.single:
                if one is not other:
                    yield one, other


@dataclass(frozen=True)
class Question:
    """One question about a picture, which can be written as a training sample or a probe.

    group      of the probe
    topic      a relation, a building or a template; held-out pictures are stratified by topic
    form       the form of the question; forms and labels are sampled equally often
    label      the right answer among those of the form, independent of language
    against    the opposite label, trained exactly as often (no for yes, left of for right of), or None
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
    """The entries of phrase → region whose phrase occurs in the text."""
    return {phrase: region for phrase, region in names.items() if phrase in text}
