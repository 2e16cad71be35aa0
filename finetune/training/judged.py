"""Which weights the ``comparison/`` of a run's folder is of.

Anybody may write one there: the monitor at the end of training, ``diagnostics.compare`` by hand, on any two models.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from finetune import fields
from finetune.fields import NULL, OBJECT, TEXT, by_name, items, whole
from finetune.flags import run_file
from finetune.flags.argv import split_flags

FOLDER, FILE, CONFIGURATION_FILE = "comparison", "comparison.json", "run.yaml"
SHAPE = {"groups": by_name(OBJECT), "after": OBJECT, "probes": items(OBJECT)}
_AFTER = {"model": TEXT, "step": whole(0) | NULL}
BY_THE_MONITOR = re.compile(
    r"(?P<run>.+)(?: at step (?P<step>[0-9]{1,18})|: the best, checkpoint-(?P<best>[0-9]{1,18}))", re.DOTALL
)
"""How a monitored run names its models, but for the one that it begins with."""
_STEP_FOLDER = re.compile(r"(?:checkpoint|step)-([0-9]{1,18})")


class Judged(NamedTuple):
    """A comparison, and what it says of its model after training.

    content   of comparison.json
    place     the folder that it names: the run's, or that of the weights where it was made by hand
    end       step at which the monitor measured; None: made by hand, of the weights in ``place``
    best      step of the checkpoint that was measured then in place of the last one; None: of none
    """

    content: dict[str, Any]
    place: str
    end: int | None
    best: int | None


def read(run: Path) -> Judged | None:
    """The comparison in a run's folder; None if there is none, or one that is broken or of another release."""
    path = run / FOLDER / FILE
    if not path.is_file():
        return None
    try:
        content = fields.load(path, SHAPE, required=tuple(SHAPE))
        fields.check(content["after"], _AFTER, str(path), required=("model",))
    except ValueError:
        return None
    model, step = content["after"]["model"], content["after"].get("step")
    named = BY_THE_MONITOR.fullmatch(model)
    if named is None:
        return Judged(content, model, None, None)
    if step is None or (named["step"] is not None and int(named["step"]) != step):
        return None
    return Judged(content, named["run"], step, None if named["best"] is None else int(named["best"]))


def is_of(judged: Judged, weights: Path, *, run: Path, step: int | None) -> bool:
    """Is the comparison of these weights?

    weights   their folder: the run's own, a checkpoint's, or one elsewhere
    step      that they were saved after; None: not known
    """
    if judged.end is None:
        return _is_same(judged.place, weights)
    if not _is_of_run(judged.place, run):
        return False
    if _is_same(str(weights), run):
        return judged.end == step if step is not None else judged.end >= _last_step(run)
    measured = judged.end if judged.best is None else judged.best
    return step == measured and _is_same(str(run / f"checkpoint-{measured}"), weights)


def lies_beyond(judged: Judged, run: Path, step: int) -> bool:
    """Is the comparison of what a run is to train anew that goes on from ``step``? What was compared by hand has no
    step of training, but names the folder."""
    if judged.end is not None:
        return judged.end > step
    number = re.fullmatch(r"checkpoint-([0-9]{1,18})", Path(judged.place).name)
    if number is not None and _is_same(str(Path(judged.place).parent), run):
        return int(number[1]) > step
    return _is_same(judged.place, run)


def _is_same(place: str, folder: Path) -> bool:
    # Not pathlib: of a name that is too long, or goes round in links, it raises errors.
    return "\0" not in place and os.path.realpath(place) == os.path.realpath(folder)


def _is_of_run(place: str, run: Path) -> bool:
    """Does the monitor's name for a run's folder mean this one? A run that was moved, or is looked at from another
    working directory, is known by the --output_dir that it wrote down: in full, while the monitor names the folder as
    it was given."""
    if _is_same(place, run):
        return True
    if os.path.isabs(place) and os.path.exists(place):
        return False
    try:
        flags = run_file.flags_of(str(run / CONFIGURATION_FILE))
    except ValueError:
        return False
    return any(
        name == "output_dir" and len(values) == 1 and _may_be_written(place, values[0])
        for name, values in split_flags(flags)
    )


def _may_be_written(place: str, folder: str) -> bool:
    """May a folder be written so, from some working directory? ``/work/runs/out`` as ``runs/out`` or ``../out``."""
    if place == folder:
        return True
    named, whole = PurePath(os.path.normpath(place)), PurePath(folder)
    tail = [one for one in named.parts if one != os.pardir]  # normal paths have them at their beginning alone
    # Without a tail (".", "..") it may be any folder.
    return not named.is_absolute() and (not tail or [*whole.parts[-len(tail) :]] == tail)


def _last_step(run: Path) -> int:
    """The newest step that the run left anything of; 0 for none."""
    left = [*run.glob("checkpoint-*"), *run.glob("attention/step-*")]
    return max((int(found[1]) for one in left if (found := _STEP_FOLDER.fullmatch(one.name))), default=0)
