"""Draws one evaluated sample: picture, question, expected answer and the model's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

from finetune.fonts import Pen, text_font

WIDTH, MARGIN, GUTTER = 720, 20, 10
PICTURE_HEIGHT_MAX = 420
MOST_PICTURES = 4
INK, SOFT, PAPER = (28, 30, 36), (98, 103, 115), (255, 255, 255)
GOOD, BAD = (20, 122, 88), (190, 62, 40)
_LABEL, _TEXT = 16, 22  # sizes of type in pixels
_LINE = 31
_MOST_LINES = 6
_BOXED = "answer_card.boxed"
"""Key of a picture's ``info``: boxes were drawn on it."""


@dataclass(frozen=True)
class AnswerCard:
    """What is written and drawn; ``title`` names the sample, ``note`` says what else there is to know ("").

    Of more than ``MOST_PICTURES`` pictures those ``with_boxes`` are drawn, and the first of the others; the note says
    which.
    """

    pictures: Sequence[Image.Image]
    title: str
    question: str
    expected: str
    generated: str
    is_right: bool
    note: str = ""


def draw_answer(card: AnswerCard) -> Image.Image:
    """The card as a picture of 720 pixels' width; its height follows from the pictures and the texts.

    Raises ValueError if there is Chinese to be written and no font that has it.
    """
    shown = _shown(card.pictures)
    rows = [
        ("", card.title, SOFT),
        ("question", card.question, INK),
        ("expected", card.expected, INK),
        ("answer", card.generated or "(nothing)", GOOD if card.is_right else BAD),
        ("", " · ".join(filter(None, (card.note, _left_out(shown, len(card.pictures))))), SOFT),
    ]
    pen = Pen(text_font("".join(text for _, text, _ in rows)), INK)
    parts = [_pictures([card.pictures[place] for place in shown])] if shown else []
    parts += [_row(pen, label, text, colour) for label, text, colour in rows if text]
    page = Image.new("RGB", (WIDTH, 2 * MARGIN + sum(part.height for part in parts)), PAPER)
    ImageDraw.Draw(page).rectangle((0, 0, 7, page.height), fill=GOOD if card.is_right else BAD)
    top = MARGIN
    for part in parts:
        page.paste(part, (MARGIN, top))
        top += part.height
    return page


def with_boxes(picture: Image.Image, right: Sequence[float], said: Sequence[float] | None) -> Image.Image:
    """A copy with the right box in green and, where there is one, the box that was said in red.

    x0 y0 x1 y1 in fractions of the picture; what lies outside of it is cut.
    """
    drawn = picture.convert("RGB")  # a copy even of RGB, as Pillow says
    draw, line = ImageDraw.Draw(drawn), max(2, round(min(drawn.size) / 100))
    for box, colour in ((right, GOOD), (said, BAD)):
        if box is not None:
            # Boxes in a wrong unit are a thousand pictures away; Pillow wants numbers of a sane size.
            x0, y0, x1, y1 = (
                min(max(value, -1), 2) * side for value, side in zip(box, drawn.size * 2, strict=True)
            )
            draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=line)
    drawn.info[_BOXED] = True
    return drawn


def _shown(pictures: Sequence[Image.Image]) -> list[int]:
    """Places of the pictures that a card has room for, in order: those with boxes before the others."""
    boxed = [place for place, one in enumerate(pictures) if one.info.get(_BOXED)]
    others = [place for place in range(len(pictures)) if place not in boxed]
    return sorted([*boxed, *others][:MOST_PICTURES])


def _left_out(shown: Sequence[int], count: int) -> str:
    """ "4 of 5 pictures: 1, 2, 3, 5"; "" where all are shown."""
    if len(shown) == count:
        return ""
    return f"{len(shown)} of {count} pictures: {', '.join(str(place + 1) for place in shown)}"


def _pictures(pictures: Sequence[Image.Image]) -> Image.Image:
    """Side by side, each in an equal share of the width and in its own shape."""
    share = (WIDTH - 2 * MARGIN - (len(pictures) - 1) * GUTTER) // len(pictures)
    fitted = [ImageOps.contain(picture.convert("RGB"), (share, PICTURE_HEIGHT_MAX)) for picture in pictures]
    strip = Image.new("RGB", (WIDTH - 2 * MARGIN, max(one.height for one in fitted) + MARGIN), PAPER)
    for column, one in enumerate(fitted):
        strip.paste(one, (column * (share + GUTTER), 0))
    return strip


def _row(pen: Pen, label: str, text: str, colour: tuple[int, int, int]) -> Image.Image:
    indent = 96 if label else 0
    size = _TEXT if label else _LABEL
    lines = pen.lines(text, size, WIDTH - 2 * MARGIN - indent, _MOST_LINES)
    row = Image.new("RGB", (WIDTH - 2 * MARGIN, len(lines) * _LINE), PAPER)
    draw = ImageDraw.Draw(row)
    pen.write(draw, (0, _TEXT + 1), label, _LABEL, SOFT, anchor="ls")
    for number, line in enumerate(lines):
        pen.write(draw, (indent, number * _LINE + _TEXT + 1), line, size, colour, anchor="ls")
    return row
