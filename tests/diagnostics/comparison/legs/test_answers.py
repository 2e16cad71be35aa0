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
from diagnostics.records.record import Scores
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import Made, pairs_of


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
