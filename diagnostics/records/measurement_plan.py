"""What is measured for each probe, and what it costs: chosen, and printed, before probing starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from diagnostics.records.probes import KEPT_SHARE, Probe

OCCLUSION, KNOCKOUT, TOWER_KNOCKOUT = "occlusion", "knockout", "tower knockout"
"""Interventions on a region: hidden in the picture; question and answer kept from looking at the tokens that stand for
it; for models with a resampler also cut inside the vision tower and the resampler, so that no token carries it."""
BLANK, OTHER, SAME_ANSWER, NO_PICTURE = "blank", "other", "same answer", "none"
PICTURES = (BLANK, OTHER, NO_PICTURE)
LANGUAGE, KEY_LAYERS, LAYER, CONNECTOR = "language", "key layers", "layer", "connector"
"""Parts of a model whose attention patterns are patched."""
MAPS = ("relative", "gradient", "rollout")
CURVE_SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the picture at which insertion and deletion curves are measured."""
CURVE_PICTURES = 4 * (len(CURVE_SHARES) - 2) + 1  # both curves and both controls; the ends are shared


class Allowed(NamedTuple):
    """What a model and a probe file allow: the rest of a plan is left out.

    resampler   the model has one, so that regions can also be cut inside it
    alone       the family reads a question without a picture
    lent        ids of the probes for which another probe's pictures are found
    patched     language layers in which attention patterns of the model before can be put back: those that attend; 0
                where that model is not at hand
    pictures_first  all knock-outs of a picture's tokens can go on from one reading of it
    """

    resampler: bool
    alone: bool
    lent: frozenset[str]
    patched: int = 0
    pictures_first: bool = True


@dataclass(frozen=True)
class MeasurementPlan:
    """What a probing measures beside scores and attention.

    name         as messages call it: "watch", "quick", "full"
    generate     let the model answer by itself
    kinds        interventions on each region: "occlusion", "knockout", "tower knockout"
    pictures     the question with another picture: "blank", "other", "none"
    patching     the attention patterns of the model before put back, where that model is at hand
    controls     how many area-matched random regions get the same intervention
    windows      knock the region out in a window of layers around each key layer, one window at a time; and patch each
                 language layer alone, not only each key layer
    curves       insertion and deletion curves
    relations    both ends of a relation, its nouns, and the vision tower between them
    maps         further maps: "relative", "gradient", "rollout"
    kept         hide regions and put attention back also in groups that are judged by whether they were kept
                 (``retention``, ``neighbour``): by their answers, so that no verdict rests on it
    """

    name: str
    generate: bool = True
    kinds: tuple[str, ...] = ()
    controls: int = 0
    pictures: tuple[str, ...] = ()
    patching: bool = False
    windows: bool = False
    curves: bool = False
    relations: bool = False
    maps: tuple[str, ...] = ()
    kept: bool = True

    def of(self, probe: Probe) -> MeasurementPlan:
        """What this plan measures of one probe."""
        if self.kept or probe.group not in KEPT_SHARE:
            return self
        return replace(self, kinds=(), patching=False, windows=False, curves=False)

    def passes(self, probe: Probe, key_layers: int, allowed: Allowed) -> int:
        """How many sequences the model reads for one probe. Answer, foil and generated reply go on from one prompt, and
        knock-outs from one reading of the pictures; what goes on is not counted."""
        return self.of(probe)._passes(probe, key_layers, allowed)

    def _passes(self, probe: Probe, key_layers: int, allowed: Allowed) -> int:
        count = 1
        if self.relations and probe.relation is not None:
            count += 2
        count += len(self.maps)
        if probe.foil is not None and probe.images:
            has = {NO_PICTURE: allowed.alone, OTHER: probe.id in allowed.lent}
            count += sum(has.get(kind, True) for kind in self.pictures)
        if probe.foil is not None and self.patching and allowed.patched:
            # the model before; all language layers, the key layers, the connector; each layer alone
            count += 1 + 2 + allowed.resampler + (allowed.patched if self.windows else key_layers)
        if probe.foil is not None and probe.regions:
            hiding = {OCCLUSION, TOWER_KNOCKOUT} if allowed.resampler else {OCCLUSION}
            count += len(hiding.intersection(self.kinds)) * len(probe.regions) * (1 + self.controls)
            count += self._knock_outs(probe, key_layers, allowed)
            count += CURVE_PICTURES * self.curves
        return count

    def _knock_outs(self, probe: Probe, key_layers: int, allowed: Allowed) -> int:
        """Those of tokens go on from one reading of the pictures, where nothing is hidden from a later picture."""
        everywhere = (KNOCKOUT in self.kinds) * len(probe.regions) * (1 + self.controls)
        windows = self.windows * key_layers * (1 + self.controls)
        behind = windows + (everywhere if len(probe.images) == 1 else 0)
        return everywhere + windows - (max(behind - 1, 0) if allowed.pictures_first else 0)

    def is_part_of(self, measured: Any) -> bool:
        """Does a plan with these fields measure everything that this one does? ``measured``: as read from a file."""
        if not isinstance(measured, Mapping):
            return False
        wanted = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "name"}
        wanted["kept"] = self.kept and bool(self.kinds or self.patching or self.windows or self.curves)
        measured = {"kept": True, **measured}  # a plan of before this field measured every group alike
        return all(_covers(measured.get(name), value) for name, value in wanted.items())

    def with_maps(self, *names: str) -> MeasurementPlan:
        """This plan with further maps.

        Raises ValueError for a map that does not exist.
        """
        for name in names:
            if name not in MAPS:
                raise ValueError(f"further maps: found {name!r}, expected some of {', '.join(MAPS)}")
        return replace(self, maps=tuple(names))


def _covers(found: Any, wanted: bool | int | tuple[str, ...]) -> bool:
    if isinstance(wanted, tuple):
        return isinstance(found, list | tuple) and all(name in found for name in wanted)
    return isinstance(found, int) and found >= wanted


WATCH = MeasurementPlan("watch")
CAUSE = MeasurementPlan("cause", kinds=(OCCLUSION,), controls=1, kept=False)
QUICK = MeasurementPlan(
    "quick",
    kinds=(OCCLUSION, KNOCKOUT, TOWER_KNOCKOUT),
    controls=1,
    pictures=PICTURES,
    patching=True,
    relations=True,
    kept=False,
)
FULL = replace(QUICK, name="full", controls=4, windows=True, curves=True, kept=True)
DEPTHS = {depth.name: depth for depth in (QUICK, FULL)}
CHECKPOINT_DEPTHS = {depth.name: depth for depth in (WATCH, CAUSE)}


def cost_words(depth: MeasurementPlan, probes: tuple[Probe, ...], key_layers: int, allowed: Allowed) -> str:
    """The cost of a probing in one line, before it runs.

    "quick probing of 160 probes: 1,600 sequences to read (10.0 a probe); full would be 8,160"
    """
    count = sum(depth.passes(probe, key_layers, allowed) for probe in probes)
    words = (
        f"{depth.name} probing of {len(probes)} probes: {count:,} sequences to read "
        f"({count / len(probes):.1f} a probe)"
    )
    if depth.name == QUICK.name:
        full = sum(replace(FULL, maps=depth.maps).passes(probe, key_layers, allowed) for probe in probes)
        words += f"; full would be {full:,}"
    return words
