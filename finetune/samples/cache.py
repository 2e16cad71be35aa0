"""The folder for results that later runs reuse, and what this process has put there."""

from __future__ import annotations

import os
from pathlib import Path

from finetune.files import write_atomically


def cache_folder() -> Path:
    """``$ATTENTION_FINETUNE_CACHE``, else ``~/.cache/attention-finetune``."""
    given = os.environ.get("ATTENTION_FINETUNE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "attention-finetune"


_written: list[Path] = []


def keep(path: Path, content: bytes) -> None:
    """Write a file that later runs reuse. Raises OSError where it cannot be written."""
    write_atomically(path, content)
    note(path)


def note(path: Path) -> None:
    """Something that later runs reuse was written elsewhere: a folder of drawn pictures."""
    if path not in _written:
        _written.append(path)


def taken_notes() -> tuple[Path, ...]:
    """What was written since the last call: a dry run names it, for it writes nothing else."""
    found = tuple(_written)
    _written.clear()
    return found
