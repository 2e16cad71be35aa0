"""Where the records of a run lie: one folder a step, complete or not counted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostics.depth import DEPTHS, Depth
from diagnostics.names import check_ids, record_name
from diagnostics.records import AttentionRecord

COMPLETE = "complete.json"
VERSION = 2
KEPT_BYTES = 256 * 2**20
"""A step whose records are larger than this together is read anew each time."""


class StoredRecords(Mapping[str, AttentionRecord]):
    """Probe id → record of one step, read when it is asked for, and kept where the step is small: a run's checkpoints
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
        return self.folder / record_name(probe_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.probe_ids)

    def __len__(self) -> int:
        return len(self.probe_ids)


class RecordArchive:
    """The folders ``step-000050`` below ``attention/``, for one set of probes and key layers.

    A step counts where its ``complete.json`` is there and says these probes and layers, and a depth at least as
    great as the one asked for.
    """

    def __init__(self, attention_dir: Path, probe_ids: Sequence[str], key_layers: Sequence[int]) -> None:
        check_ids(probe_ids)
        self.attention_dir = attention_dir
        self.probe_ids = tuple(probe_ids)
        self.key_layers = tuple(key_layers)

    def folder(self, step: int) -> Path:
        """Where a step's records lie."""
        return self.attention_dir / f"step-{step:06d}"

    def save(self, step: int, records: Mapping[str, AttentionRecord], depth: Depth) -> None:
        """Write a step, its mark of completeness last."""
        folder = self.folder(step)
        (folder / COMPLETE).unlink(missing_ok=True)
        for name, record in records.items():
            record.save(folder / record_name(name))
        temporary = folder / f".{COMPLETE}.tmp"
        text = json.dumps(self._marks(step) | _marks_of(depth), ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, folder / COMPLETE)

    def is_complete(self, step: int, depth: Depth) -> bool:
        """Is everything there that this depth would measure?"""
        path = self.folder(step) / COMPLETE
        if not path.is_file():
            return False
        found = json.loads(path.read_text(encoding="utf-8"))
        if {name: found.get(name) for name in self._marks(step)} != self._marks(step):
            return False
        there = all((self.folder(step) / record_name(name)).is_file() for name in self.probe_ids)
        rank = [*DEPTHS].index(depth.name) if depth.name in DEPTHS else -1
        has = [*DEPTHS].index(found["depth"]) if found["depth"] in DEPTHS else -1
        return there and has >= rank and set(depth.maps) <= set(found["maps"])

    def load(self, step: int) -> dict[str, AttentionRecord]:
        """Every record of a step, by probe."""
        return dict(StoredRecords(self.folder(step), self.probe_ids))

    def stored(self, step: int, probe_ids: Sequence[str]) -> StoredRecords:
        """Some of them, each read when it is asked for."""
        return StoredRecords(self.folder(step), probe_ids)

    def steps(self, depth: Depth) -> list[int]:
        """Every step that is complete, ascending."""
        names = sorted(path.name for path in self.attention_dir.glob("step-*"))
        numbers = [int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit()]
        return [step for step in sorted(numbers) if self.is_complete(step, depth)]

    def _marks(self, step: int) -> dict[str, Any]:
        """What makes records of a step the ones that are wanted."""
        return {
            "version": VERSION,
            "step": step,
            "probes": list(self.probe_ids),
            "key_layers": list(self.key_layers),
        }


def _marks_of(depth: Depth) -> dict[str, Any]:
    return {"depth": depth.name, "maps": list(depth.maps)}
