"""A real case: a vision tower and a language model from package registries, taught to read photographs.

Usage and flags: ``finetune/flags/realcase.py``.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from finetune.flags.realcase import ALL, OPENING, STATIONS, parser

if __name__ == "__main__":
    parser().parse_args()  # --help and wrong flags are answered before the imports below, which take seconds

import torch

from finetune.files import fault_words, write_atomically
from finetune.model import checkpoint
from finetune.printable import printable
from finetune.realcase import align, assemble, corpus, flaw, results, runs
from finetune.realcase.catalogue import LANDMARKS, THINGS
from finetune.realcase.choices import Chosen, HeldOutQuestion, choose_all, read_questions
from finetune.realcase.parts import bring_parts, find_parts, parts_folder
from finetune.realcase.scenes import Pictures, open_pictures
from finetune.realcase.tasks import CHOICES, Task

READER = Path(__file__).parent / "reader"
"""A trained adapter and connector; its README.md says how it was made and what it is worth."""
READ: tuple[Task, ...] = ("what", "side")
"""What it learned."""
JUDGED_LAYERS = [layer for layer in range(min(runs.LOOK_LAYERS), 30) if layer not in runs.LOOK_LAYERS]
"""Language layers whose attention is reported: those between and behind the supervised ones."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stations; returns the exit code. Faults are printed as one message."""
    options = parser().parse_args(arguments)
    options.work_dir = options.work_dir.absolute()  # programs are called from the project's root
    try:
        for station in _chosen(options):
            print(f"--- {station}", flush=True)
            _STATIONS[station](options)
    except (ValueError, OSError) as error:
        print(printable(f"error: {fault_words(error)}"), file=sys.stderr)
        return 1
    return 0


def _chosen(options: argparse.Namespace) -> list[str]:
    """The stations asked for, in their own order."""
    wanted = options.stations or OPENING
    unknown = [one for one in wanted if one not in (*STATIONS, ALL)]
    if unknown:
        raise ValueError(f"found station {unknown[0]!r}, expected {ALL} or some of {', '.join(STATIONS)}")
    return [one for one in STATIONS if ALL in wanted or one in wanted]


# ---------------------------------------------------------------------------------------------------------------------
# Stations
# ---------------------------------------------------------------------------------------------------------------------


def parts(options: argparse.Namespace) -> None:
    brought = bring_parts(parts_folder(), lambda offer: options.yes or _asked(offer))
    print(f"{', '.join(one.name for one in brought) or 'nothing'} fetched; all parts are in {parts_folder()}")


def put_together(options: argparse.Namespace) -> None:
    print(f"the checkpoint, its connector still random: {_assembled()}")


def opened(options: argparse.Namespace) -> None:
    """The reader on the checkpoint, merged, and what it answers to questions about pictures that were never trained."""
    folder = options.work_dir / "reader"
    _merged(READER, folder, "--base", str(_assembled()), "--allow_other_base")
    shown = corpus.write_probes(_pictures(), options.work_dir / "shown", corpus.held_out_plan(2, READ))
    questions = read_questions(shown)
    model, processor = checkpoint.load(folder, attn_implementation="eager")
    for question, chosen in zip(questions, choose_all(model.eval(), processor, questions), strict=True):
        said = question.choices[chosen.choice]
        verdict = "right" if chosen.choice == 0 else f"wrong: {question.choices[0]}"
        print(f"{question.image.name}  {question.text}  {said}  ({verdict})")
    print(
        f"each is the likeliest of {CHOICES} answers; pictures: {shown.parent / 'images'}\nthe reader: {folder}"
    )


def scenes(options: argparse.Namespace) -> None:
    pictures, work = _pictures(), options.work_dir
    data = corpus.write_training(
        pictures, work / "train", corpus.training_plan(options.samples, 0, options.tasks)
    )
    probes = corpus.write_probes(
        pictures, work / "held_out", corpus.held_out_plan(options.held_out, options.tasks)
    )
    print(f"training data: {data}\nheld-out questions: {probes}")


def aligned(options: argparse.Namespace) -> None:
    target = _model(options)
    if (target / "config.json").is_file():
        print(f"aligned before: {target}")
        return
    model: Any
    model, processor = checkpoint.load(_assembled())
    pictures, count = _pictures(), options.align_scenes
    bf16 = _in_bf16(options)
    train = align.examples(model, processor, list(align.seen_things(pictures, count, "train")), bf16=bf16)
    tests = list(align.seen_things(pictures, 96, "held out", held_out=True))
    held_out = align.examples(model, processor, tests, bf16=bf16)
    names = {one.english: (one.english, one.chinese) for one in (*THINGS, *LANDMARKS)}
    fitted = align.fit(train, held_out, align.words_of(model, processor.tokenizer, names))
    kept = align.write_linear(model.model.multi_modal_projector, fitted.weight, fitted.bias)
    assemble.save(model, processor, target)
    print(
        f"fitted to {len(train)} scenes ({kept:.1%} of the map within the connector's rank). On {len(held_out)} scenes "
        f"with other backgrounds, {fitted.named:.1%} of things are named by the cell at their middle (chance "
        f"{fitted.chance:.1%}), {fitted.above:.1%} of cells are told above from below (chance 50 %)\n{target}"
    )


def train(options: argparse.Namespace) -> None:
    for run in runs.runs_of(options.work_dir, options.arms, options.seeds):
        runs.call(
            run.name,
            runs.command(
                run, _model(options), options.work_dir / "train" / "data.json", steps=options.steps,
                save_steps=options.save_steps, look_weight=options.look_weight,
                bf16=_in_bf16(options),
            ),
        )  # fmt: skip


def evaluate(options: argparse.Namespace) -> None:
    """Every checkpoint once: what was chosen is kept, so that a later call goes on."""
    stages = {"aligned": {0: _model(options)}}
    stages |= {
        run.name: runs.checkpoints(run) for run in runs.runs_of(options.work_dir, options.arms, options.seeds)
    }
    questions = read_questions(options.work_dir / "held_out" / "probes.json")
    questions = [one for one in questions if one.group.split("-")[0] in options.tasks]
    found = {
        name: {
            step: results.scores(_choices_of(options, f"{name}-{step}", folder, questions), JUDGED_LAYERS)
            for step, folder in steps.items()
        }
        for name, steps in stages.items()
    }
    facts = {
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "precision": "bf16" if _in_bf16(options) else "fp32",
        "mass": f"of the row that writes the answer, mean over layers {JUDGED_LAYERS}, which no loss supervised",
    }
    stem = (options.results or options.work_dir / "results.json").with_suffix("")
    content = json.dumps(results.as_json(found, facts), ensure_ascii=False, indent=1)
    table = results.as_markdown(found, facts)
    write_atomically(stem.with_suffix(".json"), content.encode())
    write_atomically(stem.with_suffix(".md"), table.encode())
    print(f"{table}\n{stem}.json, {stem}.md")


def _choices_of(
    options: argparse.Namespace, name: str, folder: Path, questions: Sequence[HeldOutQuestion]
) -> list[Chosen]:
    """What one checkpoint chooses, or chose before."""
    kept = options.work_dir / "evaluations" / f"{name}-{'-'.join(options.tasks)}.json"
    wanted = [one.identity for one in questions]
    if not kept.is_file() or [one["identity"] for one in json.loads(kept.read_bytes())] != wanted:
        precision = torch.bfloat16 if _in_bf16(options) else torch.float32
        model, processor = checkpoint.load(folder, attn_implementation="eager", dtype=precision)
        chosen = choose_all(model.eval(), processor, questions, progress=name)
        write_atomically(kept, json.dumps([one._asdict() for one in chosen]).encode())
    return [Chosen(**one) for one in json.loads(kept.read_bytes())]


def plant(options: argparse.Namespace) -> None:
    """The trained reader, merged, learns the flaw, is merged again, and is diagnosed: work/flaw/flawed, diagnosis."""
    work = options.work_dir / "flaw"
    reader = _reader(options)
    data = flaw.write_data(_pictures(), work / "plant", "plant", 8 * options.flaw_steps, 0)
    flags = runs.training_flags(
        reader,
        data,
        work / "planting",
        steps=options.flaw_steps,
        save_steps=options.flaw_steps,
        bf16=_in_bf16(options),
    )
    runs.call("plant", [sys.executable, "finetune.py", *flags])
    _merged(work / "planting", work / "flawed")
    probes, _ = _flaw_probes(options)
    diagnose = ["-m", "diagnostics.diagnose", str(work / "flawed"), "--probes", str(probes)]
    runs.call("diagnose", [sys.executable, *diagnose, "--output_dir", str(work / "diagnosis")])
    print(f"{work / 'flawed'}: {reader} with a flaw; its diagnosis: {work / 'diagnosis'}")


def correct(options: argparse.Namespace) -> None:
    """As a user would: samples with boxes, the monitor's pictures, the comparison and its verdicts."""
    work = options.work_dir / "flaw"
    data = flaw.write_data(_pictures(), work / "correct", "correct", 8 * options.flaw_steps, 0)
    probes, development = _flaw_probes(options)
    flags = runs.training_flags(
        work / "flawed",
        data,
        work / "corrected",
        steps=options.flaw_steps,
        save_steps=max(options.flaw_steps // 3, 1),
        bf16=_in_bf16(options),
    )
    watched = ["--monitor", "True", "--probes", str(probes), "--calibration_probes", str(development)]
    script = ["bash", "scripts/finetune_lora_ds.sh", *flags, *runs.look_flags(options.look_weight), *watched]
    runs.call("correct", script)
    print(f"the report: {work / 'corrected' / 'comparison' / 'index.html'}")


def _flaw_probes(options: argparse.Namespace) -> tuple[Path, Path]:
    """Probe files: those that are judged, and a quarter as many that choose the key layers."""
    work, pictures = options.work_dir / "flaw", _pictures()
    return (
        flaw.write_probes(pictures, work / "probes", "probes", options.probes),
        flaw.write_probes(pictures, work / "development", "development", max(options.probes // 4, 1)),
    )


def _reader(options: argparse.Namespace) -> Path:
    """The last trained reader, merged; else the opened one."""
    found = [
        run for run in runs.runs_of(options.work_dir, options.arms, options.seeds) if runs.checkpoints(run)
    ]
    if found:
        target: Path = options.work_dir / "flaw" / "reader"
        _merged(list(runs.checkpoints(found[-1]).values())[-1], target)
        return target
    if not (options.work_dir / "reader" / "config.json").is_file():
        raise ValueError(
            f"{options.work_dir}: found no reader, expected what `open` or `train` leaves; run one of them first"
        )
    return options.work_dir / "reader"


def _merged(adapter: Path, target: Path, *flags: str) -> None:
    if not (target / "config.json").is_file():
        argv = [sys.executable, "-m", "finetune.export", str(adapter), "--output_dir", str(target), *flags]
        runs.call("export", argv)


_STATIONS = {
    "parts": parts, "assemble": put_together, "open": opened, "scenes": scenes, "align": aligned, "train": train,
    "evaluate": evaluate, "plant": plant, "correct": correct,
}  # fmt: skip


def _in_bf16(options: argparse.Namespace) -> bool:
    return runs.multiplies_in_bf16() if options.precision == "auto" else bool(options.precision == "bf16")


def _asked(offer: str) -> bool:
    if not sys.stdin.isatty():
        print(offer)
        return False
    return input(f"{offer} [y/N] ").strip().lower() in ("y", "yes")


def _assembled() -> Path:
    layout = f"assembled-{assemble.PIXELS}-{assemble.MOST_TILES}"  # of another version's another
    return assemble.assemble(find_parts(parts_folder()), parts_folder().parent / layout)


def _model(options: argparse.Namespace) -> Path:
    return options.work_dir / "model"


def _pictures() -> Pictures:
    found = find_parts(parts_folder())
    return open_pictures(found.stamps, found.monuments)


if __name__ == "__main__":
    sys.exit(main())
