"""Boxes in generated text: as Qwen-VL and as InternVL write them, and what is no box."""

import pytest

from finetune.samples.markup import Box, parse_boxes


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<ref>cat</ref><box>(1,2),(3,4)</box>", [Box(1, 2, 3, 4, "cat")]),
        ("<ref>cat</ref><box>[[100, 200, 400, 1000]]</box>", [Box(100, 200, 400, 1000, "cat")]),
        (
            "<ref>cats</ref><box>[[1,2,3,4], [5, 6, 7, 8]]</box><box>(9,9),(10,10)</box>",
            [Box(1, 2, 3, 4, "cats"), Box(5, 6, 7, 8, "cats"), Box(9, 9, 10, 10, "cats")],
        ),
        ("<box>[[1, 2, 3, 4]]</box>", [Box(1, 2, 3, 4)]),
        ("<ref>a</ref> beside <ref>b</ref><box>(1,2),(3,4)</box>", [Box(1, 2, 3, 4, "b")]),
    ],
)
def test_boxes_have_the_phrase_before_them(text, boxes):
    assert parse_boxes(text) == boxes


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "[1, 2, 3, 4]",
        "[[1, 2, 3]]",
        "[[1, 2], [3, 4]]",
        "(1,2)",
        "[[1, 2, 3, 1001]]",
        f"(1,2),(3,{'9' * 5000})",
    ],
)
def test_what_is_no_box_in_thousandths(inside):
    assert parse_boxes(f"<ref>cat</ref><box>{inside}</box>") == []
