"""The trainings of ``benchmarks/calibration.py`` and their records, each in its own folder.

    WORK/pictures/                     pictures that the demo's data lacks
    WORK/probes/probes.json            the probes
    WORK/attention/step-000000/        the untrained model's records, shared by all
    WORK/attention/calibration.json    the key layers, chosen on it
    WORK/trainings/NAME/               a training: adapter, what it took (seconds.json)
    WORK/trainings/NAME/attention/     … and the records after it

Whatever is complete is kept: a killed run resumes where it stopped, and several processes share the work, each taking
what no other holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from attention_finetune import train
from benchmarks.calibration_lessons import Lesson, Pools, records
from diagnostics.probing.before import AdapterOff
from diagnostics.probing.layer_choice import Calibration, calibrate
from diagnostics.probing.prober import Prober, auto_key_layers
from diagnostics.records.archive import RecordArchive
from diagnostics.records.measurement_plan import QUICK, WATCH, MeasurementPlan
from diagnostics.records.probes import KEPT_SHARE, Probe, groups_of, read_probes, write_probes
from finetune.demo.prepare import DemoData, prepare
from finetune.demo.settings import BASE_MODEL, DATA_DIR, training_flags
from finetune.files import write_atomically
from finetune.model import checkpoint

PROBES_A_GROUP = 24
"""Of each group of the flaw, and of each that is looked at again: at least 20 that a leg needs, and few enough for a
hundred trainings. Guards are all of the demo's, 40 a group."""
FLAGS_LEFT_OUT = ("probes", "calibration_probes", "monitor", "save_steps", "save_strategy")
SECONDS = "seconds.json"


@dataclass(frozen=True)
class Workshop:
    """Where the trainings lie, and what they share."""

    work: Path
    data: DemoData
    probes: tuple[Probe, ...]
    choosing: tuple[Probe, ...]

    @property
    def pools(self) -> Pools:
        return Pools(DATA_DIR, self.work)

    def folder(self, lesson: Lesson) -> Path:
        return self.work / "trainings" / lesson.name

    @property
    def parts(self) -> dict[str, tuple[tuple[Probe, ...], MeasurementPlan]]:
        """Folder → probes and what is measured on them. Everything of QUICK on the groups that show the flaw; answers
        and attention on guards, which are judged by answers alone; and scores and attention on fresh probes, which no
        verdict reads."""
        flaw = tuple(probe for probe in self.probes if probe.group not in KEPT_SHARE)
        guards = tuple(probe for probe in self.probes if probe.group in KEPT_SHARE)
        with_region = [probe for probe in self.choosing if probe.main_region is not None]
        fresh = first_of_each(with_region, PROBES_A_GROUP)
        return {
            "flaw": (flaw, QUICK),
            "guards": (guards, WATCH),
            "fresh": (fresh, replace(WATCH, generate=False)),
        }


def open_workshop(work: Path) -> Workshop:
    """Draws the demo's data where it is missing, and writes the probe file."""
    data = prepare(DATA_DIR)
    probes = tuple(
        probe
        for name, members in groups_of(read_probes(data.probes)).items()
        for probe in (members if name in KEPT_SHARE else members[:PROBES_A_GROUP])
    )
    write_probes(probes, work / "probes" / "probes.json")
    return Workshop(work, data, probes, read_probes(data.development))


def first_of_each(probes: Sequence[Probe], count: int) -> tuple[Probe, ...]:
    """The first of each group."""
    return tuple(probe for members in groups_of(probes).values() for probe in members[:count])


# ---------------------------------------------------------------- one training


def is_trained(folder: Path) -> bool:
    """The adapter is whole: seconds.json is written last."""
    return (folder / SECONDS).is_file()


def train_lesson(lesson: Lesson, workshop: Workshop) -> None:
    """Train and save the adapter, by the stations of ``finetune.py``."""
    folder = workshop.folder(lesson)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data_path = folder / "data.json"
    samples = records(lesson.items(workshop.pools), lesson.name)
    data_path.write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    with timed() as seconds, (folder / "log.txt").open("w") as log, contextlib.redirect_stdout(log):
        if lesson.deviation is None:
            train.stations(flags_of(lesson, workshop.data, data_path, folder))
        else:
            save_random_adapter(lesson, workshop.data, data_path, folder)
    data_path.unlink()
    write_atomically(folder / SECONDS, json.dumps(seconds).encode())


def flags_of(lesson: Lesson, data: DemoData, data_path: Path, folder: Path) -> list[str]:
    """Those of the demo, with a lesson's own data and length."""
    flags = iter(training_flags(data, processes=1))
    demo = {flag.removeprefix("--"): value for flag, value in zip(flags, flags, strict=True)}
    own = {
        "data_path": data_path,
        "output_dir": folder / "adapter",
        "max_steps": lesson.step,
        "warmup_steps": min(15, lesson.steps // 10),
        "per_device_train_batch_size": lesson.batch,
        "learning_rate": lesson.rate,
        "seed": lesson.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    kept = {name: value for name, value in demo.items() if name not in FLAGS_LEFT_OUT}
    return [token for name, value in (kept | own).items() for token in (f"--{name}", str(value))]


def save_random_adapter(lesson: Lesson, data: DemoData, data_path: Path, folder: Path) -> None:
    """An adapter of the demo's shape whose second matrices, 0 before training, are noise; copies that train in full get
    as much, by their own spread."""
    ready = train.prepare(train.parse(flags_of(lesson, data, data_path, folder)))
    assert ready is not None and lesson.deviation is not None
    draw = torch.Generator().manual_seed(Random(lesson.name).getrandbits(32))
    for name, parameter in ready.model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.data += lesson.deviation * noise * (1 if "lora_B" in name else float(parameter.std()))
    ready.model.save_pretrained(folder / "adapter")
    ready.processor.save_pretrained(folder / "adapter")


# ---------------------------------------------------------------- records


def probe_base(workshop: Workshop) -> Calibration:
    """The untrained model: its key layers, chosen on other pictures, and its records."""
    model, processor = checkpoint.load(str(BASE_MODEL))
    path = workshop.work / "attention" / "calibration.json"
    if not path.is_file():
        evenly = auto_key_layers(model)
        watched = Prober(
            model,
            processor,
            key_layers=evenly,
            probes=workshop.choosing,
            depth=replace(WATCH, generate=False),
        )
        found = {record.probe_id: record for record in watched.run_all(0, "base", progress=True)}
        calibrate(workshop.choosing, found, evenly=evenly).save(path)
    chosen = Calibration.load(path)
    keep_records(workshop, workshop.work / "attention", chosen, "base", 0, (model, processor))
    return chosen


def probe_lesson(lesson: Lesson, workshop: Workshop, chosen: Calibration) -> None:
    folder = workshop.folder(lesson)
    loaded = checkpoint.load(str(folder / "adapter"))
    keep_records(workshop, folder / "attention", chosen, lesson.name, lesson.step, loaded)


def keep_records(
    workshop: Workshop, folder: Path, chosen: Calibration, name: str, step: int, loaded: tuple[Any, Any]
) -> None:
    for part, (probes, depth) in workshop.parts.items():
        archive = RecordArchive(folder / part, [probe.id for probe in probes], chosen.layers, name)
        if archive.is_complete(step, depth):
            continue
        with timed() as seconds:
            before = AdapterOff(loaded[0], "base") if step and depth.patching else None
            prober = Prober(
                *loaded, key_layers=chosen.layers, probes=workshop.probes, depth=depth, before=before
            )  # pictures are lent by any of them
            found = {record.probe_id: record for record in prober.run_all(step, name, probes=probes)}
        archive.save(step, found, depth)
        write_atomically(archive.folder(step) / SECONDS, json.dumps(seconds).encode())


def is_probed(lesson: Lesson, workshop: Workshop, layers: Sequence[int]) -> bool:
    return all(
        archive_of(lesson, workshop, layers, part).is_complete(lesson.step, depth)
        for part, (_, depth) in workshop.parts.items()
    )


def archive_of(lesson: Lesson | None, workshop: Workshop, layers: Sequence[int], part: str) -> RecordArchive:
    """Of the records after a lesson, or of the untrained model; ``part`` as in ``Workshop.parts``."""
    folder = workshop.work / "attention" if lesson is None else workshop.folder(lesson) / "attention"
    ids = [probe.id for probe in workshop.parts[part][0]]
    return RecordArchive(folder / part, ids, layers, "base" if lesson is None else lesson.name)


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """What the block took: seconds on the clock ("wall") and of this process ("processor")."""
    begun, used = time.perf_counter(), time.process_time()
    took: dict[str, float] = {}
    yield took
    took |= {"wall": time.perf_counter() - begun, "processor": time.process_time() - used}


def took(folder: Path) -> float:
    """Seconds of the processor that what lies in a folder took."""
    return float(json.loads((folder / SECONDS).read_text())["processor"])


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """True while this process alone works on something; False where another does. A killed process holds nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
