"""Which other regions still decide: the same size is asked of them as of the judged one, whatever they are called."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.legs.cause import rivals_of
from diagnostics.comparison.pairs import ProbePair
from diagnostics.comparison.thresholds import Thresholds
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of


def _rivals(pairs: list[ProbePair], thresholds: Thresholds | None = None) -> list[tuple[str, float]]:
    margins = np.array([pair.after.scores.margin_nats for pair in pairs])
    found = rivals_of(pairs, margins, thresholds or Thresholds())
    return [(one.name, pytest.approx(one.share)) for one in found]


def _renamed(pair: ProbePair, name: str) -> ProbePair:
    """The probe with another name for its podium."""
    regions = {name if one == "podium" else one: boxes for one, boxes in pair.probe.regions.items()}
    after = replace(
        pair.after,
        interventions=tuple(
            one._replace(region=name) if one.region == "podium" else one for one in pair.after.interventions
        ),
    )
    return replace(pair, probe=replace(pair.probe, regions=regions), after=after)


def test_a_rival_is_measured_by_the_mean_margin_as_the_region_is(tmp_path: Path) -> None:
    """20 margins of 3 and four of −9: mean 1. A podium that shifts .8 nats, .7 beyond its controls, is 70 % of it."""
    made = Made(margins=(-3.0, [3.0] * 20 + [-9.0] * 4), other_cost=(0.2, 0.8))
    assert _rivals(pairs_of(tmp_path, towers=made)["towers"]) == [("podium", 0.7)]
    small = replace(made, other_cost=(0.2, 0.5))
    assert _rivals(pairs_of(tmp_path, towers=small)["towers"]) == []


def test_a_rival_under_many_names_is_one(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, towers=Made(other_cost=(12.0, 5.0)))["towers"]
    assert _rivals(pairs) == [("podium", 4.9 / 6)]
    named = [_renamed(pair, f"podium-{at}") for at, pair in enumerate(pairs)]
    assert _rivals(named) == [("other regions", 4.9 / 6)]
    assert _rivals(named[:19]) == []
    assert _rivals(named[:19], Thresholds(probes=19)) == [("other regions", 4.9 / 6)]


def test_the_reason_says_which_share_there_is_none_of(tmp_path: Path) -> None:
    for margins, words in (
        ((3.0, [9.0] * 12 + [-4.0] * 12), "the margin did not rise significantly"),
        ((-9.0, [9.0] * 12 + [-9.0] * 12), "the margin is not significantly above 0"),
    ):
        pairs = flat(pairs_of(tmp_path, towers=Made(margins=margins), others=GUARDS))
        leg = comparison_of(pairs)["groups"]["towers"]["legs"]["cause"]
        assert leg["holds"] is False and words in leg["reason"], leg["reason"]
