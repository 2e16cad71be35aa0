"""The report's charts as SVG and HTML text: pure functions of numbers that need no script.

Colours and fonts come from the page (``report_template.html``), so they follow print and dark mode.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diagnostics.comparison.legs.leg import nats
from finetune.percent import percent_words

LINE_KINDS = 6
"""Line colours in the template; a seventh line reuses the first colour, dashed."""
LABEL_HEIGHT, NAME_LENGTH = 13.0, 16


class Line(NamedTuple):
    """One line of a chart; ``values`` has one number for each place on the x axis. ``faint`` marks a control, ``own`` a
    name that a user gave, which no language changes."""

    name: str
    values: Sequence[float]
    faint: bool = False
    own: bool = False


class _Frame(NamedTuple):
    """The plot area (left, right, top, bottom in SVG units), and the values at the ends of both axes."""

    left: float
    right: float
    top: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        return self.left + (value - self.x_low) / span * (self.right - self.left) if span else self.left

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)


CHART_WIDTH, CHART_HEIGHT = 280, 174
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = (
    38,
    176,
    20,
    150,
)  # names of lines stand to the right of the plot
X_LABELS_BASELINE = 168
LABEL_GAP, LABEL_DROP = 6, 4  # between a label and the plot; from a label's middle down to its baseline


def line_chart(
    title: str,
    lines: Sequence[Line],
    places: Sequence[float],
    *,
    unit: str,
    ends: tuple[float, float] | None = None,
    as_percent: bool = False,
) -> str:
    """Lines over ``places`` (training steps, shares of the picture), each named at its right end. ``title`` is HTML.

    ``ends`` fixes the vertical scale; without it the scale holds 0 and every value.
    """
    low, high = ends or _value_range(lines)
    frame = _Frame(PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM, places[0], places[-1], low, high)
    is_unsigned = low >= 0
    tick = percent_words if as_percent else partial(tick_words, plain=is_unsigned)
    described = "lines: " + ", ".join(
        f"{line.name}: {tick(line.values[0])} → {tick(line.values[-1])}" for line in lines
    )
    return (
        f'<div class="chart"><h3>{title}</h3><svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" '
        f'aria-label="{html.escape(described)}">{_zero_line(frame)}{_y_labels(frame, tick)}'
        f"{_x_labels(frame, unit)}{_drawn(lines, places, frame)}</svg></div>"
    )


def _value_range(lines: Sequence[Line]) -> tuple[float, float]:
    """The range of all values and 0; never empty."""
    values = [0.0, *(value for line in lines for value in line.values)]
    low, high = min(values), max(values)
    return low, high if high > low else low + 1.0


def _zero_line(frame: _Frame) -> str:
    y = f"{frame.y(0):.1f}"
    return f'<line class="zero" x1="{frame.left}" x2="{frame.right}" y1="{y}" y2="{y}"/>'


def _y_labels(frame: _Frame, tick: Callable[[float], str]) -> str:
    low, high = frame.y_low, frame.y_high
    labelled = [low, 0.0, high] if low < 0 < high else [low, high]
    return "".join(
        f'<text x="{frame.left - LABEL_GAP}" y="{frame.y(value) + LABEL_DROP:.1f}" text-anchor="end">'
        f"{tick(value)}</text>"
        for value in apart(labelled, high - low)
    )


def _x_labels(frame: _Frame, unit: str) -> str:
    """The first and the last place, and the unit between them."""
    centre = (frame.left + frame.right) / 2
    labels = (
        (f"{frame.x(frame.x_low):.1f}", "start", tick_words(frame.x_low, plain=True)),
        (f"{frame.x(frame.x_high):.1f}", "end", tick_words(frame.x_high, plain=True)),
        (f"{centre}", "middle", html.escape(unit)),
    )
    return "".join(
        f'<text x="{x}" y="{X_LABELS_BASELINE}" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in labels
    )


def _drawn(lines: Sequence[Line], places: Sequence[float], frame: _Frame) -> str:
    heights = spread([frame.y(line.values[-1]) for line in lines], LABEL_HEIGHT)
    lift = max(0.0, frame.top - min(heights))  # names pushed above the frame would overlap the title
    parts = []
    for index, (line, height) in enumerate(zip(lines, heights, strict=True)):
        points = [
            f"{frame.x(place):.1f},{frame.y(v):.1f}" for place, v in zip(places, line.values, strict=True)
        ]
        kind = f"line c{index % LINE_KINDS}{' again' if index >= LINE_KINDS else ''}{' faint' if line.faint else ''}"
        dots = "".join(
            '<circle cx="{}" cy="{}" r="2.2"/>'.format(*point.split(","))
            for point in points
            if not line.faint
        )
        parts.append(
            f'<g class="{kind}"><polyline points="{" ".join(points)}"/>{dots}'
            f'<text x="{frame.right + 8}" y="{height + lift + 4:.1f}"{_own(line)}>'
            f"{html.escape(_short(line.name))}</text></g>"
        )
    return "".join(parts)


def _own(line: Line) -> str:
    return ' translate="no"' if line.own else ""


def shared_ends(charts: Sequence[Sequence[Line]]) -> tuple[float, float] | None:
    """The ends of a vertical scale that holds 0 and every line of several charts, which it makes comparable."""
    lines = [line for chart in charts for line in chart]
    return _value_range(lines) if lines else None


def _short(name: str) -> str:
    """A name short enough to stand beside its line; the chart's description has it in full."""
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def spread(heights: Sequence[float], room: float) -> list[float]:
    """Heights moved apart until ``room`` lies between neighbours, their order and middle kept.

    [10, 10] with room 12 → [4, 16].
    """
    if not heights:
        return []
    order = np.argsort(heights, kind="stable")
    moved = np.array(heights, dtype=float)[order]
    for _ in range(
        200
    ):  # settles in a few rounds; each moves both of a close pair by half of what is missing
        gaps = np.diff(moved)
        missing = np.clip(room - gaps, 0, None)
        if missing.max(initial=0.0) < 0.05:
            break
        moved[:-1] -= missing / 2
        moved[1:] += missing / 2
    result = np.empty_like(moved)
    result[order] = moved
    return [float(value) for value in result]


MARGIN_WIDTH, MARGIN_HEIGHT, MARGIN_LEFT, MARGIN_RIGHT = 260, 206, 44, 216
JITTER = 14
"""Pixels over which the points of one side are spread, so that equal ones show."""


def margin_charts(groups: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Margin before → now of every probe, nats, as the page says above them: a chart for each group, all on one scale.

    Right answers are filled points, wrong ones hollow, so that they differ without colour.
    """
    if not groups:
        return '<p class="soft">No probe names a wrong answer, so margins are not measured.</p>'
    every = [value for margins in groups.values() for both in margins for value in both]
    ends = (min([0.0, *every]), max([0.0, *every]))
    return "\n".join(_margin_chart(name, margins, ends) for name, margins in groups.items())


def _margin_chart(name: str, margins: Sequence[tuple[float, float]], ends: tuple[float, float]) -> str:
    low, high = ends
    span = max(high - low, 1e-6)
    left, right = MARGIN_LEFT, MARGIN_RIGHT

    def y(margin: float) -> float:
        return 14 + (high - margin) / span * (MARGIN_HEIGHT - 60)

    lines = []
    for at, (before, after) in enumerate(margins):
        off = JITTER * (at / max(len(margins) - 1, 1) - 0.5)
        kind = "good" if after > 0 else "bad"
        lines.append(
            f'<line class="{kind}" x1="{left + off:.1f}" x2="{right + off:.1f}" y1="{y(before):.1f}" '
            f'y2="{y(after):.1f}" stroke-opacity=".3" stroke-width="1.2"/>'
            f"{_point(left + off, y(before), before > 0)}{_point(right + off, y(after), after > 0)}"
        )
    labels = "".join(
        f'<text x="{left - 14}" y="{y(value) + 4:.1f}" text-anchor="end">{tick_words(value)}</text>'
        for value in apart([low, 0.0, high], span)
    )
    right_before, right_after = (sum(pair[side] > 0 for pair in margins) for side in (0, 1))
    return (
        f'<div class="chart"><h3 translate="no">{html.escape(name)}</h3>'
        f'<svg viewBox="0 0 {MARGIN_WIDTH} {MARGIN_HEIGHT}" role="img" '
        f'aria-label="{right_before} of {len(margins)} right before, {right_after} now">'
        f'<line class="zero" x1="{left - 10}" x2="{right + 10}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>{labels}'
        f'{"".join(lines)}<text x="{left}" y="{MARGIN_HEIGHT - 24}" text-anchor="middle">before</text>'
        f'<text x="{right}" y="{MARGIN_HEIGHT - 24}" text-anchor="middle">now</text>'
        f'<text class="strong" x="{left}" y="{MARGIN_HEIGHT - 6}" text-anchor="middle">{right_before} right</text>'
        f'<text class="strong" x="{right}" y="{MARGIN_HEIGHT - 6}" text-anchor="middle">{right_after} right</text>'
        "</svg></div>"
    )


def _point(x: float, y: float, is_right: bool) -> str:
    kind = "good" if is_right else "bad hollow"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>'


def forest(groups: Mapping[str, Any]) -> str:
    """Change of enrichment with its interval, one row for each group and key layer, all on one scale, with its axis."""
    rows = [(name, one) for name, group in groups.items() for one in group["enrichment_by_layer"]]
    if not rows:
        return '<p class="soft">No probe names a region, so attention is not judged.</p>'
    low = min(0.0, *(one["ci95"][0] for _, one in rows))
    high = max(0.0, *(one["ci95"][1] for _, one in rows))
    margin = max(high - low, 1e-6) * 0.04
    ends = (low - margin, high + margin)
    drawn, previous = [], None
    for name, one in rows:
        drawn.append(_forest_row(name if name != previous else "", one, ends))
        previous = name
    return "".join(drawn) + _forest_axis(ends)


def _place(value: float, ends: tuple[float, float]) -> str:
    return f"{(value - ends[0]) / (ends[1] - ends[0]):.2%}"


def _forest_axis(ends: tuple[float, float]) -> str:
    """Ticks under the rows, and what they count."""
    ticks = "".join(
        f'<span style="left:{_place(value, ends)}">{tick_words(value)}</span>' for value in round_ticks(*ends)
    )
    return (
        f'<div class="row axis"><b></b><span></span><div class="ticks">{ticks}</div><span></span></div>'
        '<p class="axis-name">change of attention on the region, times the even share</p>'
    )


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two ends, 0 among them: −3 to 17 → 0, 5, 10, 15.

    most   how many at most
    """
    span = max(high - low, 1e-9)
    power = 10.0 ** np.floor(np.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) < most)
    return [float(at * step) for at in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _forest_row(name: str, one: Mapping[str, Any], ends: tuple[float, float]) -> str:
    low, high = one["ci95"]
    kind = "more" if low > 0 else "less" if high < 0 else "none"
    width = f"{(high - low) / (ends[1] - ends[0]):.2%}"
    return (
        f'<div class="row{" first" if name else ""}"><b translate="no">{html.escape(name)}</b>'
        f"<span>layer {one['layer']}</span>"
        f'<div class="track {kind}" role="img" aria-label="change {nats(one["difference"])}, interval '
        f'{nats(low)} to {nats(high)}"><i class="zero" style="left:{_place(0, ends)}"></i>'
        f'<i class="ci" style="left:{_place(low, ends)};width:{width}"></i>'
        f'<i class="dot" style="left:{_place(one["difference"], ends)}"></i></div>'
        f'<span class="numbers">{one["before"]:.2f}× → {one["after"]:.2f}×</span></div>'
    )


def share_bars(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Shares before and after by name, two bars each, sorted by the share after."""
    names = sorted(dict.fromkeys([*before, *after]), key=lambda name: -after.get(name, 0.0))
    rows = []
    for name in names:
        was, now = before.get(name, 0.0), after.get(name, 0.0)
        rows.append(
            f'<div><span translate="no">{html.escape(name)}</span>{pair_of_bars(was, now)}'
            f'<span class="numbers">{percent_words(was)} → <b>{percent_words(now)}</b></span></div>'
        )
    return f'<div class="shares">{"".join(rows)}</div>'


def pair_of_bars(before: float, after: float) -> str:
    """Two shares as thin bars, before above after."""
    bars = "".join(
        f'<div><span class="{kind}" style="width:{share:.1%}"></span></div>'
        for kind, share in (("was", before), ("is", after))
    )
    return f'<div class="bar pair">{bars}</div>'


def tick_words(value: float, *, plain: bool = False) -> str:
    """A number beside an axis, with no more digits than matter there."""
    digits = 0 if abs(value) >= 9.5 or value == round(value) else 1 if abs(value) >= 0.5 else 2
    shown = round(value, digits)
    return f"{shown + 0.0:.{0 if shown == 0 else digits}f}" if plain or not shown else f"{shown:+.{digits}f}"


def apart(values: Sequence[float], span: float) -> list[float]:
    """Axis labels without those that would overlap the label of zero."""
    return [value for value in dict.fromkeys(values) if value == 0 or abs(value) > span * 0.09]


def inline_picture(picture: Image.Image) -> str:
    """A picture as a data URL: ``data:image/webp;base64,…``."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=80, method=2)  # twice as fast as 4, a tenth larger
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
