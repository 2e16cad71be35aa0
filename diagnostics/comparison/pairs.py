"""One probe before and after: two records → maps, region changes and costs. Comparison, drawings and TensorBoard use
the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diagnostics.comparison.maps import CellMap, LayerMaps, RegionChange
from diagnostics.measures.attention import enrichment, jensen_shannon_nats, region_mass
from diagnostics.measures.drift import look_at_both
from diagnostics.measures.geometry import (
    attention_on_cells,
    cells_from_row,
    shared_area_pixels,
    union_area_pixels,
)
from diagnostics.measures.sinks import without_sinks
from diagnostics.records.pictures import picture_mark
from diagnostics.records.probe_marks import probe_mark
from diagnostics.records.probes import Probe
from diagnostics.records.record import AttentionRecord, Intervention
from finetune.families.parts.coverage import Box, region_coverage

SIDES = ("before", "after")
CLOSE = 0.9  # of the largest shift: parts of a region within this range count as tied
LEAST_SHIFT, LEAST_SHIFT_NATS = 0.1, 0.1  # of the margin, and nats: the least shift of a decisive region
LEAD = 1.2  # times the next region's shift
NESTED = 0.8  # share of a region's area


class Cost(NamedTuple):
    """Cost of an intervention on a region: margin without it minus margin with it, nats.

    ``control`` is the mean cost of the same intervention on area-matched random regions.
    """

    region: float
    control: float


@dataclass(frozen=True)
class LayerPair:
    """One key layer of one probe.

    layer            index of the language layer
    before, after    Float[cells]: the answer query's attention over the first picture's cells, mean over heads,
                     sums to 1
    readings         region name → mass and enrichment of both
    drift_jsd_nats   drift of the attention within the picture, [0, ln 2]; None if the row does not look at it on a side
    """

    layer: int
    before: Float[np.ndarray, " cells"]
    after: Float[np.ndarray, " cells"]
    readings: Mapping[str, RegionChange]
    drift_jsd_nats: float | None

    @property
    def is_empty_once(self) -> bool:
        """Does the row look at the picture on one side alone, as where half precision rounds it to 0 on the other?"""
        return bool(self.before.any() != self.after.any())


@dataclass(frozen=True)
class ProbePair:
    """One probe and its two records; ``region`` is the judged one, None if the probe has none."""

    probe: Probe
    before: AttentionRecord
    after: AttentionRecord
    region: str | None
    layers: tuple[LayerPair, ...]

    @property
    def trained_picture(self) -> bool:
        """Is a picture of the probe in the training data, of either model?"""
        return any(record.trained_picture for record in (self.before, self.after))

    def is_trained_on(self, layer: int) -> bool:
        """Was attention trained on in this layer, or in the resampler through which it looks, before or after?"""
        return was_trained_on(layer, self.before, self.after)

    def reading(self, layer: LayerPair) -> RegionChange | None:
        """Mass and enrichment of the judged region."""
        return None if self.region is None else layer.readings[self.region]

    def maps(self) -> list[LayerMaps]:
        """The maps to draw: density (1 is the even share) and readings, the judged region's first."""
        image = self.before.image_tokens[0]
        return [
            LayerMaps(
                layer=pair.layer,
                before=CellMap(pair.before * pair.before.size, image.grid, image.cell_boxes_pixels),
                after=CellMap(pair.after * pair.after.size, image.grid, image.cell_boxes_pixels),
                readings=tuple(pair.readings[name] for name in self.region_order()),
                trained_on=self.is_trained_on(pair.layer),
            )
            for pair in self.layers
        ]

    def region_order(self) -> list[str]:
        """Names of the regions, the judged one first."""
        return sorted(self.probe.regions, key=lambda name: name != self.region)


def was_trained_on(layer: int, *records: AttentionRecord) -> bool:
    """Was attention trained on in this layer, or in the resampler through which it looks, of any of these models?"""
    return any(layer in one.supervised_layers or one.supervised_connector for one in records)


def pair_records(probe: Probe, before: AttentionRecord, after: AttentionRecord) -> ProbePair:
    """Pair two records of one probe.

    Raises:
        ValueError: the records differ in probe, key layers or picture layout, so that a difference would be
            meaningless; or one of them lacks a region of the probe.
    """
    for record in (before, after):
        _require_of(probe, record)
    _require_same(probe, before, after)
    _require_same_places(probe, before, after)
    image = after.image_tokens[0]
    coverage = {name: region_coverage(boxes, image) for name, boxes in probe.regions.items()}
    cells = [layer_cells(record) for record in (before, after)]
    layers = tuple(
        LayerPair(
            layer=layer,
            before=cells[0][row],
            after=cells[1][row],
            readings={
                name: RegionChange(name, *_readings(cells[0][row], cells[1][row], weights))
                for name, weights in coverage.items()
            },
            drift_jsd_nats=_drift(cells[0][row], cells[1][row]),
        )
        for row, layer in enumerate(after.layers)
    )
    return ProbePair(probe, before, after, probe.main_region, layers)


def _drift(before: Float[np.ndarray, " cells"], after: Float[np.ndarray, " cells"]) -> float | None:
    return float(jensen_shannon_nats(before, after)) if look_at_both(before, after) else None


def layer_cells(record: AttentionRecord) -> Float[np.ndarray, "layers cells"]:
    """The answer query's attention over the first picture, mean over heads, for each key layer; rows sum to 1."""
    connector = record.connector[0] if record.connector else None
    return cells_from_row(record.rows[:, :, 0].mean(axis=1), record.image_tokens[0], connector)


def mass_on_map(record: AttentionRecord, kind: str, region: str, row: int) -> float | None:
    """The share of one key layer's map (``layer_cells``) that lies on other places than a region, range [0, 1].

    Records keep such masses by head, each a share of the head's own attention to the picture; in the map, a mean of
    rows, a head counts by how much it looks at the picture. Mean masses of heads are another number: of two heads with
    .6 and .01 of their attention on the picture, the second would count as much.

    kind   of ``AttentionRecord``'s masses: "random_mass", "salient_mass", "region_mass_without_sinks"
    row    of ``record.rows``: the key layer

    None where it was not measured, or where nothing lies on the picture.
    """
    masses = getattr(record, kind).get(region)
    if masses is None:
        return None
    rows = record.rows[row, :, 0]
    if kind == "region_mass_without_sinks":
        rows = without_sinks(rows, record.sinks[row])
    connector = record.connector[0] if record.connector else None
    weights = attention_on_cells(rows, record.image_tokens[0], connector).sum(-1)
    total = float(weights.sum())
    return float(weights @ masses[record.layers[row]]) / total if total > 0 else None


def cost(
    record: AttentionRecord, kind: str, region: str | None, layers: tuple[int, int] | None = None
) -> Cost | None:
    """Cost of occlusion or knock-out of ``region``; None if it was not measured (or there is no foil).

    ``layers`` is the window of a knock-out; None: everywhere.
    """
    margin = record.scores.margin_nats
    for one in record.interventions:
        if (one.kind, one.region, one.layers) == (kind, region, layers) and margin is not None:
            controls = one.control_margins_nats
            control = margin - float(np.mean(controls)) if controls else float("nan")
            return Cost(margin - one.margin_nats, control)
    return None


def decisive_region(probe: Probe, record: AttentionRecord, kind: str) -> str | None:
    """The region that the margin depends on most, in whichever direction hiding it shifts the margin; None without one.

    A shift is measured beyond that of the region's controls. It must be at least 10 % of the margin and .1 nats, and
    20 % above that of the next region: at .2 nats, noise determines the largest. Regions may be nested (spheres in a
    tower's body): among a region and parts with the same shift, within 10 %, the smallest is the most specific, and
    regions that contain it do not compete. Margin 5 nats, shifts of body 5, spheres 4.6 and sky .1: the spheres.

    Also None with interventions on fewer than two regions, since there is nothing to compare.
    """
    margin = record.scores.margin_nats
    tried = [one for one in record.interventions if one.kind == kind and one.layers is None]
    if margin is None or len(tried) < 2:
        return None
    shifts = {one.region: shift(margin, one) for one in tried}
    largest = max(shifts, key=shifts.__getitem__)
    if shifts[largest] < max(LEAST_SHIFT_NATS, LEAST_SHIFT * abs(margin)):
        return None
    boxes = probe.regions
    alike = [
        name
        for name in shifts
        if shifts[name] >= CLOSE * shifts[largest] and nested(boxes[name], boxes[largest])
    ]
    chosen = min([largest, *alike], key=lambda name: union_area_pixels(boxes[name]))
    rivals = [shifts[name] for name in shifts if not related(probe, name, chosen)]
    return chosen if shifts[chosen] >= LEAD * max(rivals, default=0.0) else None


def shift(margin_nats: float, one: Intervention) -> float:
    """Absolute shift of the margin by an intervention, beyond its controls; nats, may be below 0."""
    controls = [abs(margin_nats - control) for control in one.control_margins_nats]
    return abs(margin_nats - one.margin_nats) - (float(np.mean(controls)) if controls else 0.0)


def nested(inner: Sequence[Box], outer: Sequence[Box]) -> bool:
    """Whether at least 80 % of a region lies within another."""
    return shared_area_pixels(inner, outer) >= NESTED * union_area_pixels(inner)


def related(probe: Probe, first: str, second: str) -> bool:
    """Whether two regions count as the same place: one within the other, or the two ends of the probe's relation."""
    ends = probe.relation[1:] if probe.relation is not None else ()
    if first == second or (first in ends and second in ends):
        return True
    one, other = probe.regions[first], probe.regions[second]
    return nested(one, other) or nested(other, one)


def images_of(pairs: Sequence[ProbePair]) -> list[str]:
    """The picture of each pair, by content: probes with the same picture form one cluster, even under other names."""
    return [picture_mark(pair.probe.images[0]) for pair in pairs]


def trained_words(pairs: Sequence[ProbePair], of: str = "") -> str:
    """ "in 12 of 40 probes a picture is in the training data, the first is p-003"; "" where none is.

    of   what stands behind "probes"
    """
    trained = [pair.probe.id for pair in pairs if pair.trained_picture]
    if not trained:
        return ""
    return f"in {len(trained)} of {len(pairs)} probes{of} a picture is in the training data, the first is {trained[0]}"


def pairs_by_group(pairs: Sequence[ProbePair]) -> dict[str, list[ProbePair]]:
    """Pairs by group, in the order in which groups appear."""
    groups: dict[str, list[ProbePair]] = {}
    for pair in pairs:
        groups.setdefault(pair.probe.group, []).append(pair)
    return groups


def pair_all(
    probes: Sequence[Probe], before: Mapping[str, AttentionRecord], after: Mapping[str, AttentionRecord]
) -> list[ProbePair]:
    """All probes paired, in the order of the probe file.

    Raises:
        ValueError: a probe lacks a record, no probe is left, or probes differ in key layers or heads.
    """
    missing = [probe.id for probe in probes if probe.id not in before or probe.id not in after]
    if missing or not probes:
        raise ValueError(
            f"{len(missing)} of {len(probes)} probes lack a record before or after ({', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}); probe both models with the same probe file"
        )
    pairs = [pair_records(probe, before[probe.id], after[probe.id]) for probe in probes]
    first = pairs[0].after
    for pair in pairs[1:]:
        one = pair.after
        for what, found, expected in (
            ("layers", one.layers, first.layers),
            ("heads", one.rows.shape[1], first.rows.shape[1]),
            ("number of layers", len(one.visual_share), len(first.visual_share)),
        ):
            if found != expected:
                raise ValueError(
                    f"probe {pair.probe.id}: {what}: found {found}; expected {expected}, as in probe "
                    f"{first.probe_id}: probe all of them with the same key layers"
                )
    return pairs


def _readings(
    before: Float[np.ndarray, " cells"],
    after: Float[np.ndarray, " cells"],
    weights: Float[np.ndarray, " cells"],
) -> tuple[float, float, float, float]:
    mass = (float(region_mass(before, weights)), float(region_mass(after, weights)))
    return (*mass, float(enrichment(before, weights)), float(enrichment(after, weights)))


def _require_of(probe: Probe, record: AttentionRecord) -> None:
    """Raises ValueError unless the record is of this probe."""
    where = f"probe {probe.id}, record of step {record.step}"
    if record.probe_id != probe.id:
        raise ValueError(
            f"{where}: found probe_id {record.probe_id!r}; expected {probe.id!r}, one record per probe"
        )
    if record.probe_mark and record.probe_mark != probe_mark(probe):
        raise ValueError(
            f"{where}: it was measured with another question, answer, foil, region, phrase or picture; expected "
            "records of the same probe file and pictures: give those, or probe again"
        )
    if not record.image_tokens:
        raise ValueError(f"{where}: found no picture; expected at least one: probe again")
    _require_finite(where, record)
    regions = {*record.region_mass, *(one.region for one in record.interventions)}
    for found, expected, what in (
        (regions, probe.regions, "a region that the probe does not have"),
        (probe.regions, record.region_mass, "no measurements of the region"),
    ):
        if missing := sorted(set(found) - set(expected)):
            raise ValueError(
                f"{where}: found {what}: {', '.join(map(repr, missing[:5]))}; expected records of the same probe file: "
                "give that file, or probe again"
            )


def _require_finite(where: str, record: AttentionRecord) -> None:
    """Raises ValueError for a score or margin that is not finite: it would spread to every mean of its group."""
    values = {"scores.answer_nats": record.scores.answer_nats, "scores.foil_nats": record.scores.foil_nats}
    for one in record.interventions:
        for value in (one.margin_nats, *one.control_margins_nats):
            if not math.isfinite(value):
                values[f"a margin after {one.kind} of {one.region!r} or of its controls"] = value
    for control in record.picture_controls:
        values[f"the margin with the picture {control.kind!r}"] = control.margin_nats
    for patch in record.patches:
        values[f"the margin with the attention of {patch.part} {list(patch.layers)} put back"] = (
            patch.margin_nats
        )
    if record.patched_from is not None:
        values["the margin of the model whose attention was put back"] = record.patched_from.margin_nats
    for name, found in values.items():
        if found is not None and not math.isfinite(found):
            raise ValueError(
                f"{where}: found {found} as {name}; expected a finite number: check whether training diverged, or "
                "leave the probe out"
            )


def _require_same_places(probe: Probe, before: AttentionRecord, after: AttentionRecord) -> None:
    """Raises ValueError if a measure was taken on both sides, but not for the same regions."""
    measured: list[tuple[str, Iterable[str], Iterable[str]]] = [
        ("random regions", before.random_mass, after.random_mass),
        ("attention without sinks", before.region_mass_without_sinks, after.region_mass_without_sinks),
    ]
    kinds = {one.kind: None for side in (before, after) for one in side.interventions}
    for kind in kinds:
        first, second = (
            [one.region for one in side.interventions if one.kind == kind] for side in (before, after)
        )
        measured.append((kind, first, second))
    for what, *sides in measured:
        one, other = (sorted({*side}) for side in sides)
        if one and other and one != other:
            raise ValueError(
                f"probe {probe.id}: {what} is measured on the regions {one} before (step {before.step}) and {other} "
                f"after (step {after.step}); expected the same: probe both models with the same probe file"
            )


def _require_same(probe: Probe, before: AttentionRecord, after: AttentionRecord) -> None:
    for what, first, second in (
        ("probe_id", before.probe_id, after.probe_id),
        ("layers", before.layers, after.layers),
        ("heads", before.rows.shape[1], after.rows.shape[1]),
        ("number of layers", len(before.visual_share), len(after.visual_share)),
        ("scores of a foil", before.scores.foil_nats is not None, after.scores.foil_nats is not None),
        ("regions", sorted(before.region_mass), sorted(after.region_mass)),
        ("grid", before.image_tokens[0].grid, after.image_tokens[0].grid),
        (
            "image_size_pixels",
            before.image_tokens[0].image_size_pixels,
            after.image_tokens[0].image_size_pixels,
        ),
    ):
        if first != second:
            raise ValueError(
                f"probe {probe.id}: records differ in {what}: {first} before (step {before.step}), {second} after "
                f"(step {after.step}); probe both models with the same settings"
            )
