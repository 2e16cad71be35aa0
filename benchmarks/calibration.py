"""False findings and power of comparisons, on real trainings with the real prober, statistics and verdicts.

python benchmarks/calibration.py trainings --work DIR     trains and probes (hours on one core); several processes may
                                                          share DIR, and a killed one resumes where it stopped
python benchmarks/calibration.py judge --work DIR         writes benchmarks/results/calibration_DATE_cpu.json and
                                                          docs/images/power.png: two minutes on two cores, half of
                                                          one with --repeats 10, which leaves the curves rough

False findings: the demo's base model is trained on ten kinds of samples that teach nothing true about its flaw
(``benchmarks/calibration_lessons.py``), and compared with itself before, as ``diagnostics.compare`` does. Power: what
probes do beside their group's mean when the flaw is really corrected is the noise in which a rise of attention is
planted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.calibration_judging import RecordsOfWork, judge_all, tabulate
from benchmarks.calibration_lessons import Lesson, null_lessons, true_lessons
from benchmarks.calibration_power import COUNTS, different_pictures, draw, pool_of, power, spread
from benchmarks.calibration_trainings import (
    SECONDS,
    Workshop,
    held,
    is_probed,
    is_trained,
    open_workshop,
    probe_base,
    probe_lesson,
    took,
    train_lesson,
)
from diagnostics.comparison.pairs import ProbePair, pairs_by_group
from diagnostics.probing.layer_choice import Calibration
from diagnostics.records.probes import groups_of
from finetune.files import write_atomically

ROOT = Path(__file__).parent.parent
NULL_SEEDS, TRUE_SEEDS = 10, 3
POWER_KINDS = ("correction", "half correction", "few samples")
REPEATS = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("trainings", help="train and probe what is missing")
    training.add_argument("--only_train", action="store_true", help="leave the records to a later call")
    judging = commands.add_parser("judge", help="judge all records again")
    judging.add_argument(
        "--repeats", type=int, default=REPEATS, help="comparisons for each point of the power curves"
    )
    judging.add_argument("--processes", type=int, default=2, help="that judge at once")
    for command in (training, judging):
        command.add_argument("--work", type=Path, required=True, help="folder of the trainings, outside git")
        command.add_argument(
            "--seeds", type=int, default=NULL_SEEDS, help="trainings of each kind that teaches nothing"
        )
        command.add_argument(
            "--true_seeds", type=int, default=TRUE_SEEDS, help="… of each strength of the correction"
        )
    args = parser.parse_args()
    lessons = lessons_of(args.seeds, args.true_seeds)
    if args.command == "trainings":
        make(lessons, args.work, only_train=args.only_train)
        return
    results = judge(lessons, args.work, args.repeats, args.processes)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    path = ROOT / "benchmarks" / "results" / f"calibration_{results['date']}_cpu.json"
    write_atomically(path, text.encode())
    if results["power"]["curves"]:
        draw(results, ROOT / "docs" / "images" / "power.png")
    print(text)


def lessons_of(seeds: int, true_seeds: int) -> list[Lesson]:
    """Kinds interleaved, so that a run that is stopped early has some of each."""
    rounds: list[list[Lesson]] = [[] for _ in range(max(seeds, true_seeds))]
    for lesson in (*null_lessons(seeds), *true_lessons(true_seeds)):
        rounds[lesson.seed].append(lesson)
    return [lesson for one in rounds for lesson in one]


def make(lessons: list[Lesson], work: Path, *, only_train: bool) -> None:
    """Train and probe whatever is missing and held by no other process."""
    workshop = open_workshop(work)
    chosen = None if only_train else probe_base(workshop)
    for lesson in (bar := tqdm(lessons, unit="training")):
        bar.set_description(lesson.name)
        folder = workshop.folder(lesson)
        with held(folder.with_suffix(".lock")) as mine:
            if mine and not is_trained(folder):
                train_lesson(lesson, workshop)
            if mine and chosen is not None and not is_probed(lesson, workshop, chosen.layers):
                probe_lesson(lesson, workshop, chosen)


def judge(lessons: Sequence[Lesson], work: Path, repeats: int, processes: int) -> dict[str, Any]:
    """Everything that the records of the finished trainings say now."""
    start = time.perf_counter()
    workshop = open_workshop(work)
    layers = Calibration.load(work / "attention" / "calibration.json").layers
    records = RecordsOfWork(workshop, layers)
    finished = [lesson for lesson in lessons if is_probed(lesson, workshop, layers)]
    rows = judge_all(finished, records, processes)
    null, true = ([row for row in rows if row.lesson.is_true == is_true] for is_true in (False, True))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "torch": torch.__version__,
        "commands": [line.strip() for line in (__doc__ or "").splitlines() if line.startswith("python")],
        "trainings": {
            "teach_nothing_true": len(null),
            "correct": len(true),
            "not_finished": len(lessons) - len(finished),
            "key_layers": list(layers),
            "probes": {name: len(members) for name, members in groups_of(workshop.probes).items()},
            "seconds_of_processor": seconds(finished, workshop),
        },
        "teach_nothing_true": tabulate(null),
        "correct": tabulate(true),
        "power": power_of([row.lesson for row in true], records, repeats, work, processes),
        "seconds": round(time.perf_counter() - start),
    }


def seconds(lessons: Sequence[Lesson], workshop: Workshop) -> dict[str, float]:
    """The median of trainings that teach nothing true: of training (random adapters left out), and of probing."""
    trained, probed = [], []
    for lesson in lessons:
        if lesson.is_true:
            continue
        folder = workshop.folder(lesson)
        if lesson.steps:
            trained.append(took(folder))
        probed.append(sum(took(one.parent) for one in (folder / "attention").rglob(SECONDS)))
    return {
        name: round(float(np.median(values)), 1)
        for name, values in (("training", trained), ("probing", probed))
        if values
    }


def power_of(
    lessons: Sequence[Lesson], records: RecordsOfWork, repeats: int, work: Path, processes: int
) -> dict[str, Any]:
    """The curves, and the noise that they rest on, which is that of the corrections which took most samples."""
    used = [lesson for lesson in lessons if lesson.kind in POWER_KINDS]
    by_group: dict[str, list[list[ProbePair]]] = {}
    for lesson in used:
        for name, pairs in pairs_by_group(records.pairs(lesson, "flaw", "guards")).items():
            by_group.setdefault(name, []).append(pairs)
    pools = {name: pool for name, pairs in by_group.items() if (pool := pool_of(pairs)) is not None}
    if not pools:
        return {"trainings": [], "noise": {}, "curves": []}
    pictures = different_pictures(work / "pictures" / "planted", max(COUNTS))
    with ProcessPoolExecutor(processes) as workers:
        found = workers.map(power, repeat(pools), COUNTS, repeat(repeats), repeat(pictures))
        curves = [one for part in tqdm(found, total=len(COUNTS), desc="power") for one in part]
    return {
        "trainings": [lesson.name for lesson in used],
        "noise": {name: spread(one) for name, one in pools.items()},
        "curves": curves,
    }


if __name__ == "__main__":
    main()
