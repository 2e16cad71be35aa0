"""Where a wrong answer looks, and what it depends on: attention on the region, and what hiding regions shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diagnostics.comparison.legs.attention import supervision_words
from diagnostics.comparison.legs.leg import Leg, count, listed, nats_interval, not_measured, percent
from diagnostics.comparison.pairs import cost, layer_cells, mass_on_map, related, shift
from diagnostics.diagnosis.cases import LEVEL, Case, margins_of, pictures_of
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.measures.attention import region_mass
from diagnostics.measures.statistics import bootstrap_mean, paired_change, ratio_of_means, relative_change
from diagnostics.probing.interventions import MOST_OF_THE_PICTURE, fills_the_picture
from diagnostics.records.measurement_plan import OCCLUSION
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord
from finetune.families.parts.coverage import region_coverage
from finetune.samples.images import open_image

LEAST_WRONG = 5
"""Pictures of wrong answers, below which nothing is said of where they look: more than a fifth of 20 are wrong where a
group is not right."""
MOST_NAMED = 3


class Unsupervised(NamedTuple):
    """What a loss on attention did not see: a model that was told where to look looks there by construction.

    records   places of those on pictures that it did not see
    rows      places of the key layers that it did not see
    sentence  what is judged, and why; "" where all is
    """

    records: tuple[int, ...]
    rows: tuple[int, ...]
    sentence: str = ""


def unsupervised(records: Sequence[AttentionRecord]) -> Unsupervised:
    """What is left to be judged of these records of one model, as a comparison judges it; nothing where every key layer
    or picture was seen, nor through a resampler whose attention was trained on."""
    every = tuple(range(len(records)))
    layers = records[0].layers if records else ()
    trained = sorted({layer for one in records for layer in one.supervised_layers})
    if not trained:
        return Unsupervised(every, tuple(range(len(layers))))
    if any(one.supervised_connector for one in records):
        return Unsupervised((), (), supervision_words(trained, connector=True))
    rows = tuple(row for row, layer in enumerate(layers) if layer not in trained)
    left = tuple(at for at in every if not records[at].supervised_picture)
    nothing_left = "" if rows and left else "every layer" if left else "every picture"
    sentence = supervision_words(
        trained,
        pictures=len(every) - len(left),
        nothing_left=nothing_left,
        unknown=any(one.supervised_unknown for one in records),
    )
    return Unsupervised((), (), sentence) if nothing_left else Unsupervised(left, rows, sentence)


def attention_test(wrong: Sequence[Case], thresholds: Thresholds) -> tuple[Leg, int | None]:
    """Does the answer query look at the region, where the answer is wrong? And the layer to show.

    In the key layer whose map looks at it most, chosen on the other half of the pictures, since choosing and judging on
    the same ones would flatter. Times the area's share are averaged as relative changes, which no single probe decides:
    a probe at 40 times and three at .2 look at their regions 10 times as much in the mean, and most of them do not.

    Without regions that fill their picture: whatever the answer looks at, it looks at such a region as much as its
    area's share. And without layers and pictures in which attention was trained on (``unsupervised``).
    """
    naming = [case for case in wrong if case.record.region_mass and case.record.image_tokens]
    unfilled = [case for case in naming if not _fills(case)]
    places, rows, trained = unsupervised([case.record for case in unfilled])
    if trained and not places:
        return not_measured(thresholds.looked, trained), None
    having = [unfilled[at] for at in places]
    pictures = pictures_of(having)
    if len(set(pictures)) < LEAST_WRONG:
        lack = _few_wrong(pictures, "names a region", filled=len(naming) - len(unfilled))
        return not_measured(thresholds.looked, f"{lack} {trained}".rstrip(), len(having)), None
    both = [_enrichments(case, rows) for case in having]
    own, by_chance = (np.stack(side) for side in zip(*both, strict=True))
    relative = relative_change(np.ones_like(own), own)
    chosen = _cross_chosen(relative, pictures)
    at = np.arange(len(own))
    value = bootstrap_mean(relative[at, chosen], pictures)
    typical, low, high = (_times(one) for one in value)
    random = _times(float(relative_change(np.ones(len(own)), by_chance[at, chosen]).mean()))
    layers = [having[0].record.layers[rows[at]] for at in sorted(set(chosen.tolist()))]
    words = (
        f"Where it answers wrong, the answer looks at the region {typical:.2f} times as much as its area's share (95 % "
        f"interval {low:.2f} to {high:.2f}; which must lie above {thresholds.looked:g}; random places {random:.2f}) in "
        f"{'layer' if len(layers) == 1 else 'layers'} {listed(list(map(str, layers)))}, chosen on the other half of "
        "the pictures"
    )
    holds = low >= thresholds.looked and typical > random
    best = having[0].record.layers[rows[int(relative.mean(0).argmax())]]
    return Leg(
        holds, len(having), typical, (low, high), thresholds.looked, f"{words}. {trained}".rstrip()
    ), best


def _few_wrong(pictures: Sequence[str], what: str, *, filled: int) -> str:
    """filled: probes left out since their region fills the picture."""
    found = len(set(pictures))
    words = (
        f"Not measured: {LEAST_WRONG} pictures with a wrong answer are needed whose probe {what}, and there "
        f"{'is' if found == 1 else 'are'} {found or 'none'}"
    )
    if not filled:
        return f"{words}."
    return f"{words} beside {count(filled, 'probe')} whose region fills the picture, so that no other place is left."


def _fills(case: Case) -> bool:
    boxes = case.probe.regions.get(case.probe.main_region or "")
    images = case.record.image_tokens
    return boxes is not None and bool(images) and fills_the_picture(boxes, images[0].image_size_pixels)


def filling(probes: Sequence[Probe], source: str) -> str | None:
    """A warning that names the probes whose region fills the picture; None where there are none.

    source   the probe file
    """
    found = [
        probe.id
        for probe in probes
        if probe.main_region
        and fills_the_picture(probe.regions[probe.main_region], open_image(probe.images[0]).size)
    ]
    if not found:
        return None
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return (
        f"{source}: in {len(found)} of {len(probes)} probes the region fills the picture "
        f"({', '.join(found[:MOST_NAMED])}{more}): over {percent(MOST_OF_THE_PICTURE)} of it, which leaves no other "
        "place to look at or to hide: attention and hiding are not measured there; name a smaller region if you can"
    )


def _enrichments(
    case: Case, rows: Sequence[int]
) -> tuple[Float[np.ndarray, " layers"], Float[np.ndarray, " layers"]]:
    """Times the region's share of the area in the maps of some key layers: the region, and random places.

    0 where a layer sees nothing of the picture.

    rows   places of the key layers
    """
    region, record = str(case.probe.main_region), case.record
    assert region in record.random_mass, "the prober measures both"
    coverage = region_coverage(case.probe.regions[region], record.image_tokens[0])
    share = max(float(coverage.mean()), 1e-12)
    places = [mass_on_map(record, "random_mass", region, row) or 0.0 for row in rows]
    return region_mass(layer_cells(record)[list(rows)], coverage) / share, np.array(places) / share


def _times(relative: float) -> float:
    """A relative change from 1 as times: 1 → 3, −2 → 0, 0 → 1."""
    return (2 + relative) / max(2 - relative, 1e-6)


def _cross_chosen(
    relative: Float[np.ndarray, "probes layers"], pictures: Sequence[str]
) -> Int[np.ndarray, " probes"]:
    """For each probe, the layer that is looked from most on the other half of the pictures."""
    late = {mark: at % 2 == 1 for at, mark in enumerate(sorted(set(pictures)))}
    second = np.array([late[mark] for mark in pictures])
    best = [int(relative[second == half].mean(0).argmax()) for half in (False, True)]
    return np.where(second, best[0], best[1])


def hiding_test(wrong: Sequence[Case], thresholds: Thresholds) -> tuple[Leg, str | None]:
    """What hiding the region shifts where the answer is wrong, as a part of the margin, beyond random places; and the
    other named region that shifts more and decides."""
    having = [case for case in wrong if cost(case.record, OCCLUSION, case.probe.main_region) is not None]
    pictures, sizes = pictures_of(having), np.abs(margins_of(having))
    if len(set(pictures)) < LEAST_WRONG:
        filled = sum(map(_fills, wrong))
        lack = _few_wrong(pictures, "has a region to hide", filled=filled)
        return not_measured(thresholds.cost, lack, len(having)), None
    own = np.array([_shift(case, str(case.probe.main_region)) for case in having])
    share = ratio_of_means(own, sizes, pictures)
    if share is None:
        return not_measured(thresholds.cost, "The margins cannot be told from 0.", len(having)), None
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
    """The other region that shifts the margin most: by a large enough part, and more than the region itself with an
    interval above 0."""
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
