"""The curve as one page: what follows for each group, the chart, and every run with its numbers."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from diagnostics.comparison.curve import headline
from diagnostics.comparison.legs.leg import percent, whole_percent
from diagnostics.drawing.curve_chart import draws_by_picture
from diagnostics.report.languages import SWITCH_PLACE, TAGS, Language, in_both_languages, translated
from diagnostics.report.page import TEMPLATE
from diagnostics.report.verdict_cards import pill

HEAD = (
    "samples",
    "right answers",
    "attention on the region, times",
    "hiding it costs, nats",
    "guards right",
    "began at (answers, attention, cause)",
    "verdict",
)
STYLE = """
.curve { margin: 22px 0 10px; padding: 16px 18px; } .numbers-of a { color: var(--c0); }
.curve img { width: 100%; height: auto; border-radius: 8px; background: #fff; }
.numbers-of { overflow-x: auto; } .numbers-of table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
.numbers-of th, .numbers-of td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); }
.numbers-of td { vertical-align: baseline; } .numbers-of th { color: var(--soft); font-weight: 500; }
.numbers-of i { font-style: normal; color: var(--soft); white-space: nowrap; }
.numbers-of p { margin: 0 0 10px; } .group { margin-bottom: 18px; }
"""


def curve_html(
    content: Mapping[str, Any], charts: Mapping[Language, bytes], *, opens: Language = "en"
) -> str:
    """The page, in both languages, that needs no network and no other file but the runs' own reports, which it links.

    content   of curve.json
    charts    PNG, in each language
    opens     the language that it shows first
    """
    title = headline(content["groups"])
    parts = [
        SWITCH_PLACE,
        f"<h1>{_e(title)}</h1>",
        f'<p class="lead">{_e(lead(content))}</p>',
        f'<section class="chart curve">{"".join(_chart(title, *one) for one in charts.items())}</section>',
        '<p class="note">Bars are 95 % intervals: of a share, and of the change from the base. The square is the base. '
        f"Filled points have a verdict that holds.{_by_picture(content['groups'])}</p>",
        "<h2>How many samples?</h2>",
        *(_group(name, group, content) for name, group in content["groups"].items()),
        _limits(content),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width='
        f'device-width, initial-scale=1"><meta name="color-scheme" content="light dark"><title>{_e(title)}</title>'
        f"<style>{_style()}{STYLE}</style></head><body><main>" + "\n".join(parts) + "</main></body></html>\n"
    )
    return in_both_languages(page, opens)


def _by_picture(groups: Mapping[str, Any]) -> str:
    if not draws_by_picture(groups):
        return ""
    return " Where probes share pictures, right answers are drawn with each picture counted once."


def _chart(title: str, language: Language, png: bytes) -> str:
    words = title if language == "en" else html.unescape(translated(_e(title)) or title)
    picture = base64.b64encode(png).decode("ascii")
    return f'<img lang="{TAGS[language]}" translate="no" alt="{_e(words)}" src="data:image/png;base64,{picture}">'


def lead(content: Mapping[str, Any]) -> str:
    """What was trained, in a sentence or two."""
    runs, seeds = content["runs"], content["seeds"]
    steps = sorted({run["steps"] for run in runs})
    same = (
        f"{steps[0]:,} steps each; fewer samples are seen more often"
        if len(steps) == 1
        else f"{steps[0]:,} to {steps[-1]:,} steps"
    )
    how = "as many steps" if content["same"] == "steps" else "as many epochs"
    drawn = (
        f"{len(seeds)} seeds"
        if len(seeds) > 1
        else "one seed: another draw of the samples may need more or fewer"
    )
    return (
        f"Nested parts of {', '.join(content['sources'])}, from {runs[0]['samples']:,} to {runs[-1]['samples']:,} of "
        f"{runs[-1]['of']:,} samples, trained for {how} ({same}). {drawn[0].upper()}{drawn[1:]}."
    )


def rows_of(group: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The base and each run of a group, as cells of ``HEAD``."""
    base = group["base"]
    before = (
        _right({**base, "right_ci95": None}),
        _number(base["enrichment"], None),
        _number(base["cost_nats"], None),
    )
    rows: list[tuple[str, ...]] = [("0", *before, "", "", "")]
    for point in group["points"]:
        seed = "" if point["seed"] is None else f", seed {point['seed']}"
        rows.append(
            (
                f"{point['samples']:,}{seed}",
                _right(point),
                _number(point["enrichment"], point["enrichment_ci95"]),
                _number(point["cost_nats"], point["cost_nats_ci95"]),
                _percent(point["guards"], point["guards_ci95"]),
                _began(point["onset"]),
                point["verdict"],
            )
        )
    return rows


def _group(name: str, group: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{_e(cell)}</th>" for cell in HEAD)
    base, *runs = rows_of(group)
    lines = ["<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in base) + "</tr>"]
    for row, run in zip(runs, content["runs"], strict=True):
        first = f'<a href="{_e(run["folder"])}/comparison/index.html">{_cell(row[0])}</a>'
        cells = [first, *map(_cell, row[1:-1]), pill(row[-1])]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return (
        f'<section class="verdict group numbers-of"><header><h3 translate="no">{_e(name)}</h3></header>'
        f"<p>{_e(group['words'])}</p><p>{_e(neighbour_words(group))}</p><table><tr>{head}</tr>{''.join(lines)}</table></section>"
    )


def neighbour_words(group: Mapping[str, Any]) -> str:
    """What the last step up in samples changed, over the same probes."""
    if not group["neighbours"]:
        return ""
    last = group["neighbours"][-1]
    said = []
    for what, form in (("answers", _share), ("attention", _share), ("cause", _nats)):
        if (one := last[what]) is not None:
            said.append(
                f"{what} {form(one['difference'])} ({form(one['ci95'][0])} to {form(one['ci95'][1])})"
            )
    if not said:
        return f"From {last['from']:,} to {last['to']:,} samples: not measured."
    moved = [f"{' and '.join(last[way])} {way}" for way in ("rose", "fell") if last[way]]
    verdict = f"{', '.join(moved)} beyond chance" if moved else "nothing beyond chance"
    return f"From {last['from']:,} to {last['to']:,} samples: {', '.join(said)}; {verdict}."


def _share(value: float) -> str:
    return percent(value, signed=True)


def _nats(value: float) -> str:
    return f"{value:+.2f} nats"


def _limits(content: Mapping[str, Any]) -> str:
    seeds = "the seeds" if len(content["seeds"]) > 1 else "one seed"
    return (
        '<section class="limits"><p class="note">Every number is of these probes and of '
        f"{seeds}. Differences between neighbouring numbers of samples are paired over the same probes and adjusted "
        "for all of a group's (Holm); the intervals in brackets are not adjusted, and say how much could have been "
        "missed. "
        "“More does not help” means: not beyond chance, on these probes. “Not known”: the probes cannot tell, with "
        "however many samples.</p></section>"
    )


def _percent(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    return percent(value) + _ends(interval)


def _ends(interval: Sequence[float] | None) -> str:
    """ " [75 %, over 99.9 %]"."""
    return "" if interval is None else f" [{', '.join(map(whole_percent, interval))}]"


def _right(point: Mapping[str, Any]) -> str:
    """ "90 % [75 %, 97 %]"; where probes share pictures, "70 %, 92.9 % by picture [77 %, 99 %]": what it is of."""
    by_picture, interval = point.get("pictures_right"), point["right_ci95"]
    if by_picture is None or point["right"] is None:
        return _percent(point["right"], interval)
    ends = None if interval is None else (interval[0], max(interval[1], by_picture))
    return f"{percent(point['right'])}, {percent(by_picture)} by picture{_ends(ends)}"


def _number(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")


def _began(onset: Mapping[str, Any] | None) -> str:
    """ "60, 30, –": the step by which each rose; the first that a checkpoint shows."""
    if onset is None:
        return "–"
    steps = [
        onset[what]["step"] if onset[what]["state"] == "rose" else None
        for what in ("answers", "attention", "cause")
    ]
    return ", ".join("–" if step is None else f"{step:,}" for step in steps)


def _cell(text: str) -> str:
    """The interval in brackets is set softer."""
    value, bracket, interval = text.partition(" [")
    return f"{_e(value)} <i>[{_e(interval)}</i>" if bracket else _e(text)


def _style() -> str:
    return TEMPLATE.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]


def _e(text: str) -> str:
    return html.escape(str(text))
