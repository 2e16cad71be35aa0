"""Written answers that are the same, or that begin each other."""

import pytest

from finetune.samples.spelling import bare, begins


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" “Canton Tower”.\n", "canton tower"),
        ("ＣＡＮＴＯＮ tower", "canton tower"),
        ("《东方明珠》", "东方明珠"),
        ("C++", "c++"),
        ("it's", "it's"),
        ("3.5 m", "3.5 m"),
        ("。", "。"),
        ("Straße", "strasse"),
        ("caf\u0065\u0301", "caf\u00e9"),
    ],
)
def test_what_does_not_tell_answers_apart_is_left_out(text, expected):
    assert bare(text) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("宝塔", "宝塔山", True),
        ("It is the Canton Tower", "it is", True),
        ("“Yes”", "yes!", True),
        ("东方明珠", "广州塔", False),
        ("Tower", "Canton Tower", False),
        ("Pearl A", "Pearl B", False),
    ],
)
def test_one_begins_the_other(one, other, expected):
    assert begins(one, other) is begins(other, one) is expected
