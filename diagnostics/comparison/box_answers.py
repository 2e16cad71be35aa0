"""Probes whose right answer is a box: how many are right before and after, and the errors of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diagnostics.comparison.maps import Outcome, SaidBox
from diagnostics.comparison.pairs import SIDES, ProbePair, images_of
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord
from finetune.families.base import Size
from finetune.families.parts.box_answers import (
    LOCATIONS,
    Box,
    BoxFrame,
    Writing,
    first_box,
    fractions,
    pixels,
    thousandths,
)
from finetune.families.parts.box_scores import RIGHT_ABOVE, BoxAnswer, BoxScores, box_scores, iou

AGREES = 0.015  # of the picture: tolerance between corners of the answer and of the region

Json = dict[str, Any]


def box_answers(pairs: Sequence[ProbePair]) -> Json | None:
    """Scores before and after, as written to comparison.json; None if no right answer is the box of the judged region,
    or one side has no generated answers. Where it has some, an empty reply is an answer without a box.

    The unit of a group's answers is inferred by comparing them with the region, which is in pixels of the file.
    """
    asked = [(pair, mark, of_probe(pair)) for pair, mark in zip(pairs, images_of(pairs), strict=True)]
    scores = {}
    for side in SIDES:
        answers = [
            right._replace(said=getattr(pair, side).scores.generated, picture=mark)
            for pair, mark, right in asked
            if right is not None
        ]
        if not any(one.said for one in answers):
            return None
        scores[side] = _json(box_scores(answers))
    return scores


def of_probe(pair: ProbePair) -> BoxAnswer | None:
    """A probe's right answer, without a generated one; None if it is not the box of the judged region."""
    return _right_box(pair.probe, pair.region, pair.before.image_tokens[0].image_size_pixels)


def outcome_with_box(probe: Probe, region: str | None, record: AttentionRecord) -> Outcome:
    """One model's answer, with its generated box if the right answer is a box; ``region`` is the judged one."""
    scores, size = record.scores, record.image_tokens[0].image_size_pixels
    right = _right_box(probe, region, size)
    box = None if right is None else _said_box(right, scores.generated, size)
    return Outcome(scores.generated, scores.margin_nats, box)


def _said_box(right: BoxAnswer, said: str, size: Size) -> SaidBox | None:
    """The first box of a generated answer in the family's format, in pixels of the original; None without one."""
    found = first_box(said, right.writing.form)
    if found is None or found[0] != right.writing.form:
        return None
    overlap = iou(np.array([found[1]]), np.array([right.right]))[0]
    corners = pixels(size, "the file").numbers(right.writing.frame.fractions(found[1]))
    return SaidBox(corners, bool(overlap > RIGHT_ABOVE))


def _right_box(probe: Probe, judged: str | None, size: Size) -> BoxAnswer | None:
    """A probe's right answer, without a generated one; None if it is not the box of the region ``judged``."""
    found = first_box(probe.answer)
    region = None if judged is None else probe.regions.get(judged)
    if found is None or region is None or len(region) != 1:
        return None
    form, right = found
    place = pixels(size, "the file").fractions(region[0])
    frame = _frame(form, right, place, size)
    if frame is None:
        return None
    return BoxAnswer(
        said="",
        right=right,
        writing=Writing(form, frame),
        others=_others(probe, judged, frame, size),
        units=(thousandths(), pixels(size, "the file"), fractions()),
        picture="",
    )


def _others(probe: Probe, judged: str | None, frame: BoxFrame, size: Size) -> dict[str, Box]:
    """The other regions with a single box, in the unit of the answer."""
    file = pixels(size, "the file")
    return {
        name: frame.numbers(file.fractions(boxes[0]))
        for name, boxes in probe.regions.items()
        if name != judged and len(boxes) == 1
    }


def _frame(form: str, right: Box, place: Box, size: Size) -> BoxFrame | None:
    """The unit in which ``right`` is the box ``place`` (fractions of the picture); None if no unit fits."""
    longest = max(size)
    left, top = ((longest - side) // 2 / longest for side in size)
    known = [
        thousandths(),
        pixels(size, "the file"),
        BoxFrame("fractions of the padded square", (left, top), (size[0] / longest, size[1] / longest)),
    ]
    if form.startswith("<loc"):
        known = [BoxFrame("1024ths of the picture", (0, 0), (LOCATIONS, LOCATIONS))]
    elif max(right) > 1:  # derived from the far corner and verified with the near one
        known.append(
            BoxFrame("pixels of the resized picture", (0, 0), (right[2] / place[2], right[3] / place[3]))
        )
    off = [float(np.abs(np.subtract(frame.fractions(right), place)).max()) for frame in known]
    first = next((at for at, value in enumerate(off) if value <= AGREES), None)
    return None if first is None else known[first]


def _json(scores: BoxScores) -> Json:
    found = scores.systematic
    return {
        "asked": scores.asked,
        "right": scores.right,
        "accuracy": scores.accuracy,
        "mean_iou": scores.mean_iou,
        "pointing": scores.pointing,
        "no_box": scores.no_box,
        "wrong_format": scores.wrong_format,
        "not_a_box": scores.not_a_box,
        "wrong_object": scores.wrong_object,
        "systematic": None if found is None else found._asdict(),
        "words": scores.words(),
    }
