"""Every number of a before / after comparison, as comparison.json holds it.

Differences are after − before; ``ci95`` is the paired bootstrap interval of the difference, whole images drawn with
replacement. A number that was not measured is null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diagnostics.causal import curve_area
from diagnostics.depth import CURVE_SHARES, KNOCKOUT, OCCLUSION
from diagnostics.drift import drift
from diagnostics.geometry import region_coverage
from diagnostics.metrics import auc, collapse, entropy, iou, nss, pointing_game
from diagnostics.pairs import Cost, LayerPair, ProbePair, cost, decisive_region, pairs_by_group
from diagnostics.records import AttentionRecord
from diagnostics.sinks import sink_share
from diagnostics.statistics import (
    Change,
    Interval,
    bootstrap_mean,
    effect_size,
    paired_change,
    probes_needed,
    relative_change,
    significant_heads,
)
from diagnostics.verdicts import SIGNIFICANT, GroupNumbers, Verdict, judged_layer, verdict

VERSION = 1
HEADS_LISTED = 40
SIDES = ("before", "after")

Json = dict[str, Any]
Heads = dict[str, Float[np.ndarray, "layers heads"]]


def comparison_of(pairs: Sequence[ProbePair], *, level: float = 0.95) -> Json:
    """The content of comparison.json but for ``series``. ``level`` is that of the intervals (``ci95`` keeps its name)
    and of what counts as significant."""
    groups = pairs_by_group(pairs)
    layers = _layer_chances(groups)
    heads = _head_chances(groups)
    return {
        "version": VERSION,
        "before": _model_words(pairs[0].before),
        "after": _model_words(pairs[0].after),
        "key_layers": [layer.layer for layer in pairs[0].layers],
        "collapse": _collapse(pairs),
        "groups": {
            name: _group(name, members, layers.get(name), heads.get(name), level)
            for name, members in groups.items()
        },
        "probes": [_probe(pair) for pair in pairs],
    }


# ---------------------------------------------------------------- a group


def _group(
    name: str,
    pairs: Sequence[ProbePair],
    layer_chances: Float[np.ndarray, "layers one"] | None,
    head_chances: Float[np.ndarray, "layers heads"] | None,
    level: float,
) -> Json:
    scored = [pair for pair in pairs if pair.after.scores.margin_nats is not None]
    by_layer = _enrichment_by_layer(pairs, layer_chances, level)
    judged = by_layer[_judged(by_layer, level)] if by_layer else None
    accuracy, margin = (_paired(scored, value, level) for value in (_is_right, _margin))
    costs = {kind: _costs(pairs, kind, level) for kind in (OCCLUSION, KNOCKOUT)}
    effect = judged.effect if judged is not None else _margin_effect(scored)
    claim = _verdict(name, pairs, accuracy, judged, costs, effect, level)
    return {
        "probes": len(pairs),
        "images": len(set(_images(pairs))),
        "accuracy": _change_json(accuracy),
        "margin_nats": _change_json(margin),
        "said_the_answer": _said_the_answer(pairs),
        "enrichment": None if judged is None else judged.json(),
        "enrichment_by_layer": [one.json() for one in by_layer],
        "localisation": _localisation(pairs),
        "further_maps": _further_maps(pairs),
        "heads": _heads(pairs, head_chances),
        "effect_size": effect,
        "probes_needed": probes_needed(effect),
        "relation_enrichment": _relation_enrichment(pairs),
        "relation": _relation(pairs),
        "decides": {side: _decides(pairs, side) for side in SIDES},
        "occlusion_nats": _costs_json(costs[OCCLUSION]),
        "knockout_nats": _costs_json(costs[KNOCKOUT]),
        "knockout_windows": _windows(pairs),
        "curves": _curves(pairs),
        "visual_share": _by_layer(pairs, _visual_share),
        "sink_share": _sink_share(pairs),
        "drift_jsd_nats": _by_layer(pairs, lambda pair, layer: layer.drift_jsd_nats),
        "drift": _by_layer(pairs, _drift),
        "verdict": claim.verdict,
        "reasons": list(claim.reasons),
    }


@dataclass(frozen=True)
class LayerEnrichment:
    """A group's enrichment of the judged region in one key layer.

    chance          p that it did not change, adjusted for all groups and key layers that were looked at
    random          enrichment of area-matched random regions (before, after); None where not measured
    without_sinks   the change with sinks left out; None where no sink was found
    relative        mean ``relative_change``: what a typical probe's attention changed by
    effect          effect size of the relative change, standard deviations; None where it has none
    """

    layer: int
    region: str
    change: Change
    chance: float
    random: tuple[float, float] | None
    without_sinks: Change | None
    relative: Interval
    effect: float | None

    def json(self) -> Json:
        """As comparison.json has it."""
        return {
            "layer": self.layer,
            "region": self.region,
            **(_change_json(self.change) or {}),
            "p_adjusted": self.chance,
            "relative_change": {"mean": self.relative.mean, "ci95": [self.relative.low, self.relative.high]},
            "effect_size": self.effect,
            "random": None if self.random is None else dict(zip(SIDES, self.random, strict=True)),
            "without_sinks": _change_json(self.without_sinks),
        }


def _enrichment_by_layer(
    pairs: Sequence[ProbePair], chances: Float[np.ndarray, "layers one"] | None, level: float
) -> list[LayerEnrichment]:
    members = [pair for pair in pairs if pair.region is not None]
    if not members or chances is None:
        return []
    regions = sorted({pair.region for pair in members if pair.region is not None})
    images = _images(members)
    found = []
    for index, layer in enumerate(members[0].layers):
        before, after = _enrichments(members, index)
        found.append(
            LayerEnrichment(
                layer=layer.layer,
                region=regions[0] if len(regions) == 1 else "each probe's own",
                change=paired_change(before, after, images, level=level),
                chance=float(chances[index, 0]),
                random=_random_enrichment(members, layer.layer),
                without_sinks=_without_sinks(members, layer.layer, level),
                relative=bootstrap_mean(relative_change(before, after), images, level=level),
                effect=effect_size(relative_change(before, after), images),
            )
        )
    return found


def _judged(by_layer: Sequence[LayerEnrichment], level: float) -> int:
    alpha = min(SIGNIFICANT, 1 - level)
    return judged_layer([one.relative for one in by_layer], [one.chance for one in by_layer], alpha=alpha)


def _enrichments(pairs: Sequence[ProbePair], layer_index: int) -> tuple[np.ndarray, np.ndarray]:
    readings = [pair.reading(pair.layers[layer_index]) for pair in pairs]
    return (
        np.array([reading.enrichment_before for reading in readings if reading is not None]),
        np.array([reading.enrichment_after for reading in readings if reading is not None]),
    )


def _layer_chances(groups: Mapping[str, Sequence[ProbePair]]) -> Heads:
    """p of each group's key layers, adjusted for all of them."""
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
            images[name] = _images(members)
    return significant_heads(before, after, images)


def _head_chances(groups: Mapping[str, Sequence[ProbePair]]) -> Heads:
    """p of every layer and head, adjusted for all of them in all groups."""
    with_region = {name: [p for p in pairs if p.region is not None] for name, pairs in groups.items()}
    members = {name: pairs for name, pairs in with_region.items() if pairs}
    before, after = ({name: _masses(pairs, side) for name, pairs in members.items()} for side in SIDES)
    return significant_heads(before, after, {name: _images(pairs) for name, pairs in members.items()})


def _masses(pairs: Sequence[ProbePair], side: str) -> Float[np.ndarray, "probes layers heads"]:
    return np.stack([getattr(pair, side).region_mass[pair.region] for pair in pairs])


def _heads(pairs: Sequence[ProbePair], chances: Float[np.ndarray, "layers heads"] | None) -> Json | None:
    """The heads whose attention on the region changed, the surest first, at most 40 of them listed."""
    members = [pair for pair in pairs if pair.region is not None]
    if chances is None or not members:
        return None
    before, after = (_masses(members, side) for side in SIDES)
    change = relative_change(before, after)
    order = np.argsort(chances, axis=None, kind="stable")
    count = int((chances < SIGNIFICANT).sum())
    listed = []
    for place in order[: min(count, HEADS_LISTED)]:
        layer, head = divmod(int(place), chances.shape[1])
        listed.append(
            {
                "layer": layer,
                "head": head,
                "before": float(before[:, layer, head].mean()),
                "after": float(after[:, layer, head].mean()),
                "difference": float((after - before)[:, layer, head].mean()),
                "p_adjusted": float(chances[layer, head]),
                "effect_size": effect_size(change[:, layer, head], _images(members)),
            }
        )
    return {"tested": int(chances.size), "count": count, "significant": listed}


def _random_enrichment(pairs: Sequence[ProbePair], layer: int) -> tuple[float, float] | None:
    """Enrichment that area-matched random regions get in a layer, mean over heads and probes, before and after."""
    if not all(pair.region in getattr(pair, side).random_mass for pair in pairs for side in SIDES):
        return None
    means = [
        np.mean([getattr(pair, side).random_mass[pair.region][layer].mean() / _share(pair) for pair in pairs])
        for side in SIDES
    ]
    return float(means[0]), float(means[1])


def _without_sinks(pairs: Sequence[ProbePair], layer: int, level: float) -> Change | None:
    """The judged region's enrichment with sinks left out, in probes whose records found some."""
    found = [
        pair
        for pair in pairs
        if all(pair.region in getattr(pair, side).region_mass_without_sinks for side in SIDES)
    ]
    if not found:
        return None
    before, after = (
        np.array(
            [getattr(p, side).region_mass_without_sinks[p.region][layer].mean() / _share(p) for p in found]
        )
        for side in SIDES
    )
    return paired_change(before, after, _images(found), level=level)


def _localisation(pairs: Sequence[ProbePair]) -> Json | None:
    """Other measures of the same maps, mean over heads first and then over probes: pointing game, IoU, AUC, NSS, and
    the entropy of the map; for each key layer. null without regions (or with one that covers every cell)."""
    found: Json = {}
    for index, layer in enumerate(pairs[0].layers):
        scores: dict[str, list[tuple[float, float]]] = {}
        for pair in pairs:
            coverage = _coverage(pair)
            if coverage is None or coverage.min() > 0:
                continue
            maps = pair.layers[index].before, pair.layers[index].after
            grid = pair.after.image_tokens[0].grid
            for name, measure in _MAP_MEASURES.items():
                both = tuple(float(measure(cells, coverage, grid)) for cells in maps)
                scores.setdefault(name, []).append((both[0], both[1]))
        if scores:
            found[str(layer.layer)] = {
                name: dict(zip(SIDES, map(float, np.mean(values, axis=0)), strict=True))
                for name, values in scores.items()
            }
    return found or None


_MAP_MEASURES: dict[str, Callable[..., Any]] = {
    "pointing_game": lambda cells, coverage, _: pointing_game(cells, coverage),
    "iou": iou,
    "auc": lambda cells, coverage, _: auc(cells, coverage),
    "nss": lambda cells, coverage, _: nss(cells, coverage),
    "entropy": lambda cells, coverage, _: entropy(cells),
}


def _further_maps(pairs: Sequence[ProbePair]) -> Json | None:
    """Mean NSS of the judged region on the further maps that were asked for, by layer ("all" for rollout): it reads any
    map, also relative attention's, which has negative cells. null where none was asked for."""
    found: Json = {}
    measured = [pair for pair in pairs if pair.region is not None and pair.before.maps and pair.after.maps]
    for name in dict.fromkeys(name for pair in measured for name in pair.after.maps):
        layers = [*map(str, measured[0].after.layers)] if name != "rollout" else ["all"]
        found[name] = {}
        for row, layer in enumerate(layers):
            found[name][layer] = {
                side: float(np.mean([_nss(getattr(pair, side).maps[name][row], pair) for pair in measured]))
                for side in SIDES
            }
    return found or None


def _nss(cells: Float[np.ndarray, " cells"], pair: ProbePair) -> float:
    coverage = _coverage(pair)
    assert coverage is not None
    return float(nss(cells, coverage))


def _sink_share(pairs: Sequence[ProbePair]) -> Json | None:
    """Layer → share of the answer query's attention on the sinks found there, mean over heads and probes; null where
    no record has any."""
    if not any(getattr(pair, side).sinks.any() for pair in pairs for side in SIDES):
        return None
    return {
        str(layer): {
            side: float(np.mean([_on_sinks(getattr(pair, side), row) for pair in pairs])) for side in SIDES
        }
        for row, layer in enumerate(pairs[0].after.layers)
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


# ---------------------------------------------------------------- answers


def _is_right(record: AttentionRecord) -> float:
    return float((record.scores.margin_nats or 0.0) > 0)


def _margin(record: AttentionRecord) -> float:
    return record.scores.margin_nats or 0.0


def _paired(
    pairs: Sequence[ProbePair], value: Callable[[AttentionRecord], float], level: float
) -> Change | None:
    if not pairs:
        return None
    before, after = (np.array([value(getattr(pair, side)) for pair in pairs]) for side in SIDES)
    return paired_change(before, after, _images(pairs), level=level)


def _margin_effect(scored: Sequence[ProbePair]) -> float | None:
    if not scored:
        return None
    change = np.array([_margin(pair.after) - _margin(pair.before) for pair in scored])
    return effect_size(change, _images(scored))


def _said_the_answer(pairs: Sequence[ProbePair]) -> Json | None:
    """Share of probes whose own greedy answer contains the right one, letter for letter but for case."""
    asked = [pair for pair in pairs if pair.before.scores.generated and pair.after.scores.generated]
    if not asked:
        return None
    return {
        side: float(
            np.mean([p.probe.answer.lower() in getattr(p, side).scores.generated.lower() for p in asked])
        )
        for side in SIDES
    }


# ---------------------------------------------------------------- cause


@dataclass(frozen=True)
class CostChange:
    """What an intervention on the judged region costs, and the same on random regions, nats; ``over_control`` is the
    paired difference region − control after."""

    region: Change
    control: tuple[float, float]
    over_control: Interval | None


def _costs(pairs: Sequence[ProbePair], kind: str, level: float) -> CostChange | None:
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
    images = _images(members)
    over = region[1] - control[1]
    return CostChange(
        paired_change(region[0], region[1], images, level=level),
        (float(control[0].mean()), float(control[1].mean())),
        bootstrap_mean(over, images, level=level) if np.isfinite(over).all() else None,
    )


def _costs_json(costs: CostChange | None) -> Json | None:
    if costs is None:
        return None
    control = [_finite(value) for value in costs.control]
    over = costs.over_control
    return {
        **(_change_json(costs.region) or {}),
        "control": dict(zip(SIDES, control, strict=True)),
        "over_control": None if over is None else {"mean": over.mean, "ci95": [over.low, over.high]},
    }


def _decides(pairs: Sequence[ProbePair], side: str) -> Json:
    """Region → share of the probes whose own answer loses most when it is hidden in the picture."""
    named = [decisive_region(pair.probe, getattr(pair, side), OCCLUSION) for pair in pairs]
    found = [name for name in named if name is not None]
    return {
        name: found.count(name) / len(found) for name in sorted(set(found), key=lambda n: -found.count(n))
    }


def _windows(pairs: Sequence[ProbePair]) -> list[Json]:
    """What cutting the answer query from the judged region costs in one window of layers at a time, nats."""
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


def _curves(pairs: Sequence[ProbePair]) -> Json | None:
    """Mean margins over shares of the picture hidden or shown, nats, and the area below each."""
    measured = [pair for pair in pairs if pair.before.curves and pair.after.curves]
    if not measured:
        return None
    found: Json = {}
    for name in measured[0].after.curves:
        means = {
            side: np.mean([getattr(pair, side).curves[name] for pair in measured], axis=0) for side in SIDES
        }
        found[name] = {side: [float(value) for value in mean] for side, mean in means.items()}
        found[name]["area"] = {side: curve_area(mean, CURVE_SHARES) for side, mean in means.items()}
    return found


# ---------------------------------------------------------------- the verdict


def _verdict(
    name: str,
    pairs: Sequence[ProbePair],
    accuracy: Change | None,
    judged: LayerEnrichment | None,
    costs: Mapping[str, CostChange | None],
    effect: float | None,
    level: float,
) -> Verdict:
    if accuracy is None:
        return Verdict(
            "answers not measured", ("No probe of this group has a foil to set against its answer.",)
        )
    hidden, cut = (_with_control(costs[kind]) for kind in (OCCLUSION, KNOCKOUT))
    claim = verdict(
        GroupNumbers(
            group=name,
            probes=len(pairs),
            images=len(set(_images(pairs))),
            accuracy=accuracy,
            enrichment=None if judged is None else judged.change,
            enrichment_relative=None if judged is None else judged.relative,
            enrichment_chance=None if judged is None else judged.chance,
            effect_size=effect,
            occlusion_cost_nats=None if hidden is None else hidden.region,
            control_cost_nats=None if hidden is None else hidden.control,
            occlusion_over_control=None if hidden is None else hidden.over_control,
            knockout_cost_nats=None if cut is None else cut.region,
            knockout_control_nats=None if cut is None else cut.control,
            knockout_over_control=None if cut is None else cut.over_control,
        ),
        level=level,
    )
    return Verdict(claim.verdict, (*claim.reasons, *_layer_reason(claim.verdict, judged, pairs)))


def _with_control(costs: CostChange | None) -> CostChange | None:
    return costs if costs is not None and all(map(math.isfinite, costs.control)) else None


def _layer_reason(claim: str, judged: LayerEnrichment | None, pairs: Sequence[ProbePair]) -> list[str]:
    if judged is None or claim in ("kept", "forgot", "broke a neighbour", "too few probes"):
        return []  # these verdicts rest on answers alone
    layers = [layer.layer for layer in pairs[0].layers]
    return [
        f"Attention is that of layer {judged.layer}, of the key layers {', '.join(map(str, layers))} fixed before "
        f"training (p = {judged.chance:.2g}, adjusted for every group and layer looked at)."
    ]


# ---------------------------------------------------------------- relations, layers, the whole model


def _relation_enrichment(pairs: Sequence[ProbePair]) -> Json | None:
    """The answer query's enrichment of both ends of the relation, for each key layer; null without a relation."""
    related = [pair for pair in pairs if pair.probe.relation is not None]
    if not related:
        return None
    ends: Json = {}
    for end in ("subject", "object"):
        ends[end] = []
        for index, layer in enumerate(related[0].layers):
            readings = [pair.layers[index].readings[getattr(pair.probe.relation, end)] for pair in related]
            change = paired_change(
                np.array([reading.enrichment_before for reading in readings]),
                np.array([reading.enrichment_after for reading in readings]),
                clusters=_images(related),
            )
            ends[end].append({"layer": layer.layer, **(_change_json(change) or {})})
    return ends


def _relation(pairs: Sequence[ProbePair]) -> Json | None:
    """Readings of the relation (``diagnostics.relations``), mean over key layers (or the tower's), heads and probes,
    and ``phrase/both``, the smaller of the two ends in each probe, layer and head."""
    related = [pair for pair in pairs if pair.before.relation and pair.after.relation]
    if not related:
        return None
    names = list(dict.fromkeys(name for pair in related for name in _readings(pair.after)))
    found: Json = {}
    for name in names:
        having = [
            pair for pair in related if name in _readings(pair.before) and name in _readings(pair.after)
        ]
        before, after = (
            np.array([_readings(getattr(pair, side))[name] for pair in having]) for side in SIDES
        )
        if having:
            found[name] = {
                **(_change_json(paired_change(before, after, _images(having))) or {}),
                "probes": len(having),
            }
    return found


def _readings(record: AttentionRecord) -> dict[str, float]:
    key = list(record.layers)
    found = {
        name: float((values if name.startswith("vision") else values[key]).mean())
        for name, values in record.relation.items()
    }
    if "phrase/subject" in found and "phrase/object" in found:
        both = np.minimum(record.relation["phrase/subject"], record.relation["phrase/object"])
        found["phrase/both"] = float(both[key].mean())
    return found


def _by_layer(pairs: Sequence[ProbePair], value: Callable[[ProbePair, LayerPair], Any]) -> Json:
    """Layer → mean over the probes of a number, or of several under names of their own."""
    means: Json = {}
    for index, layer in enumerate(pairs[0].layers):
        values = [value(pair, pair.layers[index]) for pair in pairs]
        if isinstance(values[0], dict):
            means[str(layer.layer)] = {key: float(np.mean([one[key] for one in values])) for key in values[0]}
        else:
            means[str(layer.layer)] = float(np.mean(values))
    return means


def _visual_share(pair: ProbePair, layer: LayerPair) -> dict[str, float]:
    return {side: float(getattr(pair, side).visual_share[layer.layer].mean()) for side in SIDES}


def _drift(pair: ProbePair, layer: LayerPair) -> dict[str, float]:
    """More at the image, elsewhere in it, and how far: see ``diagnostics.drift.Drift``."""
    share = _visual_share(pair, layer)
    grid = pair.after.image_tokens[0].grid
    found = drift(layer.before, layer.after, np.array(share["before"]), np.array(share["after"]), grid)
    return {name: float(value) for name, value in found._asdict().items()}


def _collapse(pairs: Sequence[ProbePair]) -> Json | None:
    """Are heads freezing on single tokens? Of the means over all probes; null where it was not measured."""
    if not all(getattr(pair, side).head_entropy.size for pair in pairs for side in SIDES):
        return None
    means = [
        np.mean([getattr(getattr(pair, side), what) for pair in pairs], axis=0)
        for what in ("head_entropy", "highest_logit")
        for side in SIDES
    ]
    found = collapse(*means)
    return {**found._asdict(), "lowest_entropy": found.lowest_entropy._asdict()}


def lost_groups(pairs: Sequence[ProbePair]) -> list[str]:
    """One sentence for each group that must be kept and is not."""
    sentences = []
    for name, members in pairs_by_group(pairs).items():
        scored = [pair for pair in members if pair.after.scores.margin_nats is not None]
        accuracy = _paired(scored, _is_right, 0.95)
        if accuracy is None:
            continue
        claim = verdict(GroupNumbers(group=name, probes=len(members), accuracy=accuracy))
        if claim.verdict in ("forgot", "broke a neighbour"):
            sentences.append(f"{name}: {claim.verdict}. {claim.reasons[0]}")
    return sentences


# ---------------------------------------------------------------- a probe


def _probe(pair: ProbePair) -> Json:
    probe, before, after = pair.probe, pair.before.scores, pair.after.scores
    return {
        "id": probe.id,
        "group": probe.group,
        "question": probe.question,
        "answer": probe.answer,
        "foil": probe.foil,
        "region": pair.region,
        "said": {"before": before.generated, "after": after.generated},
        "margin_nats": {"before": before.margin_nats, "after": after.margin_nats},
        "correct": {
            "before": None if before.margin_nats is None else before.margin_nats > 0,
            "after": None if after.margin_nats is None else after.margin_nats > 0,
        },
        "decides": {side: decisive_region(pair.probe, getattr(pair, side), OCCLUSION) for side in SIDES},
        "occlusion_nats": _probe_costs(pair, OCCLUSION),
        "knockout_nats": _probe_costs(pair, KNOCKOUT),
        "layers": [_probe_layer(layer) for layer in pair.layers],
    }


def _probe_costs(pair: ProbePair, kind: str) -> Json | None:
    before, after = (cost(getattr(pair, side), kind, pair.region) for side in SIDES)
    if before is None or after is None:
        return None
    return {
        "before": before.region,
        "after": after.region,
        "control": {"before": _finite(before.control), "after": _finite(after.control)},
    }


def _probe_layer(layer: LayerPair) -> Json:
    return {
        "layer": layer.layer,
        "drift_jsd_nats": layer.drift_jsd_nats,
        "regions": {
            name: {
                "mass": {"before": reading.mass_before, "after": reading.mass_after},
                "enrichment": {"before": reading.enrichment_before, "after": reading.enrichment_after},
            }
            for name, reading in layer.readings.items()
        },
    }


def _images(pairs: Sequence[ProbePair]) -> list[str]:
    return [str(pair.probe.images[0].resolve()) for pair in pairs]


def _change_json(change: Change | None) -> Json | None:
    if change is None:
        return None
    interval = change.difference
    return {
        "before": change.before,
        "after": change.after,
        "difference": interval.mean,
        "ci95": [interval.low, interval.high],
    }


def _model_words(record: AttentionRecord) -> Json:
    return {"model": record.model, "step": record.step}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
