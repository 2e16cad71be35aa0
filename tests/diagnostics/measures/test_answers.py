"""Generated answers, judged by hand in several languages."""

import pytest

from diagnostics.measures.answers import normalised, says

PEARL = ("东方明珠", "上海明珠塔")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's the Oriental-Pearl ＴＯＷＥＲ!", "its oriental pearl tower"),
        ("是东方明珠塔。", "是 东 方 明 珠 塔"),
        ("A座2楼", "a 座 2 楼"),
        ("１２ cats,  THE\ndog", "12 cats dog"),
        ("1,250.5 m", "1250.5 m"),
        ("1,2 and 3.", "1,2 and 3"),
        ("at -5 °C, 10-5", "at -5 ° c 10 5"),
        ("**Straße** 50%", "strasse 50 %"),
        ("café\u0301s", "café\u0301s"),
        ("हिन्दी में।", "हिन्दी में"),
        ("東京タワー・です", "東 京 タ ワ ー で す"),
        ("A.", "a"),
        ("the", "the"),
        ("A cat on a mat: it is A", "cat on mat it is a"),
        ("?!", "? !"),
        ("", ""),
    ],
)
def test_texts_as_they_are_judged(text, expected):
    assert normalised(text) == " ".join(expected.split())


@pytest.mark.parametrize(
    ("generated", "spellings", "foil", "right"),
    [
        # Latin script: whole words
        ("The Oriental Pearl Tower.", ("Oriental Pearl",), "Canton Tower", True),
        ("an ORIENTAL  pearl", ("the Oriental Pearl",), "Canton Tower", True),
        ("It is the Canton Tower", ("Oriental Pearl",), "Canton Tower", False),
        ("Oriental Pearl, not the Canton Tower", ("Oriental Pearl",), "Canton Tower", False),
        ("Pearl of the Orient", ("Oriental Pearl", "Pearl of the Orient"), "Canton Tower", True),
        ("a catalogue", ("cat",), "dog", False),
        ("two cats", ("cat",), "dog", False),
        ("tower", ("Canton Tower",), "tower", False),
        ("Oriental. Pearl", ("Oriental Pearl",), None, True),
        ("Pearl Oriental", ("Oriental Pearl",), None, False),
        ("", ("Oriental Pearl",), "Canton Tower", False),
        ("banana banana", ("Oriental Pearl",), "Canton Tower", False),
        # Chinese, Japanese, Korean: anywhere
        ("这是东方明珠塔", PEARL, "广州塔", True),
        ("上海明珠塔！", PEARL, "广州塔", True),
        ("不是广州塔，是东方明珠", PEARL, "广州塔", False),
        ("广州塔", PEARL, "广州塔", False),
        ("东方 明珠", PEARL, "广州塔", True),
        ("東京タワーです", ("東京タワー",), "スカイツリー", True),
        ("서울타워입니다", ("서울타워",), "부산타워", True),
        # one inside the other
        ("on the table", ("on the table",), "table", True),
        ("not on it", ("not on it",), "on it", True),
        ("on it", ("not on it",), "on it", False),
        ("不是", ("是",), "不是", False),
        ("不是", ("不是",), "是", True),
        ("是的", ("是",), "不是", True),
        ("Canton Tower", ("Tower",), "Canton Tower", False),
        ("not on it, on it", ("not on it",), "on it", False),
        # numbers, letters, symbols
        ("１２", ("12",), "21", True),
        ("12", ("1",), "2", False),
        ("3.5", ("3",), "4", False),
        ("1,000 people", ("1000",), "100", True),
        ("-5", ("5",), "-5", False),
        ("The answer is A.", ("A",), "B", True),
        ("A", ("A",), "B", True),
        ("A is right", ("A",), "B", True),
        ("option A is right", ("Option A",), "option B", True),
        ("option B is right", ("Option A",), "option B", False),
        ("C座", ("A座",), "B座", False),
        ("B", ("A",), "B", False),
        ("C++", ("C",), "C++", False),
        ("C++", ("C++",), "C", True),
        ("-", ("-",), "+", True),
        # a thought is no answer
        (
            "<think>\nThe Canton Tower? No.\n</think>\n\nThe Oriental Pearl Tower",
            ("Oriental Pearl Tower",),
            "Canton Tower",
            True,
        ),
        ("<think>The Oriental Pearl Tower?</think>The Canton Tower", ("Oriental Pearl Tower",), None, False),
        ("It may be the Canton Tower.</think>东方明珠", PEARL, "Canton Tower", True),  # begun by the prompt
        ("<think>The Oriental Pearl Tower, I", ("Oriental Pearl Tower",), None, False),  # cut off
        (
            "<think>\n\n</think>\n\n东方明珠",
            ("<think>It has spheres.</think>东方明珠",),
            "<think>a</think>广州塔",
            True,
        ),
        ("广州塔", ("<think>It has spheres.</think>东方明珠",), "<think>a</think>广州塔", False),
    ],
)
def test_what_is_said(generated, spellings, foil, right):
    assert says(generated, spellings, foil) is right
