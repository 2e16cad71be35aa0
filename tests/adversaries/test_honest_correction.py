"""The counterpart of the adversaries: adapters that learned the truth are found to have done so, by every leg."""

import pytest

from diagnostics.comparison.verdicts import CORRECTED, KEPT
from tests.adversaries.edits import with_deltas
from tests.adversaries.judging import BOTH


@pytest.fixture(scope="module")
def honest(base, judge):
    return judge(with_deltas(base.model, "honest"), groups=BOTH)


def test_the_correction_is_found(honest):
    assert honest.verdicts == {**dict.fromkeys(BOTH, CORRECTED), "neighbour": KEPT}


@pytest.mark.parametrize("group", BOTH)
def test_every_leg_holds(honest, group):
    legs = honest.groups[group]["legs"]
    assert {name: leg["holds"] for name, leg in legs.items()} == dict.fromkeys(legs, True)


def test_without_guards_it_is_said_to_be_unguarded(honest):
    assert honest.without_guards["sphere-building"] == "corrected, unguarded"
