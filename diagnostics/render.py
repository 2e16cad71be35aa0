"""Draws records: a low-priority process beside training, or a command that redraws the archive.

The monitor starts it (``Renderer``) and talks to it in lines of JSON: ``{"step": 50}`` on its standard input requests
the drawings of a step, ``{"strips": true}`` those over all steps; it writes the archive, and answers on its standard
output with the pictures for trackers, in base64. It only reads records, so training never waits for it, and a crash
here loses drawings, not a run.

Usage and flags: ``diagnostics/flags/render.py``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from diagnostics.flags.render import parser

if __name__ == "__main__":
    parser().parse_args()  # handle --help and wrong flags before the slow imports below

from tqdm import tqdm

from diagnostics.drawing.archive_pictures import ArchivePictures, render_archive, render_strips
from diagnostics.drawing.worker import NICENESS, drawing_pool, serve
from finetune.files import check_writable, fault_words
from finetune.printable import printable

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the monitor on standard input, or draw ``--steps`` by hand.

    Exit status by hand: 0; 1 if something could not be drawn; 2 if there are no records.
    """
    options = parser().parse_args(arguments)
    if options.serve:
        _serve(options.attention_dir, options.shown_per_group)
        return
    status = _by_hand(options.attention_dir, options.probes, options.steps, strips=options.strips)
    if status:
        sys.exit(status)


def _serve(attention_dir: Path, shown_per_group: int) -> None:
    os.nice(NICENESS)
    if hasattr(os, "SCHED_IDLE"):
        # Nice alone leaves drawing a share of the cores, and a training step waits for its slowest thread.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        serve(attention_dir, shown_per_group, sys.stdin, answers)
    except BrokenPipeError:
        os._exit(0)  # the training was killed; what is still buffered would raise again


def _by_hand(attention_dir: Path, probes: Path | None, steps: Sequence[int] | None, *, strips: bool) -> int:
    """Draw, and report missing steps in one line. Returns the exit status."""
    try:
        check_writable(attention_dir / "images")
        problems = _draw_by_hand(ArchivePictures.open(attention_dir, probes), steps, strips=strips)
    except (ValueError, OSError) as error:
        print(printable(f"error: {fault_words(error)}"), file=sys.stderr)
        return 2
    if problems:
        rest = f", and {len(problems) - 1} more (above)" if len(problems) > 1 else ""
        print(f"error: not drawn: {problems[0]}{rest}", file=sys.stderr)
    return 1 if problems else 0


def _draw_by_hand(archive: ArchivePictures, steps: Sequence[int] | None, *, strips: bool) -> list[str]:
    """The archive of ``steps``; every missing step where ``[]`` is given, or nothing at all was asked for. Returns what
    could not be drawn."""
    problems = [*archive.problems]
    for problem in problems:
        tqdm.write(problem)
    undrawn = archive.missing_steps() if steps == [] or (steps is None and not strips) else steps or []
    with drawing_pool() as pool:
        for step in undrawn:
            drawn = render_archive(archive, step, pool)
            problems += _draw_with_bar(drawn, f"step {step}", len(archive.probes))
        if strips:
            drawn = render_strips(archive, pool, archive.probes)
            problems += _draw_with_bar(drawn, "strips", len(archive.probes))
    return problems


def _draw_with_bar(drawn: Iterator[str | None], what: str, total: int) -> list[str]:
    problems: list[str] = []
    bar = tqdm(drawn, desc=what, total=total, unit="picture")
    for problem in bar:
        if problem is not None:
            bar.write(f"{what}: {problem}")
            problems.append(f"{what}: {problem}")
    return problems


if __name__ == "__main__":
    main()
