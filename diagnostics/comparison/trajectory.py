"""Answers and attention over any number of checkpoints.

Numbers over steps (``series_of``) for comparison.json and the report, and the maps of one probe over steps on one
colour scale (``strip_maps``). Works on records, without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diagnostics.comparison.box_answers import outcome_with_box
from diagnostics.comparison.maps import CellMap, Strip, StripPanel
from diagnostics.comparison.pairs import cost, layer_cells, was_trained_on
from diagnostics.measures.attention import enrichment, jensen_shannon_nats, region_mass
from diagnostics.measures.drift import look_at_both, principal_plane
from diagnostics.records.measurement_plan import OCCLUSION
from diagnostics.records.probes import Probe, groups_of
from diagnostics.records.record import AttentionRecord
from finetune.families.parts.coverage import region_coverage

Json = dict[str, Any]
Records = Mapping[str, AttentionRecord]


@dataclass(frozen=True)
class Evolution:
    """Records of the same probes and key layers at several checkpoints, in training order.

    steps      ascending; drift is measured from the first
    names      display names of the checkpoints
    records    one for each step: probe id → record

    Raises:
        ValueError: steps do not ascend, or a step lacks a probe, or differs in layers or picture layout, so that a
            line through the steps would be meaningless.
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    records: tuple[Records, ...]

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.names) == len(self.records) or not self.steps:
            raise ValueError(
                f"evolution: found {len(self.steps)} steps, {len(self.names)} names and {len(self.records)} sets of "
                "records; expected one of each for every checkpoint, and at least one checkpoint"
            )
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(
                f"evolution: found steps {list(self.steps)}; expected each once, ascending; leave out checkpoints of "
                "other runs"
            )
        for step, records in zip(self.steps, self.records, strict=True):
            _require_same_probes(self.steps[0], self.records[0], step, records)
            for name, record in records.items():
                _require_same_layers(self.layers, step, record)
                _require_same_layout(self.steps[0], self.records[0][name], step, record)

    @property
    def layers(self) -> tuple[int, ...]:
        """The key layers of all records."""
        return next(iter(self.records[0].values())).layers

    def of(self, probe_id: str) -> list[AttentionRecord]:
        """One probe's records, one per step.

        Raises:
            ValueError: no record of this probe.
        """
        if probe_id not in self.records[0]:
            raise ValueError(
                f"probe {probe_id}: found no record at step {self.steps[0]}; expected one, probe all checkpoints with "
                "the same probe file"
            )
        return [records[probe_id] for records in self.records]


def evolution_of(checkpoints: Mapping[int, Records]) -> Evolution:
    """Step → records, in any order, as an Evolution; a checkpoint takes its name from its records.

    Raises:
        ValueError: as ``Evolution``; also a step without any record.
    """
    empty = [step for step, records in checkpoints.items() if not records]
    if empty:
        raise ValueError(
            f"step {empty[0]}: found no records; expected one for each probe; leave the step out"
        )
    steps = tuple(sorted(checkpoints))
    records = tuple(checkpoints[step] for step in steps)
    return Evolution(steps, tuple(next(iter(one.values())).model for one in records), records)


def series_of(
    probes: Sequence[Probe], evolution: Evolution, read: Mapping[str, ProbeSeries] | None = None
) -> Json:
    """Every number over steps, the ``series`` of comparison.json; each list has one number per step.

    ::

        steps, names      of the checkpoints
        accuracy          {group: share of probes with a positive margin, [0, 1]}
        margin_nats       {group: mean of log p(answer) - log p(foil)}
        enrichment        {group: {key layer: mean of the judged region's, times}}
        drift_jsd_nats    {key layer: mean distance of the maps from the first step's, [0, ln 2], of probes whose rows
                          look at the picture at both; None where none does}
        visual_share      {key layer: mean attention on image tokens, [0, 1]}
        trajectories      {probe: {"points": one pair per step, "explained": share of variance in the plane, [0, 1]}}

    Groups without a foil, or without a region, are omitted from what needs one. A trajectory is a projection of the
    maps of all key layers onto their principal plane; axes are in shares of attention and differ from probe to probe.

    read   of ``read_series``, where it is at hand

    Raises:
        ValueError: a probe has no records.
    """
    read = read_series(probes, evolution) if read is None else read
    margins: dict[str, list[np.ndarray]] = {}
    enrichments: dict[str, list[np.ndarray]] = {}
    for name, members in groups_of(probes).items():
        for one in (read[probe.id] for probe in members):
            if one.margins_nats is not None:
                margins.setdefault(name, []).append(one.margins_nats)
            if one.enrichment is not None:
                enrichments.setdefault(name, []).append(one.enrichment)
    return {
        "steps": list(evolution.steps),
        "names": list(evolution.names),
        "accuracy": {name: _means([one > 0 for one in of_group]) for name, of_group in margins.items()},
        "margin_nats": {name: _means(of_group) for name, of_group in margins.items()},
        "enrichment": {name: _by_layer(evolution, of_group) for name, of_group in enrichments.items()},
        "drift_jsd_nats": _drift_by_layer(evolution, [one.drift_jsd_nats for one in read.values()]),
        "visual_share": _by_layer(evolution, [one.visual_share for one in read.values()]),
        "trajectories": {name: one.trajectory for name, one in read.items()},
    }


def read_series(probes: Sequence[Probe], evolution: Evolution) -> dict[str, ProbeSeries]:
    """Probe id → its numbers over all steps.

    Raises:
        ValueError: a probe has no records.
    """
    return {probe.id: _read(probe, evolution) for probe in probes}


def strip_maps(probe: Probe, evolution: Evolution, layer: int) -> Strip:
    """One probe and key layer over all steps, on one scale: maps, readings of the judged region, answers.

    Raises:
        ValueError: no record of the probe, or a layer that is not a key layer.
    """
    if layer not in evolution.layers:
        raise ValueError(
            f"layer {layer}: found key layers {list(evolution.layers)}; expected one of them: other layers have no maps"
        )
    records = evolution.of(probe.id)
    row, image = evolution.layers.index(layer), records[0].image_tokens[0]
    region = probe.main_region
    coverage = None if region is None else region_coverage(probe.regions[region], image)
    return Strip(
        layer=layer,
        panels=tuple(
            StripPanel(
                step=step,
                map=CellMap(cells * cells.size, image.grid, image.cell_boxes_pixels),
                mass=None if coverage is None else float(region_mass(cells, coverage)),
                enrichment=None if coverage is None else float(enrichment(cells, coverage)),
                outcome=outcome_with_box(probe, region, record),
            )
            for step, record, cells in zip(evolution.steps, records, _maps(records)[:, row], strict=True)
        ),
        trained_on=was_trained_on(layer, *records),
    )


def evenly_chosen(count: int, most: int) -> list[int]:
    """Indices of at most ``most`` of ``count`` items, evenly spaced, including the first and the last.

    10 items, 4 wanted → [0, 3, 6, 9].

    Raises:
        ValueError: ``most`` below 2, which cannot hold both ends.
    """
    if most < 2:
        raise ValueError(f"most: found {most}; expected at least 2: the first and the last")
    if count <= most:
        return list(range(count))
    return [round(place) for place in np.linspace(0, count - 1, most)]


@dataclass(frozen=True)
class ProbeSeries:
    """One probe over all steps.

    layers             the key layers, in the order of the arrays
    margins_nats       Float[steps]; None without a foil
    enrichment         Float[steps, layers] of the judged region; None without one
    costs_nats         Float[steps], what hiding the judged region costs beyond hiding a random place of its size; NaN
                       at steps where it was not measured
    drift_jsd_nats     Float[steps, layers], from the first step; NaN where the row does not look at the picture at one
    visual_share       Float[steps, layers], mean over heads
    trajectory         as in ``series`` of comparison.json
    """

    layers: tuple[int, ...]
    margins_nats: np.ndarray | None
    enrichment: np.ndarray | None
    costs_nats: np.ndarray
    drift_jsd_nats: np.ndarray
    visual_share: np.ndarray
    trajectory: Json


def _read(probe: Probe, evolution: Evolution) -> ProbeSeries:
    """A probe's numbers, in one pass over its records, which may be large and read from disk."""
    records = evolution.of(probe.id)
    maps, image, region = _maps(records), records[0].image_tokens[0], probe.main_region
    plane = principal_plane(maps.reshape(len(maps), -1))
    return ProbeSeries(
        layers=evolution.layers,
        margins_nats=None if probe.foil is None else np.array([_margin(record) for record in records]),
        enrichment=None
        if region is None
        else enrichment(maps, region_coverage(probe.regions[region], image)),
        costs_nats=np.array([_over_control(record, region) for record in records]),
        drift_jsd_nats=np.where(look_at_both(maps[:1], maps), jensen_shannon_nats(maps, maps[:1]), np.nan),
        visual_share=np.stack([record.visual_share[list(record.layers)].mean(axis=1) for record in records]),
        trajectory={
            "points": [[float(x), float(y)] for x, y in plane.points],
            "explained": float(plane.explained_share),
        },
    )


def _maps(records: Sequence[AttentionRecord]) -> Float[np.ndarray, "steps layers cells"]:
    return np.stack([layer_cells(record) for record in records])


def _margin(record: AttentionRecord) -> float:
    margin = record.scores.margin_nats
    if margin is None:
        raise ValueError(
            f"probe {record.probe_id}: found no score of the foil at step {record.step}; expected one: probe that "
            "checkpoint again with the same probe file"
        )
    return margin


def _over_control(record: AttentionRecord, region: str | None) -> float:
    found = cost(record, OCCLUSION, region)
    return np.nan if found is None else found.region - found.control


def _means(values: Sequence[Float[np.ndarray, " steps"]]) -> list[float]:
    """The mean over probes at each step."""
    return [float(value) for value in np.mean(values, axis=0)]


def _by_layer(
    evolution: Evolution, values: Sequence[Float[np.ndarray, "steps layers"]]
) -> dict[str, list[float]]:
    """The mean over probes at each step, by key layer; JSON keys are strings."""
    means = np.mean(values, axis=0)
    return {str(layer): [float(v) for v in means[:, row]] for row, layer in enumerate(evolution.layers)}


def _drift_by_layer(
    evolution: Evolution, values: Sequence[Float[np.ndarray, "steps layers"]]
) -> dict[str, list[float | None]]:
    """The mean at each step over the probes of which it is not NaN, by key layer."""
    stacked = np.stack(values)
    measured = np.isfinite(stacked)
    sums, counts = np.where(measured, stacked, 0.0).sum(0), measured.sum(0)
    return {
        str(layer): [
            float(of_all / count) if count else None
            for of_all, count in zip(sums[:, row], counts[:, row], strict=True)
        ]
        for row, layer in enumerate(evolution.layers)
    }


def _require_same_probes(first_step: int, first: Records, step: int, records: Records) -> None:
    missing = [name for name in first if name not in records]
    added = [name for name in records if name not in first]
    if missing or added:
        lacking, name, having = (step, missing[0], first_step) if missing else (first_step, added[0], step)
        raise ValueError(
            f"step {lacking}: found no record of probe {name}, which step {having} has ({len(missing) + len(added)} "
            "such probes); expected the same probes at every step: probe that checkpoint again or leave it out"
        )


def _require_same_layers(layers: tuple[int, ...], step: int, record: AttentionRecord) -> None:
    if record.layers != layers:
        raise ValueError(
            f"step {step}, probe {record.probe_id}: found key layers {list(record.layers)}, others have "
            f"{list(layers)}; expected the same everywhere: probe all checkpoints with the same --key_layers"
        )


def _require_same_layout(first_step: int, first: AttentionRecord, step: int, record: AttentionRecord) -> None:
    before, now = first.image_tokens[0], record.image_tokens[0]
    for what, expected, found in (
        ("a grid of", before.grid, now.grid),
        ("an image of", before.image_size_pixels, now.image_size_pixels),
    ):
        if expected != found:
            raise ValueError(
                f"step {step}, probe {record.probe_id}: found {what} {found}, step {first_step} has {expected}; "
                "expected the same at every step: probe all checkpoints with the same pictures"
            )
