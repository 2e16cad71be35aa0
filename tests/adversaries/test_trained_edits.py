"""What training can teach that is no correction: attention that is moved for show, answers from the words or from a
frame, answers without truth, and right answers that attention has no part in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from torch import nn

from diagnostics.comparison.verdicts import (
    ATTENTION_ALONE,
    CORRECTED,
    FROM_WORDS,
    GUARD_BROKE,
    NOT_BY_LOOKING,
    UNGUARDED,
)
from diagnostics.records.measurement_plan import QUICK, MeasurementPlan
from tests.adversaries.edits import PEARL, with_bias, with_deltas
from tests.adversaries.judging import BOTH, LIGHT, TOWERS


def reaimed_and_biased(base):
    edited = with_deltas(base.model, "reaimed")
    return with_bias(edited, base.processor.tokenizer, dict.fromkeys(PEARL, 11.0))


def by(*names):
    return lambda base: with_deltas(base.model, *names)


SPHERES = "sphere-building"


class Edit(NamedTuple):
    """What is done to the base, the verdicts that name the fault, the kind of probes, the groups, and how deep."""

    made: Callable[[Any], nn.Module]
    expected: dict[str, str]
    kind: str = "plain"
    groups: tuple[str, ...] = TOWERS
    depth: MeasurementPlan = LIGHT


EDITS = {
    "attention re-aimed at the region, answers kept": Edit(by("reaimed"), {SPHERES: ATTENTION_ALONE}),
    "attention re-aimed, and an output bias": Edit(reaimed_and_biased, {SPHERES: GUARD_BROKE}),
    "answers from the wording": Edit(by("words"), dict.fromkeys(BOTH, GUARD_BROKE), "worded", BOTH, QUICK),
    "answers by a coin": Edit(by("coin"), {SPHERES: GUARD_BROKE}),
    "whatever is asked, the Oriental Pearl": Edit(by("pearl"), {SPHERES: GUARD_BROKE}),
    "the flaw turned round": Edit(by("turned"), {SPHERES: GUARD_BROKE}),
    "answers from the frame": Edit(by("border"), {}, "framed", BOTH, QUICK),
    "right answers, attention on the cue": Edit(by("elsewhere"), {}),
}


@pytest.fixture(scope="module", params=EDITS)
def edited(request, base, judge):
    edit = EDITS[request.param]
    return edit, judge(edit.made(base), edit.kind, groups=edit.groups, depth=edit.depth)


def test_no_group_is_corrected_with_or_without_guards(edited):
    _, found = edited
    for verdict in (*found.verdicts.values(), *found.without_guards.values()):
        assert not verdict.startswith(CORRECTED)


def test_the_verdict_names_the_fault(edited):
    edit, found = edited
    assert {name: found.verdicts[name] for name in edit.expected} == edit.expected


@pytest.mark.parametrize("edited", ["answers from the wording"], indirect=True)
def test_answers_from_the_words_are_called_so(edited):
    """It lost other towers on the way, which are neighbours; without them the verdict has the words to name."""
    assert edited[1].without_guards == dict.fromkeys(BOTH, FROM_WORDS)


@pytest.mark.parametrize("edited", ["answers from the frame"], indirect=True)
def test_right_answers_and_kept_guards_are_not_enough(edited):
    """Of a frame, only attention and cause tell."""
    legs = {name: leg["holds"] for name, leg in edited[1].groups[SPHERES]["legs"].items()}
    assert (legs["answers"], legs["guards"], legs["attention"], legs["cause"]) == (True, True, False, False)


@pytest.mark.parametrize(
    "names", [("mlp", "reads"), ("mlp", "reads", "reads_reaimed")], ids=["alone", "and attention re-aimed"]
)
def test_right_answers_without_a_query_or_key_are_not_corrected_by_looking(base, judge, names):
    """All is right and attention has moved, but what is read carries it, as the layers that are judged tell."""
    found = judge(with_deltas(base.model, *names), groups=TOWERS)
    assert not found.groups[SPHERES]["legs"]["mediation"]["holds"]
    for verdict in (*found.verdicts.values(), *found.without_guards.values()):
        assert verdict not in (CORRECTED, UNGUARDED)
    assert found.without_guards[SPHERES] == NOT_BY_LOOKING
