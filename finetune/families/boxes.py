"""Fractions of a picture → the numbers that a family was trained to say. Boxes are converted here and nowhere else.

What a number means differs between families, and a box in the wrong numbers looks right in the data and teaches a
shift: thousandths of the picture are the same before and after the family's resize, pixels are not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from finetune.conversation import BoxRef

THOUSANDTHS = 1000
Corners = tuple[int, int, int, int]


def in_thousandths(box: Sequence[float], *, most: int = THOUSANDTHS) -> Corners:
    """x0 y0 x1 y1 in thousandths of the picture, to the nearest: (0.25, 0, 0.5, 1) → (250, 0, 500, 1000).

    most   the largest number the family knows (999 where thousandths are those of a half-open range)
    """
    x0, y0, x1, y1 = (min(round(value * THOUSANDTHS), most) for value in box)
    return x0, y0, x1, y1


def in_pixels(box: Sequence[float], size: tuple[int, int]) -> Corners:
    """x0 y0 x1 y1 in pixels of a picture of this (width, height), to the nearest.

    In the picture as the family resized it: (0.25, 0, 0.5, 1) of 56 × 84 pixels → (14, 0, 28, 84).
    """
    x0, y0, x1, y1 = (round(value * side) for value, side in zip(box, (*size, *size), strict=True))
    return x0, y0, x1, y1


def as_markup(ref: BoxRef, *, ref_marks: tuple[str, str], box_marks: tuple[str, str]) -> str:
    """Phrase and boxes between marks, in thousandths below 1000: ``<ref>dog</ref><box>(250,0),(500,999)</box>``."""
    label = "" if ref.label is None else f"{ref_marks[0]}{ref.label}{ref_marks[1]}"
    corners = (in_thousandths(box, most=THOUSANDTHS - 1) for box in ref.boxes)
    return label + "".join(f"{box_marks[0]}({a},{b}),({c},{d}){box_marks[1]}" for a, b, c, d in corners)


def as_json(ref: BoxRef, corners: Sequence[Corners]) -> str:
    """``{"bbox_2d": [14, 0, 28, 84], "label": "dog"}``; of several boxes, objects with commas between."""
    label = {} if ref.label is None else {"label": ref.label}
    return ", ".join(json.dumps({"bbox_2d": [*box], **label}, ensure_ascii=False) for box in corners)
