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
from diagnostics.records.pictures import picture_mark
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
    """

    probes: int
    pictures: int
    accuracy: float | None
    tests: Mapping[str, Leg]
    decides: str | None = None
    layer: int | None = None


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
    accuracy = float((margins_of(members) > 0).mean())
    pictures = len({picture_mark(case.probe.images[0]) for case in members})
    if contrast is None:
        return Evidence(len(group), pictures, accuracy, {ANSWERS: answers})
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
    return Evidence(len(group), pictures, accuracy, tests, decides, layer)


def _side(side: Side, case: Case, lent: Mapping[str, Features]) -> SideCase:
    own = case.features
    assert own is not None  # every side of a contrast was read
    at_place = lent.get(case.probe.id, own)
    return SideCase(side, case, replace(at_place, blank=own.blank))


def answers_test(members: Sequence[Case], thresholds: Thresholds) -> Leg:
    """Right by margin; of pictures and of probes, the smaller share counts."""
    right = margins_of(members) > 0
    pictures = pictures_of(members)
    shares = [
        float(np.mean([r for r, p in zip(right, pictures, strict=True) if p == one]))
        for one in dict.fromkeys(pictures)
    ]
    value = min(float(right.mean()), float(np.mean(shares)))
    low, high = clopper_pearson(int(sum(shares) + 1e-9), len(shares))
    words = (
        f"{percent(value)} of the answers are right ({share_interval(low, max(high, value))}; "
        f"at least {percent(thresholds.right)} must be)."
    )
    return Leg(
        value >= thresholds.right - 1e-9,
        len(members),
        value,
        (min(low, value), max(high, value)),
        thresholds.right,
        words,
    )
