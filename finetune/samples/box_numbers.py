"""The numbers of a box or a point, checked: pixels or thousandths → fractions of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

BoxUnits = Literal["pixels", "thousandths", "text"]
"""``text``: numbers in JSON are plain text, trained as written."""
Fractions = tuple[float, float, float, float]

SLACK_PIXELS = 1e-3  # how far outside the picture a corner computed from x + width may lie
LARGEST = 10**15  # beyond any picture, and whole numbers up to it are exact as floats
LEAST_SIDE = 2  # of a picture up to this size in its units, numbers up to 1 may well be pixels


def fractions(numbers: Any, units: BoxUnits | None, size: tuple[int, int]) -> Fractions:
    """x0 y0 x1 y1 in pixels or thousandths → fractions of a picture's width and height.

    size   width and height in those units
    ``fractions([112, 0, 224, 100], "pixels", (448, 200))`` → ``(0.25, 0.0, 0.5, 0.5)``.

    Raises ValueError if it is not a box inside the picture.
    """
    if not isinstance(numbers, list | tuple) or len(numbers) != 4 or not all(map(_is_number, numbers)):
        raise ValueError(f"found the box {numbers!r:.80}, expected four numbers x0, y0, x1, y1")
    x0, y0, x1, y1 = numbers
    _check_unit("box", numbers, units, size)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"found the box {list(numbers)}, expected x0 < x1 and y0 < y1")
    width, height = size
    slack = SLACK_PIXELS if units == "pixels" else 0.0
    if min(x0, y0) < -slack or x1 > width + slack or y1 > height + slack:
        raise ValueError(
            f"found the box {list(numbers)} in {units}, expected it inside the picture, {width} × {height} {units}"
        )
    return max(x0 / width, 0.0), max(y0 / height, 0.0), min(x1 / width, 1.0), min(y1 / height, 1.0)


def point_fractions(numbers: Any, units: BoxUnits | None, size: tuple[int, int]) -> Fractions:
    """x y → x y x y as fractions of a picture's width and height: ``([112, 50], "pixels", (448, 200))`` →
    ``(0.25, 0.25, 0.25, 0.25)``. Raises ValueError as ``fractions`` does."""
    if not isinstance(numbers, list | tuple) or len(numbers) != 2 or not all(map(_is_number, numbers)):
        raise ValueError(f"found the point {numbers!r:.80}, expected two numbers x, y")
    _check_unit("point", numbers, units, size)
    (x, y), (width, height) = numbers, size
    if min(x, y) < 0 or x > width or y > height:
        raise ValueError(
            f"found the point {list(numbers)} in {units}, expected it inside the picture, {width} × {height} {units}"
        )
    return x / width, y / height, x / width, y / height


def looks_like_fractions(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether x0 y0 x1 y1, said to be in pixels, look like fractions of the picture: all lie from 0 to 1.

    As pixels that is less than the pixel in the corner, so the box 0, 0, 1, 1 is taken for the whole picture too. Of a
    picture of 2 × 2 pixels or less it cannot be told.
    """
    return min(box) > -SLACK_PIXELS and max(box) <= 1 and max(size) > LEAST_SIDE


def _check_unit(what: str, numbers: Sequence[float], units: BoxUnits | None, size: tuple[int, int]) -> None:
    """Raises ValueError for fractions of the picture: as pixels or thousandths they are a box of no size in its corner.

    Numbers that miss a whole one by no more than a sum's rounding are whole: a point may be a corner, and markup is in
    whole thousandths.
    """
    is_whole = all(abs(one - round(one)) <= SLACK_PIXELS for one in numbers)
    if looks_like_fractions(numbers, size) and not (is_whole and (what == "point" or units != "pixels")):
        remedy = "multiply all by 1000"
        if units == "pixels":
            remedy = f"multiply x by {size[0]} and y by {size[1]} (under --box_units: or all by 1000, as thousandths)"
        raise ValueError(
            f"found the {what} {list(numbers)} in {units}, which looks like fractions of the picture, expected "
            f"{units}, {size[0]} × {size[1]} of them; {remedy}"
        )


def _is_number(value: Any) -> bool:
    """One that is near any picture: what JSON holds of whole numbers may be too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
