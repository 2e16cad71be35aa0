"""Every number of a before / after comparison, as written to comparison.json.

Differences are after − before; ``ci95`` is the paired bootstrap interval of the difference, resampling whole
pictures. A number that was not measured is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from diagnostics.comparison.answer_warnings import answer_warnings
from diagnostics.comparison.box_answers import box_answers
from diagnostics.comparison.enrichment import (
    LayerEnrichment,
    enrichment_by_layer,
    fallen_layers,
    further_maps,
    head_chances,
    heads,
    layer_chances,
    localisation,
    pooled_chances,
    reading_json,
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
    cost_changes,
    costs_json,
    curves,
    decides,
    probe_costs,
    windows,
)
from diagnostics.comparison.legs.answers import answers_of, no_answers
from diagnostics.comparison.legs.attention import Reading, attention_leg, read_attention, unseen
from diagnostics.comparison.legs.cause import cause_leg
from diagnostics.comparison.legs.guards import guards_leg
from diagnostics.comparison.legs.mediation import Mediation, mediated_nats, mediation_of
from diagnostics.comparison.legs.picture import picture_leg
from diagnostics.comparison.pairs import (
    SIDES,
    LayerPair,
    ProbePair,
    decisive_region,
    images_of,
    pairs_by_group,
    trained_words,
)
from diagnostics.comparison.precision_warning import precision_warnings
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.comparison.verdicts import Evidence, Legs, lost, verdict
from diagnostics.measures.statistics import Change, effect_size, paired_change, probes_needed
from diagnostics.records.measurement_plan import KNOCKOUT, OCCLUSION, TOWER_KNOCKOUT
from diagnostics.records.record import AttentionRecord

VERSION = 1

Json = dict[str, Any]


def comparison_of(
    pairs: Sequence[ProbePair],
    *,
    level: float = 0.95,
    thresholds: Thresholds | None = None,
    why_not_patched: str | None = None,
) -> Json:
    """The content of comparison.json except ``series``.

    level            of intervals (``ci95`` keeps its name) and of significance
    thresholds       what each leg of a verdict requires
    why_not_patched  why the attention of the model before was not put back, for the verdicts' reasons
    """
    asked = thresholds or Thresholds()
    groups = pairs_by_group(pairs)
    layers, head_p = layer_chances(groups), head_chances(groups)
    mediation = {
        name: mediation_of(members, asked, level, why_not=why_not_patched) for name, members in groups.items()
    }
    attention = {
        name: read_attention(members, mediated_nats, asked, level) for name, members in groups.items()
    }
    readings = {name: one for name, one in attention.items() if one is not None}
    chances = pooled_chances(readings)
    context = _Context(groups, asked, level)
    return {
        "version": VERSION,
        "before": _model_words(pairs[0].before),
        "after": _model_words(pairs[0].after),
        "key_layers": [layer.layer for layer in pairs[0].layers],
        "thresholds": asdict(asked),
        "collapse": collapse_of(pairs),
        "groups": {
            name: _group(
                name,
                context,
                _Looking(
                    attention[name],
                    chances.get(name),
                    enrichment_by_layer(members, layers.get(name), level),
                    heads(members, head_p.get(name), asked.move),
                ),
                mediation[name],
            )
            for name, members in groups.items()
        },
        "probes": [_probe(pair) for pair in pairs],
    }


class _Context(NamedTuple):
    groups: Mapping[str, Sequence[ProbePair]]
    thresholds: Thresholds
    level: float


class _Looking(NamedTuple):
    """A group's attention: read in cross-fitted layers, its p value, each key layer, and every head."""

    reading: Reading | None
    chance: float | None
    by_layer: list[LayerEnrichment]
    heads: Json | None


# ---------------------------------------------------------------- a group


def _group(name: str, context: _Context, looking: _Looking, mediation: Mediation) -> Json:
    groups, thresholds, level = context
    pairs = groups[name]
    reading = looking.reading
    scored = [pair for pair in pairs if pair.after.scores.margin_nats is not None]
    answers = answers_of(pairs, thresholds, level)
    margin = _margin_change(scored, level)
    costs = {kind: cost_changes(pairs, kind, level) for kind in (OCCLUSION, KNOCKOUT, TOWER_KNOCKOUT)}
    effect = reading.effect if reading is not None else _margin_effect(scored)
    fallen = fallen_layers(looking.by_layer, thresholds.move, level)
    attention, moved = attention_leg(
        reading, looking.chance, fallen, thresholds, level, why_not=unseen(pairs).sentence
    )
    legs = Legs(
        no_answers(thresholds) if answers is None else answers.leg,
        picture_leg(pairs, thresholds, level),
        attention,
        cause_leg(pairs, costs[OCCLUSION], thresholds, level),
        mediation.leg,
        guards_leg(name, groups, thresholds, level),
    )
    claim = verdict(
        Evidence(
            name,
            len(scored),
            len(set(images_of(scored))),
            answers,
            moved,
            legs,
            effect,
            trained_words(pairs),
        ),
        thresholds,
    )
    return {
        "probes": len(pairs),
        "images": len(set(images_of(pairs))),
        "accuracy": None if answers is None else answers.json(),
        "margin_nats": None if margin is None else margin.json(),
        "said_the_answer": None
        if answers is None or answers.said is None
        else dict(zip(SIDES, answers.said, strict=True)),
        "speech_lost": None if answers is None else answers.speech_json(),
        "boxes": box_answers(pairs),
        "enrichment": None
        if reading is None or looking.chance is None
        else reading_json(reading, looking.chance, level),
        "enrichment_by_layer": [one.json() for one in looking.by_layer],
        "localisation": localisation(pairs),
        "further_maps": further_maps(pairs),
        "heads": looking.heads,
        "effect_size": effect,
        "probes_needed": probes_needed(effect),
        "relation_enrichment": relation_enrichment(pairs),
        "relation": relation(pairs),
        "decides": {side: decides(pairs, side) for side in SIDES},
        "occlusion_nats": costs_json(costs[OCCLUSION]),
        "knockout_nats": costs_json(costs[KNOCKOUT]),
        "tower_knockout_nats": costs_json(costs[TOWER_KNOCKOUT]),
        "knockout_windows": windows(pairs),
        "curves": curves(pairs),
        "visual_share": mean_by_layer(pairs, visual_share),
        "sink_share": sink_share_by_layer(pairs),
        "drift_jsd_nats": mean_by_layer(pairs, lambda pair, layer: layer.drift_jsd_nats),
        "drift": mean_by_layer(pairs, drift_of),
        "warnings": [*answer_warnings(pairs), *precision_warnings(pairs)],
        "mediation": [one.json() for one in mediation.parts],
        "legs": legs.json(),
        "verdict": claim.verdict,
        "reasons": list(claim.reasons),
    }


def _margin(record: AttentionRecord) -> float:
    return record.scores.margin_nats or 0.0


def _margin_change(scored: Sequence[ProbePair], level: float) -> Change | None:
    if not scored:
        return None
    before, after = (np.array([_margin(getattr(pair, side)) for pair in scored]) for side in SIDES)
    return paired_change(before, after, images_of(scored), level=level)


def _margin_effect(scored: Sequence[ProbePair]) -> float | None:
    if not scored:
        return None
    change = np.array([_margin(pair.after) - _margin(pair.before) for pair in scored])
    return effect_size(change, images_of(scored))


def lost_groups(pairs: Sequence[ProbePair]) -> list[str]:
    """One sentence for each group that should have been kept but was lost, even with few probes."""
    sentences = []
    for name, members in pairs_by_group(pairs).items():
        claim = lost(name, answers_of(members, Thresholds(), 0.95))
        if claim is not None:
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
