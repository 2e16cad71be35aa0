"""What a model looks at, before and after training. ``from diagnostics import AttentionExtractor, …``.

Names are loaded when they are asked for, so that reading records needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagnostics.capture.extractor import AttentionExtractor
    from diagnostics.drawing.figures import AttentionVisualizer
    from diagnostics.monitor import AttentionMonitor
    from diagnostics.records.bertviz import to_bertviz
    from diagnostics.records.record import AttentionRecord
    from finetune.attention.watch import remove_all

_HOMES = {
    "AttentionExtractor": "diagnostics.capture.extractor",
    "AttentionMonitor": "diagnostics.monitor",
    "AttentionRecord": "diagnostics.records.record",
    "AttentionVisualizer": "diagnostics.drawing.figures",
    "remove_all": "finetune.attention.watch",
    "to_bertviz": "diagnostics.records.bertviz",
}

__all__ = [
    "AttentionExtractor",
    "AttentionMonitor",
    "AttentionRecord",
    "AttentionVisualizer",
    "remove_all",
    "to_bertviz",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diagnostics' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
