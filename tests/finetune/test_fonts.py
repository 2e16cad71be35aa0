"""Which font writes what: glyphs are found as matplotlib finds them, and lines break where people break them."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from finetune import fonts
from finetune.fonts import Pen, chinese_font, covers, drawable, latin_font, text_font

SOME = [chr(code) for code in (*range(33, 0xD7FF, 37), *range(0x1F300, 0x1F400, 5))]


@pytest.mark.parametrize("font", [latin_font(), text_font("a")])
def test_a_font_has_the_characters_that_its_table_lists(font: Path):
    listed = FT2Font(str(font)).get_charmap()
    assert [c for c in SOME if covers(font, c)] == [c for c in SOME if ord(c) in listed]


def test_what_the_font_lacks_is_spelled_out():
    assert drawable("a\U0001f600b", latin_font()) in ("a[U+1F600]b", "a\U0001f600b")
    assert drawable("东", latin_font()) == "[U+4E1C]"
    assert drawable("a\nb", latin_font()) == "a b"
    assert "\x00" not in drawable("\x00\x07", latin_font())  # a model that has gone astray says these too


def test_a_file_that_is_no_font_covers_nothing(tmp_path: Path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert not covers(tmp_path / "broken.ttf", "a")


@pytest.mark.skipif(
    chinese_font() is None, reason="needs a font with Chinese glyphs (Debian: apt-get install fonts-noto-cjk)"
)
def test_chinese_is_written_with_a_font_that_has_it():
    assert covers(text_font("这座塔是什么?"), "这座塔是什么?") and not covers(latin_font(), "塔")


def test_without_a_chinese_font_chinese_is_an_error_and_english_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fonts, "chinese_font", lambda: None)
    assert text_font("tower") == latin_font()
    with pytest.raises(ValueError, match="no font with Chinese glyphs .*pip install mplfonts"):
        text_font("塔")


def test_lines_break_at_spaces_and_chinese_anywhere():
    pen = Pen(text_font("a"))
    width = pen.width("aaaa bbbb", 20) + 1
    assert pen.lines("aaaa bbbb cccc", 20, width, most=3) == ["aaaa bbbb", "cccc"]
    assert pen.lines("aaaa\nbbbb", 20, width, most=3) == ["aaaa bbbb"]
    [first, last] = pen.lines("aaaa bbbb cccc dddd eeee", 20, width, most=2)
    assert first == "aaaa bbbb" and last.endswith("…") and pen.width(last, 20) <= width
    assert pen.lines("", 20, width, most=2) == [""]
    assert pen.lines("m" * 40, 20, width, most=9)[0] != ""  # a word longer than a line is broken


@pytest.mark.skipif(
    chinese_font() is None, reason="needs a font with Chinese glyphs (Debian: apt-get install fonts-noto-cjk)"
)
def test_chinese_fills_its_lines():
    pen = Pen(text_font("塔"))
    assert pen.lines("这座塔是什么呢", 20, pen.width("这座塔", 20) + 1, most=9) == ["这座塔", "是什么", "呢"]


def test_a_pen_writes_in_its_colour():
    picture = Image.new("RGB", (60, 30), (255, 255, 255))
    end = Pen(latin_font(), (200, 0, 0)).write(ImageDraw.Draw(picture), (4, 4), "|||", 16)
    assert 4 < end < 60
    ink = np.asarray(picture).reshape(-1, 3).min(axis=0)
    assert ink[0] >= 200 and ink[1] < 60


@pytest.mark.parametrize("at", [(10, 30), (10.4, 30.75), (-3.5, 20.25)])
@pytest.mark.parametrize("anchor", ["la", "ls", "ms", "rs"])
def test_a_line_is_drawn_as_pillow_draws_it_the_second_time_too(at: tuple[float, float], anchor: str):
    font, text = latin_font(), "Wave, jig"
    expected = Image.new("RGB", (120, 50), (250, 240, 230))
    face = ImageFont.truetype(str(font), 22, layout_engine=ImageFont.Layout.BASIC)
    ImageDraw.Draw(expected).text(at, text, font=face, fill=(20, 60, 90), anchor=anchor)
    for _ in range(2):
        drawn = Image.new("RGB", expected.size, (250, 240, 230))
        end = Pen(font, (20, 60, 90)).write(ImageDraw.Draw(drawn), at, text, 22, anchor=anchor)
        assert drawn.tobytes() == expected.tobytes()
        assert end == at[0] + (face.getlength(text) if anchor[0] == "l" else 0)


def test_a_line_without_words_draws_nothing():
    picture = Image.new("RGB", (20, 20), (1, 2, 3))
    assert Pen(latin_font()).write(ImageDraw.Draw(picture), (4, 4), "", 16) == 4
    assert picture.getcolors() == [(400, (1, 2, 3))]
