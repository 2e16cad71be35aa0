"""Judgements as a printed table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diagnostics.fusion.judging import FusionExample, Judgement, Line, p_words, score, score_singles
from diagnostics.fusion.recipes import RECIPES, fused
from diagnostics.measures.statistics import Interval

VERSION = 1
Json = dict[str, Any]


def table(judgement: Judgement) -> str:
    """One scope: every map's enrichment and pointing share on the judged pictures, each recipe against the best single
    map of either measure, and what to use."""
    titles = (
        *("map", "enrichment", f"minus {judgement.single} [95 %]", "chance"),
        *("pointing", f"minus {judgement.pointer} [95 %]", "chance", "verdict"),
    )
    rows = [titles, *(_row(line, judgement) for line in (*judgement.singles, *judgement.recipes))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    head = (
        f"{judgement.scope}: {judgement.probes} probes, {judgement.judged_on} pictures judged, {judgement.chosen_on} "
        "others chose"
    )
    return "\n".join(
        line.rstrip() for line in (head, *lines, f"use {judgement.recommended}. {judgement.why}")
    )


def _row(line: Line, judgement: Judgement) -> tuple[str, ...]:
    enrichment, pointing = f"{line.enrichment:.2f}×", f"{line.pointing:.0%}"
    if line.against is None:
        best = {judgement.single: "best by enrichment", judgement.pointer: "best by pointing"}
        word = "best by both" if len(best) == 1 else best.get(line.name, "")
        return (line.name, enrichment, "", "", pointing, "", "", word if line.name in best else "")
    gain, hits = line.against.enrichment, line.against.pointing
    return (
        line.name,
        enrichment,
        f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]",
        p_words(line.against.p),
        pointing,
        f"{hits.mean * 100:+.0f} [{hits.low * 100:+.0f}, {hits.high * 100:+.0f}] points",
        p_words(line.against.p_pointing),
        line.verdict,
    )


def json_of(
    judgements: Mapping[str, Judgement],
    cases: Sequence[FusionExample],
    chooses: Sequence[bool],
    about: Mapping[str, Any],
) -> Json:
    """fusion.json: what was read and how (``about``), the recipes, each scope, each probe."""
    fitting = [line.name for line in next(iter(judgements.values())).recipes]
    return {
        "version": VERSION,
        **about,
        "recipes": {
            name: {"formula": RECIPES[name].formula, "source": RECIPES[name].source} for name in fitting
        },
        "left_out": {name: f"needs {one.needs}" for name, one in RECIPES.items() if name not in fitting},
        "scopes": {name: _scope(one) for name, one in judgements.items()},
        "probes": _probes(judgements, cases, chooses),
    }


def _scope(judgement: Judgement) -> Json:
    return {
        "pictures": {"chosen_on": judgement.chosen_on, "judged_on": judgement.judged_on},
        "probes_judged": judgement.probes,
        "single": judgement.single,
        "pointer": judgement.pointer,
        "layer": judgement.layer,
        "recipe": judgement.recipe,
        "weights": {str(layer): weight for layer, weight in judgement.lessons.weights.items()},
        "maps": {line.name: _line(line) for line in (*judgement.singles, *judgement.recipes)},
        "recommended": judgement.recommended,
        "why": judgement.why,
    }


def _line(line: Line) -> Json:
    numbers: Json = {"enrichment": line.enrichment, "pointing": line.pointing}
    if line.against is None:
        return numbers
    return {
        **numbers,
        "enrichment_gain": _interval(line.against.enrichment),
        "pointing_gain": _interval(line.against.pointing),
        "p_adjusted": line.against.p,
        "p_pointing_adjusted": line.against.p_pointing,
        "effect_size": line.against.effect,
        "verdict": line.verdict,
    }


def _interval(interval: Interval) -> Json:
    return {"difference": interval.mean, "ci95": [interval.low, interval.high]}


def _probes(
    judgements: Mapping[str, Judgement], cases: Sequence[FusionExample], chooses: Sequence[bool]
) -> list[Json]:
    """Each probe's numbers, recipes with the lessons of all probes: what the first scope's line is the mean of."""
    first = next(iter(judgements.values()))
    scores = score_singles(cases)
    for line in first.recipes:
        scores[line.name] = score([fused(line.name, case.views, first.lessons) for case in cases], cases)
    return [
        {
            "id": case.probe.id,
            "group": case.probe.group,
            "region": case.probe.main_region,
            "chose": bool(chose),
            "grids": [list(view.image.grid) for view in case.views],
            "enrichment": {name: float(one.enrichment[at]) for name, one in scores.items()},
            "pointing": {name: bool(one.pointed[at]) for name, one in scores.items()},
        }
        for at, (case, chose) in enumerate(zip(cases, chooses, strict=True))
    ]
