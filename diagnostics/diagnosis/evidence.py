"""The tests of a diagnosis: each a number with an interval, a threshold and a sentence, or why it was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diagnostics.comparison.legs.answers import is_right
from diagnostics.comparison.legs.leg import Leg, not_measured, percent
from diagnostics.diagnosis.cases import Case, SideCase, margins_of, pictures_of, share_interval
from diagnostics.diagnosis.contrasts import Contrast, Side
from diagnostics.diagnosis.features import Features
from diagnostics.diagnosis.leaning import one_shift, picture_test
from diagnostics.diagnosis.looking import attention_test, hiding_test
from diagnostics.diagnosis.states import StateTests
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.measures.statistics import clopper_pearson
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord

ANSWERS, SHIFTED, PICTURE, TOWER, TOKENS, LOOKS, STATE, HIDING = TESTS = (
    "answers",
    "one shift",
    "picture",
    "tower",
    "tokens",
    "attention",
    "answer state",
    "hiding",
)
"""The tests, in the order in which they are asked."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of a group.

    probes    of the group, those without a foil included
    pictures  that its probes with a foil stand on
    accuracy  share of its probes that are right by margin; None without a foil
    tests     by name, in the order of asking
    decides   the other named region that the wrong answers depend on; None where none does
    layer     the key layer that looks at the region most where answers are wrong; None where it was not measured
    pictures_right   share right with each picture counted once, by the share of its answers that are; None where no
              probes share a picture, so that it is the accuracy
    """

    probes: int
    pictures: int
    accuracy: float | None
    tests: Mapping[str, Leg]
    decides: str | None = None
    layer: int | None = None
    pictures_right: float | None = None

    def right_words(self) -> str:
        """ "76.7 %"; where probes share pictures "76.7 %, 44 % by picture", and the smaller is judged; else "–"."""
        if self.accuracy is None:
            return "–"
        words = percent(self.accuracy)
        return words if self.pictures_right is None else f"{words}, {percent(self.pictures_right)} by picture"


def is_at_fault(records: Sequence[AttentionRecord], probes: Sequence[Probe], thresholds: Thresholds) -> bool:
    """Is a group wrong, on enough pictures to say so? Only then is it asked where the answer is lost."""
    scored = [
        Case(probe, record, None)
        for probe, record in zip(probes, records, strict=True)
        if probe.foil is not None
    ]
    if len(set(pictures_of(scored))) < thresholds.probes:
        return False
    return not answers_test(scored, thresholds).holds


def evidence_of(
    group: Sequence[Case],
    cases: Mapping[str, Case],
    contrast: Contrast | None,
    *,
    lent: Mapping[str, Features],
    thresholds: Thresholds,
    seed: int = 0,
) -> Evidence:
    """Every test of one group.

    group     its cases
    cases     those of all groups, by probe id
    contrast  None: the group is right or too small, and only its answers are judged
    lent      states of guards at a place lent by this group, by probe id: where they have no region of that name
    """
    members = [case for case in group if case.probe.foil is not None]
    if not members:
        reason = "No probe of this group has a foil to compare with its answer."
        return Evidence(len(group), 0, None, {ANSWERS: not_measured(thresholds.right, reason)})
    answers = answers_test(members, thresholds)
    by_picture = _right_by_picture(members)
    accuracy, pictures = float((margins_of(members) > 0).mean()), len(by_picture)
    of_pictures = float(np.mean(by_picture)) if pictures < len(members) else None
    if contrast is None:
        return Evidence(len(group), pictures, accuracy, {ANSWERS: answers}, pictures_right=of_pictures)
    wrong = [case for case in members if not is_right(case.record)]
    sides = [_side(side, cases[side.probe.id], lent) for side in contrast.sides]
    states = StateTests(sides, contrast, thresholds, seed)
    looks, layer = attention_test(wrong, thresholds)
    hiding, decides = hiding_test(wrong, thresholds)
    tests = {
        ANSWERS: answers,
        SHIFTED: one_shift(sides, contrast, thresholds),
        PICTURE: picture_test(members, thresholds),
        TOWER: states.tower(),
        TOKENS: states.tokens(),
        LOOKS: looks,
        STATE: states.answer(),
        HIDING: hiding,
    }
    return Evidence(len(group), pictures, accuracy, tests, decides, layer, of_pictures)


def _side(side: Side, case: Case, lent: Mapping[str, Features]) -> SideCase:
    own = case.features
    assert own is not None  # every side of a contrast was read
    at_place = lent.get(case.probe.id, own)
    return SideCase(side, case, replace(at_place, blank=own.blank))


def answers_test(members: Sequence[Case], thresholds: Thresholds) -> Leg:
    """Right by margin; of pictures and of probes, the smaller share counts."""
    of_probes, shares = float((margins_of(members) > 0).mean()), _right_by_picture(members)
    of_pictures = float(np.mean(shares))
    value = min(of_probes, of_pictures)
    low, high = clopper_pearson(int(sum(shares) + 1e-9), len(shares))
    interval, least = share_interval(low, max(high, of_pictures)), percent(thresholds.right)
    if len(shares) == len(members):
        words = f"{percent(value)} of the answers are right ({interval}; at least {least} must be)."
    else:
        words = (
            f"{percent(of_probes)} of the answers are right, {percent(of_pictures)} with each picture counted once "
            f"({interval} of these; at least {least} of both must be)."
        )
    return Leg(
        value >= thresholds.right - 1e-9,
        len(members),
        value,
        (min(low, value), max(high, value)),
        thresholds.right,
        words,
    )


def _right_by_picture(members: Sequence[Case]) -> list[float]:
    """Of each picture, the share of its answers that are right by margin."""
    right, pictures = margins_of(members) > 0, pictures_of(members)
    return [
        float(np.mean([r for r, p in zip(right, pictures, strict=True) if p == one]))
        for one in dict.fromkeys(pictures)
    ]
