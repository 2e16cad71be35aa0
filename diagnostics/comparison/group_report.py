"""Every number of a before / after comparison, as written to comparison.json.

Differences are after − before; ``ci95`` is the paired bootstrap interval of the difference, resampling whole
images. A number that was not measured is null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from diagnostics.comparison.enrichment import (
    LayerEnrichment,
    enrichment_by_layer,
    further_maps,
    head_chances,
    heads,
    judged_index,
    layer_chances,
    localisation,
    sink_share_by_layer,
)
from diagnostics.comparison.group_means import (
    collapse_of,
    drift_of,
    mean_by_layer,
    relation,
    relation_enrichment,
    visual_share,
)
from diagnostics.comparison.intervention_costs import (
    CostChange,
    cost_changes,
    costs_json,
    curves,
    decides,
    probe_costs,
    windows,
)
from diagnostics.comparison.pairs import (
    SIDES,
    LayerPair,
    ProbePair,
    decisive_region,
    images_of,
    pairs_by_group,
)
from diagnostics.comparison.verdicts import GroupNumbers, Verdict, verdict
from diagnostics.measures.answers import says
from diagnostics.measures.statistics import Change, effect_size, paired_change, probes_needed
from diagnostics.records.measurement_plan import KNOCKOUT, OCCLUSION
from diagnostics.records.record import AttentionRecord

VERSION = 1

Json = dict[str, Any]


def comparison_of(pairs: Sequence[ProbePair], *, level: float = 0.95) -> Json:
    """The content of comparison.json except ``series``. ``level`` is that of the intervals (``ci95`` keeps its name)
    and of what counts as significant."""
    groups = pairs_by_group(pairs)
    layers = layer_chances(groups)
    heads = head_chances(groups)
    return {
        "version": VERSION,
        "before": _model_words(pairs[0].before),
        "after": _model_words(pairs[0].after),
        "key_layers": [layer.layer for layer in pairs[0].layers],
        "collapse": collapse_of(pairs),
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
    by_layer = enrichment_by_layer(pairs, layer_chances, level)
    judged = by_layer[judged_index(by_layer, level)] if by_layer else None
    accuracy, margin = (_paired(scored, value, level) for value in (_is_right, _margin))
    costs = {kind: cost_changes(pairs, kind, level) for kind in (OCCLUSION, KNOCKOUT)}
    effect = judged.effect if judged is not None else _margin_effect(scored)
    claim = _verdict(name, pairs, accuracy, judged, costs, effect, level)
    return {
        "probes": len(pairs),
        "images": len(set(images_of(pairs))),
        "accuracy": None if accuracy is None else accuracy.json(),
        "margin_nats": None if margin is None else margin.json(),
        "said_the_answer": _said_the_answer(pairs),
        "enrichment": None if judged is None else judged.json(),
        "enrichment_by_layer": [one.json() for one in by_layer],
        "localisation": localisation(pairs),
        "further_maps": further_maps(pairs),
        "heads": heads(pairs, head_chances),
        "effect_size": effect,
        "probes_needed": probes_needed(effect),
        "relation_enrichment": relation_enrichment(pairs),
        "relation": relation(pairs),
        "decides": {side: decides(pairs, side) for side in SIDES},
        "occlusion_nats": costs_json(costs[OCCLUSION]),
        "knockout_nats": costs_json(costs[KNOCKOUT]),
        "knockout_windows": windows(pairs),
        "curves": curves(pairs),
        "visual_share": mean_by_layer(pairs, visual_share),
        "sink_share": sink_share_by_layer(pairs),
        "drift_jsd_nats": mean_by_layer(pairs, lambda pair, layer: layer.drift_jsd_nats),
        "drift": mean_by_layer(pairs, drift_of),
        "verdict": claim.verdict,
        "reasons": list(claim.reasons),
    }


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
    return paired_change(before, after, images_of(pairs), level=level)


def _margin_effect(scored: Sequence[ProbePair]) -> float | None:
    if not scored:
        return None
    change = np.array([_margin(pair.after) - _margin(pair.before) for pair in scored])
    return effect_size(change, images_of(scored))


def _said_the_answer(pairs: Sequence[ProbePair]) -> Json | None:
    """Share of probes whose greedy answer says the right one, and not the foil (``measures.answers.says``)."""
    asked = [pair for pair in pairs if pair.before.scores.generated and pair.after.scores.generated]
    if not asked:
        return None
    return {
        side: float(
            np.mean([says(getattr(p, side).scores.generated, p.probe.spellings, p.probe.foil) for p in asked])
        )
        for side in SIDES
    }


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
            "answers not measured", ("No probe of this group has a foil to compare with its answer.",)
        )
    hidden, cut = (_with_control(costs[kind]) for kind in (OCCLUSION, KNOCKOUT))
    claim = verdict(
        GroupNumbers(
            group=name,
            probes=len(pairs),
            images=len(set(images_of(pairs))),
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
        f"Attention is judged in layer {judged.layer}, one of the key layers {', '.join(map(str, layers))} fixed "
        f"before training (p = {judged.chance:.2g}, adjusted for every group and layer tested)."
    ]


def lost_groups(pairs: Sequence[ProbePair]) -> list[str]:
    """One sentence for each group that should have been kept and was not."""
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
        "occlusion_nats": probe_costs(pair, OCCLUSION),
        "knockout_nats": probe_costs(pair, KNOCKOUT),
        "layers": [_probe_layer(layer) for layer in pair.layers],
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


def _model_words(record: AttentionRecord) -> Json:
    return {"model": record.model, "step": record.step}
