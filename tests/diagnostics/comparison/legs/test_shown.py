"""The legs in words: marks, numbers with their units, and where a verdict rests on none."""

from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.legs.shown import NAMES, marks, shown_legs
from diagnostics.comparison.verdicts import Legs
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of


def leg(**given: object) -> dict[str, object]:
    one = {"holds": True, "probes": 40, "value": 0.4129, "ci95": [-0.05, 0.5], "threshold": 0.2}
    return {**one, "reason": "It <holds>.", **given}


def group(**legs: dict[str, object]) -> dict[str, object]:
    return {"legs": legs, "reasons": [one["reason"] for one in legs.values()]}


def test_every_leg_of_a_verdict_has_its_words() -> None:
    assert Legs._fields == NAMES


def test_numbers_have_units_and_only_attention_has_signs() -> None:
    cause, attention = shown_legs(
        group(cause=leg(), attention=leg(reason="Away.", holds=False, value=-1.002))
    )
    assert (cause.chinese, cause.mark, cause.value, cause.threshold) == ("因果", "✓", "41.3 %", "20 %")
    assert cause.unit == "of the margin’s rise, in cost of hiding it" and cause.interval == "-5 to 50 %"
    assert (attention.mark, attention.value, attention.interval) == ("✗", "-100.2 %", "-5 to +50 %")
    assert cause.reason == "It <holds>." and cause.probes == 40


def test_a_leg_without_a_number_shows_none() -> None:
    (one,) = shown_legs(group(guards=leg(holds=None, value=None, ci95=None, probes=0)))
    assert (one.mark, one.value, one.interval) == ("–", "", "")
    (one,) = shown_legs(group(cause=leg(holds=False, value=None, ci95=None)))
    assert (one.mark, one.value) == ("✗", "")


def test_marks_stand_in_the_order_of_the_legs() -> None:
    of = [leg(holds=holds, reason=str(at)) for at, holds in enumerate((True, False, None))]
    assert marks(group(answers=of[0], picture=of[1], guards=of[2])) == "✓✗–"


@pytest.mark.parametrize(
    "given",
    [
        {"reasons": ["The right answer is likelier."]},  # a comparison of an earlier version
        {"reasons": ["All kept."], "legs": {"answers": leg()}},
        {"reasons": [], "legs": {}},
    ],
)
def test_a_verdict_that_rests_on_something_else_shows_no_legs(given: dict[str, object]) -> None:
    assert shown_legs(given) == [] and marks(given) == ""


def test_of_a_comparison(tmp_path: Path) -> None:
    pairs = flat(pairs_of(tmp_path, towers=Made(), retention=GUARDS, few=replace(GUARDS, probes=19)))
    groups = comparison_of(pairs)["groups"]
    assert [marks(groups[name]) for name in ("towers", "retention", "few")] == ["✓✓✓✓✓✓", "", ""]
    unguarded = comparison_of(flat(pairs_of(tmp_path, towers=Made())))["groups"]["towers"]
    assert marks(unguarded) == "✓✓✓✓✓–"
