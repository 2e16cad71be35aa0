"""Runs some of the demo's probes through two models and compares them as ``python -m diagnostics.compare`` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import nn

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import pair_all
from diagnostics.probing.before import OtherModel
from diagnostics.probing.prober import Prober
from diagnostics.records.measurement_plan import OCCLUSION, WATCH, MeasurementPlan
from diagnostics.records.probes import Probe, read_probes
from diagnostics.records.record import AttentionRecord
from finetune.demo.probe_sets import PROBE_PIXELS, demo_probe, record
from finetune.demo.questions import Question
from finetune.demo.shapes import render
from tests.adversaries.pictures import framed, wording

COUNTS = {"sphere-building": 20, "spatial-relation": 20, "neighbour": 40}
"""The fewest that a verdict takes; every second neighbour is a guard of the towers."""
TOWERS, BOTH = ("sphere-building",), ("sphere-building", "spatial-relation")
KEY_LAYERS = (0, 2)
"""Of the demo's base, as its calibration chooses them."""
BEFORE = replace(WATCH, name="before", kinds=(OCCLUSION,), controls=1)
"""Of the base a comparison reads no more than this."""
LIGHT = replace(BEFORE, name="light")
"""For edits that answers, attention and cause give away: the other legs, not measured, forbid nothing."""

Records = Mapping[str, AttentionRecord]
Change = Callable[[Image.Image, Question], tuple[Image.Image, str]]
KINDS: dict[str, Change] = {
    "plain": lambda picture, question: (picture, question.text),
    "framed": lambda picture, question: (framed(picture, question.topic, question.answer), question.text),
    "worded": lambda picture, question: (
        picture,
        wording(question.topic, question.answer, question.language) or question.text,
    ),
}
"""How pictures and questions of the probes are changed."""


class Asked(NamedTuple):
    """Probes, and the base's records of them."""

    probes: tuple[Probe, ...]
    before: Records


class Judged(NamedTuple):
    """The result of a comparison.

    groups       group → its part of comparison.json
    without_guards   verdicts on the judged groups where the probe file holds nothing else
    """

    groups: dict[str, Any]
    without_guards: dict[str, str]

    @property
    def verdicts(self) -> dict[str, str]:
        return {name: group["verdict"] for name, group in self.groups.items()}

    def leg(self, group: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.groups[group]["legs"][name]
        return found


def draw_probes(folder: Path, change: Change) -> tuple[Probe, ...]:
    """Probes of each group, with their pictures and questions changed."""
    (folder / "images").mkdir(parents=True)
    written = []
    for group, count in COUNTS.items():
        for index in range(count):
            probe = demo_probe("probes", group, index)
            picture, text = change(render(probe.scene, *PROBE_PIXELS), probe.question)
            name = f"images/{probe.identity}.png"
            picture.save(folder / name, compress_level=1)
            written.append({**record(probe, name), "question": text})
    path = folder / "probes.json"
    path.write_text(json.dumps({"version": 1, "probes": written}, ensure_ascii=False), encoding="utf-8")
    return read_probes(path)


def records_of(
    model: nn.Module,
    processor: Any,
    probes: Sequence[Probe],
    name: str,
    *,
    before: nn.Module | None = None,
    judged: Sequence[str] = BOTH,
    depth: MeasurementPlan = BEFORE,
) -> Records:
    """The judged groups at this depth, the others for their answers alone."""
    found: dict[str, AttentionRecord] = {}
    for plan, members in (
        (depth, [probe for probe in probes if probe.group in judged]),
        (WATCH, [probe for probe in probes if probe.group not in judged]),
    ):
        lender = OtherModel(before, "before") if before is not None and plan.patching else None
        prober = Prober(model, processor, key_layers=KEY_LAYERS, probes=probes, depth=plan, before=lender)
        step = 0 if before is None else 1
        found |= {one.probe_id: one for one in prober.run_all(step, name, probes=members)}
    return found


def judged(asked: Asked, after: Records, groups: Sequence[str]) -> Judged:
    pairs = pair_all(asked.probes, asked.before, after)
    alone = [[pair for pair in pairs if pair.probe.group == name] for name in groups]
    return Judged(
        comparison_of(pairs)["groups"],
        {
            name: group["verdict"]
            for members in alone
            for name, group in comparison_of(members)["groups"].items()
        },
    )
