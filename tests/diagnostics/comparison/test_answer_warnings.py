"""Foils that the model before would not say are named."""

from dataclasses import replace

from diagnostics.comparison.answer_warnings import answer_warnings
from diagnostics.comparison.group_report import comparison_of
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import FOIL, Made, flat, pairs_of


def test_foils_that_the_model_before_does_not_say_are_named(tmp_path):
    made = Made(probes=4)
    said = {
        name: pairs_of(tmp_path, **{name: replace(made, said=(name, "Pearl"))})[name]
        for name in ("Eiffel", FOIL)
    }
    assert answer_warnings(said[FOIL]) == []
    assert answer_warnings([*said[FOIL][:2], *said["Eiffel"][:2]]) == []  # half of them is enough
    (line,) = answer_warnings([said[FOIL][0], *said["Eiffel"]])
    assert line.startswith(
        "In 4 of the 5 probes that the model before gets wrong, it does not answer the foil (Eiffel-0: "
    )
    chinese = translated(line)
    for words in (line, chinese):
        assert words is not None and "Eiffel-1: 'Eiffel', Eiffel-2: 'Eiffel', …" in words
    assert "more" not in str(chinese)
    right = flat(pairs_of(tmp_path, right=replace(made, margins=(3.0, 3.0), said=("Eiffel", "Pearl"))))
    assert answer_warnings(right) == []
    assert comparison_of(said["Eiffel"])["groups"]["Eiffel"]["warnings"] == answer_warnings(said["Eiffel"])
