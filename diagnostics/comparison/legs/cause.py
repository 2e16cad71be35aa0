"""The leg "cause": the answers now depend on the region, by the cost of hiding it beside controls and other regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diagnostics.comparison.intervention_costs import CostChange
from diagnostics.comparison.legs.leg import (
    Leg,
    listed,
    nats,
    nats_interval,
    not_measured,
    percent,
    percent_interval,
    too_few,
)
from diagnostics.comparison.pairs import SIDES, ProbePair, cost, images_of, related, shift
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.statistics import ratio_of_means
from diagnostics.records.measurement_plan import OCCLUSION
from diagnostics.records.record import AttentionRecord

MARGIN_IN_WORDS = " (how much likelier the right answer is than the wrong one; each nat is a factor of 2.7)"


class Rival(NamedTuple):
    """Another region, and how hiding it shifts the margin after, beyond its controls: in nats, and as a share."""

    name: str
    nats: float
    share: float


def cause_leg(
    pairs: Sequence[ProbePair], costs: CostChange | None, thresholds: Thresholds, level: float
) -> Leg:
    """The rise of the cost of hiding the region, as a share of the rise of the margin.

    It holds if that share is large enough and significant, the cost after is a large part of the margin after and above
    that of random regions, and no other region is decisive too.
    """
    measured = [
        pair
        for pair in pairs
        if all(cost(getattr(pair, side), OCCLUSION, pair.region) is not None for side in SIDES)
    ]
    images = images_of(measured)
    if not measured or costs is None or costs.over_control is None:
        return not_measured(
            thresholds.cause, "The cost of hiding the region was not measured against random regions."
        )
    if len(set(images)) < thresholds.probes:
        what = "The cost of hiding the region was"
        return too_few(thresholds.cause, what, len(set(images)), len(measured), thresholds.probes)
    hidden = np.array(
        [[_cost(getattr(pair, side), pair.region) for pair in measured] for side in SIDES], float
    )
    margin = np.array(
        [[getattr(pair, side).scores.margin_nats for pair in measured] for side in SIDES], float
    )
    rise = ratio_of_means(hidden[1] - hidden[0], margin[1] - margin[0], images, level=level)
    size = ratio_of_means(hidden[1], margin[1], images, level=level)
    rivals = rivals_of(measured, margin[1], thresholds)
    words = (
        f"Hiding the region costs {nats(costs.region.after)} nats of margin{MARGIN_IN_WORDS}, "
        f"{nats(costs.region.before)} before ({nats_interval(costs.region.difference, level)}), and random regions "
        f"of its size {nats(costs.control[1])}"
    )
    if rise is None or size is None:
        fault = "did not rise significantly" if rise is None else "is not significantly above 0"
        reason = f"{words}; the margin {fault}, so no share of it can be given."
        return Leg(False, len(measured), None, None, thresholds.cause, reason)
    words += (
        f"; that is {percent(rise.mean)} of the margin's rise ({percent_interval(rise, level)}; at least "
        f"{percent(thresholds.cause)}) and {percent(size.mean)} of the margin (at least {percent(thresholds.cost)})"
    )
    if rivals:
        named = listed([f"{one.name} ({nats(one.nats)} nats)" for one in rivals])
        words += f"; but the answers still depend on {named}"
    holds = (
        rise.mean >= thresholds.cause
        and rise.is_above_zero
        and size.mean >= thresholds.cost
        and costs.over_control.is_above_zero
        and not rivals
    )
    return Leg(holds, len(measured), rise.mean, (rise.low, rise.high), thresholds.cause, f"{words}.")


def rivals_of(pairs: Sequence[ProbePair], margin_nats: np.ndarray, thresholds: Thresholds) -> list[Rival]:
    """Other regions that are still decisive: hiding them shifts the margin, up or down, by at least the share that the
    region's own cost must reach. Parts of the region, regions that contain it, and the other end of a relation do not
    count.

    Regions that few pictures have are pooled, with the largest shift of each probe: a misleading region still counts if
    every probe gives it another name.
    """
    shifts: dict[str, dict[int, float]] = {}
    for at, pair in enumerate(pairs):
        for one in pair.after.interventions:
            if one.kind != OCCLUSION or one.layers is not None or pair.region is None:
                continue
            if not related(pair.probe, one.region, pair.region):
                shifts.setdefault(one.region, {})[at] = shift(float(margin_nats[at]), one)
    images = images_of(pairs)
    rare: dict[int, float] = {}
    for name in [name for name, one in shifts.items() if len({images[at] for at in one}) < thresholds.probes]:
        for at, value in shifts.pop(name).items():
            rare[at] = max(value, rare.get(at, value))
    if len({images[at] for at in rare}) >= thresholds.probes:
        shifts["other regions"] = rare
    found = []
    for name, values in shifts.items():
        nats, size = float(np.mean(list(values.values()))), float(margin_nats[list(values)].mean())
        if size > 0 and nats > 0 and nats >= thresholds.cost * size:
            found.append(Rival(name, nats, nats / size))
    return sorted(found, key=lambda one: -one.nats)


def _cost(record: AttentionRecord, region: str | None) -> float:
    found = cost(record, OCCLUSION, region)
    assert found is not None
    return found.region
