"""Stands in for the drawing process, which takes seconds to start and has tests of its own."""

from pathlib import Path

RENDERER = "diagnostics.drawing.worker_client.Renderer"
"""What to replace by ``Undrawn``."""


class Undrawn:
    """No process that draws."""

    def __init__(self, attention_dir: Path) -> None: ...
    def submit(self, step: int) -> None: ...
    def submit_strips(self) -> None: ...

    def poll(self) -> list:
        return []

    close = poll
