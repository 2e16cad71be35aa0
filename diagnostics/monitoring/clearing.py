"""Makes room in a run's folder: what an earlier training left, and what lies beyond the step that a run goes on from.

It is moved aside and not deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from diagnostics.records.archive import (
    SUPERSEDED,
    RecordArchive,
    begun_there,
    delete_unfinished_baseline,
    left_by_earlier,
    recorded_steps,
    set_aside,
)
from diagnostics.records.identity import Run


def make_room(output_dir: Path, run: Run, *, logs: Callable[[], list[Path]]) -> None:
    """Move what an earlier training left out of the way. A baseline of this very model is overwritten, one whose
    writing did not finish deleted.

    logs   the event files that go with it
    """
    attention = output_dir / "attention"
    if not left_by_earlier(attention):
        return
    delete_unfinished_baseline(attention)
    with suppress(ValueError):
        before, steps = begun_there(attention), recorded_steps(attention)
        if not steps or (steps == [0] and Run.from_json(before).same_start(run)):
            (attention / "calibration.json").unlink(missing_ok=True)
            return
    found = [attention, output_dir / "comparison", *logs()]
    place = set_aside(output_dir, [path for path in found if path.exists()])
    print(
        f"{output_dir}: moved the monitor's files of an earlier training to {place}; this run starts from scratch",
        flush=True,
    )


def set_later_aside(archive: RecordArchive, step: int, best: str | None) -> None:
    """Move away the records of later steps than the one from which training resumes, and those of this one where they
    are of the best model, which an earlier end of training had loaded."""
    folder = archive.attention_dir
    moved = archive.set_beyond_aside(step if best is None else step - 1)
    where = f"their records and pictures were moved to {folder / SUPERSEDED}"
    if best is not None:
        print(f"{folder}: step {step} was measured on {best}, the best; {where}", flush=True)
    beyond = [one for one in moved if one > step]
    if beyond:
        listed = ", ".join(map(str, beyond))
        print(
            f"{folder}: steps {listed} lie beyond step {step}, from which training resumes; {where}",
            flush=True,
        )
