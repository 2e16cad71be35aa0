"""The folder for results that later runs reuse."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$ATTENTION_FINETUNE_CACHE``, else ``~/.cache/attention-finetune``."""
    given = os.environ.get("ATTENTION_FINETUNE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "attention-finetune"
