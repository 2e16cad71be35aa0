"""Verdicts claim no more than they may, say why in plain words, and are what --require asks or fall short."""

from dataclasses import replace

import pytest

from diagnostics.comparison.verdicts import (
    MARGIN_IN_WORDS,
    VERDICTS,
    GroupNumbers,
    judged_layer,
    requirement,
    shortfalls,
    verdict,
)
from diagnostics.measures.statistics import Change, Interval

UP, NOT, DOWN = Interval(1, 0.5, 1.5), Interval(0, -0.5, 0.5), Interval(-1, -1.5, -0.5)
WIDE = Interval(1, -0.2, 3)
SMALL, ENOUGH, LOST = (
    Interval(0.0499, 0.04, 0.06),
    Interval(0.0501, 0.04, 0.06),
    Interval(-0.06, -0.07, -0.05),
)
FRUITLESS = "attention moved, answers did not"


def numbers(
    group="sphere-building", probes=40, accuracy=UP, attention=UP, cause=UP, control=(0.1, 0.2), **more
) -> GroupNumbers:
    return GroupNumbers(
        group,
        probes,
        Change(0.1, 0.95, accuracy),
        None if attention is None else Change(6.4, 7.6, attention),
        None if cause is None else Change(0.2, 3.8, cause),
        control,
        **more,
    )


KNOCKOUT = {"knockout_cost_nats": Change(0.1, 2.0, UP), "knockout_control_nats": (0.0, 0.3)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (numbers(), "corrected"),
        (numbers(occlusion_over_control=UP), "corrected"),
        (numbers(occlusion_over_control=UP, **KNOCKOUT, knockout_over_control=UP), "corrected"),
        (numbers(cause=None, control=None, **KNOCKOUT), "corrected"),
        (numbers(enrichment_chance=0.049), "corrected"),
        (numbers(cause=NOT), "answers and attention changed, cause does not agree"),
        (numbers(control=(0.1, 4.0)), "answers and attention changed, cause does not agree"),
        (numbers(occlusion_over_control=NOT), "answers and attention changed, cause does not agree"),
        (
            numbers(**{**KNOCKOUT, "knockout_cost_nats": Change(0.1, 2.0, NOT)}),
            "answers and attention changed, cause does not agree",
        ),
        (
            numbers(**{**KNOCKOUT, "knockout_control_nats": (0.0, 2.1)}),
            "answers and attention changed, cause does not agree",
        ),
        (
            numbers(**KNOCKOUT, knockout_over_control=NOT),
            "answers and attention changed, cause does not agree",
        ),
        (numbers(cause=NOT, **KNOCKOUT), "answers and attention changed, cause does not agree"),
        (numbers(cause=None), "answers and attention changed, cause not measured"),
        (numbers(control=None), "answers and attention changed, cause not measured"),
        (numbers(attention=NOT), "answers changed, attention did not"),
        (numbers(attention=DOWN), "answers changed, attention did not"),
        (numbers(enrichment_chance=0.051), "answers changed, attention did not"),
        (numbers(attention=None), "answers changed, attention not measured"),
        (numbers(accuracy=NOT), "attention moved, answers did not"),
        (numbers(accuracy=NOT, attention=NOT), "it did not move"),
        (numbers(accuracy=NOT, attention=DOWN), "attention moved, answers did not"),
        (numbers(attention=DOWN, enrichment_chance=0.01), "answers changed, attention did not"),
        (numbers(attention=WIDE, enrichment_chance=0.01), "corrected"),
        (numbers(attention=WIDE), "answers changed, attention did not"),
        (numbers(attention=DOWN, enrichment_relative=UP), "corrected"),
        (numbers(enrichment_relative=DOWN, enrichment_chance=0.01), "answers changed, attention did not"),
        (numbers(attention=None, enrichment_relative=UP), "answers changed, attention not measured"),
        (numbers(accuracy=NOT, enrichment_chance=0.2), "it did not move"),
        (numbers(accuracy=NOT, attention=None), "it did not move"),
        (numbers(accuracy=NOT, enrichment_relative=SMALL, enrichment_chance=0.001), "it did not move"),
        (numbers(accuracy=NOT, enrichment_relative=ENOUGH, enrichment_chance=0.001), FRUITLESS),
        (numbers(accuracy=NOT, enrichment_relative=LOST, enrichment_chance=0.001), FRUITLESS),
        (numbers(enrichment_relative=SMALL, enrichment_chance=0.001), "answers changed, attention did not"),
        (numbers(attention=Interval(0.3, 0.2, 0.4)), "answers changed, attention did not"),
        (numbers(attention=Interval(0.4, 0.3, 0.5)), "corrected"),
        (numbers(accuracy=DOWN), "answers got worse"),
        (numbers(probes=19), "too few probes"),
        (numbers(probes=20), "corrected"),
        (numbers(images=19), "too few probes"),
        (numbers(images=20), "corrected"),
        (numbers(group="retention", probes=19), "too few probes"),
    ],
)
def test_a_correction_is_claimed_only_where_all_three_agree(given, expected):
    result = verdict(given)
    assert result.verdict == expected and expected in VERDICTS
    assert all(reason.endswith(".") and reason[:-1].count(". ") == 0 for reason in result.reasons)


def test_reasons_give_the_numbers_in_plain_words():
    accuracy, attention, cause, knockout = verdict(
        replace(
            numbers(occlusion_over_control=UP, **KNOCKOUT, knockout_over_control=NOT),
            accuracy=Change(0, 0.975, Interval(0.975, 0.92, 1)),
        )
    ).reasons
    assert accuracy == (
        "The right answer is likelier than the wrong one in 97.5 % of the probes, 0 % before; chance does not explain "
        "the change (95 % interval +92 % to +100 %)."
    )
    assert attention == (
        "The region gets 7.60 times the attention that its area alone would get, 6.40 before; chance does not "
        "explain the change (95 % interval +0.50 to +1.50)."
    )
    assert cause == (
        f"Hiding the region in the picture costs +3.80 nats of margin{MARGIN_IN_WORDS}, +0.20 before; chance does not "
        "explain the change (95 % interval +0.50 to +1.50); doing the same to random regions of its size "
        "costs +0.20 (clearly less), +0.10 before."
    )
    assert knockout.startswith(
        "Blocking the answer's attention to the region costs +2.00 nats of margin, +0.10"
    )
    assert "costs +0.30 (not clearly less), +0.00 before." in knockout


def test_a_stricter_level_asks_more_of_chance():
    given = numbers(enrichment_chance=0.02)
    assert verdict(given).verdict == "corrected"
    assert verdict(given, level=0.99).verdict == "answers changed, attention did not"


def test_the_typical_probe_is_given_as_a_factor():
    typical = numbers(enrichment_relative=Interval(1, 0.4, 1.2), enrichment_chance=0.001)
    assert verdict(typical).reasons[1] == (
        "The region gets 7.60 times the attention that its area alone would get, 6.40 before, and in a typical probe "
        "3.00 times as much as before; chance does not explain the change (95 % interval 1.50 to 4.00 times)."
    )


def test_a_move_too_small_to_count_is_said_to_be_one():
    small = numbers(
        accuracy=NOT, enrichment_relative=Interval(0.00064, 0.0005, 0.0008), enrichment_chance=0.001
    )
    assert verdict(small).reasons[1] == (
        "The region gets 7.60 times the attention that its area alone would get, 6.40 before, and in a typical probe "
        "1.00 times as much as before; chance does not explain the change, but 0.064 % is too small to count: a move "
        "is at least 5 % (95 % interval 1.00 to 1.00 times)."
    )


def test_reasons_of_what_did_not_happen():
    accuracy, attention, cause = verdict(numbers(accuracy=NOT, attention=NOT, control=(0.1, 4.0))).reasons
    assert "the change could be due to chance (95 % interval -50 % to +50 %)" in accuracy
    assert "the change could be due to chance" in attention and "+4.00 (not less), +0.10 before" in cause
    assert "most probes agree" in verdict(numbers(attention=WIDE, enrichment_chance=0.01)).reasons[1]
    assert "adjusted for every group and layer tested" in verdict(numbers(enrichment_chance=0.3)).reasons[1]
    assert "chance does not explain the change (95 %" in verdict(numbers(attention=DOWN)).reasons[1]
    assert "name no region" in verdict(numbers(attention=None)).reasons[1]
    assert "was not measured" in verdict(numbers(cause=None)).reasons[2]
    assert "99 % interval" in verdict(numbers(), level=0.99).reasons[0]


def test_too_few_says_how_many_there_are_and_how_many_it_takes():
    assert verdict(numbers(probes=5, effect_size=0.5)).reasons == (
        "5 probes cannot tell a change from chance; at least 20 probes on as many different images are needed, and "
        "about 54 for a change as large and as consistent as this one.",
    )
    assert "on 1 image cannot tell" in verdict(numbers(probes=40, images=1)).reasons[0]
    assert (
        verdict(numbers(probes=5, effect_size=3.0))
        .reasons[0]
        .endswith("about 20 for a change as large and as consistent as this one.")
    )
    assert verdict(numbers(probes=1)).reasons[0].startswith("1 probe cannot") and verdict(
        numbers(probes=1, effect_size=0.0)
    ).reasons[0].endswith("images are needed.")


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
    result = verdict(GroupNumbers(group, probes, Change(1.0, after, NOT)))
    share = "97 %" if group == "retention" else "95 %"
    assert result.verdict == expected and len(result.reasons) == 1
    assert "of the probes are answered correctly, 100 % before" in result.reasons[0]
    assert (
        f"{'at least' if expected == 'kept' else 'less than'} {share} of the accuracy before"
        in result.reasons[0]
    )
    assert ("one more" in result.reasons[0]) == (turn is not None) and (turn or "") in result.reasons[0]


def test_the_judged_layer_must_survive_that_several_were_looked_at():
    def changes(*means: float) -> list[Interval]:
        return [Interval(mean, mean - 0.3, mean + 0.3) for mean in means]

    assert judged_layer(changes(0.2, 0.4, -0.1), [0.04, 0.001, 0.001]) == 1
    assert judged_layer(changes(0.2, 0.4, 0.1), [0.9, 0.08, 0.04]) == 2
    assert judged_layer(changes(0.3, 0.1, 0.2), [0.9, 0.08, 0.06]) == 1
    assert judged_layer(changes(-0.1, -0.2), [0.001, 0.001]) == 1
    assert judged_layer(changes(0.1, 0.2), [0.04, 0.04], alpha=0.01) == 0
    with pytest.raises(ValueError, match="found 0 changes and 0 chances"):
        judged_layer([], [])
    with pytest.raises(ValueError, match="found 1 changes and 2 chances"):
        judged_layer(changes(0.1), [0.1, 0.1])


GROUPS = ("pearl", "塔=楼", "retention", "neighbour")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("corrected", {"pearl": "corrected", "塔=楼": "corrected", "retention": "kept", "neighbour": "kept"}),
        ("pearl=corrected", {"pearl": "corrected"}),
        (" pearl = corrected , retention=kept", {"pearl": "corrected", "retention": "kept"}),
        ("塔=楼=it did not move", {"塔=楼": "it did not move"}),
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
