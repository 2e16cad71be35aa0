"""The drawing process: reads requests on its standard input, draws, answers on its standard output."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

from diagnostics.drawing.archive_pictures import (
    ArchivePictures,
    first_of_groups,
    render_archive,
    render_board,
    render_strips,
)
from diagnostics.drawing.board import SHOWN_PER_GROUP
from diagnostics.drawing.worker_client import END, STRIPS, Message

WORKERS_MAX = 4

NICENESS = 15


def drawing_pool() -> ProcessPoolExecutor:
    """Processes that draw side by side; forked, so that they start at once and share what is loaded."""
    workers = min(WORKERS_MAX, os.cpu_count() or 1)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))


def serve(attention_dir: Path, scratch_dir: Path, per_group: int, requests: Iterable[str]) -> bool:
    """Draw each requested step: first what TensorBoard shows, then the archive. False where the requests stop without
    their end: the training was killed."""
    archive = None
    with drawing_pool() as pool:
        for line in requests:
            asked = json.loads(line)
            if END in asked:
                return True
            left = []
            if STRIPS in asked:
                archive = archive or ArchivePictures.open(attention_dir)
                shown = first_of_groups(archive.probes, SHOWN_PER_GROUP)
                drawn = _counted(render_strips(archive, pool, shown), STRIPS, len(shown))
                _say({"done": STRIPS, "pictures": [], "problems": drawn})
                continue
            step = int(asked["step"])
            if archive is None:
                archive = ArchivePictures.open(attention_dir)
                left = [missing for missing in archive.missing_steps() if missing < step]
            pictures, problems = _draw_board(archive, step, per_group, scratch_dir, pool)
            problems += archive.problems
            # First what a killed run left undrawn. The baseline compared with itself has no archive picture.
            for undrawn in [*left, *([step] if step > 0 else [])]:
                problems += _counted(render_archive(archive, undrawn, pool), undrawn, len(archive.probes))
            _say({"done": step, "pictures": pictures, "problems": problems})
    return False


def _counted(drawn: Iterator[str | None], what: int | str, total: int) -> list[str]:
    """Problems of pictures as they are drawn; reports progress every ten pictures."""
    problems: list[str] = []
    for number, problem in enumerate(drawn, start=1):
        problems += [] if problem is None else [problem]
        if number % 10 == 0:
            _say({"step": what, "drawn": number, "of": total})
    return problems


def _draw_board(
    archive: ArchivePictures, step: int, per_group: int, scratch_dir: Path, pool: Executor
) -> tuple[list[Message], list[str]]:
    """Write TensorBoard's pictures into the scratch folder; returns their tags and paths, and what went wrong."""
    pictures: list[Message] = []
    problems: list[str] = []
    for number, drawn in enumerate(render_board(archive, step, pool, per_group)):
        if isinstance(drawn, str):
            problems.append(drawn)
            continue
        path = scratch_dir / f"step-{step:06d}-{number:04d}.png"
        path.write_bytes(drawn.png)
        pictures.append({"tag": drawn.tag, "path": str(path), "size": drawn.size})
    return pictures, problems


def _say(message: Message) -> None:
    print(json.dumps(message), flush=True)
