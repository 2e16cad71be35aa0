"""A picture with what lies where in it, and a question about it."""

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
    """One box of a picture, and the category that it is annotated with."""

    category: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """A picture and its things.

    size      width and height of the upright picture, in pixels
    crowds    categories of which the annotation only says that there are many
    digest    of the file's content: copies under other names have the same
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
        """Things that "the cat" can mean: there is one of the category, and no crowd of it."""
        counts = Counter(thing.category for thing in self.things)
        return tuple(
            thing
            for thing in self.things
            if counts[thing.category] == 1 and thing.category not in self.crowds
        )

    def pairs(self) -> Iterator[tuple[AnnotatedBox, AnnotatedBox]]:
        """Every ordered pair of single things."""
        for one in self.single:
            for other in self.single:
                if one is not other:
                    yield one, other


@dataclass(frozen=True)
class Question:
    """One question about a picture, ready to be written as a training sample or a probe.

    group      of the probe
    topic      what it is about: a relation, a building, a template. Pictures are held out topic by topic
    form       how it is asked; questions of all forms and labels are chosen equally often
    label      which of the form's answers is right, whatever the language
    against    the label that is to be trained exactly as often (no against yes, left of against right of), or None
    trained    whether it may be a training sample
    probed     whether it may be a probe; answers that are boxes may not
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
        """What is chosen equally often."""
        return (self.group, self.topic, self.form, self.label, self.language)


def either(language: Language | None, rng: Random) -> Language:
    """The language, or by chance one of the two."""
    return rng.choice(LANGUAGES) if language is None else language


def phrases_in(text: str, names: Mapping[str, str]) -> dict[str, str]:
    """Of phrase → region those whose phrase stands in the text."""
    return {phrase: region for phrase, region in names.items() if phrase in text}
