"""A generated answer → the box in it, and the unit of its numbers in the family.

The unit is derived from the family itself: a box around the whole picture, written by the family, shows the range of
its numbers. So a new family needs no line here.

    Qwen2.5-VL, a picture resized to 56 × 84   {"bbox_2d": [0, 0, 56, 84]}       pixels of the resized picture
    Qwen-VL, any picture                       <box>(0,0),(999,999)</box>        thousandths
    LLaVA, a picture of 40 × 20                [0.00, 0.25, 1.00, 0.75]          fractions of the padded square
    PaliGemma                                  <loc0000><loc0000><loc1023>…      1024ths, top before left
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from finetune.families.base import Family, Size
from finetune.families.parts.boxes import THOUSANDTHS
from finetune.families.parts.thoughts import without_thought
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn

LOCATIONS = 1024
Box = tuple[float, float, float, float]

_NUMBER = r"\s*(-?\d{1,7}(?:\.\d{1,7})?)\s*"  # a broken model may generate thousands of digits
_CORNERS = rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)"
_LIST = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_TOP_FIRST = "<loc(y0)><loc(x0)><loc(y1)><loc(x1)>"
_FORMS = {
    "<box>(x0,y0),(x1,y1)</box>": rf"<box>\s*{_CORNERS}\s*</box>",
    "<|box_start|>(x0,y0),(x1,y1)<|box_end|>": rf"<\|box_start\|>\s*{_CORNERS}\s*<\|box_end\|>",
    "<box>[[x0, y0, x1, y1]]</box>": rf"<box>\s*\[\s*{_LIST}(?:\s*,\s*\[[^\]]*\])*\s*\]\s*</box>",
    '{"bbox_2d": [x0, y0, x1, y1]}': rf'"bbox_2d"\s*:\s*{_LIST}',
    _TOP_FIRST: r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>",
    "(x0,y0),(x1,y1)": _CORNERS,
    "[x0, y0, x1, y1]": _LIST,
}
"""Format → pattern with its four numbers; a format precedes those that are part of it."""


class BoxFrame(NamedTuple):
    """The unit of numbers, by axis: number = origin + fraction of the picture × extent.

    unit     its name: "thousandths of the picture"
    origin   (x, y) of the picture's top left corner, in that unit
    extent   (x, y) of the whole picture, in that unit
    """

    unit: str
    origin: tuple[float, float]
    extent: tuple[float, float]

    def numbers(self, fractions: Sequence[float]) -> Box:
        """x0 y0 x1 y1 in fractions of the picture → in this unit, not rounded."""
        x0, y0, x1, y1 = fractions
        (left, top), (width, height) = self.origin, self.extent
        return left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height

    def fractions(self, numbers: Sequence[float]) -> Box:
        """The inverse: x0 y0 x1 y1 in this unit → in fractions of the picture."""
        x0, y0, x1, y1 = numbers
        (left, top), (width, height) = self.origin, self.extent
        return (x0 - left) / width, (y0 - top) / height, (x1 - left) / width, (y1 - top) / height


def thousandths() -> BoxFrame:
    return BoxFrame("thousandths of the picture", (0, 0), (THOUSANDTHS, THOUSANDTHS))


def pixels(size: Size, of: str) -> BoxFrame:
    """of   "the file" or "the resized picture"; ``size`` is its width and height"""
    return BoxFrame(f"pixels of {of}", (0, 0), size)


def fractions() -> BoxFrame:
    return BoxFrame("fractions of the picture", (0, 0), (1, 1))


class Writing(NamedTuple):
    """A family's format of boxes in one picture: the text around the numbers, and their unit."""

    form: str
    frame: BoxFrame


def first_box(text: str, own: str | None = None) -> tuple[str, Box] | None:
    """Form and numbers x0 y0 x1 y1 of the first box in a text, searched in the form ``own`` before others.

    ``first_box("<loc0000><loc0256><loc0768><loc0512> dog")`` → form, ``(256, 0, 512, 768)``. None without a box; one in
    a thought is none.
    """
    text = without_thought(text)
    for form in ([] if own is None else [own]) + list(_FORMS):
        if match := re.search(_FORMS[form], text):
            a, b, c, d = map(float, match.groups())
            return form, (b, a, d, c) if form == _TOP_FIRST else (a, b, c, d)
    return None


def writing_of(
    family: Family, processor: Any, media: Sequence[Any], image: int, size: Size
) -> Writing | None:
    """The family's format of boxes in ``media[image]``, found by letting it write one around the whole picture.

    media   pictures of the conversation
    size    (width, height) of that picture in its file, upright

    None if the family's format is unknown here.
    """
    assert isinstance(media[image], ImageRef)
    whole = BoxRef("", ((0.0, 0.0, 1.0, 1.0),), image=image, style="json")
    asked = Conversation((Turn("user", (*media, "?")), Turn("assistant", (whole,), trained=False)))
    encoded = family.encode(processor, asked, media=False)
    answer = encoded.input_ids[slice(*encoded.turn_spans[-1])].tolist()
    found = first_box(processor.tokenizer.decode(answer))
    return None if found is None else Writing(found[0], _frame(*found, size))


def _frame(form: str, whole: Box, size: Size) -> BoxFrame:
    """The unit of the numbers, given those of the whole picture."""
    far = whole[2:]
    if form == _TOP_FIRST:
        return BoxFrame("1024ths of the picture", (0, 0), (LOCATIONS, LOCATIONS))
    if max(whole) <= 1:  # rounded to two decimals, so the corner is computed from the picture's shape
        longest = max(size)
        left, top = ((longest - side) // 2 / longest for side in size)
        return BoxFrame("fractions of the padded square", (left, top), (size[0] / longest, size[1] / longest))
    if set(far) <= {THOUSANDTHS - 1, THOUSANDTHS}:  # 999 is the last of a thousand
        return thousandths()
    return pixels((round(far[0]), round(far[1])), "the resized picture")
