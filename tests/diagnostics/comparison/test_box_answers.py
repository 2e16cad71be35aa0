"""Probes whose right answer is a box, before and after, in numbers that are found from the region."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison.box_answers import box_answers, of_probe, outcome_with_box
from diagnostics.comparison.group_report import comparison_of
from diagnostics.drawing.board import scalars
from diagnostics.drawing.tensorboard import layout
from diagnostics.report.page import report_html
from diagnostics.report.verdict_cards import verdict_card
from tests.diagnostics.comparison.made_pairs import OTHER, REGION, SIZE, Made, flat, pairs_of

THOUSANDTHS = "<box>(167,0),(333,250)</box>"  # the region, 20 0 40 20 of 120 × 80 pixels
PODIUM = "<box>(667,500),(1000,1000)</box>"
MADE = Made(probes=9, answer=THOUSANDTHS, foil="no", said=(PODIUM, THOUSANDTHS))


def test_boxes_are_counted_before_and_after(tmp_path: Path):
    pairs = flat(pairs_of(tmp_path, boxes=MADE))
    comparison = comparison_of(pairs)["groups"]["boxes"]
    before, after = comparison["boxes"]["before"], comparison["boxes"]["after"]
    assert (before["asked"], before["right"], before["wrong_object"]) == (9, 0, {"podium": 9})
    assert before["systematic"] is None  # all at one place, and that place has a name
    assert (after["right"], after["accuracy"], after["pointing"]) == (9, 1.0, 1.0)
    written = scalars(pairs)
    assert {tag: value for tag, value in written.items() if "/box_" in tag} == {
        "2 answers/box_accuracy/boxes": 1.0,
        "2 answers/box_iou/boxes": 1.0,
        "2 answers/box_pointing/boxes": 1.0,
    }
    assert layout(list(written))["boxes"]["box_accuracy"][1] == ["^2\\ answers/box_accuracy/boxes$"]
    card = verdict_card("boxes", comparison)
    sides = re.findall(r"<li><span>(\w+):</span> <span>(.*?)</span></li>", card)
    assert [side for side, _ in sides] == ["before", "now"]
    words = dict(sides)
    assert (
        words["before"].startswith("0 of 9 boxes right at IoU .5")
        and "on podium instead: 9" in words["before"]
    )
    assert words["now"].startswith("9 of 9 boxes right at IoU .5") and "podium" not in words["now"]


def test_an_empty_reply_among_others_is_an_answer_without_a_box(tmp_path: Path):
    pairs = flat(pairs_of(tmp_path, boxes=MADE))
    for pair in pairs[1:]:
        object.__setattr__(
            pair, "after", replace(pair.after, scores=replace(pair.after.scores, generated=""))
        )
    after = box_answers(pairs)["after"]
    assert (after["asked"], after["right"], after["no_box"]) == (9, 1, 8)
    assert scalars(pairs)["2 answers/box_accuracy/boxes"] == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("answer", "unit"),
    [
        (THOUSANDTHS, "thousandths of the picture"),
        ('{"bbox_2d": [20, 0, 40, 20]}', "pixels of the file"),
        ('{"bbox_2d": [28, 0, 56, 21]}', "pixels of the resized picture"),  # 168 × 84
        ("[0.17, 0.17, 0.33, 0.33]", "fractions of the padded square"),
        ("<loc0000><loc0170><loc0256><loc0341>", "1024ths of the picture"),
    ],
)
def test_the_unit_is_found_by_the_region(tmp_path: Path, answer: str, unit: str):
    [pair] = flat(pairs_of(tmp_path, boxes=replace(MADE, probes=1, answer=answer)))
    right = of_probe(pair)
    assert right is not None and right.writing.frame.unit == unit
    podium = right.writing.frame.fractions(right.others["podium"])
    assert podium == pytest.approx([value / side for value, side in zip(OTHER, SIZE * 2, strict=True)])


def test_answers_that_are_not_the_region_s_box_are_not_scored(tmp_path: Path):
    for answer in ("Pearl", "<box>(667,500),(999,999)</box>"):
        pairs = flat(pairs_of(tmp_path, boxes=replace(MADE, answer=answer)))
        assert box_answers(pairs) is None
        assert "boxes right" not in verdict_card("boxes", comparison_of(pairs)["groups"]["boxes"])


def test_a_side_without_generated_answers_is_not_measured(tmp_path: Path):
    assert box_answers(flat(pairs_of(tmp_path, boxes=replace(MADE, said=("", THOUSANDTHS))))) is None


def test_an_error_that_all_boxes_share_is_named(tmp_path: Path):
    assert REGION == (20.0, 0.0, 40.0, 20.0)
    low = "<box>(167,200),(333,450)</box>"
    scores = box_answers(flat(pairs_of(tmp_path, boxes=replace(MADE, said=(low, THOUSANDTHS)))))
    assert scores is not None and "200 low (95 % interval 200 to 200)" in scores["before"]["words"]


@pytest.mark.parametrize(
    ("said", "corners", "is_right"),
    [
        (THOUSANDTHS, (20.04, 0.0, 39.96, 20.0), True),  # .167 and .333 of 120, .25 of 80
        ("the tower <box>(667,500),(1000,750)</box>", (80.04, 40.0, 120.0, 60.0), False),
    ],
)
def test_the_said_box_is_in_pixels_of_the_picture(
    tmp_path: Path, said: str, corners: tuple[float, ...], is_right: bool
):
    [pair] = flat(pairs_of(tmp_path, boxes=replace(MADE, probes=1, said=(said, THOUSANDTHS))))
    box = outcome_with_box(pair.probe, pair.region, pair.before).box
    assert box is not None and box.corners == pytest.approx(corners) and box.is_right is is_right


@pytest.mark.parametrize("said", ["", "on the left", "[20, 0, 40, 20]"])
def test_no_box_in_the_family_s_form_is_none(tmp_path: Path, said: str):
    [pair] = flat(pairs_of(tmp_path, boxes=replace(MADE, probes=1, said=(said, THOUSANDTHS))))
    assert outcome_with_box(pair.probe, pair.region, pair.before).box is None
    [words] = flat(pairs_of(tmp_path, words=Made(probes=1, said=(THOUSANDTHS, THOUSANDTHS))))
    assert outcome_with_box(words.probe, words.region, words.before).box is None


def test_the_report_draws_the_said_boxes(tmp_path: Path):
    pairs = flat(pairs_of(tmp_path, boxes=MADE))
    page = report_html(comparison_of(pairs), pairs)
    before, after = (
        '{"corners":[0.667,0.5,1.0,1.0],"right":false}',
        '{"corners":[0.167,0.0,0.333,0.25],"right":true}',
    )
    assert page.replace(" ", "").count(f'"said_boxes":[{before},{after}]') == 9
