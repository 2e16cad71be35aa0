"""Two precisions in one comparison are named."""

from dataclasses import replace

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.precision_warning import precision_warnings
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import Made, pairs_of


def test_two_precisions_are_named_and_unknown_ones_are_not(tmp_path):
    groups = pairs_of(tmp_path, tower=Made(probes=4))
    (pairs,) = groups.values()

    def measured(before, after):
        return [
            replace(
                one,
                before=replace(one.before, precision=before),
                after=replace(one.after, precision=after),
            )
            for one in pairs
        ]

    for alike in (("", "bfloat16"), ("float32", ""), ("float32", "float32")):
        assert precision_warnings(measured(*alike)) == []
    other = [*pairs[:1], *measured("float32 (autocast: bfloat16)", "4 bit (bfloat16)")[1:]]
    (line,) = precision_warnings(other)
    assert "in float32 (autocast: bfloat16), the model after in 4 bit (bfloat16): some" in line
    assert "4 bit (bfloat16)" in str(translated(line))
    assert comparison_of(other)["groups"]["tower"]["warnings"] == [line]
