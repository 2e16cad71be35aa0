"""The order of the test files: slow ones first."""

from collections.abc import MutableSequence
from pathlib import Path
from typing import Protocol, TypeVar

TESTS = Path(__file__).parent
SLOWEST = (
    "adversaries/test_trained_edits.py", "adversaries/test_untrained_edits.py", "finetune/test_program.py",
    "diagnostics/web/test_server.py", "test_script_table.py", "adversaries/test_wired_head.py",
    "finetune/promises/test_04_pictures_for_all.py", "finetune/promises/test_05_gradients.py", "test_nodes.py",
    "finetune/samples/test_videos.py", "finetune/training/test_resume.py",
    "finetune/promises/test_12_accumulation.py", "adversaries/test_honest_correction.py",
)  # fmt: skip
"""Files of half a minute or more, slowest first. Each is one worker's, so that a slow one at the end leaves the others
idle."""


class InFile(Protocol):
    @property
    def path(self) -> Path: ...


Item = TypeVar("Item", bound=InFile)


def slow_first(items: MutableSequence[Item]) -> None:
    """Sorts in place: ``SLOWEST`` in their order, then all others as they were."""
    places = {TESTS / name: place for place, name in enumerate(SLOWEST)}
    items[:] = sorted(items, key=lambda item: places.get(item.path, len(places)))
