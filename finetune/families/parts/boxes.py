"""Fractions of a picture → the numbers that a family was trained to write. The only module that converts boxes.

What a number means differs between families, and a box in the wrong numbers looks right in the data and teaches a
shift: thousandths of the picture are the same before and after the family's resize, pixels are not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from finetune.families.base import Size
from finetune.samples.conversation import BoxRef

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
    """``{"bbox_2d": [14, 0, 28, 84], "label": "dog"}``; of several boxes, objects with commas between.

    A point is ``{"point_2d": [14, 0], ...}``. A phrase without a box is its words.
    """
    if not corners:
        return ref.label or ""
    label = {} if ref.label is None else {"label": ref.label}
    numbers = ([*box[:2]] if ref.key == "point_2d" else [*box] for box in corners)
    return ", ".join(json.dumps({ref.key: one, **label}, ensure_ascii=False) for one in numbers)


def without_box(ref: BoxRef) -> str | None:
    """What a family of boxes alone writes for the rest: a phrase without a box is its words, a point is JSON in
    thousandths. None for boxes."""
    if ref.boxes and ref.key != "point_2d":
        return None
    return as_json(ref, [in_thousandths(box) for box in ref.boxes])


def written_boxes(ref: BoxRef, size: Size) -> str:
    """``dog [0.25, 0.12, 0.50, 0.88]``: fractions of the padded square, two decimals, as in LLaVA-1.5's data for
    RefCOCO and Visual Genome (Liu et al. 2023, arXiv 2310.03744, appendix; the square by measuring that data)."""
    if (written := without_box(ref)) is not None:
        return written
    longest = max(size)
    left, top = ((longest - length) // 2 for length in size)
    boxes = []
    for box in ref.boxes:
        x0, x1 = ((value * size[0] + left) / longest for value in box[::2])
        y0, y1 = ((value * size[1] + top) / longest for value in box[1::2])
        boxes.append(f"[{x0:.2f}, {y0:.2f}, {x1:.2f}, {y1:.2f}]")
    return " ".join([*([] if ref.label is None else [ref.label]), ", ".join(boxes)])
