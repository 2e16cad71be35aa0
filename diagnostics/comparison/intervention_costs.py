"""The cost of interventions for a group's answers, before and after, and of their controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diagnostics.comparison.pairs import SIDES, Cost, ProbePair, cost, decisive_region, images_of
from diagnostics.measures.salience import curve_area
from diagnostics.measures.statistics import Change, Interval, bootstrap_mean, paired_change
from diagnostics.records.measurement_plan import CURVE_SHARES, OCCLUSION
from diagnostics.records.record import AttentionRecord

Json = dict[str, Any]


@dataclass(frozen=True)
class CostChange:
    """Cost of an intervention on the judged region and on random regions, nats; ``over_control`` is the paired
    difference region − control after."""

    region: Change
    control: tuple[float, float]
    over_control: Interval | None


def cost_changes(pairs: Sequence[ProbePair], kind: str, level: float) -> CostChange | None:
    measured: list[tuple[ProbePair, Cost, Cost]] = []
    for pair in pairs:
        before, after = (cost(getattr(pair, side), kind, pair.region) for side in SIDES)
        if before is not None and after is not None:
            measured.append((pair, before, after))
    if not measured:
        return None
    members, befores, afters = zip(*measured, strict=True)
    region = [np.array([one.region for one in side]) for side in (befores, afters)]
    control = [np.array([one.control for one in side]) for side in (befores, afters)]
    images = images_of(members)
    over = region[1] - control[1]
    return CostChange(
        paired_change(region[0], region[1], images, level=level),
        (float(control[0].mean()), float(control[1].mean())),
        bootstrap_mean(over, images, level=level) if np.isfinite(over).all() else None,
    )


def costs_json(costs: CostChange | None) -> Json | None:
    if costs is None:
        return None
    control = [_finite(value) for value in costs.control]
    over = costs.over_control
    return {
        **costs.region.json(),
        "control": dict(zip(SIDES, control, strict=True)),
        "over_control": None if over is None else {"mean": over.mean, "ci95": [over.low, over.high]},
    }


def decides(pairs: Sequence[ProbePair], side: str) -> Json | None:
    """Region → share of the probes in which it is decisive (``decisive_region``); the rest have no decisive region.

    Of probes of which several regions were hidden: on both sides, where both have such probes, so that their shares can
    be compared. None where there are none: {} says that no region was decisive.
    """
    were_hidden = {one: [len(_hidden(getattr(pair, one))) > 1 for pair in pairs] for one in SIDES}
    counted = were_hidden[side]
    if all(map(any, were_hidden.values())):
        counted = [all(both) for both in zip(*were_hidden.values(), strict=True)]
    if not any(counted):
        return None
    compared = [pair for pair, counts in zip(pairs, counted, strict=True) if counts]
    named = [decisive_region(pair.probe, getattr(pair, side), OCCLUSION) for pair in compared]
    found = [name for name in named if name is not None]
    return {
        name: found.count(name) / len(named)
        for name in sorted(set(found), key=lambda one: (-found.count(one), one))
    }


def _hidden(record: AttentionRecord) -> list[str]:
    return [one.region for one in record.interventions if one.kind == OCCLUSION and one.layers is None]


def windows(pairs: Sequence[ProbePair]) -> list[Json]:
    """Cost of knocking out the judged region in one window of layers at a time, nats."""
    windows: dict[tuple[int, int], list[tuple[Cost, Cost]]] = {}
    for pair in pairs:
        for one in pair.after.interventions:
            if one.layers is None or one.region != pair.region:
                continue
            both = [cost(getattr(pair, side), one.kind, pair.region, one.layers) for side in SIDES]
            if both[0] is not None and both[1] is not None:
                windows.setdefault(one.layers, []).append((both[0], both[1]))
    return [
        {
            "layers": list(layers),
            **{side: float(np.mean([both[at].region for both in costs])) for at, side in enumerate(SIDES)},
            "control": {
                side: _finite(float(np.mean([both[at].control for both in costs])))
                for at, side in enumerate(SIDES)
            },
        }
        for layers, costs in windows.items()
    ]


def curves(pairs: Sequence[ProbePair]) -> Json | None:
    """Mean margins over shares of the picture hidden or shown, nats, and the area under each curve."""
    found: Json = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair.after.curves):
        measured = [pair for pair in pairs if name in pair.before.curves and name in pair.after.curves]
        if not measured:
            continue
        means = {
            side: np.mean([getattr(pair, side).curves[name] for pair in measured], axis=0) for side in SIDES
        }
        found[name] = {side: [float(value) for value in mean] for side, mean in means.items()}
        found[name]["area"] = {side: curve_area(mean, CURVE_SHARES) for side, mean in means.items()}
    return found or None


def probe_costs(pair: ProbePair, kind: str) -> Json | None:
    before, after = (cost(getattr(pair, side), kind, pair.region) for side in SIDES)
    if before is None or after is None:
        return None
    return {
        "before": before.region,
        "after": after.region,
        "control": {"before": _finite(before.control), "after": _finite(after.control)},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
