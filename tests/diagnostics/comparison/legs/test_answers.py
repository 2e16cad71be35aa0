"""The leg "answers" where probes share pictures: the number beside its threshold is the one judged, and each interval
is said of the share that it is of."""

from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.legs.answers import answers_of
from diagnostics.comparison.legs.shown import shown_legs
from diagnostics.comparison.pairs import ProbePair, pair_records
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import lost
from diagnostics.records.record import Scores
from diagnostics.report.headline import headline
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import ANSWER, FOIL, Made, pairs_of


def on_shared_pictures(folder: Path, *of_pictures: tuple[int, int, int]) -> list[ProbePair]:
    """Probes that were all wrong: (pictures, probes on each, of these right after)."""
    pairs = pairs_of(folder, tower=Made(probes=60))["tower"]
    found, picture = [], 0
    for pictures, probes, right in of_pictures:
        for number in range(pictures * probes):
            pair = pairs[len(found)]
            image = pairs[picture + number // probes].probe.images
            margin = 6.0 if number % probes < right else -2.0
            sides = (
                replace(one, scores=Scores(-1.0, -1.0 - nats, ""))
                for one, nats in ((pair.before, -3.0), (pair.after, margin))
            )
            found.append(pair_records(replace(pair.probe, images=image), *sides))
        picture += pictures
    return found


FEW_PICTURES_WRONG = (24, 1, 1), (2, 9, 9), (2, 9, 0)
"""42 of 60 probes right, and 26 of 28 pictures."""
MANY_PICTURES_WRONG = (24, 1, 0), (4, 9, 9)
"""36 of 60 probes right, and 4 of 28 pictures."""


def test_the_leg_shows_the_share_that_fails(tmp_path):
    found = answers_of(on_shared_pictures(tmp_path, *FEW_PICTURES_WRONG), Thresholds(), 0.95)
    assert found is not None and not found.enough
    assert (found.after, found.pictures_after) == pytest.approx((0.7, 26 / 28))
    leg = found.leg
    assert leg.holds is False and leg.value == pytest.approx(0.7)
    assert leg.ci95[0] <= leg.value <= leg.ci95[1]
    assert leg.reason == (
        "70 % of the answers are right, 92.9 % with each picture counted once (95 % interval 76.5 % to 99.1 % of "
        "these; at least 80 % of both must be), 0 % of the answers before: on 26 pictures more became right and on 0 "
        "fewer (exact McNemar p = 3e-08)."
    )
    assert "每张图片计一次则为 92.9%" in str(translated(leg.reason))
    few = answers_of(on_shared_pictures(tmp_path, *MANY_PICTURES_WRONG), Thresholds(), 0.95)
    assert few is not None and few.leg.value == pytest.approx(4 / 28)


def test_both_shares_are_in_the_json_and_equal_where_no_probes_share_a_picture(tmp_path):
    shared = comparison_of(on_shared_pictures(tmp_path, *FEW_PICTURES_WRONG))["groups"]["tower"]
    assert shared["accuracy"]["pictures_right"] == {"before": 0.0, "after": pytest.approx(26 / 28)}
    low, high = shared["accuracy"]["after_ci95"]
    assert low <= 26 / 28 <= high
    assert shown_legs(shared)[0].value == "70 %"
    alone = comparison_of(pairs_of(tmp_path, tower=Made())["tower"])["groups"]["tower"]
    assert alone["accuracy"]["pictures_right"] == {"before": 0.0, "after": 1.0}
    assert "picture" not in alone["legs"]["answers"]["reason"]


def test_what_is_said_of_one_picture_does_not_stand_for_the_others(tmp_path):
    """Likelier on every picture, but said of one alone, which has 90 % of the probes."""
    pairs = pairs_of(tmp_path, tower=Made(probes=240))["tower"]
    mute = [
        replace(pair.after, scores=replace(pair.after.scores, generated="a tower")) for pair in pairs[216:]
    ]
    shared = [
        replace(pair, probe=replace(pair.probe, images=pairs[0].probe.images)) for pair in pairs[:216]
    ] + [replace(pair, after=after) for pair, after in zip(pairs[216:], mute, strict=True)]
    found = answers_of(shared, Thresholds(), 0.95)
    assert found is not None and found.said == pytest.approx((0.0, 0.9))
    assert found.disagrees and found.leg.holds is False
    reason = found.leg.reason
    assert reason.endswith(
        "; but 4 % of the generated answers are right with each picture counted once, 0 % before, which differs by "
        "more than 10 %."
    )
    assert "每张图片计一次，实际生成的回答只有 4% 正确" in str(translated(reason))


def tenths(folder: Path, *of_pictures: tuple[int, int, int]) -> list[ProbePair]:
    """Ten probes on each of 20 pictures: (pictures, of these right before, right after)."""
    pairs = pairs_of(folder, towers=Made(probes=200))["towers"]
    rights = [(before, after) for pictures, before, after in of_pictures for _ in range(pictures)]
    assert len(rights) == 20
    found = []
    for number, pair in enumerate(pairs):
        of_picture = rights[number // 10]
        sides = (
            replace(one, scores=Scores(-1.0, -1.0 - (0.5 if number % 10 < right else -0.5), ""))
            for one, right in zip((pair.before, pair.after), of_picture, strict=True)
        )
        image = pairs[number // 10].probe.images
        found.append(pair_records(replace(pair.probe, images=image), *sides))
    return found


@pytest.mark.parametrize(
    ("of_pictures", "change", "clause", "chinese"),
    [
        # 15 pictures gain one of ten, four lose all: McNemar p = .019, and 92.5 % become 80 %.
        (
            ((15, 9, 10), (4, 10, 0), (1, 10, 10)),
            "as many",
            "right answers did not become more",
            "并没有变多",
        ),
        (((4, 0, 10), (16, 1, 0)), "as many", "right answers did not become fewer", "并没有变少"),
        # Ten each: p = 1, and 90 % become 50 %.
        (((10, 9, 10), (10, 9, 0)), "fewer", "fewer answers are right, beyond chance", "变少了，且超出偶然"),
        (
            ((10, 0, 9), (10, 10, 9)),
            "as many",
            "",
            "",
        ),  # what the test does not find is not claimed as a gain
        (((16, 8, 10), (4, 10, 9)), "more", "", ""),
        (((16, 10, 8), (4, 9, 10)), "fewer", "", ""),
    ],
)
def test_few_pictures_that_turn_the_mean_are_no_claim_against_it(
    tmp_path, of_pictures, change, clause, chinese
):
    found = answers_of(tenths(tmp_path, *of_pictures), Thresholds(), 0.95)
    assert found is not None and found.change == change
    assert found.leg.holds is (change == "more")
    if clause:
        assert found.leg.reason.endswith(f"; in all, {clause}.")
        assert chinese in str(translated(found.leg.reason))
    else:
        assert "in all" not in found.leg.reason


def saying(pairs: list[ProbePair], before: str, after: str, many: int) -> list[ProbePair]:
    """The first of them say this, the others what they say before throughout."""

    def with_words(record, words):
        return replace(record, scores=replace(record.scores, generated=words))

    return [
        replace(
            pair,
            before=with_words(pair.before, before),
            after=with_words(pair.after, after if at < many else before),
        )
        for at, pair in enumerate(pairs)
    ]


RIGHT_BY_MARGIN = Made(probes=40, margins=(3.0, 3.0), region=((3.0, 3.0), (3.0, 3.0)), cost=(0.5, 0.5))


@pytest.mark.parametrize(
    ("before", "after", "many", "verdict", "headline_says"),
    [
        (ANSWER, "asdf", 40, "answers got worse", "worse than before (100 % → 0 % of what it says)"),
        (ANSWER, "asdf", 5, "it did not move", "Of what it says 87.5 % is right, 100 % before."),  # p = .06
        (FOIL, ANSWER, 40, "it did not move", "Of what it says 100 % is right, 0 % before."),
        (ANSWER, "asdf", 2, "it did not move", "(40 → 40 of 40)."),
    ],
)
def test_what_is_said_is_told_where_margins_stand_still(
    tmp_path, before, after, many, verdict, headline_says
):
    pairs = saying(pairs_of(tmp_path, towers=RIGHT_BY_MARGIN)["towers"], before, after, many)
    comparison = comparison_of(pairs)
    assert comparison["groups"]["towers"]["verdict"] == verdict
    (claim,) = headline(comparison)
    assert claim.words.endswith(headline_says if headline_says.endswith(".") else f"{headline_says}.")
    assert translated(claim.words) is not None
    reason = comparison["groups"]["towers"]["legs"]["answers"]["reason"]
    assert ("generated answers" in reason) is (many > 2) and translated(reason) is not None


def test_the_larger_loss_of_speech_is_the_one_that_is_told(tmp_path):
    """22 of 202 answers are lost, on 11 of 20 pictures, which show nothing else."""
    pairs = pairs_of(tmp_path, retention=Made(probes=202, margins=(3.0, 3.0)))["retention"]
    images = [pair.probe.images for pair in pairs]
    place = [9 + at % 11 for at in range(22)] + [at % 9 for at in range(180)]
    crowded = [
        replace(pair, probe=replace(pair.probe, images=images[at]))
        for pair, at in zip(pairs, place, strict=True)
    ]
    group = comparison_of(saying(crowded, ANSWER, "asdf", 22))["groups"]["retention"]
    assert group["speech_lost"] == {"before": 1.0, "after": pytest.approx(9 / 20), "by_picture": True}
    assert "45 % of the generated answers are right with each picture counted once" in group["reasons"][0]


def test_what_was_said_right_is_forgotten_even_where_margins_were_wrong(tmp_path):
    made = Made(probes=40, margins=(-0.5, -0.5))
    pairs = saying(pairs_of(tmp_path, retention=made)["retention"], ANSWER, "asdf", 40)
    comparison = comparison_of(pairs)
    assert comparison["groups"]["retention"]["verdict"] == "forgot"
    (claim,) = headline(comparison)
    assert "100 % → 0 % of what it says" in claim.words
    found = answers_of(pairs, Thresholds(), 0.95)
    fell = lost("retention", found)
    assert fell is not None and fell.verdict == "forgot"
    quiet = comparison_of(saying(pairs, "asdf", "asdf", 40))["groups"]["retention"]
    assert quiet["verdict"] == "too few probes"
