"""Where what was computed once is kept, for the next run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def cache_folder() -> Path:
    """``$ATTENTION_FINETUNE_CACHE``, else ``~/.cache/attention-finetune``."""
    given = os.environ.get("ATTENTION_FINETUNE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "attention-finetune"


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that other processes see whole or not at all, as several may write it at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
