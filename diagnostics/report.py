"""The before / after report: one HTML file with everything inside, readable on a phone, on paper and in the dark."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from diagnostics.composite import CellMap, LayerMaps, difference_colours, dimming, heat_colours, shared_scale
from diagnostics.pairs import ProbePair, pairs_by_group
from diagnostics.render import open_picture

Json = dict[str, Any]

TEMPLATE = Path(__file__).with_name("report_template.html")
PICTURE_WIDTH = 440
"""Pixels; a picture is 5 to 20 kB then, and 160 probes make a file of a few MB."""

# The words of a verdict → how its pill is coloured; what is neither good nor bad stays amber.
_GOOD, _BAD = ("corrected", "kept"), ("forgot", "broke a neighbour", "answers got worse")


def report_html(comparison: Mapping[str, Any], pairs: Sequence[ProbePair]) -> str:
    """The report as one HTML text: no network, no other file.

    Args:
        comparison: content of comparison.json.
        pairs: the same probes' records, for pictures and maps.

    Raises:
        ValueError: a probe's picture cannot be read.
    """
    groups = comparison["groups"]
    parts = {
        "TITLE": "Before and after: what the model looks at",
        "HEADLINE": html.escape(headline(groups)),
        "LEAD": _lead(comparison),
        "VERDICTS": "\n".join(_verdict_card(name, group) for name, group in groups.items()),
        "MARGIN_CHARTS": "\n".join(_margin_chart(name, members) for name, members in _scored(pairs).items()),
        "FOREST": _forest(groups),
        # "</script>" inside a question would end the data; JSON may write "<" as an escape.
        "DATA": json.dumps(_data(comparison, pairs), ensure_ascii=False, allow_nan=False).replace(
            "<", "\\u003c"
        ),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text, 1)
    return page


def headline(groups: Mapping[str, Any]) -> str:
    """The whole comparison in one sentence, from the verdicts alone.

    {"spheres": corrected, "retention": kept} → "spheres: corrected. retention: kept."
    """
    by_verdict: dict[str, list[str]] = {}
    for name, group in groups.items():
        by_verdict.setdefault(group["verdict"], []).append(name)
    sentences = [f"{' and '.join(names)}: {claim}." for claim, names in by_verdict.items()]
    return " ".join(sentences)


def _lead(comparison: Mapping[str, Any]) -> str:
    before, after = (html.escape(str(comparison[side]["model"])) for side in ("before", "after"))
    layers = ", ".join(map(str, comparison["key_layers"]))
    return f"<b>{before}</b> before, <b>{after}</b> after; {len(comparison['probes'])} probes, key layers {layers}."


def _verdict_card(name: str, group: Mapping[str, Any]) -> str:
    kind = "good" if group["verdict"] in _GOOD else "bad" if group["verdict"] in _BAD else ""
    figures = [_accuracy_figure(group["accuracy"])]
    if group["enrichment"] is not None:
        figures.append(_attention_figure(group["enrichment"]))
    if group["occlusion_nats"] is not None:
        figures.append(_cost_figure(group["occlusion_nats"]))
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in group["reasons"])
    return (
        f'<article class="verdict"><header><h3>{html.escape(name)}</h3><span class="pill {kind}">'
        f'{html.escape(group["verdict"])}</span><span class="soft">{group["probes"]} probes</span></header>'
        f'<div class="figures">{"".join(figures)}</div>'
        f"<details open><summary>why</summary><ul>{reasons}</ul></details></article>"
    )


def _accuracy_figure(change: Mapping[str, float] | None) -> str:
    if change is None:
        return _figure("right", "not measured", "no foil to set against the answer")
    bars = "".join(
        f'<div><span class="{kind}" style="position:absolute;inset:0 auto 0 0;width:{change[side]:.1%}"></span></div>'
        for kind, side in (("was", "before"), ("is", "after"))
    )
    return _figure(
        "right",
        _change(_percent(change["before"]), _percent(change["after"])),
        f'<div class="bar pair">{bars}</div>',
    )


def _attention_figure(enrichment: Mapping[str, Any]) -> str:
    low, high = enrichment["ci95"]
    below = f"change {low:+.2f} to {high:+.2f}, layer {enrichment['layer']}"
    region = enrichment["region"]
    label = "attention on its region" if region == "each probe's own" else f"attention on {region}"
    return _figure(label, _change(f"{enrichment['before']:.2f}×", f"{enrichment['after']:.2f}×"), below)


def _cost_figure(cost: Mapping[str, Any]) -> str:
    control = cost["control"]
    known = None not in control.values()
    below = (
        f"random boxes {control['before']:+.2f} → {control['after']:+.2f} nats" if known else "nats of margin"
    )
    return _figure("hiding it costs", _change(f"{cost['before']:+.2f}", f"{cost['after']:+.2f}"), below)


def _figure(label: str, number: str, below: str) -> str:
    return (
        f'<div class="figure"><small>{html.escape(label)}</small><div class="change">{number}</div>'
        f"<small>{below}</small></div>"
    )


def _change(before: str, after: str) -> str:
    return f"<i>{before} →</i> {after}"


def _percent(share: float) -> str:
    """Whole per cents without a decimal, others with one: 2.5 % of 40 probes is one probe."""
    return f"{share:.0%}" if abs(share * 100 - round(share * 100)) < 0.05 else f"{share:.1%}"


def _scored(pairs: Sequence[ProbePair]) -> dict[str, list[ProbePair]]:
    return pairs_by_group([pair for pair in pairs if pair.after.scores.margin_nats is not None])


def _margin_chart(name: str, pairs: Sequence[ProbePair]) -> str:
    """Margin before → after, a line a probe; every group on its own scale, with its ends written."""
    margins = [
        (pair.before.scores.margin_nats or 0.0, pair.after.scores.margin_nats or 0.0) for pair in pairs
    ]
    low, high = min(0.0, *(min(both) for both in margins)), max(0.0, *(max(both) for both in margins))
    span = max(high - low, 1e-6)
    width, height, left, right = 260, 190, 44, 216

    def y(margin: float) -> float:
        return 14 + (high - margin) / span * (height - 44)

    lines = []
    for before, after in margins:
        kind = "good" if after > 0 else "bad"
        lines.append(
            f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y(before):.1f}" y2="{y(after):.1f}" '
            f'stroke-opacity=".4" stroke-width="1.3"/>'
            f'<circle class="{"good" if before > 0 else "bad"}" cx="{left}" cy="{y(before):.1f}" r="2.4" opacity=".6"/>'
            f'<circle class="{kind}" cx="{right}" cy="{y(after):.1f}" r="2.4" opacity=".6"/>'
        )
    ends = "".join(
        f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
        for value in _apart([low, 0.0, high], span)
    )
    right_before, right_after = (sum(pair[side] > 0 for pair in margins) for side in (0, 1))
    return (
        f'<div class="chart"><h3>{html.escape(name)}</h3><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(name)}: {right_before} of {len(margins)} right before, {right_after} after">'
        f'<line class="zero" x1="{left - 4}" x2="{right + 4}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>{ends}{"".join(lines)}'
        f'<text class="strong" x="{left}" y="{height - 6}" text-anchor="middle">{right_before} right</text>'
        f'<text class="strong" x="{right}" y="{height - 6}" text-anchor="middle">{right_after} right</text></svg></div>'
    )


def _tick(value: float) -> str:
    return f"{value:+.0f}" if abs(value) >= 9.5 else f"{value:+.1f}" if value else "0"


def _apart(values: Sequence[float], span: float) -> list[float]:
    """Axis labels without those that would be written over zero's."""
    return [value for value in values if value == 0 or abs(value) > span * 0.09]


def _forest(groups: Mapping[str, Any]) -> str:
    """Change of enrichment with its interval, a row for each group and key layer, all on one scale."""
    rows = [(name, one) for name, group in groups.items() for one in group["enrichment_by_layer"]]
    if not rows:
        return '<p class="soft">No probe names a region, so nothing is said of attention.</p>'
    low = min(0.0, *(one["ci95"][0] for _, one in rows))
    high = max(0.0, *(one["ci95"][1] for _, one in rows))
    margin = max(high - low, 1e-6) * 0.04
    ends = (low - margin, high + margin)
    drawn, previous = [], None
    for name, one in rows:
        drawn.append(_forest_row(name if name != previous else "", one, ends))
        previous = name
    return "".join(drawn)


def _forest_row(name: str, one: Mapping[str, Any], ends: tuple[float, float]) -> str:
    def at(value: float) -> str:
        return f"{(value - ends[0]) / (ends[1] - ends[0]):.2%}"

    low, high = one["ci95"]
    kind = "more" if low > 0 else "less" if high < 0 else "none"
    width = f"{(high - low) / (ends[1] - ends[0]):.2%}"
    return (
        f'<div class="row{" first" if name else ""}"><b>{html.escape(name)}</b><span>layer {one["layer"]}</span>'
        f'<div class="track {kind}" role="img" aria-label="change {one["difference"]:+.2f}, interval {low:+.2f} to '
        f'{high:+.2f}"><i class="zero" style="left:{at(0)}"></i><i class="ci" style="left:{at(low)};width:{width}"></i>'
        f'<i class="dot" style="left:{at(one["difference"])}"></i></div>'
        f'<span class="numbers">{one["before"]:.2f}× → {one["after"]:.2f}×</span></div>'
    )


def _data(comparison: Mapping[str, Any], pairs: Sequence[ProbePair]) -> Json:
    """What the page's script draws: pictures, maps as bytes, and the words of each probe."""
    judged = [group["enrichment"]["layer"] for group in comparison["groups"].values() if group["enrichment"]]
    layers = comparison["key_layers"]
    return {
        "names": ["base" if comparison["before"]["step"] == 0 else "before", "now"],
        "groups": list(comparison["groups"]),
        "layers": layers,
        "start_layer": judged[0] if judged else layers[-1],
        "heat": _base64(heat_colours().tobytes()),
        "swing": _base64(difference_colours().tobytes()),
        "probes": [_probe_data(pair, entry) for pair, entry in zip(pairs, comparison["probes"], strict=True)],
    }


def _probe_data(pair: ProbePair, entry: Mapping[str, Any]) -> Json:
    picture = open_picture(pair.probe.images[0])
    width, height = picture.size
    image = pair.after.image_tokens[0]
    by_size = np.array([width, height, width, height], dtype=float)
    corners = np.concatenate(
        [image.cell_boxes_pixels[:, :2].min(axis=0), image.cell_boxes_pixels[:, 2:].max(axis=0)]
    )
    regions = [
        (name, [_rounded(np.array(box) / by_size) for box in pair.probe.regions[name]])
        for name in pair.region_order()
    ]
    small = picture.resize(
        (PICTURE_WIDTH, max(1, round(PICTURE_WIDTH * height / width))), Image.Resampling.LANCZOS
    )
    costs = entry["occlusion_nats"]
    return {
        **{name: entry[name] for name in ("id", "group", "question", "answer", "foil", "region")},
        "said": [entry["said"]["before"], entry["said"]["after"]],
        "margin": [entry["margin_nats"]["before"], entry["margin_nats"]["after"]],
        "cost": None if costs is None else [costs["before"], costs["after"]],
        "picture": _inline_picture(small),
        "width": width,
        "height": height,
        "dim": dimming(small),
        "boxes": regions,
        "grid": list(image.grid),
        "extent": _rounded(corners / by_size),
        "layers": [_layer_data(maps) for maps in pair.maps()],
    }


def _layer_data(maps: LayerMaps) -> Json:
    """Two maps as one byte a cell, and the scale that both share."""
    scale = shared_scale(maps.before, maps.after)
    reading = maps.readings[0] if maps.readings else None
    return {
        "layer": maps.layer,
        "before": _levels(maps.before, scale.peak),
        "after": _levels(maps.after, scale.peak),
        "peak": round(scale.peak, 4),
        "top": round(scale.top, 4),
        "swing": round(scale.swing, 4),
        "reading": None
        if reading is None
        else {
            "mass": [reading.mass_before, reading.mass_after],
            "enrichment": [reading.enrichment_before, reading.enrichment_after],
        },
    }


def _levels(cells: CellMap, peak: float) -> str:
    return _base64((cells.density * (255 / max(peak, 1e-9))).round().astype(np.uint8).tobytes())


def _inline_picture(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=80, method=4)
    return "data:image/webp;base64," + _base64(buffer.getvalue())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _rounded(values: Float[np.ndarray, " n"]) -> list[float]:
    return [round(float(value), 5) for value in values]
