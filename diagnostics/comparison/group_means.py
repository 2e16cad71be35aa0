"""Further means over a group, before and after: relations, visual share and drift by key layer, head collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diagnostics.comparison.pairs import SIDES, LayerPair, ProbePair, images_of
from diagnostics.measures.attention import collapse
from diagnostics.measures.drift import drift
from diagnostics.measures.geometry import attention_on_cells
from diagnostics.measures.statistics import paired_change
from diagnostics.records.record import AttentionRecord

Json = dict[str, Any]


def relation_enrichment(pairs: Sequence[ProbePair]) -> Json | None:
    """The answer query's enrichment of both ends of the relation, for each key layer; null without a relation.

    ``trained_on``: attention was trained on in the layer, so that it looks where it was told to.
    """
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
                clusters=images_of(related),
            )
            told = any(pair.is_trained_on(layer.layer) for pair in related)
            ends[end].append({"layer": layer.layer, "trained_on": told, **change.json()})
    return ends


def relation(pairs: Sequence[ProbePair]) -> Json | None:
    """Readings of the relation (``diagnostics.probing.relations``), mean over key layers (or the tower's), heads
    and probes, and ``phrase/both``: in each layer and head of a probe the smaller of the two ends. Where one head looks
    at the subject and another at the object, it is below both means.

    ``trained_on``: attention was trained on in a key layer; never of the tower's layers, where none is.
    """
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
                **paired_change(before, after, images_of(having)).json(),
                "probes": len(having),
                "trained_on": not _is_of_tower(name)
                and any(pair.is_trained_on(layer.layer) for pair in having for layer in pair.layers),
            }
    return found


def _readings(record: AttentionRecord) -> dict[str, float]:
    key = list(record.layers)
    found = {
        name: float((values if _is_of_tower(name) else values[key]).mean())
        for name, values in record.relation.items()
    }
    if "phrase/subject" in found and "phrase/object" in found:
        both = np.minimum(record.relation["phrase/subject"], record.relation["phrase/object"])
        found["phrase/both"] = float(both[key].mean())
    return found


def _is_of_tower(name: str) -> bool:
    return name.startswith("vision")


def mean_by_layer(pairs: Sequence[ProbePair], value: Callable[[ProbePair, LayerPair], Any]) -> Json:
    """Layer → mean over the probes of one number, or of several named ones; of a number that is None for some of them,
    over the others, and None where it is for all."""
    means: Json = {}
    for index, layer in enumerate(pairs[0].layers):
        values = [value(pair, pair.layers[index]) for pair in pairs]
        if isinstance(values[0], dict):
            means[str(layer.layer)] = {key: _mean([one[key] for one in values]) for key in values[0]}
        else:
            means[str(layer.layer)] = _mean(values)
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None


def visual_share(pair: ProbePair, layer: LayerPair) -> dict[str, float]:
    """Share of the answer query's attention on all pictures of the probe, mean over heads."""
    return {side: float(getattr(pair, side).visual_share[layer.layer].mean()) for side in SIDES}


def drift_of(pair: ProbePair, layer: LayerPair) -> dict[str, float | None]:
    """Drift of attention to, within and across the first picture, which the maps are of: see
    ``diagnostics.measures.drift.Drift``; None for what is not measured. Not of ``visual_share``, which counts every
    picture of the probe."""
    shares = [np.array(_on_first_picture(getattr(pair, side), layer.layer)) for side in SIDES]
    grid = pair.after.image_tokens[0].grid
    found = drift(layer.before, layer.after, shares[0], shares[1], grid)
    return {name: None if np.isnan(value) else float(value) for name, value in found._asdict().items()}


def _on_first_picture(record: AttentionRecord, layer: int) -> float:
    """Share of the answer query's row in a key layer that lies on the first picture, mean over heads."""
    row = record.rows[record.layers.index(layer), :, 0].mean(0)
    connector = record.connector[0] if record.connector else None
    return float(attention_on_cells(row, record.image_tokens[0], connector).sum())


def collapse_of(pairs: Sequence[ProbePair]) -> Json | None:
    """Whether heads collapse onto single tokens, from means over all probes; null if not measured."""
    if not all(getattr(pair, side).head_entropy.size for pair in pairs for side in SIDES):
        return None
    means = [
        np.mean([getattr(getattr(pair, side), what) for pair in pairs], axis=0)
        for what in ("head_entropy", "highest_logit")
        for side in SIDES
    ]
    attending = np.flatnonzero(np.isfinite(means[0]).all(1))  # the others have no attention map
    found = collapse(*(one[attending] for one in means))
    lowest = found.lowest_entropy._replace(layer=int(attending[found.lowest_entropy.layer]))
    return {**found._asdict(), "lowest_entropy": lowest._asdict()}
