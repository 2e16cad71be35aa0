"""Counts of right answers by hand, and the table that shows them."""

import json

import pytest

from finetune.realcase import results
from finetune.realcase.choices import Chosen

CHOSEN = [
    Chosen("a", "side-both", "en", 0, 8, (0.5, 0.1, 0.9)),
    Chosen("b", "side-both", "en", 1, 8, (0.5, 0.3, 0.1)),
    Chosen("c", "side-both", "en", 5, 8, (0.5, 0.2, 0.2)),
    Chosen("d", "side-both", "zh", 0, 8, (0.5, 0.0, 1.0)),
    Chosen("e", "on-trained", "en", 0, 2, ()),
]


def test_scores_by_hand():
    found = results.scores(CHOSEN, [1, 2])
    english = found["side-both/en"]
    assert (english.right, english.questions, english.foils) == (1, 3, 1) and english.chance == 1 / 8
    # (.5 + .2 + .2) / 3
    assert english.mass == pytest.approx(0.3) and english.accuracy == pytest.approx(1 / 3)
    assert found["on-trained/en"].mass is None and found["on-trained/en"].chance == 0.5


def test_the_table_shows_every_run_and_step_and_what_was_not_measured():
    runs = {"aligned": {0: results.scores(CHOSEN, [1])}, "look-0": {100: results.scores(CHOSEN[:1], [1])}}
    table = results.as_markdown(runs, {"date": "2026-11-29"})
    assert "## side (chance 12.5%)" in table and "## on (chance 50.0%)" in table
    assert "| aligned | 0 | 1 of 3 (33%) | 1 of 1 (100%) | 0.10 |" in table
    assert "| look-0 | 100 | 1 of 1 (100%) | not measured | 0.10 |" in table
    assert "| look-0 | 100 | not measured | not measured |" in table
    written = json.loads(json.dumps(results.as_json(runs, {"date": "2026-11-29"})))
    assert written["runs"]["aligned"]["0"]["side-both/en"]["accuracy"] == pytest.approx(1 / 3)
