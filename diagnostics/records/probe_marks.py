"""Identifies a probe by its content: what was measured of one question says nothing of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from diagnostics.records.probes import Probe

MOST_NAMED = 5


def probe_marks(probes: Sequence[Probe]) -> dict[str, str]:
    """Probe id → ``probe_mark``."""
    return {probe.id: probe_mark(probe) for probe in probes}


def probe_mark(probe: Probe) -> str:
    """SHA-256 of the question, the replies, what is measured, and the bytes of the pictures. The group's name and the
    paths of the pictures may change."""
    content = {
        "question": probe.question,
        "answer": probe.answer if len(probe.spellings) == 1 else probe.spellings,
        "foil": probe.foil,
        "regions": {
            name: [[float(edge) for edge in box] for box in boxes] for name, boxes in probe.regions.items()
        },
        "phrases": dict(probe.phrases),
        "relation": probe.relation,
        "pictures": [_digest(path) for path in probe.images],
    }
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def probe_differences(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """ "probes added: a, b; probes removed: c"; None if they are the same."""
    found = {
        "probes added": [name for name in now if name not in before],
        "probes removed": [name for name in before if name not in now],
        "probes with a different question, answer, foil, region or picture": [
            name for name in now if name in before and now[name] != before[name]
        ],
    }
    return "; ".join(f"{what}: {_listed(names)}" for what, names in found.items() if names) or None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _digest(path: Path) -> str:
    """Of the file's bytes; each file is read once, until it changes."""
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16384)
def _read(path: Path, _modified: int, _bytes: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
