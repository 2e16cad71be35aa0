"""The leg "attention": it moved to the region and only there, in layers chosen on other pictures than those judged."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from diagnostics.comparison.legs.leg import Leg, listed, not_measured, percent, percent_interval, too_few
from diagnostics.comparison.pairs import SIDES, ProbePair, images_of, mass_on_map, nested
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.attention import enrichment
from diagnostics.measures.statistics import (
    Change,
    Interval,
    bootstrap_mean,
    effect_size,
    head_tests,
    paired_change,
    relative_change,
    signed_rank_direction,
)
from finetune.families.parts.coverage import region_coverage

TO, AWAY, ELSEWHERE = "to the region", "away from the region", "to other places too"
LARGEST_FACTOR = 100  # times; above it there was almost nothing before
SALIENT, OTHERS = "equally salient places", "the other regions"
BLIND = (
    "In no key layer that could be judged does attention reach the region, before or after (a sliding window may end "
    "before the picture): choose others (--key_layers)."
)

ONE_SIDED = "In {layers} a map has no attention at all before or after, but not both: it is not judged there."

Mediated = Callable[[ProbePair, int], float | None]
"""Margin lost when one layer's attention is put back as it was, nats."""


class Lead(NamedTuple):
    """How much more the region gained than another place, relative to the attention of both: ``relative_change`` of
    region before + place after → region after + place before. Range [−2, 2]."""

    place: str
    probes: int
    interval: Interval


@dataclass(frozen=True)
class Reading:
    """A group's attention on the judged region, each probe read in the layer chosen on the other half of the pictures.

    layers    the layer chosen on each half
    read_in   the layer in which each probe is read: the one that the other half chose
    cited     the one that carries more of the change, if measured; else the first
    before, after   Float[probes]: enrichment, times
    images    the picture of each probe
    median_factor   after / before of the median probe
    leads     over each other place
    trained   a sentence where attention was trained on: what of it is judged; else ""
    """

    pairs: tuple[ProbePair, ...]
    region: str
    layers: tuple[int, int]
    read_in: tuple[int, ...]
    cited: int
    before: Float[np.ndarray, " probes"]
    after: Float[np.ndarray, " probes"]
    images: tuple[str, ...]
    change: Change
    relative: Interval
    effect: float | None
    median_factor: float
    leads: tuple[Lead, ...]
    trained: str = ""

    @property
    def direction(self) -> int:
        """Which way a significant change points: ``agreed_direction``."""
        return int(agreed_direction(relative_change(self.before, self.after), self.images))


class Unseen(NamedTuple):
    """What a loss on attention did not see: a model whose attention was trained on meets an attention criterion by
    construction, so it is judged in other layers and on other pictures. Through a resampler whose attention was trained
    on, nothing is left: it moves the map of every layer.

    pairs     with a region, on pictures that the loss did not see, and with the layers that it did not and that see the
              region
    sentence  what is judged, and why; "" where all is
    """

    pairs: tuple[ProbePair, ...]
    sentence: str = ""


def unseen(pairs: Sequence[ProbePair]) -> Unseen:
    """The probes that name a region, without what attention was trained on before or after, and without layers that do
    not see the region."""
    members = [pair for pair in pairs if pair.region is not None]
    trained = sorted(
        {layer for pair in members for side in SIDES for layer in getattr(pair, side).supervised_layers}
    )
    if not trained:
        return _that_see(members, "")
    if any(getattr(pair, side).supervised_connector for pair in members for side in SIDES):
        return Unseen((), supervision_words(trained, connector=True))
    left = [
        replace(pair, layers=tuple(one for one in pair.layers if one.layer not in trained))
        for pair in members
        if not any(getattr(pair, side).supervised_picture for side in SIDES)
    ]
    judged = [pair for pair in left if pair.layers]
    nothing_left = "" if judged else "every layer" if left else "every picture"
    sentence = supervision_words(
        trained,
        pictures=len(members) - len(left),
        nothing_left=nothing_left,
        unknown=any(getattr(pair, side).supervised_unknown for pair in members for side in SIDES),
    )
    return _that_see(judged, sentence) if judged else Unseen((), sentence)


def supervision_words(
    layers: Sequence[int],
    *,
    connector: bool = False,
    pictures: int = 0,
    nothing_left: str = "",
    unknown: bool = False,
) -> str:
    """Where attention was trained on, and what of it is judged.

    layers        language layers, at least one
    connector     so was the resampler's
    pictures      of these probes, on which it was
    nothing_left  "every layer" or "every picture", where none is left to be judged; "" where some are
    unknown       whether it was trained on pictures that are not known, which may be these
    """
    sentence = f"Attention was trained on in {_layers(layers)}"
    if connector:
        return (
            f"{sentence} and in the resampler, through which every layer looks at the picture: where it looks is what "
            "it was told to."
        )
    sentence += f" and on {pictures} of these probes' pictures" if pictures else ""
    if nothing_left:
        return (
            f"{sentence}, {nothing_left} that could be judged: where it looks there is what it was told to."
        )
    if unknown:
        return (
            f"{sentence}; it is judged only where it was not, as far as that is known: not for the supervised pictures "
            "of streamed data."
        )
    return f"{sentence}; it is judged only where it was not."


def _that_see(pairs: Sequence[ProbePair], sentence: str) -> Unseen:
    """Without the layers in which no attention reaches a region, before or after, as where a sliding window ends before
    the picture: that nothing changes there would pass for the better result beside a layer whose attention fell. And
    without those in which a probe's map is empty on one side alone, as where half precision rounds it to 0: its change
    would be all or nothing, of what was not measured."""
    seeing = _seeing(pairs)
    if one_sided := [row for row in seeing if any(pair.layers[row].is_empty_once for pair in pairs)]:
        seeing = [row for row in seeing if row not in one_sided]
        layers = _layers([pairs[0].layers[row].layer for row in one_sided])
        sentence = f"{sentence} {ONE_SIDED.format(layers=layers)}".lstrip()
        if not seeing:
            return Unseen((), sentence)
    if len(seeing) == (len(pairs[0].layers) if pairs else 0):
        return Unseen(tuple(pairs), sentence)
    if not seeing:
        return Unseen((), f"{sentence} {BLIND}".lstrip())
    return Unseen(
        tuple(replace(pair, layers=tuple(pair.layers[row] for row in seeing)) for pair in pairs), sentence
    )


def _seeing(pairs: Sequence[ProbePair]) -> list[int]:
    """Indices of the key layers in which some attention reaches the region of some probe, before or after."""
    count = len(pairs[0].layers) if pairs else 0
    return [
        row
        for row in range(count)
        if any(_enrichment(pair, row, side) > 0 for pair in pairs for side in SIDES)
    ]


def agreed_direction(
    changes: Float[np.ndarray, "probes ..."], clusters: Sequence[Hashable]
) -> Int[np.ndarray, "*tests"]:
    """Which way do mean and signed ranks both point? 1 up, −1 down, 0 where they differ.

    The p of ``head_tests`` is of the ranks: where a few probes turn the mean, it is no evidence for the mean's sign.
    """
    ranks = signed_rank_direction(changes, clusters)
    return np.where(ranks == np.sign(changes.mean(0)), ranks, 0)


def read_attention(
    pairs: Sequence[ProbePair], mediated: Mediated, thresholds: Thresholds, level: float
) -> Reading | None:
    """A group's attention; None if no probe has a region.

    Choosing the best of several layers and measuring it on the same probes is biased upwards (winner's curse: +.12 was
    reported as +.25). So pictures are split into halves, each probe is read in the layer chosen on the other half, and
    all are pooled (cross-fitting: Chernozhukov et al. 2018, The Econometrics Journal 21:C1).
    """
    members, trained = unseen(pairs)
    if not members:
        return None
    images = images_of(members)
    rows, (first_choice, second_choice) = cross_fitted_rows(members, images, mediated, level)
    before, after = (
        np.array([_enrichment(pair, row, side) for pair, row in zip(members, rows, strict=True)])
        for side in SIDES
    )
    relative = relative_change(before, after)
    layers = (members[0].layers[first_choice].layer, members[0].layers[second_choice].layer)
    regions = {pair.region for pair in members}
    return Reading(
        tuple(members),
        str(members[0].region) if len(regions) == 1 else "each probe's own",
        layers,
        tuple(members[0].layers[row].layer for row in rows),
        max(layers, key=lambda layer: _carried(members, layer, mediated)),
        before,
        after,
        tuple(images),
        paired_change(before, after, images, level=level),
        bootstrap_mean(relative, images, level=level),
        effect_size(relative, images),
        float(np.median((2 + relative) / np.maximum(2 - relative, 1e-6))),
        tuple(_leads(members, rows, (before, after), thresholds.probes, level)),
        trained,
    )


def attention_leg(
    reading: Reading | None,
    chance: float | None,
    fallen: Sequence[int],
    thresholds: Thresholds,
    level: float,
    *,
    why_not: str = "",
) -> tuple[Leg, str | None]:
    """The leg, and the direction of the move: ``TO``, ``AWAY``, ``ELSEWHERE`` (to the region, and not clearly to it
    alone), or None. A move is significant only the way that mean and ranks both point.

    chance   p value of the change in enrichment, adjusted for all groups
    fallen   key layers whose attention on the region fell significantly, which the reason names
    why_not  why nothing was read; "": the probes have no region
    """
    if reading is None or chance is None:
        reason = why_not or "These probes have no region, so attention is not judged."
        return not_measured(thresholds.move, reason), None
    probes, images = len(reading.pairs), len(set(reading.images))
    if images < thresholds.probes:
        what = "Attention on a region was"
        return too_few(thresholds.move, what, images, probes, thresholds.probes), None
    direction = reading.direction if chance < 1 - level else 0
    if direction < 0 and reading.relative.mean <= -thresholds.move:
        moved = AWAY
    elif not (direction > 0 and reading.relative.mean >= thresholds.move):
        moved = None
    elif not reading.leads:
        reason = (
            f"{_means(reading)}, but there is no other place to compare with: attention may have moved to any object "
            "(add a second region)."
        )
        return not_measured(thresholds.move, reason, probes), ELSEWHERE
    else:
        moved = TO if all(_is_clear(one, thresholds) for one in reading.leads) else ELSEWHERE
    value = _judged(reading, moved, thresholds)
    reason = f"{_means(reading)}; {_words(reading, chance, moved, thresholds, level)}"
    if others := [layer for layer in fallen if layer not in reading.layers or moved != AWAY]:
        reason += f"; in {_layers(others)} attention left the region"
    reason = f"{reason}. {reading.trained}".rstrip()
    reason += "" if reason.endswith(".") else "."
    return Leg(moved == TO, probes, value.mean, (value.low, value.high), thresholds.move, reason), moved


def _judged(reading: Reading, moved: str | None, thresholds: Thresholds) -> Interval:
    """What the leg holds or fails by: the lead that is not clear; where all are, the least of the gain and the leads;
    where attention did not move to the region, its change alone."""
    if moved not in (TO, ELSEWHERE):
        return reading.relative
    lead = weakest_lead(reading.leads, thresholds).interval
    return lead if moved == ELSEWHERE else min(reading.relative, lead, key=lambda one: one.mean)


def weakest_lead(leads: Sequence[Lead], thresholds: Thresholds) -> Lead:
    """The lead to cite: of those that are not clear, which a move to the region fails by, the one with the lowest lower
    bound; the smallest where all are clear. A smaller lead may be clear, and a larger one not, on fewer probes."""
    unclear = [one for one in leads if not _is_clear(one, thresholds)]
    if unclear:
        return min(unclear, key=lambda one: one.interval.low)
    return min(leads, key=lambda one: one.interval.mean)


def _is_clear(lead: Lead, thresholds: Thresholds) -> bool:
    return lead.interval.mean >= thresholds.move and lead.interval.is_above_zero


def _means(reading: Reading) -> str:
    return (
        f"The region gets {reading.change.after:.2f} times the attention that its area alone would get, "
        f"{reading.change.before:.2f} before ({_median_words(reading.median_factor)}; {_chosen_words(reading)})"
    )


def _median_words(factor: float) -> str:
    if factor > LARGEST_FACTOR:
        return f"median probe: over {LARGEST_FACTOR} times as much as before"
    return f"median probe: {factor:.2f} times as much as before"


def _chosen_words(reading: Reading) -> str:
    first, second = reading.layers
    if first == second:
        return f"layer {first}, chosen on each half of the pictures for the other"
    return f"layers {first} and {second}, each chosen on one half of the pictures and judged on the other"


def _words(reading: Reading, chance: float, moved: str | None, thresholds: Thresholds, level: float) -> str:
    size = f"{percent(reading.relative.mean, signed=True)} of the mean of before and after, p = {chance:.2g}"
    if moved == AWAY:
        return f"it left the region ({size})"
    certain = chance < 1 - level
    if not certain:
        return f"the change could be due to chance ({size}, adjusted for every group)"
    if not reading.direction:
        return (
            f"chance does not explain the change ({size}), but no move is claimed: a few probes carry the mean, and "
            "the ranks that p judges point the other way"
        )
    if reading.relative.mean < thresholds.move:
        return (
            f"chance does not explain the change ({size}), but a move is at least {percent(thresholds.move)} to the "
            "region"
        )
    least = weakest_lead(reading.leads, thresholds)
    lead = f"{percent(least.interval.mean, signed=True)} ({percent_interval(least.interval, level)})"
    beside = f"its lead over {least.place} is {lead}"
    if moved == TO:
        return (
            f"chance does not explain the change ({size}), and {beside}, at least {percent(thresholds.move)}"
        )
    return f"chance does not explain the change ({size}), but {beside}: it did not move to the region alone"


def _layers(layers: Sequence[int]) -> str:
    return f"{'layer' if len(layers) == 1 else 'layers'} {listed([str(layer) for layer in layers])}"


# ---------------------------------------------------------------- halves and layers


def cross_fitted_rows(
    members: Sequence[ProbePair], images: Sequence[str], mediated: Mediated, level: float
) -> tuple[list[int], tuple[int, int]]:
    """For each probe the index of the key layer that the other half of the pictures chose, and both halves' choices."""
    second = _second_half(images)
    first_choice, second_choice = (
        _chosen([pair for pair, late in zip(members, second, strict=True) if late == half], mediated, level)
        for half in (False, True)
    )
    return [first_choice if late else second_choice for late in second], (first_choice, second_choice)


def _second_half(images: Sequence[str]) -> list[bool]:
    """Every second picture, in the order of their digests: the same split on every machine."""
    late = {image: at % 2 == 1 for at, image in enumerate(sorted(set(images)))}
    return [late[image] for image in images]


def _chosen(half: Sequence[ProbePair], mediated: Mediated, level: float) -> int:
    """Index of the key layer chosen on these probes: among those whose attention rose significantly, the one that
    carries most of the margin or, if not measured, the most significant; if none rose, the one with the highest lower
    bound. Of layers that see the region of none of these probes there is nothing to choose by."""
    if not half:
        return 0
    images = images_of(half)
    count = len(half[0].layers)
    seeing = _seeing(half) or range(count)
    both = [
        np.stack([[_enrichment(pair, row, side) for row in range(count)] for pair in half]) for side in SIDES
    ]
    relative = relative_change(*both)
    chances = head_tests(both[0][:, :, None], both[1][:, :, None], images)[:, 0] * count
    risen = np.flatnonzero((chances < 1 - level) & (agreed_direction(relative, images) > 0)).tolist()
    if not risen:
        return max(seeing, key=lambda row: bootstrap_mean(relative[:, row], images, level=level).low)
    layers = [layer.layer for layer in half[0].layers]
    carried = {row: _carried(half, layers[row], mediated) for row in risen}
    if max(carried.values()) > 0:
        return max(risen, key=carried.__getitem__)
    return min(risen, key=chances.__getitem__)


def _carried(pairs: Sequence[ProbePair], layer: int, mediated: Mediated) -> float:
    """Mean margin that one layer's attention carries, nats; 0 if not measured."""
    values = [value for pair in pairs if (value := mediated(pair, layer)) is not None]
    return float(np.mean(values)) if values else 0.0


# ---------------------------------------------------------------- places to compare with


def _leads(
    members: Sequence[ProbePair],
    rows: Sequence[int],
    region: tuple[np.ndarray, np.ndarray],
    least: int,
    level: float,
) -> list[Lead]:
    """Leads over each other region, and over equally salient places. Regions that contain the judged one, or are part
    of it, count without the overlap; the ends of a relation belong together. Regions of few probes are pooled."""
    before, after = region
    places: dict[str, dict[int, tuple[float, float]]] = {}
    for at, (pair, row) in enumerate(zip(members, rows, strict=True)):
        for name, levels in other_levels(pair, row).items():
            places.setdefault(name, {})[at] = levels
    images = images_of(members)
    rare = [name for name, one in places.items() if len({images[at] for at in one}) < least]
    pooled: dict[int, list[tuple[float, float]]] = {}
    for name in rare:
        for at, levels in places.pop(name).items():
            if name != SALIENT:
                pooled.setdefault(at, []).append(levels)
    if pooled:
        means = {at: np.mean(levels, axis=0) for at, levels in pooled.items()}
        places[OTHERS] = {at: (float(mean[0]), float(mean[1])) for at, mean in means.items()}
    found = []
    for name, one in places.items():
        index = list(one)
        others = np.array([one[at] for at in index])
        if len({images[at] for at in index}) < least:
            continue
        lead = relative_change(before[index] + others[:, 1], after[index] + others[:, 0])
        interval = bootstrap_mean(lead, [images[at] for at in index], level=level)
        found.append(Lead(name if name in (SALIENT, OTHERS) else f"{name!r}", len(index), interval))
    return found


def other_levels(pair: ProbePair, row: int) -> dict[str, tuple[float, float]]:
    """Place → enrichment before and after in one key layer."""
    assert pair.region is not None
    image, layer = pair.after.image_tokens[0], pair.layers[row]
    judged = region_coverage(pair.probe.regions[pair.region], image)
    related = pair.probe.relation[1:] if pair.probe.relation is not None else ()
    found: dict[str, tuple[float, float]] = {}
    for name, boxes in pair.probe.regions.items():
        if name == pair.region or (name in related and pair.region in related):
            continue
        if nested(boxes, pair.probe.regions[pair.region]):
            continue  # a part of the judged region
        rest = np.clip(region_coverage(boxes, image) - judged, 0, None)
        if rest.mean() > 0:
            found[name] = float(enrichment(layer.before, rest)), float(enrichment(layer.after, rest))
    share = float(judged.mean())
    records = [getattr(pair, side) for side in SIDES]
    # Not ``row``: layers that a loss on attention saw are in the records, and no longer in the pair.
    salient = [
        mass_on_map(record, "salient_mass", pair.region, record.layers.index(layer.layer))
        for record in records
    ]
    if salient[0] is not None and salient[1] is not None:
        found[SALIENT] = salient[0] / share, salient[1] / share
    return found


def _enrichment(pair: ProbePair, row: int, side: str) -> float:
    reading = pair.reading(pair.layers[row])
    assert reading is not None
    return reading.enrichment_before if side == "before" else reading.enrichment_after
