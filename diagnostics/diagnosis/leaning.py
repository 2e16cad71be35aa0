"""Is the answer asked of the picture, or said whatever it shows? One shift of the margin, and pictures replaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagnostics.comparison.legs.leg import Leg, not_measured, percent
from diagnostics.diagnosis.cases import Case, SideCase, margins_of, pictures_of, share_interval
from diagnostics.diagnosis.contrasts import Contrast, Side, of_both
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.measures.answers import normalised
from diagnostics.measures.linear_probes import balanced_accuracy
from diagnostics.measures.statistics import Interval, ratio_of_means
from diagnostics.records.measurement_plan import BLANK, NO_PICTURE, OTHER


def one_shift(sides: Sequence[SideCase], contrast: Contrast, thresholds: Thresholds) -> Leg:
    """Would one number, added to every margin between two answers, make them right?

    Right answers are counted on pictures that the number was not chosen on, both answers alike: of probes whose answer
    and foil are a pair of the group's, where either answer has two pictures. A question's words may give the answer
    away, so as many must not be right with a blank picture.
    """
    if contrast.lack:
        return not_measured(thresholds.right, f"Not measured: {contrast.lack}.")
    kept = {side.probe.id for side in of_both([one.side for one in sides if _is_of_pair(one.side)])}
    scored = [one for one in sides if one.side.probe.id in kept]
    labels = np.array([side.label for side, _, _ in scored], int)
    sizes = [
        len(set(pictures_of([case for side, case, _ in scored if side.label == label]))) for label in (0, 1)
    ]
    if min(sizes) < thresholds.each_answer:
        reason = "Not measured: too few guards have this group's right answer as their wrong one."
        return not_measured(thresholds.right, reason, len(scored))
    toward = _toward_first(scored, margins_of([case for _, case, _ in scored]))
    tasks, pictures = [side.task for side, _, _ in scored], pictures_of([case for _, case, _ in scored])
    right, moved = right_after_shift(toward, labels, tasks, pictures)
    value, low, high = balanced_accuracy(right, labels, pictures)
    plainly = balanced_accuracy((toward > 0) == (labels > 0), labels, pictures)[0]
    blank = _control([case for _, case, _ in scored], BLANK)
    without = None
    if blank is not None:
        guessed, _ = right_after_shift(_toward_first(scored, blank), labels, tasks, pictures)
        without = balanced_accuracy(guessed, labels, pictures)[0]
    words = (
        f"With the margin shifted by one number ({moved:+.2f} nats towards {_first_answer(scored)!r}), "
        f"chosen on other pictures, {percent(value)} of both answers are right ({share_interval(low, high)}; at least "
        f"{percent(thresholds.right)} must be), {percent(plainly)} without"
    )
    if without is not None:
        words += f"; with blank pictures {percent(without)} would be"
    holds = value >= thresholds.right - 1e-9 and (without is None or without < thresholds.right)
    return Leg(holds, len(scored), value, (low, high), thresholds.right, f"{words}.")


def _first_answer(scored: Sequence[SideCase]) -> str:
    """The first task's first answer as it is written."""
    task = scored[0].side.task
    ends = ((one.side.probe.answer, one.side.label) for one in scored if one.side.task == task)
    return next((answer for answer, label in ends if label == 1), task[0])


def _is_of_pair(side: Side) -> bool:
    return {normalised(side.probe.answer), normalised(side.probe.foil or "")} == set(side.task)


def _toward_first(scored: Sequence[SideCase], margins: np.ndarray) -> np.ndarray:
    """Margins turned towards the first answer of each pair, nats."""
    return np.where([side.label == 1 for side, _, _ in scored], margins, -margins)


def right_after_shift(
    toward: np.ndarray, labels: np.ndarray, tasks: Sequence[object], pictures: Sequence[str]
) -> tuple[np.ndarray, float]:
    """Which answers are right after the shift, each chosen without its picture; and the first task's shift on all.

    The shift of a pair of answers puts the middle between the means of both classes to 0.
    """
    right = np.zeros(len(toward), bool)
    kinds, shown = np.array([list(dict.fromkeys(tasks)).index(one) for one in tasks]), np.array(pictures)
    for at in range(len(toward)):
        others = (kinds == kinds[at]) & (shown != shown[at])
        right[at] = (toward[at] > _middle(toward, labels, others)) == (labels[at] == 1)
    return right, -_middle(toward, labels, kinds == 0)


def _middle(toward: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> float:
    sides = [toward[chosen & (labels == label)] for label in (0, 1)]
    return float(np.mean([one.mean() if len(one) else 0.0 for one in sides]))


def _control(cases: Sequence[Case], kind: str) -> np.ndarray | None:
    """Margins with the picture replaced, nats; None where a probe lacks it."""
    found = [
        next((one.margin_nats for one in case.record.picture_controls if one.kind == kind), None)
        for case in cases
    ]
    return None if any(one is None for one in found) else np.array(found, float)


_WITHOUT = {
    OTHER: "with a picture of another answer",
    BLANK: "with a blank one",
    NO_PICTURE: "without any",
}


def picture_test(members: Sequence[Case], thresholds: Thresholds) -> Leg:
    """How much of the margin moves, either way, when the picture is replaced? The replacement that moves most counts.

    Not the mean margin: a wrong answer taken from the picture and a right one are both asked of it.
    """
    shares: dict[str, Interval] = {}
    sizes: dict[str, int] = {}
    for kind in _WITHOUT:
        having = [case for case in members if any(one.kind == kind for one in case.record.picture_controls)]
        pictures = pictures_of(having)
        if len(set(pictures)) < thresholds.probes:
            continue
        true, other = margins_of(having), _control(having, kind)
        assert other is not None
        share = ratio_of_means(np.abs(true - other), np.abs(true), pictures)
        if share is not None:
            shares[kind], sizes[kind] = share, len(having)
    judged = {kind: one for kind, one in shares.items() if kind != NO_PICTURE}
    if not judged:
        return not_measured(
            thresholds.moved,
            f"Fewer than {thresholds.probes} pictures could be replaced by another or a blank one.",
        )
    kind, value = max(judged.items(), key=lambda one: one[1].mean)
    moved = ", ".join(f"{percent(one.mean)} {_WITHOUT[name]}" for name, one in shares.items())
    words = (
        f"Of the margin's size, so much moves when the picture is replaced: {moved} "
        f"({share_interval(*value[1:])} {_WITHOUT[kind]}; at least {percent(thresholds.moved)} must)"
    )
    return Leg(
        value.mean >= thresholds.moved,
        sizes[kind],
        value.mean,
        (value.low, value.high),
        thresholds.moved,
        f"{words}.",
    )
