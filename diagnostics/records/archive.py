"""The records of a run on disk: one folder per step. Only this module decides which steps, and which of their
records, are complete. What an earlier training left is moved aside, never deleted."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from diagnostics.records.measurement_plan import MeasurementPlan
from diagnostics.records.names import check_ids, record_name
from diagnostics.records.record import AttentionRecord
from finetune import fields
from finetune.files import write_atomically
from finetune.printable import one_line

COMPLETE = "complete.json"
BEST = "best"
"""In ``complete.json``: the checkpoint whose model was measured in place of the step's own."""
SUPERSEDED = "superseded"
VERSION = 2
KEPT_BYTES = 256 * 2**20
"""The records of a step that is larger than this are read from disk on each access."""

NOT_PATCHED = "not_patched.txt"
"""Beside the records: why the attention of the model before was not put back into the last model probed."""


class StoredRecords(Mapping[str, AttentionRecord]):
    """Probe id → record of one step, loaded on access, and cached where the step is small: the checkpoints of a run
    need not fit in memory together."""

    def __init__(self, folder: Path, probe_ids: Sequence[str]) -> None:
        self.folder = folder
        self.probe_ids = tuple(probe_ids)
        size = sum(self._path(name).stat().st_size for name in self.probe_ids if self._path(name).is_file())
        self._kept: dict[str, AttentionRecord] | None = {} if size <= KEPT_BYTES else None

    def __getitem__(self, probe_id: str) -> AttentionRecord:
        if probe_id not in self.probe_ids:
            raise KeyError(probe_id)
        if self._kept is None:
            return AttentionRecord.load(self._path(probe_id))
        if probe_id not in self._kept:
            self._kept[probe_id] = AttentionRecord.load(self._path(probe_id))
        return self._kept[probe_id]

    def _path(self, probe_id: str) -> Path:
        return record_path(self.folder, probe_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.probe_ids)

    def __len__(self) -> int:
        return len(self.probe_ids)


class RecordArchive:
    """The folders ``step-000050`` below ``attention/``, for one run and its probes and key layers.

    A step is complete if its ``complete.json`` names this run, these probes and layers, and a measurement plan that
    includes the one requested, and if every record opens.

    run     the name of the run (``diagnostics.records.identity``); records of another do not count
    begun   what identifies the run, saved with the records of step 0
    """

    def __init__(
        self,
        attention_dir: Path,
        probe_ids: Sequence[str],
        key_layers: Sequence[int],
        run: str = "",
        begun: Mapping[str, Any] | None = None,
    ) -> None:
        check_ids(probe_ids)
        self.attention_dir = attention_dir
        self.probe_ids = tuple(probe_ids)
        self.key_layers = tuple(key_layers)
        self.run = run
        self.begun = begun

    def folder(self, step: int) -> Path:
        """The folder of a step's records."""
        return step_folder(self.attention_dir, step)

    def save(
        self,
        step: int,
        records: Mapping[str, AttentionRecord],
        depth: MeasurementPlan,
        *,
        best: str | None = None,
    ) -> None:
        """Write the records of a step, and ``complete.json`` last.

        best   the checkpoint whose model was measured in place of the step's own
        """
        folder = self.folder(step)
        (folder / COMPLETE).unlink(missing_ok=True)
        for name, record in records.items():
            record.save(record_path(folder, name))
        begun = {"begun": dict(self.begun)} if step == 0 and self.begun is not None else {}
        other = {} if best is None else {BEST: best}
        text = json.dumps(self._marks(step) | _marks_of(depth) | begun | other, ensure_ascii=False)
        write_atomically(folder / COMPLETE, (text + "\n").encode())

    def is_complete(self, step: int, depth: MeasurementPlan) -> bool:
        """Does the step have everything that this plan measures?"""
        return self.shortfall(step, depth) is None

    def shortfall(self, step: int, depth: MeasurementPlan) -> str | None:
        """What a step lacks, in words; None if it is complete."""
        found = _mark(self.folder(step))
        if found is None:
            return f"no {COMPLETE}: writing did not finish"
        wanted = self._marks(step)
        # Their order does not matter: records are looked up by probe.
        for marks in (found, wanted):
            marks["probes"] = sorted(marks["probes"]) if _is_texts(marks.get("probes")) else None
        other = [name for name in wanted if found.get(name, "") != wanted[name]]
        if other:
            return f"it differs in {', '.join(other)}".replace("_", " ")
        if not depth.is_part_of(found.get("measures")):
            return f"it holds less than {depth.name} measures"
        faults = record_faults(self.folder(step), self.probe_ids)
        return fault_words(faults) if faults else None

    def best(self, step: int) -> str | None:
        """``best_in`` a step's folder."""
        return best_in(self.folder(step))

    def measured_kept(self, step: int) -> bool:
        """Were regions hidden also in groups to be kept? So they were before plans told these groups apart."""
        measures = (_mark(self.folder(step)) or {}).get("measures")
        return not isinstance(measures, Mapping) or measures.get("kept", True) is not False

    def load(self, step: int) -> dict[str, AttentionRecord]:
        """Every record of a step, by probe."""
        return dict(StoredRecords(self.folder(step), self.probe_ids))

    def stored(self, step: int, probe_ids: Sequence[str]) -> StoredRecords:
        """The records of these probes, each loaded on access."""
        return StoredRecords(self.folder(step), probe_ids)

    def steps(self, depth: MeasurementPlan) -> list[int]:
        """Every step that is complete, ascending."""
        return [step for step in recorded_steps(self.attention_dir) if self.is_complete(step, depth)]

    def set_beyond_aside(self, step: int) -> list[int]:
        """Move records and pictures of later steps into ``superseded/``: a training that resumes from ``step`` measures
        its own. Returns the steps moved."""
        beyond = [later for later in recorded_steps(self.attention_dir) if later > step]
        for later in beyond:
            folder = self.folder(later)
            pictures = self.attention_dir.glob(f"images/*/{folder.name}.png")
            for path in (folder, *pictures):
                kept = self.attention_dir / SUPERSEDED / path.relative_to(self.attention_dir)
                _move(path, kept)
        return beyond

    def _marks(self, step: int) -> dict[str, Any]:
        """What ``complete.json`` must say for a step to count."""
        return {
            "version": VERSION,
            "run": self.run,
            "step": step,
            "probes": list(self.probe_ids),
            "key_layers": list(self.key_layers),
        }


def best_in(folder: Path) -> str | None:
    """The checkpoint whose model a folder's records are of, where it is not the step's own: the best one, which was
    loaded at the end."""
    found = (_mark(folder) or {}).get(BEST)
    return None if found is None else str(found)


def step_folder(attention_dir: Path, step: int) -> Path:
    """The folder of a step's records."""
    return attention_dir / f"step-{step:06d}"


def record_path(folder: Path, probe_id: str) -> Path:
    """The file of a probe's record."""
    return folder / record_name(probe_id)


def recorded_steps(attention_dir: str | Path) -> list[int]:
    """Steps whose folder has at least one record file, readable or not, ascending."""
    folders = [path for path in Path(attention_dir).glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(int(path.name.removeprefix("step-")) for path in folders if any(path.glob("*.safetensors")))


def record_faults(folder: Path, probe_ids: Iterable[str]) -> dict[str, str]:
    """Probe id → what is wrong with its record in the folder, for each record that is missing or broken."""
    faults = {name: _fault(record_path(folder, name)) for name in probe_ids}
    return {name: fault for name, fault in faults.items() if fault is not None}


def fault_words(faults: Mapping[str, str]) -> str:
    """ "2 records are incomplete (disc-0: missing; …)"."""
    name, fault = next(iter(faults.items()))
    more = "; …" if len(faults) > 1 else ""
    return f"{len(faults)} {'record is' if len(faults) == 1 else 'records are'} incomplete ({name}: {fault}{more})"


def whole_records(
    folder: Path, probe_ids: Iterable[str]
) -> tuple[dict[str, AttentionRecord], dict[str, str]]:
    """Probe id → record of those that can be read, and probe id → what is wrong with the others."""
    found: dict[str, AttentionRecord] = {}
    faults: dict[str, str] = {}
    for name in probe_ids:
        try:
            found[name] = AttentionRecord.load(record_path(folder, name))
        except FileNotFoundError:
            faults[name] = "missing"
        except ValueError as error:
            faults[name] = str(error)
    return found, faults


def _fault(path: Path) -> str | None:
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    return _cached_fault(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=65_536)
def _cached_fault(path: Path, _modified: int, _bytes: int) -> str | None:
    """Judged by the header, which says how long the file is; reading all of it would take as long as drawing."""
    try:
        with safe_open(path, framework="numpy"):
            return None
    except (SafetensorError, OSError) as error:
        return f"broken, {one_line(str(error), 300)}"


def left_by_earlier(attention_dir: Path) -> bool:
    """Does ``attention/`` hold anything that a monitor measured?"""
    return bool(recorded_steps(attention_dir)) or (attention_dir / "calibration.json").is_file()


def delete_unfinished_baseline(attention_dir: Path) -> None:
    """Delete the records of step 0 where they are all there is and their writing did not finish; not behind a link."""
    baseline = step_folder(attention_dir, 0)
    is_unfinished = not (baseline / COMPLETE).exists() and not baseline.is_symlink()
    if is_unfinished and recorded_steps(attention_dir) == [0]:
        shutil.rmtree(baseline)


def begun_there(attention_dir: Path) -> Any:
    """What identifies the run whose baseline is stored there; None if that is unknown."""
    return (_mark(step_folder(attention_dir, 0)) or {}).get("begun")


def set_aside(output_dir: Path, paths: Iterable[Path]) -> Path:
    """Move what an earlier training left in the output folder to ``earlier-N`` there. Returns that folder."""
    number = 1
    while (output_dir / f"earlier-{number}").exists():
        number += 1
    place = output_dir / f"earlier-{number}"
    for path in paths:
        _move(path, place / os.path.relpath(path, output_dir))
    return place


def _move(path: Path, place: Path) -> None:
    """Replaces an earlier one of that name: training may resume from one checkpoint many times."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        shutil.rmtree(place)
    shutil.move(path, place)


def _mark(folder: Path) -> dict[str, Any] | None:
    """The content of ``complete.json``; None if it is missing or broken."""
    try:
        found = fields.read(folder / COMPLETE)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _marks_of(depth: MeasurementPlan) -> dict[str, Any]:
    return {"depth": depth.name, "maps": list(depth.maps), "measures": asdict(depth)}


def why_not_patched(attention_dir: Path) -> str | None:
    """Why the attention of the model before was not put back into the last model probed there; None if it was, or where
    nothing says."""
    try:
        return (attention_dir / NOT_PATCHED).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def load_step(attention_dir: str | Path, step: int) -> dict[str, AttentionRecord]:
    """Every record of one step, by probe."""
    return load_records(step_folder(Path(attention_dir), step))


def load_records(folder: str | Path) -> dict[str, AttentionRecord]:
    """Every record in a folder, by probe.

    Raises:
        ValueError: the folder has none, one that is broken, or two of one probe.
    """
    places: dict[str, Path] = {}
    records: dict[str, AttentionRecord] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        record = AttentionRecord.load(path)
        if record.probe_id in records:
            raise ValueError(
                f"{path}: found a second record of probe {record.probe_id!r}, beside {places[record.probe_id].name}; "
                "expected one of each, remove the copy"
            )
        records[record.probe_id], places[record.probe_id] = record, path
    if not records:
        raise ValueError(
            f"{folder}: no attention records there; expected ID.safetensors of at least one probe"
        )
    return records
