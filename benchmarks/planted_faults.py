"""Does a diagnosis name the stage at which an answer is lost? Asked of small models that a fault was planted in.

python benchmarks/planted_faults.py run --work DIR      makes the sound models where they are missing (ten minutes of a
                                                        core each), plants, checks and diagnoses: a JSON line a model in
                                                        DIR/results.jsonl, so that a killed run goes on there
python benchmarks/planted_faults.py table --work DIR    writes benchmarks/results/planted_faults_DATE_cpu.json and .md

What each plant does, and which stage is right for it and why, stands in ``benchmarks/planted_list.py``. A plant counts
once its own check, which shares nothing with the diagnosis, has shown that answers fell and that what lies before its
place computes the same bits. Plants and sound models fall into two halves with pictures of their own; both have been
seen, and the diagnosis was changed by them. What it was not chosen on are the fresh plants: as many as were decided on
beforehand, drawn after the last change and diagnosed once. docs/lab-notes.md has the numbers before.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pickle
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.planted_list import FRESH, Plant, Workshop, plants, sound_variants
from diagnostics.comparison.legs.answers import is_right
from diagnostics.comparison.legs.leg import Leg
from diagnostics.diagnosis.cases import Case
from diagnostics.diagnosis.diagnosing import diagnose_model
from diagnostics.diagnosis.evidence import (
    ANSWERS,
    HIDING,
    LOOKS,
    PICTURE,
    STATE,
    TOKENS,
    TOWER,
    Evidence,
)
from diagnostics.diagnosis.leaning import picture_test
from diagnostics.diagnosis.looking import attention_test, hiding_test
from diagnostics.diagnosis.stages import stage_of
from diagnostics.diagnosis.thresholds import Thresholds
from diagnostics.measures.statistics import clopper_pearson
from finetune.files import write_atomically

ROOT = Path(__file__).parent.parent
HALVES = ("choosing", "reporting", FRESH)
_SETS = {"choosing": "choosing half", "reporting": "reporting half", FRESH: "fresh", "both": "all"}
NONE = "none named"
TOLD_TESTS = (TOWER, TOKENS, STATE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="plant, check and diagnose what has no line yet")
    running.add_argument("--only", default="", help="models whose name contains this")
    running.add_argument("--half", choices=HALVES, help="one half alone")
    for command in (running, commands.add_parser("table", help="the table of all lines")):
        command.add_argument("--work", type=Path, required=True, help="folder of models, pictures and lines")
    args = parser.parse_args()
    if args.command == "run":
        run(args.work, args.only, args.half)
        return
    lines = [restaged(line, args.work) for line in lines_of(args.work / "results.jsonl")]
    results = tabulate(lines)
    stem = ROOT / "benchmarks" / "results" / f"planted_faults_{results['date']}_cpu"
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_atomically(stem.with_suffix(".json"), text.encode())
    write_atomically(stem.with_suffix(".md"), page(results).encode())
    print(page(results))


def run(work: Path, only: str, half: str | None) -> None:
    """One line for each model that has none yet."""
    torch.set_num_threads(1)
    path = work / "results.jsonl"
    done = {line["name"] for line in lines_of(path)}
    todo = [
        one
        for one in (*plants(), *sound_variants())
        if only in one.name and one.name not in done and half in (None, one.half)
    ]
    workshop = Workshop(work)
    for plant in (bar := tqdm(todo, unit="model")):
        bar.set_description(plant.name)
        if plant.name in {line["name"] for line in lines_of(path)}:  # by another process meanwhile
            continue
        line = judged(plant, workshop)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file; a last one that a killed run left half is none."""
    if not path.is_file():
        return []
    return [
        json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]


def judged(plant: Plant, workshop: Workshop) -> dict[str, Any]:
    """The plant's own check, and what the diagnosis says of the group that answers worst."""
    model = plant.made(workshop)
    probes = workshop.probes(plant)
    check = plant.checked(model, workshop, probes)
    checked = time.process_time()
    sound = workshop.sound(plant.family)
    kept = kept_records(plant, workshop.work)
    is_kept = kept.is_file()
    records = pickle.loads(kept.read_bytes()) if is_kept else None
    found = diagnose_model(model, sound.processor, probes, seed=plant.seed, records=records)
    if not is_kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, pickle.dumps(dict(found.records)))
    content = found.as_json()["groups"]
    group = min(check.accuracy, key=lambda name: check.accuracy[name])
    return {
        "name": plant.name,
        "half": plant.half,
        "family": plant.family,
        "topic": plant.topic.name,
        "kind": plant.kind,
        "expected": check.stage,
        "expected_decides": plant.decides,
        "valid": check.fault == "",
        "fault": check.fault,
        "accuracy": check.accuracy,
        "group": group,
        "found": content[group]["stage"] or NONE,
        "decides": content[group]["decides"],
        "of_every_group": {name: one["stage"] for name, one in content.items()},
        "evidence": content[group]["evidence"],
        # Only a diagnosis that measured everything itself is one that a user waits for.
        "seconds": None if is_kept else round(time.process_time() - checked, 1),
    }


# ---------------------------------------------------------------- table


def tabulate(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of right stages with their intervals, by half; who was taken for what; and every miss."""
    planted = [line for line in lines if line["expected"] != "right" and line["valid"]]
    sound = [line for line in lines if line["expected"] == "right" and line["valid"]]
    times = sorted(line["seconds"] for line in lines if line["seconds"] is not None)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU, one thread",
        "torch": torch.__version__,
        "commands": [line.strip() for line in (__doc__ or "").splitlines() if line.startswith("python")],
        "planted": {half: _share(planted, half) for half in _halves(lines)},
        "by_kind": {kind: _share([one for one in planted if one["kind"] == kind]) for kind in _kinds(planted)},
        "by_family": {
            name: _share([one for one in planted if one["family"] == name])
            for name in dict.fromkeys(one["family"] for one in planted)
        },
        "sound": {half: _share(sound, half) for half in _halves(lines)},
        "decides": _decides(planted),
        "confusion": _confusion(planted + sound),
        "left_out": {line["name"]: line["fault"] for line in lines if not line["valid"]},
        "missed": [
            {name: line[name] for name in ("name", "half", "expected", "found", "accuracy", "group")}
            | {"reasons": {test: leg["reason"] for test, leg in line["evidence"].items()}}
            for line in planted + sound
            if not _is_right(line)
        ],
        "seconds_of_processor_per_diagnosis": {
            "median": times[len(times) // 2] if times else None, "most": times[-1] if times else None
        },
    }  # fmt: skip


def _halves(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Fresh plants have a row once one of them was diagnosed."""
    return [*(half for half in HALVES if half != FRESH or any(one["half"] == half for one in lines)), "both"]


def restaged(line: dict[str, Any], work: Path) -> dict[str, Any]:
    """The line with the stage that it gets by today's rule and thresholds. What rests on records is told again;
    what the states told is kept, and held against today's threshold."""
    thresholds, group = Thresholds(), line["group"]
    tests = {}
    for name, one in line["evidence"].items():
        least = thresholds.told if name in TOLD_TESTS else one["threshold"]
        holds = one["holds"] and one["value"] >= least - 1e-9 if name in TOLD_TESTS else one["holds"]
        ci95 = None if one["ci95"] is None else tuple(one["ci95"])
        tests[name] = Leg(holds, one["probes"], one["value"], ci95, least, one["reason"])
    decides, count = line["decides"], tests[ANSWERS].probes
    if LOOKS in tests:
        members = [case for case in _cases(line["name"], work) if case.probe.group == group]
        wrong = [case for case in members if not is_right(case.record)]
        tests[LOOKS], _ = attention_test(wrong, thresholds)
        tests[HIDING], decides = hiding_test(wrong, thresholds)
        tests[PICTURE] = picture_test(members, thresholds)
    stage = stage_of(Evidence(count, count, line["accuracy"][group], tests, decides), thresholds).name or NONE
    evidence = {name: leg.json() for name, leg in tests.items()}
    of_every = {**line["of_every_group"], group: stage}
    return {**line, "found": stage, "decides": decides, "evidence": evidence, "of_every_group": of_every}


def _cases(name: str, work: Path) -> list[Case]:
    """A model's probes and records, as the run kept them."""
    plant = next(one for one in (*plants(), *sound_variants()) if one.name == name)
    records = pickle.loads(kept_records(plant, work).read_bytes())
    return [Case(probe, records[probe.id], None) for probe in Workshop(work).probes(plant)]


def kept_records(plant: Plant, work: Path) -> Path:
    """Where the run keeps what a model did on its probes."""
    return work / "records" / f"{plant.name.replace('/', '_')}.pickle"


def _is_right(line: dict[str, Any]) -> bool:
    """A plant: the stage of the group that answers worst. A sound model: of every group."""
    if line["expected"] == "right":
        return set(line["of_every_group"].values()) == {"right"}
    return bool(line["found"] == line["expected"])


def _kinds(lines: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(line["kind"] for line in lines))


def _share(lines: Sequence[dict[str, Any]], half: str = "both") -> dict[str, Any]:
    chosen = [line for line in lines if half in ("both", line["half"])]
    right = sum(map(_is_right, chosen))
    if not chosen:
        return {"models": 0, "right": 0, "share": None, "ci95": None}
    ci95 = [round(end, 3) for end in clopper_pearson(right, len(chosen))]
    return {"models": len(chosen), "right": right, "share": round(right / len(chosen), 3), "ci95": ci95}


def _decides(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the plants where another region decides and the stage is right: how often is it named?"""
    chosen = [line for line in lines if line["expected_decides"] and _is_right(line)]
    named = sum(line["decides"] == line["expected_decides"] for line in chosen)
    return {"models": len(chosen), "named": named}


def _confusion(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Planted stage → named stage → models."""
    return {
        stage: dict(Counter(line["found"] for line in lines if line["expected"] == stage))
        for stage in dict.fromkeys(line["expected"] for line in lines)
    }


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    named = list(
        dict.fromkeys([*results["confusion"], *(n for row in results["confusion"].values() for n in row)])
    )
    rows = ["| planted \\ named | " + " | ".join(named) + " |", "|---|" + "---|" * len(named)]
    for stage, row in results["confusion"].items():
        rows.append(f"| {stage} | " + " | ".join(str(row.get(name, "")) for name in named) + " |")
    shares = ["| | models | right stage | 95 % interval |", "|---|---|---|---|"]
    for title, name in (("planted", "planted"), ("sound", "sound")):
        shares += [_row(f"{title}, {_SETS[half]}", results[name][half])
                   for half in results[name]]  # fmt: skip
    kinds = ["| plant | models | right stage | 95 % interval |", "|---|---|---|---|"]
    kinds += [_row(kind, one) for kind, one in results["by_kind"].items()]
    missed = [
        f"- `{one['name']}` ({one['half']}): {one['expected']} → {one['found']}" for one in results["missed"]
    ]
    seconds = results["seconds_of_processor_per_diagnosis"]
    return "\n".join(
        [
            "# Planted faults: is the right stage named?", "",
            f"{results['date']}, {results['machine']}, torch {results['torch']}; a diagnosis takes "
            f"{seconds['median']} s of one core (median; at most {seconds['most']} s). Made by "
            "`benchmarks/planted_faults.py`.", "",
            *shares, "",
            f"Where another region decides, it was named in {results['decides']['named']} of "
            f"{results['decides']['models']} models.", "",
            *rows, "", *kinds, "",
            "## Missed", "", *(missed or ["Nothing."]), "",
            "## Left out: the plant's own check failed", "",
            *([f"- `{name}`: {fault}" for name, fault in results["left_out"].items()] or ["Nothing."]), "",
        ]
    )  # fmt: skip


def _row(title: str, one: dict[str, Any]) -> str:
    if not one["models"]:
        return f"| {title} | 0 | | |"
    low, high = (round(100 * end) for end in one["ci95"])
    return f"| {title} | {one['models']} | {one['right']} ({100 * one['share']:.0f} %) | {low} to {high} % |"


if __name__ == "__main__":
    main()
