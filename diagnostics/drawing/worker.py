"""The drawing process: reads requests on its standard input, draws, answers on its standard output.

It passes everything through these two, pictures too: whatever kills it or the training, no file is left behind.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import TextIO

from diagnostics.drawing.archive_pictures import (
    ArchivePictures,
    first_of_groups,
    render_archive,
    render_board,
    render_strips,
)
from diagnostics.drawing.board import SHOWN_PER_GROUP
from diagnostics.drawing.worker_client import STRIPS, Message
from finetune.samples.workers import end_without_threads

WORKERS_MAX = 4

NICENESS = 15


def drawing_pool() -> ProcessPoolExecutor:
    """Processes that draw side by side; forked, so that they start at once and share what is loaded."""
    workers = min(WORKERS_MAX, os.cpu_count() or 1)
    fork = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(workers, mp_context=fork, initializer=end_without_threads)


def serve(attention_dir: Path, per_group: int, requests: Iterable[str], answers: TextIO) -> None:
    """Draw each requested step: first what TensorBoard shows, then the archive. Ends with the requests.

    Raises BrokenPipeError, without drawing the rest, where nobody reads the answers: the training was killed. The next
    run draws what is missing.
    """
    archive = None
    end_without_threads()

    def say(message: Message) -> None:
        print(json.dumps(message), file=answers, flush=True)

    with drawing_pool() as pool:
        try:
            for line in requests:
                asked = json.loads(line)
                left = []
                if STRIPS in asked:
                    archive = archive or ArchivePictures.open(attention_dir)
                    shown = first_of_groups(archive.probes, SHOWN_PER_GROUP)
                    lacking = _counted(render_strips(archive, pool, shown), STRIPS, len(shown), say)
                    say({"done": STRIPS, "pictures": [], "problems": lacking})
                    continue
                step = int(asked["step"])
                if archive is None:
                    archive = ArchivePictures.open(attention_dir)
                    left = [missing for missing in archive.missing_steps() if missing < step]
                pictures, problems = _draw_board(archive, step, per_group, pool)
                problems += archive.problems
                # First what a killed run left undrawn. The baseline compared with itself has no archive picture.
                for undrawn in [*left, *([step] if step > 0 else [])]:
                    drawn = render_archive(archive, undrawn, pool)
                    problems += _counted(drawn, undrawn, len(archive.probes), say)
                say({"done": step, "pictures": pictures, "problems": problems})
        except BrokenPipeError:
            pool.shutdown(cancel_futures=True)
            raise


def _counted(
    drawn: Iterator[str | None], what: int | str, total: int, say: Callable[[Message], None]
) -> list[str]:
    """Problems of pictures as they are drawn; reports progress every ten pictures."""
    problems: list[str] = []
    for number, problem in enumerate(drawn, start=1):
        problems += [] if problem is None else [problem]
        if number % 10 == 0:
            say({"step": what, "drawn": number, "of": total})
    return problems


def _draw_board(
    archive: ArchivePictures, step: int, per_group: int, pool: Executor
) -> tuple[list[Message], list[str]]:
    """TensorBoard's pictures, as they are sent, and what went wrong."""
    pictures: list[Message] = []
    problems: list[str] = []
    for drawn in render_board(archive, step, pool, per_group):
        if isinstance(drawn, str):
            problems.append(drawn)
            continue
        png = base64.b64encode(drawn.png).decode("ascii")
        pictures.append({"tag": drawn.tag, "png": png, "size": drawn.size})
    return pictures, problems
