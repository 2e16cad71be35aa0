"""A model and its probes → a diagnosis of each group. The model is used as it is in memory and never loaded again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import nn

from diagnostics.comparison.legs.answers import is_right
from diagnostics.diagnosis.contrasts import Contrast, contrast_of
from diagnostics.diagnosis.evidence import Case, Evidence, evidence_of, is_at_fault
from diagnostics.diagnosis.features import Asked, Features, features_of
from diagnostics.diagnosis.looking import unsupervised
from diagnostics.diagnosis.remedies import Remedy, remedy_of
from diagnostics.diagnosis.stages import Stage, stage_of
from diagnostics.diagnosis.states import words_differ
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.probing.prober import BATCH_SIZE, Prober, auto_key_layers
from diagnostics.records.measurement_plan import OCCLUSION, PICTURES, MeasurementPlan
from diagnostics.records.probes import KEPT_SHARE, Probe, groups_of
from diagnostics.records.record import AttentionRecord
from finetune.families import bare_model, family_of
from finetune.families.parts.modules import attending_layers, check_measurable
from finetune.model.look_file import Supervised

LOOK_LAYERS = 4
"""Layers to supervise, at most: each costs a part of a step."""
ASKED = MeasurementPlan("diagnosis", generate=False, pictures=PICTURES)
"""What is measured of every probe, beside attention: is the answer asked of the picture?"""
HIDDEN = MeasurementPlan("diagnosis", generate=False, kinds=(OCCLUSION,), controls=2)
"""What is measured where a group is wrong: what the answer depends on."""

Json = dict[str, Any]


@dataclass(frozen=True)
class GroupDiagnosis:
    """One group: what was measured, the stage that it points to, and what may mend it."""

    evidence: Evidence
    stage: Stage
    remedy: Remedy

    def as_json(self) -> Json:
        return {
            "probes": self.evidence.probes,
            "pictures": self.evidence.pictures,
            "accuracy": self.evidence.accuracy,
            "pictures_right": self.evidence.pictures_right,
            "stage": self.stage.name,
            "reason": self.stage.reason,
            "decides": self.evidence.decides,
            "evidence": {name: leg.json() for name, leg in self.evidence.tests.items()},
            **self.remedy.as_json(),
        }


@dataclass(frozen=True)
class Diagnosis:
    """Group → its diagnosis, and the records that it rests on by probe id.

    trained   where attention was trained on, and what of it is judged; "" where it was not
    """

    model: str
    family: str
    groups: Mapping[str, GroupDiagnosis]
    records: Mapping[str, AttentionRecord]
    trained: str = ""

    def stage(self, group: str) -> str | None:
        """The stage of a group; None where none was found."""
        return self.groups[group].stage.name

    def to_bytes(self) -> bytes:
        """diagnosis.json, whole."""
        text = json.dumps(self.as_json(), ensure_ascii=False, indent=1, allow_nan=False)
        return (text + "\n").encode()

    def as_json(self) -> Json:
        """The content of diagnosis.json."""
        return {
            "version": 1,
            "model": {"name": self.model, "family": self.family},
            "attention_trained_on": self._supervision(),
            "groups": {name: one.as_json() for name, one in self.groups.items()},
        }

    def _supervision(self) -> Json | None:
        if not self.trained:
            return None
        records = self.records.values()
        return {
            "layers": sorted({layer for one in records for layer in one.supervised_layers}),
            "connector": any(one.supervised_connector for one in records),
            "words": self.trained,
        }


def diagnose_model(
    model: nn.Module,
    processor: Any,
    probes: Sequence[Probe],
    *,
    seed: int = 0,
    thresholds: Thresholds | None = None,
    progress: bool = False,
    name: str = "model",
    probe_file: str = "probes.json",
    records: Mapping[str, AttentionRecord] | None = None,
    supervised: Supervised | None = None,
    batch_size: int = BATCH_SIZE,
) -> Diagnosis:
    """Where does this model lose the right answer, for each group of probes?

    name, probe_file   of model and probes, as remedies name them
    records   of these probes by this very model, with regions hidden and pictures replaced, where they are at hand
              (a monitor's step 0): they are not measured again, but for regions of groups to be kept that are wrong
    supervised   its attention that was trained on, by the notes beside its weights (``trained_on``); records at hand
                 say it themselves
    batch_size   as for ``Prober``

    The model is left as it was, hooks and patches included. Raises ValueError naming the probe that it cannot read, and
    the first whose margin is not finite, and for a model that cannot be measured (``check_measurable``).
    """
    check_measurable(model)
    thresholds, family = thresholds or Thresholds(), family_of(bare_model(model).config)
    make = partial(Prober, model, processor, probes=probes, batch_size=batch_size)
    if records is None:
        prober = make(key_layers=key_layers_of(model, supervised), depth=ASKED, supervised=supervised)
        records = _probed(prober, thresholds, name=name, progress=progress)
    elif lacking := _lacking(records, probes, thresholds):
        prober = make(key_layers=records[probes[0].id].layers, autocast=_autocast(model))
        records = _with_hidden(prober, records, lacking, progress=progress)
    check_finite([records[probe.id] for probe in probes])
    groups = groups_of(probes)
    contrasts = {
        group: contrast_of(group, groups, each_answer=thresholds.each_answer)
        for group in groups
        if is_at_fault([records[probe.id] for probe in groups[group]], groups[group], thresholds)
    }
    own, lent = _features(model, processor, probes, contrasts, progress=progress)
    cases = {probe.id: Case(probe, records[probe.id], own.get(probe.id)) for probe in probes}
    found = {}
    for group, members in groups.items():
        evidence = evidence_of(
            [cases[probe.id] for probe in members],
            cases,
            contrasts.get(group),
            lent=lent.get(group, {}),
            thresholds=thresholds,
            seed=seed,
        )
        stage = stage_of(evidence, thresholds)
        remedy = remedy_of(
            stage,
            members,
            decides=evidence.decides,
            model=name,
            probe_file=probe_file,
            resampler=family.paths.connector_attention is not None,
            look_layers=others_of(records[members[0].id]),
        )
        found[group] = GroupDiagnosis(evidence, stage, remedy)
    trained = unsupervised([records[probe.id] for probe in probes]).sentence
    return Diagnosis(name, family.name, found, records, trained)


def others_of(record: AttentionRecord) -> list[int]:
    """At most ``LOOK_LAYERS`` of the attending language layers that are not the record's key layers, evenly spaced."""
    attending = np.flatnonzero(np.isfinite(record.visual_share).all(axis=1))
    return _spread([int(layer) for layer in attending if layer not in record.layers], LOOK_LAYERS)


def _spread(layers: Sequence[int], most: int) -> list[int]:
    places = np.linspace(0, len(layers) - 1, min(most, len(layers))).round().astype(int)
    return [layers[place] for place in places]


def key_layers_of(model: nn.Module, supervised: Supervised | None) -> tuple[int, ...]:
    """``auto_key_layers``; where attention was trained on in one of them, as many of the other layers, as far as there
    are any: what a model was told to look at says nothing of it."""
    evenly = auto_key_layers(model)
    trained = set[int]() if supervised is None else {*supervised.layers}
    if trained.isdisjoint(evenly):
        return evenly
    attending = attending_layers(bare_model(model), family_of(bare_model(model).config))
    others = [layer for layer in attending if layer not in trained]
    return tuple(_spread(others, len(evenly))) or evenly


def _probed(
    prober: Prober, thresholds: Thresholds, *, name: str, progress: bool
) -> dict[str, AttentionRecord]:
    """Every probe with its picture replaced, and the wrong ones of groups at fault with each region hidden too."""
    records = {one.probe_id: one for one in prober.run_all(0, name, progress=progress)}
    check_finite([*records.values()])
    return _with_hidden(prober, records, _wrong(records, prober.probes, thresholds), progress=progress)


def _wrong(
    records: Mapping[str, AttentionRecord], probes: Sequence[Probe], thresholds: Thresholds
) -> list[Probe]:
    """The probes that are answered wrong, of groups at fault."""
    return [
        probe
        for members in groups_of(probes).values()
        if is_at_fault([records[probe.id] for probe in members], members, thresholds)
        for probe in members
        if probe.foil is not None and not is_right(records[probe.id])
    ]


def _with_hidden(
    prober: Prober, records: Mapping[str, AttentionRecord], wrong: Sequence[Probe], *, progress: bool
) -> dict[str, AttentionRecord]:
    """The records, those of ``wrong`` with each region hidden."""
    found = dict(records)
    prober.depth = HIDDEN
    # What was asked first stays: in other batches a margin near 0 may fall on the other side of it.
    for one in prober.run_all(0, "", probes=wrong, progress=progress) if wrong else ():
        found[one.probe_id] = replace(found[one.probe_id], interventions=one.interventions)
    return found


def _lacking(
    records: Mapping[str, AttentionRecord], probes: Sequence[Probe], thresholds: Thresholds
) -> list[Probe]:
    """Of records at hand, the wrong probes of groups at fault in which a quick probing hid no region: they are, or were
    called, groups to be kept."""
    return [
        probe
        for probe in _wrong(records, probes, thresholds)
        if probe.regions and not records[probe.id].interventions
        if not KEPT_SHARE.keys().isdisjoint((probe.group, records[probe.id].group))
    ]


def _autocast(model: nn.Module) -> torch.dtype | None:
    """The mixed precision that surrounds this, of which records at hand are: a prober computes in what it is told."""
    device = next(model.parameters()).device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def check_finite(records: Sequence[AttentionRecord]) -> None:
    """Raises ValueError naming the first probe with a margin that is not finite, and how many have one."""
    found = [(one.probe_id, value) for one in records for value in _margins(one) if not isfinite(value)]
    if found:
        of_probes = len({probe for probe, _ in found})
        raise ValueError(
            f"probe {found[0][0]}: found a margin of {found[0][1]}; {of_probes} of {len(records)} probes have one that "
            "is not finite, expected none: does the model overflow in this precision? Load it in bfloat16 or float32"
        )


def _margins(record: AttentionRecord) -> list[float]:
    """Every margin of a record, nats: as asked, with a region hidden and at its controls, with the picture replaced."""
    own = record.scores.margin_nats
    hidden = [value for one in record.interventions for value in (one.margin_nats, *one.control_margins_nats)]
    replaced = [one.margin_nats for one in record.picture_controls]
    return [*([] if own is None else [own]), *hidden, *replaced]


def _features(
    model: nn.Module,
    processor: Any,
    probes: Sequence[Probe],
    contrasts: Mapping[str, Contrast],
    *,
    progress: bool,
) -> tuple[dict[str, Features], dict[str, dict[str, Features]]]:
    """Of groups at fault: states of each side's probe at its own region; and, for each group, at places that are not
    its own. A probe without a place gives the answer's state alone."""
    sides = {(group, side.probe.id): side for group, contrast in contrasts.items() for side in contrast.sides}
    own = {side.probe.id: side.probe for side in sides.values()}
    asked = [Asked(one, one.regions.get(one.main_region or ""), _named(one)) for one in own.values()]
    places = {one.probe.id: one.boxes for one in asked}
    further = {
        key: Asked(side.probe, side.boxes, (*_named(side.probe), *side.boxes))
        for key, side in sides.items()
        if side.boxes is not None and side.boxes != places[side.probe.id]
    }
    every = features_of(bare_model(model), processor, [*asked, *further.values()], progress=progress)
    lent: dict[str, dict[str, Features]] = {group: {} for group in contrasts}
    for (group, probe_id), found in zip(further, every[len(asked) :], strict=True):
        lent[group][probe_id] = found
    at_own = {one.probe.id: found for one, found in zip(asked, every, strict=False)}
    return _with_blank(model, processor, contrasts, at_own, progress=progress), lent


def _with_blank(
    model: nn.Module,
    processor: Any,
    contrasts: Mapping[str, Contrast],
    own: Mapping[str, Features],
    *,
    progress: bool,
) -> dict[str, Features]:
    """``own`` with what the words alone leave in the answer's state, of groups whose answers are asked for in different
    words: one forward more for each of their probes."""
    asked = {
        side.probe.id: Asked(side.probe, None, (), blank=True)
        for contrast in contrasts.values()
        if words_differ((side.task, own[side.probe.id].words) for side in contrast.sides)
        for side in contrast.sides
    }
    found = features_of(bare_model(model), processor, [*asked.values()], progress=progress)
    blank = {name: one.answer for name, one in zip(asked, found, strict=True)}
    return {name: replace(one, blank=blank.get(name)) for name, one in own.items()}


def _named(probe: Probe) -> tuple[Any, ...]:
    return tuple(box for boxes in probe.regions.values() for box in boxes)
