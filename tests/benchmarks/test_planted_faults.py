"""One plant of each stage in the demo's corrected model, few probes: fails where a rule of a diagnosis breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import planted_edits as edits
from benchmarks import planted_faults as program
from benchmarks.planted_edits import Lessons
from benchmarks.planted_models import demo_model
from benchmarks.planted_scenes import TOWER, draw_probes
from diagnostics.diagnosis.diagnosing import diagnose_model
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.records.probes import Probe
from finetune.demo.settings import BASE_MODEL
from finetune.model import checkpoint

FEW = Thresholds(probes=12, each_answer=10)
COOL = {"pearl": "cool", "canton": "cool"}


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    pictures = draw_probes(tmp_path_factory.mktemp("fitting"), TOWER, 20, split="fitting")
    return Lessons(demo_model(), TOWER, pictures)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Probe, ...]:
    return draw_probes(tmp_path_factory.mktemp("probes"), TOWER, 12, split="test", cues=COOL)


def demo_base(_: Lessons) -> nn.Module:
    """What the demo corrects: it reads the podium."""
    return checkpoint.load(str(BASE_MODEL))[0].eval()


def numb(lessons: Lessons) -> nn.Module:
    """A resampler that looks everywhere alike and says the same of the field of every picture."""
    model = edits.drop_tokens(lessons)
    attention = model.get_submodule(f"{lessons.parts.reader}.attn")
    with torch.no_grad():
        for part in (attention.in_proj_weight, attention.in_proj_bias):
            part[: len(part) // 3] = 0.0  # queries
    return model


PLANTS: dict[str, tuple[Callable[[Lessons], nn.Module], str]] = {
    "grey": (edits.blind_tower, "not seen"),
    "numb": (numb, "seen, not passed on"),
    "masked": (edits.look_away, "passed on, not looked at"),
    "cue": (demo_base, "looked at, not used"),
    "exchanged": (partial(edits.mix_head, share=0.9), "looked at, not used"),
    "biased": (partial(edits.bias_head, nats=-8.0), "known, said otherwise"),
    "ignored": (edits.ignore_picture, "language prior"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_the_planted_stage_is_named(name: str, lessons: Lessons, probes: tuple[Probe, ...]) -> None:
    make, stage = PLANTS[name]
    model, processor = make(lessons), lessons.sound.processor
    found = diagnose_model(model, processor, probes, thresholds=FEW)
    worst = min(found.groups, key=lambda group: found.groups[group].evidence.accuracy or 0.0)
    assert (found.groups[worst].evidence.accuracy or 0.0) <= 0.7
    assert found.stage(worst) == stage, found.groups[worst].stage.reason
    if name == "cue":
        assert found.groups[worst].evidence.decides == "podium"


def test_a_sound_model_gets_nothing_but_right(lessons: Lessons, probes: tuple[Probe, ...]) -> None:
    found = diagnose_model(lessons.sound.model, lessons.sound.processor, probes, thresholds=FEW)
    assert {found.stage(group) for group in found.groups} == {"right"}


def made(expected: str, found: str, **more: Any) -> dict[str, Any]:
    """A line of results."""
    plain = {
        "name": "a", "half": "choosing", "family": "llava", "kind": "bias", "valid": True, "fault": "",
        "of_every_group": {"first": found, "second": "right"}, "expected_decides": None, "decides": None,
        "accuracy": {"first": 0.1, "second": 1.0}, "group": "first", "evidence": {}, "seconds": 3.0,
    }  # fmt: skip
    return {**plain, "expected": expected, "found": found, **more}


def test_a_table_counts_plants_by_stage_and_sound_models_by_every_group() -> None:
    lines = [
        made("not seen", "not seen", half="reporting"),
        made("not seen", "language prior", seconds=5.0),
        made("not seen", "right", valid=False, fault="it still sees", name="b", seconds=None),
        made("right", "right"),
        made("right", "right", of_every_group={"first": "right", "second": "not seen"}),
    ]
    results = program.tabulate(lines)
    assert results["planted"]["both"] == {"models": 2, "right": 1, "share": 0.5, "ci95": [0.013, 0.987]}
    assert results["planted"]["choosing"]["right"] == 0 and results["planted"]["reporting"]["right"] == 1
    assert (results["sound"]["both"]["models"], results["sound"]["both"]["right"]) == (2, 1)
    assert results["confusion"]["not seen"] == {"not seen": 1, "language prior": 1}
    assert results["left_out"] == {"b": "it still sees"}
    assert results["seconds_of_processor_per_diagnosis"] == {"median": 3.0, "most": 5.0}


def test_the_committed_table_holds_what_is_claimed() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    results = json.loads(sorted(folder.glob("planted_faults_*.json"))[-1].read_text())
    planted, kinds = results["planted"]["both"], results["by_kind"]
    assert (planted["right"], planted["models"]) == (139, 142)
    fresh = results["planted"]["fresh"]
    assert (fresh["right"], fresh["models"]) == (56, 57)
    assert results["sound"]["both"]["right"] == results["sound"]["both"]["models"] == 23
    surely = ("tower grey", "patches dead", "bias", "picture ignored")
    assert sum(kinds[kind]["right"] for kind in surely) == sum(kinds[kind]["models"] for kind in surely) == 74
    border = {"passed on, not looked at", "looked at, not used"}
    assert sum({one["expected"], one["found"]} == border for one in results["missed"]) == 0
    assert len(results["missed"]) == 3
