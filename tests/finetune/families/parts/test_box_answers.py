"""Boxes in generated answers, and what their numbers mean, by hand."""

import pytest

from finetune.families.parts.box_answers import _frame, first_box, pixels, thousandths

JSON = '{"bbox_2d": [x0, y0, x1, y1]}'


@pytest.mark.parametrize(
    ("text", "form", "box"),
    [
        ("<ref>dog</ref><box>(12,34),(56,78)</box>", "<box>(x0,y0),(x1,y1)</box>", (12, 34, 56, 78)),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", "<|box_start|>(x0,y0),(x1,y1)<|box_end|>", (1, 2, 3, 4)),
        ("<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", "<box>[[x0, y0, x1, y1]]</box>", (1, 2, 3, 4)),
        ('```json\n[{"bbox_2d": [14, -2, 28, 84], "label": "dog"}]', JSON, (14, -2, 28, 84)),
        ("<loc0000><loc0256><loc0768><loc0512> dog", "<loc(y0)><loc(x0)><loc(y1)><loc(x1)>", (256, 0, 512, 768)),
        ("dog [0.25, 0.12, 0.50, 0.88]", "[x0, y0, x1, y1]", (0.25, 0.12, 0.5, 0.88)),
        ("at (1, 2), (3, 4).", "(x0,y0),(x1,y1)", (1, 2, 3, 4)),
    ],
)  # fmt: skip
def test_the_first_box_of_an_answer_in_every_form(text: str, form: str, box: tuple[float, ...]):
    assert first_box(text) == (form, box)


@pytest.mark.parametrize(
    "text",
    ["", "no", "<box></box>", "(1,2)", "[1, 2, 3]", "<loc0001><loc0002><loc0003>", f"[1, 2, 3, {'9' * 400}]"],
)
def test_no_box_is_none(text: str):
    assert first_box(text) is None


def test_the_own_form_is_searched_first():
    text = '<box>(1,2),(3,4)</box> that is {"bbox_2d": [5, 6, 7, 8]}'
    assert first_box(text, JSON) == (JSON, (5, 6, 7, 8))


def test_what_numbers_mean_by_what_they_run_to():
    assert _frame("<box>(x0,y0),(x1,y1)</box>", (0, 0, 999, 999), (40, 20)) == thousandths()
    assert _frame(JSON, (0, 0, 1000, 1000), (40, 20)) == thousandths()
    assert _frame(JSON, (0, 0, 56, 84), (40, 20)) == pixels((56, 84), "the resized picture")
    square = _frame("[x0, y0, x1, y1]", (0, 0.25, 1, 0.75), (40, 20))
    assert square.unit == "fractions of the padded square"
    assert square.numbers((0.25, 0, 0.5, 1)) == (0.25, 0.25, 0.5, 0.75)
    places = _frame("<loc(y0)><loc(x0)><loc(y1)><loc(x1)>", (0, 0, 1023, 1023), (40, 20))
    assert places.numbers((0.25, 0, 0.5, 0.75)) == (256, 0, 512, 768)
