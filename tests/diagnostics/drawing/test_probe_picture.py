"""The probe picture: where the colour lands, one scale for both maps, text that no font may turn into boxes."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diagnostics.comparison.maps import CellMap, LayerMaps, Outcome, RegionChange, SaidBox, Strip, StripPanel
from diagnostics.drawing.board_picture import draw_drift, draw_maps
from diagnostics.drawing.colours import (
    BAD,
    GOOD,
    common_top,
    difference_over,
    dimming,
    heat_over,
    series_scale,
    shared_scale,
)
from diagnostics.drawing.probe_picture import (
    GUTTER,
    HEADER_HEIGHT,
    MARGIN,
    PANEL,
    STRIP_ABOVE,
    STRIP_HEAD,
    STRIP_PANEL_MIN,
    WIDTH,
    ProbeSheet,
    cells_to_pixels,
    draw_probe,
    draw_strip,
    encode_png,
    map_panel,
    map_rows,
    share_words,
)
from finetune import fonts
from finetune.fonts import Pen

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
        number, one_cell(before), one_cell(after), (RegionChange("spheres", 0.01, 0.9, 0.2, 20.0),)
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
        page[HEADER_HEIGHT + 3 + cell[0], MARGIN + column * (PANEL + GUTTER) + cell[1]] for column in range(3)
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


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (0.0004, "<0.1 %"),
        (0.01, "1 %"),
        (0.4129, "41.3 %"),
        (0.9996, ">99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_a_little_attention_is_not_none_and_almost_all_is_not_all(
    share: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert share_words(share) == words
    written: list[str] = []
    plain = Pen.write

    def note(pen: Pen, draw: Any, at: Any, text: str, *more: Any, **named: Any) -> float:
        written.append(text)
        return plain(pen, draw, at, text, *more, **named)

    monkeypatch.setattr(Pen, "write", note)
    maps = layer()
    maps = replace(maps, readings=(maps.readings[0]._replace(mass_before=share, mass_after=share),))
    steps = strip((20, 8))
    steps = replace(steps, panels=tuple(panel._replace(mass=share) for panel in steps.panels))
    draw_probe(sheet(), [maps])
    draw_strip(sheet(), [steps])
    draw_maps(sheet(), maps)
    draw_drift(sheet(), steps)
    told = [words, words, *[f"{words} · 6.0×"] * 2, f"{words} → {words}", *[f"{words} on spheres, 6.0×"] * 2]
    assert [one for one in written if " %" in one] == told


def test_a_png_is_small_and_keeps_the_colours() -> None:
    page = draw_probe(sheet(), [layer()])
    png = encode_png(page)
    drawn = Image.open(io.BytesIO(png)).convert("RGB")
    assert drawn.size == page.size and len(png) < 100_000
    assert min(drawn.getpixel((3, 3))) > 250  # type: ignore[type-var, arg-type]
    assert off_by_eye(page, png) < 1.5


def off_by_eye(page: Image.Image, png: bytes) -> float:
    """How far a PNG is from its picture (root mean square of 256 levels), dithering blurred."""
    smooth = ImageFilter.BoxBlur(2)
    drawn = Image.open(io.BytesIO(png)).convert("RGB")
    off = np.asarray(drawn.filter(smooth), float) - np.asarray(page.filter(smooth), float)
    return float(np.sqrt((off**2).mean()))


@pytest.mark.parametrize("layers", [1, 2])
def test_rows_of_maps_and_colour_bars_are_dithered_and_type_is_not(layers: int) -> None:
    of, maps = sheet(), [layer(number=n) for n in range(layers)]
    page, rows = draw_probe(of, maps), [*map_rows(of.picture.size, layers)]
    assert len(rows) == layers
    grey = np.asarray(page.convert("RGB")).astype(int)
    coloured = (grey.max(2) - grey.min(2)).max(1) > 100  # the brightest of a map, and of a bar
    ends = [edge for top, bottom in rows for edge in (top, bottom)]
    for top, bottom in zip([0, *ends[1::2]], [*ends[::2], page.height - 100], strict=True):
        assert not coloured[top:bottom].any()  # before, between and below them, down to the answers
    for _, bottom in rows:
        assert coloured[bottom - 1] and not coloured[bottom]
    png = encode_png(page, rows)
    assert off_by_eye(page, png) < 1.5
    assert len(png) < len(encode_png(page))


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


def strip(cells: tuple[int, ...], layer: int = 3, share: float = 0.9) -> Strip:
    return Strip(
        layer,
        tuple(
            StripPanel(10 * n, one_cell(cell, share), 0.25, 6.0, Outcome("", float(n) - 0.5))
            for n, cell in enumerate(cells)
        ),
    )


def middle(page: np.ndarray, column: int, panel: int, cell: int) -> np.ndarray:
    """The pixel in the middle of a cell, of one panel of the first row of a strip."""
    row, across = divmod(cell, 6)
    top = STRIP_HEAD + STRIP_ABOVE + round(panel * 80 / 120 * (row + 0.5) / 4)
    return page[top, MARGIN + column * (panel + GUTTER) + round(panel * (across + 0.5) / 6)]


def test_a_scale_of_many_maps_holds_the_brightest_and_the_largest_change() -> None:
    faint, middling, bright = one_cell(20, 0.2), one_cell(14, 0.4), one_cell(8, 0.9)
    scale = series_scale([faint, bright, middling])
    assert scale.top == common_top([bright, faint]) == pytest.approx(np.percentile(bright.density, 99))
    assert scale.peak == pytest.approx(0.9 * 24)
    # from the first map, not from the one before
    assert scale.swing == pytest.approx(np.percentile(np.abs(bright.density - faint.density), 99))
    assert series_scale([faint, bright]) == shared_scale(faint, bright)


def test_a_strip_has_a_panel_for_each_step_and_a_row_for_each_layer() -> None:
    one = draw_strip(sheet(regions={}), [strip((20, 14, 8))])
    page = np.asarray(one.convert("RGB")).astype(int)
    assert one.width == WIDTH
    for column, cell in enumerate((20, 14, 8)):
        assert middle(page, column, PANEL, cell).sum() > 450
        for other in {20, 14, 8} - {cell}:
            assert middle(page, column, PANEL, other).sum() < 350
    assert draw_strip(sheet(), [strip((20, 14, 8)), strip((8, 8, 8), layer=5)]).height > 1.6 * one.height


def test_a_strip_has_one_scale_for_all_its_steps() -> None:
    steps = strip((8, 8), share=0.9).panels[0], strip((8,), share=0.3).panels[0]._replace(step=10)
    page = np.asarray(draw_strip(sheet(regions={}), [Strip(3, steps)]).convert("RGB")).astype(int)
    assert middle(page, 0, PANEL, 8).sum() > middle(page, 1, PANEL, 8).sum() + 100


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_nothing_is_written_beyond_the_edge_of_a_strip(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    ends, write = [], Pen.write
    monkeypatch.setattr(
        Pen, "write", lambda *given, **more: (ends.append(write(*given, **more)), ends[-1])[1]
    )
    page = draw_strip(sheet(), [strip((8,) * steps)])
    assert ends and max(ends) <= page.width


def test_a_strip_of_many_steps_grows_wider_and_not_unreadable() -> None:
    wide = draw_strip(sheet(), [strip((8,) * 8)])
    assert wide.width == 2 * MARGIN + 8 * STRIP_PANEL_MIN + 7 * GUTTER > WIDTH
    unread = Strip(3, (StripPanel(0, one_cell(8), None, None, Outcome("", None)),))
    assert draw_strip(sheet(regions={}, foil=None), [unread]).width == WIDTH
    with pytest.raises(ValueError, match="pearl-03: no step to draw"):
        draw_strip(sheet(), [])
    with pytest.raises(ValueError, match="pearl-03: no step to draw"):
        draw_strip(sheet(), [Strip(3, ())])


def test_a_map_alone_keeps_the_pictures_shape_and_has_its_boxes() -> None:
    grey = Image.new("RGB", SIZE, (90, 90, 90))
    panel = map_panel(grey, [(40, 20, 60, 40)], one_cell(20), 20.0, 240)
    assert panel.size == (240, 160)
    pixels = np.asarray(panel).astype(int)
    assert pixels[140, 100].sum() > 450  # cell 20: row 3, column 2
    assert (pixels[60, 79] > 240).all() and (pixels[39, 100] > 240).all()  # left and upper side of the box
    assert (pixels[60, 100] < 240).all()


def test_a_said_box_is_red_before_and_green_now() -> None:
    """At its own place in both columns, in panels of 196 × 131 pixels of a picture of 120 × 80; none in the third."""
    wrong, right = SaidBox((84.0, 40.0, 114.0, 70.0), False), SaidBox((40.0, 20.0, 60.0, 40.0), True)
    boxed = {"before": Outcome("there", -3.0, wrong), "after": Outcome("here", 4.0, right)}
    drawn = np.asarray(draw_probe(sheet(**boxed), [layer()]).convert("RGB")).astype(int)
    plain = np.asarray(draw_probe(sheet(), [layer()]).convert("RGB")).astype(int)
    panels = [(MARGIN + column * (PANEL + GUTTER), HEADER_HEIGHT + 3) for column in range(3)]
    scale = PANEL / SIZE[0]
    for (left, top), box, colour in zip(panels, (wrong, right), (BAD, GOOD), strict=False):
        x0, y0, x1, y1 = (value * scale for value in box.corners)
        middles = [
            (x0 - 2, (y0 + y1) / 2),
            (x1 + 1, (y0 + y1) / 2),
            ((x0 + x1) / 2, y0 - 2),
            ((x0 + x1) / 2, y1 + 1),
        ]
        for x, y in middles:
            assert tuple(drawn[round(top + y), round(left + x)]) == colour
    left, top = panels[2]
    height = round(SIZE[1] * scale)
    third = np.s_[top : top + height, left : left + PANEL]
    assert (drawn[third] == plain[third]).all()


def test_a_said_box_in_a_wrong_unit_is_drawn_at_the_edge_and_does_no_harm() -> None:
    far = Outcome("there", -3.0, SaidBox((99_000.0, 500.0, -80.0, 1e9), False))
    assert draw_probe(sheet(before=far), [layer()]).size == draw_probe(sheet(), [layer()]).size
