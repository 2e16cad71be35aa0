"""The probe picture: where the colour lands, one scale for both maps, text that no font may turn into boxes."""

import io

import numpy as np
import pytest
from PIL import Image

from diagnostics import fonts
from diagnostics.composite import (
    GUTTER,
    MARGIN,
    PANEL,
    WIDTH,
    CellMap,
    LayerMaps,
    Outcome,
    ProbeSheet,
    RegionReading,
    cells_to_pixels,
    difference_over,
    dimming,
    draw_probe,
    encode_png,
    heat_over,
    shared_scale,
)

SIZE, GRID = (120, 80), (4, 6)
BOXES = np.array([[20 * c, 20 * r, 20 * c + 20, 20 * r + 20] for r in range(4) for c in range(6)], float)


def one_cell(cell: int, share: float = 0.9) -> CellMap:
    density = np.full(24, (1 - share) / 23 * 24)
    density[cell] = share * 24
    return CellMap(density, GRID, BOXES)


def sheet(**changes: object) -> ProbeSheet:
    fields: dict[str, object] = {
        "probe_id": "pearl-03",
        "group": "sphere-building",
        "picture": Image.new("RGB", SIZE, (90, 90, 90)),
        "question": "这座塔是什么?",
        "answer": "东方明珠",
        "foil": "广州塔",
        "regions": {"spheres": ((40, 20, 60, 40),)},
        "base_step": 0,
        "step": 50,
        "before": Outcome("广州塔", -3.0),
        "after": Outcome("东方明珠", 4.0),
    }
    return ProbeSheet(**{**fields, **changes})  # type: ignore[arg-type]


def layer(before: int = 20, after: int = 8, number: int = 16) -> LayerMaps:
    return LayerMaps(
        number, one_cell(before), one_cell(after), (RegionReading("spheres", 0.01, 0.9, 0.2, 20.0),)
    )


def test_cells_land_on_their_place_in_the_picture() -> None:
    pixels = cells_to_pixels(one_cell(8), one_cell(8).density, SIZE, (240, 160))
    assert pixels.shape == (160, 240)
    assert np.unravel_index(pixels.argmax(), pixels.shape)[0] // 40 == 1  # row 1
    assert np.unravel_index(pixels.argmax(), pixels.shape)[1] // 40 == 2  # column 2


def test_cells_beyond_the_image_are_cut_and_uncovered_parts_are_zero() -> None:
    padded = CellMap(np.array([1.0, 5.0]), (1, 2), np.array([[0, 0, 60, 40], [60, 0, 160, 40]], float))
    pixels = cells_to_pixels(padded, padded.density, SIZE, SIZE)
    assert pixels.shape == (80, 120)
    assert pixels[:40].min() >= 1.0 and (pixels[40:] == 0).all()


def test_the_scale_is_fixed_by_both_maps_together() -> None:
    low, high = CellMap(np.linspace(0.9, 1.1, 24), GRID, BOXES), one_cell(8)
    assert (
        shared_scale(low, high).top
        == shared_scale(high, low).top
        == pytest.approx(np.percentile(high.density, 99))
    )
    assert shared_scale(low, high).peak == pytest.approx(0.9 * 24)
    assert shared_scale(low, low).top == 2.0  # noise over an even map stays dark


def test_no_attention_leaves_the_picture_and_much_of_it_brightens() -> None:
    grey = Image.new("RGB", (6, 4), (60, 60, 60))
    pixels = np.zeros((4, 6))
    pixels[1, 2] = 5.0
    heat = np.asarray(heat_over(grey, pixels, 5.0)).astype(int)
    assert (heat[0, 0] == 60).all() and heat[1, 2].sum() > 500
    swing = np.asarray(difference_over(grey, np.where(pixels > 0, 5.0, -5.0), 5.0)).astype(int)
    assert swing[1, 2, 0] > swing[1, 2, 2]  # more is orange
    assert swing[0, 0, 2] > swing[0, 0, 0]  # less is blue
    assert np.abs(np.asarray(difference_over(grey, np.zeros((4, 6)), 5.0)).astype(int) - 60).max() <= 2


def test_a_night_scene_is_darkened_less_than_a_bright_one() -> None:
    assert dimming(Image.new("RGB", (6, 4), (30, 30, 30))) == 1.0
    assert dimming(Image.new("RGB", (6, 4), (250, 250, 250))) == 0.5


def test_base_now_and_difference_stand_side_by_side() -> None:
    page = np.asarray(draw_probe(sheet(regions={}), [layer()]).convert("RGB")).astype(int)
    assert page.shape[1] == WIDTH
    height = round(80 * PANEL / 120)
    cell = (round(height * 1.5 / 4), round(PANEL * 2.5 / 6))  # centre of cell 8 inside a panel
    base, now, difference = (
        page[104 + 4 + cell[0], MARGIN + column * (PANEL + GUTTER) + cell[1]] for column in range(3)
    )
    assert now.sum() > 450 > base.sum()
    assert difference[0] > difference[2] + 80  # orange: it looks there now


def test_every_key_layer_is_a_row_of_the_archive_picture() -> None:
    one, three = draw_probe(sheet(), [layer()]), draw_probe(sheet(), [layer(number=n) for n in (8, 16, 24)])
    assert one.width == three.width == WIDTH
    assert three.height > 2.2 * one.height
    with pytest.raises(ValueError, match="pearl-03: no key layer to draw"):
        draw_probe(sheet(), [])


def test_long_texts_and_tall_pictures_keep_the_width() -> None:
    tall = sheet(
        question="很长的问题 " * 60, foil=None, picture=Image.new("RGB", (80, 400)), after=Outcome("", None)
    )
    assert draw_probe(tall, [layer()]).width == WIDTH


def test_png_has_the_width_asked_for_and_is_small() -> None:
    page = draw_probe(sheet(), [layer()])
    png = encode_png(page, width=720)
    assert Image.open(io.BytesIO(png)).size == (720, round(page.height * 720 / WIDTH))
    assert len(png) < 200_000
    white = Image.open(io.BytesIO(encode_png(page))).convert("RGB").getpixel((3, 3))
    assert min(white) > 250  # type: ignore[type-var, arg-type]


def test_what_the_font_lacks_is_spelled_out() -> None:
    assert fonts.drawable("a\U0001f600b", fonts.latin_font()) in ("a[U+1F600]b", "a\U0001f600b")
    assert fonts.drawable("东", fonts.latin_font()) == "[U+4E1C]"
    assert fonts.drawable("a\nb", fonts.latin_font()) == "a b"


def test_without_a_chinese_font_chinese_is_an_error_and_english_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fonts, "chinese_font", lambda: None)
    with pytest.raises(ValueError, match="no font with Chinese glyphs .*pip install mplfonts"):
        draw_probe(sheet(), [layer()])
    english = sheet(
        question="What?", answer="blue", foil="red", before=Outcome("red", -1.0), after=Outcome("", 1.0)
    )
    assert draw_probe(english, [layer()]).width == WIDTH
