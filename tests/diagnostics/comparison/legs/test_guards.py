"""The leg "guards" where guards share pictures: many questions of few pictures cannot outvote the other pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diagnostics.comparison.group_report import comparison_of
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of

CROWDED, ALONE, ON_EACH = 10, 15, 12
"""Pictures with several guards, pictures with one, and the guards on each of the first."""


def judged(folder: Path, lost: int, foil: str = "Pearl") -> dict[str, Any]:
    """Towers whose 135 guards show 25 pictures; so many of the pictures with one guard are lost."""
    crowd = CROWDED * ON_EACH
    after = [4.0] * (crowd + ALONE - lost) + [-3.0] * lost
    made = replace(GUARDS, probes=crowd + ALONE, margins=(4.0, after), foil=foil)
    groups = pairs_of(folder, towers=Made(), guards=made)
    images = [pair.probe.images for pair in groups["guards"]]
    groups["guards"] = [
        replace(pair, probe=replace(pair.probe, images=images[at % CROWDED])) if at < crowd else pair
        for at, pair in enumerate(groups["guards"])
    ]
    found: dict[str, Any] = comparison_of(flat(groups))["groups"]["towers"]
    return found


@pytest.mark.parametrize(
    ("lost", "verdict", "share"),
    [
        (1, "corrected", 24 / 25),
        (
            3,
            "answers changed, a guard broke",
            22 / 25,
        ),  # 132 of 135 guards, and 88 % of the pictures: below 95 %
        (6, "answers changed, a guard broke", 19 / 25),
    ],
)
def test_the_smaller_of_guards_and_pictures_is_judged(
    tmp_path: Path, lost: int, verdict: str, share: float
) -> None:
    group = judged(tmp_path, lost)
    leg = group["legs"]["guards"]
    assert (group["verdict"], leg["holds"]) == (verdict, verdict == "corrected")
    assert leg["value"] == pytest.approx(share) and leg["ci95"][0] <= leg["value"] <= leg["ci95"][1]
    assert leg["probes"] == CROWDED * ON_EACH + ALONE


def test_both_shares_are_said_and_what_the_interval_is_of(tmp_path: Path) -> None:
    reason = judged(tmp_path, 6)["legs"]["guards"]["reason"]
    assert reason == (
        "Of the 135 guards, whose right answer is the wrong one here, 95.6 % are right after and 100 % before, 76 % "
        "and 100 % with each picture counted once (95 % interval 54.9 % to 90.6 % of these after; at least 80 % of "
        "both must be, and 95 % of those before)."
    )
    assert "每张图片计一次则现在 76%，之前 100%" in str(translated(reason))
    one = reason.replace("right after and", "right after where the answer is 'Canton' and")
    assert "其中答案为 'Canton' 的 95.6% 现在答对" in str(translated(one))


def test_many_guards_of_one_answer_on_few_pictures_guard_nothing(tmp_path: Path) -> None:
    groups = pairs_of(
        tmp_path,
        towers=Made(),
        minor=replace(Made(), foil="Minor", probes=12),
        guards=GUARDS,
        few=replace(GUARDS, answer="Minor", said=("Minor", "Minor")),
    )
    for pair in groups["minor"]:
        object.__setattr__(pair.probe, "group", "towers")
    images = [pair.probe.images for pair in groups["few"]]
    assert comparison_of(flat(groups))["groups"]["towers"]["verdict"] == "corrected"
    groups["few"] = [
        replace(pair, probe=replace(pair.probe, images=images[at % 4]))
        for at, pair in enumerate(groups["few"])
    ]
    reason = comparison_of(flat(groups))["groups"]["towers"]["legs"]["guards"]["reason"]
    assert reason == (
        "No guards: 'Minor' is the wrong answer of 12 of the 36 probes here, and the right answer of guards on 4 "
        "pictures."
    )
    assert "护栏只在 4 张图片上" in str(translated(reason))


def test_one_answer_written_in_two_ways_is_one_answer(tmp_path: Path) -> None:
    """Of eight guards of the Nordic Tower three are lost, four of them in small letters."""
    groups = pairs_of(
        tmp_path,
        towers=Made(),
        one=replace(Made(), foil="Nordic Tower", probes=1),
        guards=replace(GUARDS, probes=120),
        capitals=replace(GUARDS, answer="Nordic Tower", probes=4, margins=(4.0, [4.0] * 3 + [-3.0])),
        small=replace(GUARDS, answer="the Nordic tower", probes=4, margins=(4.0, [4.0] * 2 + [-3.0] * 2)),
    )
    object.__setattr__(groups["one"][0].probe, "group", "towers")
    group = comparison_of(flat(groups))["groups"]["towers"]
    assert group["verdict"] == "answers changed, a guard broke"
    assert group["legs"]["guards"]["value"] == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("minor", "canton", "verdict", "cited"),
    [
        ((0, 22), (40, 23), "answers changed, a guard broke", "57.5 % are right after where the answer is 'Canton'"),
        ((2, 9), (40, 36), "corrected, unguarded", "22.5 % are right after where the answer is 'Minor'"),
        ((40, 36), (40, 40), "corrected", "90 % are right after where the answer is 'Minor'"),
    ],
)  # fmt: skip
def test_a_guard_that_broke_is_not_outweighed_by_one_that_rose(
    tmp_path: Path, minor: tuple[int, int], canton: tuple[int, int], verdict: str, cited: str
) -> None:
    """Two wrong answers with 40 guards each, so many of them right before and after."""

    def margins(right: int) -> list[float]:
        return [4.0] * right + [-3.0] * (40 - right)

    some = replace(GUARDS, probes=40)
    groups = pairs_of(
        tmp_path,
        towers=Made(),
        others=replace(Made(), foil="Minor", probes=12),
        canton=replace(some, margins=tuple(map(margins, canton))),
        minor=replace(some, answer="Minor", said=("Minor", "Minor"), margins=tuple(map(margins, minor))),
    )
    for pair in groups["others"]:
        object.__setattr__(pair.probe, "group", "towers")
    group = comparison_of(flat(groups))["groups"]["towers"]
    assert group["verdict"] == verdict
    assert cited in group["legs"]["guards"]["reason"]


@pytest.mark.parametrize(
    "first", [("on top", "above"), ("above", "on top")], ids=["one spelling first", "another"]
)
def test_guards_of_a_foil_are_judged_together_under_whatever_spelling(
    tmp_path: Path, first: tuple[str, str]
) -> None:
    """Four that put one word first and four that put the other: eight lost guards of "on top" beside 170 others."""
    lost = replace(GUARDS, probes=4, margins=(4.0, -3.0))
    groups = pairs_of(
        tmp_path,
        towers=Made(),
        others=replace(Made(), foil="on top", probes=12),
        guards=replace(GUARDS, probes=170),
        some=replace(lost, answer=first[0]),
        more=replace(lost, answer="on top"),
    )
    for pair in groups["others"]:
        object.__setattr__(pair.probe, "group", "towers")
    for name, spellings in (("some", first), ("more", ("on top", "above"))):
        groups[name] = [
            replace(pair, probe=replace(pair.probe, spellings=spellings)) for pair in groups[name]
        ]
    group = comparison_of(flat(groups))["groups"]["towers"]
    assert group["verdict"] == "answers changed, a guard broke"
    assert "0 % are right after where the answer is 'on top'" in group["legs"]["guards"]["reason"]
