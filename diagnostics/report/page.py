"""The before / after report: one self-contained HTML file, readable on a phone, on paper and in dark mode."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from diagnostics.comparison.box_answers import outcome_with_box
from diagnostics.comparison.legs.leg import count
from diagnostics.comparison.maps import CellMap, Outcome, layer_words
from diagnostics.comparison.pairs import ProbePair, layer_cells, pairs_by_group
from diagnostics.comparison.trajectory import Evolution, evenly_chosen
from diagnostics.drawing.archive_pictures import picture_of
from diagnostics.drawing.cards import says_right
from diagnostics.drawing.colours import difference_colours, dimming, heat_colours, series_scale
from diagnostics.drawing.probe_picture import fitted
from diagnostics.drawing.svg_charts import (
    Line,
    forest,
    inline_picture,
    line_chart,
    margin_charts,
    shared_ends,
)
from diagnostics.measures.attention import enrichment, region_mass
from diagnostics.measures.geometry import cells_from_row
from diagnostics.measures.sinks import without_sinks
from diagnostics.records.probes import as_asked
from diagnostics.records.record import AttentionRecord
from diagnostics.report.case_studies import TrainingSample, case_html, choose_cases
from diagnostics.report.headline import headline, headline_html
from diagnostics.report.languages import Language, as_written, filled, for_script, in_both_languages
from diagnostics.report.style import TEMPLATE
from diagnostics.report.verdict_cards import TOLD_TO, verdict_card, warnings
from finetune.families.parts.coverage import region_coverage

Json = dict[str, Any]

PICTURE_BOX = (440, 660)
"""Maximum width and height of a picture, pixels: 5 to 20 kB each, so 160 probes make a file of a few MB."""
SLIDER_STEPS_MAX = 12
"""Checkpoints whose maps are in the file; of more, this many evenly spaced, including the first and the last."""
LEVELS = 65535
"""Levels of a cell, up to the highest cell of its maps. Where a sink holds half of the attention to 4096 cells, two lie
a thirtieth of the even share apart; of 255 levels they would lie eight times the even share apart."""
NOT_LAST = "“Now” is not the model of the last checkpoint, and no point of these lines."
TIME_STEPS_MIN = 3  # two checkpoints are before and after, which the page shows anyway


def report_html(
    comparison: Mapping[str, Any],
    pairs: Sequence[ProbePair],
    *,
    evolution: Evolution | None = None,
    samples: Sequence[TrainingSample] = (),
    language: Language = "en",
) -> str:
    """The report as one HTML text that needs no network and no other file, in English and Chinese.

    Args:
        comparison: content of comparison.json.
        pairs: the same probes' records, for pictures and maps.
        evolution: records of all checkpoints; with three or more, each probe gets a slider over steps.
        samples: training samples, all or some; the case studies show those that have their answer.
        language: shown first; the page has a switch.

    Raises:
        ValueError: a picture cannot be read, or a probe is not in the evolution.
    """
    groups = comparison["groups"]
    with_time = evolution if evolution is not None and len(evolution.steps) >= TIME_STEPS_MIN else None
    cases = choose_cases(comparison, pairs, samples, language)
    parts = {
        "TITLE": "Before and after: what the model looks at",
        "HEADLINE": headline_html(headline(comparison)),
        "LEAD": _lead(comparison),
        "WARNINGS": "".join(f'<p class="warning" role="alert">{one}</p>' for one in warnings(comparison)),
        "CASES": "\n".join(case_html(case, groups[case.group]) for case in cases),
        "VERDICTS": "\n".join(verdict_card(name, group) for name, group in groups.items()),
        "MARGIN_CHARTS": margin_charts({name: _margins(members) for name, members in _scored(pairs).items()}),
        "FOREST": _forest(groups),
        "TIME": _time(comparison),
        # "</script>" inside a question would end the data; JSON may write "<" as an escape.
        "DATA": json.dumps(_data(comparison, pairs, with_time), ensure_ascii=False, allow_nan=False).replace(
            "<", "\\u003c"
        ),
    }
    return in_both_languages(filled(TEMPLATE.read_text(encoding="utf-8"), parts), language)


def _lead(comparison: Mapping[str, Any]) -> str:
    before, after = (_model_words(str(comparison[side]["model"])) for side in ("before", "after"))
    return f"{before} before, {after} now, asked the same {count(len(comparison['probes']), 'question')}."


def _model_words(model: str) -> str:
    """A path by its last two parts, the whole of it as a tooltip: /work/towers/base → towers/base; likewise both paths
    of a base and the adapter that was on it before."""
    joint = " with the adapter "
    short = joint.join("/".join(part.rstrip("/").split("/")[-2:]) for part in model.split(joint))
    return f'<b translate="no" title="{html.escape(model)}">{html.escape(short)}</b>'


def _scored(pairs: Sequence[ProbePair]) -> dict[str, list[ProbePair]]:
    return pairs_by_group([pair for pair in pairs if pair.after.scores.margin_nats is not None])


def _margins(pairs: Sequence[ProbePair]) -> list[tuple[float, float]]:
    return [(pair.before.scores.margin_nats or 0.0, pair.after.scores.margin_nats or 0.0) for pair in pairs]


def _trained_on(group: Mapping[str, Any]) -> set[int]:
    """Key layers in which attention was trained on; none in files of earlier versions, which do not say."""
    return {one["layer"] for one in group["enrichment_by_layer"] if one.get("trained_on")}


def _layer_words(layer: int | str, trained: Collection[int]) -> str:
    return layer_words(int(layer), int(layer) in trained)


def _forest(groups: Mapping[str, Any]) -> str:
    """``forest``, with the layers marked in which attention was trained on, and a line that says what this means."""
    marked = {
        name: {
            **group,
            "enrichment_by_layer": [
                {**one, "layer": _layer_words(one["layer"], _trained_on(group)).removeprefix("layer ")}
                for one in group["enrichment_by_layer"]
            ],
        }
        for name, group in groups.items()
    }
    told = f'<p class="note">{TOLD_TO}</p>' if any(map(_trained_on, groups.values())) else ""
    return forest(marked) + told


def _time(comparison: Mapping[str, Any]) -> str:
    """Charts over checkpoints, of what was measured; nothing with fewer than three."""
    series, onset, groups = comparison.get("series"), comparison.get("onset"), comparison["groups"]
    if series is None or len(series["steps"]) < TIME_STEPS_MIN:
        return ""
    steps = series["steps"]
    right = [Line(name, values, own=True) for name, values in series["accuracy"].items()]
    drift = [
        Line(f"layer {layer}", values)
        for layer, values in series["drift_jsd_nats"].items()
        if None not in values
    ]
    attention = {
        name: [
            Line(_layer_words(layer, _trained_on(groups[name])), values) for layer, values in by_layer.items()
        ]
        for name, by_layer in series["enrichment"].items()
    }
    ends = shared_ends(list(attention.values()))
    over_steps = partial(line_chart, places=steps, unit=_unit(onset))
    charts = [
        *([over_steps("right answers", right, ends=(0.0, 1.0), as_percent=True)] if right else []),
        *([over_steps("drift of the maps, nats", drift)] if drift else []),
        *(
            over_steps(f"attention on its region, times the even share: {as_written(name)}", lines, ends=ends)
            for name, lines in attention.items()
        ),
    ]
    if not charts:
        return ""
    apart = "" if _now_is_last(comparison) else f'<p class="note">{NOT_LAST}</p>'
    return (
        '<h2>How it developed</h2><p class="note">The same questions at every checkpoint; charts of attention share '
        "one scale. Drift is the Jensen–Shannon divergence of a map from that of the first checkpoint, mean over all "
        f"probes: 0 means the same map, 0.69 (ln 2) no overlap.</p>{apart}"
        '<section class="charts over">' + "".join(charts) + "</section>" + _onset(onset)
    )


def _now_is_last(comparison: Mapping[str, Any]) -> bool:
    """Is the model after that of the last checkpoint? Not the best one, which a run loaded at its end."""
    names = (comparison.get("series") or {}).get("names")
    return not names or names[-1] == comparison["after"]["model"]


def _unit(onset: Mapping[str, Any] | None) -> str:
    """What the numbers of checkpoints count: "step", or "checkpoint" where they are places."""
    return "step" if onset is None else str(onset["unit"])


def _onset(onset: Mapping[str, Any] | None) -> str:
    """What began when, a line for each group."""
    if onset is None:
        return ""
    rows = "".join(
        f"<li><span>{as_written(name)}:</span> <span>{html.escape(group['words'], quote=False)}</span></li>"
        for name, group in onset["groups"].items()
    )
    tested = (
        f" The p of all {onset['tests']} looks are adjusted together (Holm), so that a run in which nothing changes "
        "names no onset in 95 of 100 cases. What varies more from probe to probe is noticed later."
        if onset["tests"]
        else ""
    )
    return (
        '<h3>What came first</h3><p class="note">The first checkpoint at which answers, attention on the region, and '
        f'what hiding it costs differ from the base beyond chance.{tested}</p><ul class="onset">{rows}</ul>'
    )


@lru_cache(maxsize=1)
def script_words() -> tuple[str, ...]:
    """The texts that the page's script says: what it hands to ``say`` and ``label``."""
    script = TEMPLATE.read_text(encoding="utf-8").rpartition("<script>")[2]
    return tuple(dict.fromkeys(re.findall(r'\bT\("([^"]+)"', script)))


def _data(comparison: Mapping[str, Any], pairs: Sequence[ProbePair], evolution: Evolution | None) -> Json:
    """What the page's script draws: pictures, maps, and the texts of each probe."""
    judged = [group["enrichment"]["layer"] for group in comparison["groups"].values() if group["enrichment"]]
    layers = comparison["key_layers"]
    trained = set[int]().union(*map(_trained_on, comparison["groups"].values()))
    untrained = [layer for layer in layers if layer not in trained]
    trajectories = (comparison.get("series") or {}).get("trajectories", {}) if evolution is not None else {}
    chosen = [] if evolution is None else evenly_chosen(len(evolution.steps), SLIDER_STEPS_MAX)
    return {
        "words": for_script(script_words()),
        "groups": list(comparison["groups"]),
        "layers": layers,
        "start_layer": judged[0] if judged else (untrained or layers)[-1],
        "heat": _base64(heat_colours().tobytes()),
        "swing": _base64(difference_colours().tobytes()),
        "box": PICTURE_BOX,
        "steps": [] if evolution is None else [evolution.steps[index] for index in chosen],
        "unit": _unit(comparison.get("onset")),
        "now_is_last": _now_is_last(comparison),
        "all_steps": [] if evolution is None else list(evolution.steps),
        "sinks": any(record.sinks.any() for pair in pairs for record in (pair.before, pair.after)),
        "probes": [
            {
                **_probe_data(pair, entry),
                **_time_data(pair, evolution, chosen, trajectories),
                "layers": _layers_data(pair, _over_steps(pair, evolution, chosen)),
            }
            for pair, entry in zip(pairs, comparison["probes"], strict=True)
        ],
    }


def _probe_data(pair: ProbePair, entry: Mapping[str, Any]) -> Json:
    picture = picture_of(pair)
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
    small = picture.resize(fitted(picture.size, *PICTURE_BOX), Image.Resampling.LANCZOS)
    costs = entry["occlusion_nats"]
    outcomes = [outcome_with_box(pair.probe, pair.region, record) for record in (pair.before, pair.after)]
    return {
        **{name: entry[name] for name in ("id", "group", "answer", "foil", "region")},
        "question": as_asked(entry["question"]),
        "said": [entry["said"]["before"], entry["said"]["after"]],
        "margin": [entry["margin_nats"]["before"], entry["margin_nats"]["after"]],
        "said_right": [says_right(one, pair.probe.spellings, pair.probe.foil) for one in outcomes],
        "said_boxes": [_said_box(one, by_size) for one in outcomes],
        "cost": None if costs is None else [costs["before"], costs["after"]],
        "decides": [entry["decides"][side] for side in ("before", "after")] if entry.get("decides") else None,
        "picture": inline_picture(small),
        "width": width,
        "height": height,
        "dim": dimming(small),
        "boxes": regions,
        "grid": list(image.grid),
        "extent": _rounded(corners / by_size),
    }


def _said_box(outcome: Outcome, by_size: np.ndarray) -> Json | None:
    """The box in the answer, in fractions of the picture; None where the right answer is no box, or none was said."""
    box = outcome.box
    return (
        None if box is None else {"corners": _rounded(np.array(box.corners) / by_size), "right": box.is_right}
    )


def _time_data(
    pair: ProbePair, evolution: Evolution | None, chosen: Sequence[int], trajectories: Mapping[str, Any]
) -> Json:
    """Margins at the slider's steps, and the path of the probe's maps over all of them."""
    if evolution is None:
        return {}
    records = evolution.of(pair.probe.id)
    path = trajectories.get(pair.probe.id)
    return {
        "margins": [records[index].scores.margin_nats for index in chosen],
        "path": None if path is None else {**path, "points": [_rounded(point) for point in path["points"]]},
    }


def _over_steps(pair: ProbePair, evolution: Evolution | None, chosen: Sequence[int]) -> list[AttentionRecord]:
    if evolution is None:
        return []
    records = evolution.of(pair.probe.id)
    return [records[index] for index in chosen]


def _layers_data(pair: ProbePair, over_steps: Sequence[AttentionRecord]) -> list[Json]:
    """A probe's maps in every key layer; where it has sinks, also with the sinks left out."""
    records = [pair.before, pair.after, *over_steps]
    maps = np.stack([layer_cells(record) for record in records])
    has_sinks = any(record.sinks.any() for record in records)
    bare = np.stack([cells_without_sinks(record) for record in records]) if has_sinks else None
    return [
        {
            "layer": layer,
            **_layer_data(pair, maps[:, row]),
            **({} if bare is None else {"bare": _layer_data(pair, bare[:, row])}),
        }
        for row, layer in enumerate(pair.after.layers)
    ]


def cells_without_sinks(record: AttentionRecord) -> Float[np.ndarray, "layers cells"]:
    """As ``layer_cells``, with sink keys set to 0: where the answer query looked apart from its sinks."""
    if not record.sinks.size:
        return layer_cells(record)
    rows = without_sinks(record.rows[:, :, 0].mean(axis=1), record.sinks)
    return cells_from_row(rows, record.image_tokens[0], record.connector[0] if record.connector else None)


def _layer_data(pair: ProbePair, cells: Float[np.ndarray, "maps cells"]) -> Json:
    """Maps on one shared scale: before, after, then one for each step of the slider."""
    image = pair.after.image_tokens[0]
    maps = [CellMap(one * one.size, image.grid, image.cell_boxes_pixels) for one in cells]
    scale = series_scale(maps)
    levels = [_levels(one, scale.peak) for one in maps]
    return {
        "before": levels[0],
        "after": levels[1],
        "over": levels[2:],
        "peak": round(scale.peak, 4),
        "top": round(scale.top, 4),
        "swing": round(scale.swing, 4),
        "reading": _reading(pair, cells),
    }


def _reading(pair: ProbePair, cells: Float[np.ndarray, "maps cells"]) -> Json | None:
    """Mass and enrichment of the judged region on each map; None if there is no region."""
    if pair.region is None:
        return None
    coverage = region_coverage(pair.probe.regions[pair.region], pair.after.image_tokens[0])
    return {
        "mass": _rounded(region_mass(cells, coverage), 6),
        "enrichment": _rounded(enrichment(cells, coverage)),
    }


def _levels(cells: CellMap, peak: float) -> str:
    """Two bytes for each cell, the lower one first: its density, where ``LEVELS`` is the peak."""
    return _base64((cells.density * (LEVELS / max(peak, 1e-9))).round().astype("<u2").tobytes())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _rounded(values: Float[np.ndarray, " n"], digits: int = 5) -> list[float]:
    return [round(float(value), digits) for value in values]
