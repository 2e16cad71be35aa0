"""The sentences of a diagnosis cite the numbers that its tests judge."""

import pytest

from diagnostics.comparison.legs.leg import Leg
from diagnostics.diagnosis.diagnosing import GroupDiagnosis
from diagnostics.diagnosis.evidence import ANSWERS, Evidence
from diagnostics.diagnosis.remedies import Remedy
from diagnostics.diagnosis.stages import Stage
from diagnostics.report.diagnosis_page import _right_words
from diagnostics.report.languages import translated


@pytest.mark.parametrize(
    ("of_probes", "of_pictures", "words"),
    [
        (46 / 60, 11 / 25, "76.7 % are right, 44 % with each picture counted once."),
        (11 / 25, 46 / 60, "44 % are right, 76.7 % with each picture counted once."),
        (0.7, None, "70 % are right."),
    ],
)
def test_both_shares_are_named_of_which_the_smaller_is_judged(
    of_probes: float, of_pictures: float | None, words: str
) -> None:
    leg = Leg(False, 60, min(of_probes, of_pictures or 1.0), (0.2, 0.8), 0.8, "A reason.")
    evidence = Evidence(60, 25, of_probes, {ANSWERS: leg}, pictures_right=of_pictures)
    found = _right_words(
        GroupDiagnosis(evidence, Stage(None, "Why."), Remedy("", (), "None are missing.", ""))
    )
    assert found == f" {words}"
    assert translated(words) is not None
