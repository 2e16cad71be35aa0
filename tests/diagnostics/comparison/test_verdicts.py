"""Verdicts on what must be kept, on too few probes, and whether they are what --require asks or fall short. What a
correction needs: ``test_verdicts_of_groups``."""

from dataclasses import replace

import pytest
from PIL import Image

from diagnostics.comparison.legs.answers import FEWER, MORE, SAME, Answers
from diagnostics.comparison.legs.leg import Leg, not_measured
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import (
    Evidence,
    Legs,
    lost,
    never_met,
    requirement,
    shortfalls,
    verdict,
)
from diagnostics.records.probes import Probe
from diagnostics.report.languages import translated

TRAINED = "in 12 of 40 probes a picture is in the training data, the first is p-003"


def evidence(
    group="towers", probes=40, images=None, after=1.0, effect_size=None, change=SAME, trained=""
) -> Evidence:
    leg = Leg(True, probes, after, (0.9, 1.0), 0.8, "A reason.")
    answers = Answers(
        probes, images or probes, 1.0, after, 1.0, after, (0.9, 1), (0.9, 1), 0, 0, 1.0, (-0.1, 0.1), True, change,
        None, False, None, leg,
    )  # fmt: skip
    legs = Legs(leg, *[not_measured(0.5, "Not measured.")] * 5)
    return Evidence(group, probes, images or probes, answers, None, legs, effect_size, trained)


def test_too_few_says_how_many_there_are_and_how_many_it_takes():
    assert verdict(evidence(probes=5, effect_size=0.5), Thresholds()).reasons == (
        "5 probes cannot distinguish a change from chance; at least 20 probes on as many different pictures are "
        "needed, and about 54 for a change as large and as consistent as this one.",
    )
    assert "on 1 picture cannot distinguish" in verdict(evidence(images=1), Thresholds()).reasons[0]
    assert (
        verdict(evidence(probes=5, effect_size=3.0), Thresholds())
        .reasons[0]
        .endswith("about 20 for a change as large and as consistent as this one.")
    )
    assert verdict(evidence(probes=1), Thresholds()).reasons[0].startswith("1 probe cannot")
    assert (
        verdict(evidence(probes=1, effect_size=0.0), Thresholds()).reasons[0].endswith("pictures are needed.")
    )


@pytest.mark.parametrize(
    ("group", "probes", "after", "expected", "turn"),
    [
        ("retention", 100, 0.97, "kept", "one more wrong answer would fall below that line"),
        ("retention", 100, 0.98, "kept", None),
        ("retention", 100, 0.96, "forgot", "one more right answer would reach that line"),
        ("retention", 100, 0.95, "forgot", None),
        ("retention", 20, 1.0, "kept", "with 20 probes, one more wrong answer"),
        ("retention", 20, 0.95, "forgot", "with 20 probes, one more right answer"),
        ("neighbour", 40, 1.0, "kept", None),
        ("neighbour", 40, 0.95, "kept", "one more wrong answer"),
        ("neighbour", 40, 0.5, "broke a neighbour", None),
    ],
)
def test_what_was_known_must_be_kept(group, probes, after, expected, turn):
    result = verdict(evidence(group, probes, after=after), Thresholds())
    share = "97 %" if group == "retention" else "95 %"
    assert result.verdict == expected and len(result.reasons) == 1
    assert "of the probes are answered correctly, 100 % before" in result.reasons[0]
    assert (
        f"{'at least' if expected == 'kept' else 'less than'} {share} of the accuracy before"
        in result.reasons[0]
    )
    assert ("one more" in result.reasons[0]) == (turn is not None) and (turn or "") in result.reasons[0]


@pytest.mark.parametrize(
    ("group", "after", "of_pictures", "expected", "words"),
    [
        ("retention", 0.98, 0.97, "kept", "at least 97 % of the accuracy before by both."),
        ("retention", 0.98, 0.96, "forgot", "less than 97 % of the accuracy before by picture."),
        ("retention", 0.96, 0.98, "forgot", "less than 97 % of the accuracy before by answers."),
        ("neighbour", 0.99, 0.95, "kept", "at least 95 % of the accuracy before by both."),
        ("neighbour", 0.94, 0.4, "broke a neighbour", "less than 95 % of the accuracy before by both."),
    ],
)
def test_what_was_known_must_be_kept_of_probes_and_of_pictures(group, after, of_pictures, expected, words):
    """Many questions of one picture cannot hide that the other pictures were lost."""
    given = evidence(group, 500, images=100, after=after)
    assert given.answers is not None
    answers = given.answers._replace(pictures_after=of_pictures)
    found = verdict(replace(given, answers=answers), Thresholds())
    assert found.verdict == expected
    assert found.reasons[0].endswith(
        f"with each picture counted once {of_pictures * 100:.0f} %, 100 % before: {words}"
    )
    assert translated(found.reasons[0]) is not None
    gone = lost(group, answers)
    assert (None if gone is None else gone.verdict) == (None if expected == "kept" else expected)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({"change": MORE}, "not held out"),
        ({"change": SAME}, "not held out"),
        ({"group": "retention"}, "not held out"),
        ({"group": "neighbour"}, "not held out"),
        ({"change": FEWER}, "answers got worse"),
        ({"group": "retention", "after": 0.5}, "forgot"),
        ({"group": "neighbour", "after": 0.5}, "broke a neighbour"),
        ({"probes": 19}, "too few probes"),
        ({"group": "retention", "images": 19}, "too few probes"),
    ],
)
def test_what_was_trained_on_shows_only_a_loss(made, expected):
    found, without = (verdict(evidence(**made, trained=words), Thresholds()) for words in (TRAINED, ""))
    assert found.verdict == expected and without.verdict != "not held out"
    if expected == "not held out":
        assert found.reasons == (
            "In 12 of 40 probes a picture is in the training data, the first is p-003: what was trained on says "
            "nothing of other pictures.",
        )
    else:
        assert found == without


GROUPS = ("pearl", "塔=楼", "retention", "neighbour")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("corrected", {"pearl": "corrected", "塔=楼": "corrected", "retention": "kept", "neighbour": "kept"}),
        ("pearl=corrected", {"pearl": "corrected"}),
        (" pearl = corrected , retention=kept", {"pearl": "corrected", "retention": "kept"}),
        ("塔=楼=it did not move", {"塔=楼": "it did not move"}),
        ("pearl=not held out,retention=not held out", {"pearl": "not held out", "retention": "not held out"}),
        (
            "pearl=attention moved, answers did not,neighbour=kept",
            {"pearl": "attention moved, answers did not", "neighbour": "kept"},
        ),
        (
            "neighbour=broke a neighbour,corrected",
            {
                "pearl": "corrected",
                "塔=楼": "corrected",
                "retention": "kept",
                "neighbour": "broke a neighbour",
            },
        ),
    ],
)
def test_requirements(text, expected):
    assert requirement(text, GROUPS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("perl=corrected", "found no group 'perl'; .* the groups are pearl, 塔=楼, retention, neighbour"),
        (
            "pearl=fixed",
            """found 'pearl=fixed'; expected for the group 'pearl' one of "corrected", .*"it did not""",
        ),
        ("pearl=kept", "expected for the group 'pearl' one of"),
        ("retention=corrected", """the group 'retention' one of "kept", "forgot", "broke a neighbour"$"""),
        (
            "fixed",
            """found 'fixed'; expected "corrected", or GROUP=VERDICT, several with commas; the groups""",
        ),
        ("", "found an empty part"),
        ("pearl=corrected,", "found an empty part"),
    ],
)
def test_requirements_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        requirement(text, GROUPS)


def test_shortfalls_name_the_group_and_say_why():
    groups = {
        "pearl": {"verdict": "it did not move", "reasons": ["Nothing happened.", "Nor here."]},
        "retention": {"verdict": "kept", "reasons": ["Fine."]},
    }
    assert shortfalls({"retention": "kept"}, groups) == []
    assert shortfalls(requirement("corrected", ["pearl", "retention"]), groups) == [
        'pearl: must be "corrected", is "it did not move". Nothing happened.'
    ]
    assert shortfalls({"cat": "corrected"}, groups) == [
        'cat: must be "corrected", and is not in the comparison.'
    ]


@pytest.mark.parametrize("claim", ["too few probes", "not held out"])
def test_where_no_leg_decides_the_shortfall_gives_the_reason_that_does(claim):
    legs = {"cause": {"holds": False, "reason": "Hiding the region costs too little."}}
    groups = {"pearl": {"verdict": claim, "reasons": ["This is why."], "legs": legs}}
    assert shortfalls(requirement("corrected", groups), groups) == [
        f'pearl: must be "corrected", is "{claim}". This is why.'
    ]


def test_an_unguarded_correction_passes_only_where_that_is_allowed():
    leg = {"holds": None, "reason": "No guards."}
    groups = {"pearl": {"verdict": "corrected, unguarded", "reasons": ["Fine."], "legs": {"guards": leg}}}
    required = requirement("corrected", groups)
    assert shortfalls(required, groups) == [
        'pearl: must be "corrected", is "corrected, unguarded". No guards.'
    ]
    assert shortfalls(required, groups, as_good=("corrected, unguarded",)) == []
    assert shortfalls({"pearl": "it did not move"}, groups, as_good=("corrected, unguarded",))
    assert requirement("pearl=corrected, unguarded,retention=kept", ["pearl", "retention"]) == {
        "pearl": "corrected, unguarded",
        "retention": "kept",
    }


def test_groups_that_no_training_can_correct_are_named(tmp_path):
    for at in range(3):
        Image.new("RGB", (5, 3), (at, 0, 0)).save(tmp_path / f"{at}.png")

    def probes(group, **parts):
        return [
            Probe(f"{group}-{at}", group, (tmp_path / f"{at % 3}.png",), "what?", "a", **parts)
            for at in range(4)
        ]

    box = {"thing": ((0.0, 0.0, 2.0, 3.0),)}
    given = [
        *probes("whole", foil="b", regions=box),
        *probes("no region", foil="b"),
        *probes("no foil", regions=box),
        *probes("retention", foil="b"),
        *probes("neighbour"),
    ]
    short = [sentence.partition(";")[0] for sentence in never_met(given, Thresholds(probes=3))]
    assert short == [
        "no region: 0 probes with a foil and a region, on 0 pictures",
        "no foil: 0 probes with a foil and a region, on 0 pictures",
        "neighbour: 0 probes with a foil, on 0 pictures",
    ]
    assert never_met(given, Thresholds(probes=4))[0].startswith(
        "whole: 4 probes with a foil and a region, on 3 pictures;"
    )
