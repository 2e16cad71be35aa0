"""The best checkpoint so far, of a run that goes on: is it there, and if not, which of those that are there is?

``trainer_state.json`` names it by the path where it was saved. Since then the run's folder may have been moved, or the
checkpoint deleted: another branch of the run had a better one, or its owner needed the space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerState

from finetune.training import run_folder


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
    there, values = _place(step, resumed_from, state), dict(_values(state.log_history, metric))
    if there is not None and values.get(step, before) == before:
        state.best_model_checkpoint = str(there)
        return ""
    found = _best_there(values, resumed_from, state, greater=greater)
    state.best_model_checkpoint = None if found is None else str(found.checkpoint)
    state.best_global_step = None if found is None else found.step
    state.best_metric = None if found is None else found.value
    gone = f"the best so far, of step {step} ({before:.6g}), " + (
        "is no checkpoint that is there" if there is None else f"was not chosen by {metric}"
    )
    if found is None:
        return f"{gone}; no other that is there was evaluated: the best is chosen from here on"
    return (
        f"{gone}; of those that are there, {found.checkpoint.name} is the best ({metric} {found.value:.6g})"
    )


def _best_there(
    values: Mapping[int, float], resumed_from: Path, state: TrainerState, *, greater: bool
) -> Best | None:
    """The first of equal ones, as training would have chosen."""
    best: Best | None = None
    for step, value in sorted(values.items()):
        place = _place(step, resumed_from, state)
        if place is None or step > state.global_step or not math.isfinite(value):
            continue
        if best is None or (value > best.value if greater else value < best.value):
            best = Best(place, step, value)
    return best


def _place(step: int, resumed_from: Path, state: TrainerState) -> Path | None:
    """The whole checkpoint of a step, beside the one that is resumed from or where the state says; None if gone."""
    if step == state.global_step:  # it may have any name
        return resumed_from
    beside = resumed_from.absolute().parent / f"checkpoint-{step}"
    if run_folder.is_marked(beside):
        return beside
    # Earlier releases also counted evaluations between checkpoints: the path may be of a step before the best one's.
    written = state.best_model_checkpoint
    return Path(written) if written and _step_of(Path(written)) == step else None


def _step_of(checkpoint: Path) -> int | None:
    try:
        return run_folder.step_of(checkpoint)
    except ValueError:
        return None


def _values(log_history: Sequence[Mapping[str, Any]], metric: str) -> Iterator[tuple[int, float]]:
    """Step → what its evaluation gave."""
    for entry in log_history:
        value, step = entry.get(metric), entry.get("step")
        if isinstance(value, int | float) and isinstance(step, int):
            yield step, value
