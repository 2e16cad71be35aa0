"""The best checkpoint so far, of a run that goes on: is it there, and if not, which of those that are there is?

``trainer_state.json`` names it by the path where it was saved. Since then the run's folder may have been moved, or the
checkpoint deleted: another branch of the run had a better one, or its owner needed the space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerState

from finetune import fields
from finetune.fields import OBJECT, items, whole
from finetune.training import run_folder

_STATE: fields.Shape = {"global_step": whole(0), "log_history": items(OBJECT)}


class Best(NamedTuple):
    """A checkpoint, the step that it was saved after, and what its evaluation gave."""

    checkpoint: Path
    step: int
    value: float


def put_right(state: TrainerState, resumed_from: Path, metric: str, *, greater: bool) -> str:
    """Make the state's best one that is there and was judged by ``metric``; returns what is to be said, "" for nothing.

    resumed_from   the checkpoint that the state was read from: others of its run lie beside it
    metric         as evaluations name it: ``eval_loss``
    greater        is more of it better?

    Without any, the state has no best, and the next checkpoint that is evaluated becomes it: as long as
    a better value of one that is gone stood there, none could.
    """
    step, before = state.best_global_step, state.best_metric
    if before is None or not step:
        state.best_metric = None
        return ""
    places, values = _places(resumed_from, state), dict(_values(state.log_history, metric))
    there = places.get(step)
    is_by_metric = there is not None and values.get(step) == before
    if is_by_metric and not _is_beaten(before, values, places, metric, greater=greater):
        state.best_model_checkpoint = str(there)
        return ""
    found = _best_there(values, places, greater=greater)
    state.best_model_checkpoint = None if found is None else str(found.checkpoint)
    state.best_global_step = None if found is None else found.step
    state.best_metric = None if found is None else found.value
    if there is None:
        why = "is no checkpoint that is there"
    elif is_by_metric:
        why = f"was not chosen by the {'largest' if greater else 'smallest'} {metric} (--greater_is_better {greater})"
    else:
        why = f"was not chosen by {metric}"
    gone = f"the best so far, of step {step} ({before:.6g}), {why}"
    if found is None:
        return f"{gone}; no other that is there was evaluated: the best is chosen from here on"
    return (
        f"{gone}; of those that are there, {found.checkpoint.name} is the best ({metric} {found.value:.6g})"
    )


def _is_beaten(
    best: float, values: Mapping[int, float], places: Mapping[int, Path], metric: str, *, greater: bool
) -> bool:
    """Is there a checkpoint with a better value, which would have been chosen by this direction?

    One that was saved without its evaluation, because a signal stopped the run there, was not to be chosen.
    """
    for step, place in places.items():
        value = values.get(step)
        if value is None or not (value > best if greater else value < best):
            continue
        saved = fields.load(place / run_folder.STATE_FILE, _STATE, required=tuple(_STATE))
        if dict(_values(saved["log_history"], metric)).get(step) == value:
            return True
    return False


def _best_there(values: Mapping[int, float], places: Mapping[int, Path], *, greater: bool) -> Best | None:
    """The first of equal ones, as training would have chosen."""
    best: Best | None = None
    for step, value in sorted(values.items()):
        place = places.get(step)
        if place is None or not math.isfinite(value):
            continue
        if best is None or (value > best.value if greater else value < best.value):
            best = Best(place, step, value)
    return best


def _places(resumed_from: Path, state: TrainerState) -> dict[int, Path]:
    """Step → the whole checkpoint of this training that was saved after it: beside the one that is resumed from, or
    where the state says.

    Others of the same steps may lie there: of a branch that was left, or of another run. What was logged tells them
    apart: that of a checkpoint on the way is a beginning of what was logged since.
    """
    found = {state.global_step: resumed_from.absolute()}  # it may have any name
    beside = sorted(resumed_from.resolve().parent.glob("checkpoint-*"))
    written = [Path(state.best_model_checkpoint)] if state.best_model_checkpoint else []
    for place in [*filter(run_folder.is_marked, beside), *written]:
        step = _step_on_the_way(place, state.log_history)
        if step is not None and step < state.global_step:
            found.setdefault(step, place.absolute())
    return found


def _step_on_the_way(checkpoint: Path, log_history: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of a checkpoint with this log, as far as it had come; None for any other."""
    try:
        content = fields.load(checkpoint / run_folder.STATE_FILE, _STATE, required=tuple(_STATE))
    except ValueError:
        return None
    step, logged = int(content["global_step"]), content["log_history"]
    # As text: a number that is none is not equal to itself.
    before, since = (json.dumps(one, sort_keys=True) for one in (logged, log_history[: len(logged)]))
    # An evaluation may be missing that was made up for after it was saved; nothing of earlier steps may.
    is_whole = all(one.get("step", step) >= step for one in log_history[len(logged) :])
    return step if before == since and is_whole else None


def _values(log_history: Sequence[Mapping[str, Any]], metric: str) -> Iterator[tuple[int, float]]:
    """Step → what its evaluation gave."""
    for entry in log_history:
        value, step = entry.get(metric), entry.get("step")
        if isinstance(value, int | float) and isinstance(step, int):
            yield step, value
