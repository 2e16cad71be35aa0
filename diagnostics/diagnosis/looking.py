"""Where a wrong answer looks, and what it hangs on: attention on the region, and what hiding regions shifts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diagnostics.comparison.legs.leg import Leg, nats_interval, not_measured, percent
from diagnostics.comparison.pairs import cost, related, shift
from diagnostics.diagnosis.cases import LEVEL, Case, margins_of, pictures_of
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.measures.statistics import bootstrap_mean, paired_change, ratio_of_means
from diagnostics.records.measurement_plan import OCCLUSION
from finetune.families.parts.coverage import region_coverage

LEAST_WRONG = 5
"""Pictures of wrong answers, below which nothing is said of where they look: more than a fifth of 20 are wrong where a
group is not right."""


def attention_test(wrong: Sequence[Case], thresholds: Thresholds) -> Leg:
    """Does the answer query look at the region, where the answer is wrong? In the layer that looks at it most, chosen
    on the other half of the pictures, beside random places of its size."""
    having = [
        case
        for case in wrong
        if case.probe.main_region is not None and case.record.region_mass and case.record.image_tokens
    ]
    pictures = pictures_of(having)
    if len(set(pictures)) < LEAST_WRONG:
        return not_measured(thresholds.looked, _few_wrong(pictures, "names a region"), len(having))
    own, by_chance = (
        np.stack([_enrichment(case, kind) for case in having]) for kind in ("region_mass", "random_mass")
    )
    layers, values, others = _cross_chosen(own, by_chance, pictures)
    value = bootstrap_mean(values, pictures)
    beyond = bootstrap_mean(values - others, pictures)
    holds = value.mean >= thresholds.looked and beyond.mean > 0
    words = (
        f"Where it answers wrong, the answer looks at the region {value.mean:.2f} times as much as its area's share "
        f"(95 % interval {value.low:.2f} to {value.high:.2f}; at least {thresholds.looked:g} must be; random places "
        f"{others.mean():.2f}) in {'layer' if len(layers) == 1 else 'layers'} {' and '.join(map(str, layers))}, chosen "
        "on the other half of the pictures"
    )
    return Leg(holds, len(having), value.mean, (value.low, value.high), thresholds.looked, f"{words}.")


def _few_wrong(pictures: Sequence[str], what: str) -> str:
    return (
        f"Not measured: {LEAST_WRONG} pictures with a wrong answer are needed whose probe {what}, and there "
        f"{'is' if len(set(pictures)) == 1 else 'are'} {len(set(pictures)) or 'none'}."
    )


def _enrichment(case: Case, kind: str) -> np.ndarray:
    """Float[layers]: times the region's share of the area, mean over heads; NaN for layers without a map."""
    region = case.probe.main_region
    assert region is not None
    share = float(region_coverage(case.probe.regions[region], case.record.image_tokens[0]).mean())
    return getattr(case.record, kind)[region].mean(1) / max(share, 1e-12)


def _cross_chosen(
    own: np.ndarray, by_chance: np.ndarray, pictures: Sequence[str]
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Layers chosen on each half of the pictures, and each probe read in the layer that the other half chose: choosing
    and judging on the same pictures would flatter."""
    late = {mark: at % 2 == 1 for at, mark in enumerate(sorted(set(pictures)))}
    second = np.array([late[mark] for mark in pictures])
    if second.all() or not second.any():
        chosen = [int(np.nanargmax(own.mean(0)))] * 2
    else:
        chosen = [int(np.nanargmax(own[second == half].mean(0))) for half in (False, True)]
    rows = np.array([chosen[0] if one else chosen[1] for one in second])
    at = np.arange(len(own))
    return sorted(set(chosen)), own[at, rows], by_chance[at, rows]


def hiding_test(wrong: Sequence[Case], thresholds: Thresholds) -> tuple[Leg, str | None]:
    """What hiding the region shifts where the answer is wrong, as a part of the margin, beyond random places; and the
    other named region that shifts more and decides."""
    having = [case for case in wrong if cost(case.record, OCCLUSION, case.probe.main_region) is not None]
    pictures, sizes = pictures_of(having), np.abs(margins_of(having))
    if len(set(pictures)) < LEAST_WRONG:
        return not_measured(thresholds.cost, _few_wrong(pictures, "has a region to hide"), len(having)), None
    own = np.array([_shift(case, str(case.probe.main_region)) for case in having])
    share = ratio_of_means(own, sizes, pictures)
    if share is None:
        return not_measured(thresholds.cost, "The margins are not surely unlike 0.", len(having)), None
    nats = bootstrap_mean(own, pictures)
    holds = share.mean >= thresholds.cost and share.is_above_zero
    words = (
        f"Where it answers wrong, hiding the region moves the margin by {nats.mean:+.2f} nats more than hiding random "
        f"places ({nats_interval(nats, LEVEL)}), {percent(share.mean)} of it (at least "
        f"{percent(thresholds.cost)} must be)"
    )
    decides = _decides(having, own, thresholds)
    if decides is not None:
        words += f"; hiding {decides[0]} moves it by {decides[1]:+.2f}"
    leg = Leg(holds, len(having), share.mean, (share.low, share.high), thresholds.cost, f"{words}.")
    return leg, None if decides is None else decides[0]


def _shift(case: Case, region: str) -> float:
    margin = case.record.scores.margin_nats
    assert margin is not None
    return next(
        shift(margin, one)
        for one in case.record.interventions
        if one.kind == OCCLUSION and one.region == region and one.layers is None
    )


def _decides(having: Sequence[Case], own: np.ndarray, thresholds: Thresholds) -> tuple[str, float] | None:
    """The other region that shifts the margin most: surely more than the region itself, and by a large enough part."""
    best: tuple[str, float] | None = None
    names = {one.region for case in having for one in case.record.interventions if one.kind == OCCLUSION}
    for name in sorted(names):
        members = [
            (case, float(mine))
            for case, mine in zip(having, own, strict=True)
            if name in case.probe.regions
            and any(one.kind == OCCLUSION and one.region == name for one in case.record.interventions)
            and not related(case.probe, name, str(case.probe.main_region))
        ]
        if 2 * len(members) < len(having):
            continue
        cases = [case for case, _ in members]
        shifts, pictures = np.array([_shift(case, name) for case in cases]), pictures_of(cases)
        lead = paired_change(np.array([mine for _, mine in members]), shifts, pictures).difference
        share = ratio_of_means(shifts, np.abs(margins_of(cases)), pictures)
        if share is None or share.mean < thresholds.cost or not share.is_above_zero or not lead.is_above_zero:
            continue
        if best is None or shifts.mean() > best[1]:
            best = (name, float(shifts.mean()))
    return best
