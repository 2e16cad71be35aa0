"""The curve as a figure: right answers, attention, cause and guards over the number of corrective samples."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diagnostics.drawing.figure_page import font

COLOURS = ("#1f6fb2", "#c2571a", "#0e7a5c", "#8d4a9e", "#8a6a00", "#b23a5f")
"""Those of the report's lines."""
SOFT, RULE = "#646975", "#d9d6ce"
BASE_GAP = 2.2
"""The base stands as far left of the fewest samples as this factor would: a logarithm has no place for 0."""
POINTS = 9.0
BY_PICTURE = "pictures_right"
SAMPLES = {"en": "corrective samples", "zh": "纠正样本数"}
EACH_ONCE = {"en": ", by picture", "zh": "（按图片）"}


class _Panel(NamedTuple):
    """One of the small multiples.

    title             by language
    value, interval   keys of a point
    base              key of the base's value; None: the base has none
    kept              are the groups those that must be kept? None: all groups
    by_picture        key of the value with each picture counted once, which the interval is of where probes share
                      pictures; None: there is no other
    """

    title: Mapping[str, str]
    value: str
    interval: str
    base: str | None
    kept: bool | None
    as_percent: bool
    by_picture: str | None = None


PANELS = (
    _Panel(
        {"en": "right answers", "zh": "答对比例"}, "right", "right_ci95", "right", False, True, BY_PICTURE
    ),
    _Panel(
        {"en": "attention on the region, times", "zh": "对区域的注意力（倍）"},
        "enrichment",
        "enrichment_ci95",
        "enrichment",
        False,
        False,
    ),
    _Panel(
        {"en": "cause: hiding it costs, nats", "zh": "因果：遮住它的代价（nats）"},
        "cost_nats",
        "cost_nats_ci95",
        "cost_nats",
        False,
        False,
    ),
    _Panel(
        {"en": "right answers that must be kept", "zh": "须保持的回答的答对比例"},
        "right",
        "right_ci95",
        "right",
        True,
        True,
        BY_PICTURE,
    ),
)


def curve_chart(
    groups: Mapping[str, Mapping[str, Any]], kept: Sequence[str], language: Literal["en", "zh"] = "en"
) -> bytes:
    """``curve_figure`` as a PNG."""
    buffer = io.BytesIO()
    curve_figure(groups, kept, language).savefig(buffer, format="png")
    return buffer.getvalue()


def curve_figure(
    groups: Mapping[str, Mapping[str, Any]], kept: Sequence[str], language: Literal["en", "zh"] = "en"
) -> Figure:
    """A panel for each quantity; all share the axis of samples, which is logarithmic.

    The base stands at 0. Bars are 95 % intervals, filled points have a verdict that holds, hollow ones do not. Where
    probes share pictures, right answers are drawn with each picture counted once, which their interval is of.

    groups   "groups" of curve.json
    kept     names of the groups that must be kept
    language  of the words on it
    """
    numbers = sorted({point["samples"] for group in groups.values() for point in group["points"]})
    figure = Figure(figsize=(11.5, 3.5), layout="constrained", dpi=160)
    shown = [one for one in PANELS if _members(one, groups, kept)]
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    colour = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(groups)}
    for panel, place in zip(shown, axes, strict=True):
        members = _members(panel, groups, kept)
        for shift, name in enumerate(members):
            _draw(
                place, panel, groups[name], numbers, colour[name], 1 + 0.05 * (shift - (len(members) - 1) / 2)
            )
        by_picture = panel.by_picture is not None and draws_by_picture(
            {name: groups[name] for name in members}
        )
        _dress(place, panel, numbers, language, by_picture=by_picture)
    handles = [Line2D([], [], color=colour[name], marker="o", lw=1.6, label=name) for name in groups]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        prop=font("".join(groups), POINTS),
    )
    return figure


def draws_by_picture(groups: Mapping[str, Any]) -> bool:
    """Are right answers of any group drawn with each picture counted once?"""
    return any(
        _drawn(panel, group) != panel.value
        for panel in PANELS
        for group in groups.values()
        if _measured(panel, group)
    )


def _members(panel: _Panel, groups: Mapping[str, Any], kept: Sequence[str]) -> list[str]:
    return [
        name
        for name, group in groups.items()
        if (name in kept) == panel.kept and any(point[panel.value] is not None for point in group["points"])
    ]


def _measured(panel: _Panel, group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [point for point in group["points"] if point[panel.value] is not None]


def _counted_once(panel: _Panel, group: Mapping[str, Any]) -> list[bool]:
    """Of the base and each point: is its share known with each picture counted once, since probes share pictures?"""
    if panel.by_picture is None:
        return []
    return [one.get(panel.by_picture) is not None for one in (group["base"], *_measured(panel, group))]


def _drawn(panel: _Panel, group: Mapping[str, Any]) -> str:
    """The key of the value to draw."""
    known = _counted_once(panel, group)
    return panel.by_picture if panel.by_picture is not None and known and all(known) else panel.value


def _interval(
    panel: _Panel, group: Mapping[str, Any], point: Mapping[str, Any]
) -> tuple[float, float] | None:
    """The bar of a point, which contains it: that of pictures counts their right answers rounded down. None where it is
    of another share than the drawn one, as where runs of earlier versions do not have that of pictures."""
    if point[panel.interval] is None:
        return None
    low, high = point[panel.interval]
    if (drawn := _drawn(panel, group)) != panel.value:
        return low, max(high, point[drawn])
    return None if any(_counted_once(panel, group)) else (low, high)


def _draw(
    axes: Axes, panel: _Panel, group: Mapping[str, Any], numbers: Sequence[int], colour: str, shift: float
) -> None:
    points, drawn = _measured(panel, group), _drawn(panel, group)
    base = None if panel.base is None else group["base"][panel.base if drawn == panel.value else drawn]
    at_zero = numbers[0] / BASE_GAP
    means = {
        n: sum(values) / len(values)
        for n in numbers
        if (values := [one[drawn] for one in points if one["samples"] == n])
    }
    line = {n * shift: value for n, value in means.items()}
    axes.plot([*line], [*line.values()], color=colour, lw=1.6)
    if base is not None:
        first = next(iter(line))
        axes.plot([at_zero * shift, first], [base, line[first]], color=colour, lw=1.2, ls=":")
        axes.plot([at_zero * shift], [base], "s", color=colour, ms=5)
    for point in points:
        x, y = point["samples"] * shift, point[drawn]
        if (interval := _interval(panel, group, point)) is not None:
            axes.plot([x, x], interval, color=colour, lw=1.1, alpha=0.75)
        axes.plot([x], [y], "o", ms=5.5, mec=colour, mfc=colour if point["holds"] else "white", mew=1.4)


def _dress(axes: Axes, panel: _Panel, numbers: Sequence[int], language: str, *, by_picture: bool) -> None:
    title, below = panel.title[language] + (EACH_ONCE[language] if by_picture else ""), SAMPLES[language]
    axes.set_title(title, fontproperties=font(title, POINTS + 1), loc="left")
    axes.set_xscale("log")
    places = [numbers[0] / BASE_GAP, *numbers]
    axes.set_xticks(places, ["0", *(f"{number:,}" for number in numbers)], fontsize=POINTS - 1)
    axes.set_xticks([], minor=True)
    axes.set_xlim(places[0] / 1.35, places[-1] * 1.35)
    axes.set_xlabel(below, fontproperties=font(below, POINTS), color=SOFT)
    axes.tick_params(axis="y", labelsize=POINTS - 1)
    if panel.as_percent:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="y", color=RULE, lw=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
