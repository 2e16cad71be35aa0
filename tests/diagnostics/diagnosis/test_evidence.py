"""Where probes share pictures, two shares of right answers are told apart; the smaller one is judged."""

from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics import diagnose as program
from diagnostics.diagnosis.at_start import markdown
from diagnostics.diagnosis.cases import Case
from diagnostics.diagnosis.diagnosing import Diagnosis, GroupDiagnosis
from diagnostics.diagnosis.evidence import ANSWERS, answers_test, evidence_of
from diagnostics.diagnosis.remedies import Remedy
from diagnostics.diagnosis.stages import RIGHT, Stage
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import Made, flat, pairs_of

MANY_RIGHT = (3.0,) * 6 + (3.0, -3.0, -3.0, -3.0)
MANY_WRONG = (-3.0,) * 6 + (3.0, 3.0, 3.0, 3.0)
"""One picture is asked six questions, each of four others one."""


def cases_of(folder: Path, margins: tuple[float, ...]) -> list[Case]:
    """The first six probes show one picture."""
    pairs = flat(pairs_of(folder, tower=Made(probes=len(margins), margins=(margins, margins))))
    first = pairs[0].probe.images
    return [
        Case(replace(pair.probe, images=first) if at < 6 else pair.probe, pair.before, None)
        for at, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("margins", "of_probes", "of_pictures"), [(MANY_RIGHT, 0.7, 0.4), (MANY_WRONG, 0.4, 0.8)]
)
def test_both_shares_are_in_the_sentence_and_the_interval_is_that_of_pictures(
    tmp_path: Path, margins, of_probes, of_pictures
):
    leg = answers_test(cases_of(tmp_path, margins), Thresholds())
    assert leg.value == pytest.approx(min(of_probes, of_pictures)) and not leg.holds
    said = f"{of_probes:.0%} of the answers are right, {of_pictures:.0%} with each picture counted once (95 % interval "
    assert leg.reason.startswith(said.replace("0%", "0 %"))
    assert leg.reason.endswith(" of these; at least 80 % of both must be).") and translated(leg.reason)
    low, high = leg.ci95
    assert low <= leg.value <= high


def test_one_share_is_said_where_no_probes_share_a_picture(tmp_path: Path):
    cases = [
        Case(pair.probe, pair.before, None)
        for pair in flat(pairs_of(tmp_path, tower=Made(probes=8, margins=(3.0, 3.0))))
    ]
    assert answers_test(cases, Thresholds()).reason.startswith(
        "100 % of the answers are right (95 % interval "
    )
    found = evidence_of(cases, {}, None, lent={}, thresholds=Thresholds())
    assert found.pictures_right is None and found.right_words() == "100 %"


def test_tables_of_the_program_and_of_a_run_say_both(tmp_path: Path):
    found = evidence_of(cases_of(tmp_path, MANY_RIGHT), {}, None, lent={}, thresholds=Thresholds())
    assert (found.accuracy, found.pictures_right, found.pictures) == (0.7, 0.4, 5)
    stage, remedy = Stage(RIGHT, found.tests[ANSWERS].reason), Remedy("", (), "None are missing.", "")
    diagnosis = Diagnosis("m", "qwen-vl", {"tower": GroupDiagnosis(found, stage, remedy)}, {})
    assert "70 %, 40 % by picture" in program.table(diagnosis)
    assert "| tower | 70 %, 40 % by picture | right |" in markdown(diagnosis, {"language"})
    group = diagnosis.as_json()["groups"]["tower"]
    assert (group["accuracy"], group["pictures_right"]) == (0.7, 0.4)
