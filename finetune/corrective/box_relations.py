"""Whether a relation holds between two boxes: yes, no, or too ambiguous to ask.

Only two boxes in a flat picture are known, so each relation requires a margin, and anything between yes and no is
``None``. Sizes are those of the smaller of the two boxes, w wide and h high.

    left of    yes  ends before the other begins, or at most w / 20 after that, and they share h / 4 of their height
    right of        the same, mirrored; one is no if the other is yes
    above      yes  ends h / 10 over the other or more, and they share w / 4 of their width
    below           the same, mirrored; one is no if the other is yes
    on         yes  its bottom is between h / 10 over the other's top and three quarters down the other, and
                    w · 4/5 lie over the other (a cat on a bench ends at the seat, not at the feet of the bench)
               no   they are side by side with a gap of w / 10, or it is below
    inside     yes  four fifths of its area lie in the other, which is a quarter larger or more
               no   there is a gap of w / 20 or h / 20 between them
    next to    yes  a gap of at most w / 2 from side to side, half of h shared, and bottoms on a level (a fifth of the
                    larger height): things at different depths end at different heights
               no   a gap of twice the larger width

Boxes cannot distinguish ``on`` and ``inside`` from "in front of": use these only for pairs that are known to carry or
hold one another (``category_names.Name``). ``above`` and ``below`` refer to the picture, not the world: a person behind
a pizza is above it, so questions say "in the picture". Relations from annotated boxes are not new (the test sets
from COCO and GQA of Kamath, Hessel and Chang, "What's 'up' with vision-language models?", arXiv 2310.19785); the
margins and the limits of ambiguity are ours, set by hand.
"""

from collections.abc import Callable

from finetune.corrective.scenes import Box

Verdict = bool | None

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def holds(relation: str, a: Box, b: Box) -> Verdict:
    """Whether ``a`` is left of (above, on, ...) ``b``; None if ambiguous.

    A cat (40, 10, 60, 30) and a bench (20, 28, 90, 60): on, and neither above nor below.
    """
    return _RULES[relation](a, b)


def _widths(a: Box, b: Box) -> tuple[float, float]:
    return a[2] - a[0], b[2] - b[0]


def _heights(a: Box, b: Box) -> tuple[float, float]:
    return a[3] - a[1], b[3] - b[1]


def _shared(a: Box, b: Box, axis: int) -> float:
    """The length that both cover on an axis; if negative, the gap between them."""
    return min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis])


def _left_of(a: Box, b: Box) -> bool:
    level = _shared(a, b, 1) >= min(_heights(a, b)) / 4
    return level and a[2] <= b[0] + min(_widths(a, b)) / 20


def _above(a: Box, b: Box) -> bool:
    over = _shared(a, b, 0) >= min(_widths(a, b)) / 4
    return over and a[3] <= b[1] - min(_heights(a, b)) / 10


def _one_of(yes: Callable[[Box, Box], bool]) -> Callable[[Box, Box], Verdict]:
    """A relation that is false if its converse holds."""

    def verdict(a: Box, b: Box) -> Verdict:
        forward, backward = yes(a, b), yes(b, a)
        return None if forward == backward else forward

    return verdict


def _on(a: Box, b: Box) -> Verdict:
    width, (_, under) = min(_widths(a, b)), _heights(a, b)
    if _shared(a, b, 0) <= -width / 10 or _above(b, a):
        return False
    rests = b[1] - min(_heights(a, b)) / 10 <= a[3] <= b[1] + under * 3 / 4
    return True if rests and _shared(a, b, 0) >= width * 4 / 5 else None


def _inside(a: Box, b: Box) -> Verdict:
    shared = _shared(a, b, 0), _shared(a, b, 1)
    if shared[0] <= -min(_widths(a, b)) / 20 or shared[1] <= -min(_heights(a, b)) / 20:
        return False
    within = max(shared[0], 0) * max(shared[1], 0) >= _area(a) * 4 / 5
    return True if within and _area(b) >= _area(a) * 5 / 4 else None


def _next_to(a: Box, b: Box) -> Verdict:
    gap = -_shared(a, b, 0)
    if gap >= 2 * max(_widths(a, b)):
        return False
    level = abs(a[3] - b[3]) <= max(_heights(a, b)) / 5 and _shared(a, b, 1) >= min(_heights(a, b)) / 2
    return True if level and 0 <= gap <= min(_widths(a, b)) / 2 else None


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


_RULES: dict[str, Callable[[Box, Box], Verdict]] = {
    "left of": _one_of(_left_of),
    "right of": _one_of(lambda a, b: _left_of(b, a)),
    "above": _one_of(_above),
    "below": _one_of(lambda a, b: _above(b, a)),
    "on": _on,
    "inside": _inside,
    "next to": _next_to,
}
RELATIONS = tuple(_RULES)
