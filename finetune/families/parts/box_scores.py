"""Scores of answers that are boxes: how many are right, and the errors of the others. Pure functions of numbers.

Exact match is useless for boxes: an error of one thousandth counts the same as one across the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.families.parts.box_answers import Box, BoxFrame, Writing, first_box

RIGHT_ABOVE = 0.5
"""IoU above which a box is right, as RefCOCO counts (Mao et al. 2016, arXiv 1511.02283, section 6.1)."""
LEAST_BOXES = 8  # boxes, on at least half as many pictures, to call an error systematic
LEAST_GAIN = 0.05  # of the mean IoU: the least that undoing an error must gain
LEAST_RIGHT = 0.5  # share of boxes that must be right once the error is undone
LEAST_SCALE = 0.01  # departure from 1; a smaller one is rounding
AS_GOOD = 0.02  # of the mean IoU; a fitted correction must beat a simpler one by more
LEVEL = 0.95
DRAWS = 2000

Array = NDArray[np.float64]


class BoxAnswer(NamedTuple):
    """A generated answer to a question whose right answer is a box.

    said      the answer's text
    right     x0 y0 x1 y1 in the family's own numbers, not rounded
    writing   the family's format of boxes in this picture
    others    other named boxes of the picture, in the same numbers
    units     other units that the numbers may be in
    picture   identifies the picture: boxes of one picture are not independent
    """

    said: str
    right: Box
    writing: Writing
    others: Mapping[str, Box]
    units: tuple[BoxFrame, ...]
    picture: Hashable


class SystematicError(NamedTuple):
    """One error common to the boxes.

    kind      "unit", "axis swap", "offset" or "scale"
    words     description with its 95 % interval
    right     boxes that would be right without it, each corrected by the fit on the other pictures
    """

    kind: str
    words: str
    right: int


class BoxScores(NamedTuple):
    """A group of answers that should be boxes.

    asked          number of answers
    right          with an IoU above .5
    mean_iou       [0, 1]; an answer without a box in the family's format counts 0
    pointing       share whose box has its centre within the right box, [0, 1]
    no_box         answers without any box
    wrong_format   other format → boxes written in it
    not_a_box      in the right format, but without area
    wrong_object   name → wrong boxes that are right for another named region
    systematic     the error common to the boxes, without those on another named region; None if there is none
    """

    asked: int
    right: int
    mean_iou: float
    pointing: float
    no_box: int
    wrong_format: dict[str, int]
    not_a_box: int
    wrong_object: dict[str, int]
    systematic: SystematicError | None

    @property
    def accuracy(self) -> float:
        return self.right / self.asked

    def words(self) -> str:
        """``3 of 8 boxes right at IoU .5 (mean IoU 0.41, centre inside 50 %); without a box: 1; ...``"""
        parts = [
            f"{self.right} of {self.asked} boxes right at IoU .5 (mean IoU {self.mean_iou:.2f}, centre inside "
            f"{self.pointing:.0%})"
        ]
        parts += [f"without a box: {self.no_box}"] if self.no_box else []
        parts += [f"written as {form}: {count}" for form, count in self.wrong_format.items()]
        parts += [f"corners that span no box: {self.not_a_box}"] if self.not_a_box else []
        parts += [f"on {name} instead: {count}" for name, count in self.wrong_object.items()]
        if self.systematic is not None:
            parts.append(f"{self.systematic.words}; without that, {self.systematic.right} would be right")
        return "; ".join(parts)


def iou(a: Array, b: Array) -> Array:
    """Area of the intersection over that of the union, [0, 1], of pairs of boxes Float[pairs, 4], x0 y0 x1 y1.

    Any unit, also a different one on each axis. (0, 0, 4, 2) and (2, 0, 6, 2) → 4 / 12. A box whose corners are in the
    wrong order has no area, so it gets 0.
    """
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.clip(sides, 0, None).prod(axis=1)
    areas = [np.clip(one[:, 2:] - one[:, :2], 0, None).prod(axis=1) for one in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=(union > 0) & (areas[0] > 0))


def centre_inside(a: Array, b: Array) -> NDArray[np.bool_]:
    """Bool[pairs]: whether the centre of a lies within b, border included. Both Float[pairs, 4]."""
    centre = (a[:, :2] + a[:, 2:]) / 2
    return np.all((centre >= b[:, :2]) & (centre <= b[:, 2:]), axis=1)


def box_scores(answers: Sequence[BoxAnswer]) -> BoxScores:
    """Right answers, and the errors of the others. Raises ValueError for no answers."""
    if not answers:
        raise ValueError("box scores: found no answers, expected at least one")
    found = [first_box(answer.said, answer.writing.form) for answer in answers]
    read = [
        (answer, np.array(one[1]))
        for answer, one in zip(answers, found, strict=True)
        if one is not None and one[0] == answer.writing.form
    ]
    boxes = [(answer, box) for answer, box in read if box[2] > box[0] and box[3] > box[1]]
    said = np.array([box for _, box in boxes]).reshape(-1, 4)
    right = np.array([answer.right for answer, _ in boxes]).reshape(-1, 4)
    overlap = iou(said, right)
    missed = [pair for pair, value in zip(boxes, overlap, strict=True) if value <= RIGHT_ABOVE]
    forms = [
        one[0]
        for answer, one in zip(answers, found, strict=True)
        if one is not None and one[0] != answer.writing.form
    ]
    hits = [_hit(box, answer.others) for answer, box in missed]
    on_others = {id(box) for (_, box), name in zip(missed, hits, strict=True) if name is not None}
    alone = [(answer, box) for answer, box in boxes if id(box) not in on_others]
    return BoxScores(
        asked=len(answers),
        right=int((overlap > RIGHT_ABOVE).sum()),
        mean_iou=float(overlap.sum()) / len(answers),
        pointing=float(centre_inside(said, right).sum()) / len(answers),
        no_box=sum(one is None for one in found),
        wrong_format=dict(Counter(forms).most_common()),
        not_a_box=len(read) - len(boxes),
        wrong_object=dict(Counter(name for name in hits if name is not None).most_common()),
        systematic=systematic_error([answer for answer, _ in alone], np.array([box for _, box in alone])),
    )


def _hit(box: Array, others: Mapping[str, Box]) -> str | None:
    """The other region that the box is right for."""
    overlaps = {name: iou(box[None], np.array([other]))[0] for name, other in others.items()}
    best = max(overlaps, key=overlaps.__getitem__, default=None)
    return best if best is not None and overlaps[best] > RIGHT_ABOVE else None


# ---------------------------------------------------------------------------------------------------------------------
# Systematic errors
# ---------------------------------------------------------------------------------------------------------------------


class _Fitted(NamedTuple):
    """One possible systematic error.

    corrected   Float[boxes, 4], each box corrected by the fit on the other pictures
    words       description of the error; None if its interval includes no error
    """

    kind: str
    corrected: Array
    words: Callable[[], str | None]


def systematic_error(answers: Sequence[BoxAnswer], said: Array) -> SystematicError | None:
    """The one error that explains most: wrong unit, x and y exchanged, an offset, or a scale.

    said   Float[answers, 4], the generated boxes in their own numbers

    An error is reported if undoing it, as fitted on the other pictures, raises the mean IoU by at least .05 with an
    interval above 0 (bootstrap over pictures; Bonferroni over the errors tried), and makes at least half of the boxes
    right. Random boxes gain nothing from a fit on other pictures, so noise is not reported. Medians, not means: boxes
    on the wrong object must not distort the fit.
    """
    pictures = list(dict.fromkeys(answer.picture for answer in answers))
    if len(answers) < LEAST_BOXES or len(pictures) < LEAST_BOXES // 2:
        return None
    member = np.array([pictures.index(answer.picture) for answer in answers])
    right = np.array([answer.right for answer in answers])
    draws = _draws(member)
    tried = [*_units(answers, said), _swap(said), *_fits(answers, said, right, member, draws)]
    before, best, best_iou = iou(said, right), None, 0.0
    for one in tried:
        after = iou(one.corrected, right)
        gains = np.array([(after - before)[drawn].mean() for drawn in draws])
        low = float(np.percentile(gains, 100 * (1 - LEVEL) / 2 / len(tried)))
        enough = low > 0 and (after - before).mean() >= LEAST_GAIN
        if enough and (after > RIGHT_ABOVE).mean() >= LEAST_RIGHT and after.mean() > best_iou + AS_GOOD:
            words = one.words()
            if words is not None:
                best = SystematicError(one.kind, words, int((after > RIGHT_ABOVE).sum()))
                best_iou = float(after.mean())
    return best


def _draws(member: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Bootstrap indices of answers, resampling whole pictures; the same in every call."""
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(member == picture) for picture in range(member.max() + 1)]
    chosen = rng.integers(len(places), size=(DRAWS, len(places)))
    return [np.concatenate([places[picture] for picture in row]) for row in chosen]


def _units(answers: Sequence[BoxAnswer], said: Array) -> Iterator[_Fitted]:
    own = answers[0].writing.frame.unit
    for unit in dict.fromkeys(unit.unit for answer in answers for unit in answer.units):
        frames = [next((one for one in answer.units if one.unit == unit), None) for answer in answers]
        if unit == own or None in frames:
            continue
        corrected = np.array([
            answer.writing.frame.numbers(frame.fractions(box.tolist()))
            for answer, box, frame in zip(answers, said, frames, strict=True)
            if frame is not None
        ])  # fmt: skip
        words = f"answers are in {unit}, the family uses {own}"
        yield _Fitted("unit", corrected, partial(str, words))


def _swap(said: Array) -> _Fitted:
    return _Fitted("axis swap", said[:, [1, 0, 3, 2]], lambda: "x and y are exchanged")


def _fits(
    answers: Sequence[BoxAnswer],
    said: Array,
    right: Array,
    member: NDArray[np.int64],
    draws: Sequence[NDArray],
) -> Iterator[_Fitted]:
    """Offset and scale: the median over boxes, for each axis."""
    frame = answers[0].writing.frame
    origin = np.array([answer.writing.frame.origin for answer in answers])
    centres, targets = (box.reshape(-1, 2, 2).mean(axis=1) for box in (said, right))
    offsets, scales = centres - targets, (centres - origin) / (targets - origin)
    moved = said - np.tile(_of_the_others(offsets, member), 2)
    yield _Fitted("offset", moved, lambda: _offset_words(offsets, draws, frame))
    corner = np.tile(origin, 2)
    scaled = corner + (said - corner) / np.tile(_of_the_others(scales, member), 2)
    yield _Fitted("scale", scaled, lambda: _scale_words(scales, draws))


def _of_the_others(values: Array, member: NDArray[np.int64]) -> Array:
    """Float[boxes, 2]: for each box, the median of the boxes of other pictures."""
    medians = [np.median(values[member != picture], axis=0) for picture in range(member.max() + 1)]
    return np.array(medians)[member]


def _median(values: Array, draws: Sequence[NDArray]) -> Iterator[tuple[float, float, float]]:
    """The median and its 95 % interval, for each axis."""
    drawn = np.array([np.median(values[draw], axis=0) for draw in draws])
    low, high = np.percentile(drawn, [50 - 50 * LEVEL, 50 + 50 * LEVEL], axis=0)
    yield from zip(np.median(values, axis=0).tolist(), low.tolist(), high.tolist(), strict=True)


def _offset_words(offsets: Array, draws: Sequence[NDArray], frame: BoxFrame) -> str | None:
    """Axes whose interval excludes 0 and whose offset exceeds the rounding of the numbers."""
    parts = []
    step = 0.01 if max(frame.extent) <= 1 else 1.0
    ways = (("to the left", "to the right"), ("high", "low"))
    for (middle, low, high), (back, on) in zip(_median(offsets, draws), ways, strict=True):
        if low > 0 and middle >= step:
            parts.append(f"{middle:.3g} {on} (95 % interval {low:.3g} to {high:.3g})")
        elif high < 0 and -middle >= step:
            parts.append(f"{-middle:.3g} {back} (95 % interval {-high:.3g} to {-low:.3g})")
    return f"boxes are {' and '.join(parts)}, in {frame.unit}" if parts else None


def _scale_words(scales: Array, draws: Sequence[NDArray]) -> str | None:
    parts = [
        f"{axis} is {middle:.2f} times what it should be (95 % interval {low:.2f} to {high:.2f})"
        for axis, (middle, low, high) in zip("xy", _median(scales, draws), strict=True)
        if (low > 1 or high < 1) and abs(middle - 1) >= LEAST_SCALE
    ]
    return " and ".join(parts) or None
