"""The pictures of TensorBoard and other trackers: readable in a card 350 pixels wide.

The archive's pictures (``probe_picture``) have room for every layer and number; these have one layer, and large type.
"""

from __future__ import annotations

from PIL import Image, ImageDraw

from diagnostics.comparison.maps import LayerMaps, Outcome, Strip, StripPanel
from diagnostics.drawing.cards import says_right
from diagnostics.drawing.colours import (
    BAD,
    FAINT,
    GOOD,
    INK,
    LESS,
    MORE,
    PAPER,
    SOFT,
    Scale,
    difference_over,
    dim,
    end_words,
    heat_over,
    series_scale,
    shared_scale,
)
from diagnostics.drawing.probe_picture import (
    ProbeSheet,
    cells_to_pixels,
    colour_bar,
    darker,
    fitted,
    outline_regions,
    outline_said,
    share_words,
    words_of,
)
from finetune.fonts import Pen, text_font

# All in pixels of the drawing. It is shown at exactly half its size: TensorBoard leaves pixels out instead of blending
# them, and at another scale strokes of letters would go missing.
WIDTH, MARGIN, GUTTER = 700, 14, 16
PANEL = (WIDTH - 2 * MARGIN - GUTTER) // 2
PANEL_HEIGHT_MAX = 420
LARGE, PLAIN, SMALL = 30, 26, 22
HEAD, ABOVE, BELOW, FOOT = 92, 40, 72, 56


def draw_drift(sheet: ProbeSheet, strip: Strip) -> Image.Image:
    """One probe and layer over the steps of a training, two panels side by side, on one colour scale: base, steps, now.

    Raises:
        ValueError: no step, or Chinese text and no font that has it.
    """
    if not strip.panels:
        raise ValueError(f"probe {sheet.probe_id}: no step to draw; expected at least one")
    pen = Pen(text_font("".join(words_of(sheet))), INK)
    scale = series_scale([panel.map for panel in strip.panels])
    size = fitted(sheet.picture.size, PANEL, PANEL_HEIGHT_MAX)
    dimmed = dim(sheet.picture, size)
    high = ABOVE + size[1] + BELOW
    rows = -(-len(strip.panels) // 2)
    page = Image.new("RGB", (WIDTH, HEAD + rows * high + FOOT), PAPER)
    draw = ImageDraw.Draw(page)
    _head(draw, sheet, strip.name, pen)
    for index, panel in enumerate(strip.panels):
        place = _column(index % 2), HEAD + index // 2 * high
        drawn = _heat(sheet, panel, dimmed, scale, pen, named=index == 0)
        _panel(page, draw, drawn, place, _step_words(strip, index), pen)
        _answer_line(draw, (place[0], place[1] + ABOVE + size[1] + 28), sheet, panel.outcome, pen)
        _reading_line(draw, (place[0], place[1] + ABOVE + size[1] + 58), sheet, panel, pen)
    _heat_bar(page, draw, scale, pen)
    return page


def draw_maps(sheet: ProbeSheet, maps: LayerMaps) -> Image.Image:
    """One probe and layer: base and now side by side, their difference and the numbers below."""
    pen = Pen(text_font("".join(words_of(sheet))), INK)
    scale = shared_scale(maps.before, maps.after)
    size = fitted(sheet.picture.size, PANEL, PANEL_HEIGHT_MAX)
    dimmed = dim(sheet.picture, size)
    high = ABOVE + size[1]
    page = Image.new("RGB", (WIDTH, HEAD + 2 * high + BELOW + FOOT), PAPER)
    draw = ImageDraw.Draw(page)
    _head(draw, sheet, maps.name, pen)
    laid = [
        cells_to_pixels(side, side.density, sheet.picture.size, size) for side in (maps.before, maps.after)
    ]
    sides = (
        ("base" if sheet.base_step == 0 else f"base · step {sheet.base_step}", sheet.before),
        (f"now · step {sheet.step}", sheet.after),
    )
    for column, ((name, outcome), pixels) in enumerate(zip(sides, laid, strict=True)):
        drawn = heat_over(dimmed, pixels, scale.top)
        outline_regions(drawn, sheet.regions, sheet.picture.size, pen, named=column == 0)
        outline_said(drawn, outcome.box, sheet.picture.size)
        _panel(page, draw, drawn, (_column(column), HEAD), name, pen)
        _answer_line(draw, (_column(column), HEAD + high + 28), sheet, outcome, pen)
    below = HEAD + high + BELOW - 32
    changed = difference_over(dimmed, laid[1] - laid[0], scale.swing)
    outline_regions(changed, sheet.regions, sheet.picture.size, pen, named=False)
    _panel(page, draw, changed, (_column(0), below), "difference", pen)
    _numbers(draw, (_column(1), below + ABOVE), maps, pen)
    _heat_bar(page, draw, scale, pen)
    return page


def _head(draw: ImageDraw.ImageDraw, sheet: ProbeSheet, right: str, pen: Pen) -> None:
    """The question and, at the ``right``, the layer; then the right and the wrong answer."""
    room = WIDTH - 3 * MARGIN - pen.width(right, SMALL)
    pen.write(draw, (MARGIN, 36), pen.fit(sheet.question, LARGE, room), LARGE, anchor="ls")
    pen.write(draw, (WIDTH - MARGIN, 36), right, SMALL, SOFT, anchor="rs")
    end = _labelled(draw, (MARGIN, 74), "right", sheet.answer, GOOD, pen)
    if sheet.foil is not None:
        _labelled(draw, (end + 24, 74), "wrong", sheet.foil, BAD, pen)
    draw.line((MARGIN, HEAD - 2, WIDTH - MARGIN, HEAD - 2), fill=FAINT, width=2)


def _labelled(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    label: str,
    text: str,
    colour: tuple[int, int, int],
    pen: Pen,
) -> float:
    start = pen.write(draw, at, label, SMALL, SOFT, anchor="ls") + 8
    room = min(WIDTH * 0.42, WIDTH - MARGIN - start)
    return pen.write(draw, (start, at[1]), pen.fit(text, PLAIN, room), PLAIN, colour, anchor="ls")


def _panel(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    drawn: Image.Image,
    place: tuple[int, int],
    name: str,
    pen: Pen,
) -> None:
    """One map under its name."""
    left, top = place
    pen.write(draw, (left, top + 30), pen.fit(name, PLAIN, PANEL), PLAIN, anchor="ls")
    page.paste(drawn, (left + (PANEL - drawn.width) // 2, top + ABOVE))


def _answer_line(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], sheet: ProbeSheet, outcome: Outcome, pen: Pen
) -> None:
    """Below a map: what the model answered, green where that is right, and the margin, green where the right answer
    leads."""
    margin, right = outcome.margin_nats, says_right(outcome, (sheet.answer, *sheet.spellings), sheet.foil)
    number = "" if margin is None else f"{margin:+.2f} nats"
    room = PANEL - pen.width(number, SMALL) - 12
    pen.write(draw, at, pen.fit(outcome.said, PLAIN, room), PLAIN, GOOD if right else BAD, anchor="ls")
    pen.write(draw, (at[0] + PANEL, at[1]), number, SMALL, GOOD if (margin or 0) > 0 else BAD, anchor="rs")


def _heat(
    sheet: ProbeSheet, panel: StripPanel, dimmed: Image.Image, scale: Scale, pen: Pen, *, named: bool
) -> Image.Image:
    pixels = cells_to_pixels(panel.map, panel.map.density, sheet.picture.size, dimmed.size)
    drawn = heat_over(dimmed, pixels, scale.top)
    outline_regions(drawn, sheet.regions, sheet.picture.size, pen, named=named)
    outline_said(drawn, panel.outcome.box, sheet.picture.size)
    return drawn


def _step_words(strip: Strip, index: int) -> str:
    step = strip.panels[index].step
    if index == 0:
        return "base" if step == 0 else f"base · step {step}"
    return f"now · step {step}" if index == len(strip.panels) - 1 else f"step {step}"


def _reading_line(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], sheet: ProbeSheet, panel: StripPanel, pen: Pen
) -> None:
    """The share of attention on the judged region, below a panel."""
    if panel.mass is None:
        return
    words = f"{share_words(panel.mass)} on {next(iter(sheet.regions))}, {panel.enrichment:.1f}×"
    pen.write(draw, at, pen.fit(words, SMALL, PANEL), SMALL, SOFT, anchor="ls")


def _numbers(draw: ImageDraw.ImageDraw, corner: tuple[int, int], maps: LayerMaps, pen: Pen) -> None:
    """The judged region's share of attention and its enrichment, before and now, beside the difference."""
    left, top = corner
    pen.write(draw, (left, top + 24), "less", SMALL, darker(LESS), anchor="ls")
    pen.write(draw, (left + 60, top + 24), "more than the base", SMALL, darker(MORE), anchor="ls")
    for reading in maps.readings[:1]:
        lines = (
            (f"attention on {reading.region}", SMALL, SOFT),
            (f"{share_words(reading.mass_before)} → {share_words(reading.mass_after)}", LARGE, INK),
            ("times its share of the picture", SMALL, SOFT),
            (f"{reading.enrichment_before:.1f}× → {reading.enrichment_after:.1f}×", LARGE, INK),
        )
        for row, (words, size, colour) in enumerate(lines):
            pen.write(
                draw, (left, top + 74 + 42 * row), pen.fit(words, size, PANEL), size, colour, anchor="ls"
            )


def _heat_bar(page: Image.Image, draw: ImageDraw.ImageDraw, scale: Scale, pen: Pen) -> None:
    """The colours of the maps, at the foot: from none to the scale's end."""
    words = f"{end_words(scale.top)}× the even share"
    room = round(WIDTH - 2 * MARGIN - pen.width(words, SMALL) - pen.width("0", SMALL) - 24)
    left = round(MARGIN + pen.width("0", SMALL) + 10)
    pen.write(draw, (MARGIN, page.height - 18), "0", SMALL, SOFT, anchor="ls")
    page.paste(colour_bar().resize((room, 14)), (left, page.height - 32))
    pen.write(draw, (left + room + 12, page.height - 18), words, SMALL, SOFT, anchor="ls")


def _column(index: int) -> int:
    return MARGIN + index * (PANEL + GUTTER)
