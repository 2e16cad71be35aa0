"""Draws one probe: its picture, the best single map and the fused map on one colour scale. Uses only PIL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from diagnostics.comparison.maps import CellMap
from diagnostics.drawing.colours import BAD, FAINT, GOOD, INK, PAPER, SOFT, common_top, dim, heat_over
from diagnostics.drawing.probe_picture import Box, cells_to_pixels, outline_regions
from finetune.fonts import Pen, text_font

WIDTH, MARGIN, GUTTER = 1080, 24, 18
PANEL = (WIDTH - 2 * MARGIN - 2 * GUTTER) // 3
PANEL_HEIGHT_MAX = 400
ABOVE, BELOW = 132, 168  # pixels of the header and of what stands under the panels
VERDICT_INK = {"better": GOOD, "worse": BAD}


@dataclass(frozen=True)
class Shown:
    """One map of a sheet.

    name         of the map: "layer_2"
    role         what it is here: "best single map"
    map          density, 1 is the even share
    enrichment   of the region, times
    is_on        does its strongest cell touch the region?
    """

    name: str
    role: str
    map: CellMap
    enrichment: float
    is_on: bool


@dataclass(frozen=True)
class FusionSheet:
    """Everything written and drawn on one probe's picture.

    regions    name → boxes in pixels of the original; the first is the one that is judged
    single     the chosen single map, and ``fused`` the chosen recipe's
    verdict    of the recipe in ``scope``: "better", "not better", "worse", "too few probes"
    chose      did this picture choose the two? It took no part in the verdict then
    """

    probe_id: str
    group: str
    picture: Image.Image
    question: str
    answer: str
    regions: Mapping[str, Sequence[Box]]
    single: Shown
    fused: Shown
    scope: str
    verdict: str
    chose: bool


def draw_sheet(sheet: FusionSheet) -> Image.Image:
    """Picture | best single map | fused map, 1080 pixels wide.

    Raises ValueError for Chinese to be written and no font that has it.
    """
    texts = (sheet.probe_id, sheet.group, sheet.question, sheet.answer, sheet.scope, *sheet.regions)
    pen = Pen(text_font("".join(texts)), INK)
    scale = min(PANEL / sheet.picture.width, PANEL_HEIGHT_MAX / sheet.picture.height)
    size = max(1, round(sheet.picture.width * scale)), max(1, round(sheet.picture.height * scale))
    page = Image.new("RGB", (WIDTH, ABOVE + size[1] + BELOW), PAPER)
    draw = ImageDraw.Draw(page)
    _header(draw, sheet, pen)
    for column, panel in enumerate(_panels(sheet, size, pen)):
        page.paste(panel, (_left(column) + (PANEL - size[0]) // 2, ABOVE))
    _readings(draw, sheet, ABOVE + size[1] + 32, pen)
    _colour_bar(page, draw, common_top([sheet.single.map, sheet.fused.map]), ABOVE + size[1] + 54, pen)
    _words(draw, sheet, ABOVE + size[1] + 138, pen)
    return page


def _panels(sheet: FusionSheet, size: tuple[int, int], pen: Pen) -> list[Image.Image]:
    top = common_top([sheet.single.map, sheet.fused.map])
    dimmed = dim(sheet.picture, size)
    panels = [sheet.picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)]
    for shown in (sheet.single, sheet.fused):
        pixels = cells_to_pixels(shown.map, shown.map.density, sheet.picture.size, size)
        panels.append(heat_over(dimmed, pixels, top))
    for column, panel in enumerate(panels):
        outline_regions(panel, sheet.regions, sheet.picture.size, pen, named=column == 0)
    return panels


def _header(draw: ImageDraw.ImageDraw, sheet: FusionSheet, pen: Pen) -> None:
    right = "chose the maps" if sheet.chose else "judged"
    room = WIDTH - 2 * MARGIN - pen.width(right, 26) - 30
    end = pen.write(draw, (MARGIN, 42), pen.fit(sheet.probe_id, 32, room), 32, anchor="ls")
    if (left := MARGIN + room - end - 18) > 120:
        pen.write(draw, (end + 18, 42), pen.fit(sheet.group, 24, left), 24, SOFT, anchor="ls")
    pen.write(draw, (WIDTH - MARGIN, 42), right, 26, SOFT, anchor="rs")
    draw.line((MARGIN, 58, WIDTH - MARGIN, 58), fill=FAINT, width=2)
    pen.write(draw, (_left(0), 92), "picture", 26, anchor="ls")
    for column, shown in enumerate((sheet.single, sheet.fused), start=1):
        pen.write(draw, (_left(column), 92), pen.fit(shown.name, 26, PANEL), 26, anchor="ls")
        pen.write(draw, (_left(column), 120), pen.fit(shown.role, 21, PANEL), 21, SOFT, anchor="ls")


def _readings(draw: ImageDraw.ImageDraw, sheet: FusionSheet, baseline: int, pen: Pen) -> None:
    region = next(iter(sheet.regions))
    for column, shown in enumerate((sheet.single, sheet.fused), start=1):
        end = pen.write(draw, (_left(column), baseline), f"{shown.enrichment:.2f}×", 28, anchor="ls")
        where, colour = ("peak on", GOOD) if shown.is_on else ("peak off", BAD)
        room = _left(column) + PANEL - end - 14
        pen.write(draw, (end + 14, baseline), pen.fit(f"{where} {region}", 22, room), 22, colour, "ls")


def _colour_bar(page: Image.Image, draw: ImageDraw.ImageDraw, top: float, y: int, pen: Pen) -> None:
    """One bar under both maps: they share its scale."""
    wide = 2 * PANEL + GUTTER
    level = np.tile(np.linspace(0, 1, wide), (12, 1))
    page.paste(heat_over(Image.new("RGB", (wide, 12), (62, 64, 70)), level, 1.0), (_left(1), y))
    pen.write(draw, (_left(1), y + 34), "0", 19, SOFT, anchor="ls")
    pen.write(draw, (_left(1) + wide / 2, y + 34), "attention, times the even share", 19, SOFT, anchor="ms")
    pen.write(draw, (_left(1) + wide, y + 34), f"{top:.1f}×", 19, SOFT, anchor="rs")


def _words(draw: ImageDraw.ImageDraw, sheet: FusionSheet, baseline: int, pen: Pen) -> None:
    verdict = f"{sheet.scope}: fusion is {sheet.verdict}"
    if sheet.verdict not in (*VERDICT_INK, "not better"):
        verdict = f"{sheet.scope}: {sheet.verdict}"
    ink = VERDICT_INK.get(sheet.verdict, SOFT)
    room = WIDTH - 2 * MARGIN - pen.width(verdict, 25) - 40
    asked = f"{sheet.question}  →  {sheet.answer}"
    pen.write(draw, (MARGIN, baseline), pen.fit(asked, 25, room), 25, anchor="ls")
    pen.write(draw, (WIDTH - MARGIN, baseline), verdict, 25, ink, anchor="rs")


def _left(column: int) -> int:
    return MARGIN + column * (PANEL + GUTTER)
