"""Questions whose right answer is one box: the right box, other boxes in the picture, and the family's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from finetune.families.base import Family
from finetune.families.parts.box_answers import (
    Box,
    BoxFrame,
    Writing,
    first_box,
    fractions,
    pixels,
    thousandths,
    writing_of,
)
from finetune.families.parts.box_scores import BoxAnswer, BoxScores, box_scores
from finetune.families.parts.qwen_grid import QwenGridFamily
from finetune.samples.conversation import BoxRef, Conversation, ImageRef
from finetune.samples.images import known_size


class BoxTarget(NamedTuple):
    """The right box.

    image     index among the conversation's pictures, from 0
    right     x0 y0 x1 y1 in fractions of that picture
    others    other named boxes of the picture, also in fractions
    writing   the family's format of boxes in the picture
    units     other units that a wrong answer may be in
    picture   identifies the picture
    """

    image: int
    right: Box
    others: Mapping[str, Box]
    writing: Writing
    units: tuple[BoxFrame, ...]
    picture: str

    def said(self, text: str) -> BoxAnswer:
        """A generated answer beside the right box, in the family's numbers."""
        numbers = self.writing.frame.numbers
        others = {name: numbers(box) for name, box in self.others.items()}
        return BoxAnswer(text, numbers(self.right), self.writing, others, self.units, self.picture)

    def fractions_said(self, text: str) -> Box | None:
        """The box of an answer in the family's format, in fractions of the picture; None without one."""
        found = first_box(text, self.writing.form)
        if found is None or found[0] != self.writing.form:
            return None
        return self.writing.frame.fractions(found[1])


def box_target(conversation: Conversation, processor: Any, family: Family) -> BoxTarget | None:
    """The target of a conversation that ends with its answer; None if the answer is not one box in a picture.

    Answers with several boxes are left to exact match: assigning generated boxes to right ones is a separate problem.
    """
    refs = _boxes(conversation.turns[-1].parts)
    if len(refs) != 1 or len(refs[0].boxes) != 1:
        return None
    [ref] = refs
    media, right = conversation.media, ref.boxes[0]
    picture = media[ref.image]
    if not isinstance(picture, ImageRef):
        return None
    size = known_size(picture)
    writing = writing_of(family, processor, media, ref.image, size)
    if writing is None:
        return None
    units = [thousandths(), pixels(size, "the file"), fractions()]
    if isinstance(family, QwenGridFamily):
        units.append(pixels(family.resized_picture(processor, picture), "the resized picture"))
    named = [
        one
        for turn in conversation.turns
        for one in _boxes(turn.parts)
        if one.image == ref.image and one.label and len(one.boxes) == 1 and one.boxes[0] != right
    ]
    return BoxTarget(
        ref.image,
        right,
        {one.label: one.boxes[0] for one in named if one.label},
        writing,
        tuple(units),
        str(picture.path) if picture.data is None else sha256(picture.data).hexdigest(),
    )


def _boxes(parts: Sequence[Any]) -> list[BoxRef]:
    """Boxes, without points and without phrases that have none."""
    return [part for part in parts if isinstance(part, BoxRef) and part.boxes and part.key == "bbox_2d"]


def scores_by_source(answered: Sequence[tuple[str, BoxTarget | None, str]]) -> dict[str, BoxScores]:
    """Scores of each source with box questions, in order of first appearance.

    answered   source, target and generated text of each answer
    """
    groups: dict[str, list[BoxAnswer]] = {}
    for source, target, said in answered:
        if target is not None:
            groups.setdefault(source, []).append(target.said(said))
    return {source: box_scores(group) for source, group in groups.items()}
