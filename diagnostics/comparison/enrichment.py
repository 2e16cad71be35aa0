"""A group's attention before and after: enrichment of the judged region in key layers and in every head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diagnostics.comparison.legs.attention import Reading, agreed_direction
from diagnostics.comparison.pairs import SIDES, ProbePair, images_of, mass_on_map
from diagnostics.measures.attention import auc, entropy, iou, nss, pointing_game
from diagnostics.measures.sinks import sink_share
from diagnostics.measures.statistics import (
    SIGNIFICANT,
    Change,
    Interval,
    bootstrap_mean,
    effect_size,
    paired_change,
    relative_change,
    significant_heads,
)
from diagnostics.records.record import AttentionRecord
from finetune.families.parts.coverage import region_coverage

HEADS_LISTED = 40

Json = dict[str, Any]
Heads = dict[str, Float[np.ndarray, "layers heads"]]


@dataclass(frozen=True)
class LayerEnrichment:
    """A group's enrichment of the judged region in one key layer.

    chance          p value of the change, adjusted for all groups and key layers tested
    random          enrichment of area-matched random regions (before, after); None if not measured
    without_sinks   the change with sinks left out; None if no sink was found
    relative        mean ``relative_change``: the change of a typical probe
    effect          effect size of the relative change, in standard deviations; None if undefined
    direction       which way a significant change points: ``agreed_direction``; 0 where a map is empty on one side
                    alone, which is no change of what was measured
    trained_on      attention was trained on there: it looks where it was told to
    """

    layer: int
    region: str
    change: Change
    chance: float
    random: tuple[float, float] | None
    without_sinks: Change | None
    relative: Interval
    effect: float | None
    direction: int
    trained_on: bool

    def json(self) -> Json:
        """The form in comparison.json."""
        return {
            "layer": self.layer,
            "region": self.region,
            **self.change.json(),
            "p_adjusted": self.chance,
            "relative_change": {"mean": self.relative.mean, "ci95": [self.relative.low, self.relative.high]},
            "direction": self.direction,
            "effect_size": self.effect,
            "trained_on": self.trained_on,
            "random": None if self.random is None else dict(zip(SIDES, self.random, strict=True)),
            "without_sinks": (None if self.without_sinks is None else self.without_sinks.json()),
        }


def enrichment_by_layer(
    pairs: Sequence[ProbePair], chances: Float[np.ndarray, "layers one"] | None, level: float
) -> list[LayerEnrichment]:
    members = [pair for pair in pairs if pair.region is not None]
    if not members or chances is None:
        return []
    regions = sorted({pair.region for pair in members if pair.region is not None})
    images = images_of(members)
    found = []
    for index, layer in enumerate(members[0].layers):
        before, after = _enrichments(members, index)
        relative = relative_change(before, after)
        one_sided = any(pair.layers[index].is_empty_once for pair in members)
        found.append(
            LayerEnrichment(
                layer=layer.layer,
                region=regions[0] if len(regions) == 1 else "each probe's own",
                change=paired_change(before, after, images, level=level),
                chance=float(chances[index, 0]),
                random=_random_enrichment(members, [index] * len(members)),
                without_sinks=_without_sinks(members, [index] * len(members), level),
                relative=bootstrap_mean(relative, images, level=level),
                effect=effect_size(relative, images),
                direction=0 if one_sided else int(agreed_direction(relative, images)),
                trained_on=any(pair.is_trained_on(layer.layer) for pair in members),
            )
        )
    return found


def fallen_layers(by_layer: Sequence[LayerEnrichment], least: float, level: float) -> list[int]:
    """Key layers in which attention on the region fell significantly, by mean and ranks, by a share of at least
    ``least``; without those in which it was trained on."""
    return [
        one.layer
        for one in by_layer
        if one.chance < min(SIGNIFICANT, 1 - level)
        and one.direction < 0
        and one.relative.mean <= -least
        and not one.trained_on
    ]


def pooled_chances(readings: Mapping[str, Reading]) -> dict[str, float]:
    """p value of each group's attention, with layers chosen on other pictures; adjusted for all groups."""
    before, after = (
        {name: getattr(one, side)[:, None, None] for name, one in readings.items()} for side in SIDES
    )
    found = significant_heads(before, after, {name: one.images for name, one in readings.items()})
    return {name: float(p[0, 0]) for name, p in found.items()}


def reading_json(reading: Reading, chance: float, level: float) -> Json:
    """ "enrichment" in comparison.json: pooled over both halves; ``layer`` is the cited one. Random places and what is
    left without sinks are of the same probes, each in its own layer."""
    rows = [
        pair.after.layers.index(layer) for pair, layer in zip(reading.pairs, reading.read_in, strict=True)
    ]
    random = _random_enrichment(reading.pairs, rows)
    without = _without_sinks(reading.pairs, rows, level)
    low, high = reading.relative[1:]
    return {
        "layer": reading.cited,
        "layers": sorted(set(reading.layers)),
        "region": reading.region,
        **reading.change.json(),
        "p_adjusted": chance,
        "relative_change": {"mean": reading.relative.mean, "ci95": [low, high]},
        "direction": reading.direction,
        "median_factor": reading.median_factor,
        "leads": [
            {
                "over": one.place,
                "probes": one.probes,
                "mean": one.interval.mean,
                "ci95": list(one.interval[1:]),
            }
            for one in reading.leads
        ],
        "effect_size": reading.effect,
        "random": None if random is None else dict(zip(SIDES, random, strict=True)),
        "without_sinks": None if without is None else without.json(),
    }


def _enrichments(pairs: Sequence[ProbePair], layer_index: int) -> tuple[np.ndarray, np.ndarray]:
    readings = [pair.reading(pair.layers[layer_index]) for pair in pairs]
    return (
        np.array([reading.enrichment_before for reading in readings if reading is not None]),
        np.array([reading.enrichment_after for reading in readings if reading is not None]),
    )


def layer_chances(groups: Mapping[str, Sequence[ProbePair]]) -> Heads:
    """p values of each group's key layers, adjusted for all of them."""
    before: dict[str, np.ndarray] = {}
    after: dict[str, np.ndarray] = {}
    images: dict[str, list[str]] = {}
    for name, pairs in groups.items():
        members = [pair for pair in pairs if pair.region is not None]
        if members:
            both = [_enrichments(members, index) for index in range(len(members[0].layers))]
            before[name], after[name] = (
                np.stack(side, axis=1)[:, :, None] for side in zip(*both, strict=True)
            )
            images[name] = images_of(members)
    return significant_heads(before, after, images)


def head_chances(groups: Mapping[str, Sequence[ProbePair]]) -> Heads:
    """p values per head, for every layer with attention maps, adjusted for all heads of all groups. Null hypothesis:
    attention on the region changed by no more than on random places of the same size."""
    members = {name: tested for name, pairs in groups.items() if (tested := _tested(pairs))}
    sides = {name: _head_lead(pairs) for name, pairs in members.items()}
    before, after = ({name: both[at] for name, both in sides.items()} for at in (0, 1))
    return significant_heads(before, after, {name: images_of(pairs) for name, pairs in members.items()})


def _tested(pairs: Sequence[ProbePair]) -> list[ProbePair]:
    """The probes to test heads on: those with a region, and with random places if any probe has them."""
    members = [pair for pair in pairs if pair.region is not None]
    beside = [pair for pair in members if _has_random(pair)]
    return beside or members


def _has_random(pair: ProbePair) -> bool:
    return all(pair.region in getattr(pair, side).random_mass for side in SIDES)


def _head_lead(pairs: Sequence[ProbePair]) -> tuple[np.ndarray, np.ndarray]:
    """Mass of region and random places crossed, so that their ``relative_change`` is the region's lead: a common gain
    (a head that attends more to the whole picture) cancels out."""
    before, after = (_masses(pairs, side) for side in SIDES)
    if not all(map(_has_random, pairs)):
        return before, after
    random_before, random_after = (_masses(pairs, side, "random_mass") for side in SIDES)
    return before + random_after, after + random_before


def _attending(pairs: Sequence[ProbePair]) -> list[int]:
    """Indices of the layers with an attention map; values of the others are NaN."""
    return np.flatnonzero(np.isfinite(pairs[0].before.visual_share).all(1)).tolist()


def _masses(
    pairs: Sequence[ProbePair], side: str, kind: str = "region_mass"
) -> Float[np.ndarray, "probes attending heads"]:
    layers = _attending(pairs)
    return np.stack([getattr(getattr(pair, side), kind)[pair.region][layers] for pair in pairs])


def heads(
    pairs: Sequence[ProbePair], chances: Float[np.ndarray, "layers heads"] | None, least: float
) -> Json | None:
    """Heads whose attention on the region changed significantly more, or less, than on random places, by mean and ranks
    one way, by at least ``least``; smallest p first; at most 40.

    ``before``, ``after`` and ``difference`` are of the region, ``random`` of random places; ``lead`` is of the region
    over them (``relative_change`` of the masses crossed), and null where they were not measured: then heads are tested
    by the region's own change. ``relative_change`` is what was tested, whichever of the two. ``trained_on``: attention
    was trained on in the head's layer, so that it looks where it was told to.
    """
    members = _tested(pairs)
    if chances is None or not members:
        return None
    before, after = (_masses(members, side) for side in SIDES)
    beside = all(map(_has_random, members))
    random = [_masses(members, side, "random_mass") for side in SIDES] if beside else []
    change = relative_change(*_head_lead(members))
    one_way = agreed_direction(change, images_of(members)) != 0
    moved = (chances < SIGNIFICANT) & one_way & (np.abs(change.mean(0)) >= least)
    order = np.argsort(np.where(moved, chances, np.inf), axis=None, kind="stable")
    count = int(moved.sum())
    listed = []
    numbers = _attending(members)
    for place in order[: min(count, HEADS_LISTED)]:
        layer, head = divmod(int(place), chances.shape[1])
        listed.append(
            {
                "layer": numbers[layer],
                "head": head,
                "before": float(before[:, layer, head].mean()),
                "after": float(after[:, layer, head].mean()),
                "difference": float((after - before)[:, layer, head].mean()),
                "relative_change": float(change[:, layer, head].mean()),
                "lead": float(change[:, layer, head].mean()) if beside else None,
                "random": {
                    side: float(one[:, layer, head].mean()) for side, one in zip(SIDES, random, strict=True)
                }
                if beside
                else None,
                "p_adjusted": float(chances[layer, head]),
                "trained_on": any(pair.is_trained_on(numbers[layer]) for pair in members),
                "effect_size": effect_size(change[:, layer, head], images_of(members)),
            }
        )
    return {
        "tested": int(chances.size),
        "count": count,
        "over_random_places": beside,
        "significant": listed,
    }


def _random_enrichment(pairs: Sequence[ProbePair], rows: Sequence[int]) -> tuple[float, float] | None:
    """Enrichment of area-matched random regions in each probe's key layer, mean over probes, before and after; None if
    any probe lacks it. ``rows``: of the records."""
    found = [
        levels
        for pair, row in zip(pairs, rows, strict=True)
        if (levels := _levels(pair, "random_mass", row)) is not None
    ]
    if len(found) < len(pairs):
        return None
    before, after = np.mean(found, axis=0)
    return float(before), float(after)


def _without_sinks(pairs: Sequence[ProbePair], rows: Sequence[int], level: float) -> Change | None:
    """The judged region's enrichment with sinks left out, in probes whose records have sinks. ``rows`` as above."""
    found = [
        (pair, levels)
        for pair, row in zip(pairs, rows, strict=True)
        if (levels := _levels(pair, "region_mass_without_sinks", row)) is not None
    ]
    if not found:
        return None
    before, after = np.array([levels for _, levels in found]).T
    return paired_change(before, after, images_of([pair for pair, _ in found]), level=level)


def _levels(pair: ProbePair, kind: str, row: int) -> tuple[float, float] | None:
    """Enrichment by one of the records' masses in a key layer's map, before and after; None if not measured."""
    assert pair.region is not None
    before, after = (mass_on_map(getattr(pair, side), kind, pair.region, row) for side in SIDES)
    return None if before is None or after is None else (before / _share(pair), after / _share(pair))


def localisation(pairs: Sequence[ProbePair]) -> Json | None:
    """Other measures of the same maps, mean over heads first and then over probes: pointing game, IoU, AUC, NSS, and
    the entropy of the map, for each key layer that looks at the picture. null without regions (or with a region that
    covers every cell). ``trained_on``: attention was trained on in the layer, so that it looks where it was told to."""
    found: Json = {}
    for index, layer in enumerate(pairs[0].layers):
        scores: dict[str, list[tuple[float, float]]] = {}
        for pair in pairs:
            coverage = _coverage(pair)
            if coverage is None or coverage.min() > 0:
                continue
            maps = pair.layers[index].before, pair.layers[index].after
            if not (maps[0].any() and maps[1].any()):
                continue  # a window that does not reach the picture: nothing to point with
            grid = pair.after.image_tokens[0].grid
            for name, measure in _MAP_MEASURES.items():
                both = tuple(float(measure(cells, coverage, grid)) for cells in maps)
                scores.setdefault(name, []).append((both[0], both[1]))
        if scores:
            found[str(layer.layer)] = {
                name: dict(zip(SIDES, map(float, np.mean(values, axis=0)), strict=True))
                for name, values in scores.items()
            }
            found[str(layer.layer)]["trained_on"] = any(pair.is_trained_on(layer.layer) for pair in pairs)
    return found or None


_MAP_MEASURES: dict[str, Callable[..., Any]] = {
    "pointing_game": lambda cells, coverage, _: pointing_game(cells, coverage),
    "iou": iou,
    "auc": lambda cells, coverage, _: auc(cells, coverage),
    "nss": lambda cells, coverage, _: nss(cells, coverage),
    "entropy": lambda cells, coverage, _: entropy(cells),
}


def further_maps(pairs: Sequence[ProbePair]) -> Json | None:
    """Mean NSS of the judged region on the further maps (``--maps``), by layer ("all" for rollout). NSS accepts any
    map, including relative attention with its negative cells. null if no further map was measured.

    ``trained_on``: attention was trained on in the layer, in any for rollout, which multiplies those of all.
    """
    found: Json = {}
    judged = [pair for pair in pairs if pair.region is not None]
    for name in dict.fromkeys(name for pair in judged for name in pair.after.maps):
        measured = [pair for pair in judged if name in pair.before.maps and name in pair.after.maps]
        if not measured:
            continue
        layers = [*map(str, measured[0].after.layers)] if name != "rollout" else ["all"]
        found[name] = {}
        for row, layer in enumerate(layers):
            means = {
                side: float(np.mean([_nss(getattr(pair, side).maps[name][row], pair) for pair in measured]))
                for side in SIDES
            }
            found[name][layer] = {**means, "trained_on": _is_trained_on(measured, layer)}
    return found or None


def _is_trained_on(pairs: Sequence[ProbePair], layer: str) -> bool:
    """layer   "all": was attention trained on in any?"""
    if layer != "all":
        return any(pair.is_trained_on(int(layer)) for pair in pairs)
    records = [getattr(pair, side) for pair in pairs for side in SIDES]
    return any(one.supervised_layers or one.supervised_connector for one in records)


def _nss(cells: Float[np.ndarray, " cells"], pair: ProbePair) -> float:
    coverage = _coverage(pair)
    assert coverage is not None
    return float(nss(cells, coverage))


def sink_share_by_layer(pairs: Sequence[ProbePair]) -> Json | None:
    """Layer → share of the answer query's attention on its sinks, mean over heads and probes; null if no record has
    any."""
    measured = [pair for pair in pairs if pair.before.sinks.size and pair.after.sinks.size]
    if not any(getattr(pair, side).sinks.any() for pair in measured for side in SIDES):
        return None
    return {
        str(layer): {
            side: float(np.mean([_on_sinks(getattr(pair, side), row) for pair in measured])) for side in SIDES
        }
        for row, layer in enumerate(measured[0].after.layers)
    }


def _on_sinks(record: AttentionRecord, row: int) -> float:
    return float(sink_share(record.rows[row, :, 0], record.sinks[row]).mean())


def _coverage(pair: ProbePair) -> Float[np.ndarray, " cells"] | None:
    if pair.region is None:
        return None
    return region_coverage(pair.probe.regions[pair.region], pair.after.image_tokens[0])


def _share(pair: ProbePair) -> float:
    assert pair.region is not None
    return float(region_coverage(pair.probe.regions[pair.region], pair.after.image_tokens[0]).mean())
