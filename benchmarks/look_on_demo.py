"""Does teaching where to look help the demo's correction? Trainings with few corrective samples, with and without.

OMP_NUM_THREADS=1 python benchmarks/look_on_demo.py --work DIR                    trains what is missing in DIR
OMP_NUM_THREADS=1 python benchmarks/look_on_demo.py --work DIR --seeds 42 1 2 --kinds plain look --fractions 0.0625
OMP_NUM_THREADS=1 python benchmarks/look_on_demo.py --work DIR --output benchmarks/results/look_on_demo_DATE_cpu.json

All train 330 steps on the first samples of the demo's corrective corpus, with the demo's other flags:

    plain             the language loss alone
    look              + supervision of the layers that are not key layers, boxes of what should decide
    placebo           the same with the boxes of another sample that asks the same
    language          adapters alone: the connector stays as it is
    language look     that, with supervision

Each training has a folder of its own in DIR and is skipped where that has a comparison.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(ROOT := Path(__file__).parent.parent))

from finetune.demo import corpus, prepare, settings
from finetune.demo.probe_sets import GROUPS
from finetune.files import write_atomically

STEPS, WEIGHT, LAYERS = "330", "0.3", "1,3"
"""Key layers of the demo's base are 0 and 2: attention is judged there, and supervised in the others."""
KINDS: dict[str, list[str]] = {
    "plain": [],
    "look": ["--look_weight", WEIGHT, "--look_layers", LAYERS],
    "placebo": ["--look_weight", WEIGHT, "--look_layers", LAYERS],
    "language": ["--train_connector", "False"],
    "language look": ["--train_connector", "False", "--look_weight", WEIGHT, "--look_layers", LAYERS],
}
WORDS = {"on": ("上面", "on"), "under": ("下面", "under")}


def main() -> None:
    args = arguments()
    data = prepare.prepare(args.data, prepare.DEFAULT_PARTS)
    runs = [
        (kind, fraction, seed) for seed in args.seeds for fraction in args.fractions for kind in args.kinds
    ]
    for kind, fraction, seed in tqdm(runs, desc="trainings", unit="training"):
        train(args.work, data, kind, fraction, seed)
    if args.output is None:
        print(json.dumps(table(args.work), indent=1))
    else:
        write_atomically(args.output, (json.dumps(table(args.work), indent=1) + "\n").encode())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--data", type=Path, default=settings.DATA_DIR, help="folder of the demo's pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.0625, 0.25], help="of the corpus")
    parser.add_argument("--output", type=Path, help="write JSON here instead of printing it")
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def records(data: prepare.DemoData, fraction: float, *, placebo: bool) -> list[dict[str, Any]]:
    """The first samples of the corrective corpus, each answer with ``look_at`` where something should decide it."""
    count = round(corpus.CORPUS_SIZES["corrective"] * fraction)
    found = json.loads(data.corrective.read_text(encoding="utf-8"))[:count]
    for index, one in enumerate(found):
        sample = corpus.corrective_sample(index)
        for question, turn in zip(sample.questions, one["conversations"][1::2], strict=True):
            if look_at := looking(sample.scene, question):
                turn["look_at"] = [look_at]
        first = one["conversations"][0]
        first["value"] = first["value"].replace("<img>", f"<img>{data.corrective.parent.absolute()}/")
    if placebo:
        exchange(found)
    return found


def looking(scene: Any, question: Any) -> dict[str, Any] | None:
    """The spheres of a pearl, cat and table of a room; None where nothing is to be looked at."""
    boxes = scene.boxes_pixels(*corpus.PICTURE_PIXELS)
    if question.topic in ("tower", "spheres") and "spheres" in boxes:
        return {"phrase": question.answer, "boxes": boxes["spheres"]}
    if question.topic == "relation":
        word = WORDS[str(scene.facts["relation"])][question.language == "en"]
        return {"phrase": word, "ends": [boxes["cat"], boxes["table"]]}
    return None


def exchange(found: list[dict[str, Any]]) -> None:
    """Give each supervised answer the boxes of another one that has as many ends: each is then right nowhere."""
    looks = [turn["look_at"][0] for one in found for turn in one["conversations"] if "look_at" in turn]
    for key in ("boxes", "ends"):
        some = [look for look in looks if key in look]
        order = Random(key).sample(range(len(some)), len(some))
        given = {at: some[order[(i + 1) % len(order)]][key] for i, at in enumerate(order)}
        for at, value in given.items():
            some[at][key] = value


# ---------------------------------------------------------------------------------------------------------------------
# Trainings
# ---------------------------------------------------------------------------------------------------------------------


def train(work: Path, data: prepare.DemoData, kind: str, fraction: float, seed: int) -> None:
    """Train and compare, in a folder of its own; nothing where that is done."""
    folder = work / f"{kind.replace(' ', '-')}-{fraction:g}-{seed}"
    if (folder / "comparison" / "comparison.json").is_file():
        return
    own = work / f"data-{fraction:g}{'-placebo' if kind == 'placebo' else ''}.json"
    content = json.dumps(records(data, fraction, placebo=kind == "placebo"), ensure_ascii=False)
    write_atomically(own, content.encode())
    flags = settings.training_flags(data._replace(corrective=own), processes=1)
    more = ["--output_dir", str(folder), "--seed", str(seed), "--max_steps", STEPS]
    more += ["--save_strategy", "no", "--report_to", "none"]
    if measured := next(found_in(work), None):  # the untrained model is the same in all of them
        more += ["--baseline", str(measured.parents[1])]
    words = [
        sys.executable,
        "-m",
        "attention_finetune.train",
        *flags,
        *more,
        *KINDS[kind],
        "--disable_tqdm",
        "True",
    ]
    with (work / f"{folder.name}.log").open("w") as log:
        subprocess.run(words, check=True, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def table(work: Path) -> dict[str, Any]:
    """What came of every training in the folder."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "weight": float(WEIGHT),
        "supervised_layers": LAYERS,
        "trainings": {path.parents[1].name: outcome(path) for path in found_in(work)},
    }


def found_in(work: Path) -> Iterator[Path]:
    yield from sorted(work.glob("*/comparison/comparison.json"))


def outcome(path: Path) -> dict[str, Any]:
    """Verdict, accuracy, legs and enrichment of each group."""
    groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
    return {
        name: {
            "verdict": groups[name]["verdict"],
            "accuracy": groups[name]["accuracy"],
            "margin_nats": groups[name]["margin_nats"],
            "enrichment": groups[name]["enrichment"],
            "holds": {leg: one["holds"] for leg, one in groups[name]["legs"].items()},
            "reasons": groups[name]["reasons"],
        }
        for name in GROUPS
    }


if __name__ == "__main__":
    main()
