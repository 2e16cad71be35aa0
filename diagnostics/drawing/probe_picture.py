"""The probe picture, base | now | difference over the dimmed original, and the strip over steps, drawn with PIL."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from diagnostics.comparison.maps import (
    CellMap,
    LayerMaps,
    Outcome,
    RegionChange,
    SaidBox,
    Strip,
    StripPanel,
)
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
    heat_over,
    series_scale,
    shared_scale,
)
from finetune.fonts import Pen, text_font
from finetune.percent import percent_words

Box = tuple[float, float, float, float]

# One width for every picture, so that thumbnails line up. Drawn at this size, for drawing larger and shrinking takes
# twice as long.
WIDTH, MARGIN, GUTTER = 640, 14, 11
PANEL = (WIDTH - 2 * MARGIN - 2 * GUTTER) // 3
PANEL_HEIGHT_MAX = 240
LEAST_SIDE = 16
# The title line, in pixels: type sizes, where it stands, and the rule below it.
TITLE_TYPE, SIDE_TYPE, GROUP_TYPE, COLUMN_TYPE = 19, 17, 14, 16
TITLE_BASELINE, RULE_Y, HEADER_HEIGHT = 25, 34, 62
TITLE_GAP, GROUP_WIDTH_MIN = 18, 60
TAG_TYPE = 12
BAR_BELOW, BAR_HEIGHT, BELOW_MAPS = 38, 8, 76  # from the maps down: to the colour bars, and to the next layer
STRIP_HEAD, STRIP_ABOVE = 79, 41
STRIP_PANEL_MIN = 120  # of a strip: below it the numbers under a panel run into each other


@dataclass(frozen=True)
class ProbeSheet:
    """Everything that one probe's picture shows.

    picture       the original image, any size
    regions       name → boxes in pixels of the original; the first is the judged one
    base_step, step   training steps of the two models
    spellings     of the right answer, besides ``answer``
    best          the checkpoint that was measured in place of the step's own model; None: the step's own was
    """

    probe_id: str
    group: str
    picture: Image.Image
    question: str
    answer: str
    foil: str | None
    regions: Mapping[str, Sequence[Box]]
    base_step: int
    step: int
    before: Outcome
    after: Outcome
    spellings: tuple[str, ...] = ()
    best: str | None = None

    @property
    def moment(self) -> str:
        """Which model "now" is: "step 40" or, where the best one was loaded at the end, "checkpoint-10, the best"."""
        return f"step {self.step}" if self.best is None else f"{self.best}, the best"


def draw_probe(sheet: ProbeSheet, layers: Sequence[LayerMaps]) -> Image.Image:
    """Base | now | difference, one row for each of ``layers``, under one header and over one caption.

    The picture is 640 pixels wide; its height follows from the image's aspect ratio and the caption's length.

    Raises:
        ValueError: no layer, or Chinese text and no font that has it.
    """
    if not layers:
        raise ValueError(f"probe {sheet.probe_id}: no key layer to draw; expected at least one")
    pen = Pen(text_font("".join(words_of(sheet))), INK)
    panel = _panel_size(sheet.picture.size)
    dimmed = dim(sheet.picture, panel)
    parts = [_header(sheet, layers, pen)]
    parts += [_layer_row(sheet, maps, dimmed, pen, titled=len(layers) > 1) for maps in layers]
    parts.append(_caption(sheet, pen))
    return _stacked(parts)


def map_rows(picture_size: tuple[int, int], layers: int) -> Iterator[tuple[int, int]]:
    """The rows of ``draw_probe`` with maps and colour bars, for an original of ``picture_size`` (width, height)."""
    above, high, top = _above(layers > 1), _panel_size(picture_size)[1], HEADER_HEIGHT
    for _ in range(layers):
        yield top + above, top + above + high + BAR_BELOW + BAR_HEIGHT
        top += above + high + BELOW_MAPS


def draw_strip(sheet: ProbeSheet, strips: Sequence[Strip]) -> Image.Image:
    """One probe over the steps of a training: a row for each key layer, a panel for each step, one colour scale a row.

    Margin and region mass stand under each panel. The picture is at least 640 pixels wide, more where the panels
    need it.

    Raises:
        ValueError: no layer, no step, or Chinese text and no font that has it.
    """
    if not strips or not strips[0].panels:
        raise ValueError(
            f"probe {sheet.probe_id}: no step to draw; expected at least one key layer and one step"
        )
    pen = Pen(text_font("".join(words_of(sheet))), INK)
    panels = len(strips[0].panels)
    wide = max(STRIP_PANEL_MIN, min(PANEL, (WIDTH - 2 * MARGIN - (panels - 1) * GUTTER) // panels))
    size = _panel_size(sheet.picture.size, wide)
    width = max(WIDTH, 2 * MARGIN + panels * wide + (panels - 1) * GUTTER)
    parts = [_strip_title(sheet, strips[0], width, pen)]
    dimmed = dim(sheet.picture, size)
    parts += [_strip_row(sheet, strip, dimmed, wide, width, pen) for strip in strips]
    return _stacked(parts)


def map_panel(
    picture: Image.Image, boxes: Sequence[Box], cells: CellMap, top: float, width: int
) -> Image.Image:
    """One map over the dimmed picture with one region's boxes, at most ``width`` pixels wide; ``top`` is the
    end of the colour scale."""
    size = fitted(picture.size, width, 2 * width)
    pixels = cells_to_pixels(cells, cells.density, picture.size, size)
    panel = heat_over(dim(picture, size), pixels, top)
    outline_boxes(panel, boxes, picture.size, (255, 255, 255), 2)
    return panel


def outline_regions(
    drawn: Image.Image,
    regions: Mapping[str, Sequence[Box]],
    image_size: tuple[int, int],
    pen: Pen,
    *,
    named: bool,
    line: int = 2,
    type_size: int = 20,
) -> None:
    """Outline every box, given in pixels of an original of ``image_size``, on a picture of it drawn at another size:
    the first region, which is judged, in white, with its name if ``named``; the others thinner and fainter.

    line, type_size   pixels: of the judged region's outline, and of its name
    """
    for rank, (name, boxes) in reversed(list(enumerate(regions.items()))):
        colour, wide = ((255, 255, 255), line) if rank == 0 else ((176, 182, 194), 1)
        outline_boxes(drawn, boxes, image_size, colour, wide)
        if named and rank == 0 and boxes:
            across, down = drawn.width / image_size[0], drawn.height / image_size[1]
            corner = boxes[0][0] * across, boxes[0][1] * down
            _name_tag(ImageDraw.Draw(drawn), name, corner, drawn.size, pen, type_size)


def outline_said(
    drawn: Image.Image, said: SaidBox | None, image_size: tuple[int, int], *, line: int = 3
) -> None:
    """Outline the box that was said, green where it is right and red where it is not; corners may be exchanged."""
    if said is None:
        return
    # An answer in a wrong unit is a thousand pictures away; Pillow wants numbers of a sane size.
    x0, y0, x1, y1 = (
        min(max(value, -side), 2 * side) for value, side in zip(said.corners, image_size * 2, strict=True)
    )
    box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    outline_boxes(drawn, [box], image_size, GOOD if said.is_right else BAD, line)


def encode_png(picture: Image.Image, dithered: Iterable[tuple[int, int]] | None = None) -> bytes:
    """PNG bytes with 256 colours of the picture's own, dithered so that maps show no bands.

    At most one byte a pixel before compression: about two thirds of true colour.

    dithered   from which row to which, exclusive; the rest is paper and type. None: all
    """
    # The palette comes from a thumbnail (a tenth of the time); dithering happens only with a palette given.
    thumbnail = picture.resize((picture.width // 6, picture.height // 6), Image.Resampling.NEAREST)
    for index, colour in enumerate((PAPER, FAINT, SOFT, INK, GOOD, BAD)):  # which a thumbnail may miss
        thumbnail.paste(colour, (index * 12, 0, index * 12 + 12, 12))
    # Colours of an octree are nearer to the picture than those of a median cut, and found in a twentieth of its time.
    palette = thumbnail.quantize(256, method=Image.Quantize.FASTOCTREE)
    if dithered is None:
        few = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    else:
        few = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        for top, bottom in dithered:
            rows = picture.crop((0, top, picture.width, bottom))
            few.paste(rows.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG), (0, top))
    buffer = io.BytesIO()
    few.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def cells_to_pixels(
    cells: CellMap, values: Float[np.ndarray, cells], image_size: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """``values`` of the cells laid over a picture drawn at ``size`` (width, height), smoothly between centres.

    ``image_size`` is (width, height) of the original, in whose pixels the boxes are. Cells outside the image
    (a padded border) are cut away, and parts of the image that no cell covers are 0.
    """
    rows, columns = cells.grid
    left, top = cells.boxes_pixels[:, :2].min(axis=0)
    right, bottom = cells.boxes_pixels[:, 2:].max(axis=0)
    across, down = size[0] / image_size[0], size[1] / image_size[1]
    extent = (max(1, round((right - left) * across)), max(1, round((bottom - top) * down)))
    grid = Image.fromarray(np.ascontiguousarray(values.reshape(rows, columns), dtype=np.float32), mode="F")
    canvas = Image.new("F", size, 0.0)
    canvas.paste(grid.resize(extent, Image.Resampling.BILINEAR), (round(left * across), round(top * down)))
    return np.asarray(canvas)


def words_of(sheet: ProbeSheet) -> tuple[str, ...]:
    """Every text on a probe's picture, for which a font must have the glyphs."""
    texts = (sheet.probe_id, sheet.group, sheet.question, sheet.answer, sheet.foil or "", *sheet.regions)
    return (*texts, sheet.before.said, sheet.after.said)


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    # Without a colour: the parts, all as wide as the first, cover every pixel.
    page = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), None)
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def _panel_size(image_size: tuple[int, int], panel: int = PANEL) -> tuple[int, int]:
    return fitted(image_size, panel, PANEL_HEIGHT_MAX)


def fitted(image_size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The largest size of a picture's shape within ``width`` × ``height``; but a side is ``LEAST_SIDE`` at least, for a
    line one pixel wide shows nothing: a picture of 5 × 900 in 480 × 400 is 16 × 400."""
    scale = min(width / image_size[0], height / image_size[1])
    return max(LEAST_SIDE, round(image_size[0] * scale)), max(LEAST_SIDE, round(image_size[1] * scale))


def _header(sheet: ProbeSheet, layers: Sequence[LayerMaps], pen: Pen) -> Image.Image:
    """The title line, and the names of the three columns."""
    part = Image.new("RGB", (WIDTH, HEADER_HEIGHT), PAPER)
    draw = ImageDraw.Draw(part)
    which = layers[0].name if len(layers) == 1 else f"{len(layers)} key layers"
    _title_line(draw, sheet, f"{which}  ·  {sheet.moment}", WIDTH, pen)
    base = "base" if sheet.base_step == 0 else f"base · step {sheet.base_step}"
    for column, name in enumerate((base, "now", "difference")):
        pen.write(draw, (_column(column), HEADER_HEIGHT - 8), name, COLUMN_TYPE, anchor="ls")
    return part


def _title_line(draw: ImageDraw.ImageDraw, sheet: ProbeSheet, right: str, width: int, pen: Pen) -> None:
    """Probe and group on the left, ``right`` on the right, a rule below; no group where there is no room."""
    end_of_left = width - MARGIN - pen.width(right, SIDE_TYPE) - TITLE_GAP
    title = pen.fit(sheet.probe_id, TITLE_TYPE, end_of_left - MARGIN)
    group_left = pen.write(draw, (MARGIN, TITLE_BASELINE), title, TITLE_TYPE, anchor="ls") + GUTTER
    if end_of_left - group_left > GROUP_WIDTH_MIN:
        group = pen.fit(sheet.group, GROUP_TYPE, end_of_left - group_left)
        pen.write(draw, (group_left, TITLE_BASELINE), group, GROUP_TYPE, SOFT, anchor="ls")
    pen.write(draw, (width - MARGIN, TITLE_BASELINE), right, SIDE_TYPE, SOFT, anchor="rs")
    draw.line((MARGIN, RULE_Y, width - MARGIN, RULE_Y), fill=FAINT)


def _layer_row(
    sheet: ProbeSheet, maps: LayerMaps, dimmed: Image.Image, pen: Pen, *, titled: bool
) -> Image.Image:
    """Three panels, the judged region's numbers below them, and the colour bars."""
    size = dimmed.size
    scale = shared_scale(maps.before, maps.after)
    laid = [
        cells_to_pixels(maps.before, maps.before.density, sheet.picture.size, size),
        cells_to_pixels(maps.after, maps.after.density, sheet.picture.size, size),
    ]
    panels = [heat_over(dimmed, pixels, scale.top) for pixels in laid]
    panels.append(difference_over(dimmed, laid[1] - laid[0], scale.swing))
    above = _above(titled)
    part = Image.new("RGB", (WIDTH, above + size[1] + BELOW_MAPS), PAPER)
    draw = ImageDraw.Draw(part)
    if titled:
        pen.write(draw, (MARGIN, 16), maps.name, 15, SOFT, anchor="ls")
    for column, panel in enumerate(panels):
        _outline_all(panel, sheet, pen, named=column == 0)
        if column < 2:
            outline_said(panel, (sheet.before, sheet.after)[column].box, sheet.picture.size, line=2)
        part.paste(panel, (_column(column) + (PANEL - size[0]) // 2, above))
    _write_readings(draw, maps.readings, above + size[1] + 20, pen)
    _colour_bars(part, draw, scale, above + size[1] + BAR_BELOW, pen)
    return part


def _outline_all(drawn: Image.Image, sheet: ProbeSheet, pen: Pen, *, named: bool) -> None:
    outline_regions(drawn, sheet.regions, sheet.picture.size, pen, named=named, line=1, type_size=TAG_TYPE)


def _above(titled: bool) -> int:
    """Pixels above a layer's maps: for its number, where there are several."""
    return 24 if titled else 3


def outline_boxes(
    drawn: Image.Image,
    boxes: Sequence[Box],
    image_size: tuple[int, int],
    colour: tuple[int, int, int],
    line: int,
) -> None:
    """Boxes in pixels of an original of ``image_size``, outlined on a picture of it drawn at another size."""
    draw = ImageDraw.Draw(drawn)
    across, down = drawn.width / image_size[0], drawn.height / image_size[1]
    for x0, y0, x1, y1 in boxes:
        # Outside the box, so that a small region is not covered by its own outline.
        box = (x0 * across - line, y0 * down - line, x1 * across + line - 1, y1 * down + line - 1)
        draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=(20, 20, 24))
        draw.rectangle(box, outline=colour, width=line)


def _name_tag(
    draw: ImageDraw.ImageDraw,
    name: str,
    corner: tuple[float, float],
    size: tuple[int, int],
    pen: Pen,
    type_size: int,
) -> None:
    pad, high, clear = (round(type_size * share) for share in (0.3, 1.3, 1.4))
    name = pen.fit(name, type_size, size[0] - 2 * pad - 2)
    width = pen.width(name, type_size) + 2 * pad
    left = min(max(0.0, corner[0] - 1), size[0] - width)
    top = corner[1] - clear if corner[1] >= clear else min(corner[1] + pad - 2, size[1] - high)
    draw.rectangle((left, top, left + width, top + high), fill=(255, 255, 255))
    pen.write(draw, (left + pad, top + type_size), name, type_size, anchor="ls")


def _write_readings(
    draw: ImageDraw.ImageDraw, readings: Sequence[RegionChange], baseline: int, pen: Pen
) -> None:
    """The judged region's mass and enrichment below each panel."""
    for reading in readings[:1]:
        gain = reading.mass_after - reading.mass_before
        colour = INK if abs(gain) < 0.0005 else darker(MORE if gain > 0 else LESS)
        spread = reading.enrichment_after - reading.enrichment_before
        columns = (
            (share_words(reading.mass_before), INK, f"{reading.enrichment_before:.2f}×"),
            (share_words(reading.mass_after), INK, f"{reading.enrichment_after:.2f}×"),
            (f"{gain * 100:+.1f} points", colour, f"{spread:+.2f}×"),
        )
        for column, (mass, ink, enrichment) in enumerate(columns):
            left, right = _column(column), _column(column) + PANEL
            tail = pen.write(draw, (left, baseline), mass, 17, ink, anchor="ls")
            pen.write(draw, (right, baseline), enrichment, 14, SOFT, anchor="rs")
            if column < 2:
                room = right - pen.width(enrichment, 14) - tail - 14
                pen.write(
                    draw, (tail + 6, baseline), pen.fit(f"on {reading.region}", 13, room), 13, SOFT, "ls"
                )


def _colour_bars(part: Image.Image, draw: ImageDraw.ImageDraw, scale: Scale, top: int, pen: Pen) -> None:
    """One bar under base and now together, one under the difference; on the grey of a dimmed picture."""
    wide = 2 * PANEL + GUTTER
    for bar, column in zip(_bars(), (0, 2), strict=True):
        part.paste(bar, (_column(column), top))
    beyond = f" (peak {scale.peak:.1f})" if scale.peak > scale.top * 1.05 else ""
    below = top + 20
    pen.write(draw, (_column(0), below), "0", 11, SOFT, anchor="ls")
    pen.write(draw, (_column(0) + wide / 2, below), "attention, times the even share", 11, SOFT, anchor="ms")
    pen.write(draw, (_column(0) + wide, below), f"{scale.top:.1f}×{beyond}", 11, SOFT, anchor="rs")
    pen.write(draw, (_column(2), below), f"-{scale.swing:.1f}× less", 11, SOFT, anchor="ls")
    pen.write(draw, (_column(2) + PANEL, below), f"more +{scale.swing:.1f}×", 11, SOFT, anchor="rs")


def share_words(share: float) -> str:
    """ "41 %", "2.5 %", "<0.1 %": as ``percent_words``, but short enough to stand below a map."""
    return percent_words(share).replace("under ", "<").replace("over ", ">")


def colour_bar() -> Image.Image:
    """The colours of a map, from none to the end of the scale, as wide as two panels."""
    return _bars()[0]


@lru_cache(maxsize=1)
def _bars() -> tuple[Image.Image, Image.Image]:
    """Both colour bars, on the grey of a dimmed picture."""
    wide = 2 * PANEL + GUTTER
    ground = Image.new("RGB", (wide, BAR_HEIGHT), (62, 64, 70))
    heat = np.tile(np.linspace(0, 1, wide), (BAR_HEIGHT, 1))
    swing = np.tile(np.linspace(-1, 1, PANEL), (BAR_HEIGHT, 1))
    return heat_over(ground, heat, 1.0), difference_over(ground.crop((0, 0, PANEL, BAR_HEIGHT)), swing, 1.0)


def _caption(sheet: ProbeSheet, pen: Pen) -> Image.Image:
    part = Image.new("RGB", (WIDTH, 100), PAPER)
    draw = ImageDraw.Draw(part)
    draw.line((MARGIN, 2, WIDTH - MARGIN, 2), fill=FAINT)
    pen.write(draw, (MARGIN, 26), pen.fit(sheet.question, 16, WIDTH - 2 * MARGIN), 16, anchor="ls")
    end = _labelled(draw, (MARGIN, 49), "right", sheet.answer, GOOD, pen)
    if sheet.foil is not None:
        _labelled(draw, (end + 21, 49), "wrong", sheet.foil, BAD, pen)
    half = (WIDTH - 2 * MARGIN) // 2
    for column, (name, outcome) in enumerate((("base", sheet.before), ("now", sheet.after))):
        _answer_line(draw, (MARGIN + column * half, 82), name, outcome, half - 12, pen)
    return part


def _labelled(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    label: str,
    text: str,
    colour: tuple[int, int, int],
    pen: Pen,
) -> float:
    end = pen.write(draw, at, label, 13, SOFT, anchor="ls")
    return pen.write(draw, (end + 6, at[1]), pen.fit(text, 15, WIDTH * 0.4), 15, colour, anchor="ls")


def _answer_line(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    name: str,
    outcome: Outcome,
    width: int,
    pen: Pen,
) -> None:
    """A pill with the margin, green where the right answer leads, then what the model said."""
    x, y = at
    if outcome.margin_nats is None:
        pill, colour = f"{name}", SOFT
    else:
        pill, colour = f"{name} {outcome.margin_nats:+.2f} nats", GOOD if outcome.margin_nats > 0 else BAD
    wide = pen.width(pill, 14) + 16
    draw.rounded_rectangle((x, y - 17, x + wide, y + 7), radius=12, fill=colour)
    pen.write(draw, (x + 8, y), pill, 14, PAPER, anchor="ls")
    said = f"“{outcome.said}”" if outcome.said else "no answer generated"
    room = width - wide - 8
    pen.write(
        draw, (x + wide + 8, y), pen.fit(said, 15, room), 15, INK if outcome.said else SOFT, anchor="ls"
    )


def _strip_title(sheet: ProbeSheet, strip: Strip, width: int, pen: Pen) -> Image.Image:
    part = Image.new("RGB", (width, STRIP_HEAD), PAPER)
    draw = ImageDraw.Draw(part)
    room = width - 2 * MARGIN
    _title_line(draw, sheet, f"steps {strip.panels[0].step} to {strip.panels[-1].step}", width, pen)
    pen.write(draw, (MARGIN, 56), pen.fit(sheet.question, 16, room * 0.5), 16, anchor="ls")
    end = _labelled(draw, (MARGIN + room * 0.52, 56), "right", sheet.answer, GOOD, pen)
    if sheet.foil is not None and end + 72 < width:
        pen.write(draw, (end + 14, 56), "wrong", 13, SOFT, anchor="ls")
        start = end + 20 + pen.width("wrong", 13)
        pen.write(draw, (start, 56), pen.fit(sheet.foil, 15, width - MARGIN - start), 15, BAD, anchor="ls")
    return part


def _strip_row(
    sheet: ProbeSheet, strip: Strip, dimmed: Image.Image, wide: int, width: int, pen: Pen
) -> Image.Image:
    """One key layer: step above, margin and mass below each panel, the scale of all of them at the end."""
    scale = series_scale([panel.map for panel in strip.panels])
    part = Image.new("RGB", (width, dimmed.height + STRIP_ABOVE + 65), PAPER)
    draw = ImageDraw.Draw(part)
    pen.write(draw, (MARGIN, 14), strip.name, 14, SOFT, anchor="ls")
    for index, panel in enumerate(strip.panels):
        left = MARGIN + index * (wide + GUTTER)
        pixels = cells_to_pixels(panel.map, panel.map.density, sheet.picture.size, dimmed.size)
        drawn = heat_over(dimmed, pixels, scale.top)
        _outline_all(drawn, sheet, pen, named=index == 0)
        outline_said(drawn, panel.outcome.box, sheet.picture.size, line=2)
        pen.write(draw, (left, 35), "base" if panel.step == 0 else f"step {panel.step}", 14, anchor="ls")
        part.paste(drawn, (left, STRIP_ABOVE))
        _strip_numbers(draw, panel, left, STRIP_ABOVE + dimmed.height + 18, wide, pen)
    _strip_bar(part, draw, scale, part.height - 20, pen)
    return part


def _strip_numbers(
    draw: ImageDraw.ImageDraw, panel: StripPanel, left: int, baseline: int, wide: int, pen: Pen
) -> None:
    """Margin in the colour of right or wrong; mass and enrichment of the judged region."""
    margin = panel.outcome.margin_nats
    if margin is not None:
        pen.write(draw, (left, baseline), f"{margin:+.2f} nats", 14, GOOD if margin > 0 else BAD, anchor="ls")
    if panel.mass is not None:
        mass = f"{share_words(panel.mass)} · {panel.enrichment:.1f}×"
        pen.write(draw, (left, baseline + 17), pen.fit(mass, 13, wide), 13, SOFT, anchor="ls")


def _strip_bar(part: Image.Image, draw: ImageDraw.ImageDraw, scale: Scale, top: int, pen: Pen) -> None:
    caption = f"{scale.top:.1f}×  the even share; one scale for all steps"
    bar = colour_bar()
    room = part.width - 2 * MARGIN - 7 - pen.width(caption, 11)
    bar = bar.resize((round(min(bar.width, room)), bar.height))
    part.paste(bar, (MARGIN, top))
    pen.write(draw, (MARGIN + bar.width + 7, top + 8), caption, 11, SOFT, anchor="ls")


def _column(index: int) -> int:
    return MARGIN + index * (PANEL + GUTTER)


def darker(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same hue, dark enough to be read as text on paper."""
    return tuple(round(channel * 0.68) for channel in colour)  # type: ignore[return-value]
